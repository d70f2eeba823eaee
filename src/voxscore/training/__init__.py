"""Training: data lists and folds, Ignite handlers for resumable and documented runs, recipes, losses of denoisers."""

from __future__ import annotations

from voxscore.training.data import datalist, fingerprint, kfold, split, subject_volumes
from voxscore.training.denoising import DenoisingObjective
from voxscore.training.ema import PowerEMA, profile_exponent, reconstruct_ema
from voxscore.training.gaussian import fitted_gaussian
from voxscore.training.handlers import Checkpoint, ClipGradients, EpochSeed, History, Provenance
from voxscore.training.held_out import HeldOutMonitor
from voxscore.training.joint import JointObjective
from voxscore.training.recipe import export_weights, initialized, run_recipe

__all__ = [
    "Checkpoint",
    "ClipGradients",
    "DenoisingObjective",
    "EpochSeed",
    "HeldOutMonitor",
    "History",
    "JointObjective",
    "PowerEMA",
    "Provenance",
    "datalist",
    "export_weights",
    "fingerprint",
    "fitted_gaussian",
    "initialized",
    "kfold",
    "profile_exponent",
    "reconstruct_ema",
    "run_recipe",
    "split",
    "subject_volumes",
]
