"""Tests of likeness against enumeration, closed forms and what they promise of fresh volumes."""

from itertools import combinations

import pytest
import torch
from torch import Generator

from voxscore.errors import UserError
from voxscore.evaluation import (
    copy_count,
    copy_threshold,
    detectable_share,
    distance_ratio,
    held_out_needed,
    nearest_share,
)


def generator(seed=0):
    return Generator().manual_seed(seed)


@pytest.mark.parametrize(("n", "rank"), [(19, 19), (20, 20), (38, 38), (39, 38), (99, 95)])
def test_threshold_is_the_rank_that_a_fresh_volume_exceeds_once_in_twenty(n, rank):
    shuffled = torch.randperm(n, generator=generator()).double() + 1
    assert copy_threshold(shuffled) == rank
    assert (n + 1 - rank) / (n + 1) <= 0.05 < (n + 2 - rank) / (n + 1)


def test_too_few_held_out_volumes_are_refused_with_the_number_needed():
    with pytest.raises(UserError, match=r"has 18 volumes; a level of 0\.05 needs 19 at least"):
        copy_threshold(torch.arange(18.0))


@pytest.mark.parametrize("level", [0.25, 0.4])
def test_count_has_the_distribution_of_all_relabellings(level):
    """Of 5 held-out and 4 fresh likenesses, in all C(9, 4) = 126 ways."""
    ranks = torch.arange(9.0)
    counts, p_values = [], {}
    for chosen in combinations(range(9), 4):
        fresh = torch.zeros(9, dtype=torch.bool)
        fresh[list(chosen)] = True
        found = copy_count(ranks[fresh], ranks[~fresh], level)
        counts.append(found.count)
        p_values[found.count] = found.p_value
    counts = torch.tensor(counts)
    for count, p_value in p_values.items():
        assert p_value == pytest.approx(float((counts >= count).double().mean()), abs=1e-12)
    assert found.expected == pytest.approx(float(counts.double().mean()), abs=1e-12)
    assert (counts <= found.high).double().mean() >= 0.975
    assert (counts <= found.high - 1).double().mean() < 0.975


def test_the_threshold_of_the_other_pool_calls_fresh_volumes_copies():
    """Likenesses are uniform, so that of the nearest of M is u^(1/M)."""
    m, n, fresh, runs = 904, 226, 904, 40
    uniform = torch.rand(runs, n + fresh + m, generator=generator(), dtype=torch.float64)
    ours, theirs = [], []
    for held_out, synthetic, training in (row.split([n, fresh, m]) for row in uniform):
        ours.append(copy_count(synthetic ** (1 / m), held_out ** (1 / m)).count / fresh)
        # The customary way: each training volume's nearest of n sets the threshold for each synthetic one's of M.
        threshold = torch.quantile(training ** (1 / n), 0.95)
        theirs.append(float((synthetic ** (1 / m) > threshold).double().mean()))
    # 40 runs of a rate with standard deviation sqrt(0.05 * 0.95 / 226) = 0.0145 by the threshold.
    assert sum(ours) / runs == pytest.approx(0.05, abs=0.01)
    assert sum(theirs) / runs == pytest.approx(1 - 0.95 ** (m / n), abs=0.02)


def test_count_depends_on_the_order_alone():
    synthetic, held_out = torch.randn(30, generator=generator(1)), torch.randn(25, generator=generator(2))
    plain, bent = copy_count(synthetic, held_out), copy_count(synthetic.exp(), held_out.exp())
    assert plain.count == bent.count
    assert plain.p_value == bent.p_value
    assert torch.equal(plain.flagged, bent.flagged)


@pytest.mark.parametrize(("training", "held_out"), [(7, 3), (3, 7), (4, 4)])
def test_share_is_the_mean_over_all_draws_of_one_size(training, held_out):
    near, far = torch.rand(6, training, generator=generator(3)), torch.rand(6, held_out, generator=generator(4))
    size = min(training, held_out)
    draws = [
        (near[:, list(a)].amax(1) > far[:, list(b)].amax(1)).double().mean()
        for a in combinations(range(training), size)
        for b in combinations(range(held_out), size)
    ]
    found = nearest_share(near, far, 9, generator())
    assert found.share == pytest.approx(float(torch.stack(draws).mean()), abs=1e-12)


def test_share_of_copies_and_of_strangers():
    likeness = torch.rand(40, 60, generator=generator(5))
    copies = likeness[:, :45].clone()
    copies[torch.arange(40), torch.arange(40)] = 2
    found = nearest_share(copies, likeness[:, 45:], 199, generator())
    # Fifteen of 45 training volumes are drawn, and the source is one of them once in three times.
    strangers = nearest_share(likeness[:, :45], likeness[:, 45:], 199, generator())
    assert found.share == pytest.approx(1 / 3 + 2 / 3 * strangers.share, abs=0.05)
    assert found.p_value <= 0.01
    assert strangers.low < strangers.share < strangers.high
    # A volume that is like everything, as a smooth one is, says no more than another.
    smooth = likeness + torch.rand(40, 1, generator=generator(6))
    assert nearest_share(smooth[:, :45], smooth[:, 45:], 199, generator()) == strangers


def test_p_values_of_strangers_are_uniform():
    p = torch.tensor(
        [nearest_share(*torch.rand(8, 20, generator=generator(k)).split([14, 6], 1), 39, generator()).p_value
         for k in range(120)]
    )  # fmt: skip
    for level in (0.1, 0.5):
        assert float((p <= level).double().mean()) == pytest.approx(level, abs=3 * (level * (1 - level) / 120) ** 0.5)


def test_distance_ratio_in_closed_form():
    likeness = torch.tensor([[0.2, 0.9, 0.6], [1.0, 0.5, 0.0], [0.4, 0.4, 0.1], [1.0, 1.0, 0.0]])
    assert distance_ratio(likeness).tolist() == pytest.approx([0.25, 0, 1, 0])
    with pytest.raises(UserError, match="has 1 volume"):
        distance_ratio(likeness[:, :1])


def test_the_detectable_share_is_detected_four_times_in_five():
    n, fresh = 59, 100
    copies = round(detectable_share(fresh, n) * fresh)
    power = {}
    for number in (copies, copies - 2):
        held_out = torch.rand(2000, n, generator=generator(7))
        others = torch.rand(2000, fresh - number, generator=generator(8))
        seen = [
            copy_count(torch.cat([o, torch.full((number,), 2.0)]), h).p_value <= 0.01
            for o, h in zip(others[:600], held_out, strict=False)
        ]
        power[number] = sum(seen) / len(seen)
    # Standard error 0.016.
    assert power[copies] > 0.75
    assert power[copies - 2] < 0.85
    assert power[copies - 2] < power[copies]


def test_needed_held_out_volumes_suffice_and_fewer_do_not():
    needed = held_out_needed(200, 0.12)
    assert (needed + 1) % 20 == 0
    assert detectable_share(200, needed) <= 0.12 < detectable_share(200, needed - 20)
    # Three volumes are fewer than any number whose excess would be noticed.
    assert held_out_needed(3, 0.12) is None
