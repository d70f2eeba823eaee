"""Where diffusers has the same rule, both walk through the same states on every path; in third order they part."""

import math
from functools import partial

import pytest
import torch
from torch import Generator

from voxscore.diffusion import (
    DEIS,
    EDM,
    Ancestral,
    Cosine,
    Denoiser,
    DPMSolver,
    Euler,
    Flow,
    Heun,
    MixtureDenoiser,
    NetDenoiser,
    UniPC,
    VolumeNoise,
    karras_times,
    log_uniform_times,
    sample,
    trajectory,
)

diffusers = pytest.importorskip("diffusers")
# It makes arrays of tensors, of which numpy 2 warns.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

F64 = torch.float64
SHAPE = (2, 1, 3, 4, 5)
N = 20
PATHS = pytest.mark.parametrize("path", [EDM(), Cosine(), Flow()], ids=lambda p: type(p).__name__)

# diffusers keeps noise levels in float32, which the tests make float64; some schedulers also round every sample to it.
EXACT, ROUNDED = 1e-12, 2e-6

# From the largest noise of their betas to the smallest, then to clean data.
KARRAS = {"use_karras_sigmas": True}
# Evenly spaced indices, then the smallest noise of their betas, without a step of lower order at the end.
NOISY_END = {"final_sigmas_type": "sigma_min", "lower_order_final": False}
DDIM = {"timestep_spacing": "trailing", "clip_sample": False}
SDE = {"algorithm_type": "sde-dpmsolver++"}


def standard_normals(*shape, seed):
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=F64)


def mixture(path):
    """Three overlapping modes."""
    means = 0.3 * standard_normals(3, *SHAPE[1:], seed=1)
    variances, weights = torch.tensor([[0.1, 0.3, 0.2], [0.5, 0.3, 0.2]], dtype=F64)
    return MixtureDenoiser(path, means, variances, weights)


def prepared(name, options, ratios=None):
    """A scheduler, and sigma/alpha at each of its evaluations and at its end: its own, or the given."""
    scheduler = getattr(diffusers, f"{name}Scheduler")(**options)
    scheduler.set_timesteps(N if ratios is None else len(ratios) - 1)
    if name == "DDIM":
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        squared_alpha = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps], scheduler.final_alpha_cumprod[None]])
        return scheduler, torch.sqrt(1 / squared_alpha - 1)
    scheduler.sigmas = scheduler.sigmas.double() if ratios is None else ratios
    return scheduler, scheduler.sigmas


def held(scheduler, ratios):
    """What a scheduler holds in units of x/alpha: 1, or the alpha of a variance-preserving path."""
    exploding = type(scheduler).__name__.startswith(("Euler", "Heun", "LMS"))
    return torch.ones_like(ratios) if exploding else torch.rsqrt(1 + ratios**2)


def step(scheduler, timestep, ratio, x, denoiser, **options):
    """One step of x, as the scheduler holds it."""
    t = denoiser.path.time(ratio)
    u = scheduler.scale_model_input(x, timestep) * torch.sqrt(1 + ratio**2)  # a network's input preserves variance
    return scheduler.step(denoiser.noise(denoiser.path.alpha(t) * u, t), timestep, x, **options).prev_sample


def start(ratios):
    """x/alpha at the first level."""
    return ratios[0] * standard_normals(*SHAPE, seed=2)


def theirs(scheduler, ratios, denoiser, stochastic=False, **options):
    """x/alpha at every level, with the noise that `ours` draws."""
    units, states, noise = held(scheduler, ratios), [], VolumeNoise(Generator().manual_seed(3), SHAPE[0])
    x = units[0] * start(ratios)
    for timestep, ratio, unit in zip(scheduler.timesteps, ratios[:-1], units[:-1], strict=True):
        drawn = {"variance_noise": noise(x)} if stochastic else {}
        y = step(scheduler, timestep, ratio, x, denoiser, **drawn, **options)
        if not getattr(scheduler, "state_in_first_order", False):  # else x was Heun's trial
            states.append(getattr(scheduler, "last_sample", x) / unit)  # x as UniPC has corrected it by now
        x = y
    return torch.stack([*states, x / units[-1]])


