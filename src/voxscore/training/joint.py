"""The training loss of a joint denoiser, in the place of the network that a MONAI trainer trains.

A joint denoiser of image and label learns by

    L = w_image L_EDM(image) + w_label [ CE(label) + w_dice Dice(label) ],

at noise levels that `GroupTimes` draws for each group. Neither MONAI's trainer nor torch's DistributedDataParallel
knows of noise levels; both know modules that are called with a batch. `JointObjective` is such a module: it draws
levels, noise and ScoreAug's transform and returns the loss of each volume. Its randomness comes from PyTorch's global
generator, which `EpochSeed` sets for every epoch, so that a resumed run repeats the unbroken one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import DiceLoss
from torch import Generator, Tensor, nn

from voxscore.diffusion import GroupTimes, JointNetDenoiser, ScoreAug, joint_loss

__all__ = ["JointObjective"]


class JointObjective(nn.Module):
    """Loss (B,) of clean joint volumes (B, C, *spatial).

    Args:
        denoiser: to be trained.
        times: the mixture of regimes to train in.
        weights: of each group's loss, in the order of the groups.
        augmentation: ScoreAug, or None for none.
        dice_weight: of the Dice loss beside the cross-entropy of a categorical group, background left out.

    Raises:
        ValueError: not a weight for each group.
    """

    def __init__(
        self,
        denoiser: JointNetDenoiser,
        times: GroupTimes,
        weights: Sequence[float],
        augmentation: ScoreAug | None = None,
        dice_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if len(weights) != len(denoiser.groups):
            raise ValueError(f"JointObjective: a weight for each of {len(denoiser.groups)} groups, got {list(weights)}")
        self.denoiser, self.times, self.weights = denoiser, times, tuple(weights)
        self.augmentation, self.dice_weight = augmentation, dice_weight
        self.dice = DiceLoss(include_background=False, softmax=True, reduction="none")

    def forward(self, x0: Tensor) -> Tensor:
        """The weighted loss of each volume, float32 or more."""
        generator = Generator().manual_seed(int(torch.randint(2**62, ())))
        t = self.times(self.denoiser.path, len(x0), generator)
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        augmentation = None if self.augmentation is None else self.augmentation.draw(x0.shape, generator)
        found = joint_loss(self.denoiser, x0, t, noise, augmentation)
        # A matrix product would be rounded to bfloat16 under autocast.
        loss = (found.losses * torch.tensor(self.weights).to(found.losses)).sum(1)
        noisy = (self.denoiser.path.sigma(t) > 0).to(x0.device)
        for k, group in enumerate(self.denoiser.groups):
            if group.categorical and self.dice_weight:
                dice = self.dice(found.outputs[k], found.targets[k]).flatten(1).mean(1)
                loss = loss + self.weights[k] * self.dice_weight * torch.where(noisy[:, k], dice, 0.0)
        return loss
