"""Folds are nnU-Net's; data lists are complete or refused; fingerprints change with the data."""

import json
import shutil

import numpy as np
import pytest

from voxscore.errors import UserError
from voxscore.training import datalist, fingerprint, kfold, split, subject_volumes


def test_folds_are_scikit_learns():
    model_selection = pytest.importorskip("sklearn.model_selection")
    for n in (10, 208, 260):
        reference = model_selection.KFold(5, shuffle=True, random_state=12345).split(np.arange(n))
        assert [held_out.tolist() for _, held_out in reference] == kfold(n)


def test_folds_partition():
    assert sorted(i for fold in kfold(23, 4) for i in fold) == list(range(23))


def test_split_keeps_apart(dataset):
    cases = datalist(dataset)
    held_out = []
    for fold in range(5):
        train, val = split(cases, fold)
        assert not {c["name"] for c in train} & {c["name"] for c in val}
        assert len(train) + len(val) == len(cases)
        held_out += [c["name"] for c in val]
    assert sorted(held_out) == [c["name"] for c in cases]
    assert split(cases, None)[0] == cases


def test_decathlon_layout_gives_the_same_cases(dataset, tmp_path):
    for folder, kind in (("imagesTr", "images"), ("labelsTr", "labels")):
        shutil.copytree(dataset / kind, tmp_path / folder)
    names = sorted(p.name for p in (dataset / "images").iterdir())
    entries = [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in reversed(names)]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries}))
    assert [c["name"] for c in datalist(tmp_path)] == [c["name"] for c in datalist(dataset)]
    assert fingerprint(datalist(tmp_path)) == fingerprint(datalist(dataset))


def test_fingerprint_sees_one_changed_byte(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "copy")
    before = fingerprint(datalist(tmp_path / "copy"))
    file = tmp_path / "copy" / "labels" / "case_03.nii.gz"
    file.write_bytes(file.read_bytes() + b"\0")
    after = fingerprint(datalist(tmp_path / "copy"))
    assert before["sha256"] != after["sha256"]
    assert before["shape_min_median_max"][1] == [20, 24, 18]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: shutil.rmtree(root), "is not a folder"),
        (lambda root: shutil.rmtree(root / "labels"), "has neither images/ and labels/ nor a dataset.json"),
        (lambda root: (root / "labels" / "case_04.nii.gz").unlink(), r"case_04.nii.gz: is missing"),
        (lambda root: [p.unlink() for p in (root / "images").iterdir()], "holds no labelled volume"),
        (lambda root: (root / "dataset.json").write_text("{"), "is not a Decathlon dataset.json"),
        (lambda root: (root / "dataset.json").write_text('{"training": [1]}'), "is not a Decathlon dataset.json"),
    ],
)
def test_bad_data_sets_teach(dataset, tmp_path, spoil, says):
    root = tmp_path / "copy"
    shutil.copytree(dataset, root)
    spoil(root)
    with pytest.raises(UserError, match=says):
        datalist(root)


def test_bad_folds_teach(dataset):
    with pytest.raises(UserError, match="choose 0 to 4"):
        split(datalist(dataset), 5)
    with pytest.raises(UserError, match="needs 5 cases"):
        split(datalist(dataset)[:3], 0)


def subjects(dataset, root):
    for subject, names in {"p1": ("T1", "T2"), "p2": ("T1", "mask")}.items():
        (root / "brains" / subject).mkdir(parents=True)
        for name in names:
            shutil.copy(dataset / "images/case_00.nii.gz", root / "brains" / subject / f"{name}.nii.gz")
    return root


def test_a_subject_is_trained_on_or_kept_out(dataset, tmp_path):
    train, validation = subject_volumes(subjects(dataset, tmp_path), ["brains/*/T*.nii.gz"], ["p2"])
    assert [case["name"] for case in train] == ["p1/T1", "p1/T2"]
    assert [case["name"] for case in validation] == ["p2/T1"]
    assert fingerprint(train)["cases"] == 2
    assert fingerprint(train)["sha256"] != fingerprint(validation)["sha256"]


@pytest.mark.parametrize(("pattern", "held_out"), [("brains/*/T*.nii.gz", "p3"), ("brains/p2/*", "p2"), ("no/*", "p2")])
def test_there_must_be_volumes_on_both_sides(dataset, tmp_path, pattern, held_out):
    with pytest.raises(UserError, match="volumes to train on"):
        subject_volumes(subjects(dataset, tmp_path), [pattern], [held_out])
