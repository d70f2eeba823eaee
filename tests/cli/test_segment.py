"""What `voxscore segment` promises about its outputs."""

import base64
import io
import json
import os
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from PIL import Image
from pydicom import dcmread

from voxscore.networks import ScoreUNet
from voxscore.volumes import read_label_map, read_volume, sha256, write_volume

SHAPE = (24, 28, 22)


def blob(points):
    """A smooth bright body in a smooth background, at points (..., 3) in mm: the same at any sampling."""
    head = np.exp(-(((points - [11, 16, 10]) / [5, 8, 5]) ** 2).sum(-1))
    return 100 + 60 * head + 8 * np.sin(points @ [0.31, 0.23, 0.17])


def sampled(shape, affine):
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return blob(grid @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)


def stored_as(image, axes):
    """The same physical image with its voxels stored in another order."""
    turn = ornt_transform(nib.io_orientation(image.affine), axcodes2ornt(axes))
    array = apply_orientation(np.asarray(image.dataobj), turn)
    return nib.Nifti1Image(array, image.affine @ inv_ornt_aff(turn, image.shape))


def in_ras(path):
    return np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)


def files_in(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_geometry_is_the_inputs_bit_for_bit(segment, tmp_path, affine):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    nib.save(nib.Nifti1Image(sampled((20, 18, 7), np.diag([1, 1, 3, 1])), affine), folder / "a.nii")
    like = read_volume(folder / "a.nii")
    for name in ("b.nii.gz", "c.nrrd", "d.mha"):
        write_volume(like.array, like, folder / name)
    assert segment(folder, "-o", out, "--probabilities") == (0, "", "")
    assert len(files_in(out)) == 8
    for source in folder.iterdir():
        image, labels = read_volume(source), read_label_map(out / source.name)
        assert np.array_equal(labels.affine, image.affine)
        assert labels.array.shape == image.array.shape
        assert type(labels.header) is type(image.header)
    before, after = nib.load(folder / "a.nii").header, nib.load(out / "a.nii").header
    for field in ("qform_code", "sform_code", "pixdim", "quatern_b", "qoffset_x", "srow_x", "xyzt_units"):
        assert np.array_equal(before[field], after[field])
    probabilities = nib.load(out / "a_probabilities.nii")
    assert np.array_equal(probabilities.affine, nib.load(folder / "a.nii").affine)


def test_stored_orientation_does_not_matter(segment, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    image = nib.Nifti1Image(sampled(SHAPE, np.eye(4)), np.eye(4))
    for axes in ("RAS", "LPS", "SRA", "PIL"):
        nib.save(stored_as(image, axes), folder / f"{axes}.nii")
    assert segment(folder, "-o", out)[0] == 0
    expected = in_ras(out / "RAS.nii")
    assert len(np.unique(expected)) == 3
    for axes in ("LPS", "SRA", "PIL"):
        assert nib.aff2axcodes(nib.load(out / f"{axes}.nii").affine) == tuple(axes)
        assert (in_ras(out / f"{axes}.nii") == expected).mean() > 0.999


def test_right_is_left_mirrored(segment, tmp_path):
    left = nib.Nifti1Image(sampled(SHAPE, np.eye(4)), np.eye(4))
    # The same voxels run the other way through the patient.
    right = nib.Nifti1Image(np.asarray(left.dataobj)[::-1], np.eye(4))
    nib.save(left, tmp_path / "left.nii")
    nib.save(right, tmp_path / "right.nii")
    for name, side in {"l": "left", "r": "right"}.items():
        source = "left.nii" if side == "left" else "right.nii"
        assert segment(tmp_path / source, "-o", tmp_path / f"{name}.nii", "--side", side)[0] == 0
    mirrored = in_ras(tmp_path / "r.nii")[::-1]
    assert (mirrored == in_ras(tmp_path / "l.nii")).mean() > 0.999
    assert segment(tmp_path / "right.nii", "-o", tmp_path / "wrong.nii", "--side", "left")[0] == 0
    assert (in_ras(tmp_path / "wrong.nii")[::-1] != in_ras(tmp_path / "l.nii")).any()


def test_probabilities_agree_with_the_labels(segment, tmp_path):
    # Not 1 mm, so that the probabilities have been resampled; not RAS, so that they have been turned.
    affine = np.diag([-1.5, -0.8, 2, 1])
    nib.save(nib.Nifti1Image(sampled((16, 30, 12), np.diag([1.5, 0.8, 2, 1])), affine), tmp_path / "a.nii")
    assert segment(tmp_path / "a.nii", "-o", tmp_path / "seg.nrrd", "--probabilities")[0] == 0
    nii = tmp_path / "seg2.nii.gz"
    assert segment(tmp_path / "a.nii", "-o", nii, "--probabilities")[0] == 0
    probabilities = np.asarray(nib.load(tmp_path / "seg2_probabilities.nii.gz").dataobj)
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (16, 30, 12, 3)
    assert probabilities.min() >= 0
    # Interpolating rows that sum to one in float32, twice.
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    assert np.array_equal(probabilities.argmax(-1), read_label_map(nii).array)
    assert np.array_equal(read_label_map(tmp_path / "seg.nrrd").array, read_label_map(nii).array)


@pytest.fixture
def by_brightness(monkeypatch):
    """The network looks at each voxel alone: what is bright is label 1, what is dark label 2."""

    def forward(self, x, t=None, cond=None):
        return 4 * torch.cat([torch.zeros_like(x), x - 1, -x - 1], dim=1)

    monkeypatch.setattr(ScoreUNet, "forward", forward)


def expected_by_brightness(array):
    low, high = np.percentile(array, [0.5, 99.5])
    x = np.clip((array - low) / (high - low), 0, 1)
    x = (x - x.mean()) / x.std()
    return np.where(x > 1, 1, np.where(x < -1, 2, 0))


@pytest.mark.parametrize("spacing", [(1, 1, 1), (2, 2, 2), (0.7, 1.1, 2.5)])
def test_any_spacing_comes_back_on_its_own_grid(segment, by_brightness, tmp_path, spacing):
    affine = np.diag([*spacing, 1.0])
    array = sampled(tuple(int(n / s) for n, s in zip(SHAPE, spacing, strict=True)), affine)
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "a.nii")
    assert segment(tmp_path / "a.nii", "-o", tmp_path / "seg.nii")[0] == 0
    expected = expected_by_brightness(array)
    assert all((expected == value).mean() > 0.05 for value in (0, 1, 2))
    # Interpolation to 1 mm and back moves a boundary by a fraction of a voxel.
    assert (in_ras(tmp_path / "seg.nii") == expected).mean() > (0.999 if spacing == (1, 1, 1) else 0.95)


def test_probabilities_are_interpolated_not_copied(segment, by_brightness, tmp_path):
    affine = np.diag([0.5, 0.5, 0.5, 1])
    nib.save(nib.Nifti1Image(sampled((40, 44, 36), affine), affine), tmp_path / "a.nii")
    assert segment(tmp_path / "a.nii", "-o", tmp_path / "seg.nii", "--probabilities")[0] == 0
    probabilities = np.asarray(nib.load(tmp_path / "seg_probabilities.nii").dataobj)
    # Copied from the nearest voxel of 1 mm, every other difference would be nil.
    assert (np.diff(probabilities, axis=0) == 0).mean() < 0.1


def test_larger_than_the_window(segment, by_brightness, tmp_path):
    array = sampled((70, 90, 70), np.eye(4))
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii")
    code, _, stderr = segment(tmp_path / "a.nii", "-o", tmp_path / "seg.nii")
    assert code == 0
    assert "labels outside such a crop mean nothing" in stderr
    assert (in_ras(tmp_path / "seg.nii") == expected_by_brightness(array)).mean() > 0.999


def test_dicom_gives_a_segmentation_that_refers_to_it(segment, tmp_path, save_series):
    array = sampled((20, 24, 12), np.eye(4)).astype(np.uint16)
    folder = save_series(array, affine=np.diag([1.0, 1.0, 1.5, 1.0]))
    sources = [dcmread(file) for file in folder.iterdir()]
    code, stdout, stderr = segment(folder, "-o", tmp_path / "out", "--nifti", "--json")
    assert (code, stderr) == (0, "")
    assert files_in(tmp_path / "out") == ["series.dcm", "series.nii.gz"]
    seg = dcmread(tmp_path / "out/series.dcm")
    assert seg.Modality == "SEG"
    assert seg.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    assert seg.StudyInstanceUID == sources[0].StudyInstanceUID
    (referenced,) = seg.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == sources[0].SeriesInstanceUID
    uids = {source.SOPInstanceUID for source in sources}
    assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} == uids
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == [
        "anterior hippocampus",
        "posterior hippocampus",
    ]
    (algorithm,) = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("voxscore tiny", "0.1.0")
    # The SEG and the NIfTI file say the same: count per segment.
    labels = read_label_map(tmp_path / "out/series.nii.gz").array
    assert labels.shape == array.shape
    frames = seg.pixel_array
    numbers = [f.SegmentIdentificationSequence[0].ReferencedSegmentNumber for f in seg.PerFrameFunctionalGroupsSequence]
    for value in (1, 2):
        counted = sum(int(frame.sum()) for frame, n in zip(frames, numbers, strict=True) if n == value)
        assert counted == (labels == value).sum() > 0
    (entry,) = json.loads(stdout)["results"]
    assert entry["input"] == str(folder)


