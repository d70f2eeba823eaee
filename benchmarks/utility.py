"""What synthetic cases are worth to train on: real alone, synthetic alone, both; tested on cases that no model saw.

    voxscore synthesize --number 166 --output SYNTHETIC
    python benchmarks/utility.py --data DATASET --synthetic SYNTHETIC --output RUNS

Trains the recipe configs/hippocampus_utility.json on the real cases that the synthesis bundle was trained on, on the
synthetic ones, and on both, with the same number of steps (the epochs are those of the recipe for the real cases), and
prints Dice on the real cases that the bundle's metadata names as held out: mean and bootstrap 95 % interval over
cases, and the paired difference to real alone. One seed a set: the intervals speak of these networks, not of the
method. A run that was killed goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from validation import interval

from voxscore.bundles import find_bundle
from voxscore.evaluation import LabelScore, paired_difference, score_labels, summary
from voxscore.segmentation import Segmenter
from voxscore.training import datalist, run_recipe
from voxscore.volumes import read_label_map, read_volume, volume_suffix

RECIPE = Path(__file__).parents[1] / "configs" / "hippocampus_utility.json"


def linked(cases: list[dict[str, str]], folder: Path) -> Path:
    """A data set of links to these cases."""
    for kind, key in {"images": "image", "labels": "label"}.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for case in cases:
            link = folder / kind / f"{case['name']}{volume_suffix(Path(case[key]))}"
            if not link.exists():
                link.symlink_to(Path(case[key]).resolve())
    return folder


def main() -> None:
    """Train what is not trained yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--synthetic", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    kept_out = set(find_bundle("hippocampus_synthesis").metadata["held_out_cases"])
    every = datalist(arguments.data)
    real = [case for case in every if case["name"] not in kept_out]
    held_out = [case for case in every if case["name"] in kept_out]
    synthetic = datalist(arguments.synthetic)
    (stage,) = json.loads(RECIPE.read_text())["stages"]
    segmenter = Segmenter(find_bundle("hippocampus_segmentation"), torch.device("cpu"))
    names = {value: label.name for value, label in segmenter.bundle.labels.items()}
    table = Table("trained on", "cases", "epochs", *(f"Dice, {n}" for n in names.values()), "Dice, both", "minus real")
    first: dict[str, list[LabelScore]] = {}
    for name, cases in {"real": real, "synthetic": synthetic, "both": real + synthetic}.items():
        epochs = max(1, round(stage["max_epochs"] * len(real) / len(cases)))
        folder = linked(cases, arguments.output / name / "data")
        (run,) = run_recipe(RECIPE, folder, arguments.output / name, epochs=epochs)
        segmenter.network.load_state_dict(torch.load(run / "models" / "model.pt", weights_only=True))
        scores = {}
        for case in held_out:
            image, truth = read_volume(case["image"]), read_label_map(case["label"])
            scores[case["name"]] = score_labels(segmenter(image).labels, truth.array, truth.spacing, names)
        first = first or scores
        rows = summary(list(scores.values()), np.random.default_rng(0))
        both, reference = (
            [np.mean([score.dice for score in result[case]]) for case in scores] for result in (scores, first)
        )
        difference = "" if scores is first else interval(paired_difference(both, reference, np.random.default_rng(0)))
        table.add_row(name, str(len(cases)), str(epochs), *(interval(row.dice) for row in rows), difference)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
