"""Sensitivities, phase and noise read off k-space are those that went into it."""

import pytest
import torch
from members import generator, random_maps

from voxscore.errors import UserError
from voxscore.measurement import (
    CartesianMRI,
    absorb_phase,
    coil_compression,
    coils,
    espirit_maps,
    estimate_noise_std,
    low_resolution_maps,
    partial_fourier_mask,
    poisson_disc_mask,
    root_sum_of_squares,
    simulate_maps,
    variable_density_mask,
)

NOISE = 0.01


class Scan:
    """A smooth-edged ellipsoid with structure and phase, seen by coils whose maps are known."""

    def __init__(self, shape, coils, mask, noise=NOISE, half=(0.75, 0.6, 0.7)):
        axes = [torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape]
        p = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        half = torch.tensor(half[: len(shape)]).reshape(-1, *[1] * len(shape))
        r = (p / half).square().sum(0).sqrt()
        self.image = torch.sigmoid((1 - r) * 40) * (1 + 0.3 * torch.cos(6 * p[0] + 2) * torch.cos(5 * p[-1]))
        self.image *= 1 - 0.6 * torch.sigmoid((0.35 - r) * 40)
        self.inside, self.mask, self.maps = r < 0.95, mask, simulate_maps(coils, shape).to(torch.complex128)
        self.phase = 1.5 * p[-1] + 0.5 * p[0] * p[-1]
        # What the scan multiplies the real image by.
        self.sensitivity = self.maps * torch.polar(torch.ones_like(self.phase), self.phase)
        complete = CartesianMRI(torch.ones([1] * len(shape), dtype=torch.bool), self.sensitivity)
        self.complete = complete(self.image[None, None])[0]
        parts = torch.randn(*self.complete.shape, 2, generator=generator(5), dtype=torch.float64)
        self.kspace = mask * (self.complete + noise * torch.view_as_complex(parts))

    def error(self, maps):
        """Distance of the maps from the truth at each voxel of the object, whatever the phase they have in common."""
        common = (maps.conj() * self.maps).sum(0)
        turned = maps * torch.polar(torch.ones_like(common.real), common.angle())
        return root_sum_of_squares(turned - self.maps, dim=0)[0][self.inside]


def scan_2d(**changes):
    shape = (64, 61)
    return Scan(shape, 6, variable_density_mask(shape, (1,), 3, generator(1), 14), **changes)


def scan_3d():
    shape = (24, 40, 36)
    return Scan(shape, 6, poisson_disc_mask(shape, (1, 2), 4, generator(1), 14))


@pytest.fixture(scope="module", params=[scan_2d, scan_3d], ids=["2-d", "3-d"])
def scan(request):
    return request.param()


def root_mean_square(x):
    return float(x.square().mean().sqrt())


def test_espirit_finds_the_maps_within_one_hundredth(scan):
    maps = espirit_maps(scan.kspace, scan.mask)
    error = scan.error(maps)
    assert root_mean_square(error) < 0.01
    assert error.max() < 0.03
    assert root_mean_square(scan.error(low_resolution_maps(scan.kspace, scan.mask))) > 2 * root_mean_square(error)


def test_espirit_maps_have_unit_length_on_the_object_and_none_in_the_far_corner(scan):
    length = root_sum_of_squares(espirit_maps(scan.kspace, scan.mask), dim=0)[0]
    assert ((length < 1e-9) | ((length - 1).abs() < 1e-9)).all()
    assert (length[scan.inside] > 0.5).all()
    assert length.flatten()[0] == 0


def test_low_resolution_maps_are_within_four_hundredths_and_have_unit_length(scan):
    maps = low_resolution_maps(scan.kspace, scan.mask)
    error = scan.error(maps)
    assert root_mean_square(error) < 0.04
    assert error.max() < 0.1
    length = root_sum_of_squares(maps, dim=0)
    torch.testing.assert_close(length, torch.ones_like(length))


@pytest.mark.parametrize("estimate", [espirit_maps, low_resolution_maps])
@pytest.mark.parametrize("shape", [(44, 61), (24, 40, 44)], ids=["2-d", "3-d"])
def test_maps_hold_where_an_object_is_cut_off(shape, estimate):
    """The ends of a tube, whose maps have nothing in common: off by half their length, were the edge not made good."""
    mask = variable_density_mask(shape, (len(shape) - 2,), 2, generator(1), 14)
    scan = Scan(shape, 6, mask, half=(0.6, 1e3) if len(shape) == 2 else (0.75, 0.6, 1e3))
    maps = estimate(scan.kspace, scan.mask)
    error = torch.full(shape, torch.nan, dtype=torch.float64)
    error[scan.inside] = scan.error(maps)
    for end in (0, 1, -2, -1):
        assert error[..., end].nanmean() < 0.05


