"""Closed forms on boxes, whose overlap, boundary distance and volume are known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from voxscore.errors import UserError
from voxscore.evaluation.overlap import (
    bootstrap_mean,
    label_volumes,
    paired_difference,
    score_labels,
    summary,
)

ONE = {1: "one"}
SPACING = (0.7, 1.1, 3.0)


def box(start=(8, 8, 8), size=(10, 10, 10), shape=(30, 30, 30), label=1):
    volume = np.zeros(shape, np.uint8)
    volume[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = label
    return volume


def score(a, b, spacing=(1, 1, 1), **options):
    (result,) = score_labels(a, b, spacing, ONE, **options)
    return result


def test_identical_maps_are_perfect():
    result = score(box(), box(), SPACING)
    assert (result.dice, result.hd95_mm, result.surface_dice) == (1, 0, 1)
    assert result.volume_ml == pytest.approx(1000 * 0.7 * 1.1 * 3 / 1000)
    assert result.volume_error_ml == result.relative_volume_error == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("k", [1, 3])
def test_a_shifted_box_has_the_dice_and_distance_of_the_shift(axis, k):
    """Ten voxels shifted by k share 10 - k; one whole face, over 5 % of the boundary, is off by k voxels."""
    start = [8, 8, 8]
    start[axis] += k
    result = score(box(start), box(), SPACING)
    assert result.dice == pytest.approx((10 - k) / 10, abs=1e-6)  # MONAI counts in float32
    assert result.hd95_mm == pytest.approx(k * SPACING[axis], rel=1e-6)
    assert result.volume_error_ml == 0


def test_hd95_ignores_a_spike_that_the_full_distance_would_see():
    spiked = box()
    spiked[18:28, 12, 12] = 1
    assert score(spiked, box()).hd95_mm < 2


def test_measures_are_symmetric_and_volume_error_is_not():
    a, b = box((5, 8, 8), (12, 9, 7)), box((8, 7, 9), (9, 10, 8))
    forth, back = score(a, b, SPACING), score(b, a, SPACING)
    for field in ("dice", "hd95_mm", "surface_dice"):
        assert getattr(forth, field) == pytest.approx(getattr(back, field), rel=1e-6)
    assert forth.volume_error_ml == -back.volume_error_ml > 0
    assert forth.relative_volume_error == pytest.approx(12 * 9 * 7 / (9 * 10 * 8) - 1)


def test_surface_dice_forgives_up_to_its_tolerance_and_no_further():
    shifted = box((8, 8, 9))  # by one voxel of 3 mm
    assert score(shifted, box(), SPACING, tolerance_mm=3.01).surface_dice == 1
    strict = score(shifted, box(), SPACING, tolerance_mm=2.9)
    assert 0.5 < strict.surface_dice < 1


def test_surface_dice_weighs_area_not_voxels():
    """A box of 20 voxels of 1 x 1 x 4 mm moves by 2 mm along x, beyond 1.5 mm: its two x faces are lost, 3200
    of 7200 mm². Counted in voxels they would be a third. The rims of the other faces, the last half
    millimetre of each end, and the cut corners are what the tolerance is for."""
    result = score(box((7, 5, 5), (20, 20, 20)), box((5, 5, 5), (20, 20, 20)), (1, 1, 4), tolerance_mm=1.5)
    assert result.surface_dice == pytest.approx(1 - 3200 / 7200, abs=0.05)


def test_a_label_in_one_map_only_costs_everything_and_in_none_is_not_scored():
    empty = np.zeros((30, 30, 30), int)
    for pair in ((box(), empty), (empty, box())):
        result = score(*pair)
        assert (result.dice, result.hd95_mm, result.surface_dice) == (0, math.inf, 0)
    assert score(empty, box()).relative_volume_error == -1
    assert score(box(), empty).relative_volume_error == math.inf
    nothing = score(empty, empty)
    assert all(math.isnan(v) for v in (nothing.dice, nothing.hd95_mm, nothing.surface_dice))
    assert math.isnan(nothing.relative_volume_error)


def test_labels_are_scored_apart_in_order_and_background_is_passed_over():
    reference = box() + box((20, 20, 20), (4, 4, 4), label=2)
    prediction = box((9, 8, 8)) + box((20, 20, 20), (4, 4, 4), label=2)
    scores = score_labels(prediction, reference, (1, 1, 1), {2: "two", 0: "background", 1: "one"})
    assert [(s.label, s.name) for s in scores] == [(2, "two"), (1, "one")]
    assert [s.dice for s in scores] == pytest.approx([1, 0.9], abs=1e-6)


def test_a_structure_at_the_edge_of_the_field_has_a_surface_there():
    full = np.ones((8, 8, 8), int)
    short = full.copy()
    short[0] = 0
    assert score(full, short).hd95_mm == 1


def test_arguments_are_not_changed_and_may_be_views():
    prediction, reference = box((9, 8, 8))[::-1].transpose(2, 1, 0), box()[::-1].transpose(2, 1, 0)
    before = prediction.copy(), reference.copy()
    assert score(prediction, reference).dice == pytest.approx(0.9, abs=1e-6)
    assert np.array_equal(prediction, before[0])
    assert np.array_equal(reference, before[1])


@pytest.mark.parametrize(
    ("prediction", "spacing", "tolerance"),
    [
        (box().astype(float), (1, 1, 1), 1),
        (box()[:-1], (1, 1, 1), 1),
        (box()[None], (1, 1, 1), 1),
        (box(), (1, 1), 1),
        (box(), (1, 0, 1), 1),
        (box(), (1, math.nan, 1), 1),
        (box(), (1, 1, 1), -1),
    ],
)
def test_nonsense_is_refused(prediction, spacing, tolerance):
    with pytest.raises(UserError):
        score_labels(prediction, box(), spacing, ONE, tolerance)


def test_summary_means_over_cases_and_counts_what_it_leaves_out():
    labels = {1: "one", 2: "two"}
    empty = np.zeros((30, 30, 30), int)
    two = box((20, 20, 20), (4, 4, 4), label=2)
    reference = box() + two
    cases = [
        score_labels(box((9, 8, 8)) + two, reference, (1, 1, 1), labels),  # Dice 0.9 and 1
        score_labels(box((8, 10, 8)), reference, (1, 1, 1), labels),  # 0.8 and missed
        score_labels(box(), box(), (1, 1, 1), labels),  # 1 and nothing to find
        score_labels(empty, empty, (1, 1, 1), labels),  # nothing at all
    ]
    one, second, both = summary(cases, np.random.default_rng(0))
    assert (one.label, second.label, both.label) == (1, 2, None)

    assert one.dice.mean == pytest.approx((0.9 + 0.8 + 1) / 3, abs=1e-6)
    assert one.dice.sd == pytest.approx(0.1, abs=1e-6)
    assert (one.dice.n, one.dice.infinite, one.dice.absent) == (3, 0, 1)
    assert one.hd95_mm.mean == pytest.approx((1 + 2 + 0) / 3)

    assert second.dice.mean == pytest.approx(0.5)
    assert (second.hd95_mm.mean, second.hd95_mm.n) == (0, 1)
    assert (second.hd95_mm.infinite, second.hd95_mm.absent) == (1, 2)
    assert math.isnan(second.hd95_mm.low)

    assert both.dice.mean == pytest.approx(((0.9 + 1) / 2 + (0.8 + 0) / 2 + 1) / 3, abs=1e-6)
    assert (both.hd95_mm.n, both.hd95_mm.infinite, both.hd95_mm.absent) == (2, 1, 1)
    assert both.volume_error_ml.mean == pytest.approx((0 - 0.064 / 2 + 0 + 0) / 4)


def test_summary_refuses_cases_that_do_not_match():
    rng = np.random.default_rng(0)
    with pytest.raises(UserError):
        summary([], rng)
    cases = [score_labels(box(), box(), (1, 1, 1), labels) for labels in ({1: "one"}, {1: "uno"})]
    with pytest.raises(UserError):
        summary(cases, rng)


def test_bootstrap_follows_its_seed_and_brackets_the_mean():
    values = np.random.default_rng(1).beta(9, 2, 40)
    first, again, other = (bootstrap_mean(values, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    assert first.low < first.mean < first.high
    assert first.mean == pytest.approx(values.mean())
    narrow = bootstrap_mean(values, np.random.default_rng(7), level=0.5)
    assert first.low < narrow.low < narrow.high < first.high


def test_bootstrap_width_is_the_standard_error():
    """For many cases the interval is mean +- 1.96 s / sqrt(n); 4 % covers the noise of 5000 resamples."""
    values = np.random.default_rng(2).normal(size=400)
    estimate = bootstrap_mean(values, np.random.default_rng(0))
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * estimate.sd / 20, rel=0.04)


def test_bootstrap_of_too_little_has_no_interval():
    rng = np.random.default_rng(0)
    single = bootstrap_mean([0.8, math.inf, math.nan], rng)
    assert (single.mean, single.n, single.infinite, single.absent) == (0.8, 1, 1, 1)
    assert math.isnan(single.sd)
    assert math.isnan(single.low)
    assert math.isnan(bootstrap_mean([], rng).mean)


def test_pairing_finds_a_small_steady_gain_that_the_spread_would_hide():
    generator = np.random.default_rng(3)
    base = generator.uniform(0.5, 0.95, 20)
    better = base + generator.normal(0.01, 0.005, 20)
    gain = paired_difference(better, base, np.random.default_rng(0))
    assert gain.mean == pytest.approx(better.mean() - base.mean())
    assert 0 < gain.low < gain.mean < gain.high
    assert gain.high - gain.low < bootstrap_mean(base, np.random.default_rng(0)).sd / 10
    loss = paired_difference(base, better, np.random.default_rng(0))
    assert (loss.mean, loss.low, loss.high) == pytest.approx((-gain.mean, -gain.high, -gain.low))


def test_pairs_that_are_not_finite_are_counted():
    nan, inf = math.nan, math.inf
    a, b = [1.0, nan, inf, inf, nan, 3.0], [0.5, 1, inf, 1, inf, 1.5]
    result = paired_difference(a, b, np.random.default_rng(0))
    assert (result.mean, result.n, result.infinite, result.absent) == (1.0, 2, 3, 1)
    with pytest.raises(UserError):
        paired_difference([1, 2], [1], np.random.default_rng(0))


def test_volume_is_the_voxel_count_times_the_determinant():
    sheared = np.array([[-0.7, 0, 0.4, 5], [0, 1.1, 1.0, -3], [0, 0, 3.0, 2], [0, 0, 0, 1]])
    labelmap = box() + box((20, 20, 20), (2, 3, 4), label=7)
    volumes = label_volumes(labelmap, sheared, {0: "background", 7: "small", 1: "large", 9: "absent"})
    voxel = 0.7 * 1.1 * 3.0 / 1000
    assert list(volumes) == ["small", "large", "absent"]
    assert volumes == pytest.approx({"small": 24 * voxel, "large": 1000 * voxel, "absent": 0})
    with pytest.raises(UserError):
        label_volumes(labelmap, sheared, {1: "same", 7: "same"})
