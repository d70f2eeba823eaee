"""Folders: nothing partial, nothing lost, the same again, and no name in anything that is shared."""

import json
import os
import stat

import pytest
from deidentify_support import KEY
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from voxscore.deidentify import Deidentifier, Refusal, Settings, deidentify_file, deidentify_tree, find_profile, verify
from voxscore.deidentify.pseudonyms import Pseudonyms
from voxscore.errors import UserError
from voxscore.volumes.quiet import quiet

CT = "1.2.840.10008.5.1.4.1.1.2"


def save(path, change=None, **more):
    """A small CT slice of Jane Doe."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.StudyInstanceUID = CT, "1.2.3.4", "1.2.3"
    dataset.SeriesInstanceUID, dataset.PatientID, dataset.PatientName = "1.2.3.5", "MRN4711", "Doe^Jane"
    dataset.StudyDate, dataset.Modality, dataset.StudyDescription = "20200103", "CT", "CT chest of Jane Doe"
    dataset.Rows = dataset.Columns = 4
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = bytes(range(32))
    for keyword, value in more.items():
        setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.SourceApplicationEntityTitle = "DOEHOSPITAL"
    dataset.preamble = b"DOE^JANE".ljust(128, b"\0")
    if change:
        change(dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet():
        dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def place(tmp_path):
    """A folder with a key and three slices of two patients."""
    (tmp_path / "key").write_bytes(KEY)
    save(tmp_path / "in/doe/a.dcm")
    save(tmp_path / "in/doe/b.dcm", SOPInstanceUID="1.2.3.6")
    save(tmp_path / "in/roe.dcm", SOPInstanceUID="1.2.3.7", PatientID="MRN4712", PatientName="Roe^Richard")
    return tmp_path


def outputs(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.dcm")}


def run(place, output="out", source="in", workers=1, **settings):
    return deidentify_tree(place / source, place / output, Settings(place / "key", **settings), workers)


def test_a_folder_comes_out_whole_and_without_names(place):
    summary = run(place)
    assert (summary.done, summary.quarantined) == (3, {})
    made = outputs(place / "out")
    assert len({name.split("/")[0] for name in made}) == 2  # patients stay two
    everything = b"".join(p.read_bytes() for p in (place / "out").rglob("*") if p.is_file())
    names = " ".join(str(p) for p in (place / "out").rglob("*"))
    for secret in ("Doe", "DOE", "Jane", "Roe", "Richard", "MRN471", "1.2.3.4", "20200103", "doe"):
        assert secret.encode() not in everything
        assert secret not in names.replace(str(place), "")
    for path in (place / "out").rglob("*.dcm"):
        dataset = dcmread(path)
        assert dataset.PixelData == bytes(range(32))
        assert dataset.StudyDescription == "CT chest of"
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert "SourceApplicationEntityTitle" not in dataset.file_meta
    assert verify(place / "out", place / "in") == []


def test_again_with_the_same_key_is_the_same_and_what_is_done_stays_done(place):
    run(place)
    first = outputs(place / "out")
    run(place, "again", workers=2)
    assert outputs(place / "again") == first
    run(place, "twice", source="out/" + next(iter(first)).split("/")[0])  # idempotent
    assert outputs(place / "twice").items() <= first.items()
    assert len(outputs(place / "twice")) in (1, 2)


def test_a_run_that_was_killed_goes_on(place):
    run(place)
    whole = outputs(place / "out")
    journal = place / "out/.journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:20])  # cut within a line
    untouched = next(iter(json.loads(line)["output"] for line in lines[1:2]))
    before = (place / "out" / untouched).stat().st_mtime_ns
    assert run(place).done == 3
    assert outputs(place / "out") == whole
    assert (place / "out" / untouched).stat().st_mtime_ns == before


def test_what_is_refused_is_set_aside_with_a_reason_that_holds_no_name(place):
    (place / "in/notes of Jane Doe.txt").write_text("Jane Doe")
    (place / "in/link.dcm").symlink_to(place / "in/roe.dcm")
    save(place / "in/cut.dcm", SOPInstanceUID="1.2.8")
    (place / "in/cut.dcm").write_bytes((place / "in/cut.dcm").read_bytes()[:-10])
    save(place / "in/private.dcm", SOPClassUID="1.2.9.9", SOPInstanceUID="1.2.9")
    save(place / "in/burned.dcm", BurnedInAnnotation="YES", SOPInstanceUID="1.2.10")
    save(place / "in/nobody.dcm", PatientID="", SOPInstanceUID="1.2.11")
    summary = run(place)
    assert summary.done == 3
    assert sum(summary.quarantined.values()) == 6
    assert not any("oe" in reason.replace("does", "") for reason in summary.quarantined)
    shared = (place / "out/manifest.json").read_text()
    assert "Doe" not in shared
    assert "link.dcm" not in shared
    folder = place / "out_quarantine"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(list(folder.iterdir())) == 6  # five copies and the list; a link is not followed
    assert "notes of Jane Doe.txt" in (folder / "reasons.csv").read_text()


@pytest.mark.parametrize("order", [("in/a1.dcm", "in/a2.dcm"), ("in/z1.dcm", "in/z2.dcm")])
def test_two_objects_with_one_uid_are_both_refused_but_a_copy_is_no_harm(place, order):
    save(place / order[0], SOPInstanceUID="1.2.77")
    save(place / order[1], SOPInstanceUID="1.2.77", Rows=2)
    (place / "in/copy.dcm").write_bytes((place / "in/roe.dcm").read_bytes())
    summary = run(place)
    assert summary.quarantined == {"another file with other content has the same SOP instance UID or name": 2}
    assert len(outputs(place / "out")) == 3
    assert verify(place / "out") == []


def test_verify_finds_what_was_tampered_with(place):
    run(place)
    first, second, third = sorted((place / "out").rglob("*.dcm"))
    dataset = dcmread(first)
    dataset.PatientComments = "seen by Jane Doe"
    dataset.save_as(first)
    second.unlink()
    (place / "out/extra.dcm").write_bytes(third.read_bytes())
    faults = {finding.fault for finding in verify(place / "out", place / "in")}
    assert "was changed since" in faults
    assert "is in the manifest, but not there" in faults
    assert "is not in the manifest" in faults
    assert any(fault.startswith("holds 1 names") for fault in faults)


def test_strict_codes_are_random_and_remembered(place):
    with pytest.raises(UserError, match="crosswalk"):
        run(place, profile="strict")
    run(place, profile="strict", crosswalk=place / "codes.csv")
    run(place, "other", profile="strict", crosswalk=place / "other.csv")
    run(place, "same", profile="strict", crosswalk=place / "codes.csv", workers=2)
    assert outputs(place / "same") == outputs(place / "out")
    assert not set(outputs(place / "other")) & set(outputs(place / "out"))
    assert stat.S_IMODE((place / "codes.csv").stat().st_mode) == 0o600
    assert "patient,MRN4711," in (place / "codes.csv").read_text()
    assert {dcmread(p).StudyDate for p in (place / "out").rglob("*.dcm")} == {""}


@pytest.mark.parametrize(
    ("output", "settings", "fault"),
    [
        ("in/out", {}, "in the input"),
        (".", {}, "in the input"),
        ("full", {}, "holds other things"),
        ("out", {"crosswalk": "out/codes.csv"}, "given away"),
        ("out", {"key": "short"}, "too short"),
        ("out", {"key": "missing"}, "no such file"),
        ("out", {"profile": "basic+everything"}, "no option"),
        ("out", {"profile": "nice"}, "no profile"),
        ("out", {"rules": "key"}, "no list of pixel rules"),
    ],
)
def test_bad_places_and_settings_are_refused_before_anything_is_written(place, output, settings, fault):
    (place / "full").mkdir()
    (place / "full/x").write_text("x")
    (place / "short").write_text("short")
    paths = {k: place / v if k != "profile" else v for k, v in settings.items()}
    with pytest.raises(UserError, match=fault):
        deidentify_tree(place / "in", place / output, Settings(**{"key": place / "key", **paths}))
    assert not (place / "out").exists() or not list((place / "out").rglob("*.dcm"))


def test_another_key_cannot_go_on_in_the_same_folder(place):
    run(place)
    (place / "key").write_bytes(KEY[::-1])
    with pytest.raises(UserError, match="another key"):
        run(place)


def test_nothing_is_written_for_a_refused_file(place):
    one = Deidentifier(find_profile("research"), Pseudonyms(KEY))
    damaged = place / "damaged.dcm"
    damaged.write_bytes(os.urandom(500))
    with pytest.raises(Refusal):
        deidentify_file(damaged, place / "out", one)
    assert not (place / "out").exists()
