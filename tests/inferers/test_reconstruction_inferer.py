"""A reconstruction follows the posterior that is known in closed form, in the units of its measurement."""

import math
from itertools import combinations

import pytest
import torch
from monai.data import MetaTensor
from torch import Generator, nn

from voxscore.diffusion import (
    DPS,
    EDM,
    Decomposed,
    DiagonalCovariance,
    Gaussian,
    GaussianDenoiser,
    Heun,
    NetDenoiser,
    karras_times,
)
from voxscore.inferers import (
    DenoisingInferer,
    ReconstructionInferer,
    log_slice_spacing,
    sample_moments,
    volume_seed,
)
from voxscore.measurement import CartesianMRI, Identity, Inpaint, simulate_maps

SHAPE = (6, 5, 4)
PATH = EDM()
NOISE = 0.2
RATIO = 2.0


def gaussian():
    generator = Generator().manual_seed(0)
    mean = 0.5 + 0.2 * torch.randn(1, *SHAPE, generator=generator, dtype=torch.float64)
    variance = 0.02 + 0.1 * torch.rand(1, *SHAPE, generator=generator, dtype=torch.float64)
    return Gaussian(mean, DiagonalCovariance(variance))


def scan(seed=1):
    """A volume of the Gaussian and noise on it, scaled so that the 99.5 % quantile of what is measured is 1."""
    g, generator = gaussian(), Generator().manual_seed(seed)
    draw = lambda: torch.randn(1, 1, *SHAPE, generator=generator, dtype=torch.float64)  # noqa: E731
    y = g.mean + g.covariance.variance.sqrt() * draw() + NOISE * draw()
    return at_unit_scale(y)


def at_unit_scale(y):
    return y / y.flatten().kthvalue(round(0.995 * y.numel())).values


def moments(operator, y, noise):
    """Mean and variance of the Gaussian that is left, for operators that see each voxel alone."""
    g = gaussian()
    seen = operator.normal(torch.ones_like(y))
    w = 1 / (1 / g.covariance.variance + seen / noise**2)
    return w * (g.mean / g.covariance.variance + operator.adjoint(y) / noise**2), w


def exact(prior, operator, y, noise):
    mu, w = moments(operator, y, noise)
    return GaussianDenoiser(prior.path, Gaussian(mu[0], DiagonalCovariance(w[0])))


def inferer(steps=60, method=exact, **kwargs):
    times = karras_times(PATH, steps, ratio_min=1e-3, ratio_max=RATIO, clean=True)
    return ReconstructionInferer(
        lambda _: GaussianDenoiser(PATH, gaussian()), times, Heun(), method, full_precision=True, **kwargs
    )


def identity(x, *_):
    return x


