"""Sampling masks keep what they promise: how much, the centre, the density, the distances, the seed."""

import math

import pytest
import torch
from members import generator

from voxscore.errors import UserError
from voxscore.measurement import (
    equispaced_mask,
    partial_fourier_mask,
    poisson_disc_mask,
    random_mask,
    variable_density_mask,
)

SHAPE = (6, 48, 45)

# name: (a mask of SHAPE from acceleration, seed and centre; its phase-encoding axes).
DRAWN = {
    "equispaced": (lambda r, seed, c: equispaced_mask(SHAPE, 1, r, generator(seed), c), (1,)),
    "equispaced odd": (lambda r, seed, c: equispaced_mask(SHAPE, -1, r, generator(seed), c), (2,)),
    "random 1": (lambda r, seed, c: random_mask(SHAPE, (1,), r, generator(seed), c), (1,)),
    "random 2": (lambda r, seed, c: random_mask(SHAPE, (1, 2), r, generator(seed), c), (1, 2)),
    "density 1": (lambda r, seed, c: variable_density_mask(SHAPE, (2,), r, generator(seed), c), (2,)),
    "density 2": (lambda r, seed, c: variable_density_mask(SHAPE, (2, 1), r, generator(seed), c), (1, 2)),
    "density steep": (lambda r, seed, c: variable_density_mask(SHAPE, (1, 2), r, generator(seed), c, 40.0), (1, 2)),
    "poisson": (lambda r, seed, c: poisson_disc_mask(SHAPE, (1, 2), r, generator(seed), c), (1, 2)),
    "poisson flat": (lambda r, seed, c: poisson_disc_mask(SHAPE, (1, 2), r, generator(seed), c, 0.0), (1, 2)),
}


