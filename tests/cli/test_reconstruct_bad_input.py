"""What `voxscore reconstruct` refuses: one line that names the file, the fault and a way out, and nothing written."""

import h5py
import nibabel as nib
import numpy as np
import pytest

from voxscore import memory
from voxscore.reconstruction import Reconstructor
from voxscore.volumes import centred_fft, make_raw, write_raw

SHAPE = (10, 12, 8)
VOLUME = (50 + 10 * np.random.default_rng(0).normal(size=SHAPE)).astype(np.float32)
KSPACE = np.stack([centred_fft(VOLUME), 1j * centred_fft(VOLUME)])
OWN = {"voxscore": "k-space", "version": 1}


@pytest.fixture
def refused(run, gaussian_reconstruction, tmp_path, monkeypatch):
    """refused(arguments, *texts): the command ends with one line that has the texts, and writes nothing."""

    def sampled(self, *args):
        raise AssertionError("sampled in vain")

    def refused(arguments, *texts, sampling=False):
        if not sampling:
            monkeypatch.setattr(Reconstructor, "_drawn", sampled)
        out = tmp_path / "out"
        code, stdout, stderr = run(
            "reconstruct", *arguments, "-o", out, "--bundle", gaussian_reconstruction, "--device", "cpu", "--report"
        )
        assert (code, stdout) == (2, "")
        (line,) = stderr.splitlines()
        assert line.startswith("voxscore: ")
        assert len(line.partition("; ")[2]) > 5, line
        for text in texts:
            assert str(text) in line
        assert not out.exists() or list(out.iterdir()) == []

    return refused


@pytest.fixture
def hdf5(tmp_path):
    """hdf5(attributes, **datasets) -> file."""

    def write(facts=OWN, **datasets):
        path = tmp_path / "scan.h5"
        with h5py.File(path, "w") as file:
            file.attrs.update(facts)
            for name, array in datasets.items():
                file[name] = array
        return path

    return write


@pytest.fixture
def scan(tmp_path):
    write_raw(make_raw(KSPACE, tmp_path / "good.h5", "voxscore"), tmp_path / "good.h5")
    return tmp_path / "good.h5"


@pytest.fixture
def volume(tmp_path):
    nib.save(nib.Nifti1Image(VOLUME, np.eye(4)), tmp_path / "image.nii.gz")
    return tmp_path / "image.nii.gz"


def nan():
    bad = KSPACE.copy()
    bad[1, 2, 3, 4] = np.nan
    return bad


LINES = np.ones((1, 12, 1), bool)

BAD_SCANS = {
    "axes": ({"kspace": KSPACE[0]}, "k-space has shape 10x12x8"),
    "coils": ({"kspace": KSPACE, "maps": KSPACE[:1]}, "coil maps have shape 1x10x12x8"),
    "mask": ({"kspace": KSPACE, "mask": np.ones((3, 4), bool)}, "mask of shape 3x4 does not fit"),
    "mask-of-nothing": ({"kspace": KSPACE, "mask": 0 * LINES}, "mask samples nothing"),
    "zero": ({"kspace": 0 * KSPACE}, "zero wherever it was sampled"),
    "nan": ({"kspace": nan()}, "1 of 1920 values of its k-space are NaN"),
    "zero-maps": ({"kspace": KSPACE, "maps": 0 * KSPACE}, "coil maps are zero everywhere"),
    "layout": ({"data": KSPACE, "traj": KSPACE}, "holds data, traj; expected: kspace"),
    # Without its middle a scan of several coils tells nothing of their maps.
    "no-maps": (
        {"kspace": KSPACE, "mask": LINES & (np.arange(12) != 6)[None, :, None]},
        "leaves out the middle of k-space",
    ),
}


@pytest.mark.parametrize(("datasets", "fault"), BAD_SCANS.values(), ids=BAD_SCANS)
def test_bad_scan(refused, hdf5, datasets, fault):
    path = hdf5(**datasets)
    refused([path], path, fault)


def test_files_that_are_no_scan(refused, tmp_path):
    refused([tmp_path / "absent.h5"], tmp_path / "absent.h5", "no such file")
    (tmp_path / "text.h5").write_text("no samples")
    refused([tmp_path / "text.h5"], "neither HDF5 nor a BART file")
    refused([tmp_path / "absent.nii.gz", "--operator", "denoise"], "absent.nii.gz", "no such file")


