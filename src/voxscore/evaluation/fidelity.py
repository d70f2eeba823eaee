"""How close a volume is to the one it should be: MONAI's PSNR and SSIM, and the normalised error.

    PSNR    10 log10(max(r)^2 / mean (x - r)^2), dB
    SSIM    mean structural similarity over windows of 11 voxels (Gaussian, 1.5 wide), of data that range to max(r)
    NMSE    |x - r|^2 / |r|^2

of a volume x and its reference r. No brightness is fitted: a volume that is too bright is wrong.

Sources: Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, IEEE TIP 2004; Zbontar
et al., fastMRI, 2018 (the maximum of the reference as its range; NMSE).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
import torch
from monai.metrics import PSNRMetric, SSIMMetric
from torch import Tensor

from voxscore.errors import UserError

__all__ = ["Fidelity", "score_volume"]

WINDOW = 11


@dataclass(frozen=True)
class Fidelity:
    """Scores of one volume.

    Attributes:
        psnr: dB; infinite of equal volumes.
        ssim: 1 of equal volumes.
        nmse: 0 of equal volumes, 1 of an empty one.
    """

    psnr: float
    ssim: float
    nmse: float

    def rounded(self) -> dict[str, float]:
        """The scores as a manifest writes them."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


def score_volume(image: np.ndarray, reference: np.ndarray) -> Fidelity:
    """Scores of a volume against its reference.

    Windows are smaller where an axis is shorter than them; a volume of one slice is taken as a picture.

    Args:
        image: (X, Y, Z).
        reference: (X, Y, Z), largest value above 0.

    Raises:
        UserError: shapes that differ, or a reference without signal.
    """
    if np.shape(image) != np.shape(reference):
        fault = f"has the shape {np.shape(reference)}, the volume {np.shape(image)}"
        raise UserError("reference", fault, "give one on the grid of the volume")
    largest = float(np.max(reference))
    if not largest > 0:
        raise UserError("reference", "has no value above 0", "give the volume as it should be")
    x, r = (
        torch.from_numpy(np.asarray(v, dtype=np.float64) / largest).squeeze()[None, None] for v in (image, reference)
    )
    width = max(min(WINDOW, (min(r.shape[2:]) - 1) // 2 * 2 + 1), 1)
    psnr, ssim = (cast(Tensor, metric(x, r)) for metric in (PSNRMetric(1.0), SSIMMetric(r.ndim - 2, win_size=width)))
    return Fidelity(float(psnr), float(ssim), float((x - r).square().sum() / r.square().sum()))