def ours(sampler, ratios, denoiser):
    """x/alpha at every level."""
    path = denoiser.path
    times = path.time(ratios)
    states = trajectory(denoiser, path.alpha(times[0]) * start(ratios), times, sampler, Generator().manual_seed(3))
    return torch.stack([x / path.alpha(t) for x, t in zip(states, times, strict=True)])


def assert_same(a, b, ratios, tolerance):
    """States x/alpha are compared with variance preserved, so that the tolerance means the same at all levels."""
    unit = torch.rsqrt(1 + ratios**2).reshape(-1, *[1] * len(SHAPE))
    torch.testing.assert_close(unit * a, unit * b, rtol=0, atol=tolerance)


@PATHS
@pytest.mark.parametrize(
    ("sampler", "name", "options", "per_step", "tolerance"),
    [
        (Euler(), "EulerDiscrete", KARRAS, {}, ROUNDED),
        (Euler(), "DDIM", DDIM, {}, EXACT),
        (Heun(), "HeunDiscrete", KARRAS, {}, EXACT),
        (DPMSolver(1), "DPMSolverMultistep", {"solver_order": 1} | KARRAS, {}, ROUNDED),
        (DPMSolver(2), "DPMSolverMultistep", {"solver_order": 2} | KARRAS, {}, ROUNDED),
        (DPMSolver(2), "DPMSolverMultistep", {"solver_order": 2} | NOISY_END, {}, ROUNDED),
        # DEIS of diffusers has polynomials in ln rho; those in rho, which are ours, are its LMS.
        (DEIS(1), "LMSDiscrete", KARRAS, {"order": 1}, EXACT),
        (DEIS(2), "LMSDiscrete", KARRAS, {"order": 2}, EXACT),
        (UniPC(1), "UniPCMultistep", {"solver_order": 1} | KARRAS, {}, EXACT),
        (UniPC(2), "UniPCMultistep", {"solver_order": 2} | KARRAS, {}, EXACT),
        (Euler(0.5), "DDIM", DDIM, {"eta": 0.5}, EXACT),
        (Ancestral(), "DDIM", DDIM, {"eta": 1.0}, EXACT),
        (DPMSolver(1, eta=1.0), "DPMSolverMultistep", {"solver_order": 1} | SDE | KARRAS, {}, ROUNDED),
        (DPMSolver(2, eta=1.0), "DPMSolverMultistep", {"solver_order": 2} | SDE | KARRAS, {}, ROUNDED),
    ],
)
def test_runs_agree(path, sampler, name, options, per_step, tolerance):
    scheduler, evaluated = prepared(name, options)
    levels, denoiser = evaluated.unique_consecutive(), mixture(path)  # Heun evaluates twice at a level
    run = theirs(scheduler, evaluated, denoiser, sampler.stochastic, **per_step)
    assert_same(ours(sampler, levels, denoiser), run, levels, tolerance)


@PATHS
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_agrees_up_to_the_last_corrector(path, order):
    """Which diffusers skips, and which is ours unless the last level is clean."""
    scheduler, levels = prepared("UniPCMultistep", {"solver_order": order} | NOISY_END)
    a, b = ours(UniPC(order), levels, mixture(path)), theirs(scheduler, levels, mixture(path))
    assert_same(a[:-1], b[:-1], levels[:-1], EXACT)
    assert (a[-1] - b[-1]).abs().max() > 1e-3


@PATHS
def test_deis_3_makes_the_same_steps(path):
    """From our states: an LMS run begins with Euler's step, ours with Heun's."""
    scheduler, levels = prepared("LMSDiscrete", KARRAS)
    states = ours(DEIS(3), levels, mixture(path))
    along = zip(scheduler.timesteps, levels[:-1], states[:-1], strict=True)
    steps = torch.stack([step(scheduler, *here, mixture(path), order=3) for here in along])
    assert_same(states[3:], steps[2:], levels[3:], EXACT)


def test_edm_with_a_network_and_its_preconditioning():
    """Only public settings on both sides: grids, c_skip, c_out, c_in and the network's time are each one's own."""

    def net(x, time):
        return torch.tanh(x + time.mean())

    path = EDM(0.02, 50.0)
    times = karras_times(path, N, clean=True)
    denoiser = NetDenoiser(net, path, "edm", sigma_data=0.7, time_map=lambda t: torch.log(t) / 4)
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(0.02, 50.0, sigma_data=0.7)
    scheduler.set_timesteps(N)
    x = y = start(times)
    for timestep in scheduler.timesteps:
        y = scheduler.step(net(scheduler.scale_model_input(y, timestep), timestep), timestep, y).prev_sample
    z = sample(denoiser, x, times, DPMSolver(2))
    torch.testing.assert_close(z, y, rtol=0, atol=1e-5)


