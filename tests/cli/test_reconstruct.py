"""`voxscore reconstruct`: what a user gives, what lies in the folder afterwards."""

import json

import nibabel as nib
import numpy as np
import pydicom
import pytest

from voxscore.evaluation import score_volume
from voxscore.volumes import centred_fft, make_raw, read_volume, sha256, write_raw

RNG = np.random.default_rng(0)
SHAPE = (12, 11, 8)


@pytest.fixture
def reconstruct(run, gaussian_reconstruction):
    """reconstruct(*arguments): `run` on the bundle of a Gaussian prior."""
    return lambda *arguments: run("reconstruct", "--bundle", gaussian_reconstruction, "--device", "cpu", *arguments)


@pytest.fixture
def scan(tmp_path, oblique):
    """A scan of one coil with nothing left out, and the volume it measured."""
    x = (50 + 10 * np.random.default_rng(0).normal(size=SHAPE)).astype(np.float32)
    noise = np.random.default_rng(1).normal(size=(2, 1, *SHAPE))
    path = tmp_path / "scan.h5"
    write_raw(make_raw(centred_fft(x)[None] + noise[0] + 1j * noise[1], path, "voxscore", affine=oblique), path)
    nib.save(nib.Nifti1Image(x, oblique), tmp_path / "truth.nii.gz")
    return path


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_mean_spread_and_page(reconstruct, scan, oblique, tmp_path):
    out, truth = tmp_path / "out", tmp_path / "truth.nii.gz"
    code, stdout, stderr = reconstruct(
        scan, "-o", out, "--report", "--reference", truth, "--json", "--noise-std", 1, "--steps", 8, "--samples", 3
    )
    assert (code, stderr) == (0, "")
    assert names(out) == ["scan_mean.nii.gz", "scan_report.html", "scan_sd.nii.gz"]
    manifest = json.loads(stdout)
    assert [w["sha256"] for w in manifest["outputs"]] == [sha256(w["path"]) for w in manifest["outputs"]]
    assert manifest["bundle"]["weights_sha256"]
    assert (manifest["samples"], manifest["steps"], manifest["evaluations"], manifest["seed"]) == (3, 8, 8, 0)
    mean, sd = (nib.load(out / f"scan_{kind}.nii.gz") for kind in ("mean", "sd"))
    np.testing.assert_array_equal(mean.affine, oblique.astype(np.float32))
    reference = read_volume(truth).array
    scores = score_volume(mean.get_fdata(dtype=np.float32), reference).rounded()
    assert manifest["scores"]["reconstruction"] == scores
    # All was measured, with noise of 1: the mean is as good as that, and the spread says so.
    error = (mean.get_fdata() - reference)[2:-2, 2:-2, 2:-2]
    assert np.sqrt(np.mean(error**2)) < 2
    assert 0.5 < np.sqrt(np.mean(sd.get_fdata() ** 2)) < 2
    assert "Against the reference" in (out / "scan_report.html").read_text()


def test_the_same_seed_gives_the_same_samples(reconstruct, scan, tmp_path):
    found = {}
    for folder, seed in {"a": 0, "b": 0, "c": 1}.items():
        assert reconstruct(scan, "-o", tmp_path / folder, "--samples", 1, "--noise-std", 1, "--seed", seed)[0] == 0
        assert names(tmp_path / folder) == ["scan_mean.nii.gz"]  # one sample has no spread
        found[folder] = sha256(tmp_path / folder / "scan_mean.nii.gz")
    assert found["a"] == found["b"] != found["c"]


def test_bart_files(reconstruct, tmp_path):
    x = 50 + 10 * RNG.normal(size=SHAPE)
    kspace = (centred_fft(x) + RNG.normal(size=SHAPE)).astype(np.complex64)
    (tmp_path / "scan.hdr").write_text("# Dimensions\n" + " ".join(map(str, (*SHAPE, 1))) + "\n")
    (tmp_path / "scan.cfl").write_bytes(kspace.tobytes(order="F"))
    assert reconstruct(tmp_path / "scan", "-o", tmp_path / "out", "--samples", 1)[0] == 0
    assert nib.load(tmp_path / "out/scan_mean.nii.gz").shape == SHAPE


def test_dicom_in_dicom_out(reconstruct, save_series, oblique, tmp_path):
    source = save_series((500 + 60 * RNG.normal(size=(10, 12, 6))).astype(np.uint16), "thick")
    out = tmp_path / "out"
    code, stdout, _ = reconstruct(
        source, "-o", out, "--operator", "super-resolution", "--factor", 1, 1, 2, "--samples", 2, "--json"
    )
    assert code == 0
    assert names(out) == ["thick_mean", "thick_mean.nii.gz", "thick_sd.nii.gz"]
    assert str(out / "thick_mean") in [w["path"] for w in json.loads(stdout)["outputs"]]
    series, mean = read_volume(out / "thick_mean"), read_volume(out / "thick_mean.nii.gz")
    assert series.array.shape == (10, 12, 12)
    np.testing.assert_allclose(series.affine, mean.affine, atol=1e-4)
    # Two thin slices about the middle of the thick one.
    np.testing.assert_allclose(mean.affine @ [0, 0, 0.5, 1], oblique @ [0, 0, 0, 1], atol=1e-4)
    np.testing.assert_allclose(series.array, mean.array, atol=np.ptp(mean.array) / 65535)
    derived = pydicom.dcmread(out / "thick_mean/0001.dcm")
    original = pydicom.dcmread(next(source.iterdir()))
    assert derived.StudyInstanceUID == original.StudyInstanceUID
    assert derived.SeriesInstanceUID != original.SeriesInstanceUID
    assert derived.ImageType[0] == "DERIVED"
    assert "super-resolution" in derived.DerivationDescription
    assert len(derived.SourceImageSequence) == 6
    # A second run does not touch the first.
    code, _, stderr = reconstruct(source, "-o", out, "--operator", "denoise")
    assert code == 2
    assert "exists already" in stderr


def test_outputs_are_kept_unless_overwritten(reconstruct, scan, tmp_path):
    out = tmp_path / "out"
    arguments = (scan, "-o", out, "--samples", 1, "--noise-std", 1)
    assert reconstruct(*arguments)[0] == 0
    before = sha256(out / "scan_mean.nii.gz")
    code, _, stderr = reconstruct(*arguments, "--seed", 1)
    assert code == 2
    assert "scan_mean.nii.gz: exists already; choose another output, or replace it with --overwrite" in stderr
    assert sha256(out / "scan_mean.nii.gz") == before
    assert reconstruct(*arguments, "--seed", 1, "--overwrite")[0] == 0
    assert sha256(out / "scan_mean.nii.gz") != before
