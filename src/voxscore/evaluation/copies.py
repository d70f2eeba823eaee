r"""Are synthetic volumes copies of training volumes? Tests on similarities, whatever they were measured with.

A synthetic volume q is *flagged* where its likeness to the nearest of the M training volumes,

    s(q) = max_i s(q, x_i),

exceeds a threshold tau. Volumes of one organ are alike without being copies, so tau comes from real volumes that were
not trained on. Everything turns on one line: **tau is a quantile of the held-out volumes' likeness to the training
set**, so that the volumes that set the threshold and those that are tested face the same M volumes. A threshold from
the nearest of N held-out volumes, applied to the nearest of M, calls 1 - (1 - a)^(M/N) of fresh volumes copies in
place of a.

Of n held-out likenesses tau is the k-th smallest, k = ceil((n + 1)(1 - a)). A fresh volume is then flagged with
probability (n + 1 - k) / (n + 1) <= a, whatever the distribution, and of N fresh volumes as many as

    K ~ BetaBinomial(N, n + 1 - k, k),

which is the permutation distribution: relabel the n + N volumes at random and count again. It needs n >= 1/a - 1, and
is wide for a small n, because the threshold itself is a random one. The audit says which part of copies it would have
missed (`detectable_share`) and how many held-out volumes it would take not to (`held_out_needed`).

Whether the synthetic set lies nearer to the training set than to the held-out one needs no threshold. With m volumes
of each, drawn at random from the larger set, the *nearest share* is the part of synthetic volumes that are nearer to
one of the training volumes than to any held-out one. It is 1/2 if nothing was memorised, however typical or smooth
synthetic volumes are, since training and held-out volumes are then exchangeable: permuting their labels gives the null
distribution. The expectation over the draws is exact: with k training volumes of M nearer than the nearest of the m
held-out ones, no draw of m has any of the k with probability C(M - k, m) / C(M, m).

The *distance ratio* (1 - s_1) / (1 - s_2) of the nearest and the second nearest training volume is near 0 for a copy
and near 1 for a volume that is merely typical.

Sources: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005 (the rank that makes a threshold
exact); Yoon et al., ICML 2023 workshop (the ratio); Dar et al., Unconditional Latent Diffusion Models Memorize Patient
Imaging Data, 2024 (the nearest of the training set, and the percentile of the other pool's likeness).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from voxscore.errors import UserError

__all__ = [
    "CopyCount",
    "NearestShare",
    "copy_count",
    "copy_threshold",
    "detectable_share",
    "distance_ratio",
    "held_out_needed",
    "nearest_share",
]

POWER = 0.8
MOST_STEPS = 50  # more held-out volumes than 50 / level hardly help


@dataclass(frozen=True, eq=False)
class CopyCount:
    """How many synthetic volumes are flagged, and how many fresh ones would be.

    Attributes:
        threshold: of the likeness.
        flagged: (N,), which.
        count: of the flagged.
        expected: of N fresh volumes.
        low: 2.5 % quantile of the count of N fresh volumes.
        high: 97.5 % quantile of it.
        p_value: probability that as many fresh volumes are flagged.
    """

    threshold: float
    flagged: Tensor
    count: int
    expected: float
    low: int
    high: int
    p_value: float


def copy_threshold(held_out: Tensor, level: float = 0.05) -> float:
    """The likeness that a fresh volume exceeds with probability `level` or less.

    Args:
        held_out: likeness of each held-out volume to its nearest training volume, (n,).
        level: a.

    Raises:
        UserError: fewer than 1 / level - 1 held-out volumes, so that no likeness is rare enough.
    """
    return float(held_out.sort().values[_rank(len(held_out), level) - 1])


def _rank(n: int, level: float) -> int:
    """k of the module's first lines."""
    # A level such as 0.05 is not exact in binary: (19 + 1) * 0.95 must not round up to 20.
    k = math.ceil((n + 1) * (1 - level) - 1e-9)
    if k > n:
        least = math.ceil(1 / level - 1 - 1e-9)
        raise UserError("held-out set", f"has {n} volumes", f"a level of {level:g} needs {least} at least")
    return k


def copy_count(synthetic: Tensor, held_out: Tensor, level: float = 0.05) -> CopyCount:
    """Counts the synthetic volumes that are nearer to the training set than held-out volumes are.

    Args:
        synthetic: likeness of each synthetic volume to its nearest training volume, (N,).
        held_out: the same of the held-out volumes, (n,), measured in the same way against the same training volumes.
        level: part of fresh volumes that may be flagged.

    Raises:
        UserError: too few held-out volumes, as for `copy_threshold`.
    """
    threshold = copy_threshold(held_out, level)
    flagged = synthetic > threshold
    n, k, count = len(held_out), _rank(len(held_out), level), int(flagged.sum())
    tail = _tail(len(synthetic), n, k)
    return CopyCount(
        threshold,
        flagged,
        count,
        len(synthetic) * (n + 1 - k) / (n + 1),
        _quantile(tail, 0.025),
        _quantile(tail, 0.975),
        min(float(tail[count]), 1.0),
    )


def _tail(fresh: int, n: int, k: int) -> Tensor:
    """P(K >= j) for j = 0 ... fresh, K of N fresh volumes flagged by the k-th smallest of n likenesses."""
    j = torch.arange(fresh + 1, dtype=torch.float64)
    a, b, total = torch.tensor([n + 1 - k, k, fresh], dtype=torch.float64)
    log_beta = torch.lgamma(j + a) + torch.lgamma(total - j + b) - torch.lgamma(total + a + b)
    log_choose = torch.lgamma(total + 1) - torch.lgamma(j + 1) - torch.lgamma(total - j + 1)
    log_norm = math.lgamma(float(a)) + math.lgamma(float(b)) - math.lgamma(float(a + b))
    return (log_choose + log_beta - log_norm).exp().flip(0).cumsum(0).flip(0)


