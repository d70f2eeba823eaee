"""Step rules that add noise on the way: the reverse SDE, its corrector, restarts and multi-step consistency.

The forward path from s to t > s is itself Gaussian,

    x_t = k x_s + G z,    k = alpha_t/alpha_s,    G^2 = sigma_t^2 - k^2 sigma_s^2,

and the rules differ in how they turn it round:

    ancestral            draw from q(x_s | x_t, x_0 = D)
    reverse diffusion    x_s = x_t - (k - 1) x_t + G^2 score + G z
    Langevin corrector   x <- x + e score + sqrt(2 e) z, which leaves p_t as it is for small e
    restart              go forward again over part of the path, then back along the ODE
    consistency          x_s = alpha_s D + sigma_s z, for a D that jumps to clean data in one evaluation

A single volume's result does not depend on its batch: step sizes are per volume.

Sources: Song et al., ICLR 2021, Appendix F and G (ancestral, reverse diffusion, predictor-corrector, Alg. 2-5);
Xu et al., Restart Sampling, NeurIPS 2023; Song et al., Consistency Models, ICML 2023, Alg. 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from voxscore.diffusion.denoisers import Denoiser, expand
from voxscore.diffusion.grids import karras_times
from voxscore.diffusion.ode_samplers import Heun, Levels, ddim_step, renoise
from voxscore.diffusion.samplers import Noise, Sampler

__all__ = ["Ancestral", "Consistency", "PredictorCorrector", "Restart", "ReverseDiffusion", "langevin_step"]


@dataclass(frozen=True)
class Ancestral(Sampler):
    """Draw from q(x_s | x_t, x_0 = D): DDPM with its smaller variance, `Euler(eta=1)` under its usual name."""

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: None
    ) -> tuple[Tensor, None]:
        """One evaluation."""
        return ddim_step(x, denoiser(x, t), Levels.of(denoiser.path, t, s), 1.0, noise), None


@dataclass(frozen=True)
class ReverseDiffusion(Sampler):
    """The reverse SDE discretised as the forward one: x_s = x - (k - 1) x + G^2 score + G z (Song et al., eq. 46)."""

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: None
    ) -> tuple[Tensor, None]:
        """One evaluation; a step to clean data ends at its mean, without noise."""
        alpha_t, sigma_t, alpha_s, sigma_s = Levels.of(denoiser.path, t, s)
        k = alpha_t / alpha_s
        variance = sigma_t**2 - k**2 * sigma_s**2
        mean = (2 - k) * x + variance * denoiser.score(x, t)
        return (mean if sigma_s == 0 else mean + torch.sqrt(variance) * noise(x)), None


def langevin_step(x: Tensor, score: Tensor, step_size: Tensor, z: Tensor) -> Tensor:
    """x + e score + sqrt(2 e) z with a step size e per volume.

    Args:
        x: volumes (B, C, *spatial).
        score: their score, shaped like x.
        step_size: e, () or (B,), in squared units of x.
        z: standard normals shaped like x.
    """
    e = expand(step_size, x)
    return x + e * score + torch.sqrt(2 * e) * z


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """Song et al.'s predictor-corrector: Langevin steps at the present noise level, then a step of the predictor.

    The step size e = 2 (snr |z| / |score|)^2 follows their Alg. 4; the factor alpha_i = 1 - beta_i of their Alg. 5
    tends to 1 for small steps and is left out. Norms are taken per volume, not over the batch. A step costs
    `corrections` evaluations beside the predictor's.

    Args:
        predictor: the rule that moves along the path.
        corrections: Langevin steps before each.
        snr: signal-to-noise ratio of a correction, their r.

    Raises:
        ValueError: a negative count or ratio.
    """

    stochastic: ClassVar[bool] = True
    predictor: Sampler = field(default_factory=ReverseDiffusion)
    corrections: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        if self.corrections < 0 or self.snr < 0:
            raise ValueError(f"PredictorCorrector: corrections and snr cannot be negative, got {self}")

    @property
    def order(self) -> int:
        """That of the predictor; the Langevin step size does not vanish with the steps."""
        return self.predictor.order

    def step(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """Corrections at t, then the predictor."""
        for _ in range(self.corrections):
            score, z = denoiser.score(x, t), noise(x)
            size = score.flatten(1).norm(dim=1)
            # Where the score is 0, a step measured by it would be infinite.
            share = torch.where(size > 0, self.snr * z.flatten(1).norm(dim=1) / size, 0.0)
            x = langevin_step(x, score, 2 * share**2, z)
        return self.predictor.step(denoiser, x, t, s, noise, state)


@dataclass(frozen=True)
class Restart(Sampler):
    """When the steps come down to `ratio_min`, go forward to `ratio_max` and back again, a few times.

    Forward the noise is added exactly, which contracts the errors made so far; back go `steps` Karras steps of the
    solver. The interval begins at the first time of the grid at or below `ratio_min`. Several intervals are nested:
    `Restart(Restart(Heun(), ...), ...)`. A restart costs `repeats * steps` steps of the solver.

    Args:
        ratio_min: lower end of the interval, t_min in EDM's units.
        ratio_max: upper end, t_max.
        solver: the rule for every step.
        repeats: how often, K.
        steps: solver steps from `ratio_max` back down.

    Raises:
        ValueError: not 0 < ratio_min < ratio_max, or counts below one.
    """

    stochastic: ClassVar[bool] = True
    ratio_min: float
    ratio_max: float
    solver: Sampler = field(default_factory=Heun)
    repeats: int = 1
    steps: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.ratio_min < self.ratio_max < math.inf or self.repeats < 1 or self.steps < 1:
            raise ValueError(f"Restart: 0 < ratio_min < ratio_max, at least one repeat and one step; got {self}")

    @property
    def order(self) -> int:
        """That of the solver; the steps within a restart do not get finer with the grid."""
        return self.solver.order

    def step(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """One step of the solver, and the restarts if it reaches the interval."""
        path = denoiser.path
        x, state = self.solver.step(denoiser, x, t, s, noise, state)
        low = float(path.ratio(s))
        if not 0 < low <= self.ratio_min < float(path.ratio(t)):
            return x, state
        back = karras_times(path, self.steps, ratio_min=low, ratio_max=self.ratio_max)
        for _ in range(self.repeats):
            x, inner = renoise(path, x, s, back[0], noise(x)), None
            for u, v in pairwise(back):
                x, inner = self.solver.step(denoiser, x, u, v, noise, inner)
        return x, None


@dataclass(frozen=True)
class Consistency(Sampler):
    """x_s = alpha_s D + sigma_s z: multi-step sampling of a consistency model, whose D is a volume, not a mean."""

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: None
    ) -> tuple[Tensor, None]:
        """One evaluation."""
        path = denoiser.path
        return path.alpha(s) * denoiser(x, t) + path.sigma(s) * noise(x), None
