"""Posterior samples of a volume of which a quarter was measured, and whether their spread is honest.

    python examples/posterior_of_a_measurement.py [--size 12] [--samples 64]

The volumes are a Gaussian random field, whose denoiser is exact, so the posterior is the whole test: with moment
matching it must be exact as well, and the truth must lie within two standard deviations of the mean in 95 % of the
voxels. A trained network takes the place of `GaussianDenoiser` unchanged.
"""

from __future__ import annotations

import argparse

import torch
from torch import Generator, Tensor

from voxscore.diffusion import (
    EDM,
    FourierCovariance,
    Gaussian,
    GaussianDenoiser,
    MomentMatching,
    UniPC,
    VolumeNoise,
    karras_times,
    sample,
)


def random_field(n: int) -> Gaussian:
    """A field of unit variance on n^3 voxels whose power falls with the frequency."""
    k = torch.stack(torch.meshgrid(*[torch.fft.fftfreq(n, dtype=torch.float64)] * 3, indexing="ij"))
    spectrum = 1 / (k.square().sum(0) + 0.01) ** 2
    return Gaussian(torch.zeros(1, n, n, n), FourierCovariance((spectrum / spectrum.mean())[None]))


def main() -> None:
    """Print the coverage of the intervals and the error of the mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=12, help="voxels along each axis")
    parser.add_argument("--samples", type=int, default=64, help="posterior samples")
    arguments = parser.parse_args()

    path, noise_std, seed = EDM(), 0.1, Generator().manual_seed(0)
    field, clean = random_field(arguments.size), torch.tensor(0.0, dtype=torch.float64)
    truth = field.sample(VolumeNoise(seed, 1)(field.mean[None]), path, clean)
    measured = torch.rand(truth.shape[1:], generator=seed) < 0.25

    def operator(x: Tensor) -> Tensor:
        return x[:, measured]

    y = operator(truth) + noise_std * torch.randn(1, int(measured.sum()), generator=seed)
    denoiser = MomentMatching(GaussianDenoiser(path, field), operator, y, noise_std, iterations=20)

    times = karras_times(path, 20, clean=True)
    x = path.sigma(times[0]) * VolumeNoise(seed, arguments.samples)(truth.expand(arguments.samples, -1, -1, -1, -1))
    samples = sample(denoiser, x, times, UniPC(3))
    mean, deviation = samples.mean(0), samples.std(0)
    hidden = ~measured
    # The truth is one more draw: it also differs from the mean of a finite number of samples.
    inside = (truth[0] - mean).abs() < 2 * deviation * (1 + 1 / arguments.samples) ** 0.5
    error = (truth[0] - mean)[hidden].square().mean().sqrt()
    stated, coverage = deviation[hidden].square().mean().sqrt(), inside[hidden].float().mean()
    print(f"measured {float(measured.float().mean()):.0%} of {truth.numel()} voxels")
    print(f"hidden voxels: error of the mean {float(error):.3f}, stated {float(stated):.3f}")
    print(f"within two standard deviations: {float(coverage):.1%} of the hidden voxels (right: 95 %)")


if __name__ == "__main__":
    main()
