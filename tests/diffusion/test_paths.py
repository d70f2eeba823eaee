"""Every path against its published form, and the laws that all paths and time grids keep."""

import copy
import dataclasses
import math
import pickle

import pytest
import torch
from oracles import DDPM, PATHS, PURE_NOISE, ZERO_TERMINAL, f64, on_paths, times_between

from voxscore.diffusion import (
    EDM,
    VE,
    VP,
    Cosine,
    Discrete,
    Euler,
    Flow,
    GaussianDenoiser,
    Path,
    SubVP,
    karras_times,
    log_uniform_times,
    paths,
    sample,
    uniform_times,
)
from voxscore.diffusion.exact import DiagonalCovariance, Gaussian

RATIO_GRIDS = [karras_times, log_uniform_times]
FUNCTIONS = ["alpha", "sigma", "ratio", "drift", "diffusion"]


def linear_beta(path, t):
    beta = path.beta_min + t * (path.beta_max - path.beta_min)
    return beta, path.beta_min * t + (path.beta_max - path.beta_min) * t**2 / 2


def vp_form(path, t):
    beta, _ = linear_beta(path, t)
    return -beta / 2, beta


def sub_vp_form(path, t):
    beta, integral = linear_beta(path, t)
    return -beta / 2, beta * (1 - torch.exp(-2 * integral))


def ve_form(path, t):
    sigma = path.sigma_min * (path.sigma_max / path.sigma_min) ** t
    return 0 * t, 2 * sigma**2 * math.log(path.sigma_max / path.sigma_min)


def cosine_form(path, t):
    rate = math.pi / 2 / (1 + path.s)
    tangent = torch.tan((t + path.s) * rate)
    return -rate * tangent, 2 * rate * tangent


def angle_form(path, t):
    """Linear between the angles arctan(rho) of the table."""
    alpha_bar = torch.cumprod(torch.cat([f64([1.0]), 1 - f64(path.betas)]), dim=0)
    angles = torch.acos(alpha_bar.sqrt())
    k = t.floor().long() + 1
    rate = angles[k + 1] - angles[k]
    tangent = torch.tan(angles[k] + rate * (t - t.floor()))
    return -rate * tangent, 2 * rate * tangent


PUBLISHED = {
    VP: vp_form,
    SubVP: sub_vp_form,
    VE: ve_form,
    EDM: lambda path, t: (0 * t, 2 * t),
    Flow: lambda path, t: (-1 / (1 - t), 2 * t / (1 - t)),
    Cosine: cosine_form,
    Discrete: angle_form,
}


def test_every_public_path_is_tested():
    public = {cls for cls in vars(paths).values() if isinstance(cls, type) and issubclass(cls, Path)} - {Path}
    public = {cls for cls in public if cls.__name__ in paths.__all__}
    assert public == {type(path) for path in PATHS.values()} == set(PUBLISHED)


@on_paths()
def test_drift_and_diffusion_are_the_published_forms(path):
    t = times_between(path, 41)
    drift, diffusion = PUBLISHED[type(path)](path, t)
    # The oracle's arccosine of a table costs digits near 1; the other forms are exact to rounding.
    rtol = 1e-11 if isinstance(path, Discrete) else 1e-12
    torch.testing.assert_close(path.drift(t), drift, rtol=rtol, atol=1e-12)
    torch.testing.assert_close(path.diffusion(t), diffusion, rtol=rtol, atol=1e-12)


@on_paths()
def test_a_path_starts_at_clean_data(path):
    """With drift and diffusion this pins alpha and sigma down: they solve a first-order ODE from here."""
    clean = f64(path.span[0])
    torch.testing.assert_close(path.alpha(clean), f64(1.0), rtol=0, atol=1e-15)
    assert float(path.sigma(clean)) == 0
    assert float(path.ratio(clean)) == 0


