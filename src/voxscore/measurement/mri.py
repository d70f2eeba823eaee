r"""What a Cartesian MR scan does to a volume: coil sensitivities, Fourier transform, sampling.

Coil c of a scanner sees the image m through its sensitivity S_c and measures some lines M of k-space,

    y_c = M F S_c m,        A^H y = sum_c conj(S_c) F^H M y_c,

F being the unitary transform of `fourier`. A magnetic image is complex. Two ways lead from there to the real volumes
of this package:

    channels=1   m = x is real, its phase is a part of the maps S_c (`absorb_phase` puts it there). This is the default:
                 it halves the unknowns, and a prior trained on images as they are stored has seen magnitudes only. The
                 adjoint is the real part of the above.
    channels=2   m = x_0 + i x_1: nothing is assumed of the phase, and the prior must know both parts.

M F^H F M is M along a readout axis, which is complete, so the normal operator transforms along the phase-encoding axes
only; and being a convolution it needs no shift of the data:

    A^H A x = sum_c conj(S_c) f^-1 [shift M] f S_c x,        f the transform that begins at index 0.

Sources: Pruessmann et al., SENSE, MRM 1999; Blaimer et al., Virtual coil concept, MRM 2009 (phase as a part of the
maps).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from voxscore.errors import UserError
from voxscore.measurement.fourier import centered_fft, centered_ifft
from voxscore.measurement.operators import LinearOperator

__all__ = ["CartesianMRI", "root_sum_of_squares", "simulate_maps", "zero_filled"]


class CartesianMRI(LinearOperator):
    """A Cartesian scan of 2-D or 3-D volumes.

    Measures y (B, coils, *spatial), complex, 0 where the mask is False, of volumes x (B, channels, *spatial), real.
    Coils are worked through one by one, so that memory holds the images of one coil besides x and y.

    Args:
        mask: where k-space is measured, boolean, *spatial or of size 1 along axes that are measured completely.
        maps: coil sensitivities (coils, *spatial), complex; without them one coil sees everything alike.
        channels: 1 for a real image whose phase is in the maps, 2 for real and imaginary part.

    Raises:
        UserError: the mask is not boolean or not of two or three axes, the maps do not fit to it, or channels are
            neither 1 nor 2.
    """

    def __init__(self, mask: Tensor, maps: Tensor | None = None, channels: int = 1) -> None:
        if mask.dtype != torch.bool or mask.ndim not in (2, 3):
            fault = f"is {mask.dtype} of shape {tuple(mask.shape)}"
            raise UserError("mask", fault, "give a boolean tensor with the two or three axes of the volume")
        if maps is not None and not (maps.is_complex() and _fits(mask, maps.shape[1:])):
            fault = f"are {maps.dtype} of shape {tuple(maps.shape)}"
            raise UserError("maps", fault, f"give complex (coils, *spatial) for a mask of {tuple(mask.shape)}")
        if channels not in (1, 2):
            raise UserError("channels", f"are {channels}", "give 1 (a real image) or 2 (real and imaginary part)")
        self.mask, self.maps, self.channels = mask, maps, channels

    def __call__(self, x: Tensor) -> Tensor:
        """K-space (B, coils, *spatial) of x (B, channels, *spatial).

        Raises:
            UserError: x has other channels or another grid.
        """
        m = self._image(x)
        return torch.stack([self.mask * centered_fft(s * m, self.mask.ndim) for s in self._coils(m)], dim=1)

    def adjoint(self, y: Tensor) -> Tensor:
        """A^H y (B, channels, *spatial) of k-space y (B, coils, *spatial), in the real inner product.

        Raises:
            UserError: y has another number of coils.
        """
        coils = self._coils(y)
        if y.ndim != self.mask.ndim + 2 or y.shape[1] != len(coils):
            remedy = f"give (B, {len(coils)}, *spatial), one for each coil"
            raise UserError("k-space", f"has shape {tuple(y.shape)}", remedy)
        parts = (s.conj() * centered_ifft(self.mask * y[:, c], self.mask.ndim) for c, s in enumerate(coils))
        return self._volume(parts)

    def normal(self, x: Tensor) -> Tensor:
        """A^H A x: without shifts, and without a transform along complete axes.

        Raises:
            UserError: x has other channels or another grid.
        """
        m = self._image(x)
        axes = tuple(axis for axis in range(-self.mask.ndim, 0) if self.mask.shape[axis] > 1)
        if not axes:
            return self._volume(s.conj() * (self.mask * (s * m)) for s in self._coils(m))
        mask = torch.fft.ifftshift(self.mask, axes)
        return self._volume(
            s.conj() * torch.fft.ifftn(mask * torch.fft.fftn(s * m, dim=axes), dim=axes) for s in self._coils(m)
        )

    def to(self, device: torch.device | str) -> CartesianMRI:
        """The same scan on another device."""
        maps = None if self.maps is None else self.maps.to(device)
        return CartesianMRI(self.mask.to(device), maps, self.channels)

    def _image(self, x: Tensor) -> Tensor:
        """The image m (B, *spatial), complex."""
        spatial = x.shape[2:]
        grid_fits = _fits(self.mask, spatial) if self.maps is None else spatial == self.maps.shape[1:]
        if x.ndim != self.mask.ndim + 2 or x.shape[1] != self.channels or not grid_fits:
            grid = self.mask.shape if self.maps is None else self.maps.shape[1:]
            remedy = f"give (B, {self.channels}, *spatial) on the grid of {tuple(grid)}"
            raise UserError("volume", f"has shape {tuple(x.shape)}", remedy)
        if self.channels == 2:
            return torch.complex(x[:, 0], x[:, 1])
        return x[:, 0].to(torch.promote_types(x.dtype, torch.complex64))

    def _volume(self, parts: Iterable[Tensor]) -> Tensor:
        """The sum of the coils' images as a volume (B, channels, *spatial)."""
        m = functools.reduce(torch.add, parts)
        return m.real[:, None] if self.channels == 1 else torch.stack([m.real, m.imag], dim=1)

    def _coils(self, like: Tensor) -> Tensor:
        """Sensitivities (coils, *spatial) in the precision of `like`."""
        maps = like.new_ones(1, *[1] * self.mask.ndim) if self.maps is None else self.maps
        return maps.to(torch.promote_types(like.dtype, torch.complex64))


