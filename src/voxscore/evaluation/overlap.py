r"""How well a label map agrees with a reference: per case, per label, in millimetres and millilitres.

Three numbers that fail in different ways belong together. Dice, 2|A ∩ B| / (|A| + |B|), judges bulk and is
blind to a thin spike; the 95th percentile of the Hausdorff distance sees the spike; the surface Dice asks
how much of the boundary a reader would not have to redraw at a stated tolerance. All are MONAI's, so that a
figure here can be set beside anybody else's; this module adds the parts that papers leave unsaid:

==========================  ======  =====  ============  ==========================================
label                       Dice    HD95   surface Dice  in the mean over cases
==========================  ======  =====  ============  ==========================================
in both                     MONAI   MONAI  MONAI         yes
in one only                 0       inf    0             Dice and surface Dice yes; HD95 no, counted
in neither                  NaN     NaN    NaN           no, counted
==========================  ======  =====  ============  ==========================================

This is nnU-Net's rule: finding nothing where there is nothing says little about segmentation and must not
raise the mean, while missing a label altogether costs the full Dice. An infinite distance has no mean, so
it is left out; read a mean HD95 together with its `infinite` count.

The unit of the bootstrap is the case, never the label or the voxel: labels of one patient err together.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

from voxscore.errors import UserError

__all__ = [
    "Estimate",
    "LabelScore",
    "LabelSummary",
    "bootstrap_mean",
    "label_volumes",
    "paired_difference",
    "score_labels",
    "summary",
]


@dataclass(frozen=True)
class LabelScore:
    """Agreement of one label in one case; the table in the module docstring has the rules for absence.

    Attributes:
        label: value of the label in the map.
        name: what the label is called.
        dice: Dice coefficient, 0 to 1.
        hd95_mm: the larger of the two directed 95th percentiles of the boundary distance, mm.
        surface_dice: share of the two boundaries within the tolerance of each other, 0 to 1.
        volume_ml: volume in the prediction, mL.
        reference_ml: volume in the reference, mL.
    """

    label: int
    name: str
    dice: float
    hd95_mm: float
    surface_dice: float
    volume_ml: float
    reference_ml: float

    @property
    def volume_error_ml(self) -> float:
        """Predicted minus reference volume, mL; positive is too large."""
        return self.volume_ml - self.reference_ml

    @property
    def relative_volume_error(self) -> float:
        """Volume error over the reference volume; NaN when both are empty, inf when only the reference is."""
        if self.reference_ml:
            return self.volume_error_ml / self.reference_ml
        return float("inf") if self.volume_ml else float("nan")


@dataclass(frozen=True)
class Estimate:
    """A mean over cases and how sure of it one may be.

    Attributes:
        mean: mean over the `n` finite values; NaN when there are none.
        sd: standard deviation between cases (n - 1); NaN below two cases.
        low: lower end of the bootstrap interval of the mean; NaN below two cases.
        high: upper end of the same.
        n: number of cases in the mean.
        infinite: cases left out because their value is infinite: a label was missed or invented.
        absent: cases left out because their value is NaN: there was nothing to score.
    """

    mean: float
    sd: float
    low: float
    high: float
    n: int
    infinite: int = 0
    absent: int = 0


@dataclass(frozen=True)
class LabelSummary:
    """Means over cases of one label, or (`label` None) of each case's mean over its labels."""

    label: int | None
    name: str
    dice: Estimate
    hd95_mm: Estimate
    surface_dice: Estimate
    volume_error_ml: Estimate


