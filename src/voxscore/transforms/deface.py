"""Face removal as MONAI transforms; what is removed, and its limits, is said in `voxscore.deidentify.faces`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_data_type, convert_to_tensor
from torch import Tensor

from voxscore.deidentify.faces import MARGIN, deface
from voxscore.errors import UserError

__all__ = ["Deface", "DefaceD", "DefaceDict", "Defaced"]


class Deface(Transform):
    """Replace the face of a channel-first head image (C, X, Y, Z) by background; the inverse of it does not exist.

    The affine of a `MetaTensor` says where front and down are, so an image without one, and without an `affine` given,
    is refused. The brain is found in the first channel; each channel has its own background. The image's metadata get
    an item `deface` with what was done, see `voxscore.deidentify.faces.FaceRecord`.

    Args:
        margin: distance kept from the brain, mm.
        fill: value of the background; None to take that of the image.
    """

    backend = [TransformBackends.NUMPY]  # noqa: RUF012 -- MONAI declares it as an instance variable

    def __init__(self, margin: float = MARGIN, fill: float | None = None) -> None:
        self.margin, self.fill = margin, fill

    def __call__(
        self, img: NdarrayOrTensor, brain: NdarrayOrTensor | None = None, affine: NdarrayOrTensor | None = None
    ) -> Tensor:
        """Deface one image.

        Args:
            img: (C, X, Y, Z).
            brain: (1, X, Y, Z), not zero in the brain, on the grid of the image; None to estimate it.
            affine: (4, 4) to RAS mm, for an image that does not carry its own.

        Raises:
            UserError: see `voxscore.deidentify.faces.deface`; or no affine, a mask elsewhere, not 3-D.
        """
        if affine is None and isinstance(img, MetaTensor):
            affine = img.affine
        image = convert_to_tensor(img, track_meta=get_track_meta())
        if image.ndim != 4:
            raise UserError("the image", f"has {image.ndim} dimensions", "give one volume, channel first (C, X, Y, Z)")
        if affine is None:
            raise UserError("the image", "does not say where its front is", "give a MetaTensor, or an affine")
        placed = convert_data_type(affine, np.ndarray, dtype=np.float64)[0]
        mask = None
        if brain is not None:
            if isinstance(brain, MetaTensor) and not np.allclose(brain.affine.cpu(), placed, rtol=1e-4, atol=1e-2):
                raise UserError("the brain mask", "lies elsewhere than the image", "resample the mask to the image")
            mask = convert_data_type(brain, np.ndarray)[0]
            if mask.shape[:1] != (1,):
                raise UserError("the brain mask", "is not one channel", "give a mask of (1, X, Y, Z)")
            mask = mask[0]
        channels = convert_data_type(image, np.ndarray)[0]
        if not np.isfinite(channels).all():
            raise UserError("the image", "has voxels that are not finite", "replace them, for example by the minimum")
        first = deface(channels[0], placed, mask, self.margin, self.fill)
        rest = [deface(channel, placed, first.brain, self.margin, self.fill) for channel in channels[1:]]
        out = torch.as_tensor(np.stack([done.array for done in (first, *rest)]), device=image.device)
        if not isinstance(image, MetaTensor):
            return out
        defaced = MetaTensor(out).copy_meta_from(image)
        defaced.affine = torch.as_tensor(placed)
        defaced.meta["deface"] = first.record.as_dict()
        return defaced


class Defaced(MapTransform):
    """Dictionary-based version of :py:class:`Deface`.

    Args:
        keys: images of heads. Each is defaced by the brain in it, unless `mask_key` is given.
        mask_key: the item with the brain mask, on the grid of every image.
        margin: see `Deface`.
        fill: see `Deface`.
        allow_missing_keys: do not raise when a key is missing.
    """

    backend = Deface.backend

    def __init__(
        self,
        keys: KeysCollection,
        mask_key: str | None = None,
        margin: float = MARGIN,
        fill: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key
        self.deface = Deface(margin, fill)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Deface each key's image."""
        d = dict(data)
        brain = None if self.mask_key is None else d[self.mask_key]
        for key in self.key_iterator(d):
            d[key] = self.deface(d[key], brain)
        return d


DefaceD = DefaceDict = Defaced
