"""Neighbours' evidence: labels of different voxels are correlated, and far more than a network sees in noise.

Let the labels y of an image be drawn from logits that are themselves uncertain, u ~ N(f, K), so that a border may move
as a whole. At high noise no voxel x_i says anything of its class, but a thousand voxels along a border do. The most
probable logits given x = alpha y + sigma noise solve

    u = f + K (r - p),    p = softmax(u),    r = softmax(u + alpha x / sigma^2),

since r - p is the derivative of ln p(x | u); this is Laplace's approximation of a Gaussian-process classifier. One step
from u = f is taken, which is exact to first order in K, and in this denoiser D = softmax(u + alpha x / sigma^2) has

    sigma^2 / alpha dD / dx  ->  J + J K J,    J_i = diag(p_i) - p_i p_i',    sigma -> inf,

the covariance of the labels, as Tweedie's formula demands. Without K it is J: voxels would be drawn on their own, and a
structure's volume would hardly vary between samples, its errors averaging out. The covariance is local and positive,

    K = sum_w S_w G_w S_w,    G_w(i, j) = exp(-|i - j|^2 / 2 w^2) / (pi w^2)^(d/4),

with amplitudes S_w >= 0 of every voxel from the network. Each G_w has columns of unit norm on an endless grid, so that
white evidence keeps its variance.

Source: Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, eqs. 3.17 and 3.39; Monteiro et al.,
Stochastic Segmentation Networks, NeurIPS 2020, for logits with a Gaussian of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["neighbours_evidence"]


def smoothed(fields: Tensor, widths: Sequence[float]) -> Tensor:
    """G_w of fields (B, W, C, *spatial), each with the width of its place in W, in voxels; outside there are zeros."""
    w = torch.tensor(widths, dtype=fields.dtype, device=fields.device)[:, None, None]
    for axis in range(3, fields.ndim):
        place = torch.arange(fields.shape[axis], dtype=fields.dtype, device=fields.device)
        kernel = torch.exp(-((place[:, None] - place) ** 2) / (2 * w**2)) / (torch.pi * w**2) ** 0.25
        lines = fields.movedim(axis, -1)
        fields = torch.einsum("wij,bwlj->bwli", kernel, lines.flatten(2, -2)).reshape(lines.shape).movedim(-1, axis)
    return fields


def neighbours_evidence(f: Tensor, evidence: Tensor, amplitudes: Tensor, widths: Sequence[float]) -> Tensor:
    """K (r - p) at u = f, what the noisy labels of other voxels, and its own, say of a voxel's logits.

    Args:
        f: logits of the prior (B, classes, *spatial).
        evidence: alpha x / sigma^2, shaped like f.
        amplitudes: S_w (B, W, *spatial), not negative.
        widths: w of each, in voxels.

    Returns:
        Shaped like f.
    """
    # Autocast would round the small differences r - p.
    with torch.autocast(f.device.type, enabled=False):
        difference = (f + evidence).softmax(1) - f.softmax(1)
        s = amplitudes[:, :, None]
        return (s * smoothed(s * difference[:, None], widths)).sum(1)
