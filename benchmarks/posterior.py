"""How good and how honest a posterior over labels is, on cases that its network never saw.

    python benchmarks/posterior.py --data DATASET [--samples 40] [--picture reliability.png]
    python benchmarks/posterior.py --data DATASET --samples 16 --training-cases

Prints, for the held-out cases that the bundle's metadata names: Dice of one evaluation, and of the class that most of
16 and of N samples give, paired difference, expected calibration error of each over voxels within 3 of the predicted
foreground, how often the true volume of a structure lies in its interval, and z, the root mean square of (true - mean)
/ SD of the samples' volumes, 1 if the spread is right. Then how rough the true labels are, those of one evaluation and
the samples. Means with bootstrap 95 % intervals over cases; coverage with Wilson's.

With `--training-cases`, every twelfth case of the training set instead: that is where `correlation_gain` of the
bundle's inference.json was set so that z is about 1.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from synthesis import roughness

from voxscore.bundles import find_bundle
from voxscore.evaluation import (
    CalibrationMetric,
    bootstrap_mean,
    interval_coverage,
    label_volumes,
    reliability_diagram,
    score_labels,
)
from voxscore.segmentation import Segmenter
from voxscore.training import datalist
from voxscore.volumes import read_label_map, read_volume

MARGIN = 3  # voxels


def interval(values: list[float]) -> str:
    """`mean (low to high)`."""
    found = bootstrap_mean(values, np.random.default_rng(0))
    return f"{found.mean:.4f} ({found.low:.4f} to {found.high:.4f})"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", default="hippocampus_posterior")
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--picture", type=Path, help="reliability diagram of the samples' shares")
    parser.add_argument("--one-evaluation-only", action="store_true")
    parser.add_argument("--training-cases", action="store_true")
    arguments = parser.parse_args()
    bundle = find_bundle(arguments.bundle)
    segmenter = Segmenter(bundle, torch.device("cpu"))
    kept_out = set(bundle.metadata["held_out_cases"])
    cases = [case for case in datalist(arguments.data) if (case["name"] in kept_out) != arguments.training_cases]
    cases = cases[::12] if arguments.training_cases else cases
    names = {value: label.name for value, label in bundle.labels.items()}
    ways = ["one evaluation"] + (
        [] if arguments.one_evaluation_only else ["16 samples", f"{arguments.samples} samples"]
    )
    dice: dict[str, list[list[float]]] = {way: [] for way in ways}
    calibration = {way: CalibrationMetric(margin=MARGIN) for way in ways}
    truths: dict[str, list[float]] = {name: [] for name in names.values()}
    intervals: dict[str, list[tuple[float, float]]] = {name: [] for name in names.values()}
    errors: dict[str, list[float]] = {name: [] for name in names.values()}
    rough: dict[str, list[float]] = {"true labels": [], ways[0]: [], "samples": []}
    seconds = {way: 0.0 for way in ways}
    level = float("nan")
    for case in track(cases, "cases", console=Console(stderr=True)):
        image, truth = read_volume(case["image"]), read_label_map(case["label"])
        target = torch.from_numpy(truth.array.astype(np.int64))[None, None]
        found = segmenter(image)
        seconds[ways[0]] += found.seconds
        results = {ways[0]: (found.labels, found.probabilities)}
        if not arguments.one_evaluation_only:
            start = time.perf_counter()
            drawn = segmenter.sample(image, arguments.samples).posterior
            assert drawn is not None
            seconds[ways[-1]] += time.perf_counter() - start
            for way, n in zip(ways[1:], (16, arguments.samples), strict=True):
                shares = np.stack([(drawn.samples[:n] == k).mean(0, dtype=np.float32) for k in range(len(names) + 1)])
                results[way] = (shares.argmax(0).astype(np.uint8), shares)
            level = drawn.level
            rough["true labels"].append(roughness(truth.array))
            rough[ways[0]].append(roughness(found.labels))
            rough["samples"].append(float(np.mean([roughness(labels) for labels in drawn.samples])))
            volumes = [label_volumes(labels, image.affine, names) for labels in drawn.samples]
            for name, v in label_volumes(truth.array, truth.affine, names).items():
                truths[name].append(v)
                of_samples = [each[name] for each in volumes]
                errors[name].append((v - float(np.mean(of_samples))) / float(np.std(of_samples, ddof=1)))
            for name, volume in drawn.volume_intervals(image.affine, names).items():
                intervals[name].append((volume.low_ml, volume.high_ml))
        for way, (labels, probabilities) in results.items():
            dice[way].append([score.dice for score in score_labels(labels, truth.array, truth.spacing, names)])
            calibration[way](torch.from_numpy(probabilities)[None], target)
    table = Table("", *(f"Dice, {name}" for name in names.values()), "Dice, both", "minus one evaluation", "ECE", "s")
    for way in ways:
        values = np.array(dice[way])
        both = values.mean(1)
        difference = both - np.array(dice[ways[0]]).mean(1)
        table.add_row(
            way,
            *(interval(values[:, k].tolist()) for k in range(values.shape[1])),
            interval(both.tolist()),
            interval(difference.tolist()),
            f"{calibration[way].aggregate():.4f}",
            f"{seconds[way] / len(cases):.2f}",
        )
    Console(width=200).print(table)
    if arguments.one_evaluation_only:
        return
    for name, found_intervals in intervals.items():
        low, high = np.array(found_intervals).T
        coverage = interval_coverage(low, high, truths[name])
        print(
            f"{name}: {level:.2f} intervals hold {coverage.share:.3f} ({coverage.low:.3f} to {coverage.high:.3f}) of "
            f"{coverage.n} true volumes; mean width {np.mean(high - low):.3f} mL of {np.mean(truths[name]):.3f} mL; "
            f"z = {np.sqrt(np.mean(np.square(errors[name]))):.2f}"
        )
    print("roughness:", ", ".join(f"{name} {np.mean(values):.2f}" for name, values in rough.items()))
    if arguments.picture:
        table_of = calibration[ways[-1]].result().top_label
        reliability_diagram(table_of, f"{bundle.name}, {arguments.samples} samples").save(arguments.picture)


if __name__ == "__main__":
    main()
