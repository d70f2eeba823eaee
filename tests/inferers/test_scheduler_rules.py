"""Schedulers give the standard deviation that their rule predicts on their grid, and MONAI's do not.

Of data N(0, 0.3^2) the best noise predictor is known and linear, so a whole run is linear: it is fed the coefficients
of independent normals, and the standard deviation it would produce comes out as a number, without Monte Carlo.
"""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from monai.inferers import DiffusionInferer
from monai.networks import schedulers as monai
from scheduler_rules import (
    S0,
    A,
    T,
    bent,
    coefficients,
    constant,
    ddim_deviation,
    ddpm_deviation,
    deviation,
    even_grid,
    move,
    pndm,
    rflow_deviation,
    rounded_grid,
    unclipped,
)

from voxscore.inferers import DDIMScheduler, DDPMScheduler, PNDMScheduler, RFlowScheduler


@pytest.mark.parametrize(
    ("n", "ddim", "ddpm"),
    [
        (1000, 0.2985, 0.296),
        (501, 0.2972, 0.293),
        (400, 0.2965, 0.291),
        (300, 0.2955, 0.289),
        (250, 0.2947, 0.287),
        (100, 0.2870, 0.272),
        (50, 0.2745, 0.252),
    ],
)
def test_samples_have_the_deviation_that_the_rule_predicts(n, ddim, ddpm):
    measured = deviation(unclipped(DDIMScheduler), n)
    assert measured == pytest.approx(ddim_deviation(even_grid(n)), abs=1e-6)
    assert measured == pytest.approx(ddim, abs=5.5e-5)
    measured = deviation(unclipped(DDPMScheduler), n)
    assert measured == pytest.approx(ddpm_deviation(even_grid(n)), abs=1e-6)
    assert measured == pytest.approx(ddpm, abs=5.5e-4)
    for skip in (True, False):
        measured = deviation(PNDMScheduler(T, skip_prk_steps=skip), n)
        assert measured == pytest.approx(pndm(rounded_grid(n), not skip and n < T), abs=1e-6)
        assert measured == pytest.approx(S0, abs=3e-4)
    measured = deviation(RFlowScheduler(T, use_discrete_timesteps=False), n)
    assert measured == pytest.approx(rflow_deviation(np.arange(n, 0, -1) / n), abs=1e-6)
    measured = deviation(RFlowScheduler(T), n)
    assert measured == pytest.approx(rflow_deviation(np.round(np.arange(n, 0, -1) * T / n) / T), abs=1e-6)


@pytest.mark.parametrize(
    ("cls", "n", "wrong"),
    [
        (monai.DDIMScheduler, 501, 0.546),
        (monai.DDIMScheduler, 400, 0.379),
        (monai.DDPMScheduler, 250, 0.596),
        (monai.DDPMScheduler, 50, 0.891),
        (monai.PNDMScheduler, 1000, 1.000),
        (monai.PNDMScheduler, 50, 0.384),
        (functools.partial(monai.RFlowScheduler, use_discrete_timesteps=False), 501, 0.253),
    ],
)
def test_the_law_catches_what_monai_does(cls, n, wrong):
    scheduler = cls(T) if isinstance(cls, functools.partial) else unclipped(cls)
    assert deviation(scheduler, n) == pytest.approx(wrong, abs=6e-4)


def test_rectified_flow_converges_with_first_order():
    errors = [S0 - deviation(RFlowScheduler(T, use_discrete_timesteps=False), n) for n in (125, 250, 500)]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.03)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.03)


@pytest.mark.parametrize("n", [300, 50])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_new_noise_of_ddim(n, eta):
    scheduler = unclipped(DDIMScheduler)
    scheduler.step = functools.partial(scheduler.step, eta=eta)
    assert deviation(scheduler, n) == pytest.approx(ddim_deviation(even_grid(n), eta), abs=1e-6)


def test_ddim_with_all_new_noise_is_ddpm():
    ddim, ddpm = unclipped(DDIMScheduler), unclipped(DDPMScheduler)
    ddim.step = functools.partial(ddim.step, eta=1.0)
    for scheduler in (ddim, ddpm):
        scheduler.set_timesteps(300)
    torch.testing.assert_close(coefficients(ddim), coefficients(ddpm), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1000, 400, 190])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_schedule_that_ends_in_pure_noise(n, eta):
    """At a_T = 0 (Lin et al. 2024) only v says what x0 is; no step may divide by a_T."""
    ddim, ddpm = (unclipped(cls, prediction_type="v_prediction") for cls in (DDIMScheduler, DDPMScheduler))
    ddim.step = functools.partial(ddim.step, eta=eta)
    table = np.append(A[:-1], 0.0)
    for scheduler in (ddim, ddpm) if eta else (ddim,):
        scheduler.alphas_cumprod[-1] = 0
        assert deviation(scheduler, n) == pytest.approx(ddim_deviation(even_grid(n), eta, table=table), abs=1e-6)


@pytest.mark.parametrize("n", [1000, 300, 50])
def test_steps_offset_and_set_alpha_to_one(n):
    options = {"steps_offset": 1, "set_alpha_to_one": False}
    grid = np.unique(even_grid(n, offset=1))[::-1]  # 999 times are left for 1000 steps
    assert deviation(unclipped(DDIMScheduler, **options), n) == pytest.approx(ddim_deviation(grid, end=A[0]), abs=1e-6)
    offset = PNDMScheduler(T, **options)
    offset.set_timesteps(n)
    times = torch.unique(offset.timesteps).tolist()
    assert times[0] == 1
    assert times[-1] < T
    # From time 1 to time 0 data lose 1e-4 of variance: the same samples as without offset, to the rule's own error.
    assert coefficients(offset)[0].item() == pytest.approx(S0, abs=1e-3)


