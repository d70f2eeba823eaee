"""What `voxscore deidentify` promises on the command line."""

import json

import pytest
from typer.testing import CliRunner

from voxscore.cli import app
from voxscore.errors import UserError


def call(*arguments):
    done = CliRunner().invoke(app, ["deidentify", *map(str, arguments)])
    if isinstance(done.exception, UserError):
        raise done.exception
    return done


@pytest.fixture
def scan(save_series, tmp_path):
    """A series of two slices that says Secret^Name, and a key."""
    import numpy as np

    (tmp_path / "key").write_text("0123456789abcdef" * 4)
    return save_series(np.arange(4 * 4 * 2).reshape(4, 4, 2), folder="scan of Secret Name")


def test_deidentify_then_verify(scan, tmp_path):
    done = call(scan, "--output", tmp_path / "out", "--key", tmp_path / "key", "--workers", 1)
    assert done.exit_code == 0, done.output
    assert "2 files" in done.output
    everything = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert b"Secret" not in everything
    assert b"SECRET-ID" not in everything
    assert json.loads((tmp_path / "out/manifest.json").read_text())["released"] == 2
    checked = call("verify", tmp_path / "out", "--originals", scan)
    assert (checked.exit_code, checked.output) == (0, "nothing found\n")


def test_refused_files_give_exit_code_1_and_no_name_on_the_screen(scan, tmp_path):
    (scan / "Secret Name.txt").write_text("Secret Name")
    done = call("--output", tmp_path / "out", "--key", tmp_path / "key", "--workers", 1, scan)
    assert done.exit_code == 1
    assert "1 not released: is no DICOM file" in done.output
    assert "Secret" not in done.output


def test_explain():
    assert "Z/D" in call("explain", "PatientID").output
    assert "modified-dates: C" in call("explain", "(0008,0020)").output
    assert "not in Table E.1-1" in call("explain", "00280010").output
    assert "private" in call("explain", "00091001").output
    with pytest.raises(UserError, match="neither"):
        call("explain", "PatientNaem")


def test_conformance_statement_names_options_and_private_attributes():
    said = call("conformance-statement").output
    assert "113105" in said
    assert "Philips PET Private Group" in said
    assert "All are removed" in call("conformance-statement", "--profile", "basic").output
