"""What neighbours say of a label follows the covariance of labels whose logits are a Gaussian field."""

import pytest
import torch
from oracles import f64, normal

from voxscore.diffusion import EDM, Group, JointNetDenoiser
from voxscore.diffusion.correlation import neighbours_evidence, smoothed

CLASSES, SIZE, WIDTHS = 3, (4, 5), (1.0, 2.5)
FLAT = CLASSES * SIZE[0] * SIZE[1]


def distances():
    """|i - j|^2 of the voxels of a (4, 5) grid, (20, 20)."""
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in SIZE))
    return (places[:, None] - places).square().sum(2)


def covariance(amplitudes):
    """K (20, 20) from its formula."""
    kernels = [torch.exp(-distances() / (2 * w**2)) / (torch.pi * w**2) ** 0.5 for w in WIDTHS]
    return sum(s[:, None] * kernel * s for s, kernel in zip(amplitudes.flatten(1), kernels, strict=True))


def test_the_covariance_is_its_formula():
    s, field = normal(1, 2, *SIZE).abs(), normal(1, 1, CLASSES, *SIZE, seed=1)
    found = (s[:, :, None] * smoothed(s[:, :, None] * field, WIDTHS)).sum(1)
    expected = torch.einsum("ij,cj->ci", covariance(s[0]), field[0, 0].flatten(1)).reshape(found.shape)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_white_evidence_keeps_its_variance(dims):
    """On a grid that is wide against the kernel, in its middle."""
    point = torch.zeros(1, 1, 1, *[41] * dims, dtype=torch.float64)
    point[(..., *[20] * dims)] = 1
    torch.testing.assert_close(smoothed(point, [2.0]).square().sum(), f64(1.0), rtol=1e-9, atol=0)


@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_the_denoiser_bends_as_the_covariance_of_correlated_labels(gain):
    """At high noise sigma^2 dD/dx is Cov(y) = J + J K J: the law of total covariance for u ~ N(f, K), first order."""
    f, s = normal(1, CLASSES, *SIZE), gain**0.5 * normal(1, 2, *SIZE, seed=1).abs()
    # The network's channel that becomes the amplitude s by softplus.
    raw = torch.log(torch.expm1(s.clamp(min=1e-30)))
    group = Group("label", CLASSES, categorical=True, correlation_widths=WIDTHS)
    joint, sigma = JointNetDenoiser(lambda x, t: torch.cat([f, raw], dim=1), EDM(), [group]), f64(1e7)
    slope = torch.autograd.functional.jacobian(lambda x: joint(x, sigma), sigma * normal(1, CLASSES, *SIZE, seed=2))
    p = f.softmax(1)[0].flatten(1)
    voxels = p.shape[1]
    own = torch.einsum("ci,ij,cd->cidj", p, torch.eye(voxels).double(), torch.eye(CLASSES).double())
    own = own - torch.einsum("ci,di,ij->cidj", p, p, torch.eye(voxels).double())
    k = torch.einsum("ij,cd->cidj", covariance(s[0]), torch.eye(CLASSES).double())
    own, k = own.reshape(FLAT, FLAT), k.reshape(FLAT, FLAT)
    found = sigma**2 * slope.reshape(FLAT, FLAT)
    torch.testing.assert_close(found, own + own @ k @ own, rtol=0, atol=1e-6)
    assert torch.linalg.eigvalsh((found + found.T) / 2).min() > -1e-6


def test_a_gain_is_a_factor_of_the_amplitudes():
    f, x, s = (normal(1, n, *SIZE, seed=n) for n in (3, 4, 2))
    plain, louder = (
        Group("label", CLASSES, categorical=True, correlation_widths=WIDTHS, correlation_gain=gain)
        for gain in (1.0, 2.5)
    )
    raws = [torch.log(torch.expm1(factor * s.abs())) for factor in (2.5, 1.0)]
    ends = [
        JointNetDenoiser(lambda x, t, raw=raw: torch.cat([f, raw], dim=1), EDM(), [group])(x[:, :CLASSES], f64(1.0))
        for raw, group in zip(raws, (plain, louder), strict=True)
    ]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-10, atol=1e-12)


def test_two_voxels_that_share_their_logits_know_both_evidences():
    """A very wide kernel makes all voxels one; the step from f is Laplace's, exact to first order in K."""
    f, x = torch.zeros(1, 2, 2, dtype=torch.float64), f64([[[3.0, -1.0], [-3.0, 1.0]]])
    k = 1e-4 / (torch.pi * 1e8) ** 0.25
    found = neighbours_evidence(f, x, torch.full((1, 1, 2), 1e-2, dtype=torch.float64), [1e4])
    difference = x.softmax(1) - 0.5
    torch.testing.assert_close(found, k * difference.sum(2, keepdim=True).expand(1, 2, 2), rtol=1e-7, atol=0)


@pytest.mark.parametrize("evidence", [0.0, 1e4])
def test_it_is_bounded_where_labels_are_certain_and_nothing_where_they_are_unknown(evidence):
    f, x = normal(1, CLASSES, *SIZE), evidence * normal(1, CLASSES, *SIZE, seed=1)
    found = neighbours_evidence(f, x, torch.ones(1, 2, *SIZE, dtype=torch.float64), WIDTHS)
    if evidence:
        most = covariance(torch.ones(2, *SIZE, dtype=torch.float64)).sum(1).max()
        assert 0.1 < float(found.abs().max()) < float(most)
    else:
        assert float(found.abs().max()) < 1e-12


def test_autocast_does_not_round_it():
    f, x, s = (
        normal(1, CLASSES, *SIZE).float(),
        1e-3 * normal(1, CLASSES, *SIZE, seed=1).float(),
        torch.ones(1, 2, *SIZE),
    )
    exact = neighbours_evidence(f.double(), x.double(), s.double(), WIDTHS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = neighbours_evidence(f, x, s, WIDTHS)
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-7)


def test_a_network_without_the_channels_of_its_widths_is_refused():
    group = Group("label", CLASSES, categorical=True, correlation_widths=WIDTHS)
    with pytest.raises(ValueError, match=r"the network made \(1, 3, 4, 5\) of a volume \(1, 3, 4, 5\)"):
        JointNetDenoiser(lambda x, t: x, EDM(), [group])(normal(1, CLASSES, *SIZE), f64(1.0))
