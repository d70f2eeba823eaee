"""What `voxscore segment` refuses: one line that names the file, the fault and a way out, and nothing written."""

import errno
import gzip
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from voxscore.inferers import FittedWindowInferer
from voxscore.segmentation import Segmenter
from voxscore.volumes import sha256

GOOD = np.arange(20 * 24 * 18, dtype=np.float32).reshape(20, 24, 18)


def nifti(array, **fields):
    """A NIfTI file with header fields set behind nibabel's back."""
    content = nib.Nifti1Image(array, np.eye(4)).to_bytes()
    header = nib.Nifti1Header(content[:348], check=False)
    for field, value in fields.items():
        header[field] = value
    return header.binaryblock + content[348:]


def with_voxel(value):
    array = GOOD.copy()
    array[3, 4, 5] = value
    return array


BAD = {
    "empty.nii.gz": (b"", "is an empty file"),
    "text.nii.gz": (b"these are not voxels", "is not gzip-compressed"),
    "truncated.nii.gz": (gzip.compress(nifti(GOOD))[:-300], "is cut short"),
    "flat.nii": (nifti(GOOD[:, :, 0]), "is a 2-D image"),
    "series.nii": (nifti(np.stack([GOOD, GOOD], 3)), "holds 2 volumes"),
    "no-voxels.nii": (nifti(GOOD[:0]), "holds no voxels"),
    "nan.nii": (nifti(with_voxel(np.nan)), "1 of 8640 voxels are NaN"),
    "inf.nii": (nifti(with_voxel(np.inf)), "1 of 8640 voxels are NaN or infinite"),
    "singular.nii": (nifti(GOOD, sform_code=1, srow_x=[1, 0, 0, 0], srow_y=[1, 0, 0, 0]), "affine is singular"),
    "nan-affine.nii": (nifti(GOOD, sform_code=1, srow_x=[np.nan, 0, 0, 0]), "affine has entries that are not finite"),
    "constant.nii": (nifti(np.ones_like(GOOD)), "every voxel has the same value"),
    "photo.png": (b"\x89PNG", "does not read files of this kind"),
}


def the_line(stderr, *texts):
    """The one line of stderr that contains all the texts."""
    (line,) = [line for line in stderr.splitlines() if all(str(text) in line for text in texts)]
    assert line.startswith("voxscore: ")
    # subject: fault; way out
    assert len(line.partition("; ")[2]) > 5
    return line


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) if folder.exists() else []


@pytest.fixture
def never_segments(monkeypatch):
    """The network must not be reached."""

    def refuse(self, volume):
        raise AssertionError("segmented in vain")

    monkeypatch.setattr(Segmenter, "__call__", refuse)


@pytest.mark.parametrize("name", BAD)
def test_bad_volume(segment, crops, tmp_path, name):
    content, fault = BAD[name]
    bad, out = tmp_path / "bad" / name, tmp_path / "out"
    bad.parent.mkdir()
    bad.write_bytes(content)
    code, stdout, stderr = segment(bad, "-o", out)
    assert (code, stdout) == (2, "")
    assert stderr.count("\n") == 1
    the_line(stderr, bad, fault)
    assert files_below(out) == []

    # In the middle of a batch it costs the others nothing.
    code, stdout, stderr = segment(crops / "a.nii.gz", bad, crops / "b.nii.gz", "-o", out, "--json")
    assert code == 1
    line = the_line(stderr, bad, fault)
    assert "1 of 3 inputs failed" in stderr
    assert files_below(out) == ["a.nii.gz", "b.nii.gz"]
    manifest = json.loads(stdout)
    assert manifest["failures"] == [{"input": str(bad), "error": line.removeprefix("voxscore: ")}]
    assert len(manifest["results"]) == 2


def test_missing_file(segment, crops, tmp_path):
    code, stdout, stderr = segment(tmp_path / "absent.nii.gz", "-o", tmp_path / "out", "--json")
    assert code == 2
    the_line(stderr, tmp_path / "absent.nii.gz", "no such file")
    assert json.loads(stdout)["results"] == []
    assert segment(tmp_path / "absent.nii.gz", crops, "-o", tmp_path / "out")[0] == 1
    assert files_below(tmp_path / "out") == ["a.nii.gz", "b.nii.gz"]


def test_batch_in_which_all_fail_has_done_nothing(segment, tmp_path):
    code, _, stderr = segment(tmp_path / "x.nii", tmp_path / "y.nii", "-o", tmp_path / "out")
    assert code == 2
    assert "2 of 2 inputs failed" in stderr


