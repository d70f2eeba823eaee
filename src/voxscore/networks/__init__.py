"""3-D and 2-D networks: a residual U-Net with noise levels, squeeze-and-excitation and self-distillation."""

from __future__ import annotations

from voxscore.networks.joint_score_unet import JointScoreUNet
from voxscore.networks.score_unet import ScoreUNet
from voxscore.networks.self_distillation import DeepHeads, DeepOutputs, DualSelfDistillationLoss, SelfDistilled
from voxscore.networks.squeeze_excitation import ChannelSE, ConcurrentSE, SpatialSE

__all__ = [
    "ChannelSE",
    "ConcurrentSE",
    "DeepHeads",
    "DeepOutputs",
    "DualSelfDistillationLoss",
    "JointScoreUNet",
    "ScoreUNet",
    "SelfDistilled",
    "SpatialSE",
]
