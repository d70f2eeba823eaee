"""Scores of a volume against its reference: closed forms, and another implementation."""

import math

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from voxscore.errors import UserError
from voxscore.evaluation import score_volume

RNG = np.random.default_rng(0)
REFERENCE = (RNG.random((14, 13, 15)) * 50).astype(np.float32)
LARGEST = float(REFERENCE.max())


def test_equal_volumes():
    score = score_volume(REFERENCE, REFERENCE)
    assert (score.psnr, score.nmse) == (math.inf, 0)
    assert score.ssim == pytest.approx(1, abs=1e-12)


def test_a_known_error():
    """A constant c: mean square error c^2."""
    score = score_volume(REFERENCE + np.float32(5), REFERENCE)
    assert score.psnr == pytest.approx(20 * math.log10(LARGEST / 5), abs=1e-4)
    assert score.nmse == pytest.approx(25 / np.mean(REFERENCE.astype(float) ** 2), rel=1e-5)
    assert score_volume(0 * REFERENCE, REFERENCE).nmse == 1
    assert score_volume(2 * REFERENCE, REFERENCE).nmse == pytest.approx(1)


def test_scores_know_no_unit():
    image = REFERENCE + RNG.normal(size=REFERENCE.shape).astype(np.float32)
    given, other = (score_volume(k * image, k * REFERENCE) for k in (1.0, 1e-6))
    for name in ("psnr", "ssim", "nmse"):
        assert getattr(given, name) == pytest.approx(getattr(other, name), rel=1e-6)


@pytest.mark.parametrize("shape", [(14, 13, 15), (12, 1, 16)])
def test_ssim_agrees_with_scikit_image(shape):
    """Mean over the windows that lie inside, Gaussian of 1.5 voxels cut off at 11, population variances."""
    reference = RNG.random(shape).astype(np.float32)
    image = reference + RNG.normal(scale=0.2, size=shape).astype(np.float32)
    kept = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    wanted = structural_similarity(
        image.squeeze().astype(float), reference.squeeze().astype(float), data_range=float(reference.max()), **kept
    )
    # MONAI holds its window in single precision.
    assert score_volume(image, reference).ssim == pytest.approx(wanted, abs=1e-5)


def test_windows_fit_a_thin_volume():
    thin = REFERENCE[:, :, :4]
    assert score_volume(thin, thin).ssim == pytest.approx(1, abs=1e-9)
    assert score_volume(thin + RNG.normal(size=thin.shape), thin).ssim < 0.999


def test_rounded_scores_are_of_plain_types():
    rounded = score_volume(REFERENCE + np.float32(5), REFERENCE).rounded()
    assert list(rounded) == ["psnr", "ssim", "nmse"]
    assert all(type(value) is float and value == round(value, 6) for value in rounded.values())


def test_what_cannot_be_scored():
    with pytest.raises(UserError, match="shape"):
        score_volume(REFERENCE[:-1], REFERENCE)
    with pytest.raises(UserError, match="no value above 0"):
        score_volume(REFERENCE, -REFERENCE)
