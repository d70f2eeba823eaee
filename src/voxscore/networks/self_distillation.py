"""Dual self-distillation: a U-Net's own deepest features teach its other ones.

Every level of the encoder and of the decoder gets a small head that predicts the classes at full resolution.
With z the head's logits, p_T(z) = softmax(z / T), y the truth, along each path the deepest head teaches the rest:

    L = sum_{main, decoder} L_seg(z, y)
        + weight T^2 [ sum_{decoder students} KL(p_T(z_dec*) || p_T(z))
                     + sum_{encoder students} KL(p_T(z_enc*) || p_T(z)) ]

"Deepest" follows the forward pass: dec* is the finest decoder level below full resolution, enc* the coarsest
encoder level above the bottleneck; the bottleneck is a student of the decoder. KL is summed over classes and
averaged over voxels and batch.

Two traps of the published code are closed. Teachers are detached, so that a student cannot drag its teacher
along. Heads of equal width and scale are shared between encoder and decoder: an encoder path with heads of its
own has no ground-truth term, and its KL would be least when all heads say the same nothing.

Source: Banerjee et al., Dual Self-Distillation of U-shaped Networks for 3D Medical Image Segmentation, ISBI
2024 and IEEE TBME 2025 (arXiv 2306.03271).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from monai.networks.layers.factories import Conv
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DeepHeads", "DeepOutputs", "DualSelfDistillationLoss", "SelfDistilled"]


class DeepOutputs(NamedTuple):
    """What a network with deep heads returns in training: logits, each (B, K, *spatial) at full resolution.

    Attributes:
        main: the network's own output.
        decoder: the decoder's heads, teacher first, then coarser levels down to the bottleneck.
        encoder: the encoder's heads, teacher first, then finer levels.
    """

    main: Tensor
    decoder: tuple[Tensor, ...]
    encoder: tuple[Tensor, ...]


class DeepHead(nn.Module):
    """A 1x1 convolution to the classes, then one transposed convolution used for every doubling."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, doublings: int) -> None:
        super().__init__()
        self.classify = Conv[Conv.CONV, spatial_dims](in_channels, out_channels, kernel_size=1)
        self.doublings = doublings
        if doublings:
            up = Conv[Conv.CONVTRANS, spatial_dims](out_channels, out_channels, kernel_size=2, stride=2)
            # Starts as nearest-neighbour interpolation, so that a coarse head is right from the first step.
            nn.init.zeros_(up.bias)
            nn.init.zeros_(up.weight)
            for k in range(out_channels):
                nn.init.ones_(up.weight[k, k])
            self.up = up

    def forward(self, feature: Tensor) -> Tensor:
        """Logits at full resolution of a feature map (B, C, *coarse)."""
        z = self.classify(feature)
        for _ in range(self.doublings):
            z = self.up(z)
        return z


class DeepHeads(nn.Module):
    """All heads of one U-shaped network; equal (channels, doublings) share a head.

    Args:
        spatial_dims: 2 or 3.
        encoder: (channels, doublings to full resolution) of the encoder features, teacher (coarsest) first.
        decoder: the same of the decoder features, teacher (finest) first, bottleneck last.
        out_channels: K, the number of classes.
    """

    def __init__(
        self,
        spatial_dims: int,
        encoder: Sequence[tuple[int, int]],
        decoder: Sequence[tuple[int, int]],
        out_channels: int,
    ) -> None:
        super().__init__()
        self.encoder_keys, self.decoder_keys = ([f"{c}x{n}" for c, n in side] for side in (encoder, decoder))
        self.heads = nn.ModuleDict()
        for channels, doublings in (*encoder, *decoder):
            key = f"{channels}x{doublings}"
            if key not in self.heads:
                self.heads[key] = DeepHead(spatial_dims, channels, out_channels, doublings)

    def forward(self, main: Tensor, encoder: Sequence[Tensor], decoder: Sequence[Tensor]) -> DeepOutputs:
        """Heads of the features in the order given to the constructor, cropped to the size of `main`."""
        crop = (..., *(slice(n) for n in main.shape[2:]))
        return DeepOutputs(
            main,
            tuple(self.heads[k](f)[crop] for k, f in zip(self.decoder_keys, decoder, strict=True)),
            tuple(self.heads[k](f)[crop] for k, f in zip(self.encoder_keys, encoder, strict=True)),
        )


