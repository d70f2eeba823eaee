"""Training: data lists and folds, Ignite handlers that make a run resumable and documented, the recipe runner."""

from __future__ import annotations

from voxscore.training.data import datalist, fingerprint, kfold, split
from voxscore.training.handlers import Checkpoint, ClipGradients, EpochSeed, History, Provenance
from voxscore.training.recipe import export_weights, initialized, run_recipe

__all__ = [
    "Checkpoint",
    "ClipGradients",
    "EpochSeed",
    "History",
    "Provenance",
    "datalist",
    "export_weights",
    "fingerprint",
    "initialized",
    "kfold",
    "run_recipe",
    "split",
]
