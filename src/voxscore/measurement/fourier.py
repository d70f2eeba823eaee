r"""The Fourier transform of MRI: centred, and unitary.

Image and k-space both have their origin in the middle, at index n // 2 of every axis, as raw data have it:

    y(k) = (n_1 ... n_d)^(-1/2) sum_x m(x) exp(-2 pi i sum_j k_j x_j / n_j),    x_j, k_j = -(n_j // 2), ...

The transform is unitary for even and odd sizes, so its inverse is its adjoint and white noise stays white with the
same standard deviation. A Gaussian becomes a Gaussian: exp(-x^2 / (2 s^2)) in one dimension becomes

    s sqrt(2 pi / n) exp(-(2 pi s k / n)^2 / 2)

up to what lies beyond the edges of the two grids.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["centered_fft", "centered_ifft"]


def centered_fft(x: Tensor, dims: int) -> Tensor:
    """Image to k-space over the last `dims` axes: x (..., *spatial), real or complex, to complex of the same shape."""
    axes = tuple(range(-dims, 0))
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(x, axes), dim=axes, norm="ortho"), axes)


def centered_ifft(y: Tensor, dims: int) -> Tensor:
    """K-space to image over the last `dims` axes, the inverse and the adjoint of `centered_fft`."""
    axes = tuple(range(-dims, 0))
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(y, axes), dim=axes, norm="ortho"), axes)
