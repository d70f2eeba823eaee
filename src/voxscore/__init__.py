"""Score-based diffusion for 3-D medical volumes inside MONAI."""

from __future__ import annotations

__version__ = "0.1.0"
