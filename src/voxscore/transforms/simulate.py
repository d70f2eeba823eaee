"""What a scanner would have measured of a volume: k-space, a sinogram, thick slices, noise.

With them a volume becomes a problem whose answer is known: to train on, to measure a method by, to try a command with.
The operators are those of `voxscore.measurement`; here they meet files' units and geometry and MONAI's conventions.

Everything random is drawn from the transform's `R`, so `set_random_state` repeats it. What was done is in
`applied_operations`, with the seed of the draw. A chain with a simulation in it stays invertible for MONAI: inverses
bring a result back to the grid that the volume had; the noise they leave.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.data.meta_obj import get_track_meta
from monai.transforms import InvertibleTransform, MapTransform, Randomizable, SpatialResample
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor
from torch import Generator, Tensor

from voxscore.errors import UserError
from voxscore.measurement import (
    CartesianMRI,
    Downsample,
    FanBeam,
    ParallelBeam,
    Profile,
    box,
    gaussian_noise,
    poisson_transmission,
    simulate_maps,
    variable_density_mask,
    zero_filled,
)
from voxscore.transforms.kspace import Kspace

__all__ = [
    "SimulateKspace",
    "SimulateKspaceD",
    "SimulateKspaceDict",
    "SimulateKspaced",
    "SimulateLowResolution",
    "SimulateLowResolutionD",
    "SimulateLowResolutionDict",
    "SimulateLowResolutiond",
    "SimulateNoise",
    "SimulateNoiseD",
    "SimulateNoiseDict",
    "SimulateNoised",
    "SimulateSinogram",
    "SimulateSinogramD",
    "SimulateSinogramDict",
    "SimulateSinogramd",
    "simulate_phase",
]

Mask = Callable[..., Tensor]
"""`mask(shape, generator=generator)`: such as `functools.partial(poisson_disc_mask, axes=(1, 2), acceleration=8)`."""
Noise = Callable[[Tensor, float, Generator], Tensor]
"""`gaussian_noise` or `rician_noise` of `voxscore.measurement`, or another."""
Geometry = Callable[[tuple[int, int]], ParallelBeam | FanBeam]
"""The rays through a slice of a given size, such as `functools.partial(ParallelBeam, angles=angles)`."""

fourfold = partial(variable_density_mask, axes=(1, 2), acceleration=4, center=0.12)
"""A fourth of k-space, most of it in the middle, with the readout along the first axis."""


def simulate_phase(shape: Sequence[int], generator: Generator) -> Tensor:
    """A smooth phase as images have it: a random polynomial of the second degree in the coordinates.

    Coefficients of the coordinates, from -1 to 1, and of their products are normal with a standard deviation of 0.8:
    from edge to edge the phase turns by some radians.

    Args:
        shape: *spatial.
        generator: of the coefficients.

    Returns:
        (*spatial) float32, rad.
    """
    axes = [torch.linspace(-1, 1, n) for n in shape]
    p = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    offset, *linear = (0.8 * torch.randn(1 + len(shape), generator=generator)).tolist()
    squares = 0.8 * torch.randn(len(shape), len(shape), generator=generator)
    phase = torch.einsum("ij,i...,j...->...", squares.triu(), p, p) + 4 * offset
    return phase + sum(a * axis for a, axis in zip(linear, p, strict=True))


class _Simulation(InvertibleTransform):
    """A measurement; inverted, its entry is taken off the record, and data on the grid of the volume pass."""

    backend = [TransformBackends.TORCH]  # noqa: RUF012 -- MONAI declares it as an instance variable

    def inverse(self, data: Tensor) -> Tensor:
        """The data as they are, without the entry of this transform."""
        self.pop_transform(data)
        return data


class _RandomSimulation(Randomizable, _Simulation):
    """A measurement with something random in it, drawn by one generator from one seed."""

    seed = 0

    def randomize(self, data: Any = None) -> None:
        """Draw the seed of the next measurement."""
        self.seed = int(self.R.randint(2**31))

    def _generator(self, randomize: bool) -> Generator:
        if randomize:
            self.randomize()
        return torch.Generator().manual_seed(self.seed)


class SimulateKspace(_RandomSimulation):
    """A Cartesian MR scan of a magnitude volume (1, X, Y, Z).

    The volume is given a smooth random phase; coils around it see it through the sensitivities of
    `voxscore.measurement.simulate_maps`.

    Args:
        mask: of the shape and a generator, where k-space is measured.
        coils: how many.
        noise: standard deviation of real and of imaginary part, as a share of the maximum of the coils' images.

    Raises:
        UserError: a noise that is not positive.
    """

    def __init__(self, mask: Mask = fourfold, coils: int = 8, noise: float = 0.01) -> None:
        _check_noise(noise)
        self.mask, self.coils, self.noise = mask, coils, noise

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> Kspace:
        """The scan, its maps those of the simulation, with the phase absorbed.

        Args:
            img: (1, X, Y, Z), not negative.
            randomize: draw a new seed; else measure as the last time.

        Raises:
            UserError: more channels, other axes, or what the mask refuses.
        """
        img = _tensor(img)
        if img.ndim != 4 or len(img) != 1:
            raise UserError("volume", f"has shape {tuple(img.shape)}", "give a magnitude (1, X, Y, Z)")
        generator = self._generator(randomize)
        shape, x = img.shape[1:], _plain(img)
        mask = self.mask(shape, generator=generator)
        phase = simulate_phase(shape, generator)
        maps = simulate_maps(self.coils, shape) * torch.polar(torch.ones_like(phase), phase)
        noise_std = self.noise * float((maps.abs() * x).max())
        y = mask * gaussian_noise(CartesianMRI(mask, maps)(x[None]), noise_std, generator)[0]
        out = convert_to_dst_type(zero_filled(y[None], maps)[0], img)[0]
        self.push_transform(out, extra_info={"seed": self.seed})
        return Kspace(out, y, mask, maps, torch.tensor(noise_std))


class SimulateSinogram(_RandomSimulation):
    """Line integrals of the slices of a volume of attenuations.

    The result (C, angles, detectors, Z) is in attenuation times mm and keeps the affine of the volume.

    Args:
        geometry: of the size of a slice, the rays; lengths in voxels.
        photons: sent to each detector element; None measures without noise.

    Raises:
        UserError: no photons.
    """

    def __init__(self, geometry: Geometry, photons: float | None = None) -> None:
        if photons is not None and not 1 < photons < float("inf"):
            raise UserError("photons", f"are {photons}", "give more than 1, such as 100000, or none for no noise")
        self.geometry, self.photons = geometry, photons
        self._made: tuple[tuple[int, int], ParallelBeam | FanBeam] | None = None

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> Tensor:
        """The sinogram.

        Args:
            img: (C, X, Y, Z), attenuation per mm, not negative; its voxels are square in each slice.
            randomize: draw a new seed; else measure as the last time.

        Raises:
            UserError: voxels that are not square.
        """
        img = _tensor(img)
        generator = self._generator(randomize)
        width, height = _spacing(img)[:2]
        if abs(width - height) > 1e-3 * width:
            fault = f"has voxels of {width:g} x {height:g} mm in a slice"
            raise UserError("volume", fault, "resample it to square ones")
        y = width * self._rays((img.shape[1], img.shape[2]))(_plain(img)[None])
        if self.photons is not None:
            y = poisson_transmission(y, self.photons, generator)
        out = convert_to_dst_type(y[0], img)[0]
        self.push_transform(out, orig_size=img.shape[1:], extra_info={"seed": self.seed, "voxel": width})
        return out

    def inverse(self, data: Tensor) -> Tensor:
        """The filtered backprojection of a sinogram, (C, X, Y, Z)."""
        done = self.pop_transform(data)
        rays = self._rays((done["orig_size"][0], done["orig_size"][1]))
        x = rays.filtered_backprojection(_plain(data)[None] / done["extra_info"]["voxel"])
        return convert_to_dst_type(x[0], data)[0]

    def _rays(self, size: tuple[int, int]) -> ParallelBeam | FanBeam:
        # Their matrix takes longer to make than to apply.
        if self._made is None or self._made[0] != size:
            self._made = size, self.geometry(size)
        return self._made[1]


class SimulateLowResolution(_Simulation):
    """A volume in thick slices: (C, X, Y, Z) on a coarser grid, whose affine says where it lies.

    Args:
        factor: distance of samples in voxels, at least 1; one for all axes or one for each.
        profile: of a slice; see `voxscore.measurement.Downsample`.
        thickness: of slices in voxels; the factor if not given.
    """

    def __init__(
        self,
        factor: float | Sequence[float],
        profile: Profile = box,
        thickness: float | Sequence[float] | None = None,
    ) -> None:
        self.factor, self.profile, self.thickness = factor, profile, thickness

    def __call__(self, img: NdarrayOrTensor) -> Tensor:
        """The coarse volume.

        Raises:
            ValueError: a factor below 1 or not one for each axis.
        """
        img = _tensor(img)
        operator = Downsample(img.shape[1:], self.factor, self.profile, self.thickness)
        out = convert_to_dst_type(operator(_plain(img)[None])[0], img)[0]
        f = np.array(operator.factor)
        # Sample k lies at the index k f + (f - 1) / 2 of the fine grid.
        coarse = np.diag([*f, 1.0])
        coarse[:-1, -1] = (f - 1) / 2
        fine = img.affine if isinstance(img, MetaTensor) else torch.eye(4)
        self.push_transform(out, affine=coarse, orig_size=img.shape[1:], extra_info={"affine": fine.tolist()})
        if isinstance(out, MetaTensor):
            out.meta["spatial_shape"] = torch.tensor(out.shape[1:])
        return out

    def inverse(self, data: Tensor) -> Tensor:
        """The volume on the fine grid again, by linear interpolation."""
        done = self.pop_transform(data)
        resample = SpatialResample(mode="bilinear", padding_mode="border")
        with resample.trace_transform(False):
            fine = torch.tensor(done["extra_info"]["affine"], dtype=torch.float64)
            return resample(data, dst_affine=fine, spatial_size=done["orig_size"])


class SimulateNoise(_RandomSimulation):
    """A volume with noise.

    Args:
        noise: standard deviation as a share of the maximum of the volume's absolute values.
        kind: `gaussian_noise`, or `rician_noise` for magnitudes.

    Raises:
        UserError: a noise that is not positive.
    """

    def __init__(self, noise: float, kind: Noise = gaussian_noise) -> None:
        _check_noise(noise)
        self.noise, self.kind = noise, kind

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> Tensor:
        """The noisy volume.

        Args:
            img: (C, *spatial).
            randomize: draw a new seed; else the same noise as the last time.
        """
        img = _tensor(img)
        generator, x = self._generator(randomize), _plain(img)
        out = convert_to_dst_type(self.kind(x[None], self.noise * float(x.abs().max()), generator)[0], img)[0]
        self.push_transform(out, extra_info={"seed": self.seed})
        return out


class _Dictionary(MapTransform, InvertibleTransform):
    """A transform of arrays applied to each key; what is random is drawn for each anew."""

    backend = _Simulation.backend

    def __init__(self, keys: KeysCollection, simulate: _Simulation, allow_missing_keys: bool) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.simulate = simulate

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Measure each key's volume."""
        d = dict(data)
        for key in self.key_iterator(d):
            self._measure(d, key)
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Bring each key back to the grid it had."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.simulate.inverse(d[key])
        return d

    def _measure(self, d: dict[Hashable, Any], key: Hashable) -> None:
        d[key] = self.simulate(d[key])


