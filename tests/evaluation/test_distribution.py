"""Distances against closed forms: samples made with exact moments, sets of two points, all permutations at once."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from monai.metrics import MMDMetric
from torch import nn

from voxscore.errors import UserError
from voxscore.evaluation.distribution import (
    FeatureDistanceMetric,
    frechet_distance,
    mmd,
    mmd_test,
    segmentation_features,
)
from voxscore.evaluation.kernels import PolynomialKernel, RBFKernel, median_distance
from voxscore.networks import ScoreUNet

close = pytest.approx


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sample(mean, root, n=40, seed=0):
    """n rows with exactly this mean (d,) and covariance root^T root, root (r, d)."""
    x = normal(n, len(root), seed=seed)
    white = torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(n - 1)
    return mean + white @ root


def test_commuting_gaussians():
    """|m_a - m_b|^2 + sum (s_a - s_b)^2 in the common eigenbasis."""
    basis = torch.linalg.qr(normal(3, 3)).Q
    s_a, s_b = torch.tensor([3.0, 1, 0.1]).double(), torch.tensor([1.0, 2, 0.1]).double()
    mean = torch.tensor([1.0, -2, 0.5]).double()
    a, b = sample(torch.zeros(3), s_a[:, None] * basis), sample(mean, s_b[:, None] * basis, n=25, seed=1)
    assert frechet_distance(a, b) == close(5.25 + 4 + 1, rel=1e-12)


def test_gaussians_that_do_not_commute():
    """In two dimensions tr M^(1/2) = sqrt(tr M + 2 sqrt det M)."""
    root_a, root_b = normal(2, 2, seed=2), normal(2, 2, seed=3)
    c_a, c_b = root_a.T @ root_a, root_b.T @ root_b
    product = c_a @ c_b
    overlap = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(torch.linalg.det(product))))
    expected = float(c_a.trace() + c_b.trace()) - 2 * overlap
    assert frechet_distance(sample(torch.zeros(2), root_a), sample(torch.zeros(2), root_b, seed=1)) == close(expected)


@pytest.mark.parametrize("shape", [(30, 4), (5, 40), (2, 7), (20, 1)])
def test_a_set_is_at_no_distance_from_itself(shape):
    """To rounding, not to its square root, which is what root-taking algorithms reach with singular covariances."""
    x = normal(*shape)
    assert frechet_distance(x, x.flip(0)) == close(0, abs=1e-12)


def test_fewer_volumes_than_features_are_no_special_case():
    """Points on lines of a space of 50 dimensions: the same line is a one-dimensional problem, orthogonal ones do not
    overlap."""
    directions = torch.linalg.qr(normal(50, 2)).Q.T
    zero = torch.zeros(50).double()
    a, b = sample(zero, 3 * directions[:1], n=3), sample(zero, 2 * directions[:1], n=4, seed=1)
    across = sample(zero + 0.5, 2 * directions[1:], n=4, seed=1)
    assert frechet_distance(a, b) == close(1, rel=1e-10)
    assert frechet_distance(a, across) == close(0.25 * 50 + 9 + 4, rel=1e-10)


@pytest.mark.parametrize("d", [3, 30])
def test_frechet_knows_neither_order_nor_frame(d):
    a, b = normal(12, d), 2 * normal(15, d, seed=1) + 1
    rotation, shift = torch.linalg.qr(normal(d, d, seed=2)).Q, normal(d, seed=3)
    expected = frechet_distance(a, b)
    assert frechet_distance(b, a) == close(expected)
    assert frechet_distance(a.flip(0), b) == close(expected)
    assert frechet_distance(a @ rotation + shift, b @ rotation + shift) == close(expected)
    assert frechet_distance(3 * a, 3 * b) == close(9 * expected)
    assert frechet_distance(a, a + shift) == close(float(shift.square().sum()))


def test_mmd_of_two_points_each():
    def k(x, y):
        return math.exp(-((x - y) ** 2) / 2)

    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [2.5]])
    between = sum(k(x, y) for x in (0, 1) for y in (2, 2.5)) / 4
    assert mmd(a, b, RBFKernel(1.0)) == close(k(0, 1) + k(2, 2.5) - 2 * between)
    biased = (1 + k(0, 1)) / 2 + (1 + k(2, 2.5)) / 2 - 2 * between
    assert mmd(a, b, RBFKernel(1.0), unbiased=False) == close(biased)


def test_the_default_bandwidth_is_the_median_of_both_sets_together():
    a, b = normal(6, 2), normal(8, 2, seed=1) + 1
    assert mmd(a, b) == close(mmd(a, b, RBFKernel(median_distance(torch.cat([a, b])))))


@pytest.mark.parametrize("kernel", [None, PolynomialKernel()])
def test_over_all_ways_to_divide_one_set_the_unbiased_estimate_is_zero(kernel):
    """If both sets come from one distribution, all divisions are equally likely: the expectation is their mean."""
    both = normal(7, 2)
    values = []
    for chosen in combinations(range(7), 3):
        first = torch.zeros(7, dtype=torch.bool)
        first[list(chosen)] = True
        values.append(mmd(both[first], both[~first], kernel))
    assert sum(values) / len(values) == close(0, abs=1e-12 * max(map(abs, values)))
    assert min(values) < 0 < max(values)


def test_mmd_is_symmetric_and_the_biased_one_a_distance():
    a, b = normal(9, 3), normal(12, 3, seed=1)
    assert mmd(a, b) == close(mmd(b, a))
    assert mmd(a, b, unbiased=False) > max(mmd(a, b), 0)
    assert mmd(a, a.flip(0), unbiased=False) == close(0, abs=1e-14)


def test_a_tripled_spread_is_seen_where_a_linear_kernel_sees_nothing():
    one = torch.eye(4).double()
    a, b = sample(torch.zeros(4), one, n=30), sample(torch.zeros(4), 3 * one, n=30, seed=1)
    assert MMDMetric()(a, b).item() < 0
    assert mmd_test(a, b, 199, generator()) == (close(mmd(a, b)), 1 / 200)
    assert mmd(a, b) > 0.1


def test_the_permutation_test_is_uniform_if_nothing_differs():
    """P(p <= 0.1) = 0.1 for 200 pairs of sets of one distribution: 20 +- 3 x 4.2."""
    pairs = normal(200, 12, 2)
    found = sum(mmd_test(pair[:5], pair[5:], 19, generator(i)).p_value <= 0.1 for i, pair in enumerate(pairs))
    assert 7 <= found <= 33


def test_the_test_reports_the_estimate_and_follows_its_generator():
    a, b = normal(6, 2), normal(8, 2, seed=1) + 0.5
    first, again = (mmd_test(a, b, 99, generator(5)) for _ in range(2))
    assert first == again
    assert first.mmd == close(mmd(a, b))
    copies = torch.eye(2).double().repeat(3, 1)
    assert mmd_test(copies, copies, 20, generator()).p_value > 0.9  # nothing can lie below the smallest value


@pytest.mark.parametrize("distance", [frechet_distance, mmd, lambda a, b: mmd_test(a, b, 9, generator())])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.ones(1, 2), normal(3, 2)),
        (normal(3, 2), normal(3, 4)),
        (normal(3), normal(3, 2)),
        (torch.full((3, 2), math.nan), normal(3, 2)),
    ],
)
def test_sets_that_are_none_are_refused(distance, a, b):
    with pytest.raises(UserError):
        distance(a, b)


def test_no_permutation_is_refused():
    with pytest.raises(UserError, match="permutations"):
        mmd_test(normal(3, 2), normal(3, 2), 0, generator())


@pytest.mark.parametrize("distance", [frechet_distance, mmd])
def test_the_metric_compares_all_batches_at_once_also_of_unequal_sets(distance):
    synthetic, real = normal(9, 3), normal(7, 3, seed=1)
    metric = FeatureDistanceMetric(distance)
    metric(synthetic[:4], real[:3])
    metric(y_pred=synthetic[4:], y=real[3:])
    assert metric.aggregate().item() == close(distance(synthetic, real))
    metric.reset()
    with pytest.raises(UserError, match="no features"):
        metric.aggregate()
    with pytest.raises(UserError, match="real"):
        metric(synthetic)


def test_features_are_spatial_means_whatever_the_batches():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(120, 3))
    volumes = torch.rand(5, 1, 3, 4, 5, generator=generator())
    features = segmentation_features(network, volumes.double().split(2), ["0", "4"])
    assert network.training
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(features[:, :2], network[0](volumes).mean((2, 3, 4)))
        torch.testing.assert_close(features[:, 2:], network(volumes))
    assert features.dtype == torch.float32
    assert not features.requires_grad


def test_features_of_the_house_network():
    torch.manual_seed(0)
    network = ScoreUNet(3, 1, 3, channels=(8, 16, 24), deep_heads=True)
    network.decoder.eval()
    modes = [module.training for module in network.modules()]
    volumes = torch.rand(4, 1, 9, 8, 10, generator=generator())
    layers = [f"encoder.{level}" for level in range(3)]
    features = segmentation_features(network, [volumes[:3], volumes[3:]], layers)
    assert features.shape == (4, 8 + 16 + 24)
    torch.testing.assert_close(segmentation_features(network, [volumes], layers[-1:]), features[:, -24:])
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in network.modules())


def test_what_has_no_features_is_refused_and_leaves_no_hook():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.LSTM(2, 3), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)[0]

    network, batch = Unused(), torch.zeros(4, 1, 2)
    for layers, batches in (
        (["nothing"], [batch]),
        ([], [batch]),
        (["idle"], [batch]),
        (["used"], [batch]),
        (["used"], []),
    ):
        with pytest.raises(UserError):
            segmentation_features(network, batches, layers)
    assert not any(module._forward_hooks for module in network.modules())
    assert network.training