@pytest.mark.parametrize("estimate", [espirit_maps, low_resolution_maps])
def test_an_object_in_air_has_no_edge_to_be_made_good(scan, estimate, monkeypatch):
    maps = estimate(scan.kspace, scan.mask)
    monkeypatch.setattr(coils, "EDGE", 0.0)
    torch.testing.assert_close(estimate(scan.kspace, scan.mask), maps, rtol=0, atol=0)


@pytest.mark.parametrize("estimate", [espirit_maps, low_resolution_maps])
def test_maps_have_one_smooth_phase(scan, estimate):
    maps = estimate(scan.kspace, scan.mask)
    common = (maps.conj() * scan.maps).sum(0)
    for axis in range(common.ndim):
        turned = common.narrow(axis, 1, common.shape[axis] - 1) * common.narrow(axis, 0, common.shape[axis] - 1).conj()
        both = scan.inside.narrow(axis, 1, common.shape[axis] - 1) & scan.inside.narrow(axis, 0, common.shape[axis] - 1)
        assert turned.angle()[both].abs().max() < 0.3


@pytest.mark.parametrize("estimate", [espirit_maps, low_resolution_maps])
def test_the_image_is_real_with_the_phase_in_the_maps(scan, estimate):
    maps = absorb_phase(estimate(scan.kspace, scan.mask), scan.kspace, scan.mask)
    left = (maps.conj() * scan.sensitivity).sum(0).angle()[scan.inside]
    assert root_mean_square(left) < 0.015
    assert left.abs().max() < 0.06
    # A real image and these maps explain the complete data of the scan.
    operator = CartesianMRI(torch.ones([1] * scan.mask.ndim, dtype=torch.bool), maps)
    misfit = operator(scan.image[None, None])[0] - scan.complete
    assert float(misfit.abs().square().sum() / scan.complete.abs().square().sum()) < 0.05**2


@pytest.mark.parametrize("coils", [1, 6])
@pytest.mark.parametrize("partial", [False, True], ids=["both halves", "partial Fourier"])
def test_a_smooth_phase_is_found_up_to_the_edge_of_the_field_of_view(coils, partial):
    """Of an image that fills it: nothing is smooth around the edge, where the phases at both ends meet."""
    shape, g = (64, 61), generator(3)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape), indexing="ij")
    image = 1 + 0.3 * torch.cos(9 * y + 2) * torch.cos(11 * x) + 0.2 * (x > 0.3)
    phase = 1 + 1.2 * x - 0.8 * y + 0.6 * x * y + 0.5 * x.square()
    maps = simulate_maps(coils, shape).to(torch.complex128)
    true = maps * torch.polar(torch.ones_like(phase), phase)
    mask = variable_density_mask(shape, (1,), 2, g, 14) if not partial else partial_fourier_mask(shape, 1, 0.65)
    noiseless = CartesianMRI(mask, true)(image[None, None])[0]
    parts = torch.randn(*noiseless.shape, 2, generator=g, dtype=torch.float64)
    kspace = noiseless + NOISE * mask * torch.view_as_complex(parts)
    left = (absorb_phase(maps, kspace, mask).conj() * true).sum(0).angle()
    assert root_mean_square(left) < 0.02
    assert left.abs().max() < 0.2


def test_absorbing_a_phase_leaves_magnitudes_and_an_absorbed_phase_as_they_are():
    scan = scan_2d()
    once = absorb_phase(scan.maps, scan.kspace, scan.mask)
    torch.testing.assert_close(once.abs(), scan.maps.abs())
    again = absorb_phase(once, scan.kspace, scan.mask)
    assert (again - once).abs()[:, scan.inside].max() < 0.02


@pytest.mark.parametrize("estimate", [espirit_maps, low_resolution_maps])
def test_the_phase_of_maps_does_not_depend_on_that_of_the_image(estimate):
    scan = scan_2d()
    turned = scan.kspace * torch.polar(torch.tensor(1.0).double(), torch.tensor(2.0).double())
    torch.testing.assert_close(estimate(turned, scan.mask), estimate(scan.kspace, scan.mask))


def test_maps_come_from_the_middle_alone():
    lines = torch.arange(61).reshape(1, 61)
    middle = (lines >= 23) & (lines < 37)
    mask = middle | (lines % 10 == 1)
    scan = Scan((64, 61), 6, mask)
    for estimate in (espirit_maps, low_resolution_maps):
        torch.testing.assert_close(estimate(scan.kspace * middle, middle), estimate(scan.kspace, mask))


