r"""Computed tomography: line integrals of every slice of a volume, their exact adjoint, and filtered backprojection.

A detector element sees the integral of the attenuation x along its ray, slice by slice (X, Y) of a volume (X, Y, Z):

    y(angle, detector) = int x(p + t d) dt.

**Geometry.** Lengths are in voxels, angles in radians. Voxels of a slice are square, the rotation is about the middle
of the slice, and u, v are coordinates along X and Y from there: voxel (i, j) is at u = i - (X-1)/2, v = j - (Y-1)/2.
At angle theta the detector runs along e = (cos theta, sin theta) and the rays along d = (sin theta, -cos theta); the
middle of the detector row is at s = 0. A parallel ray is the line {p : p.e = s}, as in the Radon transform. A fan has
its source at -R d, with R the distance from source to isocentre, and its detector at the distance S from the source:

    flat      elements equidistant on the line, s = S tan(gamma);     gamma is the angle between ray and d,
    curved    elements equiangular on the arc,  s = S gamma.

Sinograms are in units of x times one voxel: for attenuation per millimetre, multiply the operator by the voxel size.

**Discretisation.** Joseph's method: a ray that runs mostly along Y is sampled where it meets each row of voxels, by
linear interpolation between its two neighbours along X, times the length of the ray from row to row (X and Y change
places for a ray mostly along X). These weights are one sparse matrix, made once, applied to all slices at once, and
held with its transpose, so the adjoint is exact and as fast as the operator. About 1.8 angles X Y / spacing numbers
are not zero (spacing at the isocentre), at 16 bytes each with the transpose: 28 MB for 60 angles and 128 x 128, 0.34 GB
for 180 angles and 256 x 256; while it is made, three times as much. Weights are float32, arithmetic is in the dtype of
the data.

**Filtered backprojection.** With h the ramp filter, band-limited at spacing a and sampled (Kak and Slaney, eq. 61)

    h(0) = 1/(4 a^2),    h(n a) = -1/(pi n a)^2 for odd n,    0 for even n,

    parallel   x(p) = int_0^pi  (y * h)(p.e) dtheta,
    flat       x(p) = 1/2 int_0^2pi U^-2 ((y cos(gamma)) * h)(s') dtheta,       s' = s R/S, the detector at the centre,
    curved     x(p) = 1/2 int_0^2pi L^-2 ((y R cos(gamma)) * g)(gamma) dtheta,  g(n) = (n a / sin(n a))^2 h(n a),

L the distance from source to p, and U R its part along d. Views must be spread evenly: over a half turn or full turns
for parallel rays, over full turns for a fan.

Sources: Joseph, An Improved Algorithm for Reprojecting Rays through Pixel Images, IEEE TMI 1, 1982; Kak and Slaney,
Principles of Computerized Tomographic Imaging, 1988, ch. 3.
"""

from __future__ import annotations

import copy
import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from voxscore.measurement.operators import LinearOperator

__all__ = ["FanBeam", "ParallelBeam"]


class _Sparse:
    """A sparse matrix by rows: where each begins, its columns, its weights."""

    def __init__(self, starts: Tensor, columns: Tensor, weights: Tensor, shape: tuple[int, int]) -> None:
        self.starts, self.columns, self.weights, self.shape = starts, columns, weights, shape

    def __matmul__(self, dense: Tensor) -> Tensor:
        if self.weights.is_meta:  # PyTorch knows no sparse product of shapes alone
            return dense.new_empty(self.shape[0], dense.shape[1])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse (CSR|invariant)", UserWarning)  # "in beta state", since years
            matrix = torch.sparse_csr_tensor(
                self.starts, self.columns, self.weights.to(dense.dtype), self.shape, check_invariants=False
            )
            return matrix @ dense

    def to(self, device: torch.device | str) -> _Sparse:
        return _Sparse(self.starts.to(device), self.columns.to(device), self.weights.to(device), self.shape)


class _Product(torch.autograd.Function):
    """Matrix times columns whose derivative uses the transpose that is there, instead of making one."""

    @staticmethod
    def forward(ctx: Any, dense: Tensor, matrix: _Sparse, transposed: _Sparse) -> Tensor:
        ctx.matrix, ctx.transposed = matrix, transposed
        return matrix @ dense

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(gradient, ctx.transposed, ctx.matrix), None, None


