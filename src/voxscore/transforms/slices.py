"""Thick slices for training: a network that meets every k-th slice of a volume learns what anisotropic grids look like.

Scans of a head have voxels of half a millimetre in a slice and of three or four from slice to slice. A denoiser that
has only seen cubes takes such a volume for one that was squeezed. `RandThickSlicesd` leaves out slices of a volume of
equal spacing, one of two, of three and so on, and keeps as many as were asked for, so that one training meets all of
these grids.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import TransformBackends
from torch import Tensor

__all__ = ["RandThickSlicesD", "RandThickSlicesDict", "RandThickSlicesd"]


class RandThickSlicesd(RandomizableTransform, MapTransform):
    """Every k-th slice along the last axis, `size` of them from a random one on, k drawn for each item.

    A stride that the volume is too short for is replaced by the largest that fits. Of a `MetaTensor` the affine
    follows.

    Args:
        keys: volumes (C, *spatial) of one grid.
        size: slices of the result; a shorter volume passes as it is.
        strides: k, each as likely as the others; one that is listed twice is twice as likely.
        allow_missing_keys: do not raise when a key is missing.

    Raises:
        ValueError: a stride below 1, or none.
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012 -- MONAI declares it as an instance variable

    def __init__(
        self, keys: KeysCollection, size: int, strides: Sequence[int], allow_missing_keys: bool = False
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob=1.0)
        if not strides or min(strides) < 1:
            raise ValueError(f"RandThickSlicesd: strides are 1 or more, got {list(strides)}")
        self.size, self.strides = size, tuple(strides)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Stride each key's volume alike."""
        d = dict(data)
        stride = self.strides[self.R.randint(len(self.strides))]
        place = self.R.random_sample()
        for key in self.key_iterator(d):
            d[key] = self._strided(d[key], stride, place)
        return d

    def _strided(self, x: Tensor, stride: int, place: float) -> Tensor:
        n = x.shape[-1]
        if n < self.size:
            return x
        stride = min(stride, (n - 1) // (self.size - 1) if self.size > 1 else n)
        first = int(place * (n - (self.size - 1) * stride))
        affine = x.affine.clone() if isinstance(x, MetaTensor) else None
        x = x[..., first : first + (self.size - 1) * stride + 1 : stride]
        if affine is not None:
            affine[:3, 3] += first * affine[:3, 2]
            affine[:3, 2] *= stride
            x.affine = affine  # type: ignore[attr-defined]
        return x


RandThickSlicesD = RandThickSlicesDict = RandThickSlicesd
