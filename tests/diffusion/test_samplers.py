"""Samplers are held to closed forms: measured order, exact variance, and one volume a seed."""

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Generator

import voxscore.diffusion
from voxscore.diffusion import (
    DEIS,
    DPS,
    EDM,
    VP,
    Ancestral,
    Consistency,
    Cosine,
    Denoiser,
    DiagonalCovariance,
    Discrete,
    DPMSolver,
    Euler,
    Flow,
    FourierCovariance,
    Gaussian,
    GaussianDenoiser,
    Heun,
    MixtureDenoiser,
    PredictorCorrector,
    Restart,
    ReverseDiffusion,
    Sampler,
    Teleport,
    UniPC,
    VolumeNoise,
    karras_times,
    log_uniform_times,
    sample,
    trajectory,
    uniform_times,
)
from voxscore.diffusion.sde_samplers import langevin_step

F64 = torch.float64

# Declared order of the ODE, and evaluations for 8 steps that stop at some noise, and that end at clean data.
ODE_SAMPLERS = [
    pytest.param(Euler(), 1, 8, 8, id="Euler"),
    pytest.param(Heun(), 2, 16, 15, id="Heun"),
    pytest.param(DPMSolver(1), 1, 8, 8, id="DPM-Solver++1"),
    pytest.param(DPMSolver(2), 2, 8, 8, id="DPM-Solver++2M"),
    pytest.param(DPMSolver(3), 3, 9, 9, id="DPM-Solver++3M"),
    pytest.param(DEIS(1), 1, 8, 8, id="DEIS1"),
    pytest.param(DEIS(2), 2, 8, 8, id="DEIS2"),
    pytest.param(DEIS(3), 3, 9, 9, id="DEIS3"),
    pytest.param(UniPC(1), 2, 9, 8, id="UniPC1"),
    pytest.param(UniPC(2), 3, 9, 8, id="UniPC2"),
]
STOCHASTIC_SAMPLERS = {
    "Ancestral": Ancestral(),
    "DDIM eta 0.5": Euler(0.5),
    "SDE-DPM-Solver++1": DPMSolver(1, eta=1.0),
    "SDE-DPM-Solver++2M": DPMSolver(2, eta=1.0),
    "Heun with churn": Heun(gamma=0.1),
    "ReverseDiffusion": ReverseDiffusion(),
    "PredictorCorrector": PredictorCorrector(),
    "Restart": Restart(0.1, 1.0),
    "Consistency": Consistency(),
}
BANDS = {1: (1.9, 2.1), 2: (3.7, 4.3), 3: (7.2, 8.8)}


def every_sampler():
    yield from (param.values[0] for param in ODE_SAMPLERS)
    yield UniPC(3)
    yield from STOCHASTIC_SAMPLERS.values()
    yield Teleport(DPMSolver(2), normal(1.0).gaussian, 5.0)


def normal(variance, path=None, mean=0.0, voxels=1):
    """Independent voxels of N(mean, variance)."""
    gaussian = Gaussian(
        torch.full((1, voxels), mean, dtype=F64), DiagonalCovariance(torch.full((1, voxels), variance, dtype=F64))
    )
    return GaussianDenoiser(path or EDM(), gaussian)


def mixture(path):
    """Two overlapping modes in two dimensions: smooth enough for errors to be in their asymptotic range."""
    means = torch.tensor([[[-1.0, 0.5]], [[1.0, -0.2]]], dtype=F64)
    return MixtureDenoiser(path, means, torch.tensor([0.12, 0.27], dtype=F64), torch.tensor([0.3, 0.7], dtype=F64))


class Counted(Denoiser):
    """Counts the evaluations."""

    def __init__(self, denoiser):
        super().__init__(denoiser.path)
        self.denoiser, self.count = denoiser, 0

    def forward(self, x, t):
        self.count += 1
        return self.denoiser(x, t)


def standard_normals(*shape, seed=0):
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=F64)


def halving_ratio(denoiser, x, truth, grid, sampler, n):
    coarse, fine = ((sample(denoiser, x, grid(m), sampler) - truth).abs().mean() for m in (n, 2 * n))
    return float(coarse / fine)


