"""Shared data: small labelled volumes made here, so that no test needs a download."""

import nibabel as nib
import numpy as np
import pytest


def labelled_crop(seed, shape=(20, 24, 18)):
    """A bright ellipsoid in noise; its anterior half is label 1, its posterior half label 2."""
    rng = np.random.default_rng(seed)
    center = np.array(shape) / 2 + rng.uniform(-1, 1, 3)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    inside = (((grid - center) / (np.array(shape) / 4)) ** 2).sum(-1) < 1
    label = np.where(inside, np.where(grid[..., 1] > center[1], 1, 2), 0).astype(np.uint8)
    image = rng.normal(100, 10, shape) + 80 * (label == 1) + 50 * (label == 2)
    return image.astype(np.float32), label


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A folder with images/ and labels/ of ten cases."""
    root = tmp_path_factory.mktemp("dataset")
    for kind in ("images", "labels"):
        (root / kind).mkdir()
    for i in range(10):
        for kind, array in zip(("images", "labels"), labelled_crop(i), strict=True):
            nib.save(nib.Nifti1Image(array, np.eye(4)), root / kind / f"case_{i:02d}.nii.gz")
    return root
