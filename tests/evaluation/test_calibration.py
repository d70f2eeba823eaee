"""Tables made by hand, whose errors are known, and what exchangeability and the binomial law promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from voxscore.errors import UserError
from voxscore.evaluation.calibration import (
    CalibrationMetric,
    dilated_foreground,
    interval_coverage,
    volume_interval,
    voxel_calibration,
)

close = pytest.approx


def binary(groups):
    """Voxels of two classes from (probability of class 1, voxels, of which class 1): (1, 2, n) and (1, 1, n)."""
    p = torch.cat([torch.full((n,), float(p), dtype=torch.float64) for p, n, _ in groups])
    y = torch.cat([(torch.arange(n) < ones).long() for _, n, ones in groups])
    return torch.stack([1 - p, p])[None], y[None, None]


def random_cases(shape=(4, 3, 6, 5, 4), seed=0):
    """Probabilities and labels that follow them."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.softmax(3 * torch.randn(shape, generator=generator, dtype=torch.float64), dim=1)
    flat = p.movedim(1, -1).reshape(-1, shape[1])
    y = torch.multinomial(flat, 1, generator=generator).reshape(shape[0], 1, *shape[2:])
    return p, y


def test_frequencies_that_are_the_probabilities_have_no_error():
    found = voxel_calibration(*binary([(0.1, 10, 1), (0.3, 20, 6), (0.5, 8, 4), (0.75, 40, 30), (1, 7, 7)]))
    assert found.ece == close(0, abs=1e-15)
    assert found.classwise_ece == close(0, abs=1e-15)


def test_known_errors():
    """Class 1 was said with 0.9 and found with 0.7, said with 0.2 and found with 0.4."""
    found = voxel_calibration(*binary([(0.9, 30, 21), (0.2, 10, 4)]))
    assert found.ece == close(0.2)
    assert [table.ece for table in found.classes] == close([0.2, 0.2])
    brier = 2 * (21 * 0.01 + 9 * 0.81 + 4 * 0.64 + 6 * 0.04) / 40
    assert found.brier == close(brier)
    nll = -(21 * math.log(0.9) + 9 * math.log(0.1) + 4 * math.log(0.2) + 6 * math.log(0.8)) / 40
    assert found.nll == close(nll)

    table = found.classes[1]
    filled = np.flatnonzero(table.count)
    assert filled.tolist() == [int(0.2 * 15), int(0.9 * 15)]
    assert table.count[filled].tolist() == [10, 30]
    assert table.confidence[filled] == close([0.2, 0.9])
    assert table.accuracy[filled] == close([0.4, 0.7])
    assert np.isnan(table.accuracy).sum() == 13


def test_opposite_errors_cancel_within_a_bin_only():
    groups = [(0.62, 10, 5), (0.64, 10, 10)]  # found with 0.5 and 1: 0.75 together, for 0.63
    probabilities, labels = binary(groups)
    assert voxel_calibration(probabilities, labels, bins=10).classes[1].ece == close(0.12)
    assert voxel_calibration(probabilities, labels, bins=100).classes[1].ece == close((0.12 + 0.36) / 2)


def test_top_label_is_blind_to_the_classes_below():
    """Class 0 has its 0.6, while 0.4 is split between the others the wrong way round."""
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)[None, :, None].expand(1, 3, 10)
    y = torch.tensor([0] * 6 + [1] * 1 + [2] * 3)[None, None]
    found = voxel_calibration(p, y)
    assert found.ece == close(0, abs=1e-15)
    assert [table.ece for table in found.classes] == close([0, 0.2, 0.2], abs=1e-15)
    assert found.classwise_ece == close(0.4 / 3)


def test_certainty_that_is_right_is_perfect_and_that_is_wrong_is_infinitely_bad():
    y = torch.tensor([[[0, 1, 1]]])
    right = torch.nn.functional.one_hot(y[0], 2).movedim(-1, 1).float()
    good, bad = voxel_calibration(right, y), voxel_calibration(1 - right, y)
    assert (good.ece, good.brier, good.nll) == (0, 0, 0)
    assert (bad.ece, bad.brier, bad.nll) == (1, 2, math.inf)
    assert good.classes[1].count.tolist() == [1, *[0] * 13, 2]


def test_neither_batches_nor_their_order_matter():
    p, y = random_cases()
    expected = voxel_calibration(p, y)
    for cut in ([[0, 1, 2, 3]], [[3], [1, 0], [2]]):
        metric = CalibrationMetric()
        for part in cut:
            metric(y_pred=p[part], y=y[part])
        found = metric.result()
        assert metric.aggregate().item() == close(expected.ece, rel=1e-12)
        for table, other in zip(
            (found.top_label, *found.classes), (expected.top_label, *expected.classes), strict=True
        ):
            assert np.array_equal(table.count, other.count)
            assert table.confidence == close(other.confidence, rel=1e-12, nan_ok=True)
            assert table.accuracy == close(other.accuracy, rel=1e-12, nan_ok=True)
        assert (found.brier, found.nll) == close((expected.brier, expected.nll), rel=1e-12)
    metric.reset()
    with pytest.raises(UserError, match="no case"):
        metric.aggregate()
    with pytest.raises(UserError, match="true labels"):
        metric(p)


