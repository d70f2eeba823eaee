r"""Noise of scanners: how it is added, how much of it an image has, what it does to magnitudes.

Noise of complex data is in real and imaginary part alike, each of standard deviation s; the magnitude of a real signal
A in it is Rician,

    m = sqrt((A + s n_1)^2 + (s n_2)^2),    E m = s sqrt(pi/2) L_1/2(-A^2 / (2 s^2)),    E m^2 = A^2 + 2 s^2,

larger than A, most where there is no signal: s sqrt(pi/2) in air. In X-ray transmission a detector counts photons,

    N ~ Poisson(I exp(-p)),    p' = ln(I / N),    variance of p' about exp(p) / I.

Random numbers come from a generator, never from PyTorch's own: one for all measurements, which are drawn one after
the other, or one for each, so that a seed means the same measurement in any batch.

Sources: Gudbjartsson and Patz, The Rician Distribution of Noisy MRI Data, MRM 34, 1995 (moments, correction); Donoho
and Johnstone, Ideal Spatial Adaptation by Wavelet Shrinkage, Biometrika 81, 1994 (the median of the finest details).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

__all__ = ["gaussian_noise", "image_noise_std", "poisson_transmission", "rician_correction", "rician_noise"]

Generators = Generator | Sequence[Generator]
"""One generator for all measurements of a batch, or one for each."""

_MEDIAN = 0.6744897501960817
"""Median size of a standard normal."""


def _drawn(y: Tensor, generator: Generators, draw: Callable[[Tensor, Generator], Tensor]) -> Tensor:
    """`draw` of every member of y (B, ...), on the device of its generator."""
    generators = [generator] * len(y) if isinstance(generator, Generator) else list(generator)
    if len(generators) != len(y):
        raise ValueError(f"one generator, or one for each measurement: got {len(generators)} for {len(y)}")
    return torch.stack([draw(part.to(g.device), g).to(y.device) for part, g in zip(y, generators, strict=True)])


def _normals(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def gaussian_noise(y: Tensor, std: float, generator: Generators) -> Tensor:
    """Measurements with Gaussian noise.

    Args:
        y: (B, ...), real or complex.
        std: of the noise; of complex data, of real and imaginary part each.
        generator: one, or one for each measurement.

    Raises:
        ValueError: not one generator for each measurement.
    """
    # PyTorch's complex normals have the variance 1 in all, one half in each part.
    return y + std * (math.sqrt(2) if y.is_complex() else 1) * _drawn(y, generator, _normals)


def rician_noise(x: Tensor, std: float, generator: Generators) -> Tensor:
    """Magnitude images: of a signal in complex Gaussian noise.

    Args:
        x: (B, ...), noiseless and real.
        std: of real and imaginary part each.
        generator: one, or one for each image.

    Raises:
        ValueError: not one generator for each image.
    """
    return gaussian_noise(torch.complex(x, torch.zeros_like(x)), std, generator).abs()


def rician_correction(magnitude: Tensor, std: float) -> Tensor:
    """Magnitudes (any shape) without the bias of noise: sqrt(max(m^2 - 2 s^2, 0)).

    Before the root and without the cut the square is unbiased. The result is A - s^2 / (2 A) on average at high signal
    A, where m itself is A + s^2 / (2 A): the correction is for air and dark tissue, where m is s sqrt(pi/2) in the mean
    and the result less than half of it.

    Args:
        magnitude: m.
        std: s, of real and imaginary part each.
    """
    return (magnitude.square() - 2 * std**2).clamp(min=0).sqrt()


def poisson_transmission(sinogram: Tensor, photons: float, generator: Generators) -> Tensor:
    """Line integrals as a detector that counts photons finds them.

    An element that no photon reaches is given one: nothing above ln(photons) is measured.

    Args:
        sinogram: p (B, ...), dimensionless line integrals of the attenuation, not negative.
        photons: I, sent to each element.
        generator: one, or one for each sinogram.

    Raises:
        ValueError: not one generator for each sinogram.
    """
    counts = _drawn(photons * torch.exp(-sinogram), generator, lambda mean, g: torch.poisson(mean, generator=g))
    return math.log(photons) - counts.clamp(min=1).log()


def image_noise_std(x: Tensor) -> Tensor:
    """Standard deviation of the white Gaussian noise of images, from details that anatomy has little of.

    The difference of neighbours over sqrt(2), along every axis in turn (the finest Haar detail, at every place), leaves
    nothing of shading that is a sum of functions of fewer axes nor of edges along an axis, and leaves the noise as
    large as it was; the median of its size, divided by 0.6745, the median of a standard normal's, ignores the places
    where anatomy remains as long as they are few. Where the detail is exactly zero, as in a masked background, there is
    no noise and nothing is counted.

    Bias: of ellipsoids with sharp edges it finds 1 to 3 % too much, and 10 % where edges meet most voxels; texture that
    fills the image is taken for noise. Noise that neighbours share, as in an image interpolated or filtered, is
    underestimated. In air the noise of a magnitude image is Rayleigh, with a standard deviation of 0.655 s, and an
    image that is mostly air gives that: crop it or mask it with zeros first.

    Args:
        x: (B, C, *spatial), real, every spatial axis at least two voxels long.

    Returns:
        (B, C); zero for an image without noise.

    Raises:
        ValueError: an axis of one voxel, or none.
    """
    if x.ndim < 3 or min(x.shape[2:]) < 2:
        raise ValueError(f"image_noise_std: at least two voxels along every axis, got {tuple(x.shape)}")
    for axis in range(2, x.ndim):
        x = x.diff(dim=axis) / math.sqrt(2)
    details = x.abs().flatten(2)
    median = details.where(details > 0, torch.nan).nanmedian(dim=2).values
    return median.nan_to_num(0.0) / _MEDIAN
