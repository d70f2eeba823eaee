"""Score-based diffusion for 3-D medical volumes inside MONAI.

Importing voxscore loads neither PyTorch nor MONAI: each part is loaded when it is first used
(`voxscore.networks`, `voxscore.Segmenter`), so that the command line answers at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voxscore import audit as audit
    from voxscore import bundles as bundles
    from voxscore import deidentify as deidentify
    from voxscore import diffusion as diffusion
    from voxscore import evaluation as evaluation
    from voxscore import inferers as inferers
    from voxscore import measured as measured
    from voxscore import measurement as measurement
    from voxscore import networks as networks
    from voxscore import reconstruction as reconstruction
    from voxscore import segmentation as segmentation
    from voxscore import synthesis as synthesis
    from voxscore import training as training
    from voxscore import transforms as transforms
    from voxscore import volumes as volumes
    from voxscore.bundles import find_bundle
    from voxscore.errors import UserError
    from voxscore.networks import ScoreUNet
    from voxscore.reconstruction import Reconstructor
    from voxscore.segmentation import Segmenter
    from voxscore.synthesis import Synthesizer
    from voxscore.volumes import read_volume, write_volume

__version__ = "0.1.0"

_NAMES = {
    "Reconstructor": "reconstruction",
    "ScoreUNet": "networks",
    "Segmenter": "segmentation",
    "Synthesizer": "synthesis",
    "UserError": "errors",
    "find_bundle": "bundles",
    "read_volume": "volumes",
    "write_volume": "volumes",
}
_MODULES = {
    "audit",
    "bundles",
    "deidentify",
    "diffusion",
    "evaluation",
    "inferers",
    "measured",
    "measurement",
    "networks",
    "reconstruction",
    "segmentation",
    "synthesis",
    "training",
    "transforms",
    "volumes",
}

__all__ = [
    "Reconstructor",
    "ScoreUNet",
    "Segmenter",
    "Synthesizer",
    "UserError",
    "__version__",
    "find_bundle",
    "read_volume",
    "write_volume",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"voxscore.{name}")
    if name in _NAMES:
        return getattr(import_module(f"voxscore.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'voxscore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})
