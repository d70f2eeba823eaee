"""The commands around `segment`: help without heavy imports, the list of bundles, the demo."""

import importlib.util
import json
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

WITHOUT_TORCH = """
import sys
import voxscore, voxscore.cli
for arguments in (["--help"], ["segment", "--help"], ["evaluate", "--help"], ["bundles"], ["segment"]):
    sys.argv = ["voxscore", *arguments]
    try:
        voxscore.cli.main()
    except SystemExit:
        pass
    loaded = {"torch", "monai", "nilearn", "highdicom", "SimpleITK"} & sys.modules.keys()
    assert not loaded, (arguments, loaded)
"""


def test_help_loads_neither_torch_nor_monai():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "voxscore segment crop.nii.gz" in done.stdout


@pytest.mark.parametrize("command", ["segment", "evaluate", "train"])
def test_help_has_examples_a_line_each(run, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "100")
    code, stdout, _ = run(command, "--help")
    assert code == 0
    examples = [line for line in stdout.splitlines() if line.strip().startswith(("voxscore ", "torchrun "))]
    assert len(examples) >= 2
    assert all(line.count("voxscore ") == 1 for line in examples)


def test_help_shows_brackets(run, monkeypatch):
    """What is in brackets is text to the reader, though markup to the library that prints it."""
    monkeypatch.setenv("COLUMNS", "120")
    assert "voxscore[demo]" in run("--help")[1]
    assert "the bundle's" in run("segment", "--help")[1]


@pytest.mark.parametrize(
    "arguments", [["segment"], ["segment", "a.nii"], ["segment", "a.nii", "-o", "b", "--bogus"], ["nothing"]]
)
def test_wrong_usage(run, arguments):
    code, stdout, stderr = run(*arguments)
    assert (code, stdout) == (2, "")
    assert "Traceback" not in stderr


def test_bundles_lists_one_a_line(run, tmp_path, monkeypatch, tiny_bundle):
    code, stdout, _ = run("bundles")
    assert code == 0
    (line,) = [line for line in stdout.splitlines() if "hippocampus_segmentation" in line]
    assert "0.1.0" in line
    assert "Segment the anterior and posterior hippocampus" in line
    monkeypatch.setattr("voxscore.bundles._plugins", lambda: tmp_path)
    shutil.copytree(tiny_bundle, tmp_path / "damaged")
    (tmp_path / "damaged/configs/metadata.json").write_text(json.dumps({"version": "1"}))
    code, stdout, stderr = run("bundles")
    assert (code, stdout) == (2, "")
    assert "damaged/configs/metadata.json: is not a bundle's metadata" in stderr


@pytest.fixture
def demo(run, tiny_bundle, monkeypatch):
    if importlib.util.find_spec("nilearn") is None:
        pytest.skip("nilearn, the extra voxscore[demo], is not installed")
    # The package's attribute of this name is the command.
    monkeypatch.setattr(sys.modules["voxscore.cli.demo"], "BUNDLE", str(tiny_bundle))
    return lambda *arguments: run("demo", "--device", "cpu", *arguments)


def test_demo(demo, tmp_path):
    out = tmp_path / "out"
    code, stdout, stderr = demo("-o", out)
    assert (code, stderr) == (0, "")
    names = ["mni152_hippocampi.png", "mni152_left_hippocampus.nii.gz", "mni152_right_hippocampus.nii.gz"]
    assert sorted(p.name for p in out.iterdir()) == names
    for side, sign in {"left": -1, "right": 1}.items():
        labels = nib.load(out / f"mni152_{side}_hippocampus.nii.gz")
        points = nib.affines.apply_affine(labels.affine, np.argwhere(np.asarray(labels.dataobj)))
        assert len(points)
        assert (sign * points[:, 0] > 0).all()
    assert "whole hippocampus" in stdout
    code, _, stderr = demo("-o", out)
    assert code == 2
    assert "exists already" in stderr


def test_demo_without_nilearn(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, stderr = demo("-o", tmp_path / "out")
    assert code == 2
    assert "pip install 'voxscore[demo]'" in stderr