def test_fixed_large_variance():
    scheduler = unclipped(DDPMScheduler, variance_type="fixed_large")
    assert deviation(scheduler, 300) == pytest.approx(ddpm_deviation(even_grid(300), large=True), abs=1e-6)


@pytest.mark.parametrize("n", [1000, 501, 400, 300, 50, 7])
@pytest.mark.parametrize("skip", [True, False])
def test_pndm_follows_its_rule_for_a_nonlinear_network(n, skip):
    """The best predictor hardly changes at the noisy end, so this is what tells the starts apart."""
    scheduler = PNDMScheduler(T, skip_prk_steps=skip)
    scheduler.set_timesteps(n)
    assert scheduler.num_inference_steps == n
    assert len(scheduler.timesteps) == (n + 1 if skip or n == T else n + 9)
    right = pndm(rounded_grid(n), not skip and n < T, lambda x, t: math.cos(t / 100) + math.sin(2 * x))
    start = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    assert DiffusionInferer(scheduler).sample(start, bent, verbose=False).item() == pytest.approx(right, rel=1e-8)


@pytest.mark.parametrize("n", [501, 400, 300, 50, 7])
@pytest.mark.parametrize(
    ("skip", "degree", "start"),
    [(False, 2, 0), (False, 3, 3), (True, 1, 0), (True, 2, 2), (True, 3, 3)],
)
def test_pndm_averages_polynomials_over_the_actual_step(n, skip, degree, start):
    """From step `start` on, noise that is a polynomial in time acts by its mean, however uneven the grid."""
    noise = np.polynomial.Polynomial([0.3, -1.0, 2.0, -1.5][: degree + 1], [0, T], [0, 1])
    scheduler = PNDMScheduler(T, skip_prk_steps=skip)
    scheduler.set_timesteps(n)
    samples = [torch.ones(1, 1, 1, 1, dtype=torch.float64)]
    for t in scheduler.timesteps:
        samples.append(scheduler.step(torch.full_like(samples[-1], noise(t.item())), t, samples[-1])[0])
    ends = [0, 2, *range(3, n + 1)] if skip else [0, 4, 8, *range(12, n + 9)]
    for i, j in itertools.pairwise(ends[start:]):
        t, s = (scheduler.timesteps[k].item() for k in (i, j))
        mean = (noise.integ()(t) - noise.integ()(s)) / (t - s)
        assert samples[j].item() == pytest.approx(move(samples[i].item(), mean, t, s), rel=1e-9)


@pytest.mark.parametrize("n", [1000, 501, 400, 100, 4, 3, 2, 1])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_pndm_carries_constant_noise_exactly(n, skip, prediction):
    """x_t = sqrt(a_t) 2 + sqrt(1 - a_t) 0.7 is a solution, on which every rule is exact."""
    scheduler = PNDMScheduler(T, skip_prk_steps=skip, set_alpha_to_one=True, prediction_type=prediction)
    scheduler.set_timesteps(n)
    x0, eps = (torch.full((1, 1, 1, 1, 1), value, dtype=torch.float64) for value in (2, 0.7))
    x = scheduler.add_noise(x0, eps, scheduler.timesteps[:1])

    def model(x, timesteps, context=None):
        a = scheduler.alphas_cumprod.double()[timesteps.long()]
        velocity = (0.7 - (1 - a).sqrt() * x) / a.sqrt()  # sqrt(a) v + sqrt(1 - a) x = eps
        return velocity if prediction == "v_prediction" else torch.full_like(x, 0.7)

    assert DiffusionInferer(scheduler).sample(x, model, verbose=False).item() == pytest.approx(2, abs=1e-9)


def test_the_constant_noise_law_catches_the_step_that_monai_skips():
    """MONAI's multistep start repeats its first step, yet its times go on as if it had not."""
    scheduler = monai.PNDMScheduler(T, skip_prk_steps=True, set_alpha_to_one=True)
    scheduler.set_timesteps(50)
    x = scheduler.add_noise(torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 0.7), scheduler.timesteps[:1])
    assert DiffusionInferer(scheduler).sample(x, constant(0.7), verbose=False).item() == pytest.approx(1.65, abs=0.01)


@pytest.mark.parametrize("n", [1000, 300, 50])
def test_reversed_ddim_undoes_ddim(n):
    scheduler = unclipped(DDIMScheduler)
    scheduler.set_timesteps(n)
    x = start = torch.linspace(-2, 2, 8, dtype=torch.float64).reshape(1, 1, 2, 2, 2)
    for t in scheduler.timesteps[:-1]:
        x, _ = scheduler.step(torch.full_like(x, 0.7), t, x)
    a = scheduler.alphas_cumprod.double()[scheduler.timesteps[[0, -1]]]
    x0 = (start - 0.7 * (1 - a[0]).sqrt()) / a[0].sqrt()
    torch.testing.assert_close(x, a[1].sqrt() * x0 + 0.7 * (1 - a[1]).sqrt())
    for t in scheduler.timesteps.flip(0)[:-1]:
        x, _ = scheduler.reversed_step(torch.full_like(x, 0.7), t, x)
    torch.testing.assert_close(x, start, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="999 is the noisiest"):
        scheduler.reversed_step(x, scheduler.timesteps[0], x)
