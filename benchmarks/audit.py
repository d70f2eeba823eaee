"""The privacy audit's own error rates, on real cases and on sets whose answer is known.

    python benchmarks/audit.py --training DIR --held-out DIR [--splits 200] [--copies 20]

Compares all real cases with each other once, and prints

    fresh       part of fresh cases that are flagged at the 5 % setting, over random splits of all real cases in
                training, held-out and fresh ones; and the same with the threshold of the other pool
    planted     how many of 30 planted copies (5 % noise, shift) are found, and their likeness beside that of strangers
    changed     the same for copies that are also mirrored, turned, cropped, smoothed or bent in contrast

This takes about 8 minutes on one core for 208 cases.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, rotate
from torch import Generator, Tensor

from voxscore.audit import find_cases
from voxscore.evaluation import Registration, copy_count, copy_threshold, on_grid, planted_copy, search_grid
from voxscore.volumes import Volume, read_volume


def mirrored(array: np.ndarray) -> np.ndarray:
    return array[::-1].copy()


def turned(array: np.ndarray) -> np.ndarray:
    return rotate(array, 6.0, axes=(0, 1), reshape=False, order=1, mode="nearest")


def cropped(array: np.ndarray) -> np.ndarray:
    return array[array.shape[0] // 8 :, : -(array.shape[1] // 8), :]


def smoothed(array: np.ndarray) -> np.ndarray:
    return gaussian_filter(array, 1.0)


def bent(array: np.ndarray) -> np.ndarray:
    low, high = np.percentile(array, [0.5, 99.5])
    return np.clip((array - low) / (high - low), 0, 1) ** 1.6


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mirrored": mirrored,
    "turned 6 degrees": turned,
    "cropped by an eighth on two sides": cropped,
    "smoothed 1 voxel": smoothed,
    "gamma 1.6": bent,
}


def planted(volumes: list[Volume], change: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator) -> list:
    return [planted_copy(np.ascontiguousarray(change(v.array)), rng) for v in volumes]


def fresh_rates(likeness: Tensor, splits: int, generator: Generator) -> tuple[list[float], list[float]]:
    """Flagged part of fresh cases by our threshold, and by that of the other pool, for each split."""
    n = len(likeness)
    held, fresh = n // 5, n // 5
    ours, theirs = [], []
    for _ in range(splits):
        order = torch.randperm(n, generator=generator)
        a, b, training = order[:held], order[held : held + fresh], order[held + fresh :]
        scores, known = (likeness[rows][:, training].amax(1) for rows in (b, a))
        ours.append(copy_count(scores, known).count / fresh)
        threshold = torch.quantile(likeness[training][:, a].amax(1), 0.95)
        theirs.append(float((scores > threshold).double().mean()))
    return ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--copies", type=int, default=20, help="of each kind of changed copies")
    arguments = parser.parse_args()
    training, held_out = (
        [read_volume(case.image) for case in find_cases(folder)] for folder in (arguments.training, arguments.held_out)
    )
    grid = search_grid([v.array.shape for v in training], [v.affine for v in training])
    real = torch.stack([on_grid(v.array, v.affine, grid) for v in training + held_out])
    n = len(training)
    registration, rng = Registration(real[:n], grid), np.random.default_rng(0)

    sources = rng.permutation(n)[:30]
    volumes = [training[i] for i in sources]
    held = registration.likeness(real[n:], real[:n]).amax(1)
    threshold = copy_threshold(held)
    print(f"strangers: likeness {held.min():.3f} to {held.max():.3f}, threshold {threshold:.3f}")
    for name, change in {"as in every audit": lambda a: a, **CHANGES}.items():
        number = 30 if name == "as in every audit" else arguments.copies
        arrays = planted(volumes[:number], change, rng)
        queries = torch.stack([on_grid(a, v.affine, grid) for a, v in zip(arrays, volumes, strict=False)])
        likeness, nearest = registration.likeness(queries, real[:n]).max(1)
        found = (nearest == torch.from_numpy(sources[:number].copy())) & (likeness > threshold)
        print(f"planted, {name}: {int(found.sum())} of {number} found, likeness {likeness.min():.3f} and more")

    likeness = registration.likeness(real, real, torch.eye(len(real), dtype=torch.bool))
    ours, theirs = fresh_rates(likeness, arguments.splits, Generator().manual_seed(0))
    for name, rates in {"held-out to training": ours, "the other pool": theirs}.items():
        print(f"fresh, threshold from {name}: {np.mean(rates):.1%} flagged on average, {np.std(rates):.1%} over splits")


if __name__ == "__main__":
    main()