class _RandomDictionary(Randomizable, _Dictionary):
    """The same of a transform with something random in it."""

    simulate: _RandomSimulation

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> Randomizable:
        """Set the state of this transform and of the one it applies."""
        super().set_random_state(seed, state)
        self.simulate.set_random_state(seed, state)
        return self


class SimulateKspaced(_RandomDictionary):
    """Dictionary-based version of :py:class:`SimulateKspace`: the items of :py:class:`LoadKspaced`, of a volume.

    Args:
        keys: items that hold volumes; each becomes the zero-filled magnitude.
        mask: see `SimulateKspace`.
        coils: see `SimulateKspace`.
        noise: see `SimulateKspace`.
        allow_missing_keys: do not raise when a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        mask: Mask = fourfold,
        coils: int = 8,
        noise: float = 0.01,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, SimulateKspace(mask, coils, noise), allow_missing_keys)

    def _measure(self, d: dict[Hashable, Any], key: Hashable) -> None:
        self.simulate(d[key]).store(d, key)


class SimulateSinogramd(_RandomDictionary):
    """Dictionary-based version of :py:class:`SimulateSinogram`.

    Args:
        keys: items that hold volumes.
        geometry: see `SimulateSinogram`.
        photons: see `SimulateSinogram`.
        allow_missing_keys: do not raise when a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        geometry: Geometry,
        photons: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, SimulateSinogram(geometry, photons), allow_missing_keys)


