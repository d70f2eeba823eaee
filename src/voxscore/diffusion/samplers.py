"""The sampling loop: walk a noisy volume back along a path, one step rule at a time.

A sampler is a rule for one step from time t to time s < t,

    x_s, state = step(denoiser, x_t, t, s, noise, state),

and this file has the one loop that applies it to a grid of times. Noise comes in as an argument and the memory of a
multistep rule as an explicit state, so a rule holds nothing and knows no random numbers. The rules themselves are in
`ode_samplers` (they follow the probability-flow ODE) and `sde_samplers` (they add noise on the way).

Each volume of a batch has a random generator of its own: a seed means the same volume at any batch size.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor, nn

from voxscore.diffusion.denoisers import Denoiser
from voxscore.diffusion.paths import Path

__all__ = ["Generators", "Noise", "Sampler", "VolumeNoise", "sample", "trajectory"]

Noise = Callable[[Tensor], Tensor]
"""Standard normals shaped like the volumes it is given."""

Generators = Generator | Sequence[Generator] | None
"""One generator to seed every volume's own from, or a generator per volume, or fresh entropy."""


class Sampler(ABC):
    """A rule for one step."""

    @property
    @abstractmethod
    def order(self) -> int:
        """The order that the rule's name says.

        With at least this power of the step size the error of the ODE, or of a stochastic rule's variance, vanishes.
        """

    @property
    @abstractmethod
    def stochastic(self) -> bool:
        """Whether the rule draws noise."""

    @abstractmethod
    def step(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """One step from time t to time s.

        Args:
            denoiser: E[x_0 | x_t].
            x: volumes at time t (B, C, *spatial).
            t: where they are, a float64 scalar with sigma(t) > 0.
            s: where they go, a float64 scalar nearer to clean data.
            noise: source of standard normals.
            state: what the previous step returned; None in the first.

        Returns:
            The volumes at time s, and the state for the next step.
        """


class VolumeNoise:
    """Standard normals from a generator per volume.

    Args:
        generator: a generator per volume; or one, from which every volume's own is seeded, in order; or None, which
            takes fresh entropy from the operating system. PyTorch's global generator is never used.
        batch: number of volumes.

    Raises:
        ValueError: the number of generators is not the number of volumes.
    """

    def __init__(self, generator: Generators, batch: int) -> None:
        if generator is None:
            generator = Generator()
            generator.seed()
        if isinstance(generator, int):
            raise TypeError("a seed is not a generator: pass torch.Generator().manual_seed(seed)")
        if isinstance(generator, Generator):
            device = generator.device
            seeds = [int(torch.randint(2**62, (), generator=generator, device=device)) for _ in range(batch)]
            generator = [Generator(device).manual_seed(seed) for seed in seeds]
        if len(generator) != batch:
            raise ValueError(f"a generator per volume: got {len(generator)} for a batch of {batch}")
        self.generators = list(generator)

    def __call__(self, x: Tensor) -> Tensor:
        """Standard normals of the shape, dtype and device of x (B, C, *spatial)."""
        return torch.stack(
            [
                torch.randn(x.shape[1:], generator=g, device=g.device, dtype=x.dtype).to(x.device)
                for g in self.generators
            ]
        )


class WatchedDenoiser(Denoiser):
    """A denoiser that stops a run at its first result that is no volume.

    Args:
        denoiser: the denoiser to watch.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser.path)
        self.denoiser = denoiser

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """E[x_0 | x_t = x], of the right shape and finite.

        Raises:
            ValueError: another shape.
            FloatingPointError: NaN or infinity; the message says at which noise level.
        """
        d = self.denoiser(x, t, **cond)
        if d.shape != x.shape:
            raise ValueError(f"the denoiser made {tuple(d.shape)} of a volume {tuple(x.shape)}")
        if not torch.isfinite(d).all():
            raise FloatingPointError(
                f"the denoiser returned NaN or infinity at t = {float(t.max()):.6g}, "
                f"noise level sigma/alpha = {float(self.path.ratio(t).max()):.6g}"
            )
        return d


def checked_grid(path: Path, times: Tensor) -> Tensor:
    """The times in float64 on the CPU, if they are a descending grid within the span of the path.

    Raises:
        ValueError: they are not.
    """
    grid = torch.as_tensor(times).detach().to("cpu", torch.float64)
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"times is a grid of two times at least (one step), got the shape {tuple(grid.shape)}")
    if not (grid[1:] < grid[:-1]).all() or grid[0] == math.inf:
        raise ValueError("times must descend, from noise to data, and begin at a finite time")
    low, high = path.span
    if not low <= float(grid[-1]) <= float(grid[0]) <= high:
        raise ValueError(
            f"times must lie in [{low:g}, {high:g}], the span of {type(path).__name__}; "
            f"got {float(grid[0]):g} to {float(grid[-1]):g}"
        )
    return grid


def trajectory(
    denoiser: Denoiser, x: Tensor, times: Tensor, sampler: Sampler, generator: Generators | Noise = None
) -> Iterator[Tensor]:
    """The states of a sampling run, one for each time of the grid: x itself, then what each step makes of it.

    Arguments and errors are those of `sample`, but a source of noise may take the place of generators; the arguments
    are checked at once, the steps run as states are asked for.
    """
    if isinstance(sampler, type):
        raise TypeError(f"sampler is an instance, {sampler.__name__}()")
    if not isinstance(denoiser, nn.Module):
        raise TypeError(f"denoiser knows its path, like NetDenoiser(network, path, prediction); got {denoiser!r}")
    grid = checked_grid(denoiser.path, times)
    if not torch.isfinite(x).all():
        raise ValueError("the start x has NaN or infinity in it")
    if x.ndim < 2 or not x.is_floating_point():
        raise ValueError(f"x is a batch of volumes (B, C, *spatial) of floats, got {tuple(x.shape)} of {x.dtype}")
    noise = generator if callable(generator) else VolumeNoise(generator, len(x))
    return _states(WatchedDenoiser(denoiser), x, grid, sampler, noise)


def _states(denoiser: Denoiser, x: Tensor, grid: Tensor, sampler: Sampler, noise: Noise) -> Iterator[Tensor]:
    state = None
    yield x
    # Not in inference mode: posteriors take gradients inside a step.
    with torch.inference_mode(False):
        x, grid = x.detach().clone(), grid.clone()
    for t, s in pairwise(grid):
        with torch.inference_mode(False), torch.no_grad():
            x, state = sampler.step(denoiser, x, t, s, noise, state)
        yield x


def sample(denoiser: Denoiser, x: Tensor, times: Tensor, sampler: Sampler, generator: Generators = None) -> Tensor:
    """Walk noisy volumes back along the path.

    Args:
        denoiser: E[x_0 | x_t]; it knows its path.
        x: the noisy start (B, C, *spatial) at the first time, usually sigma(t) times standard normals.
        times: descending times (n + 1,) in the path's t, as `karras_times` makes them; n steps.
        sampler: the step rule.
        generator: where a stochastic rule gets its noise: one generator, from which every volume's own is seeded; or
            a list with one per volume; or None for fresh entropy.

    Returns:
        The volumes at the last time, in the dtype of x.

    Raises:
        TypeError: a sampler's class instead of a sampler, a network instead of a denoiser, a seed for a generator.
        ValueError: a grid with no step, not descending or outside the path's span; x is no batch of finite volumes;
            the denoiser returns another shape.
        FloatingPointError: the denoiser returns NaN or infinity; the message says at which noise level.
    """
    return deque(trajectory(denoiser, x, times, sampler, generator), maxlen=1).pop()
