"""Likelihood along the probability-flow ODE against densities that are known."""

import math

import pytest
import torch
from torch import Generator

from voxscore.diffusion import (
    EDM,
    VP,
    Cosine,
    Denoiser,
    DiagonalCovariance,
    Flow,
    FourierCovariance,
    Gaussian,
    GaussianDenoiser,
    MixtureDenoiser,
    SubVP,
    bits_per_voxel,
    log_likelihood,
    log_uniform_times,
)

F64 = torch.float64


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=F64)


def mixture(path):
    means = torch.tensor([[[-1.0, 0.5]], [[1.0, -0.2]]], dtype=F64)
    return MixtureDenoiser(path, means, torch.tensor([0.04, 0.09], dtype=F64), torch.tensor([0.3, 0.7], dtype=F64))


@pytest.mark.parametrize("path", [EDM(), Flow()], ids=lambda p: type(p).__name__)
def test_a_mixture_in_nats(path):
    denoiser = mixture(path)
    times = log_uniform_times(path, 140, ratio_min=0.02, ratio_max=50.0)
    x = 0.8 * normals(16, 1, 2)
    got = log_likelihood(denoiser, x, times, denoiser.gaussian())
    torch.testing.assert_close(got, denoiser.log_prob(x, times[-1]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("path", [VP(), SubVP(), Flow(), Cosine()], ids=lambda p: type(p).__name__)
def test_every_path_gives_the_same_density_of_x_over_alpha(path):
    """ln p(x) = ln p(x / alpha) - N ln alpha at equal noise-to-signal ratios, also with coarse steps."""
    x = 0.8 * normals(4, 1, 2)
    edm = log_likelihood(mixture(EDM()), x, log_uniform_times(EDM(), 8, 0.05, 50.0), mixture(EDM()).gaussian())
    times = log_uniform_times(path, 8, 0.05, 50.0)
    alpha = path.alpha(times[-1])
    got = log_likelihood(mixture(path), alpha * x, times, mixture(path).gaussian())
    torch.testing.assert_close(got + 2 * torch.log(alpha), edm, rtol=0, atol=1e-9)
    reverse = log_likelihood(mixture(path), alpha * x, times.flip(0), mixture(path).gaussian())
    torch.testing.assert_close(reverse, got, rtol=0, atol=0)


def test_the_prior_must_have_the_moments_of_the_data():
    denoiser = mixture(EDM())
    times = log_uniform_times(EDM(), 100, ratio_min=0.02, ratio_max=50.0)
    x = 0.8 * normals(4, 1, 2)
    wrong = Gaussian(torch.zeros(1, 2, dtype=F64), DiagonalCovariance(torch.zeros(1, 2, dtype=F64)))
    error = (log_likelihood(denoiser, x, times, wrong) - denoiser.log_prob(x, times[-1])).abs().max()
    assert 1e-3 < error < 1e-1


def random_field(path, n=5):
    k = torch.stack(torch.meshgrid(*[torch.fft.fftfreq(n, dtype=F64)] * 3, indexing="ij")).square().sum(0)
    spectrum = (1 / (k + 0.02))[None]
    return GaussianDenoiser(path, Gaussian(torch.zeros_like(spectrum), FourierCovariance(spectrum / spectrum.mean())))


def test_rademacher_probes_are_exact_on_a_diagonal_jacobian():
    """In any dimension, with one probe; a Gaussian probe would be off by sqrt(2 sum J_ii^2)."""
    path = EDM()
    gaussian = Gaussian(0.1 * normals(1, 3, 4, 2), DiagonalCovariance(0.1 + normals(1, 3, 4, 2).square()))
    denoiser, times = GaussianDenoiser(path, gaussian), log_uniform_times(path, 80, ratio_min=0.05)
    x = normals(2, 1, 3, 4, 2)
    exact = log_likelihood(denoiser, x, times, gaussian)
    probed = log_likelihood(denoiser, x, times, gaussian, probes=1, generator=Generator().manual_seed(0))
    torch.testing.assert_close(probed, exact, rtol=0, atol=1e-9)
    torch.testing.assert_close(exact, gaussian.log_prob(x, path, times[-1]), rtol=0, atol=1e-4)


def test_probes_are_unbiased_and_many_are_better():
    """On a field in three dimensions; the scatter of the estimate falls with the root of the number of probes."""
    path = EDM()
    denoiser, times = random_field(path), log_uniform_times(path, 20, ratio_min=0.05)
    x = denoiser.gaussian.sample(normals(1, 1, 5, 5, 5), path, times[-1]).expand(48, -1, -1, -1, -1)
    truth = denoiser.gaussian.log_prob(x[:1], path, times[-1])
    once, often = (
        log_likelihood(denoiser, x, times, denoiser.gaussian, probes=n, generator=Generator().manual_seed(1))
        for n in (1, 9)
    )
    assert abs(float(once.mean() - truth)) < 4 * float(once.std()) / math.sqrt(48)
    assert abs(float(often.mean() - truth)) < 4 * float(often.std()) / math.sqrt(48)
    assert 2 < float(once.std() / often.std()) < 4.5


def test_a_seed_is_an_estimate_at_any_batch_size():
    path = EDM()
    denoiser, times = random_field(path), log_uniform_times(path, 5, ratio_min=0.05)
    x = normals(3, 1, 5, 5, 5)
    generators = lambda: [Generator().manual_seed(k) for k in range(3)]  # noqa: E731
    together = log_likelihood(denoiser, x, times, denoiser.gaussian, 2, generators())
    alone = log_likelihood(denoiser, x[1:2], times, denoiser.gaussian, 2, generators()[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-10, atol=0)


def test_works_where_the_caller_switched_gradients_off():
    denoiser, times = mixture(EDM()), log_uniform_times(EDM(), 4, ratio_min=0.05)
    x = normals(2, 1, 2)
    expected = log_likelihood(denoiser, x, times, denoiser.gaussian())
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert torch.equal(log_likelihood(denoiser, x.clone(), times, denoiser.gaussian()), expected)
    assert not expected.requires_grad


def test_bits_of_a_uniform_volume():
    """A density of 1 / range on 256 grey levels is 8 bits, whatever the units."""
    for scale in (1.0, 0.01):
        bits = bits_per_voxel(torch.tensor([-10 * math.log(256 * scale)]), 10, scale)
        assert float(bits) == pytest.approx(8.0, abs=1e-5)


@pytest.mark.parametrize(
    ("path", "times", "arguments", "message"),
    [
        (EDM(), [80.0, 1.0, 0.0], {}, "off clean data"),
        (Flow(), [1.0, 0.5], {}, "pure noise"),
        (EDM(), [2.0, 1.0], {"probes": 0}, "one probe"),
        (VP(), [2.0, 0.5], {}, "span of VP"),
    ],
)
def test_bad_use(path, times, arguments, message):
    denoiser = mixture(path)
    with pytest.raises(ValueError, match=message):
        log_likelihood(denoiser, normals(1, 1, 2), torch.tensor(times), denoiser.gaussian(), **arguments)


def test_nan_is_reported():
    class Broken(Denoiser):
        def forward(self, x, t):
            return x * math.nan

    with pytest.raises(FloatingPointError, match="NaN"):
        log_likelihood(Broken(EDM()), normals(1, 1, 2), torch.tensor([2.0, 1.0]), mixture(EDM()).gaussian())


def test_the_prior_is_a_gaussian():
    denoiser = mixture(EDM())
    with pytest.raises(TypeError, match="prior is the Gaussian of the clean data, got MixtureDenoiser"):
        log_likelihood(denoiser, normals(1, 1, 2), torch.tensor([2.0, 1.0]), denoiser)
    with pytest.raises(ValueError, match="two times at least"):
        log_likelihood(denoiser, normals(1, 1, 2), torch.tensor([]), denoiser.gaussian())
