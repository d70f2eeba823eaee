"""What voxscore adds to MONAI's transforms; dictionary versions end in `d`, as MONAI's do."""

from __future__ import annotations

from voxscore.transforms.deface import Deface, DefaceD, Defaced, DefaceDict
from voxscore.transforms.kspace import Kspace, LoadKspace, LoadKspaceD, LoadKspaced, LoadKspaceDict
from voxscore.transforms.load import LoadVolume, LoadVolumeD, LoadVolumed, LoadVolumeDict
from voxscore.transforms.scrub import ScrubMeta, ScrubMetaD, ScrubMetad, ScrubMetaDict
from voxscore.transforms.simulate import (
    SimulateKspace,
    SimulateKspaceD,
    SimulateKspaced,
    SimulateKspaceDict,
    SimulateLowResolution,
    SimulateLowResolutionD,
    SimulateLowResolutiond,
    SimulateLowResolutionDict,
    SimulateNoise,
    SimulateNoiseD,
    SimulateNoised,
    SimulateNoiseDict,
    SimulateSinogram,
    SimulateSinogramD,
    SimulateSinogramd,
    SimulateSinogramDict,
    simulate_phase,
)
from voxscore.transforms.slices import RandThickSlicesD, RandThickSlicesd, RandThickSlicesDict

__all__ = [
    "Deface",
    "DefaceD",
    "DefaceDict",
    "Defaced",
    "Kspace",
    "LoadKspace",
    "LoadKspaceD",
    "LoadKspaceDict",
    "LoadKspaced",
    "LoadVolume",
    "LoadVolumeD",
    "LoadVolumeDict",
    "LoadVolumed",
    "RandThickSlicesD",
    "RandThickSlicesDict",
    "RandThickSlicesd",
    "ScrubMeta",
    "ScrubMetaD",
    "ScrubMetaDict",
    "ScrubMetad",
    "SimulateKspace",
    "SimulateKspaceD",
    "SimulateKspaceDict",
    "SimulateKspaced",
    "SimulateLowResolution",
    "SimulateLowResolutionD",
    "SimulateLowResolutionDict",
    "SimulateLowResolutiond",
    "SimulateNoise",
    "SimulateNoiseD",
    "SimulateNoiseDict",
    "SimulateNoised",
    "SimulateSinogram",
    "SimulateSinogramD",
    "SimulateSinogramDict",
    "SimulateSinogramd",
    "simulate_phase",
]
