r"""Measurements in the image: a volume blurred, sampled coarsely, or seen in part.

**Blur** averages with a Gaussian of given full width at half maximum, sampled at the voxels, one axis after the other:

    y_k = sum_i w_ki x_i,    w_ki proportional to exp(-(i - k)^2 / (2 s^2)),    FWHM = 2 sqrt(2 ln 2) s.

**Downsample** is a scanner with thicker slices. Voxel i fills [i, i+1] of an axis of n; sample k of m = round(n / f) is
the mean of the volume, constant in each voxel, over a slice of thickness T about the middle of block [k f, (k+1) f]:

    w_ki proportional to P((i + 1 - c_k) / T) - P((i - c_k) / T),    c_k = (k + 1/2) f,

where P is the integral of the slice's profile. The factor f need not be an integer; if it is, and the profile is a
`box` of thickness f (which both are unless something else is asked for), the samples are means of blocks.

In both, the weights of each sample are divided by their sum, so constants are kept and at the edges the part of the
profile that is inside counts. Both are one matrix per axis, so the adjoint is its transpose, exactly.

**Geometry of the samples.** In voxel indices, where voxel i has its middle at i, sample k lies at

    k f + (f - 1) / 2,

the middle of its block: the affine of the coarse volume is that of the fine one times [diag(f), (f - 1) / 2], and its
voxels are f times as long. Conversely, m samples at distance f are sampled from round(m f) voxels.

**Inpaint** sees the voxels of a mask.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from voxscore.measurement.operators import LinearOperator

__all__ = ["Blur", "Downsample", "Inpaint", "Profile", "box", "gaussian"]

Profile = Callable[[Tensor], Tensor]
"""Integral of a slice's profile from far away to a distance from its middle, in units of its thickness."""

_FWHM = 2 * math.sqrt(2 * math.log(2))


def box(distance: Tensor) -> Tensor:
    """Profile of a slice that sees evenly all of its thickness and nothing else."""
    return (distance + 0.5).clamp(0, 1)


def gaussian(distance: Tensor) -> Tensor:
    """Gaussian profile, whose full width at half maximum is the thickness."""
    return 0.5 * torch.special.erfc(-distance * (_FWHM / math.sqrt(2)))


