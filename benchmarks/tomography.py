r"""Sparse-view CT with a Gaussian prior: 60 of 360 parallel views, against filtered backprojection.

    python benchmarks/tomography.py --data FOLDER [--noise 0.01 0.001] [--samples 2] [--steps 12]

No bundle of CT ships with voxscore, because there is one CT volume to learn from (FOLDER/ct/example_ct.nii.gz, thorax
and abdomen at 3 mm): a network trained on it would know that patient, and nothing could be said of another. What one
volume does give is a Gaussian,

    x ~ N(m, C),    C = F^H S F,

a stationary field whose spectrum S is one number per spatial frequency (`Gaussian` with a `FourierCovariance`). It is
fitted from slices that are not reconstructed: slices 44 to 67 are, and eight more on either side are left out, so that
no slice within 27 mm of a reconstructed one is seen. m is the mean of the other slices; S is the mean periodogram of
their blocks of as many slices, less m, averaged over about six neighbouring frequencies in plane, since blocks are few
and overlap. It knows nothing of edges, bones or lungs, only how smooth a body is, in the plane and from slice to slice.

**The scan.** x is attenuation relative to water, 1 + HU / 1000. Views are spread over half a turn, every sixth of 360,
of each slice, with noise whose standard deviation is 1 % or 0.1 % of the largest line integral. The views are made by
the operator that reconstructs, which favours every method that uses it alike.

**The posterior mean** is known: it minimises |A x - y|^2 / r^2 + (x - m)^T C^-1 (x - m). The Hessian is close to
h + r^2 / S in the Fourier basis, h the response of A^T A to a point, and conjugate gradients preconditioned by that
converge in 30 (1 %) to 100 steps. The package's samplers meet the same prior as a denoiser (`GaussianDenoiser`): their
samples scatter about the posterior mean, so a mean of N of them has 1/N of the posterior variance in its error besides.

Filtered backprojection has the ramp filter and the windows that scikit-image offers. All images are set to 0 where they
are negative. PSNR is over the block, its largest value the peak.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor

from voxscore.diffusion import (
    EDM,
    Decomposed,
    Denoiser,
    DPMSolver,
    FourierCovariance,
    Gaussian,
    GaussianDenoiser,
    MomentMatching,
    karras_times,
    sample,
)
from voxscore.diffusion.posteriors import conjugate_gradient
from voxscore.measurement import Blur, ParallelBeam, gaussian_noise
from voxscore.volumes import read_volume

VIEWS = 60
FIRST, LAST, MARGIN = 44, 68, 8
STRIDE = 3  # from one training block to the next, slices
SMOOTHING = (6.0, 6.0, 1.5)  # of the spectrum, full width at half maximum in frequencies
PATH = EDM()
WINDOWS: dict[str, Callable[[Tensor], Tensor]] = {  # of the frequency in units of the highest
    "ramp": torch.ones_like,
    "Shepp-Logan": lambda f: torch.sinc(f / 2),
    "cosine": lambda f: torch.cos(math.pi * f / 2),
    "Hamming": lambda f: 0.54 + 0.46 * torch.cos(math.pi * f),
    "Hann": lambda f: 0.5 + 0.5 * torch.cos(math.pi * f),
}


def fitted(volume: Tensor) -> Gaussian:
    """The prior of a block of slices, from the slices far from it of a volume (X, Y, Z)."""
    parts = [volume[..., : FIRST - MARGIN], volume[..., LAST + MARGIN :]]
    mean = torch.cat(parts, dim=-1).mean(-1, keepdim=True)
    n = LAST - FIRST
    blocks = [part[..., a : a + n] - mean for part in parts for a in range(0, part.shape[-1] - n + 1, STRIDE)]
    deviations = torch.stack(blocks)[:, None]
    # With their negatives, so that the fit takes no mean of its few blocks away.
    covariance = Gaussian.fit(torch.cat([deviations, -deviations]), "fourier").covariance
    assert isinstance(covariance, FourierCovariance)
    return Gaussian(mean.expand(deviations.shape[2:])[None], FourierCovariance(smoothed(covariance.spectrum)))


def smoothed(spectrum: Tensor) -> Tensor:
    """A spectrum (1, X, Y, Z) averaged over neighbouring frequencies, but for the lowest in plane, where it peaks."""
    axes = (1, 2, 3)
    middle = torch.fft.fftshift(spectrum, axes)[None]
    mean = torch.fft.ifftshift(Blur(middle.shape[2:], SMOOTHING)(middle)[0], axes)
    low = [torch.fft.fftfreq(n, 1 / n).abs() <= 1 for n in spectrum.shape[1:3]]
    mean = torch.where((low[0][:, None] & low[1])[..., None], spectrum, mean)
    # A shifted grid of even size has no middle: the average is even again once both signs are in it.
    mirrored = mean.flip(axes).roll((1, 1, 1), axes)
    return ((mean + mirrored) / 2).clamp(min=1e-7)


def posterior_mean(beam: ParallelBeam, y: Tensor, noise_std: float, prior: Gaussian, iterations: int) -> Tensor:
    """E[x | y] by preconditioned conjugate gradients."""
    assert isinstance(prior.covariance, FourierCovariance)
    spectrum, mean = prior.covariance.spectrum[None].float(), prior.mean[None]
    point = torch.zeros(1, 1, *beam.size)
    point[..., beam.size[0] // 2, beam.size[1] // 2] = 1
    h = torch.fft.fft2(torch.fft.ifftshift(beam.normal(point), (2, 3))).real[..., None]
    weight = (h.clamp(min=1e-4 * float(h.max())) + noise_std**2 / spectrum).rsqrt()

    def filtered(x: Tensor, transfer: Tensor) -> Tensor:
        return torch.fft.ifftn(torch.fft.fftn(x, dim=(2, 3, 4)) * transfer, dim=(2, 3, 4)).real

    def hessian(z: Tensor) -> Tensor:
        x = filtered(z, weight)
        return filtered(beam.normal(x) + noise_std**2 * filtered(x, 1 / spectrum), weight)

    b = filtered(beam.adjoint(y - beam(mean)), weight)
    return mean + filtered(conjugate_gradient(hessian, b, iterations), weight)


def windowed(y: Tensor, window: Callable[[Tensor], Tensor]) -> Tensor:
    """Sinograms (B, C, angles, detectors, Z) with a window on the frequencies of their rows."""
    length = 2 ** math.ceil(math.log2(2 * y.shape[3]))
    transfer = window(torch.linspace(0, 1, length // 2 + 1))[:, None]
    return torch.fft.irfft(torch.fft.rfft(y, n=length, dim=3) * transfer, n=length, dim=3)[:, :, :, : y.shape[3]]


def sampled(posterior: Denoiser, start: Tensor, samples: int, steps: int) -> Tensor:
    """The mean of samples that begin at `start`, which may be wrong by less than the noise of the first level."""
    times = karras_times(PATH, steps, ratio_min=0.005, ratio_max=0.5, clean=True)
    total = torch.zeros_like(start)
    for seed in range(samples):
        generator = Generator().manual_seed(seed)
        x = start + PATH.sigma(times[0]).float() * torch.randn(start.shape, generator=generator)
        total += sample(posterior, x, times, DPMSolver(2), generator)
    return total / samples


def psnr(x: Tensor, truth: Tensor) -> float:
    """In dB, of x set to 0 where it is negative."""
    return float(10 * torch.log10(truth.max() ** 2 / (x.clamp(min=0) - truth).square().mean()))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.01, 0.001])
    parser.add_argument("--iterations", type=int, default=100, help="of the posterior mean's conjugate gradients")
    parser.add_argument("--samples", type=int, default=2, help="of each sampler; 0 leaves them away")
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    hounsfield = torch.from_numpy(read_volume(arguments.data / "ct" / "example_ct.nii.gz").array)
    volume = (1 + hounsfield / 1000).clamp(min=0)
    truth, prior = volume[None, None, :, :, FIRST:LAST], fitted(volume)
    beam = ParallelBeam(tuple(truth.shape[2:4]), [math.pi * k / VIEWS for k in range(VIEWS)])
    console = Console(width=120)
    for noise in arguments.noise:
        clean = beam(truth)
        r = noise * float(clean.max())
        y = gaussian_noise(clean, r, Generator().manual_seed(0))
        began = time.perf_counter()
        images = {f"FBP, {name}": beam.filtered_backprojection(windowed(y, w)) for name, w in WINDOWS.items()}
        seconds = dict.fromkeys(images, (time.perf_counter() - began) / len(images))
        scores = {name: psnr(x, truth) for name, x in images.items()}
        ramp, best = scores["FBP, ramp"], max(scores.values())
        start = images[max(scores, key=lambda name: scores[name])]
        ways: dict[str, Callable[[], Tensor]] = {
            "posterior mean": lambda y=y, r=r: posterior_mean(beam, y, r, prior, arguments.iterations)
        }
        if arguments.samples:
            denoiser = GaussianDenoiser(PATH, prior)
            joined = {
                # 0.3: the standard deviation of a slice about the mean slice
                "Decomposed": Decomposed(denoiser, beam, y, r, sigma_data=0.3, iterations=10),
                "MomentMatching": MomentMatching(denoiser, beam, y, r, iterations=20),
            }
            for name, posterior in joined.items():
                ways[f"{name}, mean of {arguments.samples}, {arguments.steps} steps"] = (
                    lambda posterior=posterior, start=start: sampled(
                        posterior, start, arguments.samples, arguments.steps
                    )
                )
        for name, way in ways.items():
            began = time.perf_counter()
            scores[name] = psnr(way(), truth)
            seconds[name] = time.perf_counter() - began
        title = f"{VIEWS} views, noise {noise:.1%} of the largest line integral"
        table = Table("method", "PSNR, dB", "dB to FBP, ramp", "dB to the best FBP", "s", title=title)
        for name, score in scores.items():
            table.add_row(name, f"{score:.2f}", f"{score - ramp:+.2f}", f"{score - best:+.2f}", f"{seconds[name]:.1f}")
        console.print(table)


if __name__ == "__main__":
    main()
