"""The training loss of a joint denoiser, in the place of the network that a MONAI trainer trains.

A joint denoiser of image and label learns by

    L = w_image L_EDM(image) + w_label [ CE(label) + w_dice Dice(label) ],

at noise levels that `GroupTimes` draws for each group. Neither MONAI's trainer nor torch's DistributedDataParallel
knows of noise levels; both know modules that are called with a batch. `JointObjective` is such a module: it draws
levels, noise and ScoreAug's transform and returns the loss of each volume. Its randomness comes from PyTorch's global
generator, which `EpochSeed` sets for every epoch, so that a resumed run repeats the unbroken one.

A network with deep heads learns by dual self-distillation (`voxscore.networks.self_distillation`). Each head is read
as the network's own output F is, and along the decoder and along the encoder the teacher F* teaches the rest,

    sum_{main, decoder} L(F) + w_distillation sum_{students} { w_image |F* - F|^2 (image)
                                                               w_label T^2 KL(p_T(F*) || p_T(F)) (label),

p_T being p(class | x_t) at temperature T, the evidence of the noisy label included. The squared difference is that of
the denoised images D = c_skip x + c_out F with the EDM weight, which is 1 / c_out^2. All terms are means over voxels,
and those of a group count where it is noisy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import DiceLoss
from torch import Generator, Tensor, nn

from voxscore.diffusion import GroupTimes, JointNetDenoiser, ScoreAug
from voxscore.diffusion.objectives import NoisyState, head_loss, noisy_state
from voxscore.networks.self_distillation import DeepOutputs, voxel_kl

__all__ = ["JointObjective"]


class JointObjective(nn.Module):
    """Loss (B,) of clean joint volumes (B, C, *spatial).

    Args:
        denoiser: to be trained.
        times: the mixture of regimes to train in.
        weights: of each group's terms, in the order of the groups.
        augmentation: ScoreAug, or None for none.
        dice_weight: of the Dice loss beside the cross-entropy of a categorical group, background left out.
        distillation_weight: of what teachers teach, in a network with deep heads. 0 leaves deep supervision.
        temperature: T of the teachers' and students' classes.

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
        distillation_weight: float = 1.0,
        temperature: float = 3.0,
    ) -> None:
        super().__init__()
        if len(weights) != len(denoiser.groups):
            raise ValueError(f"JointObjective: a weight for each of {len(denoiser.groups)} groups, got {list(weights)}")
        self.denoiser, self.times, self.weights = denoiser, times, tuple(weights)
        self.augmentation, self.dice_weight = augmentation, dice_weight
        self.distillation_weight, self.temperature = distillation_weight, temperature
        self.dice = DiceLoss(include_background=False, softmax=True, reduction="none")

    def forward(self, x0: Tensor) -> Tensor:
        """The weighted loss of each volume, float32 or more."""
        generator = Generator().manual_seed(int(torch.randint(2**62, ())))
        t = self.times(self.denoiser.path, len(x0), generator)
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        augmentation = None if self.augmentation is None else self.augmentation.draw(x0.shape, generator)
        state = noisy_state(self.denoiser, x0, t, noise, augmentation)
        noisy = (self.denoiser.path.sigma(t) > 0).to(x0.device)
        outputs = self.denoiser.raw(state.x, state.t, **state.cond)
        if not isinstance(outputs, DeepOutputs):
            return self._truth(outputs, state, noisy)
        loss = self._truth(outputs.main, state, noisy)
        for f in outputs.decoder:
            loss = loss + self._truth(f, state, noisy)
        for teacher, *students in (outputs.decoder, outputs.encoder):
            for student in students:
                loss = loss + self.distillation_weight * self._distillation(teacher.detach(), student, state, noisy)
        return loss

    def _truth(self, f: Tensor, state: NoisyState, noisy: Tensor) -> Tensor:
        """L (B,) of one output."""
        found = head_loss(self.denoiser, state, f)
        # A matrix product would be rounded to bfloat16 under autocast.
        loss = (found.losses * torch.tensor(self.weights).to(found.losses)).sum(1)
        for k, group in enumerate(self.denoiser.groups):
            if group.categorical and self.dice_weight:
                dice = self.dice(found.outputs[k], found.targets[k]).flatten(1).mean(1)
                loss = loss + self.weights[k] * self.dice_weight * torch.where(noisy[:, k], dice, 0.0)
        return loss

    def _distillation(self, teacher: Tensor, student: Tensor, state: NoisyState, noisy: Tensor) -> Tensor:
        """What one student learns from its teacher (B,)."""
        taught = self.denoiser.interpret(teacher, state.x, state.t)
        learned = self.denoiser.interpret(student, state.x, state.t)
        losses = []
        for k, (group, part) in enumerate(zip(self.denoiser.groups, self.denoiser.slices().values(), strict=True)):
            if group.categorical:
                voxels = self.temperature**2 * voxel_kl(taught[k], learned[k], self.temperature)
            else:
                dtype = torch.promote_types(student.dtype, torch.float32)
                voxels = (student[:, part].to(dtype) - teacher[:, part].to(dtype)).square()
            losses.append(self.weights[k] * torch.where(noisy[:, k], voxels.flatten(1).mean(1), 0.0))
        return torch.stack(losses).sum(0)
