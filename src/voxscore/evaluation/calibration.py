r"""Does 90 % mean 90 %? Calibration of voxel probabilities, and of intervals for a volume.

Probabilities are calibrated if among the voxels given confidence c a share c is right. Over bins b of confidence,

    ECE = sum_b (n_b / n) |accuracy_b - confidence_b|,

of the largest probability of each voxel and whether its class is right (top label), or of the probability of class k
and whether the voxel is of class k (class by class). Sums over all voxels of all cases go into a bin, and the
difference is taken last: the mean of each case's own ECE, which is another convention, is larger, since what scatters
about zero between cases no longer cancels.

Which voxels count decides the number: far from every border a network is sure and right, and that is most of a scan.
A region chosen by the image or by the prediction, such as the predicted foreground with a margin, leaves calibrated
probabilities calibrated. One chosen by the truth does not: it drops the voxels where 5 % was said and nothing found,
and keeps those where something was.

A binned ECE of perfect probabilities is not 0 either, but of the order of 1 / sqrt(n_b), and probabilities all equal to
the prevalence have none; the Brier score and the negative log-likelihood, which are proper scores, judge sharpness too.

For a volume in mL the promise is an interval. If the truth and N samples of the posterior are exchangeable, their ranks
are uniform, and the truth lies between the i-th and j-th smallest sample with probability (j - i) / (N + 1), exactly.

Sources: Guo et al., On Calibration of Modern Neural Networks, ICML 2017; Kull et al., Beyond Temperature Scaling,
NeurIPS 2019 (class by class); Wilson, Probable Inference, 1927 (the interval of a share).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric
from torch import Tensor
from torch.nn import functional as F

from voxscore.errors import UserError
from voxscore.evaluation.overlap import label_volumes

__all__ = [
    "Calibration",
    "CalibrationMetric",
    "Coverage",
    "ReliabilityTable",
    "VolumeInterval",
    "dilated_foreground",
    "interval_coverage",
    "volume_interval",
    "voxel_calibration",
]


@dataclass(frozen=True, eq=False)
class ReliabilityTable:
    """Confidence against accuracy, in bins of equal width from 0 to 1.

    Attributes:
        confidence: (bins,), mean probability of the voxels in each bin; NaN where there are none.
        accuracy: (bins,), the share of them that were right; NaN where there are none.
        count: (bins,), how many they are.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 to 1; NaN without voxels."""
        if not self.count.sum():
            return float("nan")
        return float(np.nansum(self.count * np.abs(self.accuracy - self.confidence)) / self.count.sum())


@dataclass(frozen=True, eq=False)
class Calibration:
    """How far voxel probabilities can be trusted.

    Attributes:
        top_label: table of the largest probability of each voxel.
        classes: table of the probability of each class, in order.
        brier: mean over voxels of the squared distance of the probabilities to the truth, 0 to 2.
        nll: mean negative logarithm of the probability of the true class, nats; inf if a voxel gave it none.
    """

    top_label: ReliabilityTable
    classes: tuple[ReliabilityTable, ...]
    brier: float
    nll: float

    @property
    def ece(self) -> float:
        """Expected calibration error of the top label."""
        return self.top_label.ece

    @property
    def classwise_ece(self) -> float:
        """Mean over classes of their expected calibration errors."""
        return sum(table.ece for table in self.classes) / len(self.classes)


def voxel_calibration(probabilities: Tensor, labels: Tensor, bins: int = 15, mask: Tensor | None = None) -> Calibration:
    """Calibration of class probabilities over all voxels of all cases together.

    Args:
        probabilities: of K classes, which sum to 1 at each voxel, (B, K, *spatial).
        labels: integers 0 to K - 1, (B, 1, *spatial).
        bins: number of bins of equal width.
        mask: which voxels count, boolean (B, 1, *spatial); all by default. The module says how not to choose it.

    Raises:
        UserError: shapes do not fit, labels are not 0 to K - 1, or probabilities are not in 0 to 1.
    """
    tallies, scores = _tally(probabilities, labels, bins, mask)
    return _pool(tallies, scores)


class CalibrationMetric(CumulativeIterationMetric):
    """Calibration over cases that arrive in batches, from all processes.

    Call it with probabilities `y_pred` (B, K, *spatial) and integer labels `y` (B, 1, *spatial); cases may differ in
    size. `aggregate` gives the expected calibration error of the top label, `result` everything. Sums are in float64:
    MONAI's metric counts in float32, which stops at 16.7 million voxels, and means over cases.

    Args:
        bins: number of bins of equal width.
        margin: count only voxels within this many of the predicted foreground; None counts all.
    """

    def __init__(self, bins: int = 15, margin: int | None = None) -> None:
        super().__init__()
        self.bins, self.margin = bins, margin

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **_: Any) -> list[Tensor]:
        if y is None:
            raise UserError("calibration", "lacks the true labels", "give them as `y`")
        mask = None if self.margin is None else dilated_foreground(y_pred.argmax(dim=1, keepdim=True), self.margin)
        return list(_tally(y_pred, y, self.bins, mask))

    def result(self) -> Calibration:
        """Calibration over everything since the last reset.

        Raises:
            UserError: there has been nothing.
        """
        buffers = self.get_buffer()
        if buffers is None:
            raise UserError("calibration", "has seen no case", "call the metric before `aggregate`")
        return _pool(*buffers)

    def aggregate(self) -> Tensor:
        """Expected calibration error of the top label over everything since the last reset, ()."""
        return torch.tensor(self.result().ece, dtype=torch.float64)


def dilated_foreground(labels: Tensor, voxels: int) -> Tensor:
    """Where there is a label but 0, or one within so many voxels along every axis.

    Args:
        labels: integers, (B, 1, *spatial) of 1 to 3 axes.
        voxels: how far to reach; 0 is the foreground itself.

    Returns:
        Boolean, shaped like the labels.
    """
    pool = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}[labels.ndim]
    grown = (labels != 0).float()
    for _ in range(voxels):
        grown = pool(grown, kernel_size=3, stride=1, padding=1)
    return grown > 0


def _tally(probabilities: Tensor, labels: Tensor, bins: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums of each case in float64.

    Returns:
        (B, 1 + K, bins, 3): count, sum of confidence and number right, of the top label and of each class.
        (B, 2): sums of the Brier score and of the negative log-likelihood.
    """
    _check(probabilities, labels, bins, mask)
    tallies, scores = [], []
    for case, (p, y) in enumerate(zip(probabilities.flatten(2), labels.flatten(1).long(), strict=True)):
        if mask is not None:
            chosen = mask[case].flatten()
            p, y = p[:, chosen], y[chosen]
        p = p.double()
        confidence, guess = p.max(dim=0)
        rows = [_bin(confidence, guess == y, bins)]
        rows += [_bin(p[k], y == k, bins) for k in range(len(p))]
        of_truth = p.gather(0, y[None])[0]
        # |p - e_y|^2 = |p|^2 - 2 p_y + 1
        brier = (p.square().sum(dim=0) - 2 * of_truth + 1).sum()
        tallies.append(torch.stack(rows))
        scores.append(torch.stack([brier, -of_truth.log().sum()]))
    return torch.stack(tallies), torch.stack(scores)


