"""The last word on one group, once the others are known.

A joint run brings all groups to clean data at one pace. Near its end a categorical group is decided voxel by voxel,
from evidence that the network gave while the image was still noisy, and what the network does not know of the
correlation of neighbours shows: borders are ragged. So the run ends with one evaluation more,

    y' = y_0 + r eps,        y_0 <- E[y_0 | x_0, y'],

the group's posterior mean given the clean others and itself at a noise-to-signal ratio r: what is finer than the noise
hides is decided anew from the image, and the rest, the shape that the run has drawn, stays. It is a Gibbs step from
ratio r whose draw is replaced by the mean, so fine detail becomes what is most probable instead of a sample.

Source: Meng et al., SDEdit, ICLR 2022, for noise that hides detail and keeps shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from voxscore.diffusion.denoisers import Denoiser
from voxscore.diffusion.groups import Group
from voxscore.diffusion.samplers import Noise, Sampler

__all__ = ["RefineGroup"]


@dataclass(frozen=True, eq=False)
class RefineGroup(Sampler):
    """Another sampler's steps, and after the one that ends in clean data one evaluation for one group.

    Args:
        sampler: the rule for the grid.
        groups: of the joint denoiser, in the order of their channels.
        group: name of the one to refine.
        ratio: r.

    Raises:
        ValueError: no such group, or a ratio that is not positive.
    """

    sampler: Sampler
    groups: Sequence[Group]
    group: str
    ratio: float

    def __post_init__(self) -> None:
        if self.group not in [group.name for group in self.groups]:
            raise ValueError(f"there is no group {self.group!r} among {[group.name for group in self.groups]}")
        if not self.ratio > 0:
            raise ValueError(f"a noise-to-signal ratio is positive, got {self.ratio}")

    @property
    def order(self) -> int:
        """That of the sampler."""
        return self.sampler.order

    @property
    def stochastic(self) -> bool:
        """True: the group is made noisy again."""
        return True

    def step(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> tuple[Tensor, Any]:
        """The sampler's step; into clean data, one evaluation more."""
        x, state = self.sampler.step(denoiser, x, t, s, noise, state)
        path = denoiser.path
        if float(path.sigma(s)) > 0:
            return x, state
        k = [group.name for group in self.groups].index(self.group)
        start = sum(group.channels for group in self.groups[:k])
        part = slice(start, start + self.groups[k].channels)
        again = path.time(torch.tensor(self.ratio, dtype=torch.float64))
        times = s.repeat(1, len(self.groups))
        times[0, k] = again
        noisy = x.clone()
        noisy[:, part] = float(path.alpha(again)) * x[:, part] + float(path.sigma(again)) * noise(x[:, part])
        refined = x.clone()
        refined[:, part] = denoiser(noisy, times)[:, part]
        return refined, state
