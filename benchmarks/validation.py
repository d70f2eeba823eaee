"""Dice of trained runs on the cases each kept out, and paired differences between runs.

    python benchmarks/validation.py --data DATASET RUN [RUN ...]

RUN is a stage's folder as `voxscore train` leaves it (provenance.json, models/model.pt). All runs must have kept out
the same cases. Differences are per case against the first run, with a bootstrap 95 % interval of their mean over
cases; with one seed a run, that interval says how sure the difference is for these two networks, not for the method.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from voxscore.bundles import find_bundle
from voxscore.evaluation import Estimate, LabelScore, paired_difference, score_labels, summary
from voxscore.networks import ScoreUNet
from voxscore.segmentation import Segmenter
from voxscore.training import datalist
from voxscore.volumes import read_label_map, read_volume


def scores_of(run: Path, segmenter: Segmenter, data: Path) -> dict[str, list[LabelScore]]:
    """Scores of each case the run kept out, by name."""
    record = json.loads((run / "provenance.json").read_text())
    definition = json.loads(segmenter.bundle.config("train").read_text())["network_def"]
    network = ScoreUNet(3, 1, 3, definition["channels"], record["settings"]["squeeze_excitation"])
    network.load_state_dict(torch.load(run / "models" / "model.pt", weights_only=True))
    segmenter.network = network.eval().to(segmenter.device, memory_format=torch.channels_last_3d)
    kept_out = set(record["validation_cases"])
    names = {value: label.name for value, label in segmenter.bundle.labels.items()}
    scores = {}
    for case in datalist(data):
        if case["name"] in kept_out:
            image, truth = read_volume(case["image"]), read_label_map(case["label"])
            scores[case["name"]] = score_labels(segmenter(image).labels, truth.array, truth.spacing, names)
    return scores


def interval(estimate: Estimate, digits: int = 4) -> str:
    """`mean (low to high)`."""
    return f"{estimate.mean:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    segmenter = Segmenter(find_bundle("hippocampus_segmentation"), torch.device("cpu"))
    table = Table("run", "epochs", "cases", "label", "Dice", "HD95 [mm]", "Dice minus first run")
    first: dict[str, list[LabelScore]] = {}
    for run in arguments.runs:
        scores = scores_of(run, segmenter, arguments.data)
        first = first or scores
        if scores.keys() != first.keys():
            raise SystemExit(f"{run} kept out other cases than {arguments.runs[0]}")
        epochs = json.loads((run / "history.jsonl").read_text().splitlines()[-1])["epoch"]
        for position, row in enumerate(summary(list(scores.values()), np.random.default_rng(0))):
            columns = []
            for result in (scores, first):
                dice = np.array([[label.dice for label in result[case]] for case in scores])
                columns.append(dice.mean(1) if row.label is None else dice[:, position])
            difference = paired_difference(*columns, np.random.default_rng(0))
            text = interval(difference) if run != arguments.runs[0] else ""
            table.add_row(
                run.name, str(epochs), str(len(scores)), row.name, interval(row.dice), interval(row.hd95_mm, 2), text
            )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