def test_one_of_several_series_is_chosen(segment, tmp_path, save_series):
    array = sampled((20, 24, 8), np.eye(4)).astype(np.uint16)
    folder = save_series(array, folder="study/one", number=3).parent
    save_series(array, folder="study/two", number=4)
    code, _, stderr = segment(folder, "-o", tmp_path / "out")
    assert code == 2
    assert all(text in stderr for text in (str(folder), "number 3", "number 4", "--series"))
    assert segment(folder, "-o", tmp_path / "out", "--series", "4")[0] == 0
    assert files_in(tmp_path / "out") == ["study_series4.dcm"]


def test_labels_carry_names(segment, crops, tmp_path):
    assert segment(crops / "a.nii.gz", "-o", tmp_path / "a.nii")[0] == 0
    assert segment(crops / "a.nii.gz", "-o", tmp_path / "a.nrrd")[0] == 0
    for name in ("a.nii", "a.nrrd"):
        content = (tmp_path / name).read_bytes()
        assert b"anterior hippocampus" in content
        assert b"posterior hippocampus" in content


def test_order_of_a_batch_does_not_matter(segment, crops, tmp_path):
    a, b = crops / "a.nii.gz", crops / "b.nii.gz"
    assert segment(a, b, "-o", tmp_path / "one")[0] == 0
    assert segment(b, a, "-o", tmp_path / "two")[0] == 0
    for name in ("a.nii.gz", "b.nii.gz"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (tmp_path / "one/a.nii.gz").read_bytes() != (tmp_path / "one/b.nii.gz").read_bytes()


def test_manifest_is_true(segment, crops, tmp_path, tiny_bundle):
    code, stdout, _ = segment(crops, "-o", tmp_path / "out", "--probabilities", "--report", "--json", "--side", "right")
    assert code == 0
    manifest = json.loads(stdout)
    assert manifest["bundle"]["name"] == "tiny"
    assert manifest["bundle"]["version"] == "0.1.0"
    assert manifest["bundle"]["weights_sha256"] == {"models/model.pt": sha256(tiny_bundle / "models/model.pt")}
    assert (manifest["device"], manifest["side"], manifest["failures"]) == ("cpu", "right", [])
    assert [entry["input"] for entry in manifest["results"]] == [str(crops / "a.nii.gz"), str(crops / "b.nii.gz")]
    written = {"report.html"}
    assert manifest["report"]["sha256"] == sha256(tmp_path / "out/report.html")
    for entry in manifest["results"]:
        assert entry["input_sha256"] == sha256(entry["input"])
        assert entry["seconds"] > 0
        labels = read_label_map(entry["outputs"][0]["path"])
        counts = [(labels.array == value).sum() / 1000 for value in (1, 2)]
        assert list(entry["volumes_ml"].values()) == pytest.approx(counts)
        for file in entry["outputs"]:
            assert file["sha256"] == sha256(file["path"])
            written.add(os.path.basename(file["path"]))
    assert written == set(files_in(tmp_path / "out"))


def test_report_stands_alone(segment, crops, tmp_path):
    strange = crops / "Zoë & <b> 1.nii.gz"
    (crops / "b.nii.gz").rename(strange)
    assert segment(crops, "-o", tmp_path / "out", "--report") == (0, "", "")
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|iframe)|@import|url\(|https?:", page)
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 2
    for source in sources:
        kind, data = source.split(",")
        assert kind == "data:image/png;base64"
        assert np.ptp(np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))) > 0
    assert "Zoë &amp; &lt;b&gt; 1" in page
    assert "<b>" not in page
    assert sha256(tmp_path / "out/a.nii.gz") in page
    assert "anterior hippocampus" in page


