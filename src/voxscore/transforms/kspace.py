"""Loading k-space, with all that a reconstruction needs to know besides.

A scan measured y_c = m F (s_c x) + noise. The file holds y and m; coil sensitivities s and the standard deviation of
the noise are taken from the file or the user where these know them, else they are estimated from k-space itself (see
`voxscore.measurement.coils`): sensitivities by ESPIRiT, or low-resolution maps where the fully sampled middle is
narrower than ESPIRiT's patches; one coil without maps sees everything alike. The phase of the image is then absorbed in
the maps, so that the volume that is to be found is real and has one channel.

Numbers keep the units of the file. Nothing is scaled here.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import torch
from monai.config import KeysCollection, PathLike
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends
from torch import Tensor

from voxscore.errors import UserError
from voxscore.measurement import absorb_phase, espirit_maps, estimate_noise_std, low_resolution_maps, zero_filled
from voxscore.volumes import RawData, read_raw

__all__ = ["Kspace", "LoadKspace", "LoadKspaceD", "LoadKspaceDict", "LoadKspaced"]


class Kspace(NamedTuple):
    """A scan ready to be reconstructed.

    Attributes:
        image: MetaTensor (1, X, Y, Z) float32 with the affine of the file: the zero-filled magnitude.
        kspace: (coils, X, Y, Z) complex64, 0 where it was not measured.
        mask: boolean, three axes that broadcast to (X, Y, Z).
        maps: (coils, X, Y, Z) complex64, with the phase of the image absorbed.
        noise_std: float32 scalar, standard deviation of the noise in the real and in the imaginary part of k-space.
    """

    image: Tensor
    kspace: Tensor
    mask: Tensor
    maps: Tensor
    noise_std: Tensor

    def store(self, data: dict[Hashable, Any], key: Hashable) -> None:
        """Put the image under a key and the other parts under `<key>_kspace`, `<key>_mask` and so on."""
        data[key] = self.image
        data.update({f"{key}_{name}": part for name, part in self._asdict().items() if name != "image"})


class LoadKspace(Transform):
    """The path of raw data, or `RawData` read before, to a `Kspace`.

    Args:
        mask: file of the places that count as measured; see `voxscore.volumes.read_raw`.
        maps: file of coil sensitivities, likewise.
        noise_std: standard deviation of real and of imaginary part, in the units of k-space; None estimates it.

    Raises:
        UserError: a noise that is not positive.
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012 -- MONAI declares it as an instance variable

    def __init__(
        self, mask: PathLike | None = None, maps: PathLike | None = None, noise_std: float | None = None
    ) -> None:
        if noise_std is not None and not 0 < noise_std < float("inf"):
            raise UserError("noise", f"has a standard deviation of {noise_std}", "give a positive one, or none")
        self.mask, self.maps, self.noise_std = mask, maps, noise_std

    def __call__(self, source: PathLike | RawData) -> Kspace:
        """Load one scan.

        Raises:
            UserError: see `voxscore.volumes.read_raw`; or the middle of k-space was not measured, or its edge tells
                nothing of the noise.
            ValueError: `RawData` and files of a mask or maps, which belong to the reading of it.
        """
        if not isinstance(source, RawData):
            source = read_raw(source, self.mask, self.maps)  # type: ignore[arg-type]
        elif self.mask is not None or self.maps is not None:
            raise ValueError("RawData has its mask and maps already: give the files to read_raw")
        kspace, mask = torch.from_numpy(source.kspace), torch.from_numpy(source.mask)
        try:
            maps = _maps(kspace, mask) if source.maps is None else torch.from_numpy(source.maps)
            maps = absorb_phase(maps, kspace, mask)
            noise_std = estimate_noise_std(kspace, mask) if self.noise_std is None else self.noise_std
        except UserError as error:
            raise UserError(source.path, f"its {error.subject} {error.fault}", error.remedy) from error
        meta = {"filename_or_obj": str(source.path), "spatial_shape": torch.tensor(source.shape)}
        image = MetaTensor(zero_filled(kspace[None], maps)[0], affine=torch.from_numpy(source.affine), meta=meta)
        return Kspace(image, kspace, mask, maps, torch.tensor(noise_std))


class LoadKspaced(MapTransform):
    """Dictionary-based version of :py:class:`LoadKspace`.

    Replaces the path under a key by the zero-filled magnitude and adds `<key>_kspace`, `<key>_mask`, `<key>_maps` and
    `<key>_noise_std`; their types are those of `Kspace`.

    Args:
        keys: items that hold a path or `RawData`.
        mask: see `LoadKspace`.
        maps: see `LoadKspace`.
        noise_std: see `LoadKspace`.
        allow_missing_keys: do not raise when a key is missing.

    Raises:
        UserError: a noise that is not positive.
    """

    backend = LoadKspace.backend

    def __init__(
        self,
        keys: KeysCollection,
        mask: PathLike | None = None,
        maps: PathLike | None = None,
        noise_std: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.load = LoadKspace(mask, maps, noise_std)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load each key's scan."""
        d = dict(data)
        for key in self.key_iterator(d):
            self.load(d[key]).store(d, key)
        return d


def _maps(kspace: Tensor, mask: Tensor) -> Tensor:
    """Coil sensitivities of a scan that came without."""
    if len(kspace) == 1:
        return torch.ones_like(kspace)
    try:
        # Maps that are 0 in air leave no room there for what a scan has in it, which then spreads over the object.
        return espirit_maps(kspace, mask, crop=0)
    except UserError:  # the middle is narrower than a patch
        return low_resolution_maps(kspace, mask)


LoadKspaceD = LoadKspaceDict = LoadKspaced