@on_paths()
def test_rates_are_the_slopes_of_alpha_and_sigma(path):
    # Midpoints, since the slopes of a table jump at its entries.
    t = times_between(path, 9).floor() + 0.5 if isinstance(path, Discrete) else times_between(path, 9)
    # The error of a central difference, h^2 |alpha'''| / 6, and its rounding, 1e-16 / h, both stay below 1e-9.
    h = 1e-5 * t.abs().clamp(max=1)
    for rate, function in zip(path.rates(t), (path.alpha, path.sigma), strict=True):
        difference = (function(t + h) - function(t - h)) / (2 * h)
        torch.testing.assert_close(rate, difference, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(path.drift(t), path.rates(t)[0] / path.alpha(t))


@on_paths(*PURE_NOISE)
def test_rates_are_continuous_up_to_pure_noise(path):
    """alpha' does not vanish where alpha does: the velocity there is alpha' D."""
    end = f64(path.span[1])
    alpha_rate, sigma_rate = path.rates(end)
    before = path.rates(end - 1e-7)
    assert float(before[0]) < 0
    torch.testing.assert_close(alpha_rate, before[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(sigma_rate, before[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", [DDPM, ZERO_TERMINAL])
def test_a_table_is_met_at_every_integer(path):
    alpha_bar = torch.cumprod(1 - f64(path.betas), dim=0)
    t = torch.arange(len(path.betas), dtype=torch.float64)
    torch.testing.assert_close(path.alpha(t) ** 2, alpha_bar, rtol=0, atol=1e-14)
    torch.testing.assert_close(path.sigma(t) ** 2, 1 - alpha_bar, rtol=0, atol=1e-14)
    assert path.span == (-1, len(path.betas) - 1)


def test_the_table_of_a_monai_scheduler():
    from monai.networks.schedulers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=1000, schedule="scaled_linear_beta")
    alpha = Discrete(scheduler.betas).alpha(torch.arange(1000, dtype=torch.float64))
    # A product of 1000 float32 numbers has a relative error of 1000 x 6e-8.
    torch.testing.assert_close(alpha**2, scheduler.alphas_cumprod.double(), rtol=6e-5, atol=0)


@pytest.mark.parametrize("path", [VP(), VP(0.2, 12.0), Cosine(), DDPM, ZERO_TERMINAL])
def test_variance_preserving_paths(path):
    t = torch.linspace(*path.span, 101, dtype=torch.float64)
    torch.testing.assert_close(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones_like(t), rtol=0, atol=1e-14)


def test_multiplying_the_ratio_shifts_flow_matching():
    t, kappa = torch.linspace(0, 1, 11, dtype=torch.float64), 2.5
    shifted = Flow().time(kappa * Flow().ratio(t))
    torch.testing.assert_close(shifted, kappa * t / (1 + (kappa - 1) * t), rtol=1e-14, atol=0)


@on_paths()
def test_time_and_ratio_are_inverse(path):
    ratios = torch.cat([f64([0.0]), torch.logspace(-3, math.log10(path.ratios[1]), 60, dtype=torch.float64)])
    # Near t = 1 a rounding of t moves rho by rho^2 times as much: 80^2 x 1e-16 of 80.
    torch.testing.assert_close(path.ratio(path.time(ratios)), ratios, rtol=1e-12, atol=0)
    times = path.time(ratios)
    # Times are of order 1, but for EDM and for an index.
    torch.testing.assert_close(path.time(path.ratio(times)), times, rtol=1e-12, atol=1e-13)


@on_paths()
def test_time_at_the_ends(path):
    clean, end = path.span
    assert float(path.time(f64(0.0))) == clean
    if math.isfinite(end) and math.isfinite(float(path.ratio(f64(end)))):
        assert float(path.time(path.ratio(f64(end)))) == pytest.approx(end, rel=1e-14)
    assert float(path.time(f64(math.inf))) >= end


@on_paths(*PURE_NOISE)
def test_infinite_ratio_is_the_end_of_a_path_without_signal(path):
    end = path.time(f64(math.inf))
    assert float(end) == path.span[1]
    assert float(path.alpha(end)) == 0
    assert float(path.sigma(end)) == pytest.approx(1, abs=1e-15)
    assert float(path.ratio(end)) == math.inf


@on_paths()
def test_the_ratio_increases_strictly(path):
    low = path.span[0] if math.isfinite(path.span[0]) else -2.0
    t = torch.linspace(low, min(path.span[1], 100.0), 2001, dtype=torch.float64)
    assert (path.ratio(t).diff() > 0).all()


@on_paths()
def test_usual_ratios_and_the_time_of_noise(path):
    low, high = path.ratios
    assert 0 < low < high < math.inf
    assert path.t_noise.dtype is torch.float64
    expected = path.span[1] if math.isfinite(path.span[1]) else float(path.time(f64(high)))
    assert float(path.t_noise) == expected
    assert float(path.ratio(path.t_noise)) >= high * (1 - 1e-12)


def test_usual_ratios_are_those_of_the_papers():
    for path in (VP(), SubVP()):
        assert path.ratios == tuple(path.ratio(f64([1e-3, 1.0])).tolist())
    assert VE(0.02, 30.0).ratios == EDM(0.02, 30.0).ratios == (0.02, 30.0)
    assert EDM().ratios == Flow().ratios == (0.002, 80.0)
    assert Cosine().ratios == (float(Cosine().ratio(f64(1e-3))), 80.0)
    for path, last in ((DDPM, len(DDPM.betas) - 1), (ZERO_TERMINAL, len(ZERO_TERMINAL.betas) - 2)):
        assert path.ratios == pytest.approx(path.ratio(f64([0.0, last])).tolist(), rel=1e-12)


@on_paths()
def test_no_digits_are_lost_near_clean_data(path):
    t = times_between(path, 9, 1e-3, 1e-2).float()
    torch.testing.assert_close(path.sigma(t).double(), path.sigma(t.double()), rtol=1e-6, atol=0)


@on_paths()
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_keep_shape_and_dtype(path, shape, dtype):
    t = times_between(path, 6)[: math.prod(shape)].reshape(shape).to(dtype)
    for name in FUNCTIONS:
        value, exact = getattr(path, name)(t), getattr(path, name)(t.double())
        assert value.dtype is dtype
        torch.testing.assert_close(value.double(), exact, rtol=1e-12 if dtype is torch.float64 else 1e-4, atol=1e-6)
    back = path.time(path.ratio(t))
    assert back.dtype is dtype
    torch.testing.assert_close(back, t, rtol=1e-12 if dtype is torch.float64 else 1e-4, atol=1e-6)


@on_paths()
def test_times_are_differentiable(path):
    t = times_between(path, 5).requires_grad_()
    slope = torch.autograd.grad(path.sigma(t).sum(), t)[0]
    torch.testing.assert_close(slope, path.rates(t)[1])


@on_paths()
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_needed(path, mode):
    path = copy.copy(path)  # whatever a path remembers is made inside
    with mode():
        t = times_between(path, 5)
        inside = [getattr(path, name)(t) for name in FUNCTIONS]
    for name, value in zip(FUNCTIONS, inside, strict=True):
        torch.testing.assert_close(value, getattr(path, name)(times_between(path, 5)), rtol=0, atol=0)
    assert not torch.is_grad_enabled() or not path.drift(times_between(path, 5)).requires_grad


@on_paths()
def test_paths_are_values(path):
    same = type(path)(*(getattr(path, field.name) for field in dataclasses.fields(path)))
    assert same is not path
    assert same == path == copy.deepcopy(path) == pickle.loads(pickle.dumps(path))
    assert hash(same) == hash(path)
    for field in dataclasses.fields(path):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(path, field.name, 1.0)
    assert sum(path == other for other in PATHS.values()) == 1


def test_a_table_may_be_any_iterable():
    betas = [0.1, 0.2, 0.5]
    assert Discrete(betas) == Discrete(f64(betas)) == Discrete(b for b in betas)


@pytest.mark.parametrize("betas", [[], [0.1, 0.0], [0.1, 1.5], [-0.1], [math.nan]])
def test_a_bad_table_teaches(betas):
    with pytest.raises(ValueError, match="Discrete: betas"):
        Discrete(betas)


@pytest.mark.parametrize("betas", [[1.0], [0.5, 1.0, 1.0]])
def test_only_the_last_entry_may_be_pure_noise(betas):
    """After it the ratio could not increase, and a table of nothing else has no ratio at all."""
    with pytest.raises(ValueError, match="Discrete: betas"):
        Discrete(betas)


@on_paths()
@pytest.mark.parametrize("grid", [*RATIO_GRIDS, uniform_times])
@pytest.mark.parametrize("n", [1, 2, 13])
def test_grids_descend_within_the_span(path, grid, n):
    times = grid(path, n)
    assert times.shape == (n + 1,)
    assert times.dtype is torch.float64
    assert times.device.type == "cpu"
    assert (times.diff() < 0).all()
    assert path.span[0] <= float(times[-1])
    assert float(times[0]) <= path.span[1]


@on_paths()
@pytest.mark.parametrize("grid", RATIO_GRIDS)
def test_ratio_grids_run_between_their_ratios(path, grid):
    for (low, high), times in [(path.ratios, grid(path, 5)), ((0.05, 3.0), grid(path, 5, ratio_min=0.05, ratio_max=3))]:
        torch.testing.assert_close(times[[-1, 0]], path.time(f64([low, high])), rtol=0, atol=1e-15)


@on_paths()
@pytest.mark.parametrize("grid", RATIO_GRIDS)
def test_clean_grids_end_at_clean_data(path, grid):
    times = grid(path, 6, clean=True)
    assert float(times[-1]) == path.span[0]
    torch.testing.assert_close(times[:-1], grid(path, 5), rtol=0, atol=0)
    torch.testing.assert_close(grid(path, 2, clean=True)[:-1], grid(path, 1), rtol=0, atol=0)


@on_paths()
@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_the_grid_of_karras(path, rho):
    n, low, high = 9, 0.02, 10.0
    i = torch.arange(n + 1, dtype=torch.float64)
    ratios = (high ** (1 / rho) + i / n * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    made = path.ratio(karras_times(path, n, rho, low, high))
    torch.testing.assert_close(made, ratios, rtol=1e-12, atol=0)
    if rho == 1:
        torch.testing.assert_close(
            made.diff(), torch.full((n,), (low - high) / n, dtype=torch.float64), rtol=1e-11, atol=0
        )


def test_karras_defaults_are_those_of_the_paper():
    """18 positive levels from 80 to 0.002 with rho = 7; the second is (80^(1/7) + (0.002^(1/7) - 80^(1/7))/17)^7."""
    times = karras_times(EDM(), 18, clean=True)
    assert float(times[0]) == 80
    assert float(times[17]) == 0.002
    assert float(times[18]) == 0
    assert float(times[1]) == pytest.approx((80 ** (1 / 7) + (0.002 ** (1 / 7) - 80 ** (1 / 7)) / 17) ** 7, rel=1e-13)


@on_paths()
def test_log_uniform_ratios_have_one_quotient(path):
    ratios = path.ratio(log_uniform_times(path, 8, 0.02, 10.0))
    torch.testing.assert_close(
        ratios[1:] / ratios[:-1], torch.full((8,), (0.02 / 10) ** (1 / 8), dtype=torch.float64), rtol=1e-12, atol=0
    )


@on_paths()
def test_uniform_times_are_even(path):
    last = path.span[0] if math.isfinite(path.span[0]) else float(path.time(f64(path.ratios[0])))
    for (low, high), times in [
        ((last, float(path.t_noise)), uniform_times(path, 8)),
        ((0.25, 0.75), uniform_times(path, 8, 0.25, 0.75)),
    ]:
        assert float(times[0]) == high
        assert float(times[-1]) == low
        steps = torch.full((8,), (low - high) / 8, dtype=torch.float64)
        torch.testing.assert_close(times.diff(), steps, rtol=1e-12, atol=1e-14)


@on_paths()
@pytest.mark.parametrize("grid", [*RATIO_GRIDS, uniform_times])
def test_samplers_accept_every_grid(path, grid):
    """For a point mass D is constant and every Euler step exact, so any grid ends where the ODE does."""
    point = GaussianDenoiser(path, Gaussian(f64([[2.0]]), DiagonalCovariance(f64([[0.0]]))))
    for times in (grid(path, 3), *([grid(path, 3, clean=True)] if grid in RATIO_GRIDS else [])):
        end = point.gaussian.transport(f64([[[1.0]]]), path, times[0], times[-1])
        torch.testing.assert_close(sample(point, f64([[[1.0]]]), times, Euler()), end, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("grid", RATIO_GRIDS)
def test_bad_ratio_grids_teach(grid):
    with pytest.raises(ValueError, match="one step at least, got n = 0"):
        grid(EDM(), 0)
    with pytest.raises(ValueError, match="two steps at least, got n = 1"):
        grid(EDM(), 1, clean=True)
    for low, high in [(0.0, 1.0), (2.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (1.0, math.inf), (math.nan, 1.0)]:
        with pytest.raises(ValueError, match="0 < ratio_min < ratio_max < inf"):
            grid(EDM(), 3, ratio_min=low, ratio_max=high)


@pytest.mark.parametrize("arguments", [(0,), (-1,), (3, 0.5, 0.5), (3, 0.6, 0.4), (3, math.nan), (3, 0.5, math.inf)])
def test_bad_uniform_grids_teach(arguments):
    with pytest.raises(ValueError, match="n >= 1 and"):
        uniform_times(EDM(), *arguments)


@pytest.mark.parametrize("grid", RATIO_GRIDS)
def test_a_grid_cannot_begin_beyond_the_end_of_its_path(grid):
    with pytest.raises(ValueError, match=r"VP\(.*ends at the ratio 152.167, a time grid cannot begin at 200"):
        grid(VP(), 5, ratio_max=200.0)
    assert float(grid(EDM(), 5, ratio_max=200.0)[0]) == 200.0


def test_bad_path_arguments_teach():
    for build in (lambda: VP(0.0, 20.0), lambda: SubVP(2.0, 1.0)):
        with pytest.raises(ValueError, match="0 < beta_min <= beta_max"):
            build()
    for build in (lambda: VE(50.0, 0.01), lambda: EDM(80.0, 0.002)):
        with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
            build()
    with pytest.raises(ValueError, match="s cannot be negative"):
        Cosine(-1.0)
    with pytest.raises(ValueError, match="rho is positive"):
        karras_times(EDM(), 3, rho=0.0)


def test_a_table_first_used_in_inference_mode_has_rates_later():
    path, t = Discrete(torch.linspace(1e-4, 2e-2, 100)), torch.tensor(5.5, dtype=torch.float64)
    with torch.inference_mode():
        path.alpha(torch.tensor(5.0))
    fresh = Discrete(torch.linspace(1e-4, 2e-2, 100))
    torch.testing.assert_close(path.rates(t), fresh.rates(t), rtol=0, atol=0)


def test_integer_steps_of_a_table_are_times():
    """DDPM counts its steps in integers."""
    path = Discrete(torch.linspace(1e-4, 2e-2, 1000))
    steps = torch.tensor([0, 10, 999])
    for level in (path.alpha, path.sigma):
        torch.testing.assert_close(level(steps), level(steps.double()), rtol=0, atol=0)
