"""A synthetic volume as a DICOM MR series that says of itself that it is synthetic.

Nothing is copied from a scan: every header is built here from the grid and a text that names the sample. A series
that looks like a patient's and is none does harm once it is taken for one, so each file says what it is in the
places the standard (PS3.3) has for that: Synthetic Data and the synthesizing equipment, an identity that was removed
because there never was one, and a name, a description and a comment for people. There are no dates, and no scanner,
echo time or position on a table: what the standard requires of those is there and empty.

UIDs lie under 2.25, the root that PS3.5 B.2 gives to UUIDs. They are version 5 UUIDs of the text that names the sample
and of the object's part (study, series, frame of reference, instance k), so a run that is repeated writes the same
objects again, and two texts never share one.

An intensity x is stored as the integer q of 16 bits nearest to (x - intercept) / slope, where the slope is the
volume's range / 65535. A header holds numbers as 16 characters of text; q is computed with the numbers as they read
there, so that slope q + intercept is off by half a slope at most.
"""

from __future__ import annotations

import os
import secrets
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from voxscore.errors import UserError
from voxscore.volumes.dicom import is_dicom
from voxscore.volumes.volume import check_affine, check_voxels, flip_lps_ras

__all__ = ["write_dicom_mr"]

_LEVELS = 65535
_WINDOW_PERCENTILES = (0.5, 99.5)
# Rows and columns of an image are at right angles; a grid from a NIfTI header is so within single precision.
_SKEW_TOLERANCE = 1e-4
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "synthetic.voxscore")
# Required, and unknown for what no scanner made and no patient lay in.
_EMPTY = (
    *("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"),
    *("PatientBirthDate", "PatientSex", "PatientPosition", "PositionReferenceIndicator"),
    *("Laterality", "ScanOptions", "MRAcquisitionType", "RepetitionTime", "EchoTime", "EchoTrainLength"),
)
_METHOD = "Synthetic data made by voxscore; no patient existed"


def write_dicom_mr(
    array: np.ndarray,
    affine: np.ndarray,
    folder: str | Path,
    seed_text: str,
    description: str,
    overwrite: bool = False,
    *,
    number: int = 1,
    software_version: str = "unknown",
) -> None:
    """Write a synthetic volume as a series of MR Image Storage objects, one file per slice, marked as synthetic.

    `read_volume` gives back the same affine and, within half a step of range / 65535, the same intensities. DICOM
    counts slices along the normal of rows x columns: of a grid that runs against it the last slice is read back
    first, with an affine that puts every voxel where it was.

    Args:
        array: (X, Y, Z) real intensities, two slices or more.
        affine: (4, 4) voxel index to RAS+ mm; X and Y at right angles.
        folder: becomes the series: 0001.dcm, 0002.dcm, ... along the slice normal. It appears complete or not at all.
        seed_text: names the sample. All UIDs follow from it, so it must hold whatever decides the voxels, such as
            the seed, the hash of the weights and the settings of the sampler.
        description: what the volume shows, one line; it follows "Synthetic: " in the SeriesDescription.
        overwrite: whether an existing folder may be replaced; only if it holds DICOM files and nothing else.
        number: counts the samples of a set, for the PatientName, as in Synthetic^0001.
        software_version: what made the volume, and which weights of it.

    Raises:
        UserError: the array is no finite 3-D volume, the affine does not fit, the texts cannot be stored, the folder
            exists, or it cannot be written.
    """
    folder = Path(folder)
    voxels = check_voxels(np.asarray(array), folder)
    affine = np.asarray(affine, dtype=np.float64)
    if affine.shape != (4, 4):
        raise UserError(folder, f"its affine has shape {affine.shape}", "give a 4 x 4 matrix, voxel index to mm")
    check_affine(affine, folder)
    if not seed_text:
        raise UserError(folder, "has no text to make its UIDs from", "give one that names the sample")
    for text in (description, software_version):
        if not text.strip() or not text.isprintable() or "\\" in text:
            raise UserError(folder, "a text for its header is no plain line", "give one without backslash")

    lps = flip_lps_ras(affine)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    along_row, along_column, _ = (lps[:3, :3] / spacing).T
    if abs(along_row @ along_column) > _SKEW_TOLERANCE:
        raise UserError(
            folder, "its rows and columns are not at right angles, as DICOM demands", "resample it to a regular grid"
        )
    normal = np.cross(along_row, along_column)
    thickness = float(lps[:3, 2] @ normal)
    order = range(voxels.shape[2])[:: 1 if thickness > 0 else -1]

    low, high = float(voxels.min()), float(voxels.max())
    slope, intercept = _decimal((high - low) / _LEVELS if high > low else 1.0), _decimal(low)
    header = _header(seed_text, description, number, software_version)
    header.Columns, header.Rows = voxels.shape[:2]
    header.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
    header.ImageOrientationPatient = [_decimal(v) for v in (*along_row, *along_column)]
    header.SliceThickness = header.SpacingBetweenSlices = _decimal(abs(thickness))
    header.RescaleSlope, header.RescaleIntercept, header.RescaleType = slope, intercept, "US"
    dark, bright = map(float, np.percentile(voxels, _WINDOW_PERCENTILES))
    if dark == bright:
        dark, bright = low, high if high > low else low + 1
    # The plain LINEAR function forbids widths below one, which intensities near unit variance need.
    header.WindowCenter, header.WindowWidth = _decimal((dark + bright) / 2), _decimal(bright - dark)
    header.VOILUTFunction = "LINEAR_EXACT"

    with _folder_written_whole(folder, overwrite) as partial:
        for i, k in enumerate(order, start=1):
            header.InstanceNumber = i
            header.SOPInstanceUID = _uid(seed_text, f"instance {i}")
            header.ImagePositionPatient = [_decimal(v) for v in lps[:3] @ [0, 0, k, 1]]
            levels = np.rint((voxels[:, :, k].T.astype(np.float64) - float(intercept)) / float(slope))
            header.PixelData = np.clip(levels, 0, _LEVELS).astype("<u2").tobytes()
            header.save_as(partial / f"{i:04d}.dcm", enforce_file_format=True)