def test_report_beside_a_single_output(segment, crops, tmp_path):
    assert segment(crops / "a.nii.gz", "-o", tmp_path / "out/seg.nii.gz", "--report")[0] == 0
    assert files_in(tmp_path / "out") == ["seg.html", "seg.nii.gz"]


def test_the_same_input_twice_is_done_once(segment, crops, tmp_path):
    a = crops / "a.nii.gz"
    code, stdout, stderr = segment(a, crops / "../crops/a.nii.gz", crops, "-o", tmp_path / "out", "--json")
    assert (code, stderr) == (0, "")
    assert [os.path.basename(entry["input"]) for entry in json.loads(stdout)["results"]] == ["a.nii.gz", "b.nii.gz"]


def test_existing_output_folder_with_a_dot_is_a_folder(segment, crops, tmp_path):
    (tmp_path / "out.nii").mkdir()
    assert segment(crops / "a.nii.gz", "-o", tmp_path / "out.nii")[0] == 0
    assert files_in(tmp_path / "out.nii") == ["a.nii.gz"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_terminal_shows_progress_and_a_table(segment, crops, tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    (crops / "b.nii.gz").rename(crops / "[b] :cat:.nii.gz")
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("COLUMNS", "300")
    assert segment(crops, "-o", tmp_path / "out")[0] == 0
    assert "segmenting" in err.getvalue()
    assert "anterior hippocampus [mL]" in out.getvalue()
    # Brackets and colons in a file's name are neither markup nor emoji.
    assert "[b] :cat:.nii.gz" in out.getvalue()


def test_real_bundle_end_to_end(tmp_path, dataset):
    """In a process of its own, as installed: nothing but the results, whatever the libraries would like to say."""
    source = tmp_path / "größe 1.nii.gz"
    source.write_bytes((dataset / "images/case_00.nii.gz").read_bytes())
    arguments = ["segment", source, "-o", tmp_path / "out put", "--report", "--device", "cpu"]
    done = subprocess.run([sys.executable, "-m", "voxscore", *map(str, arguments)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert files_in(tmp_path / "out put") == ["größe 1.nii.gz", "report.html"]
    labels = nib.load(tmp_path / "out put/größe 1.nii.gz")
    assert labels.shape == (20, 24, 18)
    assert np.array_equal(labels.affine, nib.load(source).affine)
