r"""Similarity of two volumes' features: what the kernels of `mmd` and of the Vendi score are.

    RBF          k(x, y) = exp(-|x - y|^2 / (2 h^2))
    polynomial   k(x, y) = (x . y / d + 1)^3,   d features

A kernel's mean embedding, E k(x, .), is all that a kernel method sees of a distribution. The RBF kernel is
characteristic: no two distributions share one. The cubic kernel sees the first three moments only, and with few volumes
it is ruled by the largest features; but it has no bandwidth, so its numbers mean the same for every pair of sets.

Features are rows: (n, d), one row per volume, whatever network or measurement they come from.

Sources: Gretton et al., A Kernel Two-Sample Test, JMLR 13, 2012 (characteristic kernels, median bandwidth);
Binkowski et al., Demystifying MMD GANs, ICLR 2018 (the cubic kernel).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from voxscore.errors import UserError

__all__ = ["Kernel", "PolynomialKernel", "RBFKernel", "median_distance"]

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Features (n, d) and (m, d) to similarities (n, m)."""


@dataclass(frozen=True)
class RBFKernel:
    """exp(-|x - y|^2 / (2 h^2)).

    Args:
        bandwidth: h, in units of the features.

    Raises:
        UserError: the bandwidth is not a positive number.
    """

    bandwidth: float

    def __post_init__(self) -> None:
        if not 0 < self.bandwidth < float("inf"):
            raise UserError("bandwidth", f"is {self.bandwidth}", "give a positive number, such as the median distance")

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Similarities (n, m) of features (n, d) and (m, d)."""
        return torch.exp(-_distances(x, y).square() / (2 * self.bandwidth**2))


@dataclass(frozen=True)
class PolynomialKernel:
    """(x . y / d + 1)^3, the kernel of the Kernel Inception Distance."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Similarities (n, m) of features (n, d) and (m, d)."""
        return (x @ y.T / x.shape[1] + 1) ** 3


def median_distance(features: Tensor) -> float:
    """Median Euclidean distance of two different rows, the customary bandwidth of an RBF kernel.

    Pairs that coincide are left out, so that copies cannot bring it to 0.

    Args:
        features: (n, d).

    Raises:
        UserError: features are not finite rows, or all rows are equal.
    """
    rows = feature_rows(features, "features")
    above = torch.triu(torch.ones(len(rows), len(rows), dtype=torch.bool, device=rows.device), diagonal=1)
    distances = _distances(rows, rows)[above]
    distances = distances[distances > 0]
    if not len(distances):
        raise UserError("features", "are all equal", "a bandwidth needs two rows that differ")
    # Not torch.median, which takes the lower of the two in the middle; quantile() refuses more than 2^24.
    ordered, middle = distances.sort().values, len(distances) // 2
    return float((ordered[middle] + ordered[(len(distances) - 1) // 2]) / 2)


def feature_rows(features: Tensor, subject: str, least: int = 2) -> Tensor:
    """The features in float64.

    Raises:
        UserError: they are not `least` rows or more of finite numbers.
    """
    if features.ndim != 2 or len(features) < least or features.shape[1] < 1:
        fault = f"have shape {tuple(features.shape)}"
        raise UserError(subject, fault, f"give (n, d), a row for each of {least} volumes or more")
    if not torch.isfinite(features).all():
        raise UserError(subject, "are not all finite", "look for a volume or a layer that overflows")
    return features.detach().double()


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # The faster way by matrix products has no digits left for the distance of near copies.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
