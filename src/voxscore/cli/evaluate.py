"""`voxscore evaluate`: label maps against references."""

from __future__ import annotations

import csv as csv_format
import json as json_format
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import voxscore
from voxscore.errors import UserError

if TYPE_CHECKING:
    from voxscore.evaluation import Estimate, LabelScore

__all__ = ["evaluate"]


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="A label map, or a folder of them.")],
    references: Annotated[Path, typer.Argument(help="The true label map, or a folder with the same file names.")],
    bundle: Annotated[str | None, typer.Option(help="Bundle whose label names are shown.")] = None,
    tolerance: Annotated[float, typer.Option(help="Tolerance of the surface Dice, mm.")] = 1.0,
    csv: Annotated[Path | None, typer.Option(help="Write the scores of every case and label here.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write scores and means with intervals here.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
) -> None:
    """Score label maps: Dice, HD95, surface Dice and volume error, by case and on average.

    [bold]Examples[/bold]

        voxscore evaluate segmentations/ labels/ --csv scores.csv

        voxscore evaluate seg.nii.gz truth.nii.gz --bundle hippocampus_segmentation
    """
    pairs = _pairs(predictions, references)
    maps = {name: _load(prediction, reference) for name, prediction, reference in pairs}
    values = sorted({int(v) for p, r, _ in maps.values() for v in (*np.unique(p), *np.unique(r)) if v})
    if not values:
        raise UserError(predictions, "and the references hold no label at all", "check the folders")
    names = {value: str(value) for value in values}
    if bundle is not None:
        names |= {v: label.name for v, label in voxscore.bundles.find_bundle(bundle).labels.items() if v in names}
    scores = {
        name: voxscore.evaluation.score_labels(p, r, spacing, names, tolerance)
        for name, (p, r, spacing) in maps.items()
    }
    means = voxscore.evaluation.summary(list(scores.values()), np.random.default_rng(0))
    rows = [{"case": case, **_columns(score)} for case, of_case in scores.items() for score in of_case]
    if csv is not None:
        with voxscore.volumes.written_whole(csv, overwrite) as partial, partial.open("w", newline="") as file:
            writer = csv_format.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    if json is not None:
        content = {"tolerance_mm": tolerance, "cases": rows, "means": [asdict(mean) for mean in means]}
        with voxscore.volumes.written_whole(json, overwrite) as partial:
            partial.write_text(json_format.dumps(content, indent=2) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table("case", "label", "Dice", "HD95 mm", f"surface Dice {tolerance:g} mm", "volume error mL", box=None)
    for row in rows:
        cells = (row["dice"], row["hd95_mm"], row["surface_dice"], row["volume_error_ml"])
        table.add_row(row["case"], row["name"], *(f"{v:.3f}" for v in cells))
    table.add_section()
    for mean in means:
        estimates = (mean.dice, mean.hd95_mm, mean.surface_dice, mean.volume_error_ml)
        table.add_row("mean (95 % interval)", mean.name, *(_interval(e) for e in estimates))
    console.print(table)


def _columns(score: LabelScore) -> dict[str, str | float]:
    return {k: v for k, v in asdict(score).items() if k != "label"} | {
        "label": score.label,
        "volume_error_ml": score.volume_error_ml,
    }


def _interval(estimate: Estimate) -> str:
    left_out = f", {estimate.infinite} inf" if estimate.infinite else ""
    if np.isnan(estimate.low):
        return f"{estimate.mean:.3f}{left_out}"
    return f"{estimate.mean:.3f} ({estimate.low:.3f} to {estimate.high:.3f}{left_out})"


def _pairs(predictions: Path, references: Path) -> list[tuple[str, Path, Path]]:
    """(base name, prediction, reference), matched by base name where folders are given."""
    found = voxscore.volumes.find_volumes(predictions)
    truth = voxscore.volumes.find_volumes(references)
    if predictions.is_file() and references.is_file():
        return [(voxscore.volumes.base_name(predictions), predictions, references)]
    by_name = {voxscore.volumes.base_name(path): path for path in truth}
    by_prediction = {voxscore.volumes.base_name(path): path for path in found}
    if not (matched := sorted(by_name.keys() & by_prediction.keys())):
        raise UserError(predictions, f"shares no file name with {references}", "give matching names")
    if lacking := sorted(by_name.keys() - by_prediction.keys()):
        raise UserError(
            predictions, f"lacks {len(lacking)} of {len(by_name)} references, first {lacking[0]}", "segment them too"
        )
    return [(name, by_prediction[name], by_name[name]) for name in matched]


def _load(prediction: Path, reference: Path) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Both label maps as integers, and the voxel size in mm; they must share one grid."""
    p, r = voxscore.volumes.read_label_map(prediction), voxscore.volumes.read_label_map(reference)
    if p.array.shape != r.array.shape or not np.allclose(p.affine, r.affine, atol=1e-3):
        raise UserError(prediction, f"does not lie on the grid of {reference}", "resample it to the reference")
    return p.array, r.array, r.spacing
