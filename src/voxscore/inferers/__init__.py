"""The seam to MONAI: inferers that engines, bundles and applications call, and schedulers for MONAI's checkpoints."""

from __future__ import annotations

from voxscore.inferers.reconstruction import (
    DenoisingInferer,
    ReconstructionInferer,
    log_slice_spacing,
    sample_moments,
)
from voxscore.inferers.sampling import SamplerInferer, checkpoint_denoiser, unet_denoiser, volume_seed
from voxscore.inferers.schedulers import DDIMScheduler, DDPMScheduler, PNDMScheduler, RFlowScheduler
from voxscore.inferers.windows import FastInferer, FittedWindowInferer

__all__ = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DenoisingInferer",
    "FastInferer",
    "FittedWindowInferer",
    "PNDMScheduler",
    "RFlowScheduler",
    "ReconstructionInferer",
    "SamplerInferer",
    "checkpoint_denoiser",
    "log_slice_spacing",
    "sample_moments",
    "unet_denoiser",
    "volume_seed",
]
