"""Blur, thick slices and masks: closed forms, block means, and where the samples lie."""

import math

import pytest
import torch
from torch import Generator
from torch.nn.functional import avg_pool3d

from voxscore.measurement.resolution import Blur, Downsample, Inpaint, box, gaussian

F64 = torch.float64
FWHM = 2 * math.sqrt(2 * math.log(2))


def normals(*shape):
    return torch.randn(*shape, generator=Generator().manual_seed(0), dtype=F64)


def bump(n, middle, s):
    return torch.exp(-0.5 * ((torch.arange(n, dtype=F64) - middle) / s) ** 2)


def test_a_gaussian_blurred_is_a_gaussian():
    """Variances add, axis by axis; both Gaussians are wide enough to be exact between samples, and far from edges."""
    (n, s), (k, t) = (61, 2.5), (51, 2.0)
    wide, narrow = 7.0, 3.0
    x = bump(n, 31, s)[:, None] * bump(k, 24, t)
    s_out, t_out = math.hypot(s, wide / FWHM), math.hypot(t, narrow / FWHM)
    exact = s / s_out * t / t_out * bump(n, 31, s_out)[:, None] * bump(k, 24, t_out)
    blurred = Blur((n, k), (wide, narrow))(x[None, None])[0, 0]
    assert torch.allclose(blurred, exact, atol=1e-6)


def test_a_point_is_halved_at_half_the_width():
    x = torch.zeros(1, 1, 41, dtype=F64)
    x[..., 20] = 1
    y = Blur((41,), 6.0)(x)[0, 0]
    assert y[23] / y[20] == pytest.approx(0.5)
    assert y[17] / y[20] == pytest.approx(0.5)


def test_no_width_and_no_factor_change_nothing():
    x = normals(1, 2, 5, 6)
    assert torch.equal(Blur((5, 6), 0.0)(x), x)
    assert torch.equal(Downsample((5, 6), 1)(x), x)


@pytest.mark.parametrize(
    "operator",
    [
        Blur((6, 7, 9), (0.3, 2.0, 30.0)),
        Downsample((6, 7, 9), (1.5, 2, 4)),
        Downsample((6, 7, 9), 2.2, gaussian),
        Downsample((6, 7, 9), 3, gaussian, thickness=(0.1, 5.0, 40.0)),
    ],
)
def test_constants_are_kept_to_the_edge(operator):
    y = operator(torch.full((1, 1, 6, 7, 9), 3.0, dtype=F64))
    assert tuple(y.shape[2:]) == operator.measured_shape
    assert torch.allclose(y, torch.full_like(y, 3.0), rtol=1e-13, atol=0)


@pytest.mark.parametrize("factor", [(2, 3, 4), (1, 1, 4), (2, 1, 12)])
def test_a_box_of_whole_voxels_is_the_mean_of_a_block(factor):
    x = normals(2, 3, 8, 9, 12)
    assert torch.allclose(Downsample((8, 9, 12), factor)(x), avg_pool3d(x, factor), rtol=0, atol=1e-14)


def test_a_box_of_parts_of_voxels():
    a, b, c, d, e = x = normals(5)
    y = Downsample((5,), 2.5)(x[None, None])[0, 0]
    assert torch.allclose(y, torch.stack([a + b + c / 2, c / 2 + d + e]) / 2.5, rtol=0, atol=1e-15)


def test_slices_with_gaps_and_slices_that_overlap():
    x = normals(1, 1, 8)
    with_gaps = Downsample((8,), 4, thickness=2)(x)[0, 0]
    assert torch.allclose(with_gaps, torch.stack([x[0, 0, 1:3].mean(), x[0, 0, 5:7].mean()]))
    overlapping = Downsample((8,), 4, thickness=6)(x)[0, 0]
    # A voxel of each is outside, and not counted.
    assert torch.allclose(overlapping, torch.stack([x[0, 0, :5].mean(), x[0, 0, 3:].mean()]))


@pytest.mark.parametrize(("factor", "profile"), [(4, box), (5, gaussian), (2.5, gaussian), (3.7, gaussian)])
def test_samples_lie_in_the_middle_of_their_blocks(factor, profile):
    """A ramp is measured as its value at k f + (f - 1)/2, away from the edges."""
    ramp = torch.arange(80, dtype=F64)
    y = Downsample((80,), factor, profile)(ramp[None, None])[0, 0]
    place = torch.arange(len(y), dtype=F64) * factor + (factor - 1) / 2
    inner = (place > 3 * factor) & (place < 80 - 3 * factor)
    assert inner.sum() >= 8
    assert torch.allclose(y[inner], place[inner], atol=0.02)


@pytest.mark.parametrize("factor", [1.3, 2.5, 3.0, 4.75])
def test_voxels_and_samples_correspond(factor):
    for samples in range(1, 40):
        assert Downsample((round(samples * factor),), factor).measured_shape == (samples,)


def test_profiles():
    """Whole integrals; the box ends at half its thickness, the Gaussian has there half its maximum."""
    half = torch.tensor([-0.5, 0.0, 0.5], dtype=F64, requires_grad=True)
    assert torch.allclose(box(half), torch.tensor([0.0, 0.5, 1.0], dtype=F64))
    assert torch.equal(box(torch.tensor([-9.0, 9.0])), torch.tensor([0.0, 1.0]))
    assert torch.equal(gaussian(torch.tensor([-9.0, 9.0])), torch.tensor([0.0, 1.0]))
    (density,) = torch.autograd.grad(gaussian(half).sum(), half)
    assert torch.allclose(density / density[1], torch.tensor([0.5, 1.0, 0.5], dtype=F64))
    assert float(density[1].detach()) == pytest.approx(FWHM / math.sqrt(2 * math.pi))


def test_inpainting_sees_the_mask_and_nothing_else():
    mask = torch.tensor([[True, False], [True, True]])
    x = normals(2, 3, 2, 2)
    hidden = x.clone()
    hidden[..., 0, 1] = torch.nan
    operator = Inpaint(mask)
    assert torch.equal(operator(hidden), x * mask)
    assert torch.equal(operator.normal(x), operator.adjoint(operator(x)))
    of_channels = torch.stack([mask, ~mask, mask])
    assert torch.equal(Inpaint(of_channels)(x), x * of_channels)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Blur((4, 4), -1.0), "negative"),
        (lambda: Blur((4, 4), (1.0, 1.0, 1.0)), "one for each axis"),
        (lambda: Downsample((4, 4), 0.5), "factors are 1 at least"),
        (lambda: Downsample((4, 4), 2, thickness=0), "thickness is positive"),
        (lambda: Downsample((4, 4), 2)(torch.zeros(1, 1, 4, 5)), r"Downsample takes .* \(4, 4\)"),
        (lambda: Downsample((4, 4), 2).adjoint(torch.zeros(1, 1, 4, 4)), r"Downsample takes .* \(2, 2\)"),
    ],
)
def test_bad_arguments(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()