def test_link_to_nowhere_in_a_folder_is_not_passed_over(segment, crops, tmp_path):
    """As a data set is whose files have not been fetched yet."""
    (crops / "c.nii.gz").symlink_to(tmp_path / "absent.nii.gz")
    code, _, stderr = segment(crops, "-o", tmp_path / "out")
    assert code == 1
    the_line(stderr, crops / "c.nii.gz", "no such file")


@pytest.mark.parametrize("alone", [True, False])
def test_unreadable_file(segment, crops, tmp_path, monkeypatch, alone):
    bad = crops / "c.nii.gz"
    shutil.copy(crops / "a.nii.gz", bad)
    opened = open

    def refuse(file, *args, **kwargs):
        if str(file) == str(bad):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return opened(file, *args, **kwargs)

    monkeypatch.setattr("builtins.open", refuse)
    code, _, stderr = segment(bad if alone else crops, "-o", tmp_path / "out")
    assert code == (2 if alone else 1)
    the_line(stderr, bad, "Permission denied")
    assert files_below(tmp_path / "out") == ([] if alone else ["a.nii.gz", "b.nii.gz"])


def test_dicom_with_a_missing_slice(segment, crops, tmp_path, save_series):
    folder = save_series(np.arange(20 * 24 * 8, dtype=np.uint16).reshape(20, 24, 8))
    next(folder.glob("*3")).unlink()
    code, _, stderr = segment(folder, crops, "-o", tmp_path / "out")
    assert code == 1
    the_line(stderr, folder, "gap", "slices are missing")
    assert files_below(tmp_path / "out") == ["a.nii.gz", "b.nii.gz"]


def test_dicom_with_mixed_series(segment, tmp_path, save_series):
    array = np.arange(20 * 24 * 8, dtype=np.uint16).reshape(20, 24, 8)
    folder = save_series(array, folder="study/one", number=3).parent
    save_series(array[:, :, :5], folder="study/two", number=4)
    code, _, stderr = segment(folder, "-o", tmp_path / "out")
    assert code == 2
    the_line(stderr, folder, "number 3 (MR 8 images", "number 4 (MR 5 images", "--series")
    code, _, stderr = segment(folder, "-o", tmp_path / "out", "--series", "7")
    assert code == 2
    the_line(stderr, folder, "no DICOM series '7'")
    assert "Secret" not in stderr


def test_series_of_what_is_not_dicom(segment, crops, tmp_path):
    for source in (crops, crops / "a.nii.gz"):
        code, _, stderr = segment(source, "-o", tmp_path / "out", "--series", "3")
        assert code == 2
        the_line(stderr, source, "series cannot be chosen", "leave --series away")


@pytest.mark.parametrize("written", ["a.nii.gz", "a_probabilities.nii.gz"])
def test_existing_output(segment, crops, tmp_path, never_segments, written):
    out = tmp_path / "out"
    out.mkdir()
    (out / written).write_bytes(b"precious")
    code, _, stderr = segment(crops / "a.nii.gz", "-o", out, "--probabilities")
    assert code == 2
    the_line(stderr, out / written, "exists already", "--overwrite")
    assert files_below(out) == [written]
    assert (out / written).read_bytes() == b"precious"


def test_existing_report(segment, crops, tmp_path, never_segments):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/report.html").write_text("precious")
    code, _, stderr = segment(crops, "-o", tmp_path / "out", "--report")
    assert code == 2
    the_line(stderr, "report.html", "exists already", "--overwrite")


def test_overwrite(segment, crops, tmp_path):
    out = tmp_path / "a.nii.gz"
    out.write_bytes(b"old")
    assert segment(crops / "a.nii.gz", "-o", out, "--overwrite")[0] == 0
    assert nib.load(out).shape == (20, 24, 18)


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_an_input_is_never_overwritten(segment, crops, tmp_path, save_series, never_segments, overwrite):
    before = sha256(crops / "a.nii.gz")
    link = tmp_path / "link"
    link.symlink_to(crops)
    for out in (crops, crops / "a.nii.gz", link):
        code, _, stderr = segment(crops / "a.nii.gz", "-o", out, *overwrite)
        assert code == 2
        the_line(stderr, "a.nii.gz", "is an input")
    # Also not that of another volume in the batch, nor a slice.
    code, _, stderr = segment(crops / "a.nii.gz", crops / "b.nii.gz", "-o", crops, *overwrite)
    assert stderr.count("is an input") == 2
    series = save_series(np.arange(20 * 24 * 8, dtype=np.uint16).reshape(20, 24, 8))
    slice_ = next(series.iterdir()).rename(series / "1.dcm")
    code, _, stderr = segment(series, "-o", slice_, *overwrite)
    assert code == 2
    the_line(stderr, slice_, "is an input")
    assert sha256(crops / "a.nii.gz") == before


