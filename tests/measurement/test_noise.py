"""Moments of the noise in closed form, and how well an image's noise is found."""

import math

import pytest
import torch
from torch import Generator

from voxscore.measurement.noise import (
    gaussian_noise,
    image_noise_std,
    poisson_transmission,
    rician_correction,
    rician_noise,
)

F64 = torch.float64
COUNT = 200_000


def seeded(seed):
    return Generator().manual_seed(seed)


def assert_mean(samples, wanted, standard_deviation):
    """Within five standard errors."""
    error = abs(float(samples.mean()) - wanted)
    assert error < 5 * standard_deviation / math.sqrt(samples.numel())


def test_complex_noise_is_in_both_parts_alike():
    noise = gaussian_noise(torch.zeros(1, COUNT, dtype=torch.complex128), 3.0, seeded(0))
    for part in (noise.real, noise.imag, gaussian_noise(torch.zeros(1, COUNT, dtype=F64), 3.0, seeded(1))):
        assert_mean(part, 0.0, 3.0)
        assert_mean(part.square(), 9.0, math.sqrt(2) * 9)
    assert_mean(noise.real * noise.imag, 0.0, 9.0)


@pytest.mark.parametrize("signal", [0.0, 0.5, 2.0, 20.0])
def test_the_mean_of_a_rician(signal):
    """E m = s sqrt(pi/2) L(-A^2/2s^2), with the Laguerre polynomial L(-2z) = (1 + 2z) I0e(z) + 2z I1e(z)."""
    s = 1.5
    magnitude = rician_noise(torch.full((1, COUNT), signal, dtype=F64), s, seeded(2))
    z = torch.tensor((signal / s) ** 2 / 4, dtype=F64)
    laguerre = (1 + 2 * z) * torch.special.i0e(z) + 2 * z * torch.special.i1e(z)
    assert_mean(magnitude, float(laguerre) * s * math.sqrt(math.pi / 2), s)
    assert_mean(magnitude.square(), signal**2 + 2 * s**2, 2 * s * math.hypot(signal, s))


def test_the_correction_of_magnitudes():
    s = 1.5
    bright, air = (rician_noise(torch.full((1, COUNT), a, dtype=F64), s, seeded(3)) for a in (12.0, 0.0))
    corrected = rician_correction(bright, s)
    assert_mean(corrected.square(), 144.0, 2 * 12 * s)
    assert_mean(corrected, 12 - s**2 / 24, s)
    # m^2 / 2 s^2 is exponential in air: sqrt(2) s E sqrt(max(m^2 / 2 s^2 - 1, 0)) = sqrt(2) s exp(-1) Gamma(3/2).
    assert_mean(rician_correction(air, s), math.sqrt(math.pi / 2) / math.e * s, s)


def test_photons():
    p, photons = 2.0, 1e5
    found = poisson_transmission(torch.full((1, COUNT), p, dtype=F64), photons, seeded(4))
    variance = math.exp(p) / photons
    # The logarithm of few photons is biased by half its variance.
    assert_mean(found, p + variance / 2, math.sqrt(variance))
    assert_mean((found - p).square(), variance, 1.5 * variance)
    starved = poisson_transmission(torch.full((1, 10), 100.0), photons, seeded(5))
    assert torch.allclose(starved, torch.tensor(math.log(photons)))


NOISES = {
    "gaussian": lambda y, g: gaussian_noise(y, 0.3, g),
    "complex": lambda y, g: gaussian_noise(torch.complex(y, y), 0.3, g),
    "rician": lambda y, g: rician_noise(y, 0.3, g),
    "photons": lambda y, g: poisson_transmission(y, 100.0, g),
}


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_a_seed_is_the_same_measurement_in_any_batch(noise):
    y = torch.ones(3, 1, 5, 7)
    before = torch.get_rng_state()
    batch = noise(y, [seeded(7), seeded(8), seeded(9)])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(batch[1:2], noise(y[1:2], seeded(8)))
    assert torch.equal(noise(y, seeded(7))[:2], noise(y[:2], seeded(7)))
    assert not torch.equal(batch[0], batch[1])
    assert not torch.equal(*noise(y[:2], seeded(7)))
    assert batch.abs().dtype == torch.float32
    with pytest.raises(ValueError, match="one generator"):
        noise(y, [seeded(7)])


def anatomy(shape, blobs=4):
    """Ellipsoids with sharp edges on a slow shading, values of some hundreds."""
    generator = seeded(10)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=F64) for n in shape), indexing="ij")
    grid = torch.stack(axes, -1)
    image = 40 * grid.sum(-1)
    for center, radius in zip(
        torch.rand(blobs, len(shape), generator=generator, dtype=F64) * 1.4 - 0.7,
        torch.rand(blobs, len(shape), generator=generator, dtype=F64) * 0.3 + 0.15,
        strict=True,
    ):
        image = image + 100 * (((grid - center) / radius).square().sum(-1) < 1)
    return image[None, None]


@pytest.mark.parametrize("shape", [(160, 150), (40, 44, 36)])
@pytest.mark.parametrize("std", [3.0, 12.0])
def test_noise_is_found_in_anatomy(shape, std):
    noisy = gaussian_noise(anatomy(shape), std, seeded(11))
    assert float(image_noise_std(noisy)) == pytest.approx(std, rel=0.035)


def test_noise_alone_masked_scaled_and_per_channel():
    noise = gaussian_noise(torch.zeros(2, 2, 90, 60, 20, dtype=F64), 1.0, seeded(12))
    noise[:, 1] *= 5
    std = image_noise_std(noise)
    assert std.shape == (2, 2)
    assert torch.allclose(std, torch.tensor([1.0, 5.0], dtype=F64), rtol=0.02)
    assert torch.allclose(image_noise_std(1e-3 * noise + 7), 1e-3 * std)
    masked = noise.clone()
    masked[:, :, 30:] = 0
    assert torch.allclose(image_noise_std(masked), torch.tensor([1.0, 5.0], dtype=F64), rtol=0.03)


def test_no_noise_and_too_little_image():
    ramp = torch.arange(20.0)[:, None] + torch.arange(16.0)
    assert torch.equal(image_noise_std(ramp[None, None]), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="two voxels"):
        image_noise_std(torch.zeros(1, 1, 8, 1))


def test_noise_in_air_is_rayleigh():
    air = rician_noise(torch.zeros(1, 1, 50, 50, 20, dtype=F64), 2.0, seeded(13))
    assert float(image_noise_std(air)) == pytest.approx(0.66 * 2.0, rel=0.03)
