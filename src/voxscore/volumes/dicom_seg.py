"""A label map as a DICOM Segmentation that names the images it belongs to.

A PACS shows a segmentation on its images only if the object refers to them: patient, study and frame of
reference are theirs, each frame carries the position of its slice and the SOPInstanceUID it was derived from.
BINARY (one bit plane per segment and slice, empty ones left out) is what viewers support today. Segments
carry codes, since a name means nothing to another program, and say which algorithm made them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from voxscore.errors import UserError
from voxscore.volumes.files import written_whole
from voxscore.volumes.quiet import quiet
from voxscore.volumes.volume import Label, Volume, check_labels, flip_lps_ras

__all__ = ["write_dicom_seg"]

# Attributes a segmentation copies from its images and that may be left out or empty in those.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
# What images say of their origin holds for their segmentation.
_INHERITED = ("SyntheticData", "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence")


def write_dicom_seg(
    labelmap: np.ndarray,
    like: Volume,
    path: str | Path,
    labels: Mapping[int, Label],
    overwrite: bool = False,
    *,
    algorithm_name: str = "voxscore",
    algorithm_version: str = "unknown",
    series_number: int = 1000,
    series_description: str = "voxscore segmentation",
) -> None:
    """Write a label map as a DICOM SEG (BINARY) that references the instances of `like`.

    The object carries the patient and study attributes of its source images, as the standard demands: it is
    exactly as identifying as they are. Segments are numbered 1, 2, ... in the order of the label values.

    Args:
        labelmap: (X, Y, Z) integers on the grid of `like`.
        like: a volume read from DICOM; its files must still be there.
        path: the output file.
        labels: every value in `labelmap` except 0.
        overwrite: whether an existing file may be replaced.
        algorithm_name: what made the segmentation.
        algorithm_version: and which version or weights of it.
        series_number: SeriesNumber of the new series.
        series_description: SeriesDescription of the new series.

    Raises:
        UserError: `like` is not DICOM, its images lack attributes a segmentation needs, or the output cannot
            be written.
        ValueError: the label map does not fit the grid or the labels.
    """
    if like.format != "dicom":
        raise UserError(path, f"a DICOM SEG needs DICOM images, not {like.format}", "write .nii.gz or .nrrd instead")
    if labelmap.shape != like.array.shape or labelmap.dtype.kind not in "biu":
        raise ValueError(f"{labelmap.dtype} of shape {labelmap.shape} is no label map on {like.array.shape}")
    segments = [label for label in check_labels(labels) if label.value]
    undescribed = sorted(set(np.unique(labelmap).tolist()) - {label.value for label in segments} - {0})
    if undescribed or not segments:
        raise ValueError(f"label values without a label: {undescribed}" if segments else "no labels but background")

    import highdicom as hd
    from pydicom import dcmread
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence(
        name=algorithm_name, family=codes.cid7162.ArtificialIntelligence, version=algorithm_version
    )
    numbers = np.zeros(labelmap.shape, dtype=np.uint16 if len(segments) > 255 else np.uint8)
    descriptions = []
    for number, label in enumerate(segments, start=1):
        numbers[labelmap == label.value] = number
        descriptions.append(
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=label.name[:64],
                segmented_property_category=hd.sr.CodedConcept(*label.category),
                segmented_property_type=hd.sr.CodedConcept(*label.code),
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
                display_color=hd.color.CIELabColor.from_rgb(*label.color),
            )
        )
    frames = np.ascontiguousarray(numbers.transpose(2, 1, 0))
    with written_whole(path, overwrite) as partial:
        try:
            with quiet():
                sources = [dcmread(file, stop_before_pixels=True) for file in like.header]
                for source in sources:
                    source.decode()  # text becomes independent of the source's character set
                    for keyword in _MAY_BE_EMPTY:
                        if keyword not in source:
                            setattr(source, keyword, None)
                segmentation = hd.seg.Segmentation(
                    source_images=sources,
                    pixel_array=frames if len(sources) > 1 else _as_volume(frames, like, sources[0]),
                    segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                    segment_descriptions=descriptions,
                    series_instance_uid=hd.UID(),
                    series_number=series_number,
                    sop_instance_uid=hd.UID(),
                    instance_number=1,
                    manufacturer="voxscore",
                    manufacturer_model_name="voxscore",
                    software_versions=algorithm_version,
                    device_serial_number="0",
                    series_description=series_description,
                    specific_character_set="ISO_IR 192",
                    content_label="SEGMENTATION",
                    omit_empty_frames=bool(numbers.any()),
                )
        except FileNotFoundError as error:
            raise UserError(like.path, "its DICOM files are gone", "put them back and run again") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                like.path,
                "its DICOM headers lack what a DICOM SEG must refer to",
                "write .nii.gz or .nrrd instead, or export the series again",
            ) from error
        for keyword in _INHERITED:
            if keyword in sources[0]:
                setattr(segmentation, keyword, sources[0].get(keyword))
        segmentation.save_as(partial)


def _as_volume(frames: np.ndarray, like: Volume, source: Any) -> Any:
    """Frames of a multi-frame image, matched to the source's own frames by their place in space."""
    import highdicom as hd

    affine = flip_lps_ras(like.affine)[:, [2, 1, 0, 3]]
    return hd.Volume(
        frames, affine, coordinate_system="PATIENT", frame_of_reference_uid=source.get("FrameOfReferenceUID")
    )
