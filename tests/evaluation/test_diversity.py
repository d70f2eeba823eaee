"""The Vendi score is an effective number, so its laws are those of counting; MS-SSIM has a few fixed points."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from voxscore.errors import UserError
from voxscore.evaluation.diversity import VendiScoreMetric, ms_ssim_diversity, vendi_score, vendi_score_of_kernel
from voxscore.evaluation.kernels import PolynomialKernel, RBFKernel, median_distance

ORDERS = [0, 0.3, 0.5, 1, 1.5, 2, 3, 10, 200, math.inf]
orders = pytest.mark.parametrize("q", ORDERS)
close = pytest.approx


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernel(n=12, seed=0):
    """An RBF kernel of random points: full rank, unit diagonal."""
    x = normal(n, 3, seed=seed)
    return RBFKernel(1.0)(x, x)


@orders
@pytest.mark.parametrize("n", [1, 2, 7])
def test_items_without_likeness_count_in_full(q, n):
    assert vendi_score_of_kernel(torch.eye(n), q) == close(n, rel=1e-12)
    assert vendi_score(3 * torch.eye(n, n + 2), q) == close(n, rel=1e-12)


@orders
def test_copies_count_once(q):
    assert vendi_score_of_kernel(torch.ones(6, 6), q) == close(1, rel=1e-12)
    assert vendi_score(normal(1, 4) * torch.arange(1, 7)[:, None], q) == close(1, rel=1e-12)


@orders
def test_equal_groups_of_copies_count_as_many(q):
    blocks = torch.kron(torch.eye(4), torch.ones(3, 3))
    assert vendi_score_of_kernel(blocks, q) == close(4, rel=1e-10)
    assert vendi_score(torch.kron(torch.eye(4), torch.ones(3, 1)), q) == close(4, rel=1e-10)


@pytest.mark.parametrize("q", [0.5, 1, 2, 3, math.inf])
def test_without_likeness_it_is_hills_number_of_the_probabilities(q):
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    hill = {1: math.exp(-(p * p.log()).sum()), math.inf: 1 / 0.5}.get(q) or float((p**q).sum() ** (1 / (1 - q)))
    assert vendi_score_of_kernel(torch.eye(3), q, p) == close(hill, rel=1e-12)
    assert vendi_score(torch.eye(3), q, p) == close(hill, rel=1e-12)


def test_two_items_have_a_closed_form():
    """Eigenvalues (1 +- k) / 2."""
    k, a, b = 0.6, 0.8, 0.2
    matrix = torch.tensor([[1, k], [k, 1]], dtype=torch.float64)
    assert vendi_score_of_kernel(matrix, 1) == close(a**-a * b**-b, rel=1e-12)
    assert vendi_score_of_kernel(matrix, 2) == close(1 / (a**2 + b**2), rel=1e-12)
    assert vendi_score_of_kernel(matrix, 0.5) == close((a**0.5 + b**0.5) ** 2, rel=1e-12)
    assert vendi_score_of_kernel(matrix, math.inf) == close(1 / a, rel=1e-12)


def test_published_examples():
    """From the README of the authors' package; the first is printed cut off, 2.9999."""
    x = torch.tensor([0.0, 0, 10, 10, 20, 20], dtype=torch.float64)
    assert 2.9999 <= vendi_score_of_kernel(torch.exp(-(x[:, None] - x).abs())) < 3
    three = torch.tensor([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]])
    assert vendi_score_of_kernel(three) == close(2.1573, abs=5e-5)


def test_it_falls_with_the_order_and_is_continuous_in_it():
    k = kernel()
    scores = [vendi_score_of_kernel(k, q) for q in ORDERS]
    assert all(earlier > later for earlier, later in pairwise(scores))
    assert scores[0] == close(12, rel=1e-12)
    for q in (1, 2):
        assert vendi_score_of_kernel(k, q + 1e-6) == close(vendi_score_of_kernel(k, q), rel=1e-5)
    assert vendi_score_of_kernel(k, 1 + 1e-12) == close(vendi_score_of_kernel(k, 1), rel=1e-7)
    assert vendi_score_of_kernel(k, 1e4) == close(vendi_score_of_kernel(k, math.inf), rel=1e-3)


