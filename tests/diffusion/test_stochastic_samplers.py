"""Samplers that draw noise: their exact variance, without drawing any, and one volume a seed."""

import math
from itertools import pairwise

import pytest
import torch
from sampler_cases import (
    BANDS,
    F64,
    STOCHASTIC_SAMPLERS,
    halving_ratio,
    mixture,
    normal,
    seeded,
    standard_normals,
)

from voxscore.diffusion import (
    EDM,
    Ancestral,
    Consistency,
    Denoiser,
    Discrete,
    DPMSolver,
    Euler,
    FourierCovariance,
    Gaussian,
    GaussianDenoiser,
    Heun,
    PredictorCorrector,
    Restart,
    ReverseDiffusion,
    Sampler,
    UniPC,
    VolumeNoise,
    karras_times,
    log_uniform_times,
    sample,
)
from voxscore.diffusion.sde_samplers import langevin_step

# Stochastic rules. With a linear denoiser a run is linear in the start and in every noise it draws, so its output
# variance is exact: carry one coefficient for each independent normal along the last axis of x.


SLOTS = 2048


def output_variance(sampler, denoiser, times, start_variance):
    """Variance at the last time of a run on one voxel, by propagating coefficients over independent normals."""
    x = torch.zeros(1, 1, SLOTS, dtype=F64)
    x[..., 0] = math.sqrt(start_variance)
    used = [0]

    def unit(x):
        used[0] += 1
        basis = torch.zeros_like(x)
        basis[..., used[0]] = 1
        return basis

    state = None
    for t, s in pairwise(times):
        x, state = sampler.step(denoiser, x, t, s, unit, state)
    return float(x.square().sum())


def relative_variance_errors(sampler, variance=0.7, steps=(80, 160)):
    path, denoiser = EDM(), normal(variance, voxels=SLOTS)
    errors = []
    for n in steps:
        times = log_uniform_times(path, n, ratio_min=0.05, ratio_max=20.0)
        got = output_variance(sampler, denoiser, times, variance + 20.0**2)
        errors.append(got / (variance + 0.05**2) - 1)
    return errors


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("Ancestral", 1),
        ("DDIM eta 0.5", 1),
        ("SDE-DPM-Solver++1", 1),
        ("SDE-DPM-Solver++2M", 2),
        ("Heun with churn", 2),
        ("ReverseDiffusion", 1),
    ],
)
def test_the_exact_variance_converges_with_the_declared_order(name, order):
    sampler = STOCHASTIC_SAMPLERS[name]
    if name == "Heun with churn":  # S_churn / n, so that the churn of the whole run stays the same
        errors = [relative_variance_errors(Heun(gamma=8 / n), steps=(n,))[0] for n in (80, 160)]
    else:
        errors = relative_variance_errors(sampler)
    low, high = BANDS[order]
    assert low < errors[0] / errors[1] < high
    assert sampler.order == order
    assert sampler.stochastic


def test_ancestral_sampling_is_the_first_order_sde_solver():
    """q(x_s | x_t, x_0 = D) and SDE-DPM-Solver++1 are the same Gaussian."""
    numbers = [relative_variance_errors(sampler) for sampler in (Ancestral(), Euler(1.0), DPMSolver(1, eta=1.0))]
    for other in numbers[1:]:
        torch.testing.assert_close(torch.tensor(other), torch.tensor(numbers[0]), rtol=1e-10, atol=0)


def test_reverse_diffusion_is_the_published_rule():
    """DDPM's reverse diffusion: x - (sqrt(1 - beta) - 1) x + beta score + sqrt(beta) z (Song et al., eq. 46)."""
    betas = torch.linspace(1e-4, 2e-2, 50, dtype=F64)
    path = Discrete(betas)
    denoiser, x, z = normal(0.4, path, mean=0.2), standard_normals(3, 1, 1), standard_normals(3, 1, 1, seed=1)
    t, s = torch.tensor(30.0, dtype=F64), torch.tensor(29.0, dtype=F64)
    beta = betas[30]
    published = x - ((1 - beta).sqrt() - 1) * x + beta * denoiser.score(x, t) + beta.sqrt() * z
    moved, _ = ReverseDiffusion().step(denoiser, x, t, s, lambda x: z, None)
    torch.testing.assert_close(moved, published, rtol=0, atol=1e-12)


def test_an_exact_consistency_function_keeps_every_marginal():
    """x_0 = m + sqrt(v / (v + sigma^2)) (x - m) has the data's variance, so any number of steps does too."""
    variance = 0.7

    class Jump(Denoiser):
        def forward(self, x, t):
            return x * torch.sqrt(variance / (variance + t**2))

    times = karras_times(EDM(), 5, ratio_min=0.05, ratio_max=20.0)
    got = output_variance(Consistency(), Jump(EDM()), times, variance + 20.0**2)
    assert got == pytest.approx(variance + 0.05**2, rel=1e-12)


def test_langevin_has_the_stationary_variance_of_its_step_size():
    """x <- (1 - e/v) x + sqrt(2 e) z settles at v / (1 - e / 2v)."""
    variance, e, t = 0.9, torch.tensor(0.1, dtype=F64), torch.tensor(0.3, dtype=F64)
    v, denoiser = variance + 0.3**2, normal(variance)
    one, zero = torch.ones(1, 1, 1, dtype=F64), torch.zeros(1, 1, 1, dtype=F64)
    gain = langevin_step(one, denoiser.score(one, t), e, zero)
    spread = langevin_step(zero, denoiser.score(zero, t), e, one)
    stationary = spread**2 / (1 - gain**2)
    assert float(stationary) == pytest.approx(v / (1 - 0.1 / (2 * v)), rel=1e-10)


