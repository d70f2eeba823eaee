"""Strided slices are slices of the volume, at the places that the affine says."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from voxscore.transforms import RandThickSlicesd


def volume(slices=40):
    """Each voxel holds the number of its slice."""
    affine = torch.tensor([[0.0, 0.7, 0, 3], [0.9, 0, 0.1, -5], [0, 0, 2.0, 11], [0, 0, 0, 1]], dtype=torch.float64)
    return MetaTensor(torch.arange(float(slices)).expand(1, 3, 2, slices).clone(), affine=affine)


def drawn(seed, strides=(1, 2, 3), size=10, slices=40):
    transform = RandThickSlicesd("image", size, strides)
    transform.set_random_state(seed)
    return transform({"image": volume(slices)})["image"]


@pytest.mark.parametrize("seed", range(8))
def test_the_affine_says_where_a_slice_comes_from(seed):
    y, x = drawn(seed), volume()
    assert y.shape == (1, 3, 2, 10)
    found = y[0, 0, 0].as_tensor().long()  # each slice holds its number in x
    for k, source in enumerate(found.tolist()):
        there, here = (
            v.affine[:3] @ torch.tensor([1.0, 1.0, n, 1.0], dtype=torch.float64) for v, n in ((x, source), (y, k))
        )
        torch.testing.assert_close(here, there)


def test_every_stride_and_many_places_are_met():
    results = [drawn(seed)[0, 0, 0].as_tensor() for seed in range(60)]
    strides = [int(v[1] - v[0]) for v in results]
    # Each of three strides has 60 draws of probability 1/3: fewer than 9 or more than 33 come once in 2000 times.
    assert all(9 <= strides.count(k) <= 33 for k in (1, 2, 3))
    assert all(torch.equal(v.diff(), torch.full((9,), float(k))) for v, k in zip(results, strides, strict=True))
    firsts = {int(v[0]) for v, k in zip(results, strides, strict=True) if k == 3}
    assert firsts <= set(range(13))  # 13 of 40 slices can begin ten of stride 3
    assert len(firsts) >= 5


def test_the_same_seed_draws_the_same():
    assert torch.equal(drawn(4).as_tensor(), drawn(4).as_tensor())
    np.testing.assert_array_equal(drawn(4).affine, drawn(4).affine)


@pytest.mark.parametrize(("slices", "stride"), [(40, 4), (28, 3), (19, 2), (10, 1)])
def test_a_stride_that_does_not_fit_becomes_the_largest_that_does(slices, stride):
    y = drawn(0, strides=(9,), slices=slices)
    assert int(y[0, 0, 0, 1] - y[0, 0, 0, 0]) == stride


def test_a_volume_of_too_few_slices_passes():
    assert torch.equal(drawn(0, slices=9).as_tensor(), volume(9).as_tensor())


@pytest.mark.parametrize("strides", [(), (0, 1)])
def test_strides_are_one_or_more(strides):
    with pytest.raises(ValueError, match="1 or more"):
        RandThickSlicesd("image", 4, strides)
