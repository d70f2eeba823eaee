"""Small voxel arrays and label maps, made on the spot."""

import numpy as np
import pytest

from voxscore.volumes import Label

SHAPE = (7, 6, 5)


@pytest.fixture
def voxels():
    """(X, Y, Z) float32, every voxel different."""
    return np.random.default_rng(0).permutation(np.prod(SHAPE)).reshape(SHAPE).astype(np.float32)


@pytest.fixture
def labelmap():
    """(X, Y, Z) with the values 0, 2 and 5 in no symmetric arrangement."""
    labels = np.zeros(SHAPE, dtype=np.int64)
    labels[1:4, 2:5, 1:3] = 2
    labels[5, 0, 3] = 5
    labels[0, 5, 4] = 5
    return labels


@pytest.fixture
def labels():
    return {
        2: Label(2, "anterior <hippocampus> & more", (255, 0, 51), ("279336000", "SCT", "Head of hippocampus")),
        5: Label(5, "posterior: Ünïcode", (0, 128, 255)),
    }