@pytest.mark.parametrize("unit", [1.0, 340.0])
def test_samples_are_those_of_the_closed_form(unit):
    """x | y ~ N(mu, w) for Gaussian data, and the ODE moves x_T to mu + (x_T - mu) sqrt(w / (w + T^2)).

    For every voxel and seed the end is known, so mean and variance are, too. Two samples share the size of their noise,
    not its sign. The tolerance is the solver's: 60 Heun steps come within 2e-3 of it.
    """
    y = scan()
    mu, w = moments(Identity(), y, NOISE)
    samples = inferer().reconstruct(identity, Identity(), unit * y, unit * NOISE, samples=3, seed=4)
    for k, sample in enumerate(samples):
        generator = Generator().manual_seed(volume_seed(4, k // 2))
        z = (-1) ** k * torch.randn(1, 1, *SHAPE, generator=generator, dtype=torch.float64)
        expected = mu + (y + RATIO * z - mu) * torch.sqrt(w / (w + RATIO**2))
        torch.testing.assert_close(sample[None] / unit, expected.float(), rtol=0, atol=2e-3)


def test_mean_and_spread_of_many_samples():
    """200 samples: the mean is exact but for the solver, the mean variance ratio within 4 errors of 100 pairs."""
    y = scan()
    mu, w = moments(Identity(), y, NOISE)
    samples = inferer(steps=30).reconstruct(identity, Identity(), y, NOISE, samples=200).double()
    mean, sd = sample_moments(samples)
    # The start y + T z leaves (y - mu) sqrt(w / (w + T^2)) of itself in the mean.
    rest = (y - mu) * torch.sqrt(w / (w + RATIO**2))
    assert (mean - mu - rest).abs().max() < 2e-3
    shrunk = w * RATIO**2 / (w + RATIO**2)
    ratio = (sd**2 / shrunk).mean()
    assert abs(ratio - 1) < 4 * (2 / 100 / y.numel()) ** 0.5 + 0.01  # and 1 % for the solver


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_moments_of_antithetic_samples(n):
    """m +- s z of 40 000 voxels: an even number has m as its mean, and the variance is s^2 on average, whatever n."""
    z = torch.randn((n + 1) // 2, 1, 40000, generator=Generator().manual_seed(n))
    samples = 5 + 3 * torch.stack([z, -z], dim=1).flatten(0, 1)[:n]
    mean, sd = sample_moments(samples)
    assert mean.shape == sd.shape == (1, 1, 40000)
    torch.testing.assert_close(mean[0], 5 + 3 * z[-1] / n if n % 2 else torch.full_like(mean[0], 5.0))
    assert float(sd.square().mean()) == pytest.approx(9, rel=4 * (2 / (n // 2) / 40000) ** 0.5)


def test_one_sample_has_no_spread():
    mean, sd = sample_moments(torch.ones(1, 1, 3))
    assert sd is None
    torch.testing.assert_close(mean, torch.ones(1, 1, 3))


def test_unmeasured_voxels_keep_the_prior():
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[:3] = True
    g, y, hidden = gaussian(), at_unit_scale(scan() * mask), ~mask
    samples = inferer(steps=30).reconstruct(identity, Inpaint(mask), y, NOISE, samples=120).double()
    mean, sd = (m[0, 0][hidden] for m in sample_moments(samples))
    v, m = g.covariance.variance[0][hidden], g.mean[0][hidden]
    shrink = torch.sqrt(v / (v + RATIO**2))
    # The least-squares start is 0 there, so (0 - m) * shrink of it is left in the mean.
    assert (mean - m + m * shrink).abs().max() < 2e-3
    # 60 pairs of 60 voxels, 2.4 % each way
    assert abs((sd**2 / (v * RATIO**2 / (v + RATIO**2))).mean() - 1) < 4 * 0.024


def test_seeds_make_samples():
    run = inferer(steps=4, samples=2, seed=5)
    two = run.reconstruct(identity, Identity(), scan(), NOISE)
    four = run.reconstruct(identity, Identity(), scan(), NOISE, samples=4, seed=5)
    torch.testing.assert_close(four[:2], two, rtol=0, atol=0)
    other = run.reconstruct(identity, Identity(), scan(), NOISE, samples=1, seed=6)
    for one, another in combinations([*four, *other], 2):
        assert not torch.allclose(one, another, atol=0.1)


def test_every_step_is_announced():
    calls = []
    inferer(steps=4).reconstruct(identity, Identity(), scan(), NOISE, 2, advance=lambda: calls.append(1))
    assert len(calls) == 2 * len(inferer(steps=4).times)


def test_a_method_may_be_a_sampler():
    """DPS steps with the prior alone; with zeta 0 it forgets the measurement."""
    run = inferer(steps=20, method=lambda prior, operator, y, noise: DPS(operator, y, zeta=0.0, eta=0.0))
    a, b = (run.reconstruct(identity, Identity(), y, NOISE, 1) for y in (scan(1), scan(2)))
    # What is left of the start: (y_1 - y_2) sqrt(v / (v + T^2)).
    v = gaussian().covariance.variance
    expected = (scan(1) - scan(2)) * torch.sqrt(v / (v + RATIO**2))
    assert (a - b - expected).abs().max() < 0.05


def test_a_measurement_of_zero_has_no_scale():
    with pytest.raises(ValueError, match="is zero"):
        inferer().reconstruct(identity, Identity(), torch.zeros(1, 1, *SHAPE), NOISE)


def test_an_engine_gets_mean_and_spread_of_a_scan():
    maps = simulate_maps(3, SHAPE)
    mask = torch.zeros(1, SHAPE[1], 1, dtype=torch.bool)
    mask[:, 1:4] = True
    operator = CartesianMRI(mask, maps)
    x = scan().float()
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    inputs = MetaTensor(x, affine=affine)
    y = operator(x)
    run = inferer(steps=6, samples=3, seed=2, method=lambda *problem: Decomposed(*problem, sigma_data=0.3))
    result = run(inputs, identity, y, mask[None], maps[None], torch.tensor([0.05]))
    samples = run.reconstruct(identity, operator, y, 0.05)
    torch.testing.assert_close(result.as_tensor(), torch.cat(sample_moments(samples), dim=1))
    assert torch.equal(result.affine, affine)
    with pytest.raises(ValueError, match="one scan"):
        run(inputs, identity, y.expand(2, -1, -1, -1, -1), mask[None], maps[None], torch.tensor([0.05]))


def test_a_prior_is_told_the_spacing_in_every_evaluation():
    """By an engine the spacing of the scan; without one nobody knows it."""
    told = []

    def network(x, t, cond):
        told.append(cond.tolist())
        return torch.zeros_like(x)

    maps, mask = simulate_maps(2, SHAPE), torch.ones(1, 1, 1, dtype=torch.bool)
    y = CartesianMRI(mask, maps)(scan().float())
    run = ReconstructionInferer(
        lambda net: NetDenoiser(net, PATH, "edm"),
        torch.tensor([2.0, 0.5, 0.0]),
        Heun(),
        Decomposed,
        full_precision=True,
        condition=log_slice_spacing,
    )
    affine = torch.tensor([[2.0, 0, 0, 1], [0, 0, 4, 2], [0, 3, 0, 3], [0, 0, 0, 1]], dtype=torch.float64)
    run(MetaTensor(scan().float(), affine=affine), network, y, mask[None], maps[None], torch.tensor([0.05]))
    assert told == [[[pytest.approx(math.log(4))]]] * 3
    with pytest.raises(ValueError, match="is told the spacing"):
        run.reconstruct(network, CartesianMRI(mask, maps), y, 0.05)


class Local(nn.Module):
    """A network that sees its neighbourhood of 7 voxels, and zeros beyond what it is given."""

    def __init__(self):
        super().__init__()
        self.smooth = nn.Conv3d(1, 1, 7, padding=3, bias=False)
        nn.init.constant_(self.smooth.weight, 1 / 343)

    def forward(self, x, t):
        return self.smooth(x)


def test_windows_leave_no_seams():
    """Windows of 32 with an overlap of 8 against the whole volume, by a network that sees 3 voxels far.

    It sees zeros beyond a window, so it spoils a window's outermost voxels by up to 43 % of a signal of 1. Blended,
    0.5 % is left at most anywhere; with MONAI's weights it is 41 %.
    """
    generator = Generator().manual_seed(0)
    x = torch.randn(1, 1, 56, 40, 32, generator=generator)
    x = nn.functional.avg_pool3d(x, 9, 1, 4, count_include_pad=False)
    x = 1 + x / x.std() * 0.1
    network = Local().eval()
    plain, windowed = (
        ReconstructionInferer(
            lambda net: NetDenoiser(net, PATH, "x0"),
            torch.tensor([0.1, 0.0]),
            Heun(),
            Decomposed,
            window=window,
            full_precision=True,
        ).evaluate
        for window in (None, (32, 32, 32))
    )
    with torch.no_grad():
        whole, parts = plain(x, network, torch.zeros(1)), windowed(x, network, torch.zeros(1))
    inner = (..., *[slice(4, -4)] * 3)  # the edge of the volume is an edge for both
    difference = (parts - whole)[inner]
    assert difference.abs().max() < 0.005


def test_denoising_is_the_posterior_mean_of_the_noisy_volume():
    x = scan()
    denoised = DenoisingInferer(lambda _: GaussianDenoiser(PATH, gaussian()), NOISE, seed=3)(
        MetaTensor(x, affine=torch.eye(4)), identity
    )
    noise = torch.randn(x.shape, generator=Generator().manual_seed(3))
    v, m = gaussian().covariance.variance, gaussian().mean
    expected = (v * (x + NOISE * noise) + NOISE**2 * m) / (v + NOISE**2)
    torch.testing.assert_close(denoised.as_tensor(), expected.float(), rtol=1e-4, atol=1e-5)
