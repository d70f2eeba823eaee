"""Gaussian teleportation: skip the first steps, since at high noise every data set looks Gaussian.

Far from the data, p_t is nearly N(alpha m, alpha^2 C + sigma^2) with the mean m and covariance C of the data, and for
a Gaussian the probability-flow ODE is solved in closed form (`Gaussian.transport`). `Teleport` makes these exact
moves, which cost no evaluation, down to a noise level, and leaves the rest of the grid to any sampler.

How far down is decided by the explained variance of the score,

    EV(t) = 1 - E |score - score_Gaussian|^2 / E |score|^2,    x ~ N(alpha m, alpha^2 C + sigma^2),

which needs the denoiser alone, no data: the jump goes to the lowest noise level down to which EV >= 1 - tolerance.
At equal evaluations a run is then better than one without the jump, until its steps are so many that the jump's own
error, which the tolerance sets, is what is left.

Source: Wang and Vastola, The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion Models and its
Applications, TMLR 2024; the rule for the jump is our own use of their measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from voxscore.diffusion.denoisers import Denoiser
from voxscore.diffusion.exact import Gaussian
from voxscore.diffusion.samplers import Generators, Noise, Sampler, VolumeNoise

__all__ = ["Teleport", "explained_variance", "jump_ratio"]


@dataclass(frozen=True, eq=False)
class Teleport(Sampler):
    """Exact Gaussian moves while the noise-to-signal ratio stays at or above `ratio`, then another sampler's steps.

    Args:
        sampler: the rule for the rest of the grid.
        gaussian: mean and covariance of the clean data.
        ratio: how far down the moves go, for instance by `jump_ratio`.
    """

    sampler: Sampler
    gaussian: Gaussian
    ratio: float

    @property
    def order(self) -> int:
        """That of the sampler."""
        return self.sampler.order

    @property
    def stochastic(self) -> bool:
        """That of the sampler; the moves draw nothing."""
        return self.sampler.stochastic

    def step(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """No evaluation above `ratio`, the sampler's below."""
        # A time that was computed from the ratio may miss it by a rounding.
        if float(denoiser.path.ratio(s)) >= self.ratio * (1 - 1e-9):
            return self.gaussian.transport(x, denoiser.path, t, s), None
        return self.sampler.step(denoiser, x, t, s, noise, state)


def explained_variance(
    denoiser: Denoiser, gaussian: Gaussian, times: Tensor, batch: int = 4, generator: Generators = None
) -> Tensor:
    """How much of the denoiser's score the Gaussian's explains, at each time; 1 means all.

    The same standard normals are used at all times. Costs one evaluation of a batch a time.

    Args:
        denoiser: E[x_0 | x_t].
        gaussian: mean and covariance of the clean data, the mean in the dtype and on the device of the network.
        times: (n,).
        batch: volumes to average over.
        generator: where they come from.

    Returns:
        (n,), float64.
    """
    noise = VolumeNoise(generator, batch)(gaussian.mean.expand(batch, *gaussian.mean.shape))  # in the mean's dtype
    explained = []
    for t in times.double():
        x = gaussian.sample(noise, denoiser.path, t)
        alpha, sigma = denoiser.levels(x, t)
        with torch.no_grad():
            d, g = denoiser(x, t), gaussian.denoise(x, denoiser.path, t)
        score, difference = (alpha * d - x) / sigma**2, alpha * (d - g) / sigma**2
        explained.append(1 - difference.double().square().sum() / score.double().square().sum())
    return torch.stack(explained)


def jump_ratio(
    denoiser: Denoiser,
    gaussian: Gaussian,
    times: Tensor,
    tolerance: float = 1e-4,
    batch: int = 4,
    generator: Generators = None,
) -> float:
    """The lowest noise-to-signal ratio of a descending grid down to which the Gaussian explains the score.

    Args:
        denoiser: E[x_0 | x_t].
        gaussian: mean and covariance of the clean data.
        times: descending, (n,), with noise left at the last.
        tolerance: 1 - EV allowed. The jump leaves an error of its own, which more steps do not mend: on a mixture of
            two modes 0.4 % of the data's standard deviation at 1e-3, 0.2 % at 1e-4, 0.05 % at 1e-5.
        batch: volumes to average over.
        generator: where they come from.

    Returns:
        The ratio for `Teleport`; inf, which never jumps, if even the first time falls short.
    """
    explained = explained_variance(denoiser, gaussian, times, batch, generator) >= 1 - tolerance
    count = int(explained.long().cumprod(0).sum())
    return float(denoiser.path.ratio(times.double()[count - 1])) if count else float("inf")
