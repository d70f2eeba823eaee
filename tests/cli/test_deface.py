"""`voxscore deface` as a user meets it."""

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from deface import on_spacing


@pytest.fixture(scope="module")
def head():
    return on_spacing((4.0, 4.0, 4.0))


@pytest.fixture
def folder(tmp_path, head):
    """heads/a.nii.gz, int16 with a scaling and a name in the header; brain.nii.gz; noise.nii.gz without a head."""
    (tmp_path / "heads").mkdir()
    image = nib.Nifti1Image(head.image.astype(np.int16), head.affine)
    image.header["descrip"] = b"DOE^JANE"
    image.header.set_slope_inter(2, -10)
    nib.save(image, tmp_path / "heads" / "a.nii.gz")
    nib.save(nib.Nifti1Image(head.brain.astype(np.uint8), head.affine), tmp_path / "brain.nii.gz")
    noise = np.random.default_rng(0).normal(100, 10, (20, 20, 20)).astype(np.float32)
    nib.save(nib.Nifti1Image(noise, np.eye(4)), tmp_path / "noise.nii.gz")
    return tmp_path


def test_one_head(run, folder, head):
    code, out, _ = run(
        *("deface", folder / "heads" / "a.nii.gz", "--output", folder / "b.nii", "--json"),
        *("--brain", folder / "brain.nii.gz"),
    )
    assert code == 0
    (entry,) = json.loads(out)["results"]
    assert entry["brain_removed"] == 0
    old, new = nib.load(folder / "heads" / "a.nii.gz"), nib.load(folder / "b.nii")
    assert b"DOE" not in (folder / "b.nii").read_bytes()
    assert new.get_data_dtype() == np.int16
    assert np.array_equal(new.affine, old.affine)
    changed = new.get_fdata() != old.get_fdata()
    assert not changed[head.brain].any()
    gone = abs(new.get_fdata() - entry["fill"]) <= new.dataobj.slope
    assert gone[head.face].mean() > 0.99
    assert changed.mean() == pytest.approx(entry["changed"], abs=0.2)


def test_a_folder_with_what_is_no_head(run, folder):
    code, out, err = run("deface", folder / "heads", folder / "noise.nii.gz", "--output", folder / "out", "--json")
    assert code == 1
    manifest = json.loads(out)
    assert [Path(e["path"]).name for e in manifest["results"]] == ["a.nii.gz"]
    assert manifest["results"][0]["brain"] == "estimated"
    assert "cannot be found" in manifest["failures"][0]["error"]
    assert "look at every result" in err
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["a.nii.gz"]


def test_another_format_and_a_second_time(run, folder):
    arguments = ("--brain", folder / "brain.nii.gz")
    assert run("deface", folder / "heads" / "a.nii.gz", "-o", folder / "a.mha", *arguments)[::2] == (0, "")
    assert b"DOE" not in (folder / "a.mha").read_bytes()
    code, _, err = run("deface", folder / "a.mha", "-o", folder / "again.nrrd", *arguments)
    assert code == 2
    assert "an image without a face needs no removal" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["noise.nii.gz", "-o", "x.nii.gz", "--brain", "brain.nii.gz"], "grid of the image"),
        (["noise.nii.gz", "heads", "-o", "x.nii.gz"], "one file"),
        (["noise.nii.gz", "-o", "brain.txt"], "not of a kind"),
        (["heads/a.nii.gz", "-o", "heads", "--brain", "brain.nii.gz"], "is an input"),
        (["heads/a.nii.gz", "-o", "noise.nii.gz", "--brain", "brain.nii.gz"], "exists already"),
        (["heads/a.nii.gz", "-o", "x.nii.gz", "--margin", "-3"], "cut into the brain"),
        (["absent.nii.gz", "-o", "x.nii.gz"], "no such file"),
    ],
)
def test_bad_input_writes_nothing(run, folder, arguments, message, monkeypatch):
    (folder / "brain.txt").touch()
    monkeypatch.chdir(folder)
    before = sorted(p.name for p in folder.rglob("*"))
    code, _, err = run("deface", *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(p.name for p in folder.rglob("*")) == before
