"""Outputs are whole or absent."""

import errno
import hashlib
import os

import pytest

from voxscore.errors import UserError
from voxscore.volumes import sha256, written_whole
from voxscore.volumes.files import base_name


def write_half_and_raise(out, error):
    with written_whole(out, overwrite=True) as partial:
        partial.write_bytes(b"half")
        raise error


def test_success_leaves_the_output_alone_in_its_folder(tmp_path):
    out = tmp_path / "new" / "deep" / "case.nii.gz"
    with written_whole(out) as partial:
        assert partial.parent == out.parent
        assert partial.name.endswith(".nii.gz")
        assert not out.exists()
        partial.write_bytes(b"whole")
    assert out.read_bytes() == b"whole"
    assert os.listdir(out.parent) == ["case.nii.gz"]


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), OSError(errno.EIO, "I/O error")])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    out = tmp_path / "case.nrrd"
    out.write_bytes(b"before")
    with pytest.raises(type(error)):
        write_half_and_raise(out, error)
    assert out.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["case.nrrd"]


def test_existing_output_is_kept_unless_overwriting(tmp_path):
    out = tmp_path / "case.mha"
    out.write_bytes(b"before")
    with pytest.raises(UserError, match="exists already"), written_whole(out):
        pytest.fail("the block must not run")
    with written_whole(out, overwrite=True) as partial:
        partial.write_bytes(b"after")
    assert out.read_bytes() == b"after"


def test_output_that_appears_meanwhile_is_kept(tmp_path):
    out = tmp_path / "case.mha"
    with pytest.raises(UserError, match="exists already"), written_whole(out):
        out.write_bytes(b"theirs")
    assert out.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["case.mha"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk(tmp_path, code):
    out = tmp_path / "case.nii"
    with pytest.raises(UserError, match="disk is full") as caught:
        write_half_and_raise(out, OSError(code, os.strerror(code)))
    assert caught.value.subject == str(out)
    assert os.listdir(tmp_path) == []


def test_forbidden_folder(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    with pytest.raises(UserError, match="Permission denied"), written_whole(tmp_path / "case.nii"):
        pytest.fail("the block must not run")


def test_parent_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), written_whole(tmp_path / "file" / "case.nii"):
        pytest.fail("the block must not run")


def test_output_is_a_folder(tmp_path):
    with pytest.raises(UserError, match="is a folder"), written_whole(tmp_path, overwrite=True):
        pytest.fail("the block must not run")


def test_a_forbidden_input_is_not_blamed_on_the_output(tmp_path):
    other = PermissionError(errno.EACCES, "Permission denied", "elsewhere")
    with pytest.raises(PermissionError), written_whole(tmp_path / "case.nii"):
        raise other


def test_sha256(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b_01.nii.gz", "b_01"),
        ("b.v2.nii", "b.v2"),
        ("B.NRRD", "B"),
        ("x.seg.nrrd", "x.seg"),
        ("d/y.mha", "y"),
    ],
)
def test_base_name(path, name):
    assert base_name(path) == name
