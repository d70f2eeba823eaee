"""The samplers that laws are applied to, with what each promises, and problems whose answer is known."""

import pytest
import torch
from torch import Generator

from voxscore.diffusion import (
    DEIS,
    EDM,
    Ancestral,
    Consistency,
    Denoiser,
    DiagonalCovariance,
    DPMSolver,
    Euler,
    Gaussian,
    GaussianDenoiser,
    Heun,
    MixtureDenoiser,
    PredictorCorrector,
    Restart,
    ReverseDiffusion,
    Teleport,
    UniPC,
    sample,
)

F64 = torch.float64

# Declared order of the ODE, and evaluations for 8 steps that stop at some noise, and that end at clean data.
ODE_SAMPLERS = [
    pytest.param(Euler(), 1, 8, 8, id="Euler"),
    pytest.param(Heun(), 2, 16, 15, id="Heun"),
    pytest.param(DPMSolver(1), 1, 8, 8, id="DPM-Solver++1"),
    pytest.param(DPMSolver(2), 2, 8, 8, id="DPM-Solver++2M"),
    pytest.param(DPMSolver(3), 3, 9, 9, id="DPM-Solver++3M"),
    pytest.param(DEIS(1), 1, 8, 8, id="DEIS1"),
    pytest.param(DEIS(2), 2, 8, 8, id="DEIS2"),
    pytest.param(DEIS(3), 3, 9, 9, id="DEIS3"),
    pytest.param(UniPC(1), 2, 9, 8, id="UniPC1"),
    pytest.param(UniPC(2), 3, 9, 8, id="UniPC2"),
]
STOCHASTIC_SAMPLERS = {
    "Ancestral": Ancestral(),
    "DDIM eta 0.5": Euler(0.5),
    "SDE-DPM-Solver++1": DPMSolver(1, eta=1.0),
    "SDE-DPM-Solver++2M": DPMSolver(2, eta=1.0),
    "Heun with churn": Heun(gamma=0.1),
    "ReverseDiffusion": ReverseDiffusion(),
    "PredictorCorrector": PredictorCorrector(),
    "Restart": Restart(0.1, 1.0),
    "Consistency": Consistency(),
}
BANDS = {1: (1.9, 2.1), 2: (3.7, 4.3), 3: (7.2, 8.8)}


def every_sampler():
    yield from (param.values[0] for param in ODE_SAMPLERS)
    yield UniPC(3)
    yield from STOCHASTIC_SAMPLERS.values()
    yield Teleport(DPMSolver(2), normal(1.0).gaussian, 5.0)


def normal(variance, path=None, mean=0.0, voxels=1):
    """Independent voxels of N(mean, variance)."""
    gaussian = Gaussian(
        torch.full((1, voxels), mean, dtype=F64), DiagonalCovariance(torch.full((1, voxels), variance, dtype=F64))
    )
    return GaussianDenoiser(path or EDM(), gaussian)


def mixture(path):
    """Two overlapping modes in two dimensions: smooth enough for errors to be in their asymptotic range."""
    means = torch.tensor([[[-1.0, 0.5]], [[1.0, -0.2]]], dtype=F64)
    return MixtureDenoiser(path, means, torch.tensor([0.12, 0.27], dtype=F64), torch.tensor([0.3, 0.7], dtype=F64))


class Counted(Denoiser):
    """Counts the evaluations."""

    def __init__(self, denoiser):
        super().__init__(denoiser.path)
        self.denoiser, self.count = denoiser, 0

    def forward(self, x, t):
        self.count += 1
        return self.denoiser(x, t)


def standard_normals(*shape, seed=0):
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=F64)


def halving_ratio(denoiser, x, truth, grid, sampler, n):
    coarse, fine = ((sample(denoiser, x, grid(m), sampler) - truth).abs().mean() for m in (n, 2 * n))
    return float(coarse / fine)


def seeded(k):
    return Generator().manual_seed(100 + k)
