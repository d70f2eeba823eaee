"""A volume as a series of single-frame DICOM images, one file for each slice.

What is said about the patient and the making of a volume differs from one writer to the next; how voxels become slices
does not, and stands here.

DICOM counts slices along the normal of rows x columns: of a grid that runs against it the last slice is written first,
so that every voxel stays where it was. An intensity x is stored as the integer q of 16 bits nearest to
(x - intercept) / slope, where the slope is the volume's range / 65535. A header holds numbers as 16 characters of text;
q is computed with the numbers as they read there, so that slope q + intercept is off by half a slope at most.
"""

from __future__ import annotations

import os
import secrets
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from voxscore.errors import UserError
from voxscore.volumes.dicom import is_dicom
from voxscore.volumes.volume import check_affine, check_voxels, flip_lps_ras

__all__ = ["check_grid", "check_line", "equipment", "uid_of", "write_series"]

_LEVELS = 65535
_WINDOW_PERCENTILES = (0.5, 99.5)
# Rows and columns of an image are at right angles; a grid from a NIfTI header is so within single precision.
_SKEW_TOLERANCE = 1e-4


def uid_of(namespace: uuid.UUID, part: str, text: str) -> str:
    """Return a UID under 2.25, the root PS3.5 B.2 gives to UUIDs: the version 5 UUID of a part of what `text` names."""
    return f"2.25.{uuid.uuid5(namespace, f'{part}: {text}').int}"


def equipment(code: str, meaning: str, facts: dict[str, str]) -> Any:
    """Return an item of the ContributingEquipmentSequence.

    Args:
        code: what the equipment did, a code value of DCM.
        meaning: of that code.
        facts: keyword and value, such as the Manufacturer.
    """
    from pydicom.dataset import Dataset

    purpose, item = Dataset(), Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = code, "DCM", meaning
    item.PurposeOfReferenceCodeSequence = [purpose]
    for keyword, value in facts.items():
        setattr(item, keyword, value)
    return item


def check_grid(array: np.ndarray, affine: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return voxels (X, Y, Z) float32 and affine (4, 4) float64 that DICOM slices can hold.

    Raises:
        UserError: the array is no finite 3-D volume, or the affine does not fit or is not at right angles in X and Y.
    """
    voxels = check_voxels(np.asarray(array), folder)
    affine = np.asarray(affine, dtype=np.float64)
    if affine.shape != (4, 4):
        raise UserError(folder, f"its affine has shape {affine.shape}", "give a 4 x 4 matrix, voxel index to mm")
    check_affine(affine, folder)
    along_row, along_column = (affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)).T
    if abs(along_row @ along_column) > _SKEW_TOLERANCE:
        raise UserError(
            folder, "its rows and columns are not at right angles, as DICOM demands", "resample it to a regular grid"
        )
    return voxels, affine


def check_line(text: str, folder: Path) -> None:
    """Refuse a text that a header does not hold as one line.

    Raises:
        UserError: it is empty, not printable, or has a backslash, which separates values in DICOM.
    """
    if not text.strip() or not text.isprintable() or "\\" in text:
        raise UserError(folder, "a text for its header is no plain line", "give one without backslash")


def write_series(
    header: Any, voxels: np.ndarray, affine: np.ndarray, folder: Path, overwrite: bool, uid: Callable[[int], str]
) -> None:
    """Write 0001.dcm, 0002.dcm, ... along the slice normal; the folder appears complete or not at all.

    Args:
        header: a pydicom dataset with all that the slices share and that does not depend on the voxels; it is changed.
        voxels: (X, Y, Z) float32, from `check_grid`.
        affine: (4, 4) voxel index to RAS+ mm.
        folder: becomes the series.
        overwrite: whether an existing folder may be replaced; only if it holds DICOM files and nothing else.
        uid: SOPInstanceUID of slice 1, 2, ...

    Raises:
        UserError: the folder exists, or it cannot be written.
    """
    lps = flip_lps_ras(affine)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    along_row, along_column, _ = (lps[:3, :3] / spacing).T
    normal = np.cross(along_row, along_column)
    thickness = float(lps[:3, 2] @ normal)
    order = range(voxels.shape[2])[:: 1 if thickness > 0 else -1]

    low, high = float(voxels.min()), float(voxels.max())
    slope, intercept = _decimal((high - low) / _LEVELS if high > low else 1.0), _decimal(low)
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
    header.Columns, header.Rows = voxels.shape[:2]
    header.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
    header.ImageOrientationPatient = [_decimal(v) for v in (*along_row, *along_column)]
    header.SliceThickness = header.SpacingBetweenSlices = _decimal(abs(thickness))
    header.RescaleSlope, header.RescaleIntercept = slope, intercept
    dark, bright = map(float, np.percentile(voxels, _WINDOW_PERCENTILES))
    if dark == bright:
        dark, bright = low, high if high > low else low + 1
    # The plain LINEAR function forbids widths below one, which intensities near unit variance need.
    header.WindowCenter, header.WindowWidth = _decimal((dark + bright) / 2), _decimal(bright - dark)
    header.VOILUTFunction = "LINEAR_EXACT"

    with _folder_written_whole(folder, overwrite) as partial:
        for i, k in enumerate(order, start=1):
            header.InstanceNumber = i
            header.SOPInstanceUID = uid(i)
            header.ImagePositionPatient = [_decimal(v) for v in lps[:3] @ [0, 0, k, 1]]
            levels = np.rint((voxels[:, :, k].T.astype(np.float64) - float(intercept)) / float(slope))
            header.PixelData = np.clip(levels, 0, _LEVELS).astype("<u2").tobytes()
            header.save_as(partial / f"{i:04d}.dcm", enforce_file_format=True)


def _decimal(value: float) -> str:
    """A number as at most 16 characters, which is what DICOM stores."""
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(value) + 0.0)  # -0.0 becomes 0.0


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
