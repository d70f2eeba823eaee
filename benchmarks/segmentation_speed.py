"""Seconds and memory of `voxscore segment` beside `monai.bundle run` and a plain float32 MONAI loop.

    python benchmarks/segmentation_speed.py --data DATASET [--cases 52] [--repeats 3]

Every row is whole processes on the same volumes, the repeats interleaved, the best of each kept (other work on a
machine only ever adds time). Seconds per volume is the difference between many volumes and one, so that start-up
does not count. Dice is against the reference labels, so that speed cannot be bought with quality.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from voxscore.bundles import Bundle, find_bundle
from voxscore.evaluation import score_labels
from voxscore.training import datalist
from voxscore.volumes import base_name, read_label_map


def commands(bundle: Bundle, images: Path, output: Path) -> dict[str, list[str]]:
    """What is compared: name -> command."""
    python = [sys.executable, "-W", "ignore"]
    plain = [*python, str(Path(__file__).with_name("plain_monai_loop.py")), str(bundle.root), str(images), str(output)]
    run = ["--config_file", str(bundle.config("inference")), "--bundle_root", str(bundle.root)]
    run += ["--logging_file", str(bundle.root / "configs" / "logging.conf")]
    run += ["--dataset_dir", str(images), "--output_dir", str(output)]
    return {
        "voxscore segment": [*python, "-m", "voxscore", "segment", str(images), "-o", str(output)],
        "monai.bundle run": [*python, "-m", "monai.bundle", "run", *run],
        "plain fp32 loop": plain,
        "plain fp32 loop, 48x64x48 window": [*plain, "--window"],
    }


def timed(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident MiB of one process."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(f"exit status {status}: {' '.join(command)}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def mean_dice(output: Path, labels: dict[str, Path]) -> float:
    """Mean over cases and both labels."""
    scores = []
    for file in output.glob("*.nii.gz"):
        reference = read_label_map(labels[base_name(file).removesuffix("_seg")])
        found = score_labels(read_label_map(file).array, reference.array, reference.spacing, {1: "1", 2: "2"})
        scores += [score.dice for score in found]
    return float(np.mean(scores))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", default="hippocampus_segmentation")
    parser.add_argument("--cases", type=int, default=52)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    bundle, cases = find_bundle(arguments.bundle), datalist(arguments.data)[: arguments.cases]
    labels = {case["name"]: Path(case["label"]) for case in cases}
    seconds: dict[tuple[str, str], list[float]] = {}
    memory: dict[str, float] = {}
    dice: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {"one": cases[:1], "many": cases}
        for kind, chosen in folders.items():
            (Path(scratch) / kind).mkdir()
            for case in chosen:
                shutil.copy(case["image"], Path(scratch) / kind)
        for _ in track(range(arguments.repeats), "measuring", console=Console(stderr=True)):
            for kind in folders:
                output = Path(scratch) / "output"
                for name, command in commands(bundle, Path(scratch) / kind, output).items():
                    wall, peak = timed(command)
                    seconds.setdefault((name, kind), []).append(wall)
                    memory[name] = max(memory.get(name, 0.0), peak)
                    if kind == "many":
                        dice[name] = mean_dice(output, labels)
                    shutil.rmtree(output)
    n = len(cases)
    table = Table("", "one volume [s]", f"{n} volumes [s]", "per volume [ms]", "ratio", "peak [MiB]", "mean Dice")
    best = {key: min(values) for key, values in seconds.items()}
    each = {name: (best[name, "many"] - best[name, "one"]) / (n - 1) for name in memory}
    for name in memory:
        ratio = each[name] / each["voxscore segment"]
        cells = (f"{best[name, 'one']:.2f}", f"{best[name, 'many']:.2f}", f"{1000 * each[name]:.0f}", f"{ratio:.2f}")
        table.add_row(name, *cells, f"{memory[name]:.0f}", f"{dice[name]:.4f}")
    Console(width=120).print(table)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, best of {arguments.repeats} runs")


if __name__ == "__main__":
    main()