def test_cases_of_different_size_in_monai_lists_weigh_by_their_voxels():
    p, y = random_cases()
    metric = CalibrationMetric()
    metric([MetaTensor(p[0]), MetaTensor(p[1][:, :3])], [MetaTensor(y[0].float()), MetaTensor(y[1][:, :3].float())])
    flat = [torch.cat([x[0].flatten(1), x[1][:, :3].flatten(1)], dim=1)[None] for x in (p, y)]
    assert metric.aggregate().item() == close(voxel_calibration(*flat).ece, rel=1e-12)


def test_errors_of_cases_cancel_before_the_modulus_is_taken():
    """Two patients, one with 0.4 and one with 0.6 where 0.5 was said: calibrated together."""
    cases = [binary([(0.5, 10, ones)]) for ones in (4, 6)]
    metric = CalibrationMetric()
    for probabilities, labels in cases:
        metric(probabilities, labels)
    assert [table.ece for table in metric.result().classes] == close([0, 0], abs=1e-15)


def test_only_voxels_of_the_mask_count():
    p, y = random_cases()
    mask = torch.rand(y.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    found = voxel_calibration(p, y, mask=mask)
    flat = [x.movedim(1, 0).flatten(1)[:, mask.flatten()][None] for x in (p, y)]
    expected = voxel_calibration(*flat)
    assert found.top_label.count.sum() == mask.sum()
    assert (found.ece, found.classwise_ece) == close((expected.ece, expected.classwise_ece))
    assert (found.brier, found.nll) == close((expected.brier, expected.nll))
    nothing = voxel_calibration(p, y, mask=torch.zeros_like(mask))
    assert math.isnan(nothing.ece)
    assert math.isnan(nothing.brier)


def test_the_margin_lies_around_the_predicted_foreground():
    p, y = random_cases((2, 2, 5, 6, 7))
    p[:, 0, 2:] = 0.6
    p[:, 1, 2:] = 0.4
    metric = CalibrationMetric(margin=1)
    metric(p, y)
    mask = dilated_foreground(p.argmax(1, keepdim=True), 1)
    assert not mask[:, :, 3:].any()
    assert metric.aggregate().item() == voxel_calibration(p, y, mask=mask).ece


def test_a_region_chosen_by_the_truth_spoils_what_is_calibrated():
    """One in ten is found where 0.1 is said. Keep a voxel if it, or its neighbour to the right, is of the class: of 200
    voxels the 20 of the class and 20 others are left, and half are right where 0.1 was said."""
    p, _ = binary([(0.1, 200, 0)])
    y = (torch.arange(200) % 10 == 9).long()[None, None]
    assert voxel_calibration(p, y).ece == close(0, abs=1e-12)
    by_truth = (y + y.roll(-1, 2)) > 0
    assert voxel_calibration(p, y, mask=by_truth).ece == close(0.4)
    by_image = (torch.arange(200) < 100)[None, None]
    assert voxel_calibration(p, y, mask=by_image).ece == close(0, abs=1e-12)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_dilation_is_a_cube(dims):
    labels = torch.zeros(1, 1, *[9] * dims, dtype=torch.int64)
    labels[(0, 0, *[4] * dims)] = 2
    for voxels in (0, 1, 3):
        grown = dilated_foreground(labels, voxels)
        inside = slice(4 - voxels, 5 + voxels)
        assert grown.sum() == (2 * voxels + 1) ** dims
        assert grown[(0, 0, *[inside] * dims)].all()


@pytest.mark.parametrize(
    "change",
    [
        {"probabilities": torch.full((1, 2, 4), 1.5)},
        {"probabilities": torch.full((1, 2, 4), math.nan)},
        {"probabilities": torch.full((1, 1, 4), 1.0)},
        {"probabilities": torch.ones(1, 2, 4, dtype=torch.int64)},
        {"labels": torch.full((1, 1, 4), 2)},
        {"labels": torch.full((1, 1, 4), -1)},
        {"labels": torch.full((1, 1, 4), 0.5)},
        {"labels": torch.zeros(1, 2, 4, dtype=torch.int64)},
        {"mask": torch.ones(1, 1, 4)},
        {"mask": torch.ones(1, 1, 3, dtype=torch.bool)},
        {"bins": 0},
    ],
)
def test_nonsense_is_refused(change):
    given = {"probabilities": torch.full((1, 2, 4), 0.5), "labels": torch.zeros(1, 1, 4, dtype=torch.int64)}
    voxel_calibration(**given)
    with pytest.raises(UserError):
        voxel_calibration(**{**given, **change})


def covered(found, n, level=0.95):
    lower = np.zeros(n)
    upper = np.where(np.arange(n) < found, 1.0, 0.1)
    return interval_coverage(lower, upper, np.full(n, 0.5), level)


@pytest.mark.parametrize(("found", "n"), [(38, 40), (1, 7), (0, 10), (10, 10)])
def test_the_ends_are_where_the_share_found_is_z_standard_errors_away(found, n):
    result = covered(found, n)
    assert (result.share, result.n) == (found / n, n)
    for end in (result.low, result.high):
        distance = abs(found / n - end)
        assert distance == close(1.959964 * math.sqrt(end * (1 - end) / n), abs=1e-7)
    assert 0 <= result.low < result.high <= 1


def test_the_interval_of_the_share_has_its_level():
    """By the binomial law, averaged over true shares; Wilson's interval is known to keep near to it at any n."""
    n = 20
    intervals = [covered(found, n) for found in range(n + 1)]
    held = []
    for truth in np.linspace(0.02, 0.98, 97):
        law = [math.comb(n, k) * truth**k * (1 - truth) ** (n - k) for k in range(n + 1)]
        held.append(sum(p for p, i in zip(law, intervals, strict=True) if i.low <= truth <= i.high))
    assert np.mean(held) == close(0.95, abs=0.01)
    assert min(held) > 0.83


def test_ends_count_as_within():
    assert interval_coverage([0, 1, 2], [1, 2, 3], [1, 1, 3.5]).share == 2 / 3


@pytest.mark.parametrize(
    ("lower", "upper", "truth"),
    [([1], [0], [0.5]), ([0, 0], [1], [0.5]), ([0], [1], [math.nan]), ([], [], []), ([math.nan], [1], [1])],
)
def test_intervals_that_are_none_are_refused(lower, upper, truth):
    with pytest.raises(UserError):
        interval_coverage(lower, upper, truth)


AFFINE = np.diag([0.5, 2.0, 3.0, 1.0])  # 3 mm^3


def maps(counts):
    """A label map of 8 x 10 x 10 for each count, with so many voxels of label 1 and twice as many of label 2."""
    samples = np.zeros((len(counts), 800), np.uint8)
    for sample, count in zip(samples, counts, strict=True):
        sample[:count], sample[count : 3 * count] = 1, 2
    return samples.reshape(-1, 8, 10, 10)


def test_volumes_are_in_millilitres_and_ends_are_ranks():
    counts = np.random.default_rng(0).permutation(np.arange(101, 140))
    found = volume_interval(maps(counts), AFFINE, {0: "background", 1: "one", 2: "two"})
    assert found["one"] == close((0.003 * 120, 0.003 * 101, 0.003 * 139))
    assert found["two"] == close((0.006 * 120, 0.006 * 101, 0.006 * 139))
    half = volume_interval(maps(counts), AFFINE, {1: "one"}, level=0.5)["one"]
    assert half == close((0.003 * 120, 0.003 * 110, 0.003 * 130))  # ranks 10 and 30 of 40


@pytest.mark.parametrize("level", [0.8, 0.5])
def test_an_exchangeable_truth_lies_in_the_interval_as_often_as_promised(level):
    """Each of twenty volumes in turn is the truth, the rest are samples; ranks (N + 1) (1 -+ level) / 2 are whole. The
    interval is closed at both ends and volumes do not tie: it holds ranks 2 + 0.5 to 19.5 of 20 for 0.8, and so on."""
    counts = np.arange(100, 120)
    held = []
    for i, truth in enumerate(counts):
        interval = volume_interval(maps(np.delete(counts, i)), np.eye(4), {1: "one"}, level)["one"]
        held.append(interval.low_ml <= truth / 1000 <= interval.high_ml)
    assert np.mean(held) == close(level)


def test_too_few_samples_for_a_level_are_refused_with_the_number_that_would_do():
    for n, level in ((38, 0.95), (8, 0.8), (2, 0.5)):
        with pytest.raises(UserError, match=r"draw (39|9|3) for"):
            volume_interval(maps(range(1, n + 1)), AFFINE, {1: "one"}, level)
        volume_interval(maps(range(1, n + 2)), AFFINE, {1: "one"}, level)
    for samples, level in ((maps([]), 0.5), (maps([1])[0], 0.5), (maps([1] * 9), 1.0), (maps([1] * 9), 0.0)):
        with pytest.raises(UserError):
            volume_interval(samples, AFFINE, {1: "one"}, level)
