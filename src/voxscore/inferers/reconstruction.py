"""Reconstruction as an inferer: samples of the volume that a scanner measured, by one prior for every operator.

    y = A x + noise        ->        x_1 ... x_N ~ p(x | y),        their mean and their standard deviation

The prior is a score network of volumes; the operator A and its noise come with each measurement; a posterior of
`voxscore.diffusion.posteriors` joins the two. The prior knows volumes whose 99.5 % quantile is 1, while measurements
come in the units of a scanner: the quantile of a least-squares solution, a few conjugate-gradient steps on A^H A x =
A^H y from zero, says how far they are apart, and both y and its noise are divided by it.

A run begins at the noise-to-signal ratio of the first of its times, not in pure noise: at x = s + sigma z, s the same
least-squares solution. At a ratio of 2 and more nothing of s is left that the posterior would not correct, and the
evaluations are spent where the measurement leaves open what the volume is.

A prior of several grids is told which one it sees, by the `condition` of its network: what is likely in slices of 1 mm
is not in slices of 3 mm.

Samples come in antithetic pairs: the second has the noise of the first with the opposite sign. Each is a sample as good
as any, but what is linear in the noise cancels in their mean, which is that of many more samples (Hammersley and
Morton, Proc. Camb. Phil. Soc. 52, 1956). Their deviations are from that better mean, hence `sample_moments`.

Memory. Samples are drawn one after the other, and with a `window` the network sees parts of the volume, neighbours
overlapping by a quarter and blended by Gaussian weights, so that only the volume itself, its k-space and one window's
activations are held. What windows change is measured in tests/inferers/test_reconstruction_inferer.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.inferers import Inferer
from torch import Generator, Tensor

from voxscore.diffusion import Denoiser, Sampler, VolumeNoise, bind, trajectory
from voxscore.diffusion.posteriors import conjugate_gradient
from voxscore.diffusion.samplers import Noise
from voxscore.inferers.sampling import volume_seed
from voxscore.inferers.windows import FastInferer, FittedWindowInferer, like_input
from voxscore.measurement import CartesianMRI, LinearOperator

__all__ = ["DenoisingInferer", "ReconstructionInferer", "log_slice_spacing", "sample_moments"]

QUANTILE = 0.995
OVERLAP = 0.25
LEAST_SQUARES_STEPS = 10

Method = Callable[[Denoiser, LinearOperator, Tensor, float], Denoiser | Sampler]
"""(prior, A, y, noise standard deviation) -> the posterior's denoiser, or a sampler that needs the prior's alone."""


def log_slice_spacing(spacing: Sequence[float]) -> Tensor:
    """What a network is told of a RAS volume's grid: the logarithm (1,) of the spacing along its last axis in mm.

    Args:
        spacing: of the three axes, mm.
    """
    return torch.tensor([math.log(float(spacing[-1]))])


class ReconstructionInferer(Inferer):
    """Posterior samples of a measured volume.

    Args:
        denoiser: what makes a denoiser of the network, for volumes (B, 1, *spatial) whose 99.5 % quantile is 1.
        times: descending times (n + 1,), from a noise-to-signal ratio of about 2 on.
        sampler: the step rule.
        method: how prior and measurement are joined, for instance `Decomposed`.
        samples: N, of `__call__`.
        seed: samples 2 k and 2 k + 1 of a measurement have the noise of `volume_seed(seed, k)`, the second with the
            opposite sign.
        window: largest window of the network in voxels per axis; None evaluates the volume as a whole.
        full_precision: keep the network in float32.
        condition: what the network is told of the spacing of a volume's axes in mm, as its `cond`; None tells nothing.
    """

    def __init__(
        self,
        denoiser: Callable[[Callable[..., Tensor]], Denoiser],
        times: Tensor,
        sampler: Sampler,
        method: Method,
        samples: int = 1,
        seed: int = 0,
        window: Sequence[int] | None = None,
        full_precision: bool = False,
        condition: Callable[[Sequence[float]], Tensor] | None = None,
    ) -> None:
        self.condition = condition
        self.denoiser, self.times, self.sampler = denoiser, torch.as_tensor(times, dtype=torch.float64), sampler
        self.method, self.samples, self.seed = method, samples, seed
        self.evaluate: Inferer = (
            FastInferer(full_precision)
            if window is None
            else FittedWindowInferer(tuple(window), OVERLAP, full_precision=full_precision)
        )

    def reconstruct(
        self,
        network: Callable[..., Any],
        operator: LinearOperator,
        y: Tensor,
        noise_std: float,
        samples: int | None = None,
        seed: int | None = None,
        advance: Callable[[], None] | None = None,
        spacing: Sequence[float] | None = None,
    ) -> Tensor:
        """Samples (N, 1, *spatial) of the volume, float32, in the units of the measurement.

        Args:
            network: the score network.
            operator: A.
            y: the measurement (1, ...), on the device of the network.
            noise_std: standard deviation of its noise (of each of real and imaginary part, if complex).
            samples: N; the inferer's own if None.
            seed: of the samples; the inferer's own if None.
            advance: called after every step, for a progress bar.
            spacing: of the volume's axes, mm; only a prior with a `condition` asks for it.

        Raises:
            ValueError: the measurement is zero, so that it has no scale; the spacing is missing.
            FloatingPointError: the network returned NaN or infinity; the message says at which noise level.
        """
        start = conjugate_gradient(operator.normal, operator.adjoint(y), LEAST_SQUARES_STEPS)
        scale = _scale(start)
        if not scale > 0:
            raise ValueError("ReconstructionInferer: the measurement is zero: nothing says how bright the volume is")
        start, y, noise_std = start / scale, y / scale, noise_std / scale
        prior = self.denoiser(lambda x, *args, **kwargs: self.evaluate(x, network, *args, **kwargs))
        if self.condition is not None:
            if spacing is None:
                raise ValueError("ReconstructionInferer: this prior is told the spacing of the volume: give it")
            prior = bind(prior, cond=self.condition(spacing)[None].to(start))
        joined = self.method(prior, operator, y, noise_std)
        posterior, sampler = (prior, joined) if isinstance(joined, Sampler) else (joined, self.sampler)
        sigma = prior.path.sigma(self.times[0])
        drawn = []
        for k in range(self.samples if samples is None else samples):
            noise = _antithetic_noise(self.seed if seed is None else seed, k)
            x = start + sigma * noise(torch.empty_like(start))
            for state in trajectory(posterior, x, self.times, sampler, noise):
                x = state
                if advance is not None:
                    advance()
            drawn.append(x.float() * scale)
        return torch.cat(drawn)

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Any],
        kspace: Tensor,
        mask: Tensor,
        maps: Tensor,
        noise_std: Tensor,
    ) -> Tensor:
        """Mean and standard deviation (1, 2, *spatial) of the samples of one MR scan, with the metadata of `inputs`.

        Args:
            inputs: (1, 1, *spatial), for its metadata; a MetaTensor, if the prior is told the spacing.
            network: the score network.
            kspace: (1, coils, *spatial), complex, as `LoadKspaced` gives it, like all that follow.
            mask: (1, *spatial), boolean.
            maps: (1, coils, *spatial), complex.
            noise_std: (1,).

        Raises:
            ValueError: more than one scan; the k-space is zero.
            FloatingPointError: the network returned NaN or infinity.
        """
        if len(kspace) != 1:
            raise ValueError(f"ReconstructionInferer: one scan at a time, got {len(kspace)}")
        kspace, mask, maps = (v.as_tensor() if isinstance(v, MetaTensor) else v for v in (kspace, mask, maps))
        spacing = affine_to_spacing(inputs.meta["affine"].reshape(4, 4)) if isinstance(inputs, MetaTensor) else None
        operator = CartesianMRI(mask[0], maps[0])
        samples = self.reconstruct(network, operator, kspace, float(noise_std), spacing=spacing)
        mean, sd = sample_moments(samples)
        return like_input(torch.cat([mean, torch.zeros_like(mean) if sd is None else sd], dim=1), inputs)


def sample_moments(samples: Tensor) -> tuple[Tensor, Tensor | None]:
    """Mean and standard deviation of antithetic samples, of one sample none.

    Squared deviations from the mean of N independent samples are divided by N - 1, because the mean lies amid them.
    Of pairs whose errors cancel it does not: N. A last sample without its partner moves the mean by 1/N of its error:
    N - 1/N. Where a posterior is not linear in its noise the pairs cancel less, and the deviation comes out up to
    1/(2 N) too small.

    Args:
        samples: (N, C, *spatial), as `ReconstructionInferer.reconstruct` draws them.

    Returns:
        (1, C, *spatial) each.
    """
    n = len(samples)
    mean = samples.mean(dim=0, keepdim=True)
    if n < 2:
        return mean, None
    return mean, ((samples - mean).square().sum(dim=0, keepdim=True) / (n - n % 2 / n)).sqrt()


def _antithetic_noise(seed: int, k: int) -> Noise:
    """The noise of sample k, counted from 0."""
    noise = VolumeNoise([Generator().manual_seed(volume_seed(seed, k // 2))], 1)
    return noise if k % 2 == 0 else lambda x: -noise(x)


class DenoisingInferer(Inferer):
    """The posterior mean of volumes in white noise, in one evaluation: a look at a denoiser while it trains.

    Args:
        denoiser: what makes a denoiser of the network, on a path with alpha = 1.
        noise_std: of the noise that is added to the inputs.
        seed: of the noise, which is the same for every call.
    """

    def __init__(self, denoiser: Callable[[Callable[..., Tensor]], Denoiser], noise_std: float, seed: int = 0) -> None:
        self.denoiser, self.noise_std, self.seed = denoiser, noise_std, seed
        self.fast = FastInferer()

    def __call__(self, inputs: Tensor, network: Callable[..., Any]) -> Tensor:
        """E[x | x + noise] of inputs (B, C, *spatial), float32, with their metadata."""
        denoiser = self.denoiser(lambda x, *args, **kwargs: self.fast(x, network, *args, **kwargs))
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        noise = torch.randn(plain.shape, generator=Generator().manual_seed(self.seed)).to(plain)
        t = denoiser.path.time(torch.tensor(self.noise_std, dtype=torch.float64))
        return like_input(denoiser(plain + self.noise_std * noise, t), inputs)


def _scale(x: Tensor) -> float:
    """The 99.5 % quantile of a volume; `torch.quantile` is limited to 2^24 voxels."""
    flat = x.flatten()
    return float(flat.kthvalue(max(1, round(QUANTILE * flat.numel()))).values)
