"""The copy audit by one measure of likeness: its controls, its tests, and what they say.

The tests are those of `copies`. Whether they can be believed is asked in every run, with volumes whose answer is known:

    planted copies      training volumes with 5 % noise, shifted by up to two voxels: every one must be flagged with
                        its own source the nearest, by one measure at least
    training volumes    each against all others: fresh to them, so as many may be flagged as the level says

Where the second fails, the held-out set is of another kind than the training set and its threshold means nothing.

Besides the flags, of which some are always due to chance, a volume is called a *copy* if its likeness is nearer to
the weakest planted copy than to the most alike held-out volume, and at least as far above the latter as that is above
the median held-out volume. One copy is enough to fail: were the likeness of strangers to fall off exponentially, as
maxima do, then with n held-out volumes one stranger in about (2 n)^2 / 2 would go so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from voxscore.evaluation.copies import (
    CopyCount,
    NearestShare,
    copy_count,
    detectable_share,
    distance_ratio,
    held_out_needed,
    nearest_share,
)
from voxscore.evaluation.verdict import Finding, Verdict

__all__ = [
    "LEVEL",
    "PLANTED",
    "CopyAudit",
    "Likeness",
    "audit_copies",
    "control_finding",
    "planted_copy",
    "power_finding",
    "refused",
]

LEVEL = 0.05
"""Part of fresh volumes that are flagged."""
PLANTED = 30
"""How many copies are planted in every run."""
SIGNIFICANCE = 0.01  # of each test
TOLERATED = 0.15  # the part of copies that must not go unnoticed by their number
PERMUTATIONS = 999
NOISE, SHIFT = 0.05, 2.0  # of a planted copy: of the range of intensities, and voxels along each axis


def planted_copy(array: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A training volume that a positive control plants: shifted, intensities cut at 0.5 and 99.5 %, noise added.

    Args:
        array: intensities, (X, Y, Z).
        generator: of shift and noise.

    Returns:
        (X, Y, Z) float32.
    """
    low, high = np.percentile(array, [0.5, 99.5])
    shift = generator.uniform(-SHIFT, SHIFT, 3)
    volume = torch.tensor(np.clip(array, low, high), dtype=torch.float32)[None, None]
    # Half the extent is 1 to `affine_grid`, whose first axis is the last of the volume.
    half = (np.array(array.shape) - 1) / 2
    theta = torch.cat([torch.eye(3), torch.tensor((shift / half)[::-1].copy(), dtype=torch.float32)[:, None]], dim=1)
    place = F.affine_grid(theta[None], [1, 1, *array.shape], align_corners=True)
    moved = F.grid_sample(volume, place, padding_mode="border", align_corners=True)[0, 0].numpy()
    return (moved + generator.normal(0, NOISE * (high - low), array.shape)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Likeness:
    """Likeness of every pair that the audit looks at, at most 1, all measured in the same way.

    Attributes:
        synthetic: to training volumes, (N, M).
        synthetic_held_out: to held-out volumes, (N, m).
        held_out: of held-out to training volumes, (m, M).
        training: of some training volumes to the training volumes, -1 to themselves, (L, M).
        planted: of planted copies to training volumes, (P, M).
        sources: which training volume each planted copy is one of, (P,).
    """

    synthetic: Tensor
    synthetic_held_out: Tensor
    held_out: Tensor
    training: Tensor
    planted: Tensor
    sources: Tensor


@dataclass(frozen=True, eq=False)
class CopyAudit:
    """What one measure says.

    Attributes:
        measure: its name.
        nearest: of each synthetic volume the place of the nearest training volume, (N,).
        scores: likeness to it, (N,).
        ratios: distance ratio, (N,).
        held_out_scores: likeness of each held-out volume to its nearest training volume, (m,).
        count: of flagged volumes; None if the held-out volumes are too few for a threshold.
        control: of flagged training volumes, each against the others; None likewise.
        ratio_count: of volumes with a smaller distance ratio than held-out ones have; None likewise.
        share: nearer to training than to held-out volumes.
        copy_level: the likeness from which a volume is called a copy.
        copies: which, (N,).
        planted_found: which planted copies are flagged with their source, (P,).
        planted_likeness: of each planted copy to its source, (P,).
    """

    measure: str
    nearest: Tensor
    scores: Tensor
    ratios: Tensor
    held_out_scores: Tensor
    count: CopyCount | None
    control: CopyCount | None
    ratio_count: CopyCount | None
    share: NearestShare
    copy_level: float
    copies: Tensor
    planted_found: Tensor
    planted_likeness: Tensor

    @property
    def refused(self) -> Tensor:
        """Which synthetic volumes are not to be released, (N,): flagged ones and copies."""
        return self.copies if self.count is None else self.copies | self.count.flagged

    def findings(self) -> list[Finding]:
        """One for each test."""
        found = [self._copies()]
        if self.count is not None and self.control is not None and self.ratio_count is not None:
            found += [self._control(self.control), self._count(self.count), self._ratio(self.ratio_count)]
        return [*found, self._share()]

    def _control(self, control: CopyCount) -> Finding:
        n = len(control.flagged)
        right = control.low <= control.count <= control.high or control.count / n <= LEVEL
        sentence = (
            f"{control.count} of {n} real volumes are flagged against the other training volumes, "
            f"expected {control.expected:.1f} ({control.low} to {control.high})"
        )
        if not right:
            sentence += "; the held-out set is not of the training set's kind"
        return self._finding("negative control", Verdict.PASS if right else Verdict.INCONCLUSIVE, sentence)

    def _copies(self) -> Finding:
        n, planted = int(self.copies.sum()), int((self.planted_likeness >= self.copy_level).sum())
        sentence = (
            f"{n} of {len(self.copies)} volumes are as like a training volume as hardly any stranger would be, "
            f"{self.copy_level:.2f} or more ({planted} of {len(self.planted_likeness)} planted copies are)"
        )
        return self._finding("copies", Verdict.FAIL if n else Verdict.PASS, sentence)

    def _count(self, count: CopyCount) -> Finding:
        sentence = (
            f"{count.count} of {len(count.flagged)} volumes are flagged, "
            f"fresh ones would be {count.expected:.1f} ({count.low} to {count.high}), p = {count.p_value:.2g}"
        )
        return self._finding("flagged volumes", _tested(count.p_value), sentence)

    def _ratio(self, count: CopyCount) -> Finding:
        sentence = (
            f"{count.count} of {len(count.flagged)} volumes stand out to one training volume by distance ratio, fresh "
            f"ones would be {count.expected:.1f} ({count.low} to {count.high}), p = {count.p_value:.2g}"
        )
        return self._finding("distance ratio", _tested(count.p_value), sentence)

    def _share(self) -> Finding:
        share = self.share
        sentence = (
            f"{share.share:.1%} of volumes are nearer to training than to as many held-out volumes, "
            f"by chance 50 % ({share.low:.1%} to {share.high:.1%}), p = {share.p_value:.2g}"
        )
        return self._finding("nearest share", _tested(share.p_value), sentence)

    def _finding(self, test: str, verdict: Verdict, sentence: str) -> Finding:
        return Finding(f"{test}, {self.measure}", verdict, sentence)


def _tested(p_value: float) -> Verdict:
    return Verdict.FAIL if p_value <= SIGNIFICANCE else Verdict.PASS


def audit_copies(measure: str, likeness: Likeness, generator: Generator) -> CopyAudit:
    """All tests by one measure.

    Args:
        measure: its name.
        likeness: of all pairs.
        generator: of the permutations.

    Raises:
        UserError: an empty set, or a training set of one volume.
    """
    scores, nearest = likeness.synthetic.max(1)
    held_out, fresh = likeness.held_out.max(1).values, likeness.training.max(1).values
    ratios = distance_ratio(likeness.synthetic)
    share = nearest_share(likeness.synthetic, likeness.synthetic_held_out, PERMUTATIONS, generator)
    planted, at = likeness.planted.max(1)
    own = likeness.planted[torch.arange(len(planted)), likeness.sources]
    found = at == likeness.sources
    count = control = ratio_count = None
    if len(held_out) + 1 >= 1 / LEVEL:
        count, control = copy_count(scores, held_out, LEVEL), copy_count(fresh, held_out, LEVEL)
        ratio_count = copy_count(-ratios, -distance_ratio(likeness.held_out), LEVEL)
        found &= planted > count.threshold
    most = float(held_out.max())
    level = max((most + float(own.min())) / 2, 2 * most - float(held_out.median()))
    copies = scores >= max(level, most + 1e-6)
    return CopyAudit(
        measure,
        nearest,
        scores,
        ratios,
        held_out,
        count,
        control,
        ratio_count,
        share,
        level,
        copies,
        found,
        own,
    )


def control_finding(audits: Sequence[CopyAudit]) -> Finding:
    """Whether every planted copy was found, by one measure or another."""
    found = torch.stack([audit.planted_found for audit in audits])
    n, of = int(found.any(0).sum()), found.shape[1]
    each = ", ".join(f"{int(audit.planted_found.sum())} by {audit.measure}" for audit in audits)
    sentence = f"{n} of {of} planted copies were found with their source ({each})"
    return Finding("positive control", Verdict.PASS if n == of else Verdict.INCONCLUSIVE, sentence)


def power_finding(synthetic: int, held_out: int) -> Finding:
    """Whether the held-out set is large enough to tell, and how many volumes it would take.

    Args:
        synthetic: number of synthetic volumes.
        held_out: number of held-out volumes.
    """
    needed = held_out_needed(synthetic, TOLERATED, LEVEL, SIGNIFICANCE)
    if needed is None:
        sentence = f"{synthetic} synthetic volumes are too few to tell whether {TOLERATED:.0%} of them are copies"
        return Finding("size", Verdict.INCONCLUSIVE, f"{sentence}; make more")
    if held_out < needed:
        sentence = (
            f"{held_out} held-out volumes are too few to tell whether {TOLERATED:.0%} of the volumes are copies; "
            f"{needed} are needed"
        )
        return Finding("size", Verdict.INCONCLUSIVE, sentence)
    share = detectable_share(synthetic, held_out, LEVEL, SIGNIFICANCE)
    sentence = f"with {held_out} held-out volumes, {share:.1%} of loose copies would have been noticed by their number"
    return Finding("size", Verdict.PASS, sentence)


def refused(audits: Sequence[CopyAudit]) -> Tensor:
    """Which synthetic volumes are not to be released by any of the measures, (N,)."""
    return torch.stack([audit.refused for audit in audits]).any(0)
