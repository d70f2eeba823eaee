"""The Fourier transform and the Cartesian scan agree with closed forms."""

import math

import pytest
import torch
from members import F64, generator, random_maps, scan, volumes

from voxscore.errors import UserError
from voxscore.measurement import (
    CartesianMRI,
    centered_fft,
    centered_ifft,
    equispaced_mask,
    root_sum_of_squares,
    simulate_maps,
    zero_filled,
)

EXACT = {"rtol": 0, "atol": 1e-12}


def indices(n):
    """-(n // 2) ... : where the middle is 0."""
    return torch.arange(n, dtype=F64) - n // 2


def all_of(*spatial):
    return torch.ones([1] * len(spatial), dtype=torch.bool)


# --------------------------------------------------------------------------------- Fourier transform


@pytest.mark.parametrize("sizes", [(64,), (65,), (40, 33), (33, 24, 27)])
def test_a_gaussian_becomes_a_gaussian(sizes):
    image, expected = torch.ones((), dtype=F64), torch.ones((), dtype=F64)
    for n in sizes:
        s = math.sqrt(n / (2 * math.pi)) * 1.2
        image = image[..., None] * torch.exp(-(indices(n) ** 2) / (2 * s**2))
        gaussian = torch.exp(-((2 * math.pi * s * indices(n) / n) ** 2) / 2)
        expected = expected[..., None] * s * math.sqrt(2 * math.pi / n) * gaussian
    # Beyond the edges lies exp(-24^2 / (8 s^2)) at the most, 3e-6 for 24 voxels.
    torch.testing.assert_close(centered_fft(image, len(sizes)), expected.to(torch.complex128), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes", [(6, 8), (7, 5), (4, 5, 6), (5, 3, 7)])
def test_the_transform_is_unitary_and_has_its_inverse(sizes):
    x = torch.randn(2, *sizes, generator=generator(), dtype=torch.complex128)
    y = centered_fft(x, len(sizes))
    torch.testing.assert_close(centered_ifft(y, len(sizes)), x, **EXACT)
    torch.testing.assert_close(centered_fft(centered_ifft(x, len(sizes)), len(sizes)), x, **EXACT)
    torch.testing.assert_close(y.abs().square().sum(), x.abs().square().sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("sizes", [(6, 8), (7, 5)])
def test_only_the_last_axes_are_transformed_and_the_mean_is_in_the_middle(sizes):
    x = volumes(3, *sizes)
    y = centered_fft(x, 2)
    total = x.sum((-2, -1)) / math.sqrt(math.prod(sizes))
    torch.testing.assert_close(y[..., sizes[0] // 2, sizes[1] // 2], total.to(y.dtype), **EXACT)


# --------------------------------------------------------------------------------- the scan


def test_a_single_bright_voxel_gives_a_wave_in_each_coil():
    sizes, at = (6, 7, 4), (1, 5, 2)
    mask = equispaced_mask(sizes, 1, 2, generator(), 1)
    maps = random_maps(3, *sizes)
    x = torch.zeros(1, 1, *sizes, dtype=F64)
    x[(0, 0, *at)] = 2.0
    k = torch.stack(torch.meshgrid(*map(indices, sizes), indexing="ij"))
    angle = sum(k[i] * indices(n)[at[i]] / n for i, n in enumerate(sizes))
    wave = torch.polar(torch.ones_like(angle), -2 * math.pi * angle) / math.sqrt(math.prod(sizes))
    expected = 2 * maps[(slice(None), *at)][:, None, None, None] * wave * mask
    torch.testing.assert_close(CartesianMRI(mask, maps)(x)[0], expected, **EXACT)


@pytest.mark.parametrize("coils", [None, 3])
def test_a_complete_scan_is_undone_by_its_adjoint(coils):
    maps = None if coils is None else random_maps(coils, 5, 6)
    maps = maps if maps is None else maps / root_sum_of_squares(maps, dim=0)
    x = volumes(2, 5, 6)
    operator = CartesianMRI(all_of(5, 6), maps, channels=2)
    torch.testing.assert_close(operator.adjoint(operator(x)), x, **EXACT)


def test_one_channel_is_two_channels_without_an_imaginary_part():
    one, two = scan(6, 7, coils=3), scan(6, 7, coils=3, channels=2)
    x = volumes(1, 6, 7)
    y = one(x)
    torch.testing.assert_close(y, two(torch.cat([x, torch.zeros_like(x)], dim=1)), **EXACT)
    torch.testing.assert_close(one.adjoint(y), two.adjoint(y)[:, :1], **EXACT)


def test_phase_belongs_to_the_image_or_to_the_maps_alike():
    maps, x = random_maps(2, 6, 7), volumes(1, 6, 7)
    phase = torch.rand(6, 7, generator=generator(), dtype=F64) * 6
    turned = torch.polar(torch.ones_like(phase), phase)
    in_maps = CartesianMRI(all_of(6, 7), maps * turned)(x)
    in_image = CartesianMRI(all_of(6, 7), maps, 2)(torch.cat([x * phase.cos(), x * phase.sin()], dim=1))
    torch.testing.assert_close(in_maps, in_image, **EXACT)


@pytest.mark.parametrize("shape", [(20, 17), (9, 20, 17)])
def test_simulated_maps_are_smooth_different_and_of_unit_length(shape):
    maps = simulate_maps(6, shape)
    torch.testing.assert_close(root_sum_of_squares(maps, dim=0), torch.ones(1, *shape), rtol=0, atol=1e-6)
    for axis in range(1, maps.ndim):
        assert maps.diff(dim=axis).abs().max() < 0.3
    brightest = {tuple(m.abs().flatten().argmax().reshape(1).tolist()) for m in maps}
    assert len(brightest) == 6
    assert maps.angle().std() > 0.1


def test_zero_filled_images_of_a_complete_scan_are_magnitudes():
    x, maps = volumes(1, 8, 9), simulate_maps(4, (8, 9)).to(torch.complex128)
    y = CartesianMRI(all_of(8, 9), maps)(x)
    torch.testing.assert_close(zero_filled(y), x.abs(), rtol=0, atol=1e-6)
    torch.testing.assert_close(zero_filled(y, maps), x.abs(), rtol=0, atol=1e-6)


def test_the_root_sum_of_squares_of_a_triangle():
    images = torch.tensor([3.0, 4.0j]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(root_sum_of_squares(images), torch.full((1, 1, 1, 1), 5.0))


MASK = torch.ones(4, 5, dtype=torch.bool)
BAD = {
    "mask of numbers": (lambda: CartesianMRI(MASK.float()), "mask: is torch.float32"),
    "mask of one axis": (lambda: CartesianMRI(MASK[0]), "mask: is torch.bool of shape"),
    "real maps": (lambda: CartesianMRI(MASK, torch.ones(2, 4, 5)), "maps: are torch.float32"),
    "maps of another grid": (lambda: CartesianMRI(MASK, random_maps(2, 4, 6)), "maps: are torch.complex128"),
    "three channels": (lambda: CartesianMRI(MASK, channels=3), "channels: are 3"),
    "volume of another grid": (lambda: CartesianMRI(MASK)(volumes(1, 4, 6)), "volume: has shape"),
    "volume of a grid unlike the maps": (lambda: scan(4, 5, coils=2)(volumes(1, 3, 5)), "volume: has shape"),
    "volume with two channels": (lambda: CartesianMRI(MASK)(volumes(2, 4, 5)), "volume: has shape"),
    "other coils": (lambda: scan(4, 5, coils=3).adjoint(random_maps(2, 4, 5)[None]), "k-space: has shape"),
    "no coils": (lambda: simulate_maps(0, (4, 5)), "coils: are 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name):
    act, fault = BAD[name]
    with pytest.raises(UserError, match=fault):
        act()
