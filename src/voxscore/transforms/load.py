"""Loading that refuses what `voxscore.volumes` refuses.

MONAI's `LoadImage` hands on NaN voxels, singular affines and incomplete DICOM series, tries reader after reader
until one accepts the file, and carries the whole header, patient's name included, into the metadata of every
tensor. `LoadVolume` reads by `voxscore.volumes`, with its checks, and hands on the affine and the shape.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection, PathLike
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends
from torch import Tensor

from voxscore.volumes import Volume, read_label_map, read_volume

__all__ = ["LoadVolume", "LoadVolumeD", "LoadVolumeDict", "LoadVolumed"]


class LoadVolume(Transform):
    """A volume's path, or a `Volume` read before, to a channel-first `MetaTensor` (1, X, Y, Z) with its affine.

    A tensor passes untouched: hosts such as MONAI Label load images themselves.

    Args:
        label_map: the voxels are labels: whole numbers from 0 on, and possibly all background.
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012 -- MONAI declares it as an instance variable

    def __init__(self, label_map: bool = False) -> None:
        self.label_map = label_map

    def __call__(self, source: PathLike | Volume | Tensor) -> Tensor:
        """Load one volume.

        Raises:
            UserError: see `voxscore.volumes.read_volume` and `read_label_map`.
        """
        if isinstance(source, Tensor):
            return source
        if not isinstance(source, Volume):
            source = read_label_map(source) if self.label_map else read_volume(source)
        meta = {"filename_or_obj": str(source.path), "spatial_shape": torch.tensor(source.array.shape)}
        return MetaTensor(
            torch.from_numpy(source.array).float()[None], affine=torch.from_numpy(source.affine), meta=meta
        )


class LoadVolumed(MapTransform):
    """Dictionary-based version of :py:class:`LoadVolume`.

    Args:
        keys: items that hold a path, a `Volume`, or a tensor.
        label_map: see `LoadVolume`.
        allow_missing_keys: do not raise when a key is missing.
    """

    backend = LoadVolume.backend

    def __init__(self, keys: KeysCollection, label_map: bool = False, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.load = LoadVolume(label_map)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load each key's volume."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.load(d[key])
        return d


LoadVolumeD = LoadVolumeDict = LoadVolumed
