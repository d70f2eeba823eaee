r"""Who is copied, and who is forgotten? The audit by groups of cases.

A generative model copies rare cases first, and drops them first; a mean over all cases shows neither. Cases are put in
thirds of what a label map says of them: the volume of the structure, the ratio of its first to its second label, and
how bright it is within its image. The thirds are those of the training set, so that each group holds a third of it. Of
each group the audit says

    density    part of the synthetic volumes in it over its part of the training volumes: 1 if as many are made
    flagged    part of its synthetic volumes that the copy audit flags
    recall     part of its real volumes that the synthetic set could have made

A real volume counts as one that could have been made if it lies within the distance of some synthetic volume to its
k-th nearest synthetic neighbour. Recall depends on how many synthetic volumes there are, so compare groups, not audits.

A data set without demographics has only such surrogates. They say nothing of groups that no label map shows.

Sources: Kynkaanniemi et al., Improved Precision and Recall Metric, NeurIPS 2019 (recall); Wilson, 1927 (intervals).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Subgroup", "case_traits", "covered", "subgroup_audit"]

NEIGHBOURS = 3
THIRDS = ("low", "middle", "high")


class Subgroup(NamedTuple):
    """A third of the training set, by one trait.

    Attributes:
        trait: which.
        third: "low", "middle" or "high".
        above: least value of the trait in it, not counted in; -infinity in the lowest.
        upto: greatest value, counted in.
        training: how many training volumes.
        held_out: how many held-out volumes.
        synthetic: how many synthetic volumes.
        density: share of the synthetic volumes over that of the training volumes.
        density_low: lower end of its 95 % interval.
        density_high: upper end.
        flagged: how many of its synthetic volumes are flagged.
        recall: share of its held-out volumes that could have been made; NaN if it has none.
        training_recall: the same of its training volumes.
    """

    trait: str
    third: str
    above: float
    upto: float
    training: int
    held_out: int
    synthetic: int
    density: float
    density_low: float
    density_high: float
    flagged: int
    recall: float
    training_recall: float


def case_traits(image: np.ndarray, labels: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """What a case is grouped by, of intensities of any scale.

    Args:
        image: intensities, (X, Y, Z).
        labels: label map on the same grid, 0 background, (X, Y, Z).
        affine: voxel index to mm, (4, 4).

    Returns:
        `volume`, mL of all labels; `ratio` of the first to the second label; `intensity`, mean rank of the structure's
        voxels in the image, 0 to 1. NaN where there is no such label.
    """
    counts = [int(np.count_nonzero(labels == value)) for value in (1, 2)]
    inside = labels > 0
    ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    ranks = np.empty(image.size)
    ranks[image.ravel().argsort(kind="stable")] = np.linspace(0, 1, image.size)
    return {
        "volume": float(np.count_nonzero(inside)) * ml,
        "ratio": counts[0] / counts[1] if counts[1] else math.nan,
        "intensity": float(ranks[inside.ravel()].mean()) if inside.any() else math.nan,
    }


def covered(real: Tensor, synthetic: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Which real volumes the synthetic set could have made.

    Args:
        real: features, (n, d).
        synthetic: features, (N, d).
        neighbours: k.

    Returns:
        (n,) bool; all False if there are no more than k synthetic volumes.
    """
    if len(synthetic) <= neighbours:
        return torch.zeros(len(real), dtype=torch.bool)
    between = torch.cdist(synthetic.double(), synthetic.double(), compute_mode="donot_use_mm_for_euclid_dist")
    radius = between.kthvalue(neighbours + 1, dim=1).values  # the nearest is itself
    distance = torch.cdist(real.double(), synthetic.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return (distance <= radius).any(1)


def subgroup_audit(
    training: Mapping[str, np.ndarray],
    held_out: Mapping[str, np.ndarray],
    synthetic: Mapping[str, np.ndarray],
    flagged: np.ndarray,
    held_out_covered: np.ndarray,
    training_covered: np.ndarray,
) -> list[Subgroup]:
    """The audit of each third of each trait; cases without a trait (NaN) are in none of its thirds.

    Args:
        training: values of each trait, (M,) each.
        held_out: likewise, (m,).
        synthetic: likewise, (N,).
        flagged: which synthetic volumes are flagged, (N,).
        held_out_covered: which held-out volumes could have been made, (m,).
        training_covered: which training volumes could have been made, (M,).

    Returns:
        Three for each trait that three training volumes or more have.
    """
    found = []
    for trait, values in training.items():
        known = values[np.isfinite(values)]
        if len(known) < 3:
            continue
        edges = [-math.inf, *np.quantile(known, [1 / 3, 2 / 3]), math.inf]
        made = np.isfinite(synthetic[trait])
        for third, above, upto in zip(THIRDS, edges, edges[1:], strict=False):
            own, other, new = (
                np.isfinite(v) & (v > above) & (v <= upto) for v in (values, held_out[trait], synthetic[trait])
            )
            share = int(own.sum()) / len(known)
            low, high = _wilson(int(new.sum()), int(made.sum()))
            part = int(new.sum()) / int(made.sum()) if made.any() else math.nan
            density, density_low, density_high = (v / share if share else math.nan for v in (part, low, high))
            found.append(
                Subgroup(
                    trait,
                    third,
                    float(above),
                    float(upto),
                    int(own.sum()),
                    int(other.sum()),
                    int(new.sum()),
                    density,
                    density_low,
                    density_high,
                    int((new & flagged).sum()),
                    float(held_out_covered[other].mean()) if other.any() else math.nan,
                    float(training_covered[own].mean()) if own.any() else math.nan,
                )
            )
    return found


def _wilson(count: int, n: int) -> tuple[float, float]:
    """95 % interval of a share."""
    if not n:
        return math.nan, math.nan
    z, p = 1.959964, count / n
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)
