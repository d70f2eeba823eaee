"""Groups of cases against counts done by hand."""

import numpy as np
import pytest
import torch

from voxscore.evaluation import case_traits, covered, subgroup_audit


def test_traits_by_hand():
    image, labels = np.arange(64.0).reshape(4, 4, 4), np.zeros((4, 4, 4), int)
    labels[3, :2] = 1
    labels[3, 2] = 2
    traits = case_traits(image, labels, np.diag([2.0, 1.0, 3.0, 1.0]))
    assert traits["volume"] == pytest.approx(12 * 6 / 1000)
    assert traits["ratio"] == 2
    # The voxels 48 to 59 of 0 to 63.
    assert traits["intensity"] == pytest.approx(53.5 / 63)
    assert case_traits(np.exp(image / 9), labels, np.eye(4))["intensity"] == pytest.approx(53.5 / 63)


def test_a_case_without_labels_has_no_ratio():
    traits = case_traits(np.arange(8.0).reshape(2, 2, 2), np.zeros((2, 2, 2), int), np.eye(4))
    assert traits["volume"] == 0
    assert np.isnan([traits["ratio"], traits["intensity"]]).all()


def test_covered_by_hand():
    """On a line at 0, 1, 2 and 10: the second neighbours are 2, 1, 2 and 9 away."""
    synthetic = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    real = torch.tensor([[-2.0], [-2.1], [4.0], [1.0], [19.0], [19.1], [5.0]])
    assert covered(real, synthetic, 2).tolist() == [True, False, True, True, True, False, True]
    assert not covered(real, synthetic, 4).any()


def test_groups_by_hand():
    training = {"size": np.arange(9.0)}
    held_out = {"size": np.array([0.0, 1.0, 4.0, np.nan])}
    synthetic = {"size": np.array([0.5, 0.5, 0.5, 4.0, 4.0, 100.0, np.nan])}
    flagged = np.array([True, False, True, False, False, True, True])
    found = subgroup_audit(
        training, held_out, synthetic, flagged, np.array([True, False, True, True]), np.arange(9) % 3 > 0
    )
    assert [group.third for group in found] == ["low", "middle", "high"]
    assert [group.training for group in found] == [3, 3, 3]
    assert [group.held_out for group in found] == [2, 1, 0]
    assert [group.synthetic for group in found] == [3, 2, 1]
    assert [group.flagged for group in found] == [2, 0, 1]
    assert [group.density for group in found] == pytest.approx([1.5, 1, 0.5])
    assert all(group.density_low < group.density < group.density_high for group in found)
    assert [group.recall for group in found[:2]] == [0.5, 1]
    assert np.isnan(found[2].recall)
    assert [group.training_recall for group in found] == pytest.approx([2 / 3] * 3)
    assert [group.above for group in found][1:] == [group.upto for group in found][:2]


def test_a_trait_that_nobody_has_makes_no_group():
    nothing = {"ratio": np.full(5, np.nan)}
    of_five = np.zeros(5, bool)
    assert subgroup_audit(nothing, nothing, nothing, of_five, of_five, of_five) == []


def test_density_interval_is_wilsons():
    """For 0 of n its upper end is z^2 / (n + z^2)."""
    training = {"size": np.arange(9.0)}
    synthetic = {"size": np.full(20, 8.0)}
    none = np.zeros(20, bool)
    low = subgroup_audit(training, training, synthetic, none, np.zeros(9, bool), np.zeros(9, bool))[0]
    z = 1.959964
    assert low.density == low.density_low == 0
    assert low.density_high == pytest.approx(3 * z**2 / (20 + z**2))