@cache
def mixture_run():
    """(denoiser, start, grid of n steps, where the ODE leads)."""
    path = EDM()
    denoiser = mixture(path)

    def grid(n):
        return log_uniform_times(path, n, ratio_min=0.05, ratio_max=10.0)

    x = denoiser.gaussian().sample(standard_normals(32, 1, 2, seed=1), path, grid(1)[0])
    return denoiser, x, grid, sample(denoiser, x, grid(1280), UniPC(3))


def on_mixture(sampler, n=160):
    denoiser, x, grid, truth = mixture_run()
    return halving_ratio(denoiser, x, truth, grid, sampler, n)


def on_gaussian(sampler, path, n=160):
    variance = torch.tensor([[0.1, 0.5, 1.0, 2.0, 0.3]], dtype=F64)
    gaussian = Gaussian(torch.tensor([[0.3, -1.0, 0.0, 2.0, 0.5]], dtype=F64), DiagonalCovariance(variance))
    grid = lambda m: log_uniform_times(path, m, ratio_min=0.05, ratio_max=10.0)  # noqa: E731
    ends = grid(1)
    x = gaussian.sample(standard_normals(8, 1, 5, seed=2), path, ends[0])
    return halving_ratio(GaussianDenoiser(path, gaussian), x, gaussian.transport(x, path, *ends), grid, sampler, n)


def test_every_public_sampler_is_tested():
    public = {
        value
        for name in voxscore.diffusion.__all__
        if isinstance(value := getattr(voxscore.diffusion, name), type) and issubclass(value, Sampler)
    } - {Sampler, DPS}  # DPS needs a measurement and is tested with the posteriors
    assert public == {type(sampler) for sampler in every_sampler()}


@pytest.mark.parametrize(("sampler", "order", "_", "__"), ODE_SAMPLERS)
def test_declared_order_is_measured_on_a_mixture(sampler, order, _, __):
    low, high = BANDS[order]
    assert low < on_mixture(sampler) < high
    assert sampler.order + isinstance(sampler, UniPC) == order  # UniPC's order is its predictor's
    assert not sampler.stochastic


@pytest.mark.parametrize(("sampler", "order", "_", "__"), ODE_SAMPLERS)
@pytest.mark.parametrize("path", [EDM(), VP(), Flow(), Cosine()], ids=lambda p: type(p).__name__)
def test_declared_order_is_reached_on_a_gaussian(sampler, order, _, __, path):
    """One-sided: the problem is linear and some rules are better on it than they promise."""
    assert on_gaussian(sampler, path, n=80) > BANDS[order][0] - (0.3 if order == 3 else 0)


def test_unipc_3_is_better_than_third_order():
    """Its fourth order is not reached for good, since its first steps are of lower order."""
    assert on_mixture(UniPC(3), n=40) > 7.2
    assert on_gaussian(UniPC(3), EDM(), n=40) > 7.2


@dataclass(frozen=True)
class Mistyped(Sampler):
    """DPM-Solver++ 3M without the factor 2, as it is in circulation."""

    order = 3
    stochastic = False

    def step(self, denoiser, x, t, s, noise, state):
        right, state_after = DPMSolver(3).step(denoiser, x, t, s, noise, state)
        if state is None or len(state) < 2:
            return right, state_after
        (h1, d1), (h2, d2) = state
        h, d0 = state_after[0]
        r1, r2 = h1 / h, h2 / h
        second = ((d0 - d1) / r1 - (d1 - d2) / r2) / (r1 + r2)
        phi3 = (1 + torch.expm1(-h) / h) / h - 0.5
        return right + denoiser.path.alpha(s) * phi3 * second, state_after


@dataclass(frozen=True)
class SignError(Sampler):
    """DDIM with sigma_t for sigma_s."""

    order = 1
    stochastic = False

    def step(self, denoiser, x, t, s, noise, state):
        d = denoiser(x, t)
        return denoiser.path.alpha(s) * d + denoiser.path.sigma(t) * denoiser.noise(x, t), None


