"""The training loss of a denoiser, in the place of the network that a MONAI trainer trains.

    L = E lambda(t) |D(x_t, t) - x_0|^2,        x_t = alpha x_0 + sigma eps

MONAI's trainer and torch's DistributedDataParallel know modules that are called with a batch and nothing of noise
levels. `DenoisingObjective` is such a module: it draws the level and the noise of every volume and returns its loss.
Its randomness comes from PyTorch's global generator, which `EpochSeed` sets for every epoch, so that a resumed run
repeats the unbroken one.

Source: Vincent, A Connection Between Score Matching and Denoising Autoencoders, Neural Computation 2011; Karras et
al., NeurIPS 2022, Table 1.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from voxscore.diffusion import Denoiser, LogNormalTimes, bind, denoising_loss
from voxscore.diffusion.objectives import Weight

__all__ = ["DenoisingObjective"]


class DenoisingObjective(nn.Module):
    """Loss (B,) of clean volumes (B, C, *spatial), of which the network may be told something as its `cond`.

    Args:
        denoiser: to be trained.
        times: the distribution of noise levels.
        weight: lambda, for instance `EDMWeight`.
    """

    def __init__(self, denoiser: Denoiser, times: LogNormalTimes, weight: Weight) -> None:
        super().__init__()
        self.denoiser, self.times, self.weight = denoiser, times, weight

    def forward(self, x0: Tensor, cond: Tensor | None = None) -> Tensor:
        """The weighted loss of each volume, float32 or more.

        Args:
            x0: (B, C, *spatial).
            cond: (B, features), of a network that takes it.
        """
        generator = Generator().manual_seed(int(torch.randint(2**62, ())))
        t = self.times(self.denoiser.path, len(x0), generator)
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        denoiser = self.denoiser if cond is None else bind(self.denoiser, cond=cond)
        return denoising_loss(denoiser, x0, t, noise, self.weight)
