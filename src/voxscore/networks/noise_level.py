"""How a network is told the noise level: by angles of ln rho, never by ln rho itself.

A group of channels at noise level rho is x = alpha (x0 + rho eps) with rho = sigma / alpha in [0, inf]: 0 is clean
(the group is conditioned on), infinity is pure noise (it is marginalised out). With u = ln rho, clamped to
[-ln 1000, ln 1000], its 64 features are

    f(u) = sqrt(2) (cos(w_k u), sin(w_k u)),    w_k = w_0 64^(k / 31),  k = 0 .. 31,  w_0 = pi / (2 ln 1000)

and the kernel <f(u), f(v)> / 64 = mean_k cos(w_k (u - v)) depends on the ratio of two levels alone. The slowest angle
turns half a circle over the clamped range, so its sine grows with the noise; the fastest turns once in a factor of
1.54. Levels 1 % apart have cosine similarity 0.9986, levels 10 % apart 0.88.

Over 256 levels of the grid of Karras et al. (0.002 .. 80) these features have an effective rank, the exponential of
the entropy of the normalised squared singular values, of 23 of 64. The trap this avoids: a sinusoid made for step
numbers up to 1000 gives EDM's ln(sigma) / 4 a rank of 1.2, which tells a network next to nothing; it gives
250 ln(sigma) a rank of 25, but levels 1 % apart a similarity of 0.84 only.

The embedding e of all groups, and what it does to a normalised feature map h (FiLM), are

    e = silu(W2 silu(W1 f + b1) + b2 + C cond)        h <- h (1 + scale) + shift,   (scale, shift) = V e + b

with V = 0 and b = 0 at first, so that a fresh network ignores its noise level. `cond` names the transform of
ScoreAug that was applied to x, 0 being the identity; it enters before a nonlinearity, as it acts with the noise.

Sources: Tancik et al., Fourier Features Let Networks Learn High Frequency Functions, NeurIPS 2020; Perez et al., FiLM,
AAAI 2018; Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, NeurIPS 2022; ScoreAug,
arXiv 2508.07926.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["NoiseEmbedding", "noise_features"]

LARGEST_RATIO = 1000.0
FREQUENCIES = 32
OCTAVES = 6


def noise_features(ratio: Tensor) -> Tensor:
    """The features f(ln rho) of the module's first equation, finite at 0 and at infinity.

    Args:
        ratio: rho (...,), in [0, inf], without a unit.

    Returns:
        (..., 64) of mean square 1, in the dtype of `ratio`.
    """
    # Clamped before the logarithm: the gradient of ln at 0 is infinite, and infinity times 0 is not a number.
    u = ratio.clamp(1 / LARGEST_RATIO, LARGEST_RATIO).log()
    k = torch.linspace(0, OCTAVES, FREQUENCIES, dtype=u.dtype, device=u.device)
    angle = u[..., None] * (math.pi / (2 * math.log(LARGEST_RATIO)) * 2**k)
    return math.sqrt(2) * torch.cat([angle.cos(), angle.sin()], dim=-1)


class NoiseEmbedding(nn.Module):
    """The vector e of the module's second equation, one for each volume.

    Args:
        n_times: number of groups with a noise level of their own, 1 at least.
        width: length of e.
        cond_features: length of `cond`, 0 for none.
    """

    def __init__(self, n_times: int, width: int, cond_features: int = 0) -> None:
        super().__init__()
        self.n_times, self.cond_features = n_times, cond_features
        self.hidden = nn.Linear(n_times * 2 * FREQUENCIES, width)
        self.output = nn.Linear(width, width)
        self.cond = nn.Linear(cond_features, width, bias=False) if cond_features else None

    def forward(self, t: Tensor | None, cond: Tensor | None, batch: int) -> Tensor:
        """The embedding (B, width), or (1, width) where one row serves every volume.

        Args:
            t: rho of each group, (B, n_times) or (n_times,); with one group also (B,) or (). None is clean throughout.
            cond: (B, cond_features). None is 0.
            batch: B.

        Raises:
            ValueError: `t` or `cond` has another shape, or `cond` is given to an embedding without `cond_features`.
        """
        weight = self.hidden.weight
        # In bfloat16 neighbouring levels would fall together, so at most the features are cast to it, never the level.
        ratio = self._ratio(t, batch).to(weight.device, torch.promote_types(weight.dtype, torch.float32))
        e = self.output(F.silu(self.hidden(noise_features(ratio).flatten(1).to(weight.dtype))))
        if self.cond is not None:
            # None runs the layer on zeros, for DistributedDataParallel asks that every parameter has a gradient.
            e = e + self.cond(self._cond(cond, batch))
        elif cond is not None:
            raise ValueError("ScoreUNet: cond was given to a network built with cond_features=0")
        return F.silu(e)

    def _ratio(self, t: Tensor | None, batch: int) -> Tensor:
        if t is None:
            return self.hidden.weight.new_zeros(1, self.n_times)
        shapes = [(batch, self.n_times), (self.n_times,), *([(batch,), ()] if self.n_times == 1 else [])]
        if tuple(t.shape) not in shapes:
            raise ValueError(
                f"ScoreUNet: t has shape {tuple(t.shape)}, expected one of {shapes} for a batch of {batch} "
                f"with n_times={self.n_times}"
            )
        return t.reshape(-1, self.n_times)

    def _cond(self, cond: Tensor | None, batch: int) -> Tensor:
        if cond is None:
            return self.hidden.weight.new_zeros(1, self.cond_features)
        if tuple(cond.shape) != (batch, self.cond_features):
            raise ValueError(f"ScoreUNet: cond has shape {tuple(cond.shape)}, expected {(batch, self.cond_features)}")
        return cond.to(self.hidden.weight)