def _per_axis(value: float | Sequence[float], shape: tuple[int, ...], what: str) -> tuple[float, ...]:
    """One number for each axis."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * len(shape)
    if len(values) != len(shape):
        raise ValueError(f"{what}: one number, or one for each axis of a volume {shape}; got {values}")
    return values


def _along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """A matrix (m, n) applied to the axis of x that is n long."""
    return torch.tensordot(x, matrix.to(x), dims=([axis], [1])).movedim(-1, axis)


class _Separable(LinearOperator):
    """One matrix per axis.

    Args:
        shape: of volumes, *spatial.
        matrices: (m, n) for each axis, float64; None leaves an axis as it is.
    """

    def __init__(self, shape: tuple[int, ...], matrices: Sequence[Tensor | None]) -> None:
        self.shape, self._matrices = shape, tuple(matrices)
        sizes = (n if matrix is None else len(matrix) for n, matrix in zip(shape, self._matrices, strict=True))
        self.measured_shape = tuple(sizes)

    def __call__(self, x: Tensor) -> Tensor:
        """Measurements (B, C, *measured_shape) of volumes x (B, C, *shape).

        Raises:
            ValueError: volumes of another shape.
        """
        self._check(x, self.shape)
        for axis, matrix in enumerate(self._matrices, start=2):
            x = x if matrix is None else _along(matrix, x, axis)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """A^H y (B, C, *shape) of measurements y (B, C, *measured_shape).

        Raises:
            ValueError: measurements of another shape.
        """
        self._check(y, self.measured_shape)
        for axis, matrix in enumerate(self._matrices, start=2):
            y = y if matrix is None else _along(matrix.T, y, axis)
        return y

    def _check(self, data: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(data.shape[2:]) != shape:
            raise ValueError(f"{type(self).__name__} takes (B, C, *spatial) of {shape} here, got {tuple(data.shape)}")

    def to(self, device: torch.device | str) -> _Separable:
        """The same operator on another device."""
        moved = copy.copy(self)
        moved._matrices = tuple(None if matrix is None else matrix.to(device) for matrix in self._matrices)
        return moved


class Blur(_Separable):
    """Gaussian blur that keeps constants.

    Args:
        shape: of volumes, *spatial.
        fwhm: full width at half maximum, voxels; one for all axes or one for each, 0 for none. Below 2 the Gaussian is
            narrower than its samples resolve and blurs less than it says.

    Raises:
        ValueError: a negative width, or not one for each axis.
    """

    def __init__(self, shape: Sequence[int], fwhm: float | Sequence[float]) -> None:
        shape = tuple(shape)
        widths = _per_axis(fwhm, shape, "Blur: fwhm")
        if min(widths) < 0:
            raise ValueError(f"Blur: fwhm cannot be negative, got {widths}")
        super().__init__(
            shape, [_blur(n, width) if width > 0 else None for n, width in zip(shape, widths, strict=True)]
        )


class Downsample(_Separable):
    """Thick slices: the volume on a coarser grid.

    Args:
        shape: of volumes, *spatial.
        factor: distance of samples in voxels, at least 1; one for all axes or one for each. (1, 1, 4) makes a slice of
            four along the last axis.
        profile: `box` or `gaussian`, or the integral of another.
        thickness: of slices in voxels, one for all axes or one for each; the factor if not given. Less leaves gaps,
            more makes slices overlap.

    Raises:
        ValueError: a factor below 1, a thickness that is not positive, or not one for each axis.
    """

    def __init__(
        self,
        shape: Sequence[int],
        factor: float | Sequence[float],
        profile: Profile = box,
        thickness: float | Sequence[float] | None = None,
    ) -> None:
        shape = tuple(shape)
        self.factor = _per_axis(factor, shape, "Downsample: factor")
        self.thickness = self.factor if thickness is None else _per_axis(thickness, shape, "Downsample: thickness")
        if min(self.factor) < 1 or min(self.thickness) <= 0:
            raise ValueError(
                f"Downsample: factors are 1 at least and thickness is positive, got {self.factor}, {self.thickness}"
            )
        axes = zip(shape, self.factor, self.thickness, strict=True)
        super().__init__(shape, [_slices(n, f, thick, profile) for n, f, thick in axes])


class Inpaint(LinearOperator):
    """Sees the voxels of a mask; the others are 0 in the measurement.

    Args:
        mask: true where a voxel is measured, of a shape that broadcasts to the volumes: (*spatial), or (C, *spatial).
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask.bool()

    def __call__(self, x: Tensor) -> Tensor:
        """X (B, C, *spatial) with zeros where nothing is measured, whatever x is there."""
        return torch.where(self.mask, x, 0)

    def adjoint(self, y: Tensor) -> Tensor:
        """The same of y: the operator is a projection."""
        return self(y)

    def normal(self, x: Tensor) -> Tensor:
        """The operator itself."""
        return self(x)

    def to(self, device: torch.device | str) -> Inpaint:
        """The same operator on another device."""
        return Inpaint(self.mask.to(device))


def _blur(n: int, fwhm: float) -> Tensor:
    i = torch.arange(n, dtype=torch.float64)
    w = torch.exp(-0.5 * ((i - i[:, None]) * (_FWHM / fwhm)).square())
    return w / w.sum(1, keepdim=True)


def _slices(n: int, factor: float, thickness: float, profile: Profile) -> Tensor | None:
    c = (torch.arange(max(1, round(n / factor)), dtype=torch.float64) + 0.5) * factor
    edges = torch.arange(n + 1, dtype=torch.float64)
    w = profile((edges - c[:, None]) / thickness).diff(dim=1)
    w = w / w.sum(1, keepdim=True)
    return None if torch.equal(w, torch.eye(n, dtype=torch.float64)) else w
