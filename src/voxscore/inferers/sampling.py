"""Sampling as an inferer: MONAI's engines, bundles and applications call it where they would call a network.

A `SamplerInferer` is given a network and an input and runs the whole sampling loop of `voxscore.diffusion`, so that
`SupervisedEvaluator`, MONAI Label and MONAI Deploy, which all call `inferer(inputs, network)`, need to know nothing
of diffusion. `checkpoint_denoiser` and `unet_denoiser` make a denoiser of MONAI's `DiffusionModelUNet` in one line,
for a trained one and for a new one; they own the time it is told, which is where such a network goes wrong silently:
its sinusoidal embedding is made for step numbers up to 1000 and hardly distinguishes times in [0, 1] or EDM's
ln(sigma)/4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.networks.schedulers import DDPMScheduler, RFlowScheduler, Scheduler
from rich.progress import track
from torch import Generator, Tensor

from voxscore.diffusion import Denoiser, Discrete, Flow, NetDenoiser, Path, Sampler, VolumeNoise, bind, trajectory
from voxscore.diffusion.denoisers import Prediction
from voxscore.inferers.windows import FastInferer, like_input

__all__ = ["SamplerInferer", "checkpoint_denoiser", "unet_denoiser", "volume_seed"]


def volume_seed(seed: int, k: int) -> int:
    """The seed of volume k of a run, a number below 2^63.

    Runs of different seeds share no volume, as they would if volume k simply had the seed `seed + k`.
    """
    return int(np.random.SeedSequence([seed, k]).generate_state(1, np.uint64)[0] >> 1)


class SamplerInferer(Inferer):
    """A sampling run: noise in the shape of the input, walked back along the path.

    The network runs in the device's fast number format, the volume stays in float32. Every volume has a seed of its
    own, and with it is the same at any batch size.

    Args:
        denoiser: what makes a denoiser of the network, for instance `NetDenoiser` with path and prediction filled in
            (`functools.partial`; in a bundle `"_mode_": "callable"`). A network that is a denoiser is taken as it is.
        times: descending times (n + 1,), as `karras_times` makes them.
        sampler: the step rule.
        posterior: (denoiser, inputs) -> denoiser: what the input means for the sample, for instance that it is one
            group of a joint state or a measurement. If None the input only says how many volumes of which size.
        channels: of a sample; as many as the input has if None.
        seed: volume k that this inferer makes, counted from 0, has the seed `volume_seed(seed, k)`. Several processes
            each count for themselves: there, give the seeds of every call.
        full_precision: keep the network in float32.
        progress: show a progress bar.
    """

    def __init__(
        self,
        denoiser: Callable[[Callable[..., Tensor]], Denoiser],
        times: Tensor,
        sampler: Sampler,
        posterior: Callable[[Denoiser, Tensor], Denoiser] | None = None,
        channels: int | None = None,
        seed: int = 0,
        full_precision: bool = False,
        progress: bool = False,
    ) -> None:
        self.denoiser, self.times, self.sampler = denoiser, torch.as_tensor(times, dtype=torch.float64), sampler
        self.posterior, self.channels, self.seed, self.made = posterior, channels, seed, 0
        self.fast, self.progress = FastInferer(full_precision), progress

    def __call__(
        self, inputs: Tensor, network: Callable[..., Any], seeds: Sequence[int] | None = None, **cond: Any
    ) -> Tensor:
        """Samples (B, C, *spatial), float32, with the metadata of the inputs (B, C', *spatial).

        Args:
            inputs: what is known, or any tensor of the shape wanted.
            network: the network, or a denoiser.
            seeds: one for each volume, instead of the inferer's own count.
            **cond: conditions of the network.

        Raises:
            ValueError: the number of seeds is not the number of volumes; as `voxscore.diffusion.sample`.
            FloatingPointError: the network returned NaN or infinity; the message says at which noise level.
        """
        batch = len(inputs)
        if seeds is None:
            seeds = [volume_seed(self.seed, self.made + k) for k in range(batch)]
            self.made += batch
        generators = [Generator().manual_seed(seed) for seed in seeds]
        denoiser = self._denoiser(network)
        if cond:
            denoiser = bind(denoiser, **cond)
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        if self.posterior is not None:
            denoiser = self.posterior(denoiser, plain)
        shape = (batch, self.channels or inputs.shape[1], *inputs.shape[2:])
        noise = VolumeNoise(generators, batch)(torch.empty(shape, device=inputs.device))
        states = trajectory(denoiser, denoiser.path.sigma(self.times[0]) * noise, self.times, self.sampler, generators)
        for x in track(states, "Sampling", total=len(self.times), disable=not self.progress):
            last = x
        return like_input(last, inputs)

    def _denoiser(self, network: Callable[..., Any]) -> Denoiser:
        if isinstance(network, Denoiser):
            return network
        return self.denoiser(lambda x, *args, **kwargs: self.fast(x, network, *args, **kwargs))


PREDICTION_OF: dict[str, Prediction] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def checkpoint_denoiser(network: Callable[..., Tensor], scheduler: Scheduler) -> NetDenoiser:
    """A network trained with one of MONAI's schedulers as a denoiser, for every sampler of `voxscore.diffusion`.

    The path is the scheduler's table (`Discrete`) or, for `RFlowScheduler`, `Flow`; the prediction is the scheduler's;
    the network is told the times it was trained with. `clip_sample` has no counterpart.

    Args:
        network: for instance a `DiffusionModelUNet` with its checkpoint loaded.
        scheduler: MONAI's or voxscore's, with the arguments of the training.
    """
    if isinstance(scheduler, RFlowScheduler):
        steps = scheduler.num_train_timesteps
        return NetDenoiser(network, Flow(), "flow_monai", time_map=lambda t: steps * t)
    if isinstance(scheduler, DDPMScheduler) and str(scheduler.variance_type).startswith("learned"):
        # Such a network predicts variances in a second half of its channels, which only DDPM's own steps use.
        whole = network

        def without_variance(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return whole(x, t, **cond)[:, : x.shape[1]]

        network = without_variance
    return NetDenoiser(network, Discrete(scheduler.betas), PREDICTION_OF[str(scheduler.prediction_type)])


def unet_denoiser(
    network: Callable[..., Tensor], path: Path, prediction: Prediction = "edm", sigma_data: float = 0.5
) -> NetDenoiser:
    """A new `DiffusionModelUNet` as a denoiser on any path, told 1000 rho / (1 + rho), in [0, 1000].

    Args:
        network: called as `network(x, timesteps, **cond)`.
        path: the path to train on.
        prediction: what it shall predict.
        sigma_data: standard deviation of the clean data, of the prediction "edm" alone.
    """

    def told(t: Tensor) -> Tensor:
        # As 1000 / (1 + 1/rho), which is finite where no signal is left.
        return 1000 / (1 + 1 / path.ratio(t))

    return NetDenoiser(network, path, prediction, sigma_data, told)