class SelfDistilled(nn.Module):
    """Deep heads on any U-shaped network, whose features are picked up at named submodules.

    In training `forward` returns `DeepOutputs`; in evaluation the network's own output, at no extra cost.

    Args:
        network: called with one image; returns logits (B, K, *spatial).
        encoder: names of the submodules whose outputs are the encoder features, teacher (coarsest) first.
        decoder: names for the decoder features, teacher (finest) first, bottleneck last.
        heads: `DeepHeads` for these features, in the same order.

    Raises:
        ValueError: a name is not a submodule of `network`.
    """

    def __init__(self, network: nn.Module, encoder: Sequence[str], decoder: Sequence[str], heads: DeepHeads) -> None:
        super().__init__()
        modules = dict(network.named_modules())
        if missing := [name for name in (*encoder, *decoder) if name not in modules]:
            raise ValueError(f"SelfDistilled: {type(network).__name__} has no submodule {missing}")
        self.network, self.heads = network, heads
        self.encoder, self.decoder = tuple(encoder), tuple(decoder)

    def forward(self, x: Tensor) -> Tensor | DeepOutputs:
        """Logits (B, K, *spatial) of x (B, C, *spatial); with all heads in training."""
        if not self.training:
            return self.network(x)
        features: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
            return lambda module, inputs, output: features.__setitem__(name, output)

        hooks = [
            self.network.get_submodule(name).register_forward_hook(keep(name))
            for name in (*self.encoder, *self.decoder)
        ]
        try:
            main = self.network(x)
        finally:
            for hook in hooks:
                hook.remove()
        return self.heads(main, [features[n] for n in self.encoder], [features[n] for n in self.decoder])


def distillation_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)): summed over classes, averaged over the rest.

    Args:
        teacher: logits (B, K, *spatial).
        student: logits of the same shape.
        temperature: T.
    """
    return temperature**2 * voxel_kl(teacher, student, temperature).mean()


def voxel_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)) of each voxel (B, *spatial), of the same arguments."""
    log_p = F.log_softmax(teacher.float() / temperature, dim=1)
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


class DualSelfDistillationLoss(nn.Module):
    """The loss above; of a plain tensor (a network without heads) it is the segmentation loss alone.

    Args:
        segmentation_loss: (logits (B, K, *spatial), target) -> scalar, for instance `monai.losses.DiceCELoss`.
        weight: of the two distillation sums. 0 leaves deep supervision.
        temperature: T.
        detach_teacher: False repeats the published code, where gradients reach the teachers too.
    """

    def __init__(
        self,
        segmentation_loss: Callable[[Tensor, Tensor], Tensor],
        weight: float = 1.0,
        temperature: float = 3.0,
        detach_teacher: bool = True,
    ) -> None:
        super().__init__()
        self.segmentation_loss = segmentation_loss
        self.weight, self.temperature, self.detach_teacher = weight, temperature, detach_teacher

    def forward(self, outputs: Tensor | DeepOutputs, target: Tensor) -> Tensor:
        """Scalar loss of a network's output against a target as `segmentation_loss` takes it."""
        if isinstance(outputs, Tensor):
            return self.segmentation_loss(outputs.float(), target)
        loss = self.segmentation_loss(outputs.main.float(), target)
        for z in outputs.decoder:
            loss = loss + self.segmentation_loss(z.float(), target)
        for teacher, *students in (outputs.decoder, outputs.encoder):
            t = teacher.detach() if self.detach_teacher else teacher
            for student in students:
                loss = loss + self.weight * distillation_kl(t, student, self.temperature)
        return loss
