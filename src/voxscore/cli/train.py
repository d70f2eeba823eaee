"""`voxscore train`: run a recipe."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

import voxscore
from voxscore.errors import UserError

__all__ = ["train"]


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, for instance configs/hippocampus_segmentation.json.")],
    data: Annotated[
        Path, typer.Option(help="Folder with images/ and labels/, or with a dataset.json, or of a prior's volumes.")
    ],
    output: Annotated[Path, typer.Option(help="Folder of checkpoints, curves and weights.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:n.")] = "auto",
    epochs: Annotated[int | None, typer.Option(help="Epochs of every stage, for a trial.", min=1)] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help=r"Also log for TensorBoard; needs voxscore\[tensorboard].")
    ] = False,
) -> None:
    """Train a bundle's weights; run it again to go on after an interruption.

    [bold]Examples[/bold]

        voxscore train configs/hippocampus_segmentation.json --data Task04_Hippocampus --output runs

        torchrun --nproc-per-node 2 -m voxscore train RECIPE --data DIR --output runs
    """
    needed = {"matplotlib": "train", "tqdm": "train"} | ({"tensorboard": "tensorboard"} if tensorboard else {})
    for package, extra in needed.items():
        if importlib.util.find_spec(package) is None:
            raise UserError(package, "is not installed", f"pip install 'voxscore[{extra}]'")
    if device != "auto":
        voxscore.segmentation.resolve_device(device)
    for folder in voxscore.training.run_recipe(recipe, data, output, device, epochs, tensorboard):
        typer.echo(f"done: {folder}")
