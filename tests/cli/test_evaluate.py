"""`voxscore evaluate`: the numbers a user reads are those of the maps, and nothing is scored by mistake."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest

SPACING = (2.0, 1.0, 1.0)


def save(array, path, affine=None):
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array.astype(np.uint8), np.diag([*SPACING, 1.0]) if affine is None else affine), path)


def box(start, stop, value=1):
    array = np.zeros((16, 16, 16))
    array[start:stop, 4:12, 4:12] = value
    return array


@pytest.fixture
def folders(tmp_path):
    """Two cases: one perfect, one shifted by one voxel of 2 mm; both with label 2 in the reference alone."""
    small = np.zeros((16, 16, 16))
    small[12:14, 12:14, 12:14] = 2
    for case, shift in {"case_a": 0, "case_b": 1}.items():
        save(box(4 + shift, 8 + shift), tmp_path / "predictions" / f"{case}.nii.gz")
        save(box(4, 8) + small, tmp_path / "references" / f"{case}.nii.gz")
    return tmp_path / "predictions", tmp_path / "references"


def strict(text):
    """JSON as the standard has it: without NaN and Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_scores_in_closed_form(run, folders, tmp_path):
    out = tmp_path / "scores"
    code, stdout, stderr = run("evaluate", *folders, "--csv", out / "a.csv", "--json", out / "a.json")
    assert (code, stderr) == (0, "")
    with open(out / "a.csv", newline="") as file:
        rows = {(row["case"], row["label"]): row for row in csv.DictReader(file)}
    assert len(rows) == 4
    same, shifted, missed = rows["case_a", "1"], rows["case_b", "1"], rows["case_b", "2"]
    assert [float(same[k]) for k in ("dice", "hd95_mm", "surface_dice", "volume_error_ml")] == [1, 0, 1, 0]
    # Four voxels wide and moved by one of 2 mm.
    assert float(shifted["dice"]) == pytest.approx(3 / 4)
    assert float(shifted["hd95_mm"]) == 2
    assert 0 < float(shifted["surface_dice"]) < 1
    assert float(shifted["volume_ml"]) == pytest.approx(4 * 8 * 8 * 2 / 1000)
    assert [float(missed[k]) for k in ("dice", "hd95_mm", "surface_dice")] == [0, np.inf, 0]
    assert float(missed["volume_error_ml"]) == pytest.approx(-8 * 2 / 1000)
    content = strict((out / "a.json").read_text())
    by_label = {mean["label"]: mean for mean in content["means"]}
    assert by_label[1]["dice"]["mean"] == pytest.approx(7 / 8)
    assert by_label[2]["hd95_mm"] == {**by_label[2]["hd95_mm"], "mean": None, "n": 0, "infinite": 2}
    assert content["cases"][3]["hd95_mm"] is None
    # Each case of the table stands on one line, whatever the width.
    (line,) = [line for line in stdout.splitlines() if line.split()[:2] == ["case_b", "1"]]
    assert line.split()[2:4] == ["0.750", "2.000"]


def test_tolerance_and_names(run, folders, tmp_path):
    code, stdout, _ = run(
        "evaluate",
        *folders,
        "--tolerance",
        "2.5",
        "--bundle",
        "hippocampus_segmentation",
        "--json",
        tmp_path / "a.json",
    )
    assert code == 0
    assert "surface Dice 2.5 mm" in stdout
    content = strict((tmp_path / "a.json").read_text())
    # A shift by 2 mm is within the tolerance.
    assert content["cases"][2]["surface_dice"] == 1
    assert [row["name"] for row in content["cases"][:2]] == ["anterior hippocampus", "posterior hippocampus"]


def test_two_files_need_not_share_a_name(run, tmp_path):
    save(box(4, 8), tmp_path / "[b] seg.nii")
    save(box(4, 8), tmp_path / "truth.nii")
    code, stdout, _ = run("evaluate", tmp_path / "[b] seg.nii", tmp_path / "truth.nii")
    assert code == 0
    assert "[b] seg" in stdout


def test_existing_output_is_kept(run, folders, tmp_path, monkeypatch):
    monkeypatch.setattr("voxscore.evaluation.overlap.score_labels", None)
    for option in ("--csv", "--json"):
        out = tmp_path / "scores.txt"
        out.write_text("precious")
        code, _, stderr = run("evaluate", *folders, option, out)
        assert code == 2
        assert "scores.txt: exists already" in stderr
        assert "--overwrite" in stderr
        assert out.read_text() == "precious"


def drop_prediction(predictions, references):
    (predictions / "case_a.nii.gz").unlink()


def other_names(predictions, references):
    for path in predictions.iterdir():
        path.rename(path.with_name("x" + path.name))


def other_grid(predictions, references):
    save(box(4, 8), predictions / "case_a.nii.gz", affine=np.eye(4))


def same_base_name(predictions, references):
    save(box(4, 8), predictions / "case_a.nii")


def fractions(predictions, references):
    nib.save(nib.Nifti1Image(np.full((16, 16, 16), 0.5, np.float32), np.eye(4)), predictions / "case_a.nii.gz")


def no_labels(predictions, references):
    for folder in (predictions, references):
        for path in folder.iterdir():
            save(np.zeros((16, 16, 16)), path)


def truncated(predictions, references):
    path = references / "case_a.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (drop_prediction, "lacks 1 of 2 references, first case_a"),
        (other_names, "shares no file name"),
        (other_grid, "does not lie on the grid"),
        (same_base_name, "has the base name of case_a.nii"),
        (fractions, "not whole numbers"),
        (no_labels, "hold no label at all"),
        (truncated, "is cut short"),
    ],
)
def test_what_cannot_be_scored(run, folders, tmp_path, damage, fault):
    damage(*folders)
    code, stdout, stderr = run("evaluate", *folders, "--csv", tmp_path / "a.csv")
    assert (code, stdout) == (2, "")
    assert stderr.count("\n") == 1
    assert fault in stderr
    assert not (tmp_path / "a.csv").exists()


def test_missing_folder_and_bad_tolerance(run, folders, tmp_path):
    code, _, stderr = run("evaluate", tmp_path / "absent", folders[1])
    assert code == 2
    assert "absent: there is no such file or folder" in stderr
    code, _, stderr = run("evaluate", *folders, "--tolerance", "-1")
    assert code == 2
    assert "tolerance" in stderr
