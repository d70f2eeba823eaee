"""Membership inference against losses whose answer is known in closed form."""

import math

import pytest
import torch
from torch import Generator

from voxscore.errors import UserError
from voxscore.evaluation import Verdict, auc, membership_inference, rate_at_few_false_positives


def generator(seed=0):
    return Generator().manual_seed(seed)


def normal(n, shift=0.0, seed=0, levels=1):
    return torch.randn(n, levels, generator=generator(seed), dtype=torch.float64) + shift


def test_auc_counts_pairs_and_ties_half():
    training, held_out = torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([2.0, 3.0, 0.0])
    pairs = [1.0 * (a < b) + 0.5 * (a == b) for a in training for b in held_out]
    assert auc(training, held_out) == pytest.approx(float(sum(pairs)) / 12)
    assert auc(training, held_out) + auc(held_out, training) == pytest.approx(1)


def test_auc_of_two_normals():
    """Phi(d / sqrt 2) for losses d apart; the standard error of 4000 and 4000 is 0.006."""
    d = 0.8
    exact = 0.5 * (1 + math.erf(d / 2))
    assert auc(normal(4000, -d)[:, 0], normal(4000, seed=1)[:, 0]) == pytest.approx(exact, abs=0.02)


def test_rate_allows_one_stranger_in_a_hundred():
    held_out = torch.arange(200.0)
    # Two of 200 strangers may fall short of the threshold, so that it is the third smallest loss.
    assert rate_at_few_false_positives(torch.tensor([-1.0, 1.5, 1.9, 2.5]), held_out) == 0.75
    # With 42 none may.
    assert rate_at_few_false_positives(torch.tensor([-1.0, -0.5, 0.5, 2.5]), torch.arange(42.0)) == 0.5


def test_a_network_that_tells_nothing_passes():
    found = membership_inference(normal(166), normal(42, seed=1), [1.0], 1.0, generator())
    assert found.low < 0.5 < found.high
    assert found.p_value > 0.01
    assert found.finding().verdict is Verdict.PASS


def test_a_network_that_tells_fails():
    training, held_out = normal(166, -1.0, levels=3), normal(42, seed=1, levels=3)
    training[:, 0] += 1  # nothing shows at the first level
    found = membership_inference(training + 5, held_out + 5, [0.2, 1.0, 5.0], 1.0, generator())
    assert found.low < found.auc < found.high
    assert found.low > 0.6
    assert found.p_value == 1 / 1000
    assert found.finding().verdict is Verdict.FAIL
    assert found.rate > 0.02
    assert [gap.level for gap in found.gaps] == [0.2, 1.0, 5.0]
    assert abs(found.gaps[0].relative) < 0.08
    # Means of 5 and 4, with standard errors of 0.08 and 0.15.
    assert found.gaps[1].relative == pytest.approx(0.2, abs=0.08)
    assert found.gaps[1].auc == found.auc


def test_p_values_are_uniform_without_memorisation():
    found = [
        membership_inference(normal(30, seed=2 * k), normal(10, seed=2 * k + 1), [1.0], 1.0, generator(k)).p_value
        for k in range(120)
    ]
    share = sum(p <= 0.2 for p in found) / 120
    assert share == pytest.approx(0.2, abs=3 * (0.2 * 0.8 / 120) ** 0.5)


def test_too_few_volumes_are_inconclusive_and_say_how_many():
    found = membership_inference(normal(166), normal(6, seed=3), [1.0], 1.0, generator()).finding()
    assert found.verdict is Verdict.INCONCLUSIVE
    # 12 (0.15 / 1.96)^2 - 1/166 = 0.0643.
    assert "about 16 held-out volumes are needed" in found.sentence


@pytest.mark.parametrize(
    ("training", "levels", "query", "message"),
    [
        (normal(1), [1.0], 1.0, "have shape"),
        (normal(5), [1.0, 2.0], 1.0, "have shape"),
        (normal(5) * math.nan, [1.0], 1.0, "not all finite"),
        (normal(5), [1.0], 2.0, "query 2: is not a level"),
    ],
)
def test_bad_losses(training, levels, query, message):
    with pytest.raises(UserError, match=message):
        membership_inference(training, normal(9), levels, query, generator())