def middle(lines):
    return [slice(n // 2 - lines // 2, n // 2 - lines // 2 + lines) for n in SHAPE]


@pytest.fixture(params=DRAWN)
def drawn(request):
    return DRAWN[request.param]


@pytest.mark.parametrize("acceleration", [1, 1.5, 2, 4, 7.3])
def test_the_number_asked_for_is_measured_to_the_one(drawn, acceleration):
    make, axes = drawn
    mask = make(acceleration, 0, 4)
    assert mask.dtype == torch.bool
    assert mask.shape == tuple(n if axis in axes else 1 for axis, n in enumerate(SHAPE))
    assert int(mask.sum()) == round(mask.numel() / acceleration)


@pytest.mark.parametrize("lines", [0, 1, 4, 5])
def test_the_centre_is_complete(drawn, lines):
    make, _ = drawn
    for seed in range(3):
        mask = make(5, seed, lines)
        assert mask.expand(SHAPE)[tuple(middle(lines) if lines else [slice(0)])].all()


def test_a_fraction_is_a_share_of_each_axis():
    mask = random_mask((40, 60), (0, 1), 20, generator(), 0.1)
    assert mask[18:22, 27:33].all()
    # 120 positions, 24 of them in the middle; one line more would need 28.
    assert not mask[17:23, 27:33].all()
    assert not mask[18:22, 26:34].all()


def test_a_seed_is_a_mask(drawn):
    make, _ = drawn
    assert torch.equal(make(4, 3, 2), make(4, 3, 2))
    assert len({tuple(make(4, seed, 2).flatten().tolist()) for seed in range(6)}) > 1


def test_equal_distances_outside_the_centre():
    lines = equispaced_mask((200, 8), 0, 4, generator(1), 8).flatten().nonzero()[:, 0]
    # 50 lines are measured, 8 of them in the middle: the others are 192 / 42 = 4.57 apart.
    apart = torch.cat([lines[lines < 96], lines[lines > 103] - 8]).diff()
    assert set(apart.tolist()) == {4, 5}
    assert float(apart.float().mean()) == pytest.approx(192 / 42, abs=0.1)


@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
def test_density_falls_off_as_the_power_of_the_distance(power):
    n, draws, g = 41, 800, generator(0)
    share = sum(variable_density_mask((n, 2), (0,), 5, g, 1, power).double() for _ in range(draws)).flatten() / draws
    r = (torch.arange(n, dtype=torch.float64) - n // 2).abs() / ((n + 1) / 2)
    outside = r > 0
    w = (1 - r) ** power
    # p = min(1, c w) with a sum of 8 = round(41 / 5), of which the middle line is one.
    low, high = 0.0, 1e9
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if (c * w).clamp(max=1)[outside].sum() < 7 else (low, c)
    p = (c * w).clamp(max=1)
    deviation = (share - p)[outside].abs()
    # Five standard deviations of a share of 800 draws.
    assert (deviation <= 5 * (p * (1 - p) / draws)[outside].sqrt() + 1e-9).all()


@pytest.mark.parametrize("slope", [0.0, 2.0])
def test_poisson_discs_keep_their_distance(slope):
    shape = (48, 45)
    mask = poisson_disc_mask(shape, (0, 1), 8, generator(2), 0, slope)
    at = mask.nonzero().double()
    k = [(at[:, i] - n // 2) / ((n + 1) / 2) for i, n in enumerate(shape)]
    d = 1 + slope * (k[0] ** 2 + k[1] ** 2).sqrt()
    apart = torch.cdist(at, at) + 1e9 * torch.eye(len(at)).double()
    # The s that the mask kept: no pair is nearer than the smaller of its two distances.
    s = float((apart / torch.minimum(d[:, None], d)).min())
    grid = [((torch.arange(n, dtype=torch.float64) - n // 2) / ((n + 1) / 2)).square() for n in shape]
    everywhere = 1 + slope * (grid[0][:, None] + grid[1]).sqrt()
    # Discs dropped at random until none fits cover 0.547 of the plane: 0.547 / (pi / 4 (s d)^2) of them on a line^2.
    expected = math.sqrt(8 * 0.547 * 4 / math.pi * float(everywhere.pow(-2).mean()))
    assert s == pytest.approx(expected, rel=0.15)


def test_poisson_discs_are_denser_in_the_middle():
    mask = poisson_disc_mask((96, 96), (0, 1), 6, generator(0), 0)
    inner = mask[36:60, 36:60].double().mean()
    assert inner > 2.5 * (mask.double().sum() - mask[12:84, 12:84].double().sum()) / (96**2 - 72**2)


@pytest.mark.parametrize("n", [16, 17])
def test_partial_fourier_leaves_nothing_out_but_conjugates(n):
    mask = partial_fourier_mask((3, n), 1, 0.7)
    lines = mask.flatten()
    assert (tuple(mask.shape), int(lines.sum())) == ((1, n), round(0.7 * n))
    k = torch.arange(n) - n // 2
    measured = set(k[lines].tolist())
    assert all(i in measured or -i in measured for i in k.tolist() if abs(i) < n / 2)
    # The outermost line of an even number has no partner.
    assert sum(-i in measured for i in measured) == 2 * round(0.7 * n) - n + (n % 2 == 0)


BAD = {
    "acceleration below 1": (lambda: random_mask((8, 8), (0,), 0.5, generator()), "acceleration: is 0.5"),
    "centre too large for it": (lambda: random_mask((8, 8), (0,), 4, generator(), 5), "leaves 2 of 8.*centre has 5"),
    "centre larger than the grid": (lambda: random_mask((8, 8), (0,), 2, generator(), 9), "center: is 9 of 8 lines"),
    "centre of one and a half": (lambda: random_mask((8, 8), (0,), 2, generator(), 1.5), "center: is 1.5"),
    "no axes": (lambda: random_mask((8, 8), (), 2, generator()), "axes: are "),
    "an axis twice": (lambda: random_mask((8, 8), (1, -1), 2, generator()), "axes: are "),
    "an axis beyond": (lambda: equispaced_mask((8, 8), 2, 2, generator()), "axes: are "),
    "negative power": (lambda: variable_density_mask((8, 8), (0,), 2, generator(), 1, -1.0), "power: is -1"),
    "discs along one axis": (lambda: poisson_disc_mask((8, 8), (0,), 2, generator()), "axes: are 1"),
    "negative slope": (lambda: poisson_disc_mask((8, 8), (0, 1), 2, generator(), 1, -1.0), "slope: is -1"),
    "half of k-space": (lambda: partial_fourier_mask((8, 8), 0, 0.5), "fraction: is 0.5"),
    "more than k-space": (lambda: partial_fourier_mask((8, 8), 0, 1.1), "fraction: is 1.1"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused(name):
    act, fault = BAD[name]
    with pytest.raises(UserError, match=fault):
        act()
