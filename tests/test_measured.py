"""A file as a measurement: the operator, the grid and the noise that belong to it."""

import math

import nibabel as nib
import numpy as np
import pytest
import torch

from voxscore.measured import Turned, read_measurement
from voxscore.measurement import Blur, CartesianMRI, FanBeam, ParallelBeam
from voxscore.volumes import centred_fft, make_raw, make_sinogram, write_raw, write_sinogram

RNG = np.random.default_rng(0)
SHAPE = (6, 7, 5)


def world(affine, shape):
    """RAS coordinates (X, Y, Z, 3) of the voxels."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


# Orientation


def test_turned_is_the_canonical_orientation_of_nibabel(affine):
    operator = Turned(Blur(SHAPE, 0.0), affine)
    array = RNG.normal(size=SHAPE)
    ras = operator.ras(torch.from_numpy(array)[None, None])
    expected = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    np.testing.assert_array_equal(ras[0, 0], expected.get_fdata())
    np.testing.assert_array_equal(operator.stored(ras)[0, 0], array)


def test_turned_obeys_the_laws_of_operators(affine):
    scan = CartesianMRI(
        torch.from_numpy(RNG.random(SHAPE) > 0.5),
        torch.from_numpy(RNG.normal(size=(2, *SHAPE)) + 1j * RNG.normal(size=(2, *SHAPE))),
    )
    operator = Turned(scan, affine)
    x = operator.ras(torch.from_numpy(RNG.normal(size=(1, 1, *SHAPE))))
    y = torch.from_numpy(RNG.normal(size=(1, 2, *SHAPE)) + 1j * RNG.normal(size=(1, 2, *SHAPE)))
    torch.testing.assert_close((operator(x) * y.conj()).real.sum(), (x * operator.adjoint(y)).sum())
    torch.testing.assert_close(operator.normal(x), operator.adjoint(operator(x)))
    leaf = x.clone().requires_grad_()
    (operator(leaf) * y.conj()).real.sum().backward()
    torch.testing.assert_close(leaf.grad, operator.adjoint(y))


# K-space


@pytest.fixture
def kspace(tmp_path, oblique):
    """kspace(...) -> file of a two-coil scan with maps, some phase, every other line along y."""

    def write(crop=None, name="scan.h5", noise=0.01):
        shape = (12, 11, 9)
        x = np.zeros(shape)
        x[2:10, 2:9, 2:7] = 1 + RNG.random((8, 7, 5))
        maps = np.stack([np.full(shape, 0.6 + 0j), np.full(shape, 0.8j)])
        noise = noise * (RNG.normal(size=(2, *shape)) + 1j * RNG.normal(size=(2, *shape)))
        mask = np.ones((1, 11, 1), bool)
        mask[:, [0, 2, 8]] = False
        raw = make_raw(centred_fft(maps * x) + noise, tmp_path / name, "voxscore", mask, maps, oblique, crop)
        write_raw(raw, tmp_path / name)
        return tmp_path / name, x

    return write


def test_kspace_keeps_its_crop_about_the_middle(kspace, oblique):
    path, _ = kspace(crop=(7, 6, 9))
    measurement = read_measurement(path)
    assert measurement.shape == (12, 11, 9)
    # The voxel at n // 2 is at m // 2 of the crop.
    here, there = (oblique @ [6, 5, 4, 1]), measurement.shown_affine @ [3, 3, 4, 1]
    np.testing.assert_allclose(here, there)
    assert [part.stop - part.start for part in measurement.shown] == [7, 6, 9]
    whole = read_measurement(kspace(name="whole.h5")[0])
    np.testing.assert_array_equal(whole.shown_affine, oblique)


def test_kspace_is_what_its_operator_makes_of_the_volume(kspace):
    path, x = kspace()
    problem = read_measurement(path, noise_std=0.01).prepare()
    misfit = problem.operator(torch.from_numpy(x).float()[None, None]) - problem.y
    seen = misfit[:, :, :, torch.tensor([1, 3, 4, 5, 6, 7, 9, 10])]
    # The noise of 0.01 in both parts, within the spread of 1728 numbers (2 %) and what the phase estimate adds.
    assert float(torch.view_as_real(seen).std()) == pytest.approx(0.01, rel=0.15)
    assert problem.noise_std == pytest.approx(0.01)


def test_maps_and_mask_of_the_user_count(kspace, tmp_path):
    path, _ = kspace()
    lines = np.ones(11, np.uint8)
    lines[9:] = 0
    np.save(tmp_path / "mask.npy", lines)
    np.save(tmp_path / "maps.npy", np.ones((2, 12, 11, 9), np.complex64))
    problem = read_measurement(path, mask=tmp_path / "mask.npy", maps=tmp_path / "maps.npy").prepare()
    assert not problem.operator.mask[0, 9:].any()
    assert bool((problem.y[:, :, :, 9:] == 0).all())
    np.testing.assert_allclose(problem.operator.maps.abs(), 1, rtol=1e-5)


# Sinograms


@pytest.mark.parametrize("geometry", ["parallel", "fan"])
def test_a_sinogram_is_of_attenuation_per_millimetre(tmp_path, geometry):
    """A disc of 0.02 per mm and 20 mm radius, in closed form: its chords."""
    pixel, detectors, spacing = 1.5, 101, 1.0
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    s = (np.arange(detectors) - (detectors - 1) / 2) * spacing
    source = {"source_to_isocentre": 200.0, "source_to_detector": 300.0} if geometry == "fan" else {}
    if source:
        s = 200.0 * np.sin(np.arctan(s / 300.0))  # how far the ray passes the isocentre
    chords = 0.02 * 2 * np.sqrt(np.clip(20.0**2 - s**2, 0, None))
    sinogram = np.tile(chords[None, :, None], (90, 1, 2)) + RNG.normal(scale=1e-3, size=(90, detectors, 2))
    path = tmp_path / "scan.h5"
    made = make_sinogram(
        sinogram,
        angles,
        geometry,
        spacing,
        (40, 40),
        (pixel, pixel, 3.0),
        path,
        np.diag([pixel, pixel, 3, 1]),
        **source,
    )
    write_sinogram(made, path)
    measurement = read_measurement(path)
    assert measurement.shape == (40, 40, 2)
    problem = measurement.prepare()
    assert isinstance(problem.operator.operator, FanBeam if source else ParallelBeam)
    i = (np.arange(40) - 19.5) * pixel
    distance = np.hypot(i[:, None], i)
    disc = 0.02 * np.clip((20 - distance) / pixel + 0.5, 0, 1)[..., None] * np.ones(2)
    middle = distance < 15
    # 13 voxels of radius: the discretisation is right to a few per cent, mostly at the edge.
    misfit = problem.operator(torch.from_numpy(disc).float()[None, None]) - problem.y
    assert float(misfit.square().mean() / problem.y.square().mean()) < 0.05**2
    np.testing.assert_allclose(problem.plain[middle].mean(), 0.02, rtol=0.02)
    assert problem.noise_std == pytest.approx(1e-3, rel=0.1)


# Images


@pytest.mark.parametrize("factor", [(1, 1, 4), (2, 3, 1), (1.5, 1, 2.5)])
def test_thick_slices_lie_in_the_middle_of_their_voxels(save_nifti, oblique, factor):
    """A ramp in space is averaged to its values at the middles, and cubic interpolation gives it back."""
    coarse = (8, 8, 8)
    slope = np.array([0.3, -0.2, 0.5])
    path = save_nifti((world(oblique, coarse) @ slope).astype(np.float32), oblique)
    measurement = read_measurement(path, "super-resolution", factor)
    problem = measurement.prepare()
    assert measurement.shape == tuple(round(8 * f) for f in factor)
    ramp = world(measurement.affine, measurement.shape) @ slope
    measured = problem.operator(torch.from_numpy(ramp).float()[None, None])
    # A block that cuts voxels is a mean of voxels that lie a little to one side: at most an eighth of their size.
    tolerance = 1e-5 * np.abs(ramp).max() + (0.125 * np.abs(slope).max() if 1.5 in factor else 0)
    np.testing.assert_allclose(measured[0, 0], problem.y[0, 0], atol=tolerance)
    np.testing.assert_allclose(np.linalg.norm(measurement.affine[:3, :3], axis=0) * factor, [0.7, 1.1, 3.3])
    # Splines swing at the ends, less by 0.27 with every sample from there.
    inside = tuple(slice(math.ceil(3 * f), math.floor(5 * f)) for f in factor)
    np.testing.assert_allclose(problem.plain[inside], ramp[inside], atol=0.02 * np.abs(slope).max())


def test_noise_of_an_image_is_estimated_or_said(save_nifti, oblique):
    array = (100 + 5 * RNG.normal(size=(16, 16, 16))).astype(np.float32)
    path = save_nifti(array, oblique)
    assert read_measurement(path, "denoise").prepare().noise_std == pytest.approx(5, rel=0.05)
    assert read_measurement(path, "denoise", noise_std=3.0).prepare().noise_std == 3.0


def test_inpainting_sees_the_mask_alone(save_nifti, oblique):
    array = (1 + RNG.random(SHAPE)).astype(np.float32)
    seen = (RNG.random(SHAPE) > 0.3).astype(np.uint8)
    path, mask = save_nifti(array, oblique), save_nifti(seen, oblique, "mask.nii.gz")
    problem = read_measurement(path, "inpaint", mask=mask).prepare()
    np.testing.assert_array_equal(problem.y[0, 0], array * seen)
    other = np.where(seen, array, 1e6).astype(np.float32)
    np.testing.assert_array_equal(problem.operator(torch.from_numpy(other)[None, None]), problem.y)
