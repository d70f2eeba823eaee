"""`voxscore simulate`: the file holds the measurement of the volume, and reconstruction finds what went into it."""

import nibabel as nib
import numpy as np
import pytest
import torch

from voxscore.measured import read_measurement
from voxscore.measurement import CartesianMRI, simulate_maps
from voxscore.transforms import LoadKspace
from voxscore.volumes import read_raw, read_sinogram, read_volume

SHAPE = (20, 32, 28)


@pytest.fixture
def head(tmp_path):
    """A smooth ellipsoid with structure in air, placed obliquely."""
    p = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    x = 300 / (1 + np.exp(-12 * (0.75 - np.sqrt((p**2).sum(0))))) * (1 + 0.3 * np.cos(5 * p[1]))
    affine = np.array([[0, 0, 3, -40], [1.5, 0, 0, -20], [0, -1.5, 0, 30], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(x.astype(np.float32), affine), tmp_path / "head.nii.gz")
    return tmp_path / "head.nii.gz"


@pytest.fixture
def chest(head):
    """The same in Hounsfield units: water of some density in air."""
    image = nib.load(head)
    path = head.with_name("chest.nii.gz")
    nib.save(nib.Nifti1Image((image.get_fdata() * 4 - 1000).astype(np.float32), image.affine), path)
    return path


def test_the_volume_explains_its_kspace(run, head, tmp_path):
    out = tmp_path / "new" / "kspace.h5"
    code, stdout, stderr = run("simulate", head, "--acceleration", 3, "--coils", 6, "--output", out, "--with-maps")
    assert (code, stderr) == (0, "")
    raw, scan, volume = read_raw(out), LoadKspace()(out), read_volume(head)
    np.testing.assert_array_equal(raw.affine, volume.affine)
    assert raw.kspace.shape == (6, *SHAPE)
    assert raw.mask.sum() == round(32 * 28 / 3)
    np.testing.assert_array_equal(raw.maps, simulate_maps(6, SHAPE).numpy())
    assert f"{out}: 6 coils, acceleration 3.00, noise" in stdout
    left = CartesianMRI(scan.mask, scan.maps)(torch.from_numpy(volume.array)[None, None])[0] - scan.kspace
    left = torch.view_as_real(left[scan.mask.expand_as(left)]).square().mean().sqrt()
    # The phase was unknown, and is found; the noise is that of a hundredth of the maximum.
    assert 0.9 < float(left) / float(scan.noise_std) < 1.1
    coil_images = np.abs(raw.maps * volume.array)
    assert float(scan.noise_std) == pytest.approx(0.01 * coil_images.max(), rel=0.1)


def test_maps_are_left_out_unless_asked_for_and_the_seed_repeats(run, head, tmp_path):
    a, b, c = (tmp_path / f"{name}.h5" for name in "abc")
    for path, seed in ((a, 1), (b, 1), (c, 2)):
        assert run("simulate", head, "-o", path, "--seed", seed)[0] == 0
    first, same, other = map(read_raw, (a, b, c))
    assert first.maps is None
    np.testing.assert_array_equal(first.kspace, same.kspace)
    np.testing.assert_array_equal(first.mask, same.mask)
    assert (first.mask != other.mask).any()


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        (["--sampling", "equispaced"], (1, 32, 1)),
        (["--sampling", "random", "--phase-encoding", "z"], (1, 1, 28)),
        (["--sampling", "variable-density"], (1, 32, 28)),
        (["--sampling", "poisson-disc", "--phase-encoding", "xy"], (20, 32, 1)),
    ],
)
def test_sampling_along_the_axes_asked_for(run, head, tmp_path, options, shape):
    assert run("simulate", head, "-o", tmp_path / "a.h5", *options)[0] == 0
    mask = read_raw(tmp_path / "a.h5").mask
    assert mask.shape == shape
    assert mask.sum() == round(mask.size / 4)
    assert run("simulate", head, "-o", tmp_path / "b.h5", *options, "--partial-fourier", 0.625)[0] == 0
    partial = read_raw(tmp_path / "b.h5").mask
    axis = next(i for i, n in enumerate(shape) if n > 1)
    dropped = shape[axis] - round(0.625 * shape[axis])
    assert not partial.take(range(dropped), axis).any()
    kept = range(dropped, shape[axis])
    np.testing.assert_array_equal(partial.take(kept, axis), mask.take(kept, axis))


@pytest.mark.parametrize("geometry", ["parallel", "fan"])
def test_backprojection_finds_the_attenuation(run, chest, tmp_path, geometry):
    out = tmp_path / "sinogram.h5"
    code, stdout, stderr = run("simulate", chest, "--operator", "ct", "--geometry", geometry, "-o", out)
    assert (code, stderr) == (0, "")
    assert "180 views" in stdout
    sinogram, volume = read_sinogram(out), read_volume(chest)
    np.testing.assert_array_equal(sinogram.affine, volume.affine)
    attenuation = 0.0193 * (1 + volume.array / 1000)
    found = read_measurement(out).prepare().plain
    # Backprojection at the resolution of the voxels: within a few hundredths of a smooth object.
    assert np.sqrt(((found - attenuation) ** 2).mean()) < 0.03 * attenuation.max()
    if geometry == "parallel":
        across = sinogram.sinogram.sum(1) * sinogram.detector_spacing
        mass = attenuation.sum((0, 1)) * volume.spacing[0] ** 2
        np.testing.assert_allclose(across, np.broadcast_to(mass, across.shape), rtol=0.03, atol=0.03)