class SimulateLowResolutiond(_Dictionary):
    """Dictionary-based version of :py:class:`SimulateLowResolution`.

    Args:
        keys: items that hold volumes.
        factor: see `SimulateLowResolution`.
        profile: see `SimulateLowResolution`.
        thickness: see `SimulateLowResolution`.
        allow_missing_keys: do not raise when a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        factor: float | Sequence[float],
        profile: Profile = box,
        thickness: float | Sequence[float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, SimulateLowResolution(factor, profile, thickness), allow_missing_keys)


class SimulateNoised(_RandomDictionary):
    """Dictionary-based version of :py:class:`SimulateNoise`.

    Args:
        keys: items that hold volumes.
        noise: see `SimulateNoise`.
        kind: see `SimulateNoise`.
        allow_missing_keys: do not raise when a key is missing.
    """

    def __init__(
        self, keys: KeysCollection, noise: float, kind: Noise = gaussian_noise, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, SimulateNoise(noise, kind), allow_missing_keys)


def _check_noise(noise: float) -> None:
    if not 0 < noise < float("inf"):
        raise UserError("noise", f"is {noise} of the maximum", "give a positive share, such as 0.01")


def _tensor(img: NdarrayOrTensor) -> Tensor:
    return convert_to_tensor(img, dtype=torch.float32, track_meta=get_track_meta())


def _plain(img: Tensor) -> Tensor:
    """The numbers without metadata, which the operators would carry through every step."""
    return img.as_tensor() if isinstance(img, MetaTensor) else img


def _spacing(img: Tensor) -> tuple[float, ...]:
    """Distance between voxel centres in mm, 1 where nothing is known."""
    if not isinstance(img, MetaTensor):
        return (1.0,) * (img.ndim - 1)
    return tuple(float(d) for d in img.pixdim)


SimulateKspaceD = SimulateKspaceDict = SimulateKspaced
SimulateSinogramD = SimulateSinogramDict = SimulateSinogramd
SimulateLowResolutionD = SimulateLowResolutionDict = SimulateLowResolutiond
SimulateNoiseD = SimulateNoiseDict = SimulateNoised
