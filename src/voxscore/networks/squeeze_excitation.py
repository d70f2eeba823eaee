"""Squeeze-and-excitation gates: which channels matter, and which voxels.

Roy, Navab and Wachinger recalibrate a feature map u (B, C, *spatial) in two ways and combine them:

    cSE   u * sigmoid(W2 relu(W1 mean_spatial(u)))      one factor per channel      (eq. 2-3)
    sSE   u * sigmoid(q . u)                            one factor per voxel        (eq. 4-5)
    scSE  max(cSE(u), sSE(u)), element by element       the default aggregation of the journal paper

Sources: Hu et al., Squeeze-and-Excitation Networks, 2018; Roy et al., Concurrent Spatial and Channel Squeeze &
Excitation in Fully Convolutional Networks, MICCAI 2018; Roy et al., Recalibrating Fully Convolutional Networks
with Spatial and Channel "Squeeze and Excitation" Blocks, IEEE TMI 38(2), 2019 (equation numbers from the former).

Argument names are those of `monai.networks.blocks.ChannelSELayer`.
"""

from __future__ import annotations

from typing import Literal

import torch
from monai.networks.layers.factories import Act, Conv, split_args
from torch import Tensor, nn

__all__ = ["ChannelSE", "ConcurrentSE", "SpatialSE"]

ActivationName = tuple[str, dict] | str


def _activation(name: ActivationName) -> nn.Module:
    kind, arguments = split_args(name)
    return Act[kind](**arguments)


class ChannelSE(nn.Module):
    """cSE: weigh each channel by a function of all channels' means.

    Costs 2 C (C // r) + C // r + C parameters.

    Args:
        spatial_dims: number of spatial dimensions, 1 to 3.
        in_channels: C.
        r: reduction ratio of the hidden layer.
        acti_type_1: activation of the hidden layer.
        acti_type_2: activation of the gate.

    Raises:
        ValueError: `r` is not in 1 .. `in_channels`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        r: int = 2,
        acti_type_1: ActivationName = "relu",
        acti_type_2: ActivationName = "sigmoid",
    ) -> None:
        super().__init__()
        if not 1 <= r <= in_channels:
            raise ValueError(f"ChannelSE: r must lie in 1 .. in_channels = {in_channels}, got {r}")
        self.spatial_axes = tuple(range(2, 2 + spatial_dims))
        self.fc = nn.Sequential(
            nn.Linear(in_channels, in_channels // r),
            _activation(acti_type_1),
            nn.Linear(in_channels // r, in_channels),
            _activation(acti_type_2),
        )

    def gate(self, x: Tensor) -> Tensor:
        """The factors (B, C, 1, ...) for x (B, C, *spatial)."""
        s = self.fc(x.mean(self.spatial_axes))
        return s.reshape(*s.shape, *(1 for _ in self.spatial_axes))

    def forward(self, x: Tensor) -> Tensor:
        """Gate x (B, C, *spatial); the shape stays."""
        return x * self.gate(x)


class SpatialSE(nn.Module):
    """sSE: weigh each voxel by a function of its channels. Costs C + 1 parameters.

    Args:
        spatial_dims: number of spatial dimensions, 1 to 3.
        in_channels: C.
        acti_type: activation of the gate.
    """

    def __init__(self, spatial_dims: int, in_channels: int, acti_type: ActivationName = "sigmoid") -> None:
        super().__init__()
        self.conv = Conv[Conv.CONV, spatial_dims](in_channels, 1, kernel_size=1)
        self.act = _activation(acti_type)

    def gate(self, x: Tensor) -> Tensor:
        """The factors (B, 1, *spatial) for x (B, C, *spatial)."""
        return self.act(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        """Gate x (B, C, *spatial); the shape stays."""
        return x * self.gate(x)


class ConcurrentSE(nn.Module):
    """scSE: cSE and sSE side by side, combined element by element.

    Args:
        spatial_dims: number of spatial dimensions, 1 to 3.
        in_channels: C.
        r: reduction ratio of the channel gate.
        aggregation: "max" (the authors' code) or "add" (their first paper).

    Raises:
        ValueError: unknown `aggregation`, or `r` as in `ChannelSE`.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, r: int = 2, aggregation: Literal["max", "add"] = "max"
    ) -> None:
        super().__init__()
        if aggregation not in ("max", "add"):
            raise ValueError(f"ConcurrentSE: aggregation is 'max' or 'add', got {aggregation!r}")
        self.channel = ChannelSE(spatial_dims, in_channels, r)
        self.spatial = SpatialSE(spatial_dims, in_channels)
        self.aggregation = aggregation

    def forward(self, x: Tensor) -> Tensor:
        """Gate x (B, C, *spatial); the shape stays."""
        c, s = self.channel.gate(x), self.spatial.gate(x)
        if self.aggregation == "add":
            return x * (c + s)
        # max(c u, s u) equals max(c, s) u only where u >= 0, and the papers take the former.
        return torch.maximum(x * c, x * s)
