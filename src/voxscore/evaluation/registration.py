r"""How alike are two volumes of one anatomy, once one is laid over the other? Registered correlation.

A copy may be mirrored, shifted, turned a little, cropped, of other intensities, noisy; it is still the same person. But
crops of one organ correlate by 0.8 or more though they show different people, for a smooth image with the organ in its
middle is what they have in common. So volumes are compared by what is *not* common. With r the rank of a voxel's
intensity, m the mean of the training ranks and P = E|F r|^2 their power spectrum,

    w = F^-1 [ G / sqrt(P + eps)  F (r - m) ],

what is fine and one's own, smoothed by a Gaussian G of about two voxels so that a shift by a part of a voxel does not
matter. P is that of whole volumes, m included: what m leaves in a volume that lies elsewhere has its frequencies and is
held down. Up to that it is the matched filter for one Gaussian volume among others. The likeness of a query q to a
reference x is the largest normalised correlation of w_q's middle part with any window of w_x,

    s(q, x) = max over flips, turns, shifts d   <w_q, w_x(. + d)> / (|w_q| |w_x(. + d)|),    means taken off.

    intensities   ranks take out every monotone change, above all scale and offset
    flips         all eight
    shifts        all within four voxels of the grid, by the correlation theorem
    crops         three quarters of the extent along each axis are enough
    turns         about each axis, by coordinate search up to about 9 degrees

Not every pair is searched on the full grid. A coarse grid of a quarter of the resolution, with whitened volumes
smoothed accordingly, chooses the references that each query is compared with; the others count as unlike. The audit
plants copies and so measures whether that loses any.

Sources: Kuglin and Hines, The Phase Correlation Image Alignment Method, 1975; Turin, An Introduction to Matched
Filters, 1960 (whitening).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.networks.layers import GaussianFilter
from torch import Tensor
from torch.nn import functional as F

from voxscore.errors import UserError

__all__ = ["UNLIKE", "Registration", "SearchGrid", "on_grid", "search_grid"]

UNLIKE = -1.0
"""The likeness of a pair that the coarse search passed over."""

LONGEST = 56  # voxels of the grid along the longest axis: half a second a query on one core
COARSE = 4
REACH = 4  # voxels a shift may have, a multiple of COARSE
PART = 0.75  # of the extent that is compared
SMOOTHING, COARSE_SMOOTHING = 1.0, 2.0  # standard deviation of G, voxels of the grid
REGULARISATION = 1e-3  # eps over the mean of P
SHORTLIST = 64  # pairs of a training volume and a mirroring compared on the full grid with each query, about
REFINED = 2  # of them turned
TURNS = (6.0, 3.0)  # degrees, steps of the coordinate search
FLIPS = [[axis for axis in range(3) if flip[axis]] for flip in product((False, True), repeat=3)]


class SearchGrid(NamedTuple):
    """The grid on which volumes are compared: RAS, cubic voxels, centred on the volume.

    Attributes:
        voxel: edge, mm.
        template: size of the part of a query that is compared, voxels.
        shape: of the whole grid, voxels.
    """

    voxel: float
    template: tuple[int, int, int]
    shape: tuple[int, int, int]


def search_grid(shapes: Sequence[Sequence[int]], affines: Sequence[np.ndarray]) -> SearchGrid:
    """The grid for a training set: its voxel size, or coarser so that the longest axis has 56 voxels at most.

    Args:
        shapes: of the volumes, voxels.
        affines: of them, voxel index to RAS mm, (4, 4).

    Raises:
        UserError: there is no volume, or they are too small to be compared.
    """
    if not shapes:
        raise UserError("training set", "is empty", "give the volumes that the model was trained on")
    extents, finest = [], math.inf
    for shape, affine in zip(shapes, affines, strict=True):
        axes = nib.orientations.io_orientation(affine)[:, 0].astype(int)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        finest = min(finest, float(spacing.min()))
        extent = np.empty(3)
        extent[axes] = np.asarray(shape) * spacing
        extents.append(extent)
    extent = np.median(extents, axis=0)
    voxel = max(finest, float(extent.max()) / LONGEST)
    sides = [COARSE * round(PART * side / (COARSE * voxel)) for side in extent]
    if min(sides) < 2 * COARSE:
        size = " x ".join(f"{side:.3g}" for side in extent)
        raise UserError("training set", f"has volumes of {size} mm at {voxel:.3g} mm", "give thicker volumes")
    x, y, z = sides
    return SearchGrid(voxel, (x, y, z), (x + 2 * REACH, y + 2 * REACH, z + 2 * REACH))


def on_grid(array: np.ndarray, affine: np.ndarray, grid: SearchGrid) -> Tensor:
    """A volume's ranks on the grid, 0 to 1, its middle in the grid's middle; its border goes on outside of it.

    Args:
        array: intensities, (X, Y, Z).
        affine: voxel index to RAS mm, (4, 4).
        grid: of the audit.

    Returns:
        (*grid.shape) float32.
    """
    turned = nib.orientations.apply_orientation(array, nib.orientations.io_orientation(affine))
    volume = torch.tensor(turned, dtype=torch.float32)[None, None]
    spacing = np.linalg.norm(nib.as_closest_canonical(nib.Nifti1Image(array, affine)).affine[:3, :3], axis=0)
    # As much smoothing as the coarser grid needs, and none for a finer one.
    sigma = [max((grid.voxel / s - 1) / 2, 0.0) for s in spacing]
    if any(sigma):
        pad = [math.ceil(4 * s) for s in reversed(sigma) for _ in range(2)]
        smooth = GaussianFilter(3, [max(s, 1e-3) for s in sigma])(F.pad(volume, pad, mode="replicate"))
        volume = middle_part(smooth, volume.shape[2:])
    return _ranks(_sampled(volume, torch.eye(3), grid, torch.tensor(spacing, dtype=torch.float32))[0])


def _ranks(volume: Tensor) -> Tensor:
    flat = volume.flatten()
    ranks = torch.empty_like(flat)
    ranks[flat.argsort(stable=True)] = torch.linspace(0, 1, len(flat))
    return ranks.reshape(volume.shape)


def _sampled(volume: Tensor, turn: Tensor, grid: SearchGrid, spacing: Tensor) -> Tensor:
    """Volumes (1, C, *spatial) of a spacing, turned (3, 3) about the middle, on the grid (C, *shape)."""
    axes = [(torch.arange(n) - (n - 1) / 2) * grid.voxel for n in grid.shape]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) @ turn.T
    half = (torch.tensor(volume.shape[2:]) - 1) / 2 * spacing
    return F.grid_sample(volume, (place / half).flip(-1)[None], padding_mode="border", align_corners=True)[0]


class Registration:
    """The search, with the whitening of one training set.

    Args:
        training: volumes on the grid, (M, *grid.shape).
        grid: of the search.
    """

    def __init__(self, training: Tensor, grid: SearchGrid) -> None:
        self.grid, self.share = grid, len(training)
        self.mean = training.mean(0)
        sides = [torch.hann_window(n + 2, periodic=False)[1:-1] ** 0.25 for n in grid.shape]
        self.window = sides[0][:, None, None] * sides[1][:, None] * sides[2]
        whole = training - training.mean((1, 2, 3), keepdim=True)
        power = torch.stack([torch.fft.rfftn(volume * self.window).abs().square() for volume in whole]).mean(0)
        amplitude = (power + REGULARISATION * power.mean()).sqrt()
        frequencies = [*(torch.fft.fftfreq(n) for n in grid.shape[:2]), torch.fft.rfftfreq(grid.shape[2])]
        square = torch.stack(torch.meshgrid(*frequencies, indexing="ij")).square().sum(0)
        self.filter, self.coarse_filter = (
            torch.exp(-2 * (math.pi * s) ** 2 * square) / amplitude for s in (SMOOTHING, COARSE_SMOOTHING)
        )

    def _spectrum(self, volumes: Tensor) -> Tensor:
        return torch.fft.rfftn((volumes - self.mean) * self.window, dim=(-3, -2, -1))

    def _whitened(self, volumes: Tensor, response: Tensor) -> Tensor:
        return torch.fft.irfftn(self._spectrum(volumes) * response, s=self.grid.shape, dim=(-3, -2, -1))

    def likeness(self, queries: Tensor, references: Tensor, excluded: Tensor | None = None) -> Tensor:
        """s(q, x) of all pairs, `UNLIKE` for those that the coarse search passed over.

        Args:
            queries: on the grid, (n, *grid.shape).
            references: on the grid, (m, *grid.shape).
            excluded: pairs that may not be compared, such as a volume with itself, (n, m).

        Returns:
            (n, m), -1 to 1.
        """
        n, m = len(queries), len(references)
        excluded = torch.zeros(n, m, dtype=torch.bool) if excluded is None else excluded
        likeness = torch.full((n, m), UNLIKE)
        coarse = _Windows(self._coarse(references), self.grid)
        spectra, energy = self._prepared(references)
        for i, query in enumerate(queries):
            flipped = torch.stack([query.flip(flip) if flip else query for flip in FLIPS])
            found = coarse.peaks(self._coarse(flipped))
            found[:, excluded[i]] = -math.inf
            allowed = len(FLIPS) * int((~excluded[i]).sum())
            kept = found.flatten().topk(min(math.ceil(SHORTLIST * m / self.share), allowed)).indices
            flips, places = kept // m, kept % m
            used, at = flips.unique(return_inverse=True)
            templates = self._templates(flipped[used])
            peaks = torch.full_like(found, UNLIKE)
            peaks[flips, places] = self._peak(spectra[places] * templates[at], energy[places])
            likeness[i], which = peaks.max(0)
            for j in likeness[i].topk(min(REFINED, m)).indices.tolist():
                if likeness[i, j] > UNLIKE:
                    best = self._turned(flipped[which[j]], spectra[j], energy[j], float(likeness[i, j]))
                    likeness[i, j] = best
        return likeness.clamp(max=1)

    def _coarse(self, volumes: Tensor) -> Tensor:
        return F.avg_pool3d(self._whitened(volumes, self.coarse_filter)[:, None], COARSE)[:, 0]

    def _prepared(self, references: Tensor) -> tuple[Tensor, Tensor]:
        """Spectra of whitened references, and the norm of w_x(. + d) less its mean for every shift, (m, *shifts)."""
        box = torch.zeros(self.grid.shape)
        box[tuple(slice(n) for n in self.grid.template)] = 1
        box = torch.fft.rfftn(box).conj()
        spectra, energy = [], []
        for reference in references:
            white = self._whitened(reference, self.filter)
            spectra.append(torch.fft.rfftn(white))
            square, total = (
                _shifts(torch.fft.irfftn(torch.fft.rfftn(v) * box, s=self.grid.shape)) for v in (white.square(), white)
            )
            energy.append((square - total.square() / math.prod(self.grid.template)).clamp(min=1e-12).sqrt())
        return torch.stack(spectra), torch.stack(energy)

    def _templates(self, volumes: Tensor) -> Tensor:
        """Conjugate spectra of the middle parts of whitened queries, each of norm 1."""
        middle = middle_part(self._whitened(volumes, self.filter), self.grid.template)
        padded = torch.zeros(len(volumes), *self.grid.shape)
        padded[(slice(None), *(slice(n) for n in self.grid.template))] = _normalised(middle.flatten(1)).reshape(
            middle.shape
        )
        return torch.fft.rfftn(padded, dim=(-3, -2, -1)).conj()

    def _peak(self, products: Tensor, energy: Tensor) -> Tensor:
        correlation = torch.fft.irfftn(products, s=self.grid.shape, dim=(-3, -2, -1))
        return (_shifts(correlation) / energy).flatten(1).amax(1)

    def _turned(self, query: Tensor, spectrum: Tensor, energy: Tensor, best: float) -> float:
        """The likeness after a coordinate search for the turn."""
        turn, spacing = torch.eye(3), torch.full((3,), self.grid.voxel)
        for step in TURNS:
            tried = [_rotation(axis, sign * step) @ turn for axis in range(3) for sign in (1, -1)]
            turned = torch.stack([_sampled(query[None, None], t, self.grid, spacing)[0] for t in tried])
            peaks = self._peak(spectrum * self._templates(turned), energy)
            if float(peaks.max()) > best:
                best, turn = float(peaks.max()), tried[int(peaks.argmax())]
        return best


class _Windows:
    """All windows of coarse references, for a search by one matrix product."""

    def __init__(self, references: Tensor, grid: SearchGrid) -> None:
        self.size = tuple(n // COARSE for n in grid.template)
        windows = references
        for axis, n in enumerate(self.size):
            windows = windows.unfold(1 + axis, n, 1)
        self.count = len(references)
        self.rows = _normalised(windows.reshape(-1, math.prod(self.size)))

    def peaks(self, queries: Tensor) -> Tensor:
        """The largest correlation of each query (v, ...) with each reference: (v, m)."""
        rows = _normalised(middle_part(queries, self.size).flatten(1))
        return (rows @ self.rows.T).reshape(len(queries), self.count, -1).amax(2)


def middle_part(volumes: Tensor, size: Sequence[int]) -> Tensor:
    """The middle (..., *size) of volumes (..., *spatial)."""
    starts = [(n - s) // 2 for n, s in zip(volumes.shape[-3:], size, strict=True)]
    x, y, z = (slice(start, start + s) for start, s in zip(starts, size, strict=True))
    return volumes[..., x, y, z]


def _shifts(correlation: Tensor) -> Tensor:
    """Of a periodic correlation the lags at which the window lies within the grid."""
    lags = slice(2 * REACH + 1)
    return correlation[..., lags, lags, lags]


def _normalised(rows: Tensor) -> Tensor:
    rows = rows - rows.mean(1, keepdim=True)
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _rotation(axis: int, degrees: float) -> Tensor:
    """About one of the grid's axes, (3, 3)."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = torch.eye(3)
    i, j = (k for k in range(3) if k != axis)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix
