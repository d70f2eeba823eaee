"""The network of voxscore: a residual U-Net of any spatial size, told the noise level, with gates and deep heads.

    encoder  block -> block -> ... -> block (bottleneck)      each level halves the size (strided convolution)
    decoder  block <- block <- ...                            transposed convolution, skip concatenated
    block    x -> SE( conv(act(FiLM(norm(conv(act(norm(x))))))) + project(x) )

Squeeze-and-excitation stands after every encoder and every decoder block, as Roy et al. place it. FiLM is the
identity without noise levels and in a fresh network; `noise_level` says what it does. With `deep_heads` the network
returns `DeepOutputs` while it trains and its main output otherwise.

A convolution does not know where it is. Of volumes that all show the same place a denoiser must know that: at high
noise E[x_0 | x_t] tends to the mean volume, which no translation-equivariant function of noise comes near. With
`position` the stem adds a linear function of Fourier features of each voxel's offset u from the centre, along each
axis cos(2 pi u / L) and sin(2 pi u / L) for the wavelengths L = 8, 16, 32, 64, 128 voxels.

Magnitudes at the start. PyTorch draws weights of variance 1 / (3 fan_in), so a convolution divides the root mean
square (RMS) by sqrt(3) and a residual branch adds an RMS of sqrt(E[silu(z)^2] / 3) = 0.34, z being N(0, 1), whatever
came in. A block whose gates are near g thus takes an RMS r to g sqrt(r^2 + 0.34^2): for input of RMS 1 it falls from
0.34 to 0.15-0.2 at all deeper levels with gates (g = 1/2) and from 0.67 to 0.4-0.5 without. No level needs rescaling.

Convolutions in bfloat16 on channels-last memory are the fast form on recent CPUs and on CUDA; the caller chooses
it (`torch.autocast`, `.to(memory_format=torch.channels_last_3d)`), the weights stay float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import gcd
from typing import Any

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from voxscore.networks.noise_level import NoiseEmbedding
from voxscore.networks.self_distillation import DeepHeads, DeepOutputs
from voxscore.networks.squeeze_excitation import ChannelSE, ConcurrentSE, SpatialSE

__all__ = ["ScoreUNet"]

WAVELENGTHS = (8, 16, 32, 64, 128)
SQUEEZE_EXCITATION = {"cse": ChannelSE, "sse": SpatialSE, "scse": ConcurrentSE, None: None}


class ResidualBlock(nn.Module):
    """Two pre-activated convolutions, a skip, a gate; FiLM by an embedding of `embedding` numbers if that is not 0."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        squeeze_excitation: str | None,
        embedding: int = 0,
    ) -> None:
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
        self.film = None
        if embedding:
            self.film = nn.Linear(embedding, 2 * out_channels)
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """(B, in_channels, *spatial), (B, embedding) -> (B, out_channels, *spatial)."""
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.film is not None:
            # A float32 scale would promote the whole bfloat16 map.
            factors = self.film(embedding).to(h.dtype)
            scale, shift = factors.reshape(*factors.shape, *(1 for _ in x.shape[2:])).chunk(2, dim=1)
            h = h * (1 + scale) + shift
        h = self.conv2(F.silu(h))
        return self.gate(h + self.project(x))


class ScoreUNet(nn.Module):
    """A U-Net that takes any spatial size: it pads inside and crops its output.

    Memory kept for backward, in kB (1000 bytes) per voxel of each volume; deep heads of 4 classes add about 0.01:

        ================== ===== =============
        on a CPU           plain checkpointing
        ================== ===== =============
        float32            4.50  0.48
        bfloat16 autocast  2.25  0.24
        ================== ===== =============

    for 3 dimensions, 4 channels in and out, `channels` and gates as by default, `n_times=2`, without the weights and
    whatever else does not grow with the volume. With checkpointing backward also holds one block at a time, the finest
    decoder's 1.67 or 0.83 at most. CUDA's autocast computes GroupNorm in float32 and so keeps more.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the volume, all groups together.
        out_channels: channels of the output (classes, for a segmentation).
        channels: width of each level, finest first; the last is the bottleneck.
        squeeze_excitation: "cse", "sse", "scse", or None for no gate.
        n_times: number of groups of channels with a noise level, 0 to 2. 0 is a segmentation network; otherwise the
            last convolution starts at 0, so that a preconditioned network starts as the exact denoiser of a Gaussian.
        deep_heads: add the heads of dual self-distillation for training.
        cond_features: length of the vector that names a transform of the volume (`cond`), 0 for none.
        checkpointing: in training keep only what enters and leaves a block and compute its inside again for backward.
        position: tell the network where a voxel lies, for volumes that show the same place.

    Raises:
        ValueError: fewer than two levels (three with `deep_heads`), an unknown gate, `n_times` not in 0 to 2, or
            `cond_features` without a noise level.
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
        cond_features: int = 0,
        checkpointing: bool = False,
        position: bool = False,
    ) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ValueError(f"ScoreUNet: channels needs two levels at least, got {tuple(channels)}")
        if n_times not in (0, 1, 2):
            raise ValueError(f"ScoreUNet: n_times is 0, 1 or 2, got {n_times}")
        if cond_features and not n_times:
            raise ValueError(f"ScoreUNet: cond_features={cond_features} needs n_times=1 or 2, got n_times=0")
        if deep_heads and len(channels) < 3:
            raise ValueError(f"ScoreUNet: deep_heads need three levels at least, got {tuple(channels)}")
        if squeeze_excitation not in SQUEEZE_EXCITATION:
            raise ValueError(
                f"ScoreUNet: squeeze_excitation is one of {list(SQUEEZE_EXCITATION)}, got {squeeze_excitation!r}"
            )
        convolution, transposed = Conv[Conv.CONV, spatial_dims], Conv[Conv.CONVTRANS, spatial_dims]
        self.multiple = 2 ** (len(channels) - 1)
        self.checkpointing = checkpointing
        embedding = 4 * channels[0] if n_times else 0
        self.embed = NoiseEmbedding(n_times, embedding, cond_features) if n_times else None
        self.stem = convolution(in_channels, channels[0], kernel_size=3, padding=1)
        features = 2 * len(WAVELENGTHS) * spatial_dims
        self.position = convolution(features, channels[0], kernel_size=1, bias=False) if position else None
        self.encoder = nn.ModuleList(ResidualBlock(spatial_dims, c, c, squeeze_excitation, embedding) for c in channels)
        self.down = nn.ModuleList(
            convolution(fine, coarse, kernel_size=2, stride=2) for fine, coarse in pairwise(channels)
        )
        self.up = nn.ModuleList(
            transposed(coarse, fine, kernel_size=2, stride=2) for fine, coarse in pairwise(channels)
        )
        self.decoder = nn.ModuleList(
            ResidualBlock(spatial_dims, 2 * c, c, squeeze_excitation, embedding) for c in channels[:-1]
        )
        last = convolution(channels[0], out_channels, kernel_size=1)
        if n_times:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.GroupNorm(gcd(8, channels[0]), channels[0]), nn.SiLU(), last)
        self.deep_heads = None
        if deep_heads:
            levels = [(c, n) for n, c in enumerate(channels)]
            self.deep_heads = DeepHeads(spatial_dims, levels[-2::-1], levels[1:], out_channels)

    def forward(self, x: Tensor, t: Tensor | None = None, cond: Tensor | None = None) -> Tensor | DeepOutputs:
        """Output (B, out_channels, *spatial) of a volume (B, in_channels, *spatial).

        With `deep_heads`, in training, a `DeepOutputs` of such tensors.

        Args:
            x: the volume.
            t: noise-to-signal ratio sigma / alpha of each group of channels in [0, inf], (B, n_times) or (n_times,);
                with one group also (B,) or (). 0 is clean, infinity pure noise, None clean throughout.
            cond: (B, cond_features), the transform of the volume. None is 0, the identity.

        Raises:
            ValueError: `t` or `cond` has another shape, or the network was built without.
        """
        embedding = None
        if self.embed is not None:
            embedding = self.embed(t, cond, x.shape[0])
        elif t is not None or cond is not None:
            raise ValueError("ScoreUNet: a network built with n_times=0 takes neither t nor cond")
        crop: tuple[Any, ...] = (..., *(slice(n) for n in x.shape[2:]))
        padding = [(-n) % self.multiple for n in x.shape[2:]]
        if any(padding):
            x = F.pad(x, [p for n in reversed(padding) for p in (0, n)], mode="replicate")
        encoder: list[Tensor] = []
        h = self.stem(x)
        if self.position is not None:
            h = h + self.position(_position_features(h, crop[1:]))
        for level in range(len(self.encoder)):
            h = self._run(self._encode, level, h, embedding)
            encoder.append(h)
        decoder = [h]
        for level in reversed(range(len(self.decoder))):
            h = self._run(self._decode, level, h, encoder[level], embedding)
            decoder.insert(0, h)
        output = self._run(self.head, h)[crop]
        if self.deep_heads is None or not self.training:
            return output
        return self.deep_heads(output, encoder[-2::-1], decoder[1:])

    def _encode(self, level: int, h: Tensor, embedding: Tensor | None) -> Tensor:
        return self.encoder[level](self.down[level - 1](h) if level else h, embedding)

    def _decode(self, level: int, h: Tensor, skip: Tensor, embedding: Tensor | None) -> Tensor:
        return self.decoder[level](torch.cat([self.up[level](h), skip], dim=1), embedding)

    def _run(self, part: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """`part(*inputs)`, its inside forgotten until backward if `checkpointing`."""
        if self.checkpointing and self.training:
            # Nothing in a block is random, so there is no generator's state to keep.
            return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)
        return part(*inputs)


def _position_features(h: Tensor, volume: Sequence[slice]) -> Tensor:
    """Fourier features (1, F, *spatial) of the voxels of h (B, C, *spatial), from the centre of the unpadded volume."""
    features = []
    for axis, (n, part) in enumerate(zip(h.shape[2:], volume, strict=True)):
        u = torch.arange(n, device=h.device) - (part.stop - 1) / 2
        shape = [1, 1, *(n if k == axis else 1 for k in range(h.ndim - 2))]
        for wavelength in WAVELENGTHS:
            angle = (2 * math.pi / wavelength * u).reshape(shape)
            features += [angle.cos(), angle.sin()]
    return torch.cat([f.expand(1, 1, *h.shape[2:]) for f in features], dim=1).to(h.dtype)
