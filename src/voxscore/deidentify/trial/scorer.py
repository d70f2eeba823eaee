"""A planted corpus with its answers, and a score in the manner of the MIDI-B challenge.

The answers say for each element what must be true of it afterwards: gone, kept, moved by its patient's days, a new UID.
The score is the share of demands that are met. What MIDI's own script lets pass is not let pass here: a missing file
fails all its demands, an absent element passes none that need one, dates must keep their intervals, and an object
whose UIDs do not hold together (not new, not one for one, or a reference that points elsewhere) fails all its demands,
since nobody can use it.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian

__all__ = ["Case", "planted_corpus", "score"]

_CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4", "PT": "1.2.840.10008.5.1.4.1.1.128"}
_ROOT = "1.2.826.0.1.3680043.10.77."


@dataclass
class Case:
    """One object and what is demanded of it.

    Attributes:
        dataset: the original.
        removed: keyword -> strings that must be nowhere in the element.
        kept: keyword -> what must be in it.
        dates: keywords that must hold dates moved by one number of days a patient.
        uids: keywords with UIDs.
    """

    dataset: Dataset
    removed: dict[str, list[str]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    dates: list[str] = field(default_factory=list)
    uids: tuple[str, ...] = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")


def planted_corpus(patients: int = 20, seed: int = 0) -> list[Case]:
    """Return objects of patients with two studies of two slices each, identifiers planted in all of them."""
    draw = random.Random(seed)
    return [
        _case(draw, patient, study, number) for patient in range(patients) for study in range(2) for number in range(2)
    ]


def _case(draw: random.Random, patient: int, study: int, number: int) -> Case:
    family, given = f"Fam{patient:03d}x", f"Given{patient:03d}y"
    mrn, modality = f"{70_000_000 + patient}", list(_CLASSES)[patient % 3]
    date = f"20{10 + study}{1 + patient % 12:02d}{1 + draw.randrange(28):02d}"
    dataset = Dataset()
    dataset.SOPClassUID = _CLASSES[modality]
    dataset.SOPInstanceUID = f"{_ROOT}{patient}.{study}.{number}"
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = f"{_ROOT}{patient}.{study}.9", f"{_ROOT}{patient}.{study}.8"
    dataset.FrameOfReferenceUID = f"{_ROOT}{patient}.7"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = f"{family}^{given}", mrn, "19500101"
    dataset.PatientSex, dataset.PatientAge, dataset.PatientWeight = "F", "062Y", "71.5"
    dataset.ReferringPhysicianName, dataset.OperatorsName = f"Phys{patient:03d}z^Ann", f"Oper{patient:03d}z"
    dataset.AccessionNumber, dataset.InstitutionName = f"ACC{patient:03d}{study}55", f"Clinic{patient:03d} North"
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = date
    dataset.StudyTime = dataset.AcquisitionTime = "101112"
    dataset.AcquisitionDateTime = f"{date}101112.5"
    dataset.Modality, dataset.Manufacturer, dataset.ManufacturerModelName = modality, "SIEMENS", "Skyra"
    dataset.StudyDescription = f"{modality} chest {family} {mrn}"
    dataset.SeriesDescription, dataset.ImageComments = (
        f"AX T2 for Dr. Phys{patient:03d}z",
        f"{given} called 555-123-4567",
    )
    dataset.DeviceSerialNumber, dataset.StationName = f"SN{patient:03d}77", f"STAT{patient:03d}"
    dataset.ImageType, dataset.InstanceNumber, dataset.SliceThickness = ["ORIGINAL", "PRIMARY"], number + 1, "2.5"
    dataset.PixelSpacing, dataset.ImagePositionPatient = ["0.7", "0.7"], ["0", "0", str(number)]
    reference = Dataset()
    reference.ReferencedSOPClassUID = dataset.SOPClassUID
    reference.ReferencedSOPInstanceUID = f"{_ROOT}{patient}.{study}.{1 - number}"
    dataset.ReferencedInstanceSequence = Items([reference])
    request = Dataset()
    request.RequestedProcedureDescription, request.RequestingPhysician = (
        f"{modality} chest {family}",
        f"Phys{patient:03d}z",
    )
    dataset.RequestAttributesSequence = Items([request])
    dataset.private_block(0x0029, f"ACME {family}", create=True).add_new(1, "LO", f"{family} {mrn}")
    dataset.Rows = dataset.Columns = 8
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = np.random.default_rng(patient).integers(0, 4000, 64, np.uint16).tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    names = [family, given, mrn]
    removed = {
        "PatientName": names,
        "PatientID": [mrn],
        "PatientBirthDate": ["1950"],
        "ReferringPhysicianName": ["Phys"],
        "OperatorsName": ["Oper"],
        "AccessionNumber": ["ACC"],
        "InstitutionName": ["Clinic", "North"],
        "StudyDescription": names,
        "SeriesDescription": ["Phys"],
        "ImageComments": [given, "555"],
        "DeviceSerialNumber": ["SN"],
        "StationName": ["STAT"],
        "*": [*names, f"Phys{patient:03d}z", dataset.SOPInstanceUID, dataset.StudyInstanceUID, f"Clinic{patient:03d}"],
    }
    kept = {
        **{keyword: str(dataset[keyword].value) for keyword in _TECHNIQUE},
        "StudyDescription": f"{modality} chest",
        "SeriesDescription": "AX T2",
    }
    dates = ["StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "AcquisitionDateTime"]
    return Case(dataset, removed, kept, dates)


_TECHNIQUE = (
    *("SOPClassUID", "Modality", "Manufacturer", "ManufacturerModelName", "ImageType", "InstanceNumber", "PatientSex"),
    *("SliceThickness", "PixelSpacing", "ImagePositionPatient", "Rows", "Columns", "BitsAllocated", "StudyTime"),
    *("PatientAge", "PatientWeight", "AcquisitionTime", "PhotometricInterpretation"),
)


def score(cases: Sequence[Case], outputs: Sequence[Dataset | None]) -> tuple[float, dict[str, int]]:
    """Return the share of demands met, and kind -> how many were not.

    Args:
        cases: the corpus.
        outputs: for each case its output, None if it is missing.
    """
    renamed, days, people = _identities(cases, outputs)
    total = 0
    failed: dict[str, int] = defaultdict(int)
    for case, output in zip(cases, outputs, strict=True):
        demands = _demands(case, output, days, people)
        total += len(demands)
        broken = output is None or not _holds_together(case, output, renamed, {c.dataset.SOPInstanceUID for c in cases})
        for kind, met in demands:
            if broken or not met:
                failed["identity" if broken else kind] += 1
    return 1 - sum(failed.values()) / total, dict(failed)


def _identities(
    cases: Sequence[Case], outputs: Sequence[Dataset | None]
) -> tuple[dict[str, set[str]], dict[str, set[int]], dict[str, set[str]]]:
    """Old UID -> its new ones; patient -> shifts of days seen; patient -> new IDs."""
    renamed: dict[str, set[str]] = defaultdict(set)
    days: dict[str, set[int]] = defaultdict(set)
    people: dict[str, set[str]] = defaultdict(set)
    for case, output in zip(cases, outputs, strict=True):
        if output is None:
            continue
        for keyword in case.uids:
            renamed[case.dataset[keyword].value].add(str(output.get(keyword, "")))
        patient = case.dataset.PatientID
        people[patient].add(str(output.get("PatientID", "")))
        days[patient].update(_shift(case.dataset, output, keyword) or 0 for keyword in case.dates if keyword in output)
    return renamed, days, people


def _shift(original: Dataset, output: Dataset, keyword: str) -> int | None:
    try:
        old, new = (datetime.strptime(str(d.get(keyword, ""))[:8], "%Y%m%d") for d in (original, output))
    except ValueError:
        return None
    return (new - old).days


def _holds_together(case: Case, output: Dataset, renamed: dict[str, set[str]], originals: set[str]) -> bool:
    for keyword in case.uids:
        new = renamed[case.dataset[keyword].value]
        if len(new) != 1 or not next(iter(new)) or new & (set(renamed) | originals):
            return False
    pointed = case.dataset.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID
    items = output.get("ReferencedInstanceSequence") or []
    return len(items) == 1 and renamed[pointed] == {str(items[0].get("ReferencedSOPInstanceUID", ""))}


def _demands(
    case: Case, output: Dataset | None, days: dict[str, set[int]], people: dict[str, set[str]]
) -> list[tuple[str, bool]]:
    found = Dataset() if output is None else output
    everything = str(found)
    patient = case.dataset.PatientID
    others = {new for old, news in people.items() if old != patient for new in news}
    demands = [
        ("removed", not any(word in (everything if key == "*" else str(found.get(key, ""))) for word in words))
        for key, words in case.removed.items()
    ]
    demands += [("kept", text in str(found.get(key, ""))) for key, text in case.kept.items()]
    demands += [("date", bool(_shift(case.dataset, found, key)) and len(days[patient]) == 1) for key in case.dates]
    demands += [("uid", str(found.get(key, "")) not in ("", case.dataset[key].value)) for key in case.uids]
    own = people[patient]
    demands += [
        ("patient", len(own) == 1 and not own & others and own != {""}),
        ("pixels", found.get("PixelData") == case.dataset.PixelData),
        ("private", not any(element.tag.is_private for element in found)),
        ("marked", found.get("PatientIdentityRemoved") == "YES" and "DeidentificationMethodCodeSequence" in found),
    ]
    return demands
