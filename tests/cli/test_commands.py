"""The commands around `segment`: help without heavy imports, the list of bundles, the demo."""

import inspect
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import voxscore
from voxscore.bundles import find_bundle
from voxscore.inferers import volume_seed
from voxscore.networks import JointScoreUNet
from voxscore.segmentation import Segmenter
from voxscore.synthesis import Synthesizer
from voxscore.volumes import read_label_map, read_volume

WITHOUT_TORCH = """
import sys
import voxscore, voxscore.cli
helps = [
    [command, "--help"]
    for command in ("segment", "reconstruct", "synthesize", "audit", "evaluate", "demo", "deface", "simulate")
]
for arguments in (["--help"], *helps, ["bundles"], ["segment"]):
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


@pytest.mark.parametrize("command", ["segment", "reconstruct", "synthesize", "audit", "evaluate", "train", "deface"])
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
    assert "voxscore[tensorboard]" in run("train", "--help")[1]
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
def demo(run, tiny_bundle, tiny_synthesis, monkeypatch):
    # The package's attribute of this name is the command.
    module = sys.modules["voxscore.cli.demo"]
    monkeypatch.setattr(module, "SEGMENTATION", str(tiny_bundle))
    monkeypatch.setattr(module, "SYNTHESIS", str(tiny_synthesis))
    return lambda *arguments: run("demo", "--device", "cpu", *arguments)


def test_demo(demo, tiny_bundle, tiny_synthesis, tmp_path):
    """The case is volume 0 of that seed, the segmentation that of the written image, the table that of the files."""
    out = tmp_path / "out"
    code, stdout, stderr = demo("-o", out, "--seed", 3)
    assert (code, stderr) == (0, "")
    assert sorted(p.name for p in out.iterdir()) == [
        *("synthetic.nii.gz", "synthetic.png", "synthetic_label.nii.gz", "synthetic_seg.nii.gz")
    ]
    device, volume = torch.device("cpu"), read_volume(out / "synthetic.nii.gz")
    made = Synthesizer(find_bundle(tiny_synthesis), device)(volume_seed(3, 0))
    np.testing.assert_array_equal(volume.array, made.image)
    own, found = (read_label_map(out / f"synthetic_{kind}.nii.gz").array for kind in ("label", "seg"))
    np.testing.assert_array_equal(own, made.labels)
    np.testing.assert_array_equal(found, Segmenter(find_bundle(tiny_bundle), device)(volume).labels)
    rows = [row.split()[-3:] for row in stdout.splitlines() if "hippocampus" in row]
    for label, (ml, segmented_ml, dice) in zip((1, 2), rows, strict=True):
        a, b = own == label, found == label
        assert (ml, segmented_ml) == (f"{a.sum() / 1000:.2f}", f"{b.sum() / 1000:.2f}")
        assert dice == f"{2 * (a & b).sum() / (a.sum() + b.sum()):.3f}"
    assert f"in {made.evaluations} evaluations" in stdout
    assert f"Look at {out / 'synthetic.png'} first." in stdout


def test_demo_shows_both_label_maps_on_the_same_slices(demo, tmp_path, monkeypatch):
    sheets = []
    draw = voxscore.evaluation.pictures.contour_sheet

    def spy(*arguments, **options):
        bound = inspect.signature(draw).bind(*arguments, **options).arguments
        sheets.append((bound["labelmap"], bound["center"], bound["zoom_mm"], draw(*arguments, **options)))
        return sheets[-1][-1]

    monkeypatch.setattr(voxscore.evaluation.pictures, "contour_sheet", spy)
    assert demo("-o", tmp_path)[0] == 0
    (own, *place, left), (found, *same_place, right) = sheets
    assert place == same_place
    assert all(0 <= c < n for c, n in zip(place[0], own.shape, strict=True))
    assert (own != found).any()
    with Image.open(tmp_path / "synthetic.png") as picture:
        assert picture.size == (left.width + right.width, left.height)
        np.testing.assert_array_equal(picture.crop((left.width, 0, *picture.size)), right)


def test_demo_replaces_nothing_unasked(demo, tmp_path):
    (tmp_path / "synthetic_seg.nii.gz").write_bytes(b"mine")
    code, stdout, stderr = demo("-o", tmp_path)
    assert (code, stdout) == (2, "")
    assert "synthetic_seg.nii.gz: exists already" in stderr
    assert [p.name for p in tmp_path.iterdir()] == ["synthetic_seg.nii.gz"]
    assert demo("-o", tmp_path, "--overwrite")[0] == 0
    assert len(list(tmp_path.iterdir())) == 4


def test_demo_of_a_broken_network_writes_nothing(demo, tmp_path, monkeypatch):
    forward = JointScoreUNet.forward
    monkeypatch.setattr(JointScoreUNet, "forward", lambda *arguments: forward(*arguments) * float("nan"))
    code, stdout, stderr = demo("-o", tmp_path, "--seed", 7)
    assert (code, stdout) == (2, "")
    assert "seed 7: gives no case: the denoiser returned NaN" in stderr
    assert list(tmp_path.iterdir()) == []
