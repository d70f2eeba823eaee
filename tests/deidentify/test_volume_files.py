"""Folders of NIfTI volumes and BIDS data sets: renamed, cleaned, still belonging together, and verified."""

import gzip
import json

import nibabel as nib
import numpy as np
import pytest
from deidentify_support import KEY

from voxscore.deidentify import Settings, deidentify_tree, verify

VOXELS = np.arange(24, dtype=np.int16).reshape(2, 3, 4)


def save(path, note=b"DOE^JANE 20190112"):
    image = nib.Nifti1Image(VOXELS, np.diag([-1.0, 1.0, 2.0, 1.0]))
    image.header["descrip"] = note
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"seen by Dr. Roe"))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "key").write_bytes(KEY)
    return tmp_path


def run(place, source="in", output="out", workers=1, **settings):
    return deidentify_tree(place / source, place / output, Settings(place / "key", **settings), workers)


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name[0] != ".")


def everything(folder):
    contents = [p.read_bytes() for p in folder.rglob("*") if p.is_file()]
    return b"".join(gzip.decompress(c) if c[:2] == b"\x1f\x8b" else c for c in contents) + str(files(folder)).encode()


@pytest.fixture
def bids(place):
    """Two subjects, one with a session, a participants table and a README."""
    root = place / "in"
    for name in ("sub-doe01/anat/sub-doe01_T1w", "sub-roe02/ses-20190112/anat/sub-roe02_ses-20190112_run-1_T1w"):
        save(root / f"{name}.nii.gz")
        (root / f"{name}.json").write_text(json.dumps({"EchoTime": 0.003, "PatientName": "DOE^JANE"}))
    (root / "dataset_description.json").write_text('{"Name": "Doe study", "BIDSVersion": "1.9.0"}')
    table = "participant_id\tage\tsex\tname\nsub-doe01\t93\tF\tJane Doe\nsub-roe02\t45\tM\tRoe\n"
    (root / "participants.tsv").write_text(table)
    return place


def test_a_bids_data_set_stays_one(bids):
    summary = run(bids)
    assert (summary.done, summary.quarantined) == (6, {})
    for secret in (b"oe01", b"oe02", b"Doe", b"DOE", b"Roe", b"JANE", b"2019", b"93\t"):
        assert secret not in everything(bids / "out"), secret
    rows = [line.split("\t") for line in (bids / "out/participants.tsv").read_text().splitlines()]
    assert rows[0] == ["participant_id", "age", "sex"]
    assert sorted(row[1] for row in rows[1:]) == ["45", "89+"]
    images = [bids / "out" / name for name in files(bids / "out") if name.endswith(".nii.gz")]
    assert {path.relative_to(bids / "out").parts[0] for path in images} == {row[0] for row in rows[1:]}
    for path in images:
        assert path.with_name(path.name.replace(".nii.gz", ".json")).is_file()
        np.testing.assert_array_equal(np.asanyarray(nib.load(path).dataobj), VOXELS)
    description = json.loads((bids / "out/dataset_description.json").read_text())
    assert description == {"Name": "de-identified data set", "BIDSVersion": "1.9.0"}
    assert verify(bids / "out", bids / "in") == []


def test_the_same_key_and_more_workers_give_the_same_and_strict_codes_are_random(bids):
    run(bids)
    run(bids, output="again", workers=2)
    assert files(bids / "again") == files(bids / "out")
    run(bids, output="strict", profile="strict", crosswalk=bids / "codes.csv")
    assert len(files(bids / "strict")) == len(files(bids / "out"))
    assert not {f for f in files(bids / "strict") if "sub-" in f} & set(files(bids / "out"))
    assert (bids / "strict/participants.tsv").read_text().startswith("participant_id\nsub-")
    assert "patient,doe01," in (bids / "codes.csv").read_text()


def test_what_bids_does_not_define_is_set_aside(bids):
    (bids / "in/README").write_text("Jane Doe was here")
    save(bids / "in/sub-doe01/anat/jane.nii.gz")
    summary = run(bids)
    assert summary.done == 6
    assert summary.quarantined == {"is not of a kind that is cleaned": 1, "has no name that BIDS defines": 1}


def test_loose_volumes_keep_their_company(place):
    for folder in ("imagesTr", "labelsTr"):
        save(place / "in/doe" / folder / "doe_jane.nii.gz")
    save(place / "in/doe/imagesTr/roe_0001.nii")
    (place / "in/doe/imagesTr/roe_0001.bval").write_text("0 1000")
    (place / "in/doe/imagesTr/roe_0001.json").write_text('{"EchoTime": 0.1, "InstitutionName": "St. Roe"}')
    (place / "in/doe/notes.json").write_text('{"EchoTime": 0.1}')
    summary = run(place)
    assert (summary.done, summary.quarantined) == (5, {"is no DICOM file, or a damaged one": 1})
    made = [name.split("/") for name in files(place / "out") if name != "manifest.json"]
    assert {parts[0] for parts in made} == {made[0][0]}
    names = {role: {parts[2] for parts in made if parts[1] == role} for role in ("imagesTr", "labelsTr")}
    assert names["labelsTr"] < names["imagesTr"]
    companions = {name.split(".", 1)[1] for name in names["imagesTr"] if "_0001." in name}
    assert companions == {"nii", "bval", "json"}
    for secret in (b"doe", b"roe", b"Roe", b"DOE", b"JANE"):
        assert secret not in everything(place / "out"), secret
    assert verify(place / "out", place / "in") == []


def test_one_volume_alone(place):
    save(place / "doe.nii.gz")
    assert run(place, source="doe.nii.gz").done == 1
    (name,) = [name for name in files(place / "out") if name != "manifest.json"]
    assert name.endswith(".nii.gz")
    np.testing.assert_array_equal(nib.load(place / "out" / name).affine, np.diag([-1.0, 1.0, 2.0, 1.0]))


def test_a_damaged_volume_is_set_aside(place):
    save(place / "in/doe.nii")
    (place / "in/doe.nii").write_bytes((place / "in/doe.nii").read_bytes()[:-3])
    summary = run(place)
    assert summary.done == 0
    (reason,) = summary.quarantined
    assert "adds up" in reason


def test_verify_sees_headers_and_sidecars_that_were_changed(bids):
    run(bids)
    image = next(bids.glob("out/sub-*/anat/*.nii.gz"))
    loaded = nib.load(image)
    nib.save(nib.Nifti1Image(np.asanyarray(loaded.dataobj), loaded.affine, loaded.header), image)
    changed = nib.load(image)
    changed.header["descrip"] = b"DOE"
    nib.save(changed, image)
    sidecar = next(bids.glob("out/sub-*/anat/*.json"))
    sidecar.write_text('{"EchoTime": 0.003, "PatientName": "doe01"}')
    faults = {(finding.file, finding.fault) for finding in verify(bids / "out", bids / "in")}
    for path in (image, sidecar):
        name = path.relative_to(bids / "out").as_posix()
        assert (name, "holds what should have been dropped") in faults
        assert (name, "was changed since") in faults
    assert (sidecar.relative_to(bids / "out").as_posix(), "holds 1 names, numbers or UIDs of the originals") in faults
