"""A volume computed from a DICOM series, as a new series of the same study.

A reconstruction, a denoised or a super-resolved volume belongs beside the images it was made from. So patient, study
and frame of reference are the source's (the result is exactly as identifying as they are), viewers overlay the two,
and every file says in the places PS3.3 has for it that it was derived: ImageType DERIVED, SECONDARY, a
DerivationDescription, the source instances in the SourceImageSequence (C.7.6.1) and their series in the
ReferencedSeriesSequence (C.12.2). Scanner and protocol stay named; what made the pixels is the Manufacturer. The grid
may differ from the source's: each slice carries its own place.

UIDs are version 5 UUIDs of the voxels, the grid, the texts and the source instances: the same result of the same images
is the same object, and another result is another one.
"""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from voxscore.errors import UserError
from voxscore.volumes.dicom_series import check_grid, check_line, equipment, uid_of, write_series
from voxscore.volumes.quiet import quiet
from voxscore.volumes.volume import Volume

__all__ = ["write_dicom_derived"]

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "derived.voxscore")
# What refers to the patient, the study and the space, and must be there.
_REFERENCES = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "SOPInstanceUID")
# Required by the image objects, empty where the source does not say.
_MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"),
    *("PatientPosition", "PositionReferenceIndicator", "Laterality"),
)
_KEPT = (
    *("IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "StudyDescription", "BodyPartExamined"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence", "BurnedInAnnotation"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod", "SyntheticData"),
    *("ContrastBolusAgent", "ProtocolName", "RescaleType"),
)
_SCANNER = ("Manufacturer", "InstitutionName", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions")
# Of each modality: the third value of the ImageType, the unit of intensities, and what its object demands.
_MODALITIES = {
    "MR": (
        *("OTHER", "US"),
        *("ScanOptions", "MRAcquisitionType", "RepetitionTime", "EchoTime", "EchoTrainLength"),
        *("InversionTime", "FlipAngle", "MagneticFieldStrength", "SequenceName"),
    ),
    "CT": ("AXIAL", "HU", "KVP", "AcquisitionNumber"),
}


def write_dicom_derived(
    array: np.ndarray,
    source: Volume,
    folder: str | Path,
    description: str,
    overwrite: bool = False,
    *,
    affine: np.ndarray | None = None,
    derivation: str = "Computed by voxscore",
    series_number: int = 1001,
    software_version: str = "unknown",
) -> None:
    """Write a volume computed from MR or CT images as a DICOM series of their study, one file per slice.

    `read_volume` gives back the same affine and, within half a step of range / 65535, the same intensities; a grid
    that runs against the slice normal comes back with its last slice first, every voxel where it was.

    Args:
        array: (X, Y, Z) real intensities, two slices or more.
        source: the volume it was computed from, read from DICOM; its files must still be there.
        folder: becomes the series: 0001.dcm, 0002.dcm, ... It appears complete or not at all.
        description: SeriesDescription, one line.
        overwrite: whether an existing folder may be replaced; only if it holds DICOM files and nothing else.
        affine: (4, 4) voxel index to RAS+ mm, X and Y at right angles; None for the source's, whose shape the array
            then has.
        derivation: what was done, one line, for the DerivationDescription.
        series_number: SeriesNumber of the new series.
        software_version: what computed the volume, and which weights of it.

    Raises:
        UserError: `source` is no DICOM MR or CT, its headers lack what the series must refer to, the array or the
            affine is no grid of slices, or the folder exists or cannot be written.
        ValueError: an array that does not have the source's shape, without an affine of its own.
    """
    folder = Path(folder)
    if source.format != "dicom":
        raise UserError(folder, f"a derived DICOM series needs DICOM images, not {source.format}", "write .nii.gz")
    if affine is None and np.shape(array) != source.array.shape:
        raise ValueError(f"an array of shape {np.shape(array)} does not lie on the grid {source.array.shape}")
    voxels, affine = check_grid(array, source.affine if affine is None else affine, folder)
    for text in (description, derivation, software_version):
        check_line(text, folder)
    sources = _headers(source)
    header = _header(sources, source)
    header.SeriesDescription, header.DerivationDescription = description[:64].rstrip(), derivation
    header.SeriesNumber, header.SoftwareVersions = series_number, software_version[:64]

    content = hashlib.sha256(np.ascontiguousarray(voxels).tobytes() + affine.tobytes())
    for text in (description, derivation, software_version, *(str(s.SOPInstanceUID) for s in sources)):
        content.update(b"\0" + text.encode())
    named = f"{content.hexdigest()} {voxels.shape} {series_number}"
    header.SeriesInstanceUID = uid_of(_NAMESPACE, "series", named)
    write_series(header, voxels, affine, folder, overwrite, lambda i: uid_of(_NAMESPACE, f"instance {i}", named))


def _headers(source: Volume) -> list[Any]:
    """The headers of the source images, which agree on patient, study and space."""
    from pydicom import dcmread

    remedy = "write .nii.gz instead, or export the series again"
    try:
        with quiet():
            headers = [dcmread(path, stop_before_pixels=True) for path in source.header]
            for header in headers:
                header.decode()  # text becomes independent of the source's character set
    except FileNotFoundError as error:
        raise UserError(source.path, "its DICOM files are gone", "put them back and run again") from error
    except Exception as error:  # pydicom raises many types on bad bytes
        raise UserError(source.path, "holds a damaged DICOM file", "copy or export it again") from error
    for keyword in _REFERENCES:
        if not all(header.get(keyword) for header in headers):
            raise UserError(source.path, f"its DICOM headers lack {keyword}, to which a series must refer", remedy)
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
        if len({str(header.get(keyword)) for header in headers}) > 1:
            raise UserError(source.path, f"its DICOM images differ in {keyword}", remedy)
    if headers[0].get("Modality") not in _MODALITIES:
        raise UserError(source.path, "is neither MR nor CT, of which voxscore writes derived series", remedy)
    return headers


def _header(sources: list[Any], source: Volume) -> Any:
    """What all slices have in common and does not depend on the voxels."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

    first = sources[0]
    kind, unit, *demanded = _MODALITIES[first.Modality]
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SpecificCharacterSet = "ISO_IR 192"
    header.SOPClassUID = MRImageStorage if first.Modality == "MR" else CTImageStorage
    header.Modality = first.Modality
    header.ImageType = ["DERIVED", "SECONDARY", kind]
    header.ContentQualification = "RESEARCH"
    header.RescaleType = unit
    if first.Modality == "MR":
        header.ScanningSequence, header.SequenceVariant = "RM", "NONE"  # research mode
    for keyword in (*_MAY_BE_EMPTY, *demanded):
        setattr(header, keyword, None)
    try:
        kept = ("StudyInstanceUID", "FrameOfReferenceUID", *_MAY_BE_EMPTY, *_KEPT, *demanded)
        for keyword in (*kept, *(("ScanningSequence", "SequenceVariant") if first.Modality == "MR" else ())):
            if first.get(keyword) not in (None, ""):
                header[keyword] = first[keyword]
        scanner = {keyword: first[keyword].value for keyword in _SCANNER if first.get(keyword) not in (None, "")}
        header.ContributingEquipmentSequence = [equipment("109101", "Acquisition Equipment", scanner)]
    except (TypeError, ValueError, KeyError, NotImplementedError) as error:
        raise UserError(source.path, "holds a damaged DICOM header", "export the series again") from error
    header.Manufacturer = header.ManufacturerModelName = "voxscore"

    images = [_reference(instance) for instance in sources]
    header.ReferencedSeriesSequence = []
    for uid in dict.fromkeys(str(instance.SeriesInstanceUID) for instance in sources):
        series = Dataset()
        series.SeriesInstanceUID = uid
        series.ReferencedInstanceSequence = [
            _reference(instance) for instance in sources if instance.SeriesInstanceUID == uid
        ]
        header.ReferencedSeriesSequence.append(series)
    for image in images:
        purpose = Dataset()
        purpose.CodeValue, purpose.CodingSchemeDesignator = "121322", "DCM"
        purpose.CodeMeaning = "Source image for image processing operation"
        image.PurposeOfReferenceCodeSequence = [purpose]
    header.SourceImageSequence = images
    return header


def _reference(instance: Any) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = instance.SOPClassUID, instance.SOPInstanceUID
    return item
