"""Faces taken out of one volume file: read, defaced, written whole, with a header that holds no name.

A NIfTI file keeps its type of voxels, its scaling and every voxel outside the region, bit for bit. Other formats are
written as `voxscore.volumes` writes them, in single precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from voxscore.deidentify.faces import MARGIN, deface
from voxscore.deidentify.nifti import rebuilt_nifti
from voxscore.errors import UserError
from voxscore.volumes import Volume, read_label_map, sha256, volume_suffix, write_volume, written_whole
from voxscore.volumes.files import read_bytes

__all__ = ["deface_file"]

_SAME_GRID = 1e-3  # mm


def deface_file(
    volume: Volume,
    output: Path,
    brain: Path | None = None,
    margin: float = MARGIN,
    fill: float | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Deface one volume and write it.

    Args:
        volume: as read.
        output: .nii, .nii.gz, .nrrd or .mha.
        brain: a label map on the volume's grid, not zero in the brain; None to estimate the brain.
        margin: distance kept from the brain, mm.
        fill: value of the background; None to take that of the image.
        overwrite: whether an existing file may be replaced.

    Returns:
        The record of `voxscore.deidentify.faces.FaceRecord`, with the output's path and SHA-256.

    Raises:
        UserError: see `voxscore.deidentify.faces.deface` and `voxscore.volumes.write_volume`.
    """
    mask = None if brain is None else _mask(brain, volume)
    try:
        done = deface(volume.array, volume.affine, mask, margin, fill)
    except UserError as error:
        raise UserError(volume.path, f"{error.subject} {error.fault}", error.remedy) from error
    suffix = volume_suffix(output)
    if volume.format == "nifti" and suffix in (".nii", ".nii.gz"):
        content = rebuilt_nifti(
            read_bytes(volume.path), volume.path, suffix == ".nii.gz", done.removed, done.record.fill
        )
        with written_whole(output, overwrite) as unfinished:
            unfinished.write_bytes(content)
    else:
        write_volume(done.array, volume, output, overwrite=overwrite)
    return {"path": str(output), "sha256": sha256(output), **done.record.as_dict()}


def _mask(path: Path, volume: Volume) -> np.ndarray:
    mask = read_label_map(path)
    corners = np.diag([*volume.array.shape, 1.0])
    corners[3] = 1
    apart = np.abs((mask.affine - volume.affine) @ corners).max()
    if mask.array.shape != volume.array.shape or apart > _SAME_GRID:
        raise UserError(path, "does not lie on the grid of the image", "resample the brain mask to the image")
    return mask.array
