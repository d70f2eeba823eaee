"""A run learns, is the same twice, survives a kill bit for bit, and runs on two processes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from safetensors.torch import load_file

from voxscore.bundles import find_bundle
from voxscore.errors import UserError
from voxscore.networks import ScoreUNet
from voxscore.training import export_weights, initialized, run_recipe

BUNDLE = find_bundle("hippocampus_segmentation")
CHANNELS = [8, 8, 8]


def workflow(dataset, output, epochs=3, **overrides):
    flow = ConfigWorkflow(
        str(BUNDLE.config("train")),
        workflow_type="train",
        logging_file=False,
        bundle_root=str(BUNDLE.root),
        dataset_dir=str(dataset),
        output_dir=str(output),
        device="$torch.device('cpu')",
        max_epochs=epochs,
        val_interval=1,
        batch_size=4,
        progress="$[]",
        **{"network_def#channels": CHANNELS},
        **overrides,
    )
    flow.initialize()
    return flow


def averaged(output):
    return torch.load(output / "checkpoint.pt", weights_only=True)["objects"]["ema"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def history(output):
    rows = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


class Killed(BaseException):
    pass


def kill(engine):
    raise Killed


def test_resume_after_a_kill_is_bit_exact(dataset, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    workflow(dataset, whole).run()
    flow = workflow(dataset, broken)
    trainer = flow.parser.get_parsed_content("train::trainer")
    # Two iterations an epoch: the fifth is the first of the third epoch.
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), kill)
    with pytest.raises(Killed):
        flow.run()
    assert len(history(broken)) == 2
    workflow(dataset, broken).run()
    assert same(averaged(whole), averaged(broken))
    assert history(whole) == history(broken)
    assert history(whole)[-1]["loss"] < history(whole)[0]["loss"]
    assert (whole / "history.png").read_bytes()[:4] == b"\x89PNG"
    other = tmp_path / "other"
    workflow(dataset, other, seed=1).run()
    assert not same(averaged(whole), averaged(other))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_the_history(dataset, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    workflow(dataset, tmp_path, epochs=2, tensorboard=True).run()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "dice", "learning_rate"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        noted = [(row["epoch"], pytest.approx(row[name], rel=1e-5)) for row in history(tmp_path)]
        assert shown == noted


def test_provenance_says_what_was_run(dataset, tmp_path):
    workflow(dataset, tmp_path, epochs=1, fold=2).run()
    record = json.loads((tmp_path / "provenance.json").read_text())
    assert record["settings"]["fold"] == 2
    assert record["training_data"]["cases"] == 8
    assert len(record["validation_cases"]) == 2
    assert record["environment"]["torch"] == torch.__version__


def test_exported_weights_have_no_heads_and_the_same_output(dataset, tmp_path):
    workflow(dataset, tmp_path, epochs=1).run()
    hashes = export_weights(tmp_path / "checkpoint.pt", tmp_path / "models")
    assert set(hashes) == {"models/model.pt", "models/model.safetensors"}
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert same(state, load_file(tmp_path / "models" / "model.safetensors"))
    arguments = (3, 1, 3, CHANNELS)
    plain = ScoreUNet(*arguments)
    plain.load_state_dict(state)
    full = ScoreUNet(*arguments, deep_heads=True)
    full.load_state_dict(averaged(tmp_path))
    x = torch.randn(1, 1, 8, 8, 8)
    assert torch.equal(plain.eval()(x), full.eval()(x))
    again = initialized(ScoreUNet(*arguments, deep_heads=True), tmp_path / "models" / "model.pt")
    assert torch.equal(again.eval()(x), plain(x))


def test_a_diverged_run_stops_and_says_where(dataset, tmp_path):
    with pytest.raises(RuntimeError, match="train::trainer") as raised:
        workflow(dataset, tmp_path, epochs=2, learning_rate=1e30).run()
    assert "gradient norm nan in epoch 2, iteration" in str(raised.value.__cause__)


def test_recipe_runs_its_stages_once(dataset, tmp_path):
    recipe = tmp_path / "recipe.json"
    small = {"network_def#channels": CHANNELS, "progress": "$[]", "batch_size": 8}
    stages = [
        {"name": "first", "fold": 0, **small},
        {"name": "second", "fold": None, "initial_weights": "first", **small},
    ]
    recipe.write_text(json.dumps({"bundle": "hippocampus_segmentation", "stages": stages}))
    folders = list(run_recipe(recipe, dataset, tmp_path / "out", "cpu", epochs=1))
    assert [f.name for f in folders] == ["first", "second"]
    before = [(f / "checkpoint.pt").stat().st_mtime_ns for f in folders]
    assert [(f / "checkpoint.pt").stat().st_mtime_ns for f in run_recipe(recipe, dataset, tmp_path / "out")] == before
    record = json.loads((folders[1] / "provenance.json").read_text())
    assert record["training_data"]["cases"] == 10
    recipe.write_text("{}")
    with pytest.raises(UserError, match="is not a recipe"):
        list(run_recipe(recipe, dataset, tmp_path / "out"))


def test_two_processes(dataset, tmp_path):
    """The command of the README under torchrun: both ranks share one set of weights, one writes."""
    recipe = tmp_path / "recipe.json"
    stage = {"name": "pair", "fold": 0, "network_def#channels": CHANNELS, "val_interval": 1}
    recipe.write_text(json.dumps({"bundle": "hippocampus_segmentation", "stages": [stage]}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "voxscore", "train", str(recipe), "--data", str(dataset), "--output", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, "--epochs", "2"], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    output = tmp_path / "out" / "pair"
    assert json.loads((output / "provenance.json").read_text())["environment"]["world_size"] == 2
    assert [row["epoch"] for row in history(output)] == [1, 2]
    assert (output / "models" / "model.safetensors").is_file()
