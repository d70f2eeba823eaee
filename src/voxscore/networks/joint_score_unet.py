"""The score network of an image and its label, which is also a segmentation network.

Two groups of channels, the image and the one-hot label, have a noise-to-signal ratio each. Told both, the network is
that of a joint denoiser (`voxscore.diffusion.groups`). Called with an image alone it holds the image at ratio 0 and
the label at pure noise, where nothing is known of it, and returns the logits of

    p(label | image) = softmax f(image, 0; t = (0, ratio_max)),

the posterior of every voxel in one evaluation. So every tool that takes a segmentation network takes this one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from voxscore.networks.score_unet import ScoreUNet
from voxscore.networks.self_distillation import DeepOutputs

__all__ = ["JointScoreUNet"]


class JointScoreUNet(ScoreUNet):
    """A `ScoreUNet` of `image_channels + classes` channels with two noise levels.

    Args:
        spatial_dims: 2 or 3.
        image_channels: channels of the image, of standard deviation 1.
        classes: channels of the one-hot label, background included.
        ratio_max: noise-to-signal ratio that was pure noise in training.
        channels: as in `ScoreUNet`, like all that follow.
        squeeze_excitation: kind of gate.
        deep_heads: add the heads of dual self-distillation for training.
        cond_features: length of the vector that names a transform of the volume.
        checkpointing: compute the inside of blocks again for backward.
        position: tell the network where a voxel lies.
        image_estimate: with `t` the image is followed by as many channels, its estimate by a Gaussian (`Group`); of a
            clean image that is the image itself.
        correlations: how many correlation widths the label's `Group` has; as many channels follow those of the classes.
    """

    def __init__(
        self,
        spatial_dims: int,
        image_channels: int,
        classes: int,
        ratio_max: float = 80.0,
        channels: Sequence[int] = (32, 64, 128, 256),
        squeeze_excitation: str | None = "scse",
        deep_heads: bool = False,
        cond_features: int = 0,
        checkpointing: bool = False,
        position: bool = False,
        image_estimate: bool = False,
        correlations: int = 0,
    ) -> None:
        both = image_channels + classes
        estimate = image_channels if image_estimate else 0
        super().__init__(
            spatial_dims,
            both + estimate,
            both + correlations,
            channels,
            squeeze_excitation,
            2,
            deep_heads,
            cond_features,
            checkpointing,
            position,
        )
        self.image_channels, self.classes, self.ratio_max = image_channels, classes, ratio_max
        self.image_estimate = image_estimate

    def forward(self, x: Tensor, t: Tensor | None = None, cond: Tensor | None = None) -> Tensor | DeepOutputs:
        """Logits (B, classes, *spatial) of an image, or what `ScoreUNet` says of a joint state.

        Args:
            x: an image (B, image_channels, *spatial), or with `t` a joint state (B, image_channels + classes, ...).
            t: noise-to-signal ratios of image and label, (B, 2) or (2,); None for an image alone.
            cond: (B, cond_features), the transform of the volume. None is 0, the identity.

        Raises:
            ValueError: without `t`, x is not an image; otherwise as `ScoreUNet`.
        """
        if t is not None:
            return super().forward(x, t, cond)
        if x.shape[1] != self.image_channels:
            raise ValueError(
                f"JointScoreUNet: without t it takes an image of {self.image_channels} channels, got {tuple(x.shape)}"
            )
        unknown = x.new_zeros(x.shape[0], self.classes, *x.shape[2:])
        ratio = torch.tensor([0.0, self.ratio_max], device=x.device)
        known = [x, x] if self.image_estimate else [x]
        outputs = super().forward(torch.cat([*known, unknown], dim=1), ratio, cond)
        part = slice(self.image_channels, self.image_channels + self.classes)
        if isinstance(outputs, DeepOutputs):
            return DeepOutputs(
                outputs.main[:, part],
                tuple(z[:, part] for z in outputs.decoder),
                tuple(z[:, part] for z in outputs.encoder),
            )
        return outputs[:, part]
