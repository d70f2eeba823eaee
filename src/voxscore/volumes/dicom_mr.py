"""A synthetic volume as a DICOM MR series that says of itself that it is synthetic.

Nothing is copied from a scan: every header is built here from the grid and a text that names the sample. A series
that looks like a patient's and is none does harm once it is taken for one, so each file says what it is in the
places the standard (PS3.3) has for that: Synthetic Data and the synthesizing equipment, an identity that was removed
because there never was one, and a name, a description and a comment for people. There are no dates, and no scanner,
echo time or position on a table: what the standard requires of those is there and empty.

UIDs lie under 2.25, the root that PS3.5 B.2 gives to UUIDs. They are version 5 UUIDs of the text that names the sample
and of the object's part (study, series, frame of reference, instance k), so a run that is repeated writes the same
objects again, and two texts never share one.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np

from voxscore.errors import UserError
from voxscore.volumes.dicom_series import check_grid, check_line, equipment, uid_of, write_series

__all__ = ["write_dicom_mr"]

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
    voxels, affine = check_grid(array, affine, folder)
    if not seed_text:
        raise UserError(folder, "has no text to make its UIDs from", "give one that names the sample")
    for text in (description, software_version):
        check_line(text, folder)

    header = _header(seed_text, description, number, software_version)
    write_series(header, voxels, affine, folder, overwrite, lambda i: _uid(seed_text, f"instance {i}"))


def _uid(seed_text: str, part: str) -> str:
    return uid_of(_NAMESPACE, part, seed_text)


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
    keywords = ("Manufacturer", "ManufacturerModelName", "SoftwareVersions")
    facts = {keyword: header[keyword].value for keyword in keywords}
    header.ContributingEquipmentSequence = [equipment("109100", "Synthesizing Equipment", facts)]

    header.Modality = "MR"
    header.SeriesNumber = 1
    header.ScanningSequence, header.SequenceVariant = "RM", "NONE"  # research mode
    header.RescaleType = "US"
    return header
