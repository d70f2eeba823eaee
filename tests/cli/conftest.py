"""The command line as a user meets it: arguments in; exit code, stdout and stderr out."""

import json
import shutil
import sys

import pytest
import torch

from voxscore.bundles import find_bundle
from voxscore.cli import main
from voxscore.networks import ScoreUNet
from voxscore.volumes import sha256


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*arguments) -> (exit code, stdout, stderr)."""

    def run(*arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["voxscore", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        return (caught.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def segment(run, tiny_bundle):
    """segment(*arguments): `run` on the tiny bundle."""
    return lambda *arguments: run("segment", "--bundle", tiny_bundle, "--device", "cpu", *arguments)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory):
    """The hippocampus bundle with a network of a few thousand random weights: every step is real but the training."""
    root = tmp_path_factory.mktemp("bundles") / "tiny"
    shutil.copytree(find_bundle("hippocampus_segmentation").root, root, ignore=shutil.ignore_patterns("models"))
    config = json.loads((root / "configs/inference.json").read_text())
    config["network_def"]["channels"] = [8, 8, 8]
    # An untrained network decides by a hair; in bfloat16 rounding would decide for it.
    config["inferer"]["full_precision"] = True
    (root / "configs/inference.json").write_text(json.dumps(config))
    arguments = {k: v for k, v in config["network_def"].items() if k != "_target_"}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = ScoreUNet(**arguments)
    (root / "models").mkdir()
    torch.save(network.state_dict(), root / "models/model.pt")
    metadata = json.loads((root / "configs/metadata.json").read_text())
    metadata["weights_sha256"] = {"models/model.pt": sha256(root / "models/model.pt")}
    (root / "configs/metadata.json").write_text(json.dumps(metadata))
    return root


@pytest.fixture
def crops(tmp_path, dataset):
    """A folder with the crops a.nii.gz and b.nii.gz, 1 mm, RAS."""
    folder = tmp_path / "crops"
    folder.mkdir()
    for name, case in {"a": "case_00", "b": "case_01"}.items():
        shutil.copy(dataset / "images" / f"{case}.nii.gz", folder / f"{name}.nii.gz")
    return folder