def score_labels(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float] | np.ndarray,
    labels: Mapping[int, str],
    tolerance_mm: float = 1.0,
) -> list[LabelScore]:
    """Scores every named label of one case.

    The Hausdorff percentile is MONAI's: boundary voxels of each mask, the percentile of either direction,
    the larger of the two (tools that pool both directions first report a little less). The surface Dice
    weighs each boundary element by its area in mm², which is what makes it fair to anisotropic voxels.

    Args:
        prediction: integer label map, (X, Y, Z).
        reference: integer label map on the same grid, (X, Y, Z).
        spacing: voxel size along the three stored axes, mm.
        labels: name of each label to score; 0 is background and is passed over.
        tolerance_mm: boundary error that a reader would accept, mm.

    Returns:
        One score per label, in the order of `labels`.

    Raises:
        UserError: the maps are not integer, not three-dimensional or not of one shape, or the spacing or
            tolerance makes no sense.
    """
    prediction, reference = _integer_map(prediction, "prediction"), _integer_map(reference, "reference")
    if prediction.shape != reference.shape:
        fault = f"has shape {prediction.shape}, the reference {reference.shape}"
        raise UserError("prediction", fault, "bring both to one grid before scoring")
    size = np.asarray(spacing, dtype=float)
    if size.shape != (3,) or not np.all(np.isfinite(size) & (size > 0)):
        raise UserError("spacing", f"is {size.tolist()}", "give three positive voxel sizes in mm")
    if not (np.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise UserError("tolerance_mm", f"is {tolerance_mm}", "give a distance in mm that is not negative")
    return [
        _score(prediction == label, reference == label, size, label, name, tolerance_mm)
        for label, name in labels.items()
        if label != 0
    ]


def _score(a: np.ndarray, b: np.ndarray, size: np.ndarray, label: int, name: str, tolerance_mm: float) -> LabelScore:
    voxel_ml = float(size.prod()) / 1000
    volume, reference = int(np.count_nonzero(a)) * voxel_ml, int(np.count_nonzero(b)) * voxel_ml
    # MONAI warns and mixes NaN with inf for empty masks; the rules for absence are ours, so they stay here.
    if not volume and not reference:
        nan = float("nan")
        return LabelScore(label, name, nan, nan, nan, 0.0, 0.0)
    if not volume or not reference:
        return LabelScore(label, name, 0.0, float("inf"), 0.0, volume, reference)

    # Nothing outside the box round both matters, and a whole CT takes MONAI seconds per label.
    spans = [np.flatnonzero((a | b).any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(span[0], span[-1] + 1) for span in spans)
    x, y = (torch.from_numpy(mask[box])[None, None] for mask in (a, b))
    mm = size.tolist()
    dice = compute_dice(x.float(), y.float())
    with warnings.catch_warnings():
        # MONAI 1.6 passes an argument to itself that it has deprecated; no caller can do anything about it.
        warnings.filterwarnings("ignore", "monai.metrics.utils get_mask_edges", FutureWarning)
        hd95 = compute_hausdorff_distance(x, y, include_background=True, percentile=95, spacing=mm)
        surface = compute_surface_dice(x, y, [tolerance_mm], include_background=True, spacing=mm, use_subvoxels=True)
    return LabelScore(label, name, dice.item(), hd95.item(), surface.item(), volume, reference)


def summary(
    cases: Sequence[Sequence[LabelScore]], rng: np.random.Generator, resamples: int = 5000
) -> list[LabelSummary]:
    """Means over cases: one row per label, and a last row over labels.

    The last row takes each case's mean over the labels it has, then treats that as the case's value; a case
    with one infinite HD95 is infinite there too, and is counted.

    Args:
        cases: scores of each case, as `score_labels` returns them, all with the same labels in one order.
        rng: source of the bootstrap's draws; the same seed gives the same intervals.
        resamples: number of bootstrap samples.

    Returns:
        A row per label in the order of the scores, then the row over labels (`label` None).

    Raises:
        UserError: there are no cases, or the cases were scored on different labels.
    """
    keys = [[(score.label, score.name) for score in case] for case in cases]
    if not keys or not keys[0]:
        raise UserError("scores", "hold no case or no label", "score at least one label of one case")
    if any(key != keys[0] for key in keys):
        raise UserError("scores", "differ in labels between cases", "score all cases with one `labels`")

    # (cases, labels) for each measure
    dice, hd95, surface, error = (
        np.array([[getattr(score, field) for score in case] for case in cases], dtype=float)
        for field in ("dice", "hd95_mm", "surface_dice", "volume_error_ml")
    )

    def row(label: int | None, name: str, columns: Sequence[np.ndarray]) -> LabelSummary:
        return LabelSummary(label, name, *(bootstrap_mean(column, rng, resamples) for column in columns))

    tables = (dice, hd95, surface, error)
    rows = [row(*key, [table[:, i] for table in tables]) for i, key in enumerate(keys[0])]
    return [*rows, row(None, "all labels", [_mean_over_labels(table) for table in tables])]


def paired_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    rng: np.random.Generator,
    resamples: int = 5000,
) -> Estimate:
    """Mean of a - b over the same cases, with its bootstrap interval.

    Cases differ far more from each other than two methods do on one case; pairing removes that spread, so
    an interval that excludes 0 can be found with few cases. A pair with a value that is not finite is left
    out and counted.

    Args:
        a: one value per case, such as the Dice of the new method, (n,).
        b: the values of the other method on the same cases in the same order, (n,).
        rng: source of the bootstrap's draws.
        resamples: number of bootstrap samples.

    Returns:
        The estimate of the mean difference.

    Raises:
        UserError: a and b are not two lists of one length.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.ndim != 1 or first.shape != second.shape:
        fault = f"have shapes {first.shape} and {second.shape}"
        raise UserError("paired values", fault, "give both methods' values on the same cases, in one order")
    infinite = np.isinf(first) | np.isinf(second)
    # inf - inf is NaN, which would turn a case that both methods missed into one with nothing to score.
    difference = np.subtract(first, second, out=np.full_like(first, np.inf), where=~infinite)
    return bootstrap_mean(difference, rng, resamples)


def bootstrap_mean(
    values: Sequence[float] | np.ndarray,
    rng: np.random.Generator,
    resamples: int = 5000,
    level: float = 0.95,
) -> Estimate:
    """Mean of the finite values with the percentile bootstrap interval of that mean (Efron 1979).

    Below about ten cases the interval is too narrow; report the cases themselves then.

    Args:
        values: one value per case, (n,); NaN and inf are left out and counted.
        rng: source of the draws.
        resamples: number of bootstrap samples.
        level: coverage aimed at, between 0 and 1.

    Returns:
        The estimate.
    """
    every = np.asarray(values, dtype=float)
    kept = every[np.isfinite(every)]
    n = kept.size
    left_out = {"infinite": int(np.isinf(every).sum()), "absent": int(np.isnan(every).sum())}
    nan = float("nan")
    if n < 2:
        return Estimate(float(kept[0]) if n else nan, nan, nan, nan, n, **left_out)
    means = kept[rng.integers(0, n, size=(resamples, n))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(kept.mean()), float(kept.std(ddof=1)), float(low), float(high), n, **left_out)


def label_volumes(labelmap: np.ndarray, affine: np.ndarray, labels: Mapping[int, str]) -> dict[str, float]:
    """Volume of each named label.

    The voxel's volume is the determinant of the affine, not the product of the spacing: the two part when
    a scanner's gantry was tilted and the grid is sheared.

    Args:
        labelmap: integer label map, (X, Y, Z).
        affine: voxel index to mm, (4, 4).
        labels: name of each label; 0 is background and is passed over.

    Returns:
        Volume in mL by name; 0 for a label that does not occur.

    Raises:
        UserError: the map is not an integer volume, or two labels share a name.
    """
    labelmap = _integer_map(labelmap, "label map")
    names = [name for label, name in labels.items() if label != 0]
    if len(set(names)) < len(names):
        raise UserError("labels", f"share a name: {sorted(names)}", "give every label a name of its own")
    voxel_ml = abs(float(np.linalg.det(np.asarray(affine, dtype=float)[:3, :3]))) / 1000
    return {name: int(np.count_nonzero(labelmap == label)) * voxel_ml for label, name in labels.items() if label != 0}


def _integer_map(labelmap: np.ndarray, subject: str) -> np.ndarray:
    labelmap = np.asarray(labelmap)
    if labelmap.ndim != 3 or labelmap.dtype.kind not in "biu":
        fault = f"is {labelmap.dtype} of shape {labelmap.shape}"
        raise UserError(subject, fault, "give an integer label map of shape (X, Y, Z)")
    return labelmap


def _mean_over_labels(table: np.ndarray) -> np.ndarray:
    """Row means of (cases, labels) that pass NaN over and keep inf; NaN for a row of NaN."""
    scored = ~np.isnan(table)
    total = np.where(scored, table, 0.0).sum(axis=1)
    count = scored.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