def _joseph(points: Tensor, directions: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Joseph's weights of rays through `points` (n, 2) along unit vectors `directions` (n, 2).

    Returns:
        The number of weights of each ray (n,), and for one ray after the other their voxels and values.
    """
    counts = torch.zeros(len(points), dtype=torch.long)
    steep = directions[:, 1].abs() >= directions[:, 0].abs()
    rays, voxels, weights = [], [], []
    for along, of_this in ((1, steep), (0, ~steep)):
        across = 1 - along
        index = of_this.nonzero()[:, 0]
        p, d = points[index], directions[index]
        grid = torch.arange(size[along], dtype=torch.float64)
        t = (grid - (size[along] - 1) / 2 - p[:, along, None]) / d[:, along, None]
        position = p[:, across, None] + t * d[:, across, None] + (size[across] - 1) / 2
        lower = position.floor()
        upper_share = position - lower
        neighbour = torch.stack([lower, lower + 1], -1)
        share = torch.stack([1 - upper_share, upper_share], -1) / d[:, along, None, None].abs()
        met = (neighbour >= 0) & (neighbour < size[across]) & (share > 0)
        counts[index] = met.sum((1, 2))
        place = (neighbour * size[1] + grid[:, None]) if along == 1 else (grid[:, None] * size[1] + neighbour)
        rays.append(index.repeat_interleave(counts[index]))
        voxels.append(place[met].to(torch.int32))
        weights.append(share[met].float())
    if steep.all() or not steep.any():
        return counts, torch.cat(voxels), torch.cat(weights)
    order = torch.cat(rays).argsort(stable=True)
    return counts, torch.cat(voxels)[order], torch.cat(weights)[order]


def _starts(counts: Tensor) -> Tensor:
    """Where each row begins, of the numbers of entries."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)


def _transposed(counts: Tensor, columns: Tensor, weights: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The transpose of a matrix of `width` columns; counts, columns and weights as they came in."""
    order = columns.argsort(stable=True)
    rows = torch.arange(len(counts), dtype=torch.int32).repeat_interleave(counts)
    return torch.bincount(columns, minlength=width), rows[order], weights[order]


def _ramp(count: int, spacing: float, angular: bool) -> Tensor:
    """Spectrum of the ramp filter for rows of `count` elements, padded so that the convolution does not wrap."""
    length = 2 ** math.ceil(math.log2(2 * count))
    n = torch.arange(length, dtype=torch.float64)
    n = torch.minimum(n, length - n)
    distance = (n * spacing).sin() if angular else n * spacing
    h = torch.where(n % 2 == 1, -1 / (math.pi * distance) ** 2, 0.0)
    h[0] = 1 / (4 * spacing**2)
    # A row has no two elements further apart than count - 1; equiangular ones there may reach sin = 0.
    h[n >= count] = 0
    return torch.fft.rfft(h).real * spacing


class _Tomograph(LinearOperator):
    """Rays through the slices of a volume; subclasses say where they run and how to backproject.

    Args:
        size: (X, Y) of a slice, voxels.
        angles: of the views, radians.
        detectors: elements of the detector row.
        spacing: from element to element.
    """

    def __init__(self, size: Sequence[int], angles: Tensor | Sequence[float], detectors: int, spacing: float) -> None:
        name = type(self).__name__
        self.size = (int(size[0]), int(size[1]))
        self.angles = torch.as_tensor(angles, dtype=torch.float64).cpu()
        self.detectors, self.spacing = detectors, spacing
        if self.angles.ndim != 1 or len(self.angles) == 0:
            raise ValueError(f"{name}: angles are a list of one or more, got shape {tuple(self.angles.shape)}")
        if detectors < 1 or spacing <= 0 or min(self.size) < 1:
            raise ValueError(
                f"{name}: size, detectors and spacing are positive, got {self.size}, {detectors}, {spacing}"
            )
        s = (torch.arange(detectors, dtype=torch.float64) - (detectors - 1) / 2) * spacing
        parts = []
        for theta in self.angles.tolist():
            e, d = (torch.tensor(v, dtype=torch.float64) for v in _frame(theta))
            parts.append(_joseph(*self._rays(s, e, d), self.size))
        counts, voxels, weights = (torch.cat(part) for part in zip(*parts, strict=True))
        rays, width = len(counts), self.size[0] * self.size[1]
        across = _transposed(counts, voxels, weights, width)
        self._matrix = _Sparse(_starts(counts), voxels, weights, (rays, width))
        self._transposed = _Sparse(_starts(across[0]), *across[1:], (width, rays))

    @abstractmethod
    def _rays(self, s: Tensor, e: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """A point (n, 2) and the unit direction (n, 2) of the ray to each element s (n,) of one view."""

    @abstractmethod
    def _filtered(self, y: Tensor) -> Tensor:
        """Sinograms (angles, detectors, slices), weighted and convolved with the filter, times the step of angle."""

    @abstractmethod
    def _place(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Where on the detector s voxels are seen, and their weight; u along e, v along d."""

    def __call__(self, x: Tensor) -> Tensor:
        """Sinograms (B, C, angles, detectors[, Z]) of volumes x (B, C, X, Y[, Z]).

        Raises:
            ValueError: slices of another size.
        """
        columns = self._columns(x, self.size, "volumes (B, C, X, Y[, Z])")
        y = _Product.apply(columns, self._matrix, self._transposed)
        return self._slices(y, (len(self.angles), self.detectors), x)

    def adjoint(self, y: Tensor) -> Tensor:
        """A^H y (B, C, X, Y[, Z]) of sinograms y (B, C, angles, detectors[, Z]): unfiltered backprojection.

        Raises:
            ValueError: sinograms of another size.
        """
        columns = self._columns(y, (len(self.angles), self.detectors), "sinograms (B, C, angles, detectors[, Z])")
        return self._slices(_Product.apply(columns, self._transposed, self._matrix), self.size, y)

    def filtered_backprojection(self, y: Tensor) -> Tensor:
        """Volumes (B, C, X, Y[, Z]) of sinograms y (B, C, angles, detectors[, Z]), by the formulas of this file.

        Raises:
            ValueError: sinograms of another size.
        """
        columns = self._columns(y, (len(self.angles), self.detectors), "sinograms (B, C, angles, detectors[, Z])")
        filtered = self._filtered(columns.reshape(len(self.angles), self.detectors, -1))
        padded = torch.nn.functional.pad(filtered, (0, 0, 1, 1))
        i, j = (torch.arange(n, dtype=torch.float64, device=y.device) - (n - 1) / 2 for n in self.size)
        total = padded.new_zeros(self.size[0] * self.size[1], padded.shape[2])
        for theta, view in zip(self.angles.tolist(), padded, strict=True):
            e, d = _frame(theta)
            s, weight = self._place(i[:, None] * e[0] + j * e[1], i[:, None] * d[0] + j * d[1])
            # One element of zeros on either side: beyond the detector nothing was seen.
            element = (s / self.spacing + (self.detectors - 1) / 2 + 1).clamp(0, self.detectors + 1).flatten()
            lower = element.floor().clamp(max=self.detectors)
            share = (element - lower).to(y.dtype)[:, None]
            seen = torch.lerp(view[lower.long()], view[lower.long() + 1], share)
            total = total + weight.expand(self.size).flatten().to(y.dtype)[:, None] * seen
        return self._slices(total, self.size, y)

    def _columns(self, data: Tensor, size: tuple[int, int], what: str) -> Tensor:
        """Slices of (B, C, *size[, Z]) as columns (size, B C Z)."""
        if data.ndim not in (4, 5) or tuple(data.shape[2:4]) != size:
            raise ValueError(f"{type(self).__name__} takes {what} of slices {size}, got {tuple(data.shape)}")
        return data.flatten(2, 3).movedim(2, 0).flatten(1).contiguous()

    def _slices(self, columns: Tensor, size: tuple[int, int], like: Tensor) -> Tensor:
        """Columns (size, B C Z) as (B, C, *size[, Z]), with the B, C and Z of `like`."""
        kept = columns.reshape(columns.shape[0], *like.shape[:2], *like.shape[4:])
        return kept.movedim(0, 2).unflatten(2, size)

    def to(self, device: torch.device | str) -> _Tomograph:
        """The same operator on another device."""
        moved = copy.copy(self)
        moved._matrix, moved._transposed = self._matrix.to(device), self._transposed.to(device)
        return moved


class ParallelBeam(_Tomograph):
    """Parallel rays: the Radon transform of each slice.

    `skimage.transform.radon(image, degrees)` is the transpose of `ParallelBeam(size, angles)` of the transposed image
    at angles = -degrees, up to the interpolation, when the sides are odd (it turns an image about voxel N // 2).

    Args:
        size: (X, Y) of a slice, voxels.
        angles: theta of the views, radians.
        detectors: elements of the detector row; as many as cover the diagonal of the slice if not given.
        spacing: from element to element, voxels.

    Raises:
        ValueError: no angles, or something not positive.
    """

    def __init__(
        self,
        size: Sequence[int],
        angles: Tensor | Sequence[float],
        detectors: int | None = None,
        spacing: float = 1.0,
    ) -> None:
        if detectors is None:
            detectors = math.ceil(math.hypot(*size) / spacing)
        super().__init__(size, angles, detectors, spacing)

    def _rays(self, s: Tensor, e: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        return s[:, None] * e, d.expand(len(s), 2)

    def _filtered(self, y: Tensor) -> Tensor:
        return math.pi / len(self.angles) * _convolved(y, _ramp(self.detectors, self.spacing, angular=False))

    def _place(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return u, torch.ones_like(u)


class FanBeam(_Tomograph):
    """Rays from a point source that circles the slice, to a flat or a curved detector.

    Args:
        size: (X, Y) of a slice, voxels.
        angles: theta of the views, radians.
        source_to_isocentre: R, voxels; beyond the corners of the slice.
        source_to_detector: S, voxels; not less than R.
        detectors: elements of the detector row; as many as cover the circle about the slice if not given.
        spacing: from element to element along the detector, voxels.
        curved: equiangular elements on an arc about the source, instead of equidistant ones on a line.

    Raises:
        ValueError: no angles, something not positive, or a source inside the slice or behind the detector.
    """

    def __init__(
        self,
        size: Sequence[int],
        angles: Tensor | Sequence[float],
        source_to_isocentre: float,
        source_to_detector: float,
        detectors: int | None = None,
        spacing: float = 1.0,
        curved: bool = False,
    ) -> None:
        radius = math.hypot(*size) / 2
        if not radius < source_to_isocentre <= source_to_detector:
            raise ValueError(
                f"FanBeam: the source is outside the slice, whose corners are {radius:g} voxels from its middle, and "
                f"the detector not nearer than the middle; got {source_to_isocentre:g} voxels from source to "
                f"isocentre, {source_to_detector:g} to the detector"
            )
        self.source_to_isocentre, self.source_to_detector, self.curved = source_to_isocentre, source_to_detector, curved
        if detectors is None:
            gamma = math.asin(radius / source_to_isocentre)
            detectors = math.ceil(2 * source_to_detector * (gamma if curved else math.tan(gamma)) / spacing)
        super().__init__(size, angles, detectors, spacing)

    def _gamma(self, s: Tensor) -> Tensor:
        s = s / self.source_to_detector
        return s if self.curved else s.atan()

    def _rays(self, s: Tensor, e: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        gamma = self._gamma(s)[:, None]
        return (-self.source_to_isocentre * d).expand(len(s), 2), gamma.sin() * e + gamma.cos() * d

    def _filtered(self, y: Tensor) -> Tensor:
        distance = self.source_to_isocentre
        spacing = self.spacing / self.source_to_detector * (1 if self.curved else distance)
        s = (torch.arange(self.detectors, dtype=torch.float64) - (self.detectors - 1) / 2) * self.spacing
        weight = math.pi / len(self.angles) * self._gamma(s).cos() * (distance if self.curved else 1)
        return _convolved(y * weight.to(y)[:, None], _ramp(self.detectors, spacing, angular=self.curved))

    def _place(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        depth = self.source_to_isocentre + v
        if self.curved:
            return torch.atan2(u, depth) * self.source_to_detector, 1 / (u.square() + depth.square())
        return u / depth * self.source_to_detector, (self.source_to_isocentre / depth).square()


def _frame(theta: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """The directions e of the detector and d of the rays."""
    return (math.cos(theta), math.sin(theta)), (math.sin(theta), -math.cos(theta))


def _convolved(y: Tensor, spectrum: Tensor) -> Tensor:
    """Rows of y (angles, detectors, slices) convolved with a filter of known spectrum."""
    length = 2 * (len(spectrum) - 1)
    return torch.fft.irfft(torch.fft.rfft(y, n=length, dim=1) * spectrum.to(y)[:, None], n=length, dim=1)[
        :, : y.shape[1]
    ]
