"""BIDS data sets: names pseudonymised, sidecars and tables reduced to what is on a list.

A file name such as `sub-4711_ses-20190112_task-rest_bold.nii.gz` is read as BIDS reads it, entity by entity. Subjects
get keyed codes, and so do sessions and labels of free choice, unless they are a small number or one of a few
words. Entities, suffixes and endings have to be ones that BIDS defines; a name that is no BIDS name is refused.

Sidecars keep acquisition parameters whose values are numbers or words of a closed list. Times, names, places, serial
numbers and all keys not on the list are dropped and their names told. Tables keep the columns on a list; ages of 89 and
above become "89+", as BIDS recommends, and acquisition times move by the patient's whole days. A profile that keeps no
patient characteristics or no shifted dates drops these columns.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from voxscore.deidentify.codes import Codes
from voxscore.deidentify.nifti import rebuilt_nifti
from voxscore.deidentify.profile import PROFILES, Profile
from voxscore.errors import UserError

__all__ = ["bids_name", "has_numbers_only", "scrub_bids", "scrub_sidecar", "scrub_table"]

_INDEX = {"run", "echo", "inv", "split", "chunk", "flip"}
_LABEL = {"task", "acq", "ce", "trc", "rec", "dir", "mod", "mt", "part", "hemi", "space", "res", "den", "desc", "label"}
_PLAIN = re.compile(r"\d{1,3}|AP|PA|LR|RL|IS|SI|on|off|mag|phase|real|imag|L|R|rest|baseline|pre|post|brain|orig")
_SUFFIXES = {
    *("T1w", "T2w", "T2star", "FLAIR", "PDw", "PDT2", "inplaneT1", "inplaneT2", "angio", "UNIT1", "T1map", "T2map"),
    *(
        "T2starmap",
        "R1map",
        "R2map",
        "R2starmap",
        "PDmap",
        "MTRmap",
        "MTsat",
        "MTS",
        "MTR",
        "MPM",
        "MEGRE",
        "MESE",
        "VFA",
    ),
    *("MP2RAGE", "IRT1", "bold", "sbref", "cbv", "dwi", "asl", "m0scan", "epi", "fieldmap", "magnitude", "magnitude1"),
    *(
        "magnitude2",
        "phase",
        "phasediff",
        "phase1",
        "phase2",
        "pet",
        "ct",
        "mask",
        "dseg",
        "probseg",
        "swi",
        "defacemask",
    ),
}
_TABLES = {"participants", "sessions", "scans", "events"}
_NAMELESS = {"participants.tsv", "participants.json", "dataset_description.json"}
_FOLDERS = {"anat", "func", "dwi", "fmap", "perf", "pet"}
_ENDINGS = (".nii.gz", ".nii", ".json", ".tsv", ".bval", ".bvec")
_DATA_SET_NAME = "de-identified data set"
_GREATEST = 1e12
_NUMBER_LINES = re.compile(r"[\s\d.eE+-]*")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _GREATEST


def _numbers(value: Any) -> bool:
    return _number(value) or (isinstance(value, list) and all(map(_number, value)))


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _words(pattern: str) -> Callable[[Any], bool]:
    form = re.compile(pattern)

    def fits(value: Any) -> bool:
        texts = value if isinstance(value, list) else [value]
        return all(isinstance(text, str) and form.fullmatch(text) is not None for text in texts)

    return fits


_FLAGS = ("MTState", "SpoilingState", "BackgroundSuppression", "VascularCrushing", "NonlinearGradientCorrection")
_NUMERIC = (
    *("MagneticFieldStrength", "ImagingFrequency", "EchoTime", "EchoTime1", "EchoTime2", "RepetitionTime", "FlipAngle"),
    *("InversionTime", "EchoTrainLength", "EchoNumber", "NumberOfAverages", "SliceThickness", "SpacingBetweenSlices"),
    *(
        "PixelBandwidth",
        "DwellTime",
        "EffectiveEchoSpacing",
        "TotalReadoutTime",
        "PhaseEncodingSteps",
        "BaseResolution",
    ),
    *("AcquisitionMatrixPE", "ReconMatrixPE", "PercentPhaseFOV", "PercentSampling", "PartialFourier", "SliceTiming"),
    *("ParallelReductionFactorInPlane", "ParallelReductionFactorOutOfPlane", "MultibandAccelerationFactor", "SAR"),
    *("NumberOfVolumesDiscardedByScanner", "NumberOfVolumesDiscardedByUser", "VolumeTiming", "DelayTime"),
    *("ImageOrientationPatientDICOM", "RepetitionTimePreparation", "RepetitionTimeExcitation", "MTOffsetFrequency"),
    *("LabelingDuration", "PostLabelingDelay", "BackgroundSuppressionNumberPulses", "TotalAcquiredPairs"),
    *("FrameDuration", "FrameTimesStart", "XRayExposure", "XRayTubeCurrent", "KVP", "ExposureTime", "TriggerDelayTime"),
    *(
        "PhilipsRescaleSlope",
        "PhilipsRescaleIntercept",
        "UsePhilipsFloatNotDisplayScaling",
        "RefLinesPE",
        "AccelFactPE",
    ),
)
_VENDOR = r"(?i:siemens(?: healthineers)?|ge(?: medical systems)?|philips(?: medical systems| healthcare)?|canon"
_VENDOR += r"|toshiba|hitachi|uih|united imaging|bruker|fonar|hyperfine)"
_SIDECAR: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(_NUMERIC, _numbers),
    **dict.fromkeys(_FLAGS, _flag),
    "Modality": _words("MR|CT|PT|NM"),
    "Manufacturer": _words(_VENDOR),
    "MRAcquisitionType": _words("[123]D"),
    "PhaseEncodingDirection": _words("[ijk]-?"),
    "PhaseEncodingAxis": _words("[ijk]"),
    "InPlanePhaseEncodingDirectionDICOM": _words("ROW|COL"),
    "SliceEncodingDirection": _words("[ijk]-?"),
    "PatientPosition": _words("(?:HF|FF)(?:S|P|DR|DL)"),
    "ScanningSequence": _words(r"(?:SE|IR|GR|EP|RM)(?:[_\\](?:SE|IR|GR|EP|RM))*"),
    "SequenceVariant": _words(r"(?:SK|MTC|SS|TRSS|SP|MP|OSP|NONE)(?:[_\\](?:SK|MTC|SS|TRSS|SP|MP|OSP|NONE))*"),
    "BodyPartExamined": _words("BRAIN|HEAD|NECK|CHEST|ABDOMEN|PELVIS|SPINE|CSPINE|TSPINE|LSPINE|KNEE|HEART|WHOLEBODY"),
    "ImageType": _words("ORIGINAL|DERIVED|PRIMARY|SECONDARY|M|P|R|I|NORM|DIS2D|DIS3D|ND|MOSAIC|ADC|TRACEW|FA|OTHER"),
    "ArterialSpinLabelingType": _words("CASL|PCASL|PASL"),
    "M0Type": _words("Separate|Included|Estimate|Absent"),
    "TaskName": _words(_PLAIN.pattern),
    "Units": _words(r"Hz|rad/s|T|rad|arbitrary|Bq/mL|SUV"),
    "BIDSVersion": _words(r"\d+\.\d+\.\d+"),
    "DatasetType": _words("raw|derivative"),
}
_COLUMNS: dict[str, Callable[[str], bool]] = {
    "sex": _words("(?i:m|f|o|male|female|other|n/a)"),
    "handedness": _words("(?i:l|r|a|left|right|ambidextrous|n/a)"),
    "onset": lambda text: _decimal(text) is not None,
    "duration": lambda text: _decimal(text) is not None,
    "response_time": lambda text: _decimal(text) is not None,
}
_OLDEST, _OLD = 89, "89+"


def scrub_bids(
    content: bytes, path: PurePosixPath, codes: Codes, profile: Profile = PROFILES["research"]
) -> tuple[bytes, PurePosixPath, list[str]]:
    """De-identify one file of a BIDS data set.

    Args:
        content: its bytes.
        path: relative to the data set's root.
        codes: new identifiers.
        profile: whether acquisition times and the subjects' age and sex may stay.

    Returns:
        New bytes, new relative path, and the names of the keys or columns that were dropped.

    Raises:
        UserError: a name or content that cannot be judged. Neither subject nor fault hold anything of the file.
    """
    new = bids_name(path, codes)
    dropped: list[str] = []
    if path.name.endswith((".nii", ".nii.gz")):
        try:
            content = rebuilt_nifti(content, Path(new.name))
        except UserError as error:
            raise _refused(error.fault) from error
    elif path.name.endswith(".json"):
        content, dropped = scrub_sidecar(content, path.name == "dataset_description.json")
    elif path.name.endswith(".tsv"):
        patient = next((part[4:] for part in path.parts if part.startswith("sub-")), None)
        content, dropped = scrub_table(content, codes, patient, profile)
    elif not has_numbers_only(content):
        raise _refused("holds more than numbers")
    return content, new, dropped


def bids_name(path: PurePosixPath, codes: Codes) -> PurePosixPath:
    """Return the path of a file with its subject, session and free labels replaced.

    Raises:
        UserError: not a name that BIDS defines.
    """
    folders = [_folder(part, codes) for part in path.parts[:-1]]
    if path.name in _NAMELESS:
        return PurePosixPath(*folders, path.name)
    ending = next((e for e in _ENDINGS if path.name.endswith(e)), None)
    if ending is None:
        raise _refused("is not of a kind that is cleaned")
    *entities, suffix = path.name[: -len(ending)].split("_")
    if suffix not in _SUFFIXES | _TABLES or not entities:
        raise _refused("has no name that BIDS defines")
    renamed = [_entity(entity, codes) for entity in entities]
    return PurePosixPath(*folders, "_".join([*renamed, suffix]) + ending)


def has_numbers_only(content: bytes) -> bool:
    """Whether a file, of b values or directions, holds nothing but numbers."""
    return _NUMBER_LINES.fullmatch(content.decode("latin-1")) is not None


def scrub_sidecar(content: bytes, description: bool = False) -> tuple[bytes, list[str]]:
    """Return a JSON sidecar with the keys and values on the list, and the names of known BIDS form that were dropped.

    Args:
        content: the file's bytes.
        description: whether it describes the data set, which has to have a name: it gets a general one.

    Raises:
        UserError: not a JSON object.
    """
    try:
        old = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _refused("is not JSON") from error
    if not isinstance(old, dict):
        raise _refused("is not a JSON object")
    kept = {key: value for key, value in old.items() if key in _SIDECAR and _SIDECAR[key](value)}
    if description:
        kept["Name"] = _DATA_SET_NAME
    return json.dumps(kept, indent=2, sort_keys=True).encode() + b"\n", _told(old.keys() - kept.keys())


def scrub_table(
    content: bytes, codes: Codes, patient: str | None, profile: Profile = PROFILES["research"]
) -> tuple[bytes, list[str]]:
    """Return a table with the columns on the list, values that do not fit them as n/a, and the columns dropped.

    Args:
        content: tab-separated, the first line names the columns.
        codes: new identifiers.
        patient: the subject's old label where the table is one subject's.
        profile: whether acquisition times and the subjects' age and sex may stay.

    Raises:
        UserError: not a table.
    """
    try:
        lines = list(csv.reader(io.StringIO(content.decode("utf-8-sig")), delimiter="\t", quoting=csv.QUOTE_NONE))
    except (UnicodeDecodeError, csv.Error) as error:
        raise _refused("is not a table") from error
    if not lines or len(set(lines[0])) < len(lines[0]) or any(len(line) not in (0, len(lines[0])) for line in lines):
        raise _refused("is not a table")
    head, rows = lines[0], [line for line in lines[1:] if line]
    columns = {name: [_cell(name, row[k], codes, patient) for row in rows] for k, name in enumerate(head)}
    withheld = {name for option, names in _OPTIONAL.items() if option not in profile.options for name in names}
    kept = {name: cells for name, cells in columns.items() if name in {*_COLUMNS, *_REWRITTEN} - withheld}
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
    table.writerows([list(kept), *zip(*kept.values(), strict=True)])
    return text.getvalue().encode(), _told(columns.keys() - kept.keys())


# What converters and common tables hold and what is dropped.
_KNOWN = {
    *("SeriesInstanceUID", "StudyInstanceUID", "ReferringPhysicianName", "StudyID", "PatientName", "PatientID"),
    *("AccessionNumber", "PatientBirthDate", "PatientSex", "PatientWeight", "AcquisitionDateTime", "AcquisitionTime"),
    *("DeviceSerialNumber", "StationName", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName"),
    *("ProcedureStepDescription", "ProtocolName", "SeriesDescription", "ImageComments", "AcquisitionNumber"),
    *("SeriesNumber", "ManufacturersModelName", "SoftwareVersions", "SequenceName", "PulseSequenceDetails"),
    *("ConversionSoftware", "ConversionSoftwareVersion", "ConsistencyInfo", "CoilString", "ReceiveCoilName"),
    *("TaskName", "IntendedFor", "Name", "Authors", "Funding", "date_of_birth", "group", "site", "trial_type"),
}
_OPTIONAL = {"patient-characteristics": ("age", "sex", "handedness"), "modified-dates": ("acq_time",)}
_REWRITTEN = ("participant_id", "session_id", "filename", "age", "acq_time")


def _cell(column: str, text: str, codes: Codes, patient: str | None) -> str:
    if column in ("participant_id", "session_id", "filename"):
        if column == "filename":
            return str(bids_name(PurePosixPath(text), codes))
        return _entity(text, codes)
    if column == "age":
        age = _decimal(text)
        if text == _OLD or (age is not None and age >= _OLDEST):
            return _OLD
        return "n/a" if age is None or age < 0 else text
    if column == "acq_time":
        return _shifted(text, codes.day_shift(patient)) if patient else "n/a"
    return text if column in _COLUMNS and _COLUMNS[column](text) else "n/a"


def _shifted(text: str, days: int) -> str:
    """A date-time moved by whole days, its time kept."""
    try:
        return (datetime.datetime.fromisoformat(text.removesuffix("Z")) + datetime.timedelta(days=days)).isoformat()
    except (ValueError, OverflowError):
        return "n/a"


def _decimal(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?\d{1,9}(?:\.\d{1,9})?", text) else None


def _folder(part: str, codes: Codes) -> str:
    if part in _FOLDERS:
        return part
    if part.startswith(("sub-", "ses-")):
        return _entity(part, codes)
    raise _refused("lies in a folder that BIDS does not define")


def _entity(entity: str, codes: Codes) -> str:
    key, _, label = entity.partition("-")
    if not re.fullmatch("[0-9A-Za-z]+", label):
        raise _refused("has no name that BIDS defines")
    if key == "sub":
        return f"sub-{codes.identifier('patient', label, 12)}"
    if key == "ses" or key in _LABEL:
        return entity if _PLAIN.fullmatch(label) else f"{key}-{codes.identifier(key, label, 8)}"
    if key in _INDEX and re.fullmatch(r"\d{1,3}", label):
        return entity
    raise _refused("has no name that BIDS defines")


def _told(names: set[str]) -> list[str]:
    """Names of dropped keys and columns; those that nobody knows might themselves name somebody, and are counted."""
    known = sorted(names & _KNOWN)
    return known + ([f"{len(names) - len(known)} others"] if len(known) < len(names) else [])


def _refused(fault: str) -> UserError:
    return UserError("a file of the data set", fault, "rename or convert it, or leave it out")
