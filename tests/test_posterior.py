"""What samples of a label map say, against counting and closed forms."""

import math

import numpy as np
import pytest
import torch

from voxscore.evaluation import label_volumes, volume_interval
from voxscore.posterior import Posterior, voxel_entropy

AFFINE = np.diag([2.0, 3.0, 0.5, 1.0])
NAMES = {1: "one", 2: "two"}


def label_maps(n, seed=0):
    """Labels that grow and shrink from sample to sample, (n, 6, 5, 4) uint8."""
    rng = np.random.default_rng(seed)
    level = rng.uniform(0.2, 0.8, (n, 1, 1, 1))
    return np.where(rng.random((n, 6, 5, 4)) < level, 1 + (rng.random((n, 6, 5, 4)) < 0.4), 0).astype(np.uint8)


def posterior(samples):
    entropy = np.zeros(samples.shape[1:], np.float32)
    return Posterior(samples, entropy, seed=0, evaluations=4, sampler="DPMSolver")


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_entropy_in_closed_form(classes):
    uniform = np.full((classes, 2, 2, 2), 1 / classes, np.float32)
    np.testing.assert_allclose(voxel_entropy(uniform), math.log(classes), rtol=1e-6)
    sure = np.zeros((classes, 1, 1, 1), np.float32)
    sure[-1] = 1
    assert voxel_entropy(sure).tobytes() == np.zeros((1, 1, 1), np.float32).tobytes()
    p = np.random.default_rng(classes).dirichlet(np.ones(classes), (3, 4, 5)).astype(np.float32)
    expected = torch.distributions.Categorical(torch.tensor(p)).entropy().numpy()
    np.testing.assert_allclose(voxel_entropy(np.moveaxis(p, -1, 0)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("n", "level"), [(1, 0), (2, 1 / 3), (3, 0.5), (8, 7 / 9), (38, 37 / 39), (39, 0.95), (200, 0.95)]
)
def test_level_is_what_the_samples_can_give(n, level):
    assert posterior(label_maps(n)).level == level


def test_few_samples_give_their_whole_range():
    for n in (2, 5, 38):
        samples = label_maps(n)
        volumes = [label_volumes(sample, AFFINE, NAMES) for sample in samples]
        for name, interval in posterior(samples).volume_intervals(AFFINE, NAMES).items():
            mine = [v[name] for v in volumes]
            assert (interval.low_ml, interval.high_ml) == pytest.approx((min(mine), max(mine)))
            assert interval.low_ml < interval.median_ml < interval.high_ml


def test_more_samples_widen_the_whole_range():
    samples, before = label_maps(39), None
    for n in range(2, 40):
        interval = posterior(samples[:n]).volume_intervals(AFFINE, NAMES)["one"]
        if before is not None:
            assert interval.low_ml <= before.low_ml + 1e-9
            assert interval.high_ml >= before.high_ml - 1e-9
        before = interval


def test_many_samples_give_95_percent():
    samples = label_maps(120)
    assert posterior(samples).volume_intervals(AFFINE, NAMES) == volume_interval(samples, AFFINE, NAMES, 0.95)


def test_one_sample_has_no_interval():
    assert posterior(label_maps(1)).volume_intervals(AFFINE, NAMES) == {}