def test_equal_names_from_two_folders(segment, crops, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(crops / "b.nii.gz", other / "a.nii.gz")
    code, stdout, stderr = segment(crops / "a.nii.gz", other / "a.nii.gz", "-o", tmp_path / "out", "--json")
    assert code == 1
    the_line(stderr, other / "a.nii.gz", tmp_path / "out/a.nii.gz", "like an input before it")
    (entry,) = json.loads(stdout)["results"]
    assert entry["input"] == str(crops / "a.nii.gz")


def test_one_file_name_for_several_inputs(segment, crops, tmp_path, never_segments):
    for inputs in ([crops], [crops / "a.nii.gz", crops / "b.nii.gz"], [crops / "a.nii.gz", tmp_path / "absent.nii"]):
        code, _, stderr = segment(*inputs, "-o", tmp_path / "seg.nii.gz")
        assert code == 2
        the_line(stderr, tmp_path / "seg.nii.gz", "2 inputs", "name a folder")
        assert not (tmp_path / "seg.nii.gz").exists()


def test_output_folder_is_a_file(segment, crops, tmp_path, never_segments):
    (tmp_path / "notes.txt").write_text("mine")
    for source in (crops, crops / "a.nii.gz"):
        code, _, stderr = segment(source, "-o", tmp_path / "notes.txt")
        assert code == 2
        assert stderr.count("\n") == 1
        the_line(stderr, tmp_path / "notes.txt", "is a file", "name a folder")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_dicom_segmentation_of_a_nifti(segment, crops, tmp_path, never_segments):
    code, _, stderr = segment(crops / "a.nii.gz", "-o", tmp_path / "a.dcm")
    assert code == 2
    the_line(stderr, tmp_path / "a.dcm", "needs DICOM images")


def test_output_folder_not_writable(segment, crops, tmp_path, monkeypatch, never_segments):
    touch = Path.touch

    def refuse(self, *args, **kwargs):
        if self.parent.name == "out":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        touch(self, *args, **kwargs)

    monkeypatch.setattr(Path, "touch", refuse)
    code, _, stderr = segment(crops / "a.nii.gz", "-o", tmp_path / "out", "--report")
    assert code == 2
    assert stderr.count("\n") == 1
    the_line(stderr, tmp_path / "out/a.nii.gz", "cannot be written in the folder", "Permission denied")


def half_written(monkeypatch, error, name):
    """Writing a file whose name contains `name` stops half-way."""
    write = Path.write_bytes

    def stop(self, content):
        if name not in self.name:
            return write(self, content)
        write(self, content[: len(content) // 2])
        raise error

    monkeypatch.setattr(Path, "write_bytes", stop)


@pytest.mark.parametrize("name", ["a", "a_probabilities"])
def test_full_disk(segment, crops, tmp_path, monkeypatch, name):
    half_written(monkeypatch, OSError(errno.ENOSPC, "No space left on device"), f".{name}.")
    code, stdout, stderr = segment(crops, "-o", tmp_path / "out", "--probabilities", "--json")
    assert code == 1
    # The line names the output, not the hidden file beside it.
    the_line(stderr, f"{tmp_path / 'out'}/{name}.nii.gz: the disk is full")
    assert files_below(tmp_path / "out") == ["b.nii.gz", "b_probabilities.nii.gz"]
    assert [len(json.loads(stdout)[key]) for key in ("results", "failures")] == [1, 1]


def test_full_disk_for_the_report(segment, crops, tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", refuse)
    code, stdout, stderr = segment(crops / "a.nii.gz", "-o", tmp_path / "out", "--report", "--json")
    assert code == 1
    the_line(stderr, tmp_path / "out/report.html", "disk is full")
    # The label map is there, so the manifest must tell.
    manifest = json.loads(stdout)
    assert [len(manifest[key]) for key in ("results", "failures")] == [1, 1]
    assert files_below(tmp_path / "out") == ["a.nii.gz"]


def test_interrupted_while_writing(segment, crops, tmp_path, monkeypatch):
    half_written(monkeypatch, KeyboardInterrupt(), ".b.")
    code, _, stderr = segment(crops, "-o", tmp_path / "out")
    assert code == 130
    assert stderr.splitlines() == ["voxscore: interrupted; the outputs that are there are complete"]
    assert files_below(tmp_path / "out") == ["a.nii.gz"]


def test_defect_keeps_its_traceback_and_leaves_nothing(segment, crops, tmp_path, monkeypatch):
    half_written(monkeypatch, ZeroDivisionError("a defect"), ".a.")
    with pytest.raises(ZeroDivisionError):
        segment(crops, "-o", tmp_path / "out")
    assert files_below(tmp_path / "out") == []


def test_unknown_bundle(run, crops, tmp_path):
    code, stdout, stderr = run("segment", crops, "-o", tmp_path / "out", "--bundle", "livr")
    assert (code, stdout) == (2, "")
    the_line(stderr, "bundle livr", "is not known", "hippocampus_segmentation")
    assert not (tmp_path / "out").exists()


def drop_weights(root):
    (root / "models/model.pt").unlink()


def flip_a_bit(root):
    content = bytearray((root / "models/model.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (root / "models/model.pt").write_bytes(content)


def other_network(root):
    torch.save({"weight": torch.zeros(3)}, root / "models/model.pt")
    change(root, weights_sha256={"models/model.pt": sha256(root / "models/model.pt")})


def no_inference(root):
    (root / "configs/inference.json").unlink()


def change(root, **entries):
    file = root / "configs/metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def text_in(name, text):
    return lambda root: (root / "configs" / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "file", "fault"),
    [
        (drop_weights, "models/model.pt", "weights are missing"),
        (flip_a_bit, "models/model.pt", "SHA-256 differs"),
        (other_network, "models/model.pt", "does not fit the bundle's network"),
        (lambda root: change(root, weights_sha256={}), "configs/metadata.json", "names no SHA-256"),
        (lambda root: change(root, labels={"1": {"name": "x"}}), "configs/metadata.json", "no labels"),
        (text_in("metadata.json", '{"version": '), "configs/metadata.json", "cannot be read as JSON"),
        (text_in("metadata.json", "[]"), "configs/metadata.json", "is not a bundle's metadata"),
        (text_in("inference.json", "{"), "configs/inference.json", "cannot be read as JSON"),
        (no_inference, "configs/inference.json", "is missing"),
    ],
)
def test_damaged_bundle(run, crops, tmp_path, tiny_bundle, damage, file, fault):
    root = tmp_path / "damaged"
    shutil.copytree(tiny_bundle, root)
    damage(root)
    code, stdout, stderr = run("segment", crops, "-o", tmp_path / "out", "--bundle", root, "--device", "cpu")
    assert (code, stdout) == (2, "")
    assert stderr.count("\n") == 1
    the_line(stderr, root / file, fault)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("device", "fault"),
    [
        ("cuda", "0 CUDA devices found"),
        ("cuda:3", "0 CUDA devices found"),
        ("gpu", "is not known"),
        ("mps", "is not supported"),
    ],
)
def test_device(run, crops, tmp_path, tiny_bundle, monkeypatch, device, fault):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    code, _, stderr = run("segment", crops, "-o", tmp_path / "out", "--bundle", tiny_bundle, "--device", device)
    assert code == 2
    the_line(stderr, f"device {device}", fault)
    assert not (tmp_path / "out").exists()


def test_side(segment, crops, tmp_path):
    code, _, stderr = segment(crops, "-o", tmp_path / "out", "--side", "both")
    assert code == 2
    the_line(stderr, "side both", "choose left or right")


def test_volume_beyond_the_gpu(segment, crops, tmp_path, monkeypatch):
    infer, calls = FittedWindowInferer.__call__, []

    def fail_once(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return infer(self, *args, **kwargs)

    monkeypatch.setattr(FittedWindowInferer, "__call__", fail_once)
    code, _, stderr = segment(crops, "-o", tmp_path / "out")
    assert code == 1
    the_line(stderr, crops / "a.nii.gz", "memory", "--device cpu")
    assert files_below(tmp_path / "out") == ["b.nii.gz"]


@pytest.mark.skipif(os.name != "posix", reason="file names that are not text exist on POSIX alone")
def test_name_that_is_not_utf8(segment, crops, tmp_path):
    strange = crops / os.fsdecode(b"gr\xf6\xdfe.nii.gz")
    (crops / "a.nii.gz").rename(strange)
    code, stdout, _ = segment(strange, "-o", tmp_path / "out", "--report", "--json")
    assert code == 0
    assert json.loads(stdout)["results"][0]["input"] == str(strange)
