"""Writing in the grid of the input: the suffix of the output decides the format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from voxscore.errors import UserError
from voxscore.volumes.files import VOLUME_SUFFIXES, volume_suffix, written_whole
from voxscore.volumes.itk import metaimage_bytes, nrrd_bytes
from voxscore.volumes.nifti import nifti_bytes
from voxscore.volumes.volume import Label, Volume, check_labels, label_dtype

__all__ = ["write_volume"]


def write_volume(
    array: np.ndarray,
    like: Volume,
    path: str | Path,
    labels: Mapping[int, Label] | None = None,
    overwrite: bool = False,
) -> None:
    """Write voxels in the grid of `like`.

    Read back, the file's affine equals that of `like` bit for bit. The one exception is a NIfTI output of a
    source that is not NIfTI: NIfTI-1 stores single precision, see `nifti_bytes`.

    Args:
        array: (X, Y, Z), or (X, Y, Z, C) for C probabilities per voxel. Integers become uint8 or uint16 label
            maps, real numbers float32.
        like: the volume whose grid is taken.
        path: .nii, .nii.gz, .nrrd or .mha.
        labels: names and colours of a label map's values.
        overwrite: whether an existing file may be replaced.

    Raises:
        UserError: unknown suffix, existing output, or a place that cannot be written to.
        ValueError: if the array does not have the grid of `like` or cannot be stored.
    """
    path = Path(path)
    suffix = volume_suffix(path)
    if not suffix:
        raise UserError(path, "voxscore does not write this suffix", f"use one of {', '.join(VOLUME_SUFFIXES)}")
    if array.ndim not in (3, 4) or array.shape[:3] != like.array.shape:
        raise ValueError(f"an array of shape {array.shape} does not lie on the grid {like.array.shape}")
    stored = array.astype(label_dtype(array), copy=False)
    table = None if labels is None else check_labels(labels)
    with written_whole(path, overwrite) as partial:
        if suffix == ".nrrd":
            content = nrrd_bytes(stored, like, table)
        elif suffix == ".mha":
            content = metaimage_bytes(stored, like, table)
        else:
            content = nifti_bytes(stored, like, table, compressed=suffix == ".nii.gz")
        partial.write_bytes(content)