@orders
@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_dual_form_equals_the_primal(q, shape):
    x = normal(*shape)
    unit = x / x.norm(dim=1, keepdim=True)
    p = torch.rand(shape[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for weights in (None, p / p.sum()):
        assert vendi_score(x, q, weights) == close(vendi_score_of_kernel(unit @ unit.T, q, weights), rel=1e-10)


@orders
def test_copies_may_be_merged_with_their_probabilities(q):
    k = kernel()
    places = torch.tensor([0, 1, 2, 2, 3, 3, 3])
    p = torch.tensor([0.1, 0.2, 0.1, 0.15, 0.2, 0.05, 0.2], dtype=torch.float64)
    merged = torch.tensor([0.1, 0.2, 0.25, 0.45], dtype=torch.float64)
    apart = vendi_score_of_kernel(k[places][:, places], q, p)
    assert apart == close(vendi_score_of_kernel(k[:4, :4], q, merged), rel=1e-8)
    x = normal(4, 6)
    assert vendi_score(x[places], q, p) == close(vendi_score(x, q, merged), rel=1e-8)


@orders
def test_order_rotation_and_length_of_features_do_not_matter(q):
    x = normal(8, 5)
    rotation = torch.linalg.qr(normal(5, 5, seed=1)).Q
    expected = vendi_score(x, q)
    lengths = torch.arange(1, 9)[:, None]
    for other in (x.flip(0), x @ rotation, x * lengths, torch.cat([x, x])):
        assert vendi_score(other, q) == close(expected, rel=1e-10)
    k = kernel()
    scale = torch.arange(1, 13).double()
    assert vendi_score_of_kernel(k * scale * scale[:, None], q) == close(vendi_score_of_kernel(k, q), rel=1e-8)


@pytest.mark.parametrize("q", [-0.1, math.nan])
def test_an_order_that_is_none_is_refused(q):
    with pytest.raises(UserError, match="order"):
        vendi_score(torch.eye(2), q)


@pytest.mark.parametrize("p", [[0.5, 0.6], [1.5, -0.5], [1.0], [math.nan, 1]])
def test_probabilities_that_are_none_are_refused(p):
    with pytest.raises(UserError, match="sum to 1"):
        vendi_score(torch.eye(2), 1, torch.tensor(p))


@pytest.mark.parametrize(
    "matrix", [torch.ones(2, 3), torch.tensor([[1.0, 0], [1, 1]]), torch.zeros(2, 2), torch.full((2, 2), math.nan)]
)
def test_kernels_that_are_none_are_refused(matrix):
    with pytest.raises(UserError):
        vendi_score_of_kernel(matrix)


@pytest.mark.parametrize("features", [torch.zeros(2, 3), torch.ones(3), torch.ones(0, 3), torch.full((2, 2), math.inf)])
def test_features_that_are_none_are_refused(features):
    with pytest.raises(UserError):
        vendi_score(features)


@orders
def test_the_metric_scores_all_batches_together(q):
    x = normal(7, 3)
    metric = VendiScoreMetric(q)
    for batch in x.split(3):
        metric(batch)
    assert metric.aggregate().item() == close(vendi_score(x, q), rel=1e-12)
    metric.reset()
    with pytest.raises(UserError, match="no features"):
        metric.aggregate()


def test_kernels_are_similarities():
    x, y = normal(4, 3), normal(5, 3, seed=1)
    for similarity in (RBFKernel(0.7), PolynomialKernel()):
        assert similarity(x, y).shape == (4, 5)
        torch.testing.assert_close(similarity(x, y), similarity(y, x).T)
        assert torch.linalg.eigvalsh(similarity(x, x)).min() > 0
    assert RBFKernel(2.0)(x[:1], x[:1] + torch.tensor([3.0, 0, 0])).item() == close(math.exp(-9 / 8))
    assert PolynomialKernel()(torch.tensor([[1.0, 2]]), torch.tensor([[3.0, 1]])).item() == (5 / 2 + 1) ** 3
    for bandwidth in (0, -1, math.nan, math.inf):
        with pytest.raises(UserError):
            RBFKernel(bandwidth)


def test_median_distance_is_that_of_different_pairs():
    assert median_distance(torch.tensor([[0.0], [1], [3]])) == 2  # 1, 2, 3
    assert median_distance(torch.tensor([[0.0], [1], [3], [10]])) == (3 + 7) / 2  # 1, 2, 3, 7, 9, 10
    assert median_distance(torch.tensor([[0.0], [0], [0], [0], [5]])) == 5
    with pytest.raises(UserError, match="all equal"):
        median_distance(torch.ones(3, 2))


def smooth(n, shape=(1, 28, 30, 29), seed=0):
    """Volumes with structure at several scales, between 0 and 1."""
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))
    for _ in range(3):
        x = torch.nn.functional.avg_pool3d(x, 3, 1, 1)
    return (x - x.min()) / (x.max() - x.min())


