"""Is your sampler right? MONAI's schedulers and voxscore's, sampled with a network that makes no error.

    python examples/is_your_sampler_right.py [--steps 1000 501 400 300 250 100 50]

The data are N(0, 0.3^2), for which the best noise predictor is known, so every deviation is the scheduler's. The first
table is MONAI's `DiffusionInferer` with MONAI's schedulers and with voxscore's of the same name. The rules without
noise multiply their start by a number, so it is given a standard deviation of exactly 1 and the table is exact; DDPM's
entries have a standard error of 0.6 %. A first-order rule that is right still comes out a little low with few steps.
The second table is what to use instead: the same checkpoint as a path, and solvers of higher order.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from monai.inferers import DiffusionInferer
from monai.networks import schedulers as monai_schedulers
from rich.console import Console
from rich.table import Table
from torch import Tensor

from voxscore import inferers
from voxscore.diffusion import Discrete, DPMSolver, Euler, Flow, Heun, Sampler, UniPC, log_uniform_times, sample
from voxscore.inferers import checkpoint_denoiser

DEVIATION = 0.3
SCHEDULERS: list[tuple[str, str, dict]] = [
    ("DDPM", "DDPMScheduler", {"clip_sample": False}),
    ("DDIM", "DDIMScheduler", {"clip_sample": False}),
    ("PNDM", "PNDMScheduler", {}),
    ("RFlow", "RFlowScheduler", {}),
    ("RFlow, real times", "RFlowScheduler", {"use_discrete_timesteps": False}),
]


def best_network(scheduler: monai_schedulers.Scheduler) -> Callable[..., Tensor]:
    """What a perfect network would predict: the noise, or the velocity x_0 - noise of a rectified flow."""
    rectified = isinstance(scheduler, monai_schedulers.RFlowScheduler)
    path = Flow() if rectified else Discrete(scheduler.betas)

    def network(x: Tensor, timesteps: Tensor, context: None = None) -> Tensor:
        t = timesteps.double().reshape(-1, *[1] * (x.ndim - 1)) / (scheduler.num_train_timesteps if rectified else 1)
        alpha, sigma = path.alpha(t), path.sigma(t)
        variance = alpha**2 * DEVIATION**2 + sigma**2
        clean, noise = alpha * DEVIATION**2 / variance * x, sigma / variance * x
        return (clean - noise if rectified else noise).to(x)

    return network


def deviation(scheduler: monai_schedulers.Scheduler, steps: int) -> float:
    """Standard deviation of what MONAI's inferer samples."""
    torch.manual_seed(0)  # MONAI's DiffusionInferer takes no generator
    scheduler.set_timesteps(steps)
    noise = torch.randn(1, 1, 24, 24, 24, dtype=torch.float64)
    samples = DiffusionInferer(scheduler).sample(noise / noise.std(), best_network(scheduler), verbose=False)
    return float(samples.std())


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[1000, 501, 400, 300, 250, 100, 50])
    steps = parser.parse_args().steps
    console = Console(width=120)
    table = Table("scheduler", *map(str, steps), title="standard deviation (right: 0.300): MONAI / voxscore")
    for label, name, arguments in SCHEDULERS:
        cells = []
        for n in steps:
            theirs, ours = (
                deviation(getattr(module, name)(num_train_timesteps=1000, **arguments), n)
                for module in (monai_schedulers, inferers)
            )
            cells.append(f"{theirs:.3f}/{ours:.3f}")
        table.add_row(label, *cells)
    console.print(table)

    scheduler = monai_schedulers.DDPMScheduler(num_train_timesteps=1000)
    denoiser = checkpoint_denoiser(best_network(scheduler), scheduler)
    solvers: list[Sampler] = [Euler(), Heun(), DPMSolver(2), DPMSolver(3), UniPC(2), UniPC(3)]
    table = Table("steps", *(f"{type(s).__name__} {s.order}" for s in solvers), title="the DDPM's network on its path")
    for n in (10, 20, 40):
        times = log_uniform_times(denoiser.path, n, clean=True)
        start = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
        table.add_row(str(n), *(f"{float(sample(denoiser, start, times, solver)):.4f}" for solver in solvers))
    console.print(table)


if __name__ == "__main__":
    main()
