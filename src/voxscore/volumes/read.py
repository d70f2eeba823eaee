"""Finding and reading volumes, whatever they are stored in.

A path may name a volume file, a folder of volume files, or a folder that holds a DICOM series. A folder that
holds both is refused: the volume files beside a series are more often somebody's results than images.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from voxscore.errors import UserError
from voxscore.volumes.dicom import has_dicom, is_dicom, read_dicom
from voxscore.volumes.files import VOLUME_SUFFIXES, volume_suffix
from voxscore.volumes.itk import read_metaimage, read_nrrd
from voxscore.volumes.nifti import read_nifti
from voxscore.volumes.volume import Volume

__all__ = ["find_volumes", "read_label_map", "read_volume"]

_KNOWN = f"give {', '.join(VOLUME_SUFFIXES)} files or a folder with a DICOM series"


def find_volumes(path: str | Path, series: str | None = None) -> list[Path]:
    """Return the paths under `path` that `read_volume` turns into one volume each.

    Args:
        path: a volume file, a folder with volume files (its subfolders are not searched for them), or a
            folder with a DICOM series in it or below it.
        series: which DICOM series is meant, as in `read_volume`; with it a folder counts as DICOM.

    Returns:
        The file itself, the volume files of the folder in the order of their names, or the DICOM folder.

    Raises:
        UserError: nothing there, nothing that voxscore reads, or both volume files and DICOM in one folder.
    """
    path = Path(path)
    if not path.is_dir():
        _check_file(path, series)
        return [path]
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "check its permissions") from error
    # Whatever is no folder: a link to nowhere (data not fetched yet) must fail aloud rather than be passed over.
    files = [p for p in entries if volume_suffix(p) and not p.name.startswith(".") and not p.is_dir()]
    if series is None and files and not has_dicom(path):
        return files
    if series is None and files:
        raise UserError(path, "holds both volume files and DICOM images", "name the file, or choose with --series")
    if not has_dicom(path):
        if files:
            raise UserError(path, "holds no DICOM, so a series cannot be chosen in it", "leave --series away")
        raise UserError(path, "holds no volumes that voxscore reads", _KNOWN)
    return [path]


def read_volume(path: str | os.PathLike[str], series: str | None = None) -> Volume:
    """Read one volume.

    Args:
        path: a .nii, .nii.gz, .nrrd or .mha file, a folder with a DICOM series, or a multi-frame DICOM file.
        series: for DICOM the SeriesNumber, the SeriesInstanceUID or the last eight or more characters of
            that; needed where a folder holds several series.

    Raises:
        UserError: whatever keeps the file from being one complete, real-valued 3-D volume placed in space.
    """
    volume = _read(Path(path), series)
    if volume.array.min() == volume.array.max():
        raise UserError(path, "every voxel has the same value", "check that this is the image you meant")
    return volume


def read_label_map(path: str | os.PathLike[str]) -> Volume:
    """Read one label map; unlike an image it may be empty of labels.

    Returns:
        A volume whose array is int32.

    Raises:
        UserError: as `read_volume`, or the voxels are not whole numbers from 0 on.
    """
    volume = _read(Path(path), None)
    labels = volume.array.astype(np.int32)
    if (labels != volume.array).any() or (labels < 0).any():
        raise UserError(path, "holds values that are not whole numbers from 0 on", "give a label map")
    return replace(volume, array=labels)


def _read(path: Path, series: str | None) -> Volume:
    if path.is_dir():
        return read_dicom(path, series)
    _check_file(path, series)
    if is_dicom(path):
        return read_dicom(path, series)
    readers = {".nii": read_nifti, ".nii.gz": read_nifti, ".nrrd": read_nrrd, ".mha": read_metaimage}
    return readers[volume_suffix(path)](path)


def _check_file(path: Path, series: str | None) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise UserError(path, "there is no such file or folder", "check the path") from error
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "check its permissions") from error
    if size == 0:
        raise UserError(path, "is an empty file", "copy or export it again")
    if is_dicom(path):
        return
    if not volume_suffix(path):
        raise UserError(path, "voxscore does not read files of this kind", _KNOWN)
    if series is not None:
        raise UserError(path, "is not DICOM, so a series cannot be chosen in it", "leave --series away")