def simulate_maps(coils: int, shape: Sequence[int]) -> Tensor:
    """Smooth sensitivities of coils around the volume; their root sum of squares is 1 everywhere.

    Coils sit on a ring in the plane of the last two axes, in 3-D shifted up and down in turn along the first. Each has
    a Gaussian profile as wide as half the volume and a phase of its own that winds slowly across it.

    Args:
        coils: how many, 1 or more.
        shape: of the grid, two or three sizes.

    Returns:
        (coils, *shape), complex64.

    Raises:
        UserError: no coils, or a grid of other than two or three axes.
    """
    if coils < 1 or len(shape) not in (2, 3):
        raise UserError("coils", f"are {coils} around a grid of {tuple(shape)}", "give 1 or more around 2 or 3 axes")
    axes = [2 * (torch.arange(n, dtype=torch.float64) - n // 2) / n for n in shape]
    position = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    maps = []
    for c in range(coils):
        angle = 2 * math.pi * c / coils
        center = [math.cos(angle), math.sin(angle)]
        if len(shape) == 3:
            center.insert(0, 0.5 * (-1) ** c)
        p = torch.tensor(center, dtype=torch.float64).reshape(-1, *[1] * len(shape))
        profile = torch.exp(-(position - p).square().sum(0) / 2)
        maps.append(torch.polar(profile, angle + 0.5 * math.pi * (position * p.roll(1, 0)).sum(0)))
    stacked = torch.stack(maps)
    return (stacked / root_sum_of_squares(stacked, dim=0)).to(torch.complex64)


def root_sum_of_squares(images: Tensor, dim: int = 1) -> Tensor:
    """(sum_c |m_c|^2)^(1/2) over the coils along `dim`, kept with size 1: (B, coils, *spatial) to (B, 1, *spatial)."""
    return images.abs().square().sum(dim, keepdim=True).sqrt()


def zero_filled(kspace: Tensor, maps: Tensor | None = None) -> Tensor:
    """The magnitude that k-space gives with zeros where it was not measured.

    Args:
        kspace: (B, coils, *spatial), complex.
        maps: (coils, *spatial), to combine the coils by |sum conj(S_c) F^H y_c|; without them their root sum of
            squares.

    Returns:
        (B, 1, *spatial), real.
    """
    images = centered_ifft(kspace, kspace.ndim - 2)
    if maps is None:
        return root_sum_of_squares(images)
    return (maps.conj() * images).sum(1, keepdim=True).abs()


def _fits(mask: Tensor, spatial: Sequence[int]) -> bool:
    """Whether the mask broadcasts to the grid."""
    return mask.ndim == len(spatial) and all(m in (1, n) for m, n in zip(mask.shape, spatial, strict=True))
