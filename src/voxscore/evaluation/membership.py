r"""Does a network tell who it was trained on? Membership inference from its losses, and the generalisation gap.

A denoiser that has learned a distribution is as good on a new volume as on one of the training set. One that has
learned its training set is better there, and whoever holds the network can then guess from one query, the denoising
loss of a volume at one noise level, whether its patient was in the training set. With training losses l and held-out
losses l',

    AUC = P(l < l') + P(l = l') / 2,        1/2 for a network that tells nothing, 1 for one that tells all,

and the part of the training set that is recognised when hardly any stranger is, the true-positive rate at 1 % false
positives: a few people who are certainly recognised count more than an average. With fewer than 100 held-out volumes no
loss of a stranger is as rare as 1 %; the rate is then that below all of them.

Under no memorisation all losses are exchangeable, so permuting who was a training volume gives the p-value, and
drawing volumes of each set with replacement the interval. The losses must be made with the same noise levels and, for
each volume, noise of its own; augmentation in training does not matter.

The gap at a noise level is mean(l') - mean(l), relative to mean(l'). It says where a network memorises: usually at
middle levels, for at low ones noise is all there is to learn and at high ones the mean is.

Sources: Yeom et al., Privacy Risk in Machine Learning, CSF 2018 (the loss as the attack); Carlini et al., Membership
Inference Attacks From First Principles, 2022 (rates at few false positives); Rao et al., SimA, 2025 (one query of a
score network).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from voxscore.errors import UserError
from voxscore.evaluation.verdict import Finding, Verdict

__all__ = ["Gap", "Membership", "auc", "membership_inference", "rate_at_few_false_positives"]

FALSE_POSITIVES = 0.01
SIGNIFICANCE = 0.01
TOLERATED_AUC = 0.65  # what must not go unnoticed
DRAWS = 999


@dataclass(frozen=True)
class Gap:
    """The generalisation gap at a noise level.

    Attributes:
        level: sigma / alpha.
        training: mean loss of the training volumes.
        held_out: of the held-out ones.
        relative: (held_out - training) / held_out.
        auc: of membership by the loss at this level.
    """

    level: float
    training: float
    held_out: float
    relative: float
    auc: float


@dataclass(frozen=True)
class Membership:
    """What the losses tell of membership, by one query at one level and by the curve of all.

    Attributes:
        level: of the query, sigma / alpha.
        auc: of it; 1/2 tells nothing.
        low: 2.5 % quantile of its bootstrap.
        high: 97.5 % quantile of it.
        p_value: of an AUC as large if nothing was memorised.
        rate: true-positive rate at 1 % false positives.
        rate_low: 2.5 % quantile of its bootstrap.
        rate_high: 97.5 % quantile of it.
        gaps: at all levels.
        training: number of training volumes.
        held_out: number of held-out volumes.
    """

    level: float
    auc: float
    low: float
    high: float
    p_value: float
    rate: float
    rate_low: float
    rate_high: float
    gaps: tuple[Gap, ...]
    training: int
    held_out: int

    def finding(self) -> Finding:
        """FAIL if membership shows; INCONCLUSIVE if it might and the held-out set is too small."""
        sentence = (
            f"by one query at noise level {self.level:g} the network tells training from held-out volumes with AUC "
            f"{self.auc:.3f} ({self.low:.3f} to {self.high:.3f}), p = {self.p_value:.2g}; at 1 % false positives it "
            f"recognises {self.rate:.1%} of the training set"
        )
        if self.p_value <= SIGNIFICANCE:
            return Finding("membership", Verdict.FAIL, sentence)
        if self.high > TOLERATED_AUC:
            needed = held_out_for_auc(self.training)
            least = "more training volumes" if needed is None else f"{max(needed, self.held_out + 1)} held-out volumes"
            sentence += f"; too few to exclude an AUC of {TOLERATED_AUC:g}, about {least} are needed"
            return Finding("membership", Verdict.INCONCLUSIVE, sentence)
        return Finding("membership", Verdict.PASS, sentence)


def auc(training: Tensor, held_out: Tensor) -> float:
    """P(l < l') + P(l = l') / 2 of losses (M,) and (m,)."""
    return float(_auc(training[None], held_out[None]))


def _auc(training: Tensor, held_out: Tensor) -> Tensor:
    """Of rows (k, M) and (k, m): (k,)."""
    ordered = held_out.sort(dim=1).values.contiguous()
    below = torch.searchsorted(ordered, training.contiguous()) + torch.searchsorted(
        ordered, training.contiguous(), right=True
    )
    return 1 - below.double().mean(1) / (2 * held_out.shape[1])


def rate_at_few_false_positives(training: Tensor, held_out: Tensor) -> float:
    """The part of training losses below the loss that 1 % of strangers or fewer fall short of.

    Args:
        training: losses (M,).
        held_out: losses (m,).
    """
    return float(_rate(training[None], held_out[None]))


def _rate(training: Tensor, held_out: Tensor) -> Tensor:
    allowed = math.floor(FALSE_POSITIVES * held_out.shape[1] + 1e-9)
    threshold = held_out.sort(dim=1).values[:, allowed, None]
    return (training < threshold).double().mean(1)


def held_out_for_auc(training: int) -> int | None:
    """How many held-out volumes bring the interval of an AUC of 1/2 below what must not go unnoticed; None if none do.

    By the variance (1/M + 1/m + 1/(M m)) / 12 of the AUC of exchangeable losses (Mann and Whitney, 1947).
    """
    allowed = 12 * ((TOLERATED_AUC - 0.5) / 1.96) ** 2 - 1 / training
    return math.ceil((1 + 1 / training) / allowed) if allowed > 0 else None


def membership_inference(
    training: Tensor, held_out: Tensor, levels: Sequence[float], query: float, generator: Generator
) -> Membership:
    """What losses tell.

    Args:
        training: denoising loss of each training volume at each level, (M, L).
        held_out: the same of held-out volumes, (m, L).
        levels: sigma / alpha of the columns.
        query: the level whose loss is the attack, fixed before the losses are seen; one of `levels`.
        generator: of bootstrap and permutations.

    Raises:
        UserError: losses are not finite tables with a column for each level, a set has fewer than two volumes, or the
            query is no level.
    """
    for name, losses in {"training losses": training, "held-out losses": held_out}.items():
        if losses.ndim != 2 or len(losses) < 2 or losses.shape[1] != len(levels):
            raise UserError(
                name, f"have shape {tuple(losses.shape)}", f"give 2 volumes at {len(levels)} levels or more"
            )
        if not torch.isfinite(losses).all():
            raise UserError(name, "are not all finite", "look for a volume at which the network overflows")
    if query not in levels:
        raise UserError(f"query {query:g}", "is not a level", f"choose one of {list(levels)}")
    column = list(levels).index(query)
    own, other = training[:, column].double(), held_out[:, column].double()
    value, n = auc(own, other), len(own)

    both = torch.cat([own, other])
    order = torch.rand(DRAWS, len(both), generator=generator).argsort(dim=1)
    null = _auc(both[order[:, :n]], both[order[:, n:]])
    drawn = [x[torch.randint(len(x), (DRAWS, len(x)), generator=generator)] for x in (own, other)]
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(_auc(*drawn), ends).tolist()
    rate_low, rate_high = torch.quantile(_rate(*drawn), ends).tolist()
    gaps = []
    for k, level in enumerate(levels):
        a, b = float(training[:, k].double().mean()), float(held_out[:, k].double().mean())
        gaps.append(Gap(float(level), a, b, (b - a) / b if b else 0.0, auc(training[:, k], held_out[:, k])))
    return Membership(
        float(query),
        value,
        low,
        high,
        (1 + int((null >= value - 1e-12).sum())) / (1 + DRAWS),
        rate_at_few_false_positives(own, other),
        rate_low,
        rate_high,
        tuple(gaps),
        n,
        len(other),
    )
