"""Evaluations and seconds that each sampler needs for a given error, with and without Gaussian teleportation.

    python benchmarks/samplers.py [--repeats 3]

Two problems whose answer is known: a mixture of two modes in two dimensions, and a Gaussian random field on 24^3
voxels. Error is the root mean square distance of the samples from where the probability-flow ODE leads, in standard
deviations of the data, from sigma = 80 down to 0.002. The goal is the error of 1000 Euler steps (DDIM). The jump of
teleportation is chosen by explained variance (1 - EV <= 1e-5), without looking at the answer. The field is Gaussian,
so there it is the whole way and costs no evaluation.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor

from voxscore.diffusion import (
    DEIS,
    EDM,
    Denoiser,
    DPMSolver,
    Euler,
    FourierCovariance,
    Gaussian,
    GaussianDenoiser,
    Heun,
    MixtureDenoiser,
    Sampler,
    Teleport,
    UniPC,
    jump_ratio,
    karras_times,
    log_uniform_times,
    sample,
)

PATH = EDM()
TOP, BOTTOM = torch.tensor([80.0, 0.002], dtype=torch.float64)
SAMPLERS = [Euler(), Heun(), DEIS(2), DEIS(3), DPMSolver(2), DPMSolver(3), UniPC(1), UniPC(2), UniPC(3)]
GRIDS: dict[str, Callable[..., Tensor]] = {
    "Karras rho = 7": karras_times,
    "Karras rho = 5": partial(karras_times, rho=5.0),
    "log-uniform": log_uniform_times,
}


class Counted(Denoiser):
    """Counts evaluations."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser.path)
        self.denoiser, self.evaluations = denoiser, 0

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The denoiser's answer."""
        self.evaluations += 1
        return self.denoiser(x, t, **cond)


@dataclass
class Problem:
    """A denoiser, the Gaussian of its data, a start, and where the ODE leads."""

    name: str
    denoiser: Denoiser
    gaussian: Gaussian
    start: Tensor
    truth: Tensor
    deviation: float

    def error(self, x: Tensor) -> float:
        """RMS distance from the truth, in standard deviations of the data."""
        return float((x - self.truth).square().mean().sqrt()) / self.deviation


def normals(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(0), dtype=torch.float64)


def mixture() -> Problem:
    means = torch.tensor([[[-1.0, 0.5]], [[1.0, -0.2]]], dtype=torch.float64)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    denoiser = MixtureDenoiser(PATH, means, torch.tensor([0.04, 0.09], dtype=torch.float64), weights)
    gaussian = denoiser.gaussian()
    x = gaussian.sample(normals(256, 1, 2), PATH, TOP)
    truth = sample(denoiser, x, log_uniform_times(PATH, 2000), UniPC(3))
    deviation = float(gaussian.covariance.trace(lambda v: v) / 2) ** 0.5
    return Problem("mixture", denoiser, gaussian, x, truth, deviation)


def random_field(n: int = 24) -> Problem:
    k = torch.stack(torch.meshgrid(*[torch.fft.fftfreq(n, dtype=torch.float64)] * 3, indexing="ij"))
    spectrum = 1 / (k.square().sum(0).sqrt() + 0.05) ** 3
    field = Gaussian(
        torch.zeros(1, n, n, n, dtype=torch.float64), FourierCovariance((spectrum / spectrum.mean())[None])
    )
    start = field.sample(normals(2, 1, n, n, n), PATH, TOP)
    truth = field.transport(start, PATH, TOP, BOTTOM)
    return Problem("random field", GaussianDenoiser(PATH, field), field, start, truth, 1.0)


def run(problem: Problem, sampler: Sampler, grid: Callable[..., Tensor], n: int, ratio: float | None) -> tuple:
    """(error, evaluations, seconds) of n steps; below the ratio if there is a jump."""
    counted = Counted(problem.denoiser)
    times = grid(PATH, n, ratio_max=ratio)
    if ratio is not None:
        times, sampler = torch.cat([TOP[None], times]), Teleport(sampler, problem.gaussian, ratio)
    began = time.perf_counter()
    x = sample(counted, problem.start, times, sampler)
    return problem.error(x), counted.evaluations, time.perf_counter() - began


def cheapest(
    problem: Problem, sampler: Sampler, grid: Callable[..., Tensor], ratio: float | None, goal: float, repeats: int
) -> tuple[int, float] | None:
    """The fewest evaluations that reach the goal and stay there for two more step counts, and their seconds."""
    limit = 1001 if isinstance(sampler, Euler) else 150
    steps = [*range(2, 60), *range(60, 150, 5), *range(150, limit, 50)]
    steps = [n for n in steps if n < limit] + ([1000] if isinstance(sampler, Euler) else [])
    met = 0
    for i, n in enumerate(steps):
        met = met + 1 if run(problem, sampler, grid, n, ratio)[0] <= goal * (1 + 1e-9) else 0
        if met == 3 or (met and n == 1000):
            runs = [run(problem, sampler, grid, steps[i - met + 1], ratio) for _ in range(repeats)]
            return runs[0][1], min(seconds for _, _, seconds in runs)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="timed runs, of which the fastest counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120)
    for problem in (mixture(), random_field()):
        levels = log_uniform_times(PATH, 200)
        ratio = jump_ratio(problem.denoiser, problem.gaussian, levels, 1e-5, 16, Generator().manual_seed(1))
        for name, make in GRIDS.items():
            goal = run(problem, Euler(), make, 1000, None)[0]
            table = Table(
                "sampler", "NFE", "ms", "NFE, teleported", "ms", "saved",
                title=f"{problem.name}, {name}: error {goal:.2g} (1000 Euler steps); jump to sigma = {ratio:.3g}",
            )  # fmt: skip
            for sampler in SAMPLERS:
                found = [cheapest(problem, sampler, make, None, goal, arguments.repeats)]
                if ratio > float(BOTTOM):
                    found.append(cheapest(problem, sampler, make, ratio, goal, arguments.repeats))
                else:
                    found.append((0, 0.0))
                cells = [text for f in found for text in ((str(f[0]), f"{1000 * f[1]:.1f}") if f else ("-", "-"))]
                saved = f"{1 - found[1][0] / found[0][0]:.0%}" if all(found) else "-"
                label = type(sampler).__name__ + (f" {sampler.order}" if not isinstance(sampler, Euler) else "")
                table.add_row(label, *cells, saved)
            console.print(table)


if __name__ == "__main__":
    main()