def _check(probabilities: Tensor, labels: Tensor, bins: int, mask: Tensor | None) -> None:
    if probabilities.ndim < 3 or probabilities.shape[1] < 2 or not probabilities.is_floating_point():
        fault = f"are {probabilities.dtype} of shape {tuple(probabilities.shape)}"
        raise UserError("probabilities", fault, "give (B, K, *spatial) of two classes or more")
    if not ((probabilities >= -1e-6) & (probabilities <= 1 + 1e-6)).all():
        raise UserError("probabilities", "are not all between 0 and 1", "apply softmax to logits first")
    shape = (len(probabilities), 1, *probabilities.shape[2:])
    if labels.shape != shape:
        fault = f"have shape {tuple(labels.shape)}"
        raise UserError("labels", fault, f"give one integer for each voxel, {shape}; not one-hot")
    if not ((labels == labels.long()) & (labels >= 0) & (labels < probabilities.shape[1])).all():
        raise UserError("labels", "lie outside the classes", f"give integers 0 to {probabilities.shape[1] - 1}")
    if mask is not None and (mask.shape != shape or mask.dtype != torch.bool):
        raise UserError("mask", f"is {mask.dtype} of shape {tuple(mask.shape)}", f"give booleans {shape}")
    if bins < 1:
        raise UserError("bins", f"are {bins}", "give at least one")


def _bin(confidence: Tensor, right: Tensor, bins: int) -> Tensor:
    """(bins, 3): count, sum of confidence and number right."""
    index = (confidence * bins).long().clamp(0, bins - 1)
    columns = (torch.ones_like(confidence), confidence, right.to(confidence))
    return torch.stack([torch.bincount(index, weight, minlength=bins) for weight in columns], dim=1)