def _quantile(tail: Tensor, p: float) -> int:
    """The least j with P(K <= j) >= p."""
    below = 1 - torch.cat([tail[1:], tail.new_zeros(1)])
    return int((below >= p - 1e-12).nonzero()[0])


def detectable_share(synthetic: int, held_out: int, level: float = 0.05, significance: float = 0.01) -> float:
    """The least part of copies among the synthetic volumes that the count notices four times in five.

    A copy is here one that is always flagged; the others are fresh, and their number follows from the same threshold.

    Args:
        synthetic: N, how many.
        held_out: n, how many.
        level: of the flags.
        significance: of the test of the count.

    Returns:
        A share; 1 if even that many copies would go unnoticed.

    Raises:
        UserError: too few held-out volumes, as for `copy_threshold`.
    """
    k = _rank(held_out, level)
    noticed = _tail(synthetic, held_out, k) <= significance
    if not noticed.any():
        return 1.0
    least = int(noticed.nonzero()[0])
    for copies in range(1, synthetic + 1):
        fresh = synthetic - copies
        missing = least - copies
        power = 1.0 if missing <= 0 else 0.0 if missing > fresh else float(_tail(fresh, held_out, k)[missing])
        if power >= POWER:
            return copies / synthetic
    return 1.0


def held_out_needed(synthetic: int, share: float, level: float = 0.05, significance: float = 0.01) -> int | None:
    """A number of held-out volumes with which `share` of copies is noticed four times in five.

    Args:
        synthetic: N, how many.
        share: of copies among them.
        level: of the flags.
        significance: of the test of the count.

    Returns:
        The least multiple of 1 / level, less one, that does; None if the synthetic volumes are too few for any.
    """
    # A threshold is as good as it gets for its size where (n + 1) * level is whole.
    for j in range(1, MOST_STEPS):
        n = math.ceil(j / level - 1 - 1e-9)
        if detectable_share(synthetic, n, level, significance) <= share:
            return n
    return None


class NearestShare(NamedTuple):
    """Whether synthetic volumes are nearer to the training set than to the held-out one.

    Attributes:
        share: of synthetic volumes nearer to one of as many training volumes; 1/2 if nothing was memorised.
        low: 2.5 % quantile of the share when training and held-out labels are permuted.
        high: 97.5 % quantile of it.
        p_value: how probable a share as large is.
    """

    share: float
    low: float
    high: float
    p_value: float


def nearest_share(training: Tensor, held_out: Tensor, permutations: int, generator: Generator) -> NearestShare:
    """The share of synthetic volumes nearer to training than to held-out volumes, sets of one size, and its null.

    Args:
        training: likeness of each synthetic volume to each training volume, (N, M).
        held_out: likeness to each held-out volume, (N, m), measured in the same way.
        permutations: how many relabellings of the real volumes are drawn.
        generator: where they come from.

    Raises:
        UserError: a set is empty, or there is no permutation.
    """
    if min(*training.shape, held_out.shape[1]) < 1 or permutations < 1:
        raise UserError("nearest share", "lacks volumes or permutations", "give one of each at least")
    both = torch.cat([training, held_out], dim=1)
    order = both.argsort(dim=1, descending=True)
    n = training.shape[1]
    label = torch.zeros(both.shape[1], dtype=torch.bool)
    label[:n] = True
    share = _share(label[order])
    null = torch.stack(
        [_share(label[torch.randperm(len(label), generator=generator)][order]) for _ in range(permutations)]
    )
    as_large = int((null >= share - 1e-12).sum())
    low, high = torch.quantile(null, torch.tensor([0.025, 0.975], dtype=null.dtype)).tolist()
    return NearestShare(float(share), low, high, (1 + as_large) / (1 + permutations))


def _share(is_training: Tensor) -> Tensor:
    """Mean probability that the nearest is a training volume, sets of one size; (N, M + m), nearest first -> ()."""
    n = int(is_training[0].sum())
    m = is_training.shape[1] - n
    if n >= m:
        # Training volumes before the first held-out one: a draw of m that holds none of them is not nearer.
        before = is_training.long().cumprod(1).sum(1)
        return 1 - _none_drawn(n, m, before).mean()
    before = (~is_training).long().cumprod(1).sum(1)
    return _none_drawn(m, n, before).mean()


def _none_drawn(total: int, drawn: int, special: Tensor) -> Tensor:
    """C(total - k, drawn) / C(total, drawn): a draw without replacement has none of k special ones."""
    k = special.double()
    top = total - k - drawn
    log = (
        torch.lgamma(total - k + 1)
        - torch.lgamma(top.clamp(min=0) + 1)
        - math.lgamma(total + 1)
        + math.lgamma(total - drawn + 1)
    )
    return torch.where(top < 0, 0.0, log.exp())


def distance_ratio(training: Tensor) -> Tensor:
    """Distance 1 - s to the nearest training volume over that to the second nearest, (N,): 0 for a copy, at most 1.

    Args:
        training: likeness, at most 1, of each volume to each training volume, (N, M).

    Raises:
        UserError: there are fewer than two training volumes.
    """
    if training.shape[1] < 2:
        raise UserError("training set", f"has {training.shape[1]} volume", "give two or more")
    first, second = (1 - training.topk(2, dim=1).values).clamp(min=0).unbind(1)
    return torch.where(first == 0, 0.0, first / second)