def test_masks_and_maps_of_the_user(refused, scan, tmp_path):
    for option in ("mask", "maps"):
        np.save(tmp_path / f"{option}.npy", np.ones((2, 3), np.uint8))
        refused([scan, f"--{option}", tmp_path / f"{option}.npy"], f"{option}.npy", "2x3")
    np.save(tmp_path / "none.npy", np.zeros(12, np.uint8))
    refused([scan, "--mask", tmp_path / "none.npy"], "none.npy", "samples nothing")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (
            [],
            "is an image, and may be a measurement of many kinds; add --operator: super-resolution, denoise or inpaint",
        ),
        (["--operator", "sharpen"], "operator sharpen: is not known; choose one of: super-resolution"),
        (["--operator", "super-resolution"], "needs to know how much finer the volume is; add --factor"),
        (["--operator", "super-resolution", "--factor", 1, 1, 1], "factor 1 1 1: is no factor of refinement"),
        (["--operator", "super-resolution", "--factor", 1, 0.5, 2], "factor 1 0.5 2: is no factor"),
        (["--operator", "super-resolution", "--factor", 1, "nan", 2], "factor 1 nan 2: is no factor"),
        (["--operator", "super-resolution", "--factor", 1, 1, 1000], "factor 1 1 1000: is no factor"),
        (["--operator", "denoise", "--factor", 1, 1, 4], "--factor: means nothing for operator denoise; leave it away"),
        (["--operator", "denoise", "--maps", "m.npy"], "--maps: means nothing for operator denoise"),
        (["--operator", "inpaint"], "needs to know which voxels were seen; add --mask"),
        (["--operator", "denoise", "--noise-std", -1], "noise-std -1: is no standard deviation"),
        (["--operator", "denoise", "--noise-std", "nan"], "noise-std nan: is no standard deviation"),
        (["--operator", "denoise", "--series", 3], "is not DICOM"),
        (["--operator", "denoise", "--samples", 0], "samples 0: asks for no sample"),
        (["--operator", "denoise", "--steps", 1], "steps 1: are too few"),
        (["--operator", "denoise", "--method", "magic"], "method magic: is not known"),
        (["--operator", "denoise", "--tile", 8], "tile 8: is too small"),
    ],
)
def test_options_that_do_not_fit(refused, volume, arguments, fault):
    refused([volume, *arguments], fault)


def test_options_of_images_mean_nothing_for_raw_data(refused, scan):
    refused([scan, "--operator", "denoise"], scan, "is raw data, not an image to denoise; leave --operator away")
    refused([scan, "--factor", 1, 1, 2], "--factor: means nothing for k-space")


@pytest.mark.parametrize(
    ("mask", "affine", "fault"),
    [
        (np.ones((3, 3, 3)), np.eye(4), "does not lie on the grid of"),
        (np.ones(SHAPE), np.diag([2.0, 1, 1, 1]), "does not lie on the grid of"),
        (np.zeros(SHAPE), np.eye(4), "samples nothing"),
        (np.ones(SHAPE), np.eye(4), "leaves no voxel to be found"),
        (2 * np.ones(SHAPE), np.eye(4), "holds other values than 0 and 1"),
    ],
)
def test_masks_to_inpaint(refused, volume, tmp_path, mask, affine, fault):
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), tmp_path / "mask.nii.gz")
    refused([volume, "--operator", "inpaint", "--mask", tmp_path / "mask.nii.gz"], "mask.nii.gz", fault)


def test_a_reference_elsewhere(refused, scan, tmp_path):
    nib.save(nib.Nifti1Image(VOLUME[:-1], np.eye(4)), tmp_path / "truth.nii.gz")
    refused(
        [scan, "--reference", tmp_path / "truth.nii.gz"], "is 9 x 12 x 8, on another grid", "resample it to 10 x 12 x 8"
    )
    moved = np.eye(4)
    moved[0, 3] = 0.5
    nib.save(nib.Nifti1Image(VOLUME, moved), tmp_path / "truth.nii.gz")
    refused([scan, "--reference", tmp_path / "truth.nii.gz"], "10 x 12 x 8, 0.5 mm off, on another grid")


def test_too_large_for_the_memory(refused, volume, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**20)
    refused([volume, "--operator", "denoise"], volume, "GiB of memory, and cpu has 0.000977 GiB free", "--tile N")


def test_places_that_cannot_be_written(run, gaussian_reconstruction, scan, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, fault in {(tmp_path / "file",): "is a file; name a folder", ("/proc/none",): "cannot be"}.items():
        code, _, stderr = run("reconstruct", scan, "--bundle", gaussian_reconstruction, "-o", *arguments)
        assert code == 2
        assert stderr.startswith("voxscore: ")
        assert fault in stderr


def test_an_output_that_is_an_input(run, gaussian_reconstruction, tmp_path):
    image = tmp_path / "a_mean.nii.gz"
    nib.save(nib.Nifti1Image(VOLUME, np.eye(4)), image)
    nib.save(nib.Nifti1Image(VOLUME, np.eye(4)), tmp_path / "a.nii.gz")
    before = image.read_bytes()
    code, _, stderr = run(
        *("reconstruct", tmp_path / "a.nii.gz", "--operator", "denoise", "--bundle", gaussian_reconstruction),
        *("--reference", image, "-o", tmp_path, "--overwrite"),
    )
    assert code == 2
    assert "is an input itself; choose another output" in stderr
    assert image.read_bytes() == before
