"""BIDS names, sidecars and tables: identifiers go, acquisition parameters stay, what cannot be judged is refused."""

import json
from pathlib import PurePosixPath

import nibabel as nib
import numpy as np
import pytest

from voxscore.deidentify.bids import bids_name, scrub_bids, scrub_sidecar, scrub_table
from voxscore.deidentify.profile import PROFILES
from voxscore.deidentify.pseudonyms import Pseudonyms
from voxscore.errors import UserError

CODES = Pseudonyms(bytes(range(32)))


def renamed(path):
    return str(bids_name(PurePosixPath(path), CODES))


def test_names_lose_the_subject_and_keep_the_form():
    new = renamed("sub-4711/ses-20190112/func/sub-4711_ses-20190112_task-rest_run-01_bold.nii.gz")
    subject, session, folder, name = new.split("/")
    assert "4711" not in new
    assert "2019" not in new
    assert folder == "func"
    assert name == f"{subject}_{session}_task-rest_run-01_bold.nii.gz"
    assert renamed("sub-4711/anat/sub-4711_T1w.json").startswith(f"{subject}/anat/{subject}_T1w")
    assert renamed("sub-4712/anat/sub-4712_T1w.json").split("/")[0] != subject
    assert renamed("sub-4711/ses-02/anat/sub-4711_ses-02_acq-DrSmith_T1w.nii").count("Smith") == 0
    assert "/ses-02/" in renamed("sub-4711/ses-02/anat/sub-4711_ses-02_T1w.nii")


@pytest.mark.parametrize(
    "path",
    [
        "sub-1/anat/DOE_JANE_T1w.nii.gz",
        "DOE/sub-1_T1w.nii.gz",
        "sub-1/anat/sub-1_DOE.nii.gz",
        "sub-1/anat/sub-1_T1w.txt",
        "sub-1/anat/sub-1_doe-jane_T1w.nii.gz",
        "sub-1/anat/sub-1_run-DOE_T1w.nii.gz",
        "sub-/anat/sub-_T1w.nii.gz",
        "sourcedata/sub-1/anat/sub-1_T1w.nii.gz",
        "sub-1/anat/T1w.nii.gz",
        "../sub-1_T1w.nii.gz",
        "README",
    ],
)
def test_what_is_no_bids_name_is_refused_without_being_told(path):
    with pytest.raises(UserError) as caught:
        renamed(path)
    assert "DOE" not in str(caught.value)
    assert "doe-jane" not in str(caught.value)


SIDECAR = {
    "RepetitionTime": 2.0,
    "SliceTiming": [0.0, 0.5, 1.0],
    "PhaseEncodingDirection": "j-",
    "Manufacturer": "Siemens",
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
    "MTState": False,
}


def test_sidecars_keep_parameters_only():
    secret = {
        **{"PatientName": "DOE^JANE", "AcquisitionTime": "10:11:12", "DeviceSerialNumber": "4711", "DOE JANE": 1},
        **{"EchoTime": "DOE", "FlipAngle": [["DOE"]], "BodyPartExamined": "DOE", "InversionTime": {"DOE": 1}},
        **{"EchoTrainLength": 10**30, "DwellTime": float("nan"), "PixelBandwidth": True, "PartialFourier": [[1]]},
    }
    new, dropped = scrub_sidecar(json.dumps({**SIDECAR, **secret}).encode())
    assert json.loads(new) == SIDECAR
    assert dropped == ["AcquisitionTime", "DeviceSerialNumber", "PatientName", "9 others"]
    assert scrub_sidecar(new) == (new, [])


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"\xff\xfe", b'{"a": ', b"[" * 100000, b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_sidecars_that_are_none(content):
    with pytest.raises(UserError, match="JSON"):
        scrub_sidecar(content)


def test_participants():
    rows = [(1, b"45", b"F"), (2, b"93", b"M"), (3, b"x", b"DOE"), (4, b"89+", b"n/a")]
    lines = [b"sub-%d\t%s\t%s\tDOE^JANE\n" % row for row in rows]
    table = b"".join([b"participant_id\tage\tsex\tname\n", *lines])
    new, dropped = scrub_table(table, CODES, None)
    head, *rows = (line.split("\t") for line in new.decode().splitlines())
    assert head == ["participant_id", "age", "sex"]
    assert [row[1:] for row in rows] == [["45", "F"], ["89+", "M"], ["n/a", "n/a"], ["89+", "n/a"]]
    assert rows[0][0] == renamed("sub-1/anat/sub-1_T1w.nii").split("/")[0]
    assert dropped == ["1 others"]


def test_scan_times_move_by_the_patients_days():
    lines = [
        *(b"filename\tacq_time", b"anat/sub-7_T1w.nii.gz\t2019-01-12T23:59:30.500000"),
        b"func/sub-7_task-rest_bold.nii.gz\t2019-01-13T00:10:00",
    ]
    table = b"\n".join(lines)
    new, _ = scrub_table(table, CODES, "7")
    (name, first), (_, second) = (line.split("\t") for line in new.decode().splitlines()[1:])
    gap = np.datetime64(second) - np.datetime64(first)
    assert gap == np.datetime64("2019-01-13T00:10:00") - np.datetime64("2019-01-12T23:59:30.500000")
    shift = np.datetime64(first) - np.datetime64("2019-01-12T23:59:30.500000")
    assert shift == np.timedelta64(CODES.day_shift("7"), "D")
    assert name == renamed("anat/sub-7_T1w.nii.gz")
    assert b"n/a" in scrub_table(table, CODES, None)[0]


@pytest.mark.parametrize("content", [b"", b"a\ta\n1\t2\n", b"a\tb\n1\n", b"\xff\xff"])
def test_tables_that_are_none(content):
    with pytest.raises(UserError, match="table"):
        scrub_table(content, CODES, None)


def test_one_file_of_each_kind():
    image = nib.Nifti1Image(np.ones((2, 3, 4), np.int16), np.eye(4))
    image.header["descrip"] = b"DOE"
    path = PurePosixPath("sub-1/dwi/sub-1_dwi.nii")
    content, new, dropped = scrub_bids(image.to_bytes(), path, CODES)
    assert b"DOE" not in content
    assert (str(new), dropped) == (renamed(path), [])
    for kind in ("bval", "bvec"):
        numbers = b"0 1000 1e3\n-0.5 1 2\n"
        assert scrub_bids(numbers, path.with_suffix(f".{kind}"), CODES)[0] == numbers
        with pytest.raises(UserError, match="more than numbers"):
            scrub_bids(b"0 DOE", path.with_suffix(f".{kind}"), CODES)
    assert scrub_bids(b'{"a": 1}', path.with_suffix(".json"), CODES)[2] == ["1 others"]
    with pytest.raises(UserError) as caught:
        scrub_bids(b"DOE", path, CODES)
    assert str(path) not in str(caught.value)


def test_a_profile_without_dates_and_characteristics_keeps_neither():
    table = b"participant_id\tage\tsex\thandedness\tacq_time\nsub-7\t45\tF\tleft\t2019-01-12T10:00:00\n"
    assert scrub_table(table, CODES, "7")[0].startswith(b"participant_id\tage\tsex\thandedness\tacq_time\n")
    new, dropped = scrub_table(table, CODES, "7", PROFILES["strict"])
    assert new.startswith(b"participant_id\nsub-")
    assert dropped == ["4 others"]
