"""Running a recipe: the bundle's own train.json, stage after stage, on one process or on several.

A recipe is a JSON file in configs/ that says how a bundle's weights were made:

    {"bundle": "hippocampus_segmentation",
     "stages": [{"name": "fold0", "fold": 0, "max_epochs": 56},
                {"name": "all", "fold": null, "max_epochs": 20, "initial_weights": "fold0"}]}

Each stage overrides top-level ids of train.json and lives in a folder of its own below the output, with its
checkpoint, its curves, its provenance and, when it is done, `models/model.pt` and `models/model.safetensors`: the
averaged weights without training heads, and `models/gaussian.pt` if the bundle fits one. `initial_weights` names an
earlier stage. A stage that is done is not run again, an unfinished one goes on from its checkpoint.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from safetensors.torch import save_file
from torch import Tensor, nn

from voxscore.bundles import Bundle, find_bundle
from voxscore.errors import UserError
from voxscore.volumes import sha256

__all__ = ["export_weights", "initialized", "run_recipe"]

HEADS = "deep_heads."


def initialized(network: nn.Module, weights: str | os.PathLike[str] | None) -> nn.Module:
    """`network` with exported weights in it; its training heads stay as they are. None leaves all as it is.

    Raises:
        RuntimeError: the weights are of another network.
    """
    if weights is not None:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        own = {name: value for name, value in network.state_dict().items() if name.startswith(HEADS)}
        network.load_state_dict({**own, **state})
    return network


def export_weights(checkpoint: Path, folder: Path) -> dict[str, str]:
    """Write a checkpoint's averaged weights, without training heads, as `model.pt` and `model.safetensors`.

    Returns:
        "models/<file>" -> SHA-256, as a bundle's metadata.json lists them.
    """
    ema: dict[str, Tensor] = torch.load(checkpoint, map_location="cpu", weights_only=True)["objects"]["ema"]
    state = {name: value.contiguous() for name, value in ema.items() if not name.startswith(HEADS)}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "model.pt")
    save_file(state, folder / "model.safetensors")
    return {f"models/{name}": sha256(folder / name) for name in ("model.pt", "model.safetensors")}


def run_recipe(
    recipe: Path,
    dataset_dir: Path,
    output_dir: Path,
    device: str = "auto",
    epochs: int | None = None,
    tensorboard: bool = False,
) -> Iterator[Path]:
    """Run each stage in turn, and yield its folder when it is done.

    Under `torchrun` (WORLD_SIZE in the environment) every process calls this and takes its share.

    Args:
        recipe: path of the recipe.
        dataset_dir: see `voxscore.training.datalist`.
        output_dir: of all stages.
        device: "auto" or a device name; several processes choose theirs by rank.
        epochs: replaces every stage's `max_epochs`, for a trial.
        tensorboard: also log for TensorBoard.

    Raises:
        UserError: the recipe cannot be read, or names a bundle or stage that is not there.
    """
    try:
        content = json.loads(recipe.read_text(encoding="utf-8"))
        stages = [dict(stage) for stage in content["stages"]]
        bundle = find_bundle(content["bundle"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(recipe, "is not a recipe", "see configs/ for one") from error
    for stage in stages:
        folder = output_dir / stage.pop("name")
        if not (folder / "models" / "model.safetensors").is_file():
            if stage.get("initial_weights") is not None:
                stage["initial_weights"] = str(output_dir / stage["initial_weights"] / "models" / "model.pt")
            if epochs is not None:
                stage["max_epochs"] = epochs
            _run_stage(bundle, {"tensorboard": tensorboard, **stage}, dataset_dir, folder, device)
        yield folder


def _run_stage(bundle: Bundle, stage: dict[str, Any], dataset_dir: Path, folder: Path, device: str) -> None:
    distributed = int(os.environ.get("WORLD_SIZE", 1)) > 1
    files = [bundle.config("train"), *([bundle.config("multi_gpu_train")] if distributed else [])]
    settings = {
        "bundle_root": str(bundle.root),
        "dataset_dir": str(dataset_dir),
        "output_dir": str(folder),
        **stage,
    }
    if device != "auto" and not distributed:
        settings["device"] = f"$torch.device({device!r})"
    workflow = ConfigWorkflow([str(f) for f in files], workflow_type="train", logging_file=False, **settings)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    # DistributedDataParallel keeps Gloo's threads alive, and one that still holds a tensor when Python ends aborts
    # the process. Dropped here, they are joined here.
    del workflow
    gc.collect()
    if int(os.environ.get("RANK", 0)) == 0:
        hashes = export_weights(folder / "checkpoint.pt", folder / "models")
        if (folder / "gaussian.pt").is_file():
            shutil.copy(folder / "gaussian.pt", folder / "models")
            hashes["models/gaussian.pt"] = sha256(folder / "gaussian.pt")
        (folder / "models" / "sha256.json").write_text(json.dumps(hashes, indent=2) + "\n")
