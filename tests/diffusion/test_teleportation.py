"""Teleportation: exact on a Gaussian, and never worse on a mixture at the same number of evaluations."""

import math

import pytest
import torch
from torch import Generator

from voxscore.diffusion import (
    EDM,
    VP,
    Ancestral,
    DiagonalCovariance,
    DPMSolver,
    Euler,
    Flow,
    Gaussian,
    GaussianDenoiser,
    Heun,
    MixtureDenoiser,
    NetDenoiser,
    Teleport,
    UniPC,
    explained_variance,
    jump_ratio,
    karras_times,
    log_uniform_times,
    sample,
)

F64 = torch.float64


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=F64)


def gaussian_denoiser(path):
    variance = torch.tensor([[0.1, 1.0, 3.0]], dtype=F64)
    return GaussianDenoiser(path, Gaussian(torch.tensor([[1.0, -2.0, 0.5]], dtype=F64), DiagonalCovariance(variance)))


def mixture(path):
    means = torch.tensor([[[-1.0, 0.5]], [[1.0, -0.2]]], dtype=F64)
    return MixtureDenoiser(path, means, torch.tensor([0.04, 0.09], dtype=F64), torch.tensor([0.3, 0.7], dtype=F64))


@pytest.mark.parametrize("path", [EDM(), VP(), Flow()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("sampler", [Euler(), Heun(), DPMSolver(3), UniPC(2), Ancestral()], ids=repr)
def test_exact_on_a_gaussian_whatever_the_sampler(path, sampler):
    """Down to the last noise level the Gaussian map is the whole solution, and the sampler is never asked."""
    denoiser, times = gaussian_denoiser(path), karras_times(path, 7)
    x = denoiser.gaussian.sample(normals(4, 1, 3), path, times[0])
    low = float(path.ratio(times[-1]))
    y = sample(denoiser, x, times, Teleport(sampler, denoiser.gaussian, low))
    truth = denoiser.gaussian.transport(x, path, times[0], times[-1])
    torch.testing.assert_close(y, truth, rtol=0, atol=1e-12)


def test_below_the_jump_the_sampler_takes_over():
    """The same as starting the sampler where the jump ends, with its memory empty."""
    path = EDM()
    denoiser, times = mixture(path), karras_times(path, 12)
    x, gaussian = 80 * normals(8, 1, 2), denoiser.gaussian()
    y = sample(denoiser, x, times, Teleport(DPMSolver(2), gaussian, float(times[5])))
    landed = gaussian.transport(x, path, times[0], times[5])
    torch.testing.assert_close(y, sample(denoiser, landed, times[5:], DPMSolver(2)), rtol=0, atol=1e-12)


def rms(a):
    return float(a.square().mean().sqrt())


@pytest.fixture(scope="module")
def mixture_run():
    """(denoiser, gaussian, start, where the ODE leads)."""
    path = EDM()
    denoiser, gaussian = mixture(path), mixture(path).gaussian()
    x = gaussian.sample(normals(128, 1, 2), path, torch.tensor(80.0, dtype=F64))
    return denoiser, gaussian, x, sample(denoiser, x, log_uniform_times(path, 600), UniPC(3))


CASES = [(s, n) for s in (Euler(), Heun(), DPMSolver(2), DPMSolver(3), UniPC(2)) for n in (8, 16, 32)]


# In 8 steps UniPC(3) is far from its asymptotic range: its errors with and without a jump are in no order.
@pytest.mark.parametrize(("sampler", "n"), [*CASES, (UniPC(3), 16), (UniPC(3), 32)], ids=repr)
def test_never_worse_on_a_mixture_at_equal_evaluations(mixture_run, sampler, n):
    """All n steps below the jump against n over the whole range; up to here the jump's own error is the smaller."""
    denoiser, gaussian, x, truth = mixture_run
    path = denoiser.path
    ratio = jump_ratio(denoiser, gaussian, log_uniform_times(path, 100), batch=64, generator=Generator().manual_seed(0))
    assert 1 < ratio < 20
    plain = sample(denoiser, x, log_uniform_times(path, n), sampler)
    below = log_uniform_times(path, n, ratio_max=ratio)
    jumped = sample(denoiser, x, torch.cat([torch.tensor([80.0]), below]), Teleport(sampler, gaussian, ratio))
    assert rms(jumped - truth) < rms(plain - truth)


def test_explained_variance_of_a_gaussian_by_another_is_known():
    """EV = 1 - E|(D - D_G)|^2 / E|D - x|^2 for scalar Gaussians; 1 for the Gaussian itself."""
    path = EDM()
    denoiser = gaussian_denoiser(path)
    times = karras_times(path, 5)
    own = explained_variance(denoiser, denoiser.gaussian, times, 2, Generator().manual_seed(0))
    torch.testing.assert_close(own, torch.ones(6, dtype=F64), rtol=0, atol=1e-12)
    v, w, s = 1.0, 0.25, torch.tensor([2.0, 0.5], dtype=F64)
    a, b = (
        Gaussian(torch.zeros(1, 4, dtype=F64), DiagonalCovariance(torch.full((1, 4), var, dtype=F64))) for var in (v, w)
    )
    got = explained_variance(GaussianDenoiser(path, a), b, s, 3, Generator().manual_seed(0))
    # All terms are multiples of |x|^2, so the ratio does not depend on the draw.
    expected = 1 - ((v / (v + s**2) - w / (w + s**2)) / (v / (v + s**2) - 1)) ** 2
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


def test_the_jump_goes_to_the_lowest_explained_level():
    path = EDM()
    denoiser, times = mixture(path), log_uniform_times(path, 100, ratio_min=0.05)
    gaussian = denoiser.gaussian()
    seed = lambda: Generator().manual_seed(3)  # noqa: E731
    explained = explained_variance(denoiser, gaussian, times, 16, seed())
    for tolerance in (1e-2, 1e-3, 1e-4):
        ratio = jump_ratio(denoiser, gaussian, times, tolerance, 16, seed())
        k = int((times - ratio).abs().argmin())
        assert (explained[: k + 1] >= 1 - tolerance).all()
        assert explained[k + 1] < 1 - tolerance
    assert jump_ratio(denoiser, gaussian, times[-5:], 1e-3, 16, seed()) == math.inf


def test_facts_are_those_of_the_sampler():
    gaussian = gaussian_denoiser(EDM()).gaussian
    assert Teleport(DPMSolver(3), gaussian, 1.0).order == 3
    assert not Teleport(DPMSolver(3), gaussian, 1.0).stochastic
    assert Teleport(Ancestral(), gaussian, 1.0).stochastic


def test_a_network_in_single_precision_can_be_asked():
    """The probes have the dtype of the Gaussian, which has that of the volumes it was fitted to."""
    path = EDM()
    volumes = torch.randn(10, 1, 4, 4, 4, generator=Generator().manual_seed(0))
    gaussian = Gaussian.fit(volumes)
    linear = torch.nn.Conv3d(1, 1, 1)
    denoiser = NetDenoiser(lambda x, t: linear(x), path, "edm")
    assert (
        explained_variance(denoiser, gaussian, karras_times(path, 3), generator=Generator().manual_seed(0))
        .isfinite()
        .all()
    )
    assert gaussian.mean.dtype is torch.float32
