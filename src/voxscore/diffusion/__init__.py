"""Score-based diffusion in closed form where there is one: the mathematics of voxscore. Imports PyTorch alone.

Read in this order; each file begins with its theory.

    paths           how noise is added: x_t = alpha x_0 + sigma eps
    denoisers       what the clean volume would look like: E[x_0 | x_t], from any network
    groups          image and label in one state, each with a noise level of its own
    exact           distributions whose denoiser is known
    samplers        the loop that walks back along a path
    ode_samplers    ... by the probability-flow ODE
    sde_samplers    ... with noise on the way
    teleportation   skipping the first steps
    likelihood      how probable a volume is
    posteriors      a denoiser that has seen a measurement
"""

from __future__ import annotations

from voxscore.diffusion.denoisers import Denoiser, NetDenoiser, bind, guide
from voxscore.diffusion.exact import (
    DiagonalCovariance,
    EmpiricalDenoiser,
    FourierCovariance,
    Gaussian,
    GaussianDenoiser,
    LowRankCovariance,
    MixtureDenoiser,
)
from voxscore.diffusion.groups import Group, JointDenoiser, JointNetDenoiser, condition, marginalize
from voxscore.diffusion.likelihood import bits_per_voxel, log_likelihood
from voxscore.diffusion.ode_samplers import DEIS, DPMSolver, Euler, Heun, UniPC
from voxscore.diffusion.paths import (
    EDM,
    VE,
    VP,
    Cosine,
    Discrete,
    Flow,
    Path,
    SubVP,
    karras_times,
    log_uniform_times,
    uniform_times,
)
from voxscore.diffusion.posteriors import DPS, Decomposed, MomentMatching, PiGDM, Projection
from voxscore.diffusion.samplers import Sampler, VolumeNoise, sample, trajectory
from voxscore.diffusion.sde_samplers import Ancestral, Consistency, PredictorCorrector, Restart, ReverseDiffusion
from voxscore.diffusion.teleportation import Teleport, explained_variance, jump_ratio

__all__ = [
    "DEIS",
    "DPS",
    "EDM",
    "VE",
    "VP",
    "Ancestral",
    "Consistency",
    "Cosine",
    "DPMSolver",
    "Decomposed",
    "Denoiser",
    "DiagonalCovariance",
    "Discrete",
    "EmpiricalDenoiser",
    "Euler",
    "Flow",
    "FourierCovariance",
    "Gaussian",
    "GaussianDenoiser",
    "Group",
    "Heun",
    "JointDenoiser",
    "JointNetDenoiser",
    "LowRankCovariance",
    "MixtureDenoiser",
    "MomentMatching",
    "NetDenoiser",
    "Path",
    "PiGDM",
    "PredictorCorrector",
    "Projection",
    "Restart",
    "ReverseDiffusion",
    "Sampler",
    "SubVP",
    "Teleport",
    "UniPC",
    "VolumeNoise",
    "bind",
    "bits_per_voxel",
    "condition",
    "explained_variance",
    "guide",
    "jump_ratio",
    "karras_times",
    "log_likelihood",
    "log_uniform_times",
    "marginalize",
    "sample",
    "trajectory",
    "uniform_times",
]