def test_photons_are_noise(run, chest, tmp_path):
    for name, photons in (("clean", []), ("noisy", ["--photons", 10000])):
        assert run("simulate", chest, "--operator", "ct", "-o", tmp_path / f"{name}.h5", *photons)[0] == 0
    clean, noisy = (read_sinogram(tmp_path / f"{name}.h5").sinogram for name in ("clean", "noisy"))
    z = (noisy - clean) * np.sqrt(10000 * np.exp(-clean))
    assert z.std() == pytest.approx(1, rel=0.02)


def test_thick_slices_lie_where_they_were(run, head, tmp_path):
    out = tmp_path / "thick.nii.gz"
    code, stdout, _ = run("simulate", head, "--operator", "super-resolution", "--factor", 1, 1, 4, "-o", out)
    assert (code, "no noise" in stdout) == (0, True)
    thick, volume = read_volume(out), read_volume(head)
    np.testing.assert_allclose(thick.array, volume.array.reshape(20, 32, 7, 4).mean(-1), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(thick.affine @ [2, 3, 4, 1], volume.affine @ [2, 3, 17.5, 1], atol=1e-4)
    # What reconstructs them finds the grid of the volume again.
    measured = read_measurement(out, "super-resolution", (1.0, 1.0, 4.0), noise_std=1.0)
    assert measured.shape == SHAPE
    np.testing.assert_allclose(measured.affine, volume.affine, atol=1e-4)


def test_noise_and_holes_keep_the_geometry_bit_for_bit(run, head, tmp_path):
    volume = read_volume(head)
    assert run("simulate", head, "--operator", "denoise", "--noise", 0.1, "-o", tmp_path / "noisy.nii.gz")[0] == 0
    noisy = read_volume(tmp_path / "noisy.nii.gz")
    assert (noisy.array - volume.array).std() == pytest.approx(0.1 * volume.array.max(), rel=0.03)
    seen = np.ones(SHAPE, np.uint8)
    seen[:, 10:16] = 0
    nib.save(nib.Nifti1Image(seen, volume.affine), tmp_path / "seen.nii.gz")
    arguments = ("--operator", "inpaint", "--mask", tmp_path / "seen.nii.gz", "-o", tmp_path / "holes.nii.gz")
    assert run("simulate", head, *arguments)[0] == 0
    holes = read_volume(tmp_path / "holes.nii.gz")
    np.testing.assert_array_equal(holes.array, volume.array * seen)
    for result in (noisy, holes):
        np.testing.assert_array_equal(result.affine, volume.affine)


BAD = {
    "operator": (["--operator", "pet"], "operator pet: is not known"),
    "option of another operator": (["--angles", 60], "--angles: means nothing for operator mri"),
    "suffix": (["-o", "kspace.nii.gz"], "a file of operator mri ends in another way; use .h5"),
    "sampling": (["--sampling", "spiral"], "sampling spiral: is not known"),
    "acceleration": (["--acceleration", 0.5], "acceleration: is 0.5"),
    "axes": (["--phase-encoding", "yy"], "phase encoding yy: is not one or two axes"),
    "lines along two axes": (["--sampling", "equispaced", "--phase-encoding", "yz"], "are two axes"),
    "discs along one": (["--sampling", "poisson-disc", "--phase-encoding", "y"], "two phase-encoding axes"),
    "fraction": (["--partial-fourier", 0.4], "fraction: is 0.4"),
    "noise": (["--noise", 0], "noise: is 0.0 of the maximum"),
    "geometry": (["--operator", "ct", "--geometry", "cone"], "geometry cone: is not known"),
    "magnitudes as CT": (["--operator", "ct"], "holds no air"),
    "no factor": (["--operator", "super-resolution", "-o", "a.nii"], "needs to know how thick"),
    "factor": (["--operator", "super-resolution", "--factor", 1, 1, 1, "-o", "a.nii"], "factor 1 1 1: does not make"),
    "factor beyond": (["--operator", "super-resolution", "--factor", 1, 1, 99, "-o", "a.nii"], "factor 1 1 99"),
    "no mask": (["--operator", "inpaint", "-o", "a.nii"], "needs to know which voxels are seen"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_simulated(run, head, tmp_path, monkeypatch, name):
    options, fault = BAD[name]
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, stdout, stderr = run("simulate", head, "-o", "a.h5", *options)
    assert (code, stdout) == (2, "")
    assert stderr.count("\n") == 1
    assert fault in stderr
    assert sorted(tmp_path.iterdir()) == before


def test_an_existing_output_is_kept(run, head, tmp_path):
    (tmp_path / "a.h5").write_text("mine")
    code, _, stderr = run("simulate", head, "-o", tmp_path / "a.h5")
    assert code == 2
    assert "a.h5: exists already" in stderr
    assert (tmp_path / "a.h5").read_text() == "mine"
    assert run("simulate", head, "-o", tmp_path / "a.h5", "--overwrite")[0] == 0
    assert read_raw(tmp_path / "a.h5").kspace.shape == (8, *SHAPE)
