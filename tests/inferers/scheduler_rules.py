"""What each scheduler must do, written again from its paper: deviations of samples, step by step, in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
from monai.inferers import DiffusionInferer
from monai.networks import schedulers as monai

from voxscore.inferers import DDIMScheduler, DDPMScheduler, PNDMScheduler, schedulers

T, S0 = 1000, 0.3

EVERY = [getattr(schedulers, name) for name in schedulers.__all__]
WITH_BETAS = [DDPMScheduler, DDIMScheduler, PNDMScheduler]
A = np.cumprod(1 - np.linspace(1e-4, 2e-2, T))  # what MONAI's default schedule means, in float64
TABLE = monai.DDPMScheduler(T).alphas_cumprod.double().numpy()  # and what its float32 says, for tight tolerances


def unclipped(cls, **options):
    clip = {"clip_sample": False} if issubclass(cls, (monai.DDPMScheduler, monai.DDIMScheduler)) else {}
    return cls(T, **clip, **options)


def exact(scheduler):
    """The best predictor of what the scheduler asks for, for data N(0, 0.3^2)."""

    def noise(x, timesteps, context=None):
        a = scheduler.alphas_cumprod.double()[timesteps.long()]
        x0, eps = (c * x / (a * S0**2 + 1 - a) for c in (a.sqrt() * S0**2, (1 - a).sqrt()))
        kind = scheduler.prediction_type
        return {"epsilon": eps, "sample": x0, "v_prediction": a.sqrt() * eps - (1 - a).sqrt() * x0}[str(kind)]

    def velocity(x, timesteps, context=None):
        t = timesteps.double() / T
        return ((1 - t) * S0**2 - t) / ((1 - t) ** 2 * S0**2 + t**2) * x

    return velocity if isinstance(scheduler, monai.RFlowScheduler) else noise


def coefficients(scheduler, model=None):
    """The sample as coefficients of the normals that went into it, the initial noise first."""
    size, count = len(scheduler.timesteps) + 1, itertools.count()

    def unit(*_, **__):
        normal = torch.zeros(1, 1, size, 1, 1, dtype=torch.float64)
        normal[0, 0, next(count)] = 1
        return normal

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", unit)
        return DiffusionInferer(scheduler).sample(unit(), model or exact(scheduler), verbose=False).flatten()


def deviation(scheduler, n):
    scheduler.set_timesteps(n)
    return coefficients(scheduler).norm().item()


def constant(value):
    return lambda x, timesteps, context=None: torch.full_like(x, value)


def even_grid(n, offset=0):
    return np.round(np.linspace(T - 1 - offset, 0, n)).astype(int) + offset


def rounded_grid(n):
    return np.round(np.arange(n) * T / n).astype(int)[::-1]


# -- what each rule predicts, step by step, from the covariances of the forward process -----------------------------


def ddim_deviation(grid, eta=0.0, end=1.0, table=A):
    levels, variance = [*table[grid], end], 1.0
    for a, b in itertools.pairwise(levels):
        fresh = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
        gain = (math.sqrt(a * b) * S0**2 + math.sqrt((1 - b - fresh) * (1 - a))) / (a * S0**2 + 1 - a)
        variance = gain**2 * variance + fresh
    return math.sqrt(variance)


def ddpm_deviation(grid, large=False):
    levels, variance = [*A[grid], 1.0], 1.0
    for a, b in itertools.pairwise(levels):
        gain = math.sqrt(a / b) * (b * S0**2 + 1 - b) / (a * S0**2 + 1 - a)  # Cov(x_s, x_t) / Var(x_t)
        fresh = 0 if b == 1 else (1 - a / b) * (1 if large else (1 - b) / (1 - a))
        variance = gain**2 * variance + fresh
    return math.sqrt(variance)


def move(x, e, t, s):  # PNDM, eq. 9 as printed
    a, b = TABLE[t], TABLE[s]
    return math.sqrt(b / a) * x - (b - a) * e / math.sqrt(a) / (math.sqrt((1 - b) * a) + math.sqrt((1 - a) * b))


def best_slope(x, t):
    return math.sqrt(1 - TABLE[t]) / (TABLE[t] * S0**2 + 1 - TABLE[t]) * x


def pndm(grid, runge_kutta, slope=best_slope):
    x, slopes, grid = 1.0, [], [*grid.tolist(), 0]
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        first = slope(x, t)
        slopes.append(first)
        if runge_kutta and i < 3:
            middle = s + (t - s) // 2
            c = (t - middle) / (t - s)
            order_conditions = [[1, 1, 1, 1], [0, c, c, 1], [0, c**2, c**2, 1], [0, 0, c**2, c]]
            weights = np.linalg.solve(order_conditions, [1, 1 / 2, 1 / 3, 1 / 6])
            second = slope(move(x, first, t, middle), middle)
            third = slope(move(x, second, t, middle), middle)
            last = slope(move(x, third, t, s), s)
            mean = weights @ [first, second, third, last]
        elif not runge_kutta and i == 0:
            mean = (first + slope(move(x, first, t, s), s)) / 2
        elif s == t:
            mean = 0.0  # the default end is time 0 itself
        else:
            known = grid[max(i - 3, 0) : i + 1]
            through = np.polyfit(np.array(known) - t, slopes[-len(known) :], len(known) - 1)
            mean = np.polyval(np.polyint(through), s - t) / (s - t)
        x = move(x, mean, t, s)
    return x


def rflow_deviation(times):
    x = 1.0
    for t, s in itertools.pairwise([*times, 0.0]):
        x += (t - s) * ((1 - t) * S0**2 - t) / ((1 - t) ** 2 * S0**2 + t**2) * x
    return x


def bent(x, timesteps, context=None):
    """A network that depends on the sample and on time as no rule could integrate exactly."""
    return torch.cos(timesteps.to(x) / 100) + torch.sin(2 * x)