def _uid(seed_text: str, part: str) -> str:
    return f"2.25.{uuid.uuid5(_NAMESPACE, f'{part}: {seed_text}').int}"


def _decimal(value: float) -> str:
    """A number as at most 16 characters, which is what DICOM stores."""
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(value) + 0.0)  # -0.0 becomes 0.0


def _header(seed_text: str, description: str, number: int, software_version: str) -> Any:
    """What all slices have in common and does not depend on the voxels."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SpecificCharacterSet = "ISO_IR 192"
    header.SOPClassUID = MRImageStorage
    header.StudyInstanceUID = _uid(seed_text, "study")
    header.SeriesInstanceUID = _uid(seed_text, "series")
    header.FrameOfReferenceUID = _uid(seed_text, "frame of reference")
    for keyword in _EMPTY:
        setattr(header, keyword, None)

    header.PatientName = f"Synthetic^{number:04d}"
    header.PatientID = f"SYNTHETIC-{number:04d}-{uuid.uuid5(_NAMESPACE, f'patient: {seed_text}').hex[:8]}"
    header.PatientIdentityRemoved = "YES"
    header.DeidentificationMethod = _METHOD
    header.SyntheticData = "YES"
    header.ContentQualification = "RESEARCH"
    header.ImageType = ["DERIVED", "SECONDARY", "OTHER", "SYNTHETIC"]
    header.DerivationDescription = "Drawn from a generative model; not measured by a scanner"
    header.StudyDescription = "Synthetic data, voxscore"
    header.SeriesDescription = f"Synthetic: {description}"[:64].rstrip()
    header.ImageComments = f"Synthetic: {description}. {_METHOD}. For research only, not for diagnosis."
    header.BurnedInAnnotation = "NO"
    header.LossyImageCompression = "00"

    header.Manufacturer = "voxscore"
    header.ManufacturerModelName = "voxscore synthetic data"
    header.SoftwareVersions = software_version[:64]
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109100", "DCM"
    purpose.CodeMeaning = "Synthesizing Equipment"
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [purpose]
    for keyword in ("Manufacturer", "ManufacturerModelName", "SoftwareVersions"):
        setattr(equipment, keyword, header[keyword].value)
    header.ContributingEquipmentSequence = [equipment]

    header.Modality = "MR"
    header.SeriesNumber = 1
    header.ScanningSequence, header.SequenceVariant = "RM", "NONE"  # research mode
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
    return header


@contextmanager
def _folder_written_whole(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Give an empty hidden folder beside `folder` that becomes it once the block ends without an exception.

    An existing folder is moved aside for the moment of the exchange and put back if that fails.

    Raises:
        UserError: `folder` exists and may not be replaced, or the place cannot be written to.
    """
    _refuse_existing(folder, overwrite)
    partial, former = (folder.with_name(f".{folder.name}.{secrets.token_hex(4)}") for _ in range(2))
    try:
        partial.mkdir(parents=True)
        yield partial
        _refuse_existing(folder, overwrite)  # another process may have finished first
        if folder.exists():
            os.rename(folder, former)
        try:
            os.rename(partial, folder)
        except OSError:
            if former.exists():
                os.rename(former, folder)
            raise
    except OSError as error:
        raise UserError(
            folder,
            f"cannot be written in the folder {folder.parent} ({error.strerror})",
            "check the space and the permissions, or choose another output",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)


def _refuse_existing(folder: Path, overwrite: bool) -> None:
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(folder, "is no folder", "name a folder for the series")
    if not overwrite:
        raise UserError(folder, "exists already", "choose another output, or replace it with --overwrite")
    if not all(path.is_file() and is_dicom(path) for path in folder.iterdir()):
        raise UserError(folder, "holds more than DICOM files, so it is not replaced", "choose another output")
