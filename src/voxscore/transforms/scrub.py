"""Metadata reduced to geometry.

MONAI's readers carry the file's header into `MetaTensor.meta`: `NibabelReader` all of it with its free text,
`ITKReader` the metadata dictionary, `PydicomReader` whole functional groups even when told to prune; and the path of
the file, which often names the patient, in `filename_or_obj`. From there they go on into caches on disk, saved tensors
and the names that `SaveImage` gives. `ScrubMeta` keeps what stands on a list, and of that only numbers and the words
that MONAI defines.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, PathLike
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys, TransformBackends
from torch import Tensor

from voxscore.deidentify.faces import FaceRecord
from voxscore.deidentify.pseudonyms import Pseudonyms, read_key
from voxscore.volumes import base_name

__all__ = ["ScrubMeta", "ScrubMetaD", "ScrubMetaDict", "ScrubMetad"]

_GEOMETRY = {
    *(MetaKeys.AFFINE, MetaKeys.ORIGINAL_AFFINE, MetaKeys.SPACE, MetaKeys.SPATIAL_SHAPE, MetaKeys.PIXDIM),
    *(MetaKeys.ORIGINAL_PIXDIM, MetaKeys.ORIGINAL_CHANNEL_DIM, "spacing"),
}
_WORDS = {*map(str, SpaceKeys), "no_channel"}


class ScrubMeta(Transform):
    """Keep of a `MetaTensor`'s metadata its geometry and the record of `Deface`, and give it a pseudonym for a name.

    Voxels, affine and applied operations stay; a plain tensor or array passes as it is.

    Args:
        key_file: a file with a secret key of 32 bytes or more. With it `filename_or_obj` becomes a keyed pseudonym of
            the file's name (the same in every run), without it there is none and `SaveImage` counts.

    Raises:
        UserError: no such file, or too short a key.
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]  # noqa: RUF012 -- as MONAI declares it

    def __init__(self, key_file: PathLike | None = None) -> None:
        self.pseudonyms = None if key_file is None else Pseudonyms(read_key(Path(key_file)))

    def __call__(self, img: Any) -> Any:
        """Return the same voxels with clean metadata; the input keeps its own."""
        if not isinstance(img, MetaTensor):
            return img
        clean = MetaTensor(img.as_tensor(), applied_operations=img.applied_operations)
        clean.meta = self.scrubbed(img.meta)
        clean.affine = img.affine
        clean.is_batch = img.is_batch
        return clean

    def scrubbed(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        """Return the items of a metadata dictionary that may stay."""
        kept = {str(k): v for k, v in meta.items() if k in _GEOMETRY and _harmless(v)}
        record = meta.get("deface")
        if isinstance(record, Mapping):
            fields = FaceRecord.__dataclass_fields__
            kept["deface"] = {k: v for k, v in record.items() if k in fields and (_harmless(v) or k == "brain")}
        name = meta.get(ImageMetaKey.FILENAME_OR_OBJ)
        if name is not None and self.pseudonyms is not None:
            kept[str(ImageMetaKey.FILENAME_OR_OBJ)] = self.pseudonyms.identifier("file", base_name(str(name)))
        return kept


def _harmless(value: Any) -> bool:
    """Numbers, arrays of numbers, and the few words that MONAI defines."""
    if isinstance(value, str):
        return value in _WORDS
    if isinstance(value, (list, tuple)):
        return all(_harmless(v) for v in value)
    if isinstance(value, np.ndarray):
        return bool(value.dtype.kind in "biuf")
    return isinstance(value, (bool, int, float, np.number, Tensor, torch.Size))


class ScrubMetad(MapTransform):
    """Dictionary-based version of :py:class:`ScrubMeta`; also cleans the `<key>_meta_dict` of older pipelines.

    Args:
        keys: items to clean.
        key_file: see `ScrubMeta`.
        allow_missing_keys: do not raise when a key is missing.
    """

    backend = ScrubMeta.backend

    def __init__(
        self, keys: KeysCollection, key_file: PathLike | None = None, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.scrub = ScrubMeta(key_file)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Clean each key's metadata."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.scrub(d[key])
            old = f"{key}_meta_dict"
            if isinstance(d.get(old), Mapping):
                d[old] = self.scrub.scrubbed(d[old])
        return d


ScrubMetaD = ScrubMetaDict = ScrubMetad