def test_flow_matching_from_pure_noise():
    denoiser, x = mixture(Flow()), standard_normals(*SHAPE, seed=2)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(N)
    scheduler.sigmas = scheduler.sigmas.double()
    states = [x]
    for timestep, t in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        states.append(scheduler.step(denoiser.velocity(states[-1], t), timestep, states[-1]).prev_sample)
    run = list(trajectory(denoiser, x, scheduler.sigmas, Euler()))
    torch.testing.assert_close(run, states, rtol=0, atol=ROUNDED)


@PATHS
@pytest.mark.parametrize(
    ("grid", "name", "options"),
    [
        (karras_times, "EulerDiscrete", KARRAS),
        (log_uniform_times, "EulerDiscrete", {"use_exponential_sigmas": True}),
        (partial(karras_times, rho=5.0), "EDMEuler", {"rho": 5.0}),
    ],
)
def test_grids_agree(path, grid, name, options):
    scheduler = getattr(diffusers, f"{name}Scheduler")(sigma_min=0.02, sigma_max=50.0, **options)
    scheduler.set_timesteps(N)
    times = grid(path, N, ratio_min=0.02, ratio_max=50.0, clean=True)
    torch.testing.assert_close(path.ratio(times), scheduler.sigmas.double(), rtol=2e-7, atol=0)  # float32


class Quadratic(Denoiser):
    """E[x_0 | x_t] = lambda^2 whatever x is, with lambda = -ln(sigma/alpha)."""

    def forward(self, x, t):
        return torch.log(self.path.ratio(t)).square().expand(x.shape)


def test_third_order_integrates_a_quadratic_and_diffusers_half_of_it():
    """Its last term is -2 phi_3 h^2. The published code, which diffusers follows, has it without the 2."""
    denoiser, zero, state = Quadratic(EDM()), torch.zeros(SHAPE, dtype=F64), None
    lambdas, h = torch.tensor([0.0, 0.3, 0.8, 1.2], dtype=F64), 1.2 - 0.8
    ratios = torch.exp(-lambdas)
    scheduler, _ = prepared("DPMSolverMultistep", {"solver_order": 3} | NOISY_END, ratios)
    for timestep, t, s in zip(scheduler.timesteps, ratios[:-1], ratios[1:], strict=True):
        a, state = DPMSolver(3).step(denoiser, zero, t, s, None, state)
        b = step(scheduler, timestep, t, zero, denoiser) / held(scheduler, s)
    integral = torch.exp(lambdas) * (lambdas**2 - 2 * lambdas + 2)  # of e^lambda lambda^2
    exact = (ratios[3] * (integral[3] - integral[2])).expand(SHAPE)
    phi3 = (1 + math.expm1(-h) / h) / h - 0.5
    torch.testing.assert_close(a, exact, rtol=0, atol=EXACT)
    torch.testing.assert_close(b, exact + phi3 * h**2, rtol=0, atol=ROUNDED)


def test_third_order_converges_with_third_order_and_diffusers_with_second():
    """For which its first step, Euler's, would be enough; the formula is tested above."""

    def ends(n):
        ratios = log_uniform_times(EDM(), n, ratio_min=0.05, ratio_max=10.0)
        scheduler, _ = prepared("DPMSolverMultistep", {"solver_order": 3} | NOISY_END, ratios)
        runs = (ours(DPMSolver(3), ratios, denoiser), theirs(scheduler, ratios, denoiser))
        return torch.stack([run[-1] for run in runs])

    denoiser = mixture(EDM())
    truth = ours(UniPC(3), log_uniform_times(EDM(), 640, ratio_min=0.05, ratio_max=10.0), denoiser)[-1]
    coarse, fine = ((ends(n) - truth).abs().flatten(1).mean(1) for n in (80, 160))
    a, b = coarse / fine
    assert a > 7.2
    assert 3.7 < b < 4.5
