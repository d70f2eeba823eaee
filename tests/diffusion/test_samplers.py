"""Samplers of the ODE, and the loop, are held to closed forms."""

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import pytest
import torch
from sampler_cases import (
    BANDS,
    F64,
    ODE_SAMPLERS,
    Counted,
    every_sampler,
    halving_ratio,
    mixture,
    normal,
    seeded,
    standard_normals,
)

import voxscore.diffusion
from voxscore.diffusion import (
    DEIS,
    DPS,
    EDM,
    VP,
    Ancestral,
    Cosine,
    Denoiser,
    DiagonalCovariance,
    Discrete,
    DPMSolver,
    Euler,
    Flow,
    Gaussian,
    GaussianDenoiser,
    Heun,
    PredictorCorrector,
    RefineGroup,
    Restart,
    Sampler,
    Teleport,
    UniPC,
    karras_times,
    log_uniform_times,
    sample,
    trajectory,
    uniform_times,
)


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
    } - {Sampler, DPS, RefineGroup}  # these need a measurement or groups and have tests of their own
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
    with pytest.raises(FloatingPointError, match=r"NaN or infinity at t = 0\.5, noise level sigma/alpha = 0\.5"):
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
