"""What samples of a label map say together: how likely each class is at a voxel, and how large a structure may be.

A sampling run ends in the denoiser's p_n = p(class | image, last noisy label), and its label map y_n is the argmax of
that. The mean of the ends estimates the posterior at a voxel,

    p = sum_n p_n / N,        E p_n = p(class | image) by the tower property,

with less variance than the share of label maps that give a class (Rao and Blackwell), and the entropy

    H = -sum_k p_k ln p_k  nats

says how unsure the label is: 0 where all runs agree and are sure, ln 2 where two classes are equally likely. Volumes
are counted in the label maps, which hang together as the ends of single voxels do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from voxscore.evaluation import VolumeInterval, volume_interval

__all__ = ["LEVEL", "Posterior", "voxel_entropy"]

LEVEL = 0.95


def voxel_entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy -sum_k p_k ln p_k of each voxel's class, nats.

    Args:
        probabilities: (K, X, Y, Z), summing to one over the classes.

    Returns:
        (X, Y, Z) float32, 0 to ln K.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    return (p * np.log(1 / np.where(p > 0, p, 1))).sum(axis=0).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Posterior:
    """Samples of the label map of one volume, in that volume's grid, and how they were drawn.

    Attributes:
        samples: label maps, (N, X, Y, Z) uint8; sample k has the seed `volume_seed(seed, k)`.
        entropy: of the mean of the runs' ends, (X, Y, Z) float32, nats.
        seed: of the samples.
        evaluations: of the network for one sample (NFE).
        sampler: name of the step rule.
    """

    samples: np.ndarray
    entropy: np.ndarray
    seed: int
    evaluations: int
    sampler: str

    @property
    def level(self) -> float:
        """Level of the intervals: 0.95, or with fewer than 39 samples that of their whole range, (N - 1) / (N + 1)."""
        n = len(self.samples)
        return min(LEVEL, (n - 1) / (n + 1))

    def volume_intervals(self, affine: np.ndarray, labels: Mapping[int, str]) -> dict[str, VolumeInterval]:
        """Median and central interval of each label's volume, of the level `level`.

        Args:
            affine: voxel index to mm, (4, 4).
            labels: name of each label.

        Returns:
            By name, mL; nothing if there is one sample, which has no spread.
        """
        if len(self.samples) < 2:
            return {}
        return volume_interval(self.samples, affine, labels, self.level)