def test_the_middle_of_partial_fourier_is_enough():
    mask = partial_fourier_mask((64, 61), 1, 0.65)
    scan = Scan((64, 61), 6, mask)
    assert root_mean_square(scan.error(espirit_maps(scan.kspace, mask))) < 0.01


def test_precision_is_kept():
    scan = scan_2d()
    single = scan.kspace.to(torch.complex64)
    for estimate in (espirit_maps, low_resolution_maps):
        maps = estimate(single, scan.mask)
        assert (maps.dtype, estimate(scan.kspace, scan.mask).dtype) == (torch.complex64, torch.complex128)
        assert scan.error(maps.to(torch.complex128)).max() < 0.1
    assert absorb_phase(maps, single, scan.mask).dtype == torch.complex64


def test_espirit_maps_of_single_precision_do_not_explode_where_there_is_nothing():
    """Outside the object eigenvalues of a hundredth, to the power of the iterations, fall out of single precision."""
    shape = (24, 36, 32)
    scan = Scan(shape, 4, poisson_disc_mask(shape, (1, 2), 3, generator(1), 3))
    length = root_sum_of_squares(espirit_maps(scan.kspace.to(torch.complex64), scan.mask), dim=0)
    assert length.max() < 1.001


@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_noise_is_estimated_within_two_percent(noise):
    scan = Scan((128, 121), 6, torch.ones(1, 1, dtype=torch.bool), noise)
    assert estimate_noise_std(scan.kspace, scan.mask) == pytest.approx(noise, rel=0.02)


def test_signal_in_outer_k_space_makes_the_noise_too_large():
    scan = scan_2d(noise=0.0)
    signal = estimate_noise_std(scan.kspace, scan.mask)
    assert 0 < signal < 0.005
    noisy = scan_2d(noise=signal)
    assert 1.2 < estimate_noise_std(noisy.kspace, noisy.mask) / signal < 1.7


def test_a_few_strong_samples_and_zeros_do_not_move_the_noise():
    g = generator(2)
    kspace = torch.view_as_complex(torch.randn(4, 64, 64, 2, generator=g, dtype=torch.float64))
    mask = torch.ones(64, 64, dtype=torch.bool)
    kspace[torch.rand(4, 64, 64, generator=g) < 0.02] = 1e6
    kspace[:, :16] = 0
    assert estimate_noise_std(kspace, mask) == pytest.approx(1, rel=0.05)


def test_compression_keeps_what_few_coils_hold():
    few = random_maps(3, 12, 10)
    mixing = torch.linalg.qr(random_maps(8, 3)).Q
    kspace = torch.tensordot(mixing, few, dims=1)
    compressed, matrix = coil_compression(kspace, 3)
    torch.testing.assert_close(torch.tensordot(matrix.mH, compressed, dims=1), kspace)
    torch.testing.assert_close(matrix @ matrix.mH, torch.eye(3, dtype=matrix.dtype), rtol=0, atol=1e-12)
    energy = compressed.abs().square().sum((1, 2))
    assert (energy.diff() <= 0).all()
    # The two strongest hold what the two largest singular values do.
    singular = torch.linalg.svdvals(kspace.flatten(1)).square()
    torch.testing.assert_close(coil_compression(kspace, 2)[0].abs().square().sum(), singular[:2].sum())


KSPACE = random_maps(2, 8, 8)
HOLE = torch.ones(8, 8, dtype=torch.bool).index_fill(1, torch.tensor([4]), False)
LINE = torch.arange(8).reshape(1, 8) == 4
BAD = {
    "mask of numbers": (lambda: espirit_maps(KSPACE, torch.ones(8, 8)), "mask: is torch.float32"),
    "mask of another grid": (lambda: low_resolution_maps(KSPACE, HOLE[:, :7]), "mask: is torch.bool of shape"),
    "no middle": (lambda: low_resolution_maps(KSPACE, HOLE), "mask: leaves out the middle"),
    "middle narrower than a patch": (lambda: espirit_maps(KSPACE, LINE), "middle of .8, 1. completely"),
    "nothing measured": (lambda: estimate_noise_std(KSPACE, HOLE & False), "mask: measures nothing"),
    "zeros at the edge": (lambda: estimate_noise_std(KSPACE * 0, HOLE), "k-space: is 0 at its edge"),
    "more coils than there are": (lambda: coil_compression(KSPACE, 3), "coils: are 3 of 2"),
    "no coils": (lambda: coil_compression(KSPACE, 0), "coils: are 0 of 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name):
    act, fault = BAD[name]
    with pytest.raises(UserError, match=fault):
        act()