@pytest.mark.parametrize("sampler", [Mistyped(), SignError()], ids=["3M without factor 2", "DDIM"])
def test_a_mistyped_sampler_fails(sampler):
    low, high = BANDS[sampler.order]
    assert not low < on_mixture(sampler) < high
    assert not on_gaussian(sampler, EDM()) > low


@pytest.mark.parametrize(("sampler", "_", "evaluations", "to_clean"), ODE_SAMPLERS)
def test_evaluations_are_counted(sampler, _, evaluations, to_clean):
    for clean, expected in ((False, evaluations), (True, to_clean)):
        counted = Counted(normal(1.0))
        sample(counted, torch.ones(1, 1, 1, dtype=F64), karras_times(EDM(), 8, clean=clean), sampler)
        assert counted.count == expected


def test_euler_is_the_same_on_every_path():
    """DDIM, an Euler step of EDM in x/alpha and one of flow matching are one formula."""
    x, d = standard_normals(3, 1, 4), standard_normals(3, 1, 4, seed=1)
    t, s = torch.tensor(0.7, dtype=F64), torch.tensor(0.55, dtype=F64)

    class Fixed(Denoiser):
        def forward(self, x, t):
            return d

    flow = sample(Fixed(Flow()), x, torch.stack([t, s]), Euler())
    velocity = (x - d) / t  # eps - x_0 of flow matching
    torch.testing.assert_close(flow, x + (s - t) * velocity, rtol=0, atol=1e-12)
    ratios = Flow().ratio(torch.stack([t, s]))
    u = x / (1 - t)
    edm = sample(Fixed(EDM()), u, ratios, Euler())
    torch.testing.assert_close(edm, u + (ratios[1] - ratios[0]) * (u - d) / ratios[0], rtol=0, atol=1e-12)
    for path in (VP(), Cosine(), Discrete(torch.linspace(1e-4, 2e-2, 1000))):
        times = path.time(ratios)
        other = sample(Fixed(path), path.alpha(times[0]) * u, times, Euler())
        torch.testing.assert_close(other / path.alpha(times[1]), edm, rtol=0, atol=1e-12)
    torch.testing.assert_close(flow / (1 - s), edm, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", [p.values[0] for p in ODE_SAMPLERS] + [UniPC(3)], ids=repr)
@pytest.mark.parametrize("path", [VP(), Flow()], ids=lambda p: type(p).__name__)
def test_a_point_mass_is_reached_in_any_steps(sampler, path):
    """D is constant and every trajectory of x/alpha is straight."""
    denoiser = normal(0.0, path, mean=1.5)
    x, times = standard_normals(2, 1, 1), karras_times(path, 3)
    truth = denoiser.gaussian.transport(x, path, times[0], times[-1])
    torch.testing.assert_close(sample(denoiser, x, times, sampler), truth, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", [p.values[0] for p in ODE_SAMPLERS] + [UniPC(3)], ids=repr)
def test_pure_noise_is_a_start(sampler):
    """alpha = 0: the first step is of first order and finite, and the error still vanishes with the steps."""
    path = Flow()
    denoiser, x = normal(0.3, path, mean=1.0), standard_normals(4, 1, 1)
    truth = denoiser.gaussian.transport(x, path, torch.tensor(1.0, dtype=F64), torch.tensor(0.0, dtype=F64))
    errors = [(sample(denoiser, x, uniform_times(path, n), sampler) - truth).abs().max() for n in (16, 64)]
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.03


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


def seeded(k):
    return Generator().manual_seed(100 + k)


@pytest.mark.parametrize("name", STOCHASTIC_SAMPLERS)
def test_a_seed_is_a_volume_at_any_batch_size(name):
    denoiser, sampler = random_field(EDM()), STOCHASTIC_SAMPLERS[name]
    times, x = karras_times(EDM(), 4, ratio_min=0.05), 80 * standard_normals(4, 1, 8, 8, 8)
    together = sample(denoiser, x, times, sampler, [seeded(k) for k in range(4)])
    for k in range(4):
        alone = sample(denoiser, x[k : k + 1], times, sampler, [seeded(k)])
        torch.testing.assert_close(alone[0], together[k], rtol=1e-10, atol=1e-10)
    other = sample(denoiser, x, times, sampler, [seeded(k + 1) for k in range(4)])
    assert (other - together).abs().amin(dim=(1, 2, 3, 4)).min() < 1e3  # finite, and:
    assert not torch.allclose(other, together)


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


# The loop.


def test_a_trajectory_has_a_state_for_every_time_and_runs_when_asked():
    counted, times = Counted(normal(1.0)), karras_times(EDM(), 4)
    x = 80 * standard_normals(2, 1, 1)
    states = trajectory(counted, x, times, Euler())
    assert counted.count == 0
    states = list(states)
    assert len(states) == len(times)
    assert torch.equal(states[0], x)
    for (t, s), (before, after) in zip(pairwise(times), pairwise(states), strict=True):
        torch.testing.assert_close(sample(counted, before, torch.stack([t, s]), Euler()), after, rtol=0, atol=0)
    assert torch.equal(states[-1], sample(counted, x, times, Euler()))


@pytest.mark.parametrize("sampler", list(every_sampler()), ids=lambda s: type(s).__name__)
def test_volumes_keep_their_dtype(sampler):
    """float32 agrees with float64 to a few of its rounding errors per step, on noise levels up to 80."""
    denoiser, times = normal(1.0), karras_times(EDM(), 6)
    x = 80 * standard_normals(2, 1, 1)
    noise = standard_normals(2, 1, 1, seed=5)
    runs = []
    for dtype in (F64, torch.float32):
        y, state = x.to(dtype), None
        for t, s in pairwise(times):
            y, state = sampler.step(denoiser, y, t, s, noise.to, state)
        assert y.dtype is dtype
        runs.append(y)
    torch.testing.assert_close(runs[1].double(), runs[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", list(every_sampler()), ids=lambda s: type(s).__name__)
def test_clean_data_is_an_end_for_every_rule(sampler):
    """The last step to sigma = 0 is finite and near the data, N(0, 1) in eight voxels."""
    denoiser = normal(1.0, voxels=8)
    if isinstance(sampler, Teleport):
        sampler = Teleport(sampler.sampler, denoiser.gaussian, sampler.ratio)
    x = 80 * standard_normals(1, 1, 8)
    y = sample(denoiser, x, karras_times(EDM(), 12, clean=True), sampler, seeded(0))
    assert y.abs().max() < 6


def test_runs_keep_no_graph():
    x = torch.ones(1, 1, 1, dtype=F64, requires_grad=True)
    assert not sample(normal(1.0), x, karras_times(EDM(), 2), Euler()).requires_grad


@pytest.mark.parametrize(
    ("sampler", "steps", "tolerance"),
    [(UniPC(3), 20, 1e-3), (DPMSolver(3), 20, 1e-3), (UniPC(2), 20, 3e-3), (DPMSolver(2), 40, 1e-3)],
    ids=repr,
)
def test_few_steps_on_the_table_of_a_ddpm(sampler, steps, tolerance):
    """N(0, 0.3^2) from N(0, 1) at t = 999: all the run does is multiply by a number near 0.3."""
    path = Discrete(torch.linspace(1e-4, 2e-2, 1000))
    times = log_uniform_times(path, steps, clean=True)
    gain = sample(normal(0.09, path), torch.ones(1, 1, 1, dtype=F64), times, sampler)
    assert float(gain) == pytest.approx(0.3, abs=tolerance)


# Bad use teaches.


class Broken(Denoiser):
    """Right until the noise level falls below 1."""

    def forward(self, x, t):
        return x / (1 + t**2) if t > 1 else x * math.nan


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (torch.tensor([1.0, 2.0]), "descend"),
        (torch.tensor([2.0, 1.0, 1.0]), "descend"),
        (torch.tensor([1.0]), "one step"),
        (torch.ones(2, 2), "one step"),
        (torch.tensor([1.0, -0.1]), r"\[0, inf\], the span of EDM"),
    ],
)
def test_bad_grids(times, message):
    with pytest.raises(ValueError, match=message):
        trajectory(normal(1.0), torch.ones(1, 1, 1), times, Euler())


def test_times_outside_the_span():
    with pytest.raises(ValueError, match=r"\[0, 1\], the span of VP; got 1.1 to 0"):
        sample(normal(1.0, VP()), torch.ones(1, 1, 1), torch.tensor([1.1, 0.0]), Euler())


def test_nan_stops_the_run_and_says_where():
    times = torch.tensor([4.0, 2.0, 0.5, 0.1], dtype=F64)
    with pytest.raises(ValueError, match=r"NaN or infinity at t = 0\.5, noise level sigma/alpha = 0\.5"):
        sample(Broken(EDM()), torch.ones(1, 1, 1, dtype=F64), times, Euler())


def test_a_denoiser_that_changes_the_shape():
    class Wrong(Denoiser):
        def forward(self, x, t):
            return x[:, :1]

    with pytest.raises(ValueError, match=r"made \(1, 1, 4\) of a volume \(1, 2, 4\)"):
        sample(Wrong(EDM()), torch.ones(1, 2, 4), torch.tensor([2.0, 1.0]), Euler())


@pytest.mark.parametrize("x", [torch.ones(4), torch.ones(1, 1, 4, dtype=torch.long)], ids=["no batch", "integers"])
def test_a_start_that_is_no_volume(x):
    with pytest.raises(ValueError, match="batch of volumes"):
        sample(normal(1.0), x, torch.tensor([2.0, 1.0]), Euler())


def test_as_many_generators_as_volumes():
    with pytest.raises(ValueError, match="got 2 for a batch of 3"):
        sample(normal(1.0), torch.ones(3, 1, 1), torch.tensor([2.0, 1.0]), Ancestral(), [seeded(0), seeded(1)])


@pytest.mark.parametrize(
    "build",
    [
        lambda: Euler(1.5),
        lambda: DPMSolver(4),
        lambda: DPMSolver(3, eta=1.0),
        lambda: DEIS(0),
        lambda: UniPC(4),
        lambda: Heun(gamma=-1.0),
        lambda: PredictorCorrector(snr=-1.0),
        lambda: Restart(1.0, 0.5),
        lambda: Restart(0.1, 1.0, repeats=0),
    ],
)
def test_bad_arguments(build):
    with pytest.raises(ValueError, match=r"Euler|Heun|DPMSolver|DEIS|UniPC|PredictorCorrector|Restart"):
        build()


def test_mistaken_arguments_are_named():
    times, x = torch.tensor([2.0, 1.0]), torch.ones(1, 1, 1)
    with pytest.raises(TypeError, match=r"sampler is an instance, Euler\(\)"):
        sample(normal(1.0), x, times, Euler)
    with pytest.raises(TypeError, match="denoiser knows its path"):
        sample(lambda x, t: x, x, times, Euler())
    with pytest.raises(TypeError, match="a seed is not a generator"):
        sample(normal(1.0), x, times, Ancestral(), generator=0)
    with pytest.raises(ValueError, match="the start x has NaN"):
        sample(normal(1.0), x * math.nan, times, Euler())
    with pytest.raises(ValueError, match="begin at a finite time"):
        sample(normal(1.0), x, torch.tensor([math.inf, 1.0]), Euler())


def test_a_grid_may_be_a_list():
    x = standard_normals(1, 1, 1)
    y = sample(normal(1.0), x, [2.0, 1.0], Euler())
    assert torch.equal(y, sample(normal(1.0), x, torch.tensor([2.0, 1.0]), Euler()))


def test_the_corrector_stands_still_where_the_score_is_zero():
    x, t = torch.zeros(1, 1, 1, dtype=F64), torch.tensor(1.0, dtype=F64)
    moved, _ = PredictorCorrector(Euler()).step(normal(1.0), x, t, t / 2, torch.ones_like, None)
    assert not moved.any()
