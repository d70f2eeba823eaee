"""How unsure a label map is: voxel by voxel, and of the volume of a structure.

The entropy of a voxel's class probabilities says how unsure its label is, H = -sum_k p_k ln p_k nats: 0 where the class
is certain, and ln 2 where two classes are equally likely. A volume is a sum over voxels that go together, of which no
probability of single voxels tells; label maps drawn from p(label | image) do.
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
        entropy: of each voxel's class probabilities in one evaluation, (X, Y, Z) float32, nats.
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
