"""`voxscore synthesize --audit`: what may be a copy is not released."""

import json
from functools import partial

import nibabel as nib
import numpy as np
import pytest

import voxscore
from voxscore.evaluation import train_encoder


@pytest.fixture
def synthesize(run, tiny_synthesis, monkeypatch):
    monkeypatch.setattr(voxscore.audit, "train_encoder", partial(train_encoder, steps=10))
    return lambda *arguments: run("synthesize", "--bundle", tiny_synthesis, "--device", "cpu", *arguments)


@pytest.fixture
def real(tmp_path):
    """real(name, arrays): a folder of volumes as the tiny bundle makes them, 12 x 20 x 14."""

    def real(name, arrays):
        (tmp_path / name).mkdir()
        for k, array in enumerate(arrays):
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / name / f"{name}_{k:02d}.nii.gz")
        return tmp_path / name

    return real


def noise(n, seed):
    return np.random.default_rng(seed).normal(size=(n, 12, 20, 14)).astype(np.float32)


def test_copies_are_withheld_for_good(synthesize, real, tmp_path):
    """A training set in which the bundle's own volume 1 lies: as if the network had learned it by heart."""
    assert synthesize("--number", 2, "--output", tmp_path / "plain")[0] == 0
    known = np.asarray(nib.load(tmp_path / "plain/imagesTr/synthetic_0001.nii.gz").dataobj)
    options = ["--audit", "--training", real("training", [*noise(11, 0), known])]
    options += ["--held-out", real("held_out", noise(20, 1)), "--output", tmp_path / "set", "--dicom"]
    code, stdout, _ = synthesize("--number", 3, *options)
    assert code == 1
    assert "audit: FAIL" in stdout
    manifest = json.loads((tmp_path / "set/manifest.json").read_text())
    withheld = [entry["name"] for entry in manifest["withheld"]]
    assert "synthetic_0001" in withheld
    left = sorted({f"synthetic_000{k}" for k in range(3)} - set(withheld))
    assert [entry["name"] for entry in manifest["volumes"]] == left
    files = {path.name.split(".")[0].removesuffix("_seg") for path in (tmp_path / "set").rglob("synthetic_*")}
    assert sorted(files) == left
    audit = json.loads((tmp_path / "set/audit.json").read_text())
    assert audit["refused"] == withheld
    if left:
        dataset = json.loads((tmp_path / "set/dataset.json").read_text())
        assert dataset["numTraining"] == len(left)
    # The same command makes none of them again.
    synthesize("--number", 3, *options)
    assert not (tmp_path / "set/imagesTr/synthetic_0001.nii.gz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--audit"], "--audit: lacks the real volumes; give --training and --held-out"),
        (["--audit", "--training", "."], "--audit: lacks the real volumes"),
        (["--training", "."], "--training and --held-out: are for the audit; add --audit"),
        (["--audit", "--training", "nowhere", "--held-out", "nowhere"], "nowhere: there is no such file or folder"),
    ],
)
def test_bad_options(synthesize, tmp_path, arguments, message):
    code, stdout, stderr = synthesize("--output", tmp_path / "set", *arguments)
    assert (code, stdout) == (2, "")
    assert message in stderr
    assert not (tmp_path / "set").exists()