def test_the_corrector_measures_its_step_volume_by_volume():
    """Alg. 4 of Song et al. with norms of one volume, whatever else is in the batch."""
    denoiser, t = mixture(EDM()), torch.tensor(0.8, dtype=F64)
    x, z = standard_normals(3, 1, 2), standard_normals(3, 1, 2, seed=1)

    class Stay(Sampler):
        order, stochastic = 1, False

        def step(self, denoiser, x, t, s, noise, state):
            return x, None

    corrected, _ = PredictorCorrector(Stay(), snr=0.2).step(denoiser, x, t, t, lambda x: z, None)
    for k in range(3):
        score = denoiser.score(x[k : k + 1], t)[0]
        e = 2 * (0.2 * z[k].norm() / score.norm()) ** 2
        torch.testing.assert_close(corrected[k], x[k] + e * score + (2 * e).sqrt() * z[k], rtol=0, atol=1e-12)
    plain, _ = PredictorCorrector(Euler(), corrections=0).step(denoiser, x, t, t / 2, lambda x: z, None)
    torch.testing.assert_close(plain, Euler().step(denoiser, x, t, t / 2, lambda x: z, None)[0], rtol=0, atol=0)


def test_restart_contracts_an_error_of_the_start():
    """A start with too much variance: each restart forgets part of it, and the right variance stays right."""
    variance, path = 0.7, EDM()
    times = log_uniform_times(path, 200, ratio_min=0.05, ratio_max=20.0)
    truth, wrong = variance + 20.0**2, 1.5 * (variance + 20.0**2)
    denoiser = normal(variance, voxels=SLOTS)
    goal = variance + 0.05**2
    # 1.5 times the variance stays 1.5 times it along the ODE.
    assert output_variance(Heun(), denoiser, times, wrong) / goal == pytest.approx(1.5, abs=1e-3)
    restart = Restart(0.1, 5.0, repeats=2, steps=100)
    assert output_variance(restart, denoiser, times, truth) / goal == pytest.approx(1, abs=2e-3)
    # From sigma = 0.1 to 5 the error's share of the variance falls from 0.5 to 0.5 (v + 0.1^2)/(v + 5^2), twice.
    left = 0.5 * ((variance + 0.1**2) / (variance + 5.0**2)) ** 2
    assert output_variance(restart, denoiser, times, wrong) / goal == pytest.approx(1 + left, abs=2e-3)


# One volume a seed, in three dimensions.


def random_field(path, size=8):
    """A Gaussian random field with a power-law spectrum, on real volumes."""
    k = torch.stack(torch.meshgrid(*[torch.fft.fftfreq(size, dtype=F64)] * 3, indexing="ij")).square().sum(0).sqrt()
    spectrum = 1 / (k + 0.05) ** 3
    spectrum = (spectrum / spectrum.mean())[None]
    return GaussianDenoiser(path, Gaussian(torch.zeros_like(spectrum), FourierCovariance(spectrum)))


@pytest.mark.parametrize("sampler", [DPMSolver(2), UniPC(2)], ids=repr)
def test_order_on_a_random_field_in_three_dimensions(sampler):
    path = EDM()
    denoiser = random_field(path)
    ends = log_uniform_times(path, 1)
    x = denoiser.gaussian.sample(standard_normals(2, 1, 8, 8, 8), path, ends[0])
    truth = denoiser.gaussian.transport(x, path, *ends)
    low, high = BANDS[sampler.order + isinstance(sampler, UniPC)]
    assert low < halving_ratio(denoiser, x, truth, lambda n: log_uniform_times(path, n), sampler, 64) < high


@pytest.mark.parametrize("name", STOCHASTIC_SAMPLERS)
def test_a_seed_is_a_volume_at_any_batch_size(name):
    denoiser, sampler = random_field(EDM()), STOCHASTIC_SAMPLERS[name]
    times, x = karras_times(EDM(), 4, ratio_min=0.05), 80 * standard_normals(4, 1, 8, 8, 8)
    together = sample(denoiser, x, times, sampler, [seeded(k) for k in range(4)])
    for k in range(4):
        alone = sample(denoiser, x[k : k + 1], times, sampler, [seeded(k)])
        torch.testing.assert_close(alone[0], together[k], rtol=1e-10, atol=1e-10)
    other = sample(denoiser, x, times, sampler, [seeded(k + 1) for k in range(4)])
    assert ((other - together).flatten(1).norm(dim=1) > 0.1).all(), "another seed is another volume, for each"


def test_one_generator_seeds_the_volumes_in_order():
    denoiser, times, x = random_field(EDM()), karras_times(EDM(), 3), 80 * standard_normals(3, 1, 8, 8, 8)
    three = sample(denoiser, x, times, Ancestral(), seeded(0))
    two = sample(denoiser, x[:2], times, Ancestral(), seeded(0))
    torch.testing.assert_close(two, three[:2], rtol=1e-10, atol=1e-10)
    noise = VolumeNoise(seeded(0), 3)(x)
    assert not torch.allclose(noise[0], noise[1])


def test_the_global_generator_is_left_alone():
    times, x = karras_times(EDM(), 3), torch.ones(2, 1, 1, dtype=F64)
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        runs.append(sample(normal(1.0), x, times, Ancestral()))
        assert torch.equal(torch.get_rng_state(), before)
    assert not torch.allclose(*runs), "without a generator the noise is fresh"
