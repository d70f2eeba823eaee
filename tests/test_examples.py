"""Every example runs, and what it prints holds."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def run(name, *arguments):
    command = [sys.executable, "-W", "ignore", ROOT / "examples" / name, *arguments]
    environment = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_is_your_sampler_right():
    text = run("is_your_sampler_right.py", "--steps", "501", "250")
    rows = [line.split("│") for line in text.splitlines() if line.startswith("│")]
    pairs = {row[1].strip(): re.findall(r"(\d\.\d+)/(\d\.\d+)", " ".join(row)) for row in rows}
    assert float(pairs["DDIM"][0][0]) == pytest.approx(0.546, abs=1e-3)
    assert float(pairs["DDPM"][1][0]) > 0.57
    for ours in (ours for name in ("DDPM", "DDIM", "PNDM", "RFlow") for _, ours in pairs[name]):
        assert 0.28 < float(ours) < 0.301
    twenty = next(row for row in rows if row[1].strip() == "20")
    assert float(twenty[-2]) == pytest.approx(0.3, abs=1e-3)  # UniPC 3


def test_posterior_of_a_measurement():
    text = run("posterior_of_a_measurement.py", "--size", "8", "--samples", "32")
    assert 90 < float(re.search(r"deviations: ([\d.]+)%", text).group(1)) < 99


def test_train_and_sample(tmp_path):
    text = run("train_and_sample.py", "--steps", "6", "--output", tmp_path / "samples.png")
    assert float(re.search(r"held-out loss ([\d.]+)", text).group(1)) < 1
    assert "copies 0%" in text
    assert (tmp_path / "samples.png").stat().st_size > 1000


def test_mni152_hippocampi(tmp_path):
    """The template is symmetric, so its sides must agree; the volumes are those of the README's table."""
    if importlib.util.find_spec("nilearn") is None:
        pytest.skip("nilearn, the extra voxscore[examples], is not installed")
    text = run("mni152_hippocampi.py", "--output", tmp_path)
    printed, documented = (
        {name: (float(left), float(right)) for name, left, right in re.findall(pattern, source)}
        for source, pattern in (
            (text, r"(\w+ hippocampus) +([\d.]+) +([\d.]+)"),
            ((ROOT / "README.md").read_text(encoding="utf-8"), r"\| (\w+ hippocampus) \| ([\d.]+) \| ([\d.]+) \|"),
        )
    )
    assert printed.keys() == documented.keys() == {f"{part} hippocampus" for part in ("anterior", "posterior", "whole")}
    for name, (left, right) in printed.items():
        assert right == pytest.approx(left, rel=0.01)
        assert (left, right) == pytest.approx(documented[name], rel=0.01)
    for side, sign in {"left": -1, "right": 1}.items():
        labels = nib.load(tmp_path / f"mni152_{side}_hippocampus.nii.gz")
        points = nib.affines.apply_affine(labels.affine, np.argwhere(np.asarray(labels.dataobj)))
        assert len(points)
        assert (sign * points[:, 0] > 0).all()
    assert (tmp_path / "mni152_hippocampi.png").stat().st_size > 1000


def test_every_example_is_run():
    source = Path(__file__).read_text(encoding="utf-8")
    for path in (ROOT / "examples").glob("*.py"):
        assert f'run("{path.name}"' in source