def similarity(volumes, value_range=(0.0, 1.0), pairs=1000, seed=0):
    return ms_ssim_diversity(volumes, value_range, pairs, torch.Generator().manual_seed(seed))


def test_copies_are_wholly_similar_and_noise_makes_them_less_so():
    one = smooth(1)
    noise = torch.randn(4, *one.shape[1:], generator=torch.Generator().manual_seed(1))
    means = [similarity(one + amount * noise).mean for amount in (0, 0.02, 0.1, 0.5)]
    assert means[0] == close(1, abs=1e-5)
    assert all(earlier > later for earlier, later in pairwise(means))
    assert similarity(smooth(4)).mean < 0.8


def test_flat_volumes_differ_in_luminance_alone():
    """Contrast and structure are 1, up to 0.3 % at each scale, since MONAI takes variances as differences in float32;
    the coarsest of three scales, which has the luminance, has the weight 0.3001 of 0.6305."""
    a, b, c1 = 0.2, 0.7, 0.01**2
    volumes = torch.stack([torch.full((1, 28, 28, 28), value) for value in (a, b)])
    luminance = (2 * a * b + c1) / (a**2 + b**2 + c1)
    assert similarity(volumes).mean == close(luminance ** (0.3001 / 0.6305), rel=4e-3)


def test_the_unit_of_intensity_does_not_matter():
    volumes = smooth(3) * torch.tensor([0.3, 0.6, 1])[:, None, None, None, None]
    hounsfield = 3000 * volumes.double() - 1000
    assert similarity(hounsfield, (-1000.0, 2000.0)).mean == close(similarity(volumes).mean, abs=1e-4)


def test_all_pairs_are_taken_where_they_suffice_and_different_ones_drawn_otherwise():
    volumes = smooth(5)
    full = similarity(volumes)
    assert full.values.shape == (10,)
    assert full.mean == close(float(full.values.mean()))
    drawn, again, other = (similarity(volumes, pairs=4, seed=seed).values for seed in (0, 0, 3))
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, other)
    assert len(drawn.unique()) == 4
    nearest = (drawn[:, None] - full.values).abs().min(dim=1).values
    assert nearest.max() < 1e-5


@pytest.mark.parametrize(("side", "scales"), [(7, 1), (13, 1), (14, 2), (40, 3), (111, 4), (112, 5)])
def test_as_many_scales_as_fit(side, scales):
    volumes = torch.rand(2, 1, side, side + 3, generator=torch.Generator().manual_seed(0))
    assert similarity(volumes).scales == scales


@pytest.mark.parametrize(
    ("shape", "value_range", "pairs"),
    [
        ((1, 1, 9, 9), (0, 1), 1),
        ((3, 9, 9), (0, 1), 1),
        ((3, 1, 6, 9), (0, 1), 1),
        ((3, 1, 9, 9), (1, 1), 1),
        ((3, 1, 9, 9), (0, math.inf), 1),
        ((3, 1, 9, 9), (0, 1), 0),
    ],
)
def test_nonsense_is_refused(shape, value_range, pairs):
    with pytest.raises(UserError):
        similarity(torch.zeros(shape), value_range, pairs)
