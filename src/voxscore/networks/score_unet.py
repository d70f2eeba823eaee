"""The network of voxscore: a residual U-Net of any spatial size, with squeeze-and-excitation and deep heads.

    encoder  block -> block -> ... -> block (bottleneck)      each level halves the size (strided convolution)
    decoder  block <- block <- ...                            transposed convolution, skip concatenated
    block    x -> SE( conv(act(norm(conv(act(norm(x)))))) + project(x) )

Squeeze-and-excitation stands after every encoder and every decoder block, as Roy et al. place it. With
`deep_heads` the network returns `DeepOutputs` while it trains and its main output otherwise.

Convolutions in bfloat16 on channels-last memory are the fast form on recent CPUs and on CUDA; the caller chooses
it (`torch.autocast`, `.to(memory_format=torch.channels_last_3d)`), the weights stay float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import gcd

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn
from torch.nn import functional as F

from voxscore.networks.self_distillation import DeepHeads, DeepOutputs
from voxscore.networks.squeeze_excitation import ChannelSE, ConcurrentSE, SpatialSE

__all__ = ["ScoreUNet"]

SQUEEZE_EXCITATION = {"cse": ChannelSE, "sse": SpatialSE, "scse": ConcurrentSE, None: None}


class ResidualBlock(nn.Module):
    """Two pre-activated convolutions, a skip, a gate."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, squeeze_excitation: str | None) -> None:
        super().__init__()
        convolution = Conv[Conv.CONV, spatial_dims]
        self.norm1 = nn.GroupNorm(gcd(8, in_channels), in_channels)
        self.conv1 = convolution(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm2 = nn.GroupNorm(gcd(8, out_channels), out_channels)
        self.conv2 = convolution(out_channels, out_channels, kernel_size=3, padding=1)
        self.project = (
            nn.Identity() if in_channels == out_channels else convolution(in_channels, out_channels, kernel_size=1)
        )
        gate = SQUEEZE_EXCITATION[squeeze_excitation]
        self.gate = nn.Identity() if gate is None else gate(spatial_dims, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *spatial) -> (B, out_channels, *spatial)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.gate(h + self.project(x))


class ScoreUNet(nn.Module):
    """A U-Net that takes any spatial size: it pads inside and crops its output.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the output (classes, for a segmentation).
        channels: width of each level, finest first; the last is the bottleneck.
        squeeze_excitation: "cse", "sse", "scse", or None for no gate.
        n_times: number of noise levels the network is told. 0 is a segmentation network, the only kind so far.
        deep_heads: add the heads of dual self-distillation for training.

    Raises:
        ValueError: fewer than two levels (three with `deep_heads`), an unknown gate, or `n_times` other than 0.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (32, 64, 128, 256),
        squeeze_excitation: str | None = "scse",
        n_times: int = 0,
        deep_heads: bool = False,
    ) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ValueError(f"ScoreUNet: channels needs two levels at least, got {tuple(channels)}")
        if n_times != 0:
            raise ValueError(
                f"ScoreUNet: n_times must be 0, networks with noise levels are not built yet; got {n_times}"
            )
        if deep_heads and len(channels) < 3:
            raise ValueError(f"ScoreUNet: deep_heads need three levels at least, got {tuple(channels)}")
        if squeeze_excitation not in SQUEEZE_EXCITATION:
            raise ValueError(
                f"ScoreUNet: squeeze_excitation is one of {list(SQUEEZE_EXCITATION)}, got {squeeze_excitation!r}"
            )
        convolution, transposed = Conv[Conv.CONV, spatial_dims], Conv[Conv.CONVTRANS, spatial_dims]
        self.multiple = 2 ** (len(channels) - 1)
        self.stem = convolution(in_channels, channels[0], kernel_size=3, padding=1)
        self.encoder = nn.ModuleList(ResidualBlock(spatial_dims, c, c, squeeze_excitation) for c in channels)
        self.down = nn.ModuleList(
            convolution(fine, coarse, kernel_size=2, stride=2) for fine, coarse in pairwise(channels)
        )
        self.up = nn.ModuleList(
            transposed(coarse, fine, kernel_size=2, stride=2) for fine, coarse in pairwise(channels)
        )
        self.decoder = nn.ModuleList(ResidualBlock(spatial_dims, 2 * c, c, squeeze_excitation) for c in channels[:-1])
        self.head = nn.Sequential(
            nn.GroupNorm(gcd(8, channels[0]), channels[0]),
            nn.SiLU(),
            convolution(channels[0], out_channels, kernel_size=1),
        )
        self.deep_heads = None
        if deep_heads:
            levels = [(c, n) for n, c in enumerate(channels)]
            self.deep_heads = DeepHeads(spatial_dims, levels[-2::-1], levels[1:], out_channels)

    def forward(self, x: Tensor) -> Tensor | DeepOutputs:
        """Output (B, out_channels, *spatial) of an image (B, in_channels, *spatial).

        With `deep_heads`, in training, a `DeepOutputs` of such tensors.
        """
        size = x.shape[2:]
        padding = [(-n) % self.multiple for n in size]
        if any(padding):
            x = F.pad(x, [p for n in reversed(padding) for p in (0, n)], mode="replicate")
        encoder: list[Tensor] = []
        h = self.stem(x)
        for level, block in enumerate(self.encoder):
            h = block(self.down[level - 1](h) if level else h)
            encoder.append(h)
        decoder = [h]
        for level in reversed(range(len(self.decoder))):
            h = self.decoder[level](torch.cat([self.up[level](h), encoder[level]], dim=1))
            decoder.insert(0, h)
        output = self.head(h)[(..., *(slice(n) for n in size))]
        if self.deep_heads is None or not self.training:
            return output
        return self.deep_heads(output, encoder[-2::-1], decoder[1:])