def _pool(tallies: Tensor, scores: Tensor) -> Calibration:
    total = tallies.sum(dim=0).cpu().numpy()
    brier, nll = scores.sum(dim=0).tolist()
    tables = []
    for count, confidence, right in total.transpose(0, 2, 1):
        some = np.where(count > 0, count, np.nan)
        tables.append(ReliabilityTable(confidence / some, right / some, count.round().astype(int)))
    n = tables[0].count.sum() or float("nan")
    return Calibration(tables[0], tuple(tables[1:]), float(brier / n), float(nll / n))


class Coverage(NamedTuple):
    """How often intervals held the truth.

    Attributes:
        share: of the cases.
        low: lower end of Wilson's interval of that share.
        high: upper end of the same.
        n: number of cases.
    """

    share: float
    low: float
    high: float
    n: int


def interval_coverage(
    lower: Sequence[float] | np.ndarray,
    upper: Sequence[float] | np.ndarray,
    truth: Sequence[float] | np.ndarray,
    level: float = 0.95,
) -> Coverage:
    """How often the truth lies in its interval, ends included, and how sure of that share one may be.

    Wilson's interval holds every share s for which the one found is within z sqrt(s (1 - s) / n) of it, and so has a
    width even where all or none were found. It supposes independent cases: one patient each, not one voxel.

    Args:
        lower: lower end for each case, (n,).
        upper: upper end for each case, (n,).
        truth: the true value of each case, (n,).
        level: of the interval of the share; not of the intervals under test.

    Raises:
        UserError: the three are not lists of one length with lower ends below upper ends, or hold NaN.
    """
    low, high, value = (np.asarray(v, dtype=float) for v in (lower, upper, truth))
    if value.ndim != 1 or not value.size or low.shape != value.shape or high.shape != value.shape:
        fault = f"have shapes {low.shape}, {high.shape} and {value.shape}"
        raise UserError("intervals and truth", fault, "give one number of each for each case")
    if not np.all(low <= high) or np.isnan(value).any():
        raise UserError("intervals and truth", "hold NaN or a lower end above its upper end", "leave out such cases")
    n = value.size
    share = float(np.mean((low <= value) & (value <= high)))
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = float(np.sqrt(z2 * share * (1 - share) / n + z2**2 / (4 * n**2))) / (1 + z2 / n)
    return Coverage(share, max(center - reach, 0.0), min(center + reach, 1.0), n)


class VolumeInterval(NamedTuple):
    """Volume of a structure as a posterior knows it, mL."""

    median_ml: float
    low_ml: float
    high_ml: float


def volume_interval(
    samples: np.ndarray, affine: np.ndarray, labels: Mapping[int, str], level: float = 0.95
) -> dict[str, VolumeInterval]:
    """Central interval of each label's volume from samples of a posterior of label maps.

    The ends are order statistics at ranks (N + 1) (1 -+ level) / 2, between neighbours by interpolation, which is what
    gives the interval its level if the samples are right; the ordinary quantile is too narrow for few samples.

    Args:
        samples: integer label maps, (N, X, Y, Z).
        affine: voxel index to mm, (4, 4).
        labels: name of each label; 0 is background and is passed over.
        level: probability that the interval should hold the truth.

    Returns:
        Median and interval by name.

    Raises:
        UserError: the samples are not integer volumes, or too few for the level: 39 are needed for 0.95.
    """
    samples = np.asarray(samples)
    if samples.ndim != 4:
        raise UserError("samples", f"have shape {samples.shape}", "give integer label maps (N, X, Y, Z)")
    if not 0 < level < 1:
        raise UserError("level", f"is {level}", "give a probability between 0 and 1")
    most = (len(samples) - 1) / (len(samples) + 1)  # what the smallest and the largest enclose
    if level > most + 1e-9:
        fault = f"are {len(samples)}, whose whole range has a level of {most:.2f}"
        least = int(np.ceil((1 + level) / (1 - level) - 1e-9))
        raise UserError("samples", fault, f"draw {least} for a level of {level:g}, or ask for less")
    cases = [label_volumes(sample, affine, labels) for sample in samples]
    probabilities = [0.5, (1 - level) / 2, (1 + level) / 2]
    return {
        name: VolumeInterval(*np.quantile([case[name] for case in cases], probabilities, method="weibull").tolist())
        for name in cases[0]
    }
