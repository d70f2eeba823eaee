"""What voxscore adds to MONAI's transforms; dictionary versions end in `d`, as MONAI's do."""

from __future__ import annotations

from voxscore.transforms.deface import Deface, DefaceD, Defaced, DefaceDict
from voxscore.transforms.load import LoadVolume, LoadVolumeD, LoadVolumed, LoadVolumeDict
from voxscore.transforms.scrub import ScrubMeta, ScrubMetaD, ScrubMetad, ScrubMetaDict

__all__ = [
    "Deface",
    "DefaceD",
    "DefaceDict",
    "Defaced",
    "LoadVolume",
    "LoadVolumeD",
    "LoadVolumeDict",
    "LoadVolumed",
    "ScrubMeta",
    "ScrubMetaD",
    "ScrubMetaDict",
    "ScrubMetad",
]
