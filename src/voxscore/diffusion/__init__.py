"""Score-based diffusion in closed form where there is one: the mathematics of voxscore. Imports PyTorch alone.

Read in this order; each file begins with its theory.

    paths           how noise is added: x_t = alpha x_0 + sigma eps
    grids           where a sampler's steps are put
    denoisers       what the clean volume would look like: E[x_0 | x_t], from any network
    correlation     what noisy labels say of their neighbours
    groups          image and label in one state, each with a noise level of its own
    exact           distributions whose denoiser is known
    samplers        the loop that walks back along a path
    ode_samplers    ... by the probability-flow ODE
    sde_samplers    ... with noise on the way
    teleportation   skipping the first steps
    refinement      a last look at one group
    likelihood      how probable a volume is
    posteriors      a denoiser that has seen a measurement
    objectives      what training minimises
    augmentation    transforms of signal and noise that a network is told of
    diagnostics     is it a score, when to stop, does it memorise
"""

from __future__ import annotations

from voxscore.diffusion.augmentation import (
    Augmentation,
    Brightness,
    Cutout,
    Flip,
    QuarterTurn,
    ScoreAug,
    Transform,
    Translate,
)
from voxscore.diffusion.denoisers import Denoiser, NetDenoiser, bind, guide
from voxscore.diffusion.diagnostics import (
    EarlyStopping,
    HeldOut,
    HeldOutLoss,
    Memorisation,
    jacobian_asymmetry,
    line_integral,
    loop_integral,
    memorisation_ratio,
)
from voxscore.diffusion.exact import (
    DiagonalCovariance,
    EmpiricalDenoiser,
    FourierCovariance,
    Gaussian,
    GaussianDenoiser,
    LowRankCovariance,
    MixtureDenoiser,
)
from voxscore.diffusion.grids import karras_times, log_uniform_times, uniform_times
from voxscore.diffusion.groups import Group, JointDenoiser, JointNetDenoiser, condition, marginalize
from voxscore.diffusion.likelihood import bits_per_voxel, log_likelihood
from voxscore.diffusion.objectives import (
    EDMWeight,
    GroupTimes,
    JointLoss,
    LogNormalTimes,
    MinSNRWeight,
    Uncertainty,
    denoising_loss,
    joint_loss,
)
from voxscore.diffusion.ode_samplers import DEIS, DPMSolver, Euler, Heun, UniPC
from voxscore.diffusion.paths import EDM, VE, VP, Cosine, Discrete, Flow, Path, SubVP
from voxscore.diffusion.posteriors import DPS, Decomposed, MomentMatching, PiGDM, Projection
from voxscore.diffusion.refinement import RefineGroup
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
    "Augmentation",
    "Brightness",
    "Consistency",
    "Cosine",
    "Cutout",
    "DPMSolver",
    "Decomposed",
    "Denoiser",
    "DiagonalCovariance",
    "Discrete",
    "EDMWeight",
    "EarlyStopping",
    "EmpiricalDenoiser",
    "Euler",
    "Flip",
    "Flow",
    "FourierCovariance",
    "Gaussian",
    "GaussianDenoiser",
    "Group",
    "GroupTimes",
    "HeldOut",
    "HeldOutLoss",
    "Heun",
    "JointDenoiser",
    "JointLoss",
    "JointNetDenoiser",
    "LogNormalTimes",
    "LowRankCovariance",
    "Memorisation",
    "MinSNRWeight",
    "MixtureDenoiser",
    "MomentMatching",
    "NetDenoiser",
    "Path",
    "PiGDM",
    "PredictorCorrector",
    "Projection",
    "QuarterTurn",
    "RefineGroup",
    "Restart",
    "ReverseDiffusion",
    "Sampler",
    "ScoreAug",
    "SubVP",
    "Teleport",
    "Transform",
    "Translate",
    "Uncertainty",
    "UniPC",
    "VolumeNoise",
    "bind",
    "bits_per_voxel",
    "condition",
    "denoising_loss",
    "explained_variance",
    "guide",
    "jacobian_asymmetry",
    "joint_loss",
    "jump_ratio",
    "karras_times",
    "line_integral",
    "log_likelihood",
    "log_uniform_times",
    "loop_integral",
    "marginalize",
    "memorisation_ratio",
    "sample",
    "trajectory",
    "uniform_times",
]
