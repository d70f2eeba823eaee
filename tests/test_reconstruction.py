"""Reconstruction with a bundle whose prior is white noise, for which posteriors are known in closed form."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose

from voxscore import memory
from voxscore.bundles import find_bundle
from voxscore.errors import UserError
from voxscore.evaluation import score_volume
from voxscore.measured import read_measurement
from voxscore.measurement import Downsample
from voxscore.reconstruction import METHODS, Outputs, Reconstructor, reconstruct_measurement
from voxscore.volumes import make_raw, make_sinogram, read_volume, sha256, write_raw, write_sinogram

CPU = torch.device("cpu")
SHAPE = (12, 10, 8)
SIGMA_DATA = 0.5  # of the prior, relative to the 99.5 % quantile of the measured volume


@pytest.fixture
def reconstructor(gaussian_reconstruction):
    """reconstructor(...): the Gaussian bundle, loaded."""
    return lambda **settings: Reconstructor(find_bundle(gaussian_reconstruction), CPU, **settings)


def image(seed=0, shape=SHAPE):
    return (50 + 20 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def scale(volume):
    """What the inferer divides by."""
    flat = np.sort(volume.ravel())
    return float(flat[max(1, round(0.995 * flat.size)) - 1])


def test_mean_and_spread_are_those_of_the_posterior(reconstructor, save_nifti, oblique):
    """x ~ N(0, s^2), y = x + r n: mean y s^2 / (s^2 + r^2), variance s^2 r^2 / (s^2 + r^2)."""
    y, r, n = image(), 15.0, 24
    measurement = read_measurement(save_nifti(y, oblique), "denoise", noise_std=r)
    found = reconstructor(steps=32)(measurement, samples=n, seed=3)
    s = SIGMA_DATA * scale(y)
    gain, variance = s**2 / (s**2 + r**2), s**2 * r**2 / (s**2 + r**2)
    # 960 voxels of 12 pairs: the estimate of the variance scatters by sqrt(2 / (960 * 12)) = 1 %, to which 32 steps
    # add their error.
    assert np.mean(found.sd**2) == pytest.approx(variance, rel=0.06)
    # Errors of a pair cancel: 24 independent samples would have 0.2.
    assert np.sqrt(np.mean((found.mean - gain * y) ** 2) / variance) < 0.05
    assert (found.samples, found.evaluations, found.noise_std) == (n, 32, r)
    np.testing.assert_array_equal(found.plain, y)
    np.testing.assert_array_equal(found.affine, measurement.affine)


def test_a_sample_depends_on_seed_and_place_alone(reconstructor, save_nifti, oblique):
    measurement = read_measurement(save_nifti(image(), oblique), "denoise", noise_std=20.0)
    one, two = reconstructor(), reconstructor()
    first, again = one(measurement, samples=1, seed=5), two(measurement, samples=1, seed=5)
    np.testing.assert_array_equal(first.mean, again.mean)
    assert first.sd is None
    assert np.abs(one(measurement, samples=1, seed=6).mean - first.mean).mean() > 1
    # Two samples of seed 5 are the first one and its opposite, whose mean has the deviation of either to it.
    pair = two(measurement, samples=2, seed=5)
    np.testing.assert_allclose(np.abs(pair.mean - first.mean), pair.sd, atol=1e-3)


def test_a_grid_the_network_never_saw_is_said(reconstructor, save_nifti):
    """Stored as S, R, A here; the limits are those of R, A, S with a third of tolerance."""
    known = reconstructor()
    known.bundle.metadata["voxel_spacing_mm"] = [[1, 1], [1, 1], [1, 3]]

    def warnings(*ras):
        affine = np.zeros((4, 4))
        affine[0, 1], affine[1, 2], affine[2, 0], affine[3, 3] = *ras, 1
        return known.warnings_for(read_measurement(save_nifti(image(), affine), "denoise"))

    assert warnings(1.29, -0.78, 3.8) == warnings(0.9, 1.1, 0.8) == []
    for spacing, text in (((1, 1, 4), "1 x 1 x 4"), ((0.5, 1, 1), "0.5 x 1 x 1"), ((1, 3, 1), "1 x 3 x 1")):
        (line,) = warnings(*spacing)
        assert f"has voxels of {text} mm" in line
        assert "trained on 1 x 1 x (1 to 3)" in line
    del known.bundle.metadata["voxel_spacing_mm"]
    assert warnings(5, 5, 5) == []


def test_stored_axes_do_not_matter(reconstructor, save_nifti):
    """The prior sees RAS axes: the same volume stored otherwise has the same samples, in its own order."""
    y = image()
    affine = np.array([[0, 0, 2.0, 5], [-1.5, 0, 0, 6], [0, -3.0, 0, 7], [0, 0, 0, 1]])
    stored = nib.Nifti1Image(y, affine)
    canonical = nib.as_closest_canonical(stored)
    found = []
    for name, one in {"a.nii.gz": stored, "b.nii.gz": canonical}.items():
        path = save_nifti(np.asarray(one.dataobj, dtype=np.float32), one.affine, name)
        found.append(reconstructor()(read_measurement(path, "denoise", noise_std=10.0), samples=1))
    assert found[0].mean.shape != found[1].mean.shape
    turned = nib.as_closest_canonical(nib.Nifti1Image(found[0].mean, found[0].affine))
    np.testing.assert_allclose(turned.get_fdata(), found[1].mean, atol=1e-3)


def test_the_prior_is_told_how_thick_slices_are(reconstructor, save_nifti):
    """The spacing from feet to head, wherever the file stores it, of the volume that is sought."""
    affine = np.array([[0, 0, 2.0, 5], [-1.5, 0, 0, 6], [0, -8.0, 0, 7], [0, 0, 0, 1]])
    one, told = reconstructor(), []
    one.network.embed.cond.register_forward_pre_hook(lambda _, inputs: told.append(inputs[0].exp().tolist()))
    one(read_measurement(save_nifti(image(), affine), "super-resolution", (1, 2, 1), noise_std=5.0), samples=1)
    assert told[-6:] == [[[pytest.approx(4)]]] * 6


@pytest.mark.parametrize("method", METHODS)
def test_every_method_agrees_with_what_was_seen(reconstructor, save_nifti, oblique, method):
    y = image()
    seen = (np.random.default_rng(1).random(SHAPE) > 0.4).astype(np.uint8)
    path, mask = save_nifti(y, oblique), save_nifti(seen, oblique, "mask.nii.gz")
    one = reconstructor(method=method, steps=12)
    found = one(read_measurement(path, "inpaint", mask=mask, noise_std=1.0), samples=2)
    misfit = np.sqrt(np.mean((found.mean - y)[seen > 0] ** 2))
    blind = np.sqrt(np.mean(y[seen > 0] ** 2))
    # Noise of 1 and few steps; DPS, whose steps know no noise, has to come half-way at least.
    assert misfit < (0.5 * blind if method == "dps" else 2.5)
    # Where nothing was seen, the prior speaks: mean 0 and standard deviation s.
    s = SIGMA_DATA * scale(y * seen)
    assert np.sqrt(np.mean(found.sd[seen == 0] ** 2)) == pytest.approx(s, rel=0.2)
    assert one.manifest()["method"] == {"pigdm": "PiGDM", "dps": "dps"}.get(method, method.capitalize())


def test_the_spread_of_the_data_is_the_bundles_whatever_the_method(gaussian_reconstruction, tmp_path):
    root = tmp_path / "other"
    shutil.copytree(gaussian_reconstruction, root)
    config = json.loads((root / "configs/inference.json").read_text())
    config["method"]["sigma_data"] = 0.375
    (root / "configs/inference.json").write_text(json.dumps(config))
    one = Reconstructor(find_bundle(root), CPU, method="projection")
    assert one.inferer.method(one.inferer.denoiser(one.network), None, torch.ones(1), 0.1).sigma_data == 0.375


def test_the_bundles_own_method_by_name_is_the_bundles_own(gaussian_reconstruction, tmp_path):
    root = tmp_path / "bundle"
    shutil.copytree(gaussian_reconstruction, root)
    config = json.loads((root / "configs/inference.json").read_text())
    config["method"]["iterations"] = 17
    (root / "configs/inference.json").write_text(json.dumps(config))
    one = Reconstructor(find_bundle(root), CPU, method="decomposed")
    assert one.inferer.method(one.inferer.denoiser(one.network), None, torch.ones(1), 0.1).iterations == 17


def test_super_resolution_keeps_the_means_of_the_slices(reconstructor, save_nifti, oblique):
    y = image(shape=(8, 8, 6))
    measurement = read_measurement(save_nifti(y, oblique), "super-resolution", (1, 1, 3), noise_std=0.1)
    found = reconstructor(steps=12)(measurement, samples=1)
    assert found.mean.shape == (8, 8, 18)
    again = Downsample((8, 8, 18), (1, 1, 3))(torch.from_numpy(found.mean)[None, None])[0, 0]
    np.testing.assert_allclose(again, y, atol=1.0)
    # The slices' first voxels lie around the middle of the slice.
    np.testing.assert_allclose(found.affine @ [0, 0, 1, 1], oblique @ [0, 0, 0, 1])


def test_a_crop_is_a_part_of_the_whole(reconstructor, tmp_path, oblique):
    x = image(shape=(12, 11, 8)).astype(np.complex64)
    noise = np.random.default_rng(2).normal(size=(2, 1, 12, 11, 8))
    kspace = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(x), norm="ortho"))[None] + (noise[0] + 1j * noise[1])
    found = {}
    for name, crop in {"whole": None, "part": (7, 11, 4)}.items():
        path = tmp_path / f"{name}.h5"
        write_raw(make_raw(kspace, path, "voxscore", affine=oblique, crop=crop), path)
        found[name] = reconstructor()(read_measurement(path, noise_std=1.0), samples=2)
    where = (slice(3, 10), slice(0, 11), slice(2, 6))
    for part in ("mean", "sd", "plain"):
        np.testing.assert_array_equal(getattr(found["part"], part), getattr(found["whole"], part)[where])
    np.testing.assert_allclose(found["part"].affine[:3, 3], (oblique @ [3, 0, 2, 1])[:3])
    # All of k-space was measured, with little noise.
    assert np.abs(found["whole"].mean - x.real).mean() < 3


def test_ct_needs_a_bundle_of_ct(reconstructor, gaussian_reconstruction, tmp_path):
    """And one that has it reconstructs attenuation per mm."""
    angles, detectors = np.linspace(0, np.pi, 40, endpoint=False), 33
    s = np.arange(detectors) - 16.0
    chords = 0.02 * 2 * np.sqrt(np.clip(9.0**2 - s**2, 0, None))
    path = tmp_path / "scan.h5"
    sinogram = np.tile(chords[None, :, None], (40, 1, 2)).astype(np.float32)
    write_sinogram(make_sinogram(sinogram, angles, "parallel", 1.0, (24, 24), (1.0, 1.0, 3.0), path), path)
    measurement = read_measurement(path, noise_std=0.003)
    with pytest.raises(UserError, match=r"no bundle of CT ships; name one with --bundle; benchmarks/tomography\.py"):
        reconstructor()(measurement)
    root = tmp_path / "ct"
    shutil.copytree(gaussian_reconstruction, root)
    metadata = json.loads((root / "configs/metadata.json").read_text())
    metadata["network_data_format"]["inputs"]["image"]["modality"] = "CT"
    (root / "configs/metadata.json").write_text(json.dumps(metadata))
    found = Reconstructor(find_bundle(root), CPU, steps=12)(measurement, samples=2)
    i = np.arange(24) - 11.5
    middle = np.hypot(i[:, None], i) < 6
    assert found.mean[middle].mean() == pytest.approx(0.02, rel=0.05)
    assert found.plain[middle].mean() == pytest.approx(0.02, rel=0.05)


def training_transforms(name):
    parser = ConfigParser(json.loads(find_bundle("brain_mri_reconstruction").config("train").read_text()))
    return Compose(parser.get_parsed_content(name)).set_random_state(0)


def test_training_volumes_have_dark_air_and_are_cut_to_the_head(save_nifti):
    """Resampled volumes overshoot below zero next to edges, which says nothing of how dark air is."""
    x = np.zeros((60, 70, 40), np.float32)
    x[20:40, 20:50, 10:30] = image(shape=(20, 30, 20)).clip(10, 90)
    x[19], x[40] = -20 * (x[20] > 0), -20 * (x[39] > 0)
    found = training_transforms("preprocessing_transforms")({"image": save_nifti(x, np.diag([-1, -1, 1, 1]))})["image"][
        0
    ]
    assert found.shape == (20 + 16, 30 + 16, 20 + 16)
    assert (found == 0).sum() == found.numel() - 20 * 30 * 20
    assert (found > 1).sum() == 0.005 * x.size


def test_training_says_how_thick_the_slices_of_a_crop_are():
    """A ramp of 1 per millimetre from feet to head, so that the crop itself shows its spacing."""
    ramp = torch.arange(110.0).expand(1, 60, 60, 110)
    transforms = training_transforms("random_transforms")
    steps = [t for t in transforms.transforms if "Adjust" not in type(t).__name__ and "Scale" not in type(t).__name__]
    crop = Compose(steps).set_random_state(0)
    told, seen = [], []
    for _ in range(12):
        item = crop({"image": MetaTensor(ramp, affine=torch.eye(4))})
        told.append(float(item["cond"].exp()))
        seen.append(float(item["image"][0].diff(dim=-1).median()))
    # A rotation by up to 0.15 about two axes tilts the ramp.
    np.testing.assert_allclose(seen, told, rtol=0.03)
    assert {1, 2, 3} <= set(np.round(told))


# Memory


def test_a_volume_too_large_is_refused_before_anything_begins(reconstructor, save_nifti, oblique, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**20)
    path = save_nifti(image(), oblique)
    begun = []
    measurement = read_measurement(path, "denoise", noise_std=1.0)
    object.__setattr__(measurement, "prepare", lambda: begun.append(1))
    with pytest.raises(UserError, match=r"needs about .* GiB of memory, and cpu has .* free; lower it with --tile N"):
        reconstructor()(measurement)
    with pytest.raises(UserError, match="; lower it with fewer --samples"):
        reconstructor(window=32)(measurement)
    assert begun == []


def test_tiles_lower_the_need_and_samples_raise_it(reconstructor, save_nifti, oblique):
    whole, tiled = reconstructor(), reconstructor(window=32)
    measurement = read_measurement(save_nifti(image(shape=(64, 96, 32)), oblique), "denoise", noise_std=1.0)
    network = whole._bytes(measurement, 1) - tiled._bytes(measurement, 1)
    assert network > 0
    volume = 4 * 64 * 96 * 32
    assert whole._bytes(measurement, 11) - whole._bytes(measurement, 1) == pytest.approx(20 * volume)
    # Five of six tiles' worth of the network.
    rest = whole._bytes(measurement, 1) - network * 6 / 5
    assert rest > 10 * volume
    gradient = reconstructor(method="pigdm")
    assert gradient._bytes(measurement, 1) > 1.5 * whole._bytes(measurement, 1)


def test_memory_that_runs_out_all_the_same(reconstructor, save_nifti, oblique, monkeypatch):
    measurement = read_measurement(save_nifti(image(), oblique), "denoise", noise_std=1.0)

    def fail():
        raise MemoryError

    object.__setattr__(measurement, "prepare", fail)
    with pytest.raises(UserError, match="does not fit the memory of cpu; lower what it takes with --tile N"):
        reconstructor()(measurement)


# Writing


def test_outputs_lie_on_the_grid_of_the_input(reconstructor, save_nifti, oblique, tmp_path):
    path = save_nifti(image(), oblique)
    truth = read_volume(save_nifti(image(1), oblique, "truth.nii.gz"))
    outputs = Outputs(tmp_path / "m.nii.gz", tmp_path / "s.nii.gz", None, tmp_path / "r.html")
    calls = []
    one = reconstructor()
    result = reconstruct_measurement(
        one, read_measurement(path, "denoise", noise_std=9.0), outputs, samples=3, seed=1, reference=truth,
        advance=lambda: calls.append(1),
    )  # fmt: skip
    assert len(calls) == 3 * one.advances
    for file, array in {outputs.mean: result.reconstruction.mean, outputs.sd: result.reconstruction.sd}.items():
        back = nib.load(file)
        np.testing.assert_array_equal(back.affine, nib.load(path).affine)
        np.testing.assert_array_equal(back.get_fdata(dtype=np.float32), array)
    entry = result.entry
    assert [written["sha256"] for written in entry["outputs"]] == [sha256(p) for p in outputs.files()]
    assert entry["scores"]["reconstruction"] == score_volume(result.reconstruction.mean, truth.array).rounded()
    assert entry["scores"]["as measured"] == score_volume(image(), truth.array).rounded()
    assert (entry["samples"], entry["seed"], entry["noise_std"]) == (3, 1, 9.0)
    page = outputs.report.read_text()
    for text in (
        "evaluations of the network for each",
        "Against the reference",
        f"{entry['scores']['reconstruction']['psnr']:.4g}",
    ):
        assert text in page


def test_a_failure_leaves_nothing(reconstructor, save_nifti, oblique, tmp_path):
    one = reconstructor()
    with torch.no_grad():
        one.network.head[-1].bias.fill_(float("nan"))
    outputs = Outputs(tmp_path / "out/m.nii.gz", tmp_path / "out/s.nii.gz", None, tmp_path / "out/r.html")
    with pytest.raises(UserError, match=r"sampling failed: .*; try another --seed"):
        reconstruct_measurement(one, read_measurement(save_nifti(image(), oblique), "denoise"), outputs)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_dark_measurement_says_nothing(reconstructor, save_nifti, oblique):
    dark = -np.abs(image())
    with pytest.raises(UserError, match="says nothing of how bright the volume is"):
        reconstructor()(read_measurement(save_nifti(dark, oblique), "denoise", noise_std=1.0))


# Bundles


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"steps": 1}, "steps 1: are too few"),
        ({"method": "magic"}, "method magic: is not known; choose one of: decomposed, projection, pigdm, dps"),
        ({"window": 16}, "tile 16: is too small for the network; give 32 or more"),
    ],
)
def test_settings_that_cannot_be(reconstructor, settings, fault):
    with pytest.raises(UserError, match=fault):
        reconstructor(**settings)


def test_another_bundle_does_not_reconstruct():
    with pytest.raises(UserError, match="bundle hippocampus_segmentation: does not reconstruct"):
        Reconstructor(find_bundle("hippocampus_segmentation"), CPU)
