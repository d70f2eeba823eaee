"""`voxscore evaluate`: label maps against references."""

from __future__ import annotations

import csv as csv_format
import json as json_format
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import voxscore
from voxscore.errors import UserError

if TYPE_CHECKING:
    from voxscore.evaluation import Estimate, LabelScore

__all__ = ["evaluate"]

WIDE = 10_000


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
    for target in (csv, json):
        if target is not None and target.exists() and not overwrite:
            raise UserError(target, "exists already", "choose another output, or replace it with --overwrite")
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
            partial.write_text(json_format.dumps(_finite(content), indent=2, allow_nan=False) + "\n")
    # Piped, a row is a line, however long.
    console = Console(width=None if sys.stdout.isatty() else WIDE, markup=False, emoji=False)
    columns = ("Dice", "HD95 mm", f"surface Dice {tolerance:g} mm", "volume error mL")
    cases = _table(("case", "label"), columns)
    for row in rows:
        cells = (row["dice"], row["hd95_mm"], row["surface_dice"], row["volume_error_ml"])
        cases.add_row(row["case"], row["name"], *(f"{v:.3f}" for v in cells))
    averages = _table(("mean (95 % interval)",), columns)
    for mean in means:
        estimates = (mean.dice, mean.hd95_mm, mean.surface_dice, mean.volume_error_ml)
        averages.add_row(mean.name, *(_interval(e) for e in estimates))
    console.print(cases)
    console.print()
    console.print(averages)


def _table(names: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(*names, box=None)
    for number in numbers:
        table.add_column(number, justify="right")
    return table


def _finite(content: Any) -> Any:
    """The content with null for NaN and infinity, which JSON lacks; Dice 0 tells a missed label from an absent one."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not np.isfinite(content) else content


def _columns(score: LabelScore) -> dict[str, Any]:
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
    by_name, by_prediction = _by_name(truth), _by_name(found)
    if not (matched := sorted(by_name.keys() & by_prediction.keys())):
        raise UserError(predictions, f"shares no file name with {references}", "give matching names")
    if lacking := sorted(by_name.keys() - by_prediction.keys()):
        raise UserError(
            predictions, f"lacks {len(lacking)} of {len(by_name)} references, first {lacking[0]}", "segment them too"
        )
    return [(name, by_prediction[name], by_name[name]) for name in matched]


def _by_name(paths: list[Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in paths:
        if (other := named.setdefault(voxscore.volumes.base_name(path), path)) != path:
            raise UserError(path, f"has the base name of {other.name}", "keep one of them")
    return named


def _load(prediction: Path, reference: Path) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Both label maps as integers, and the voxel size in mm; they must share one grid."""
    p, r = voxscore.volumes.read_label_map(prediction), voxscore.volumes.read_label_map(reference)
    if p.array.shape != r.array.shape or not np.allclose(p.affine, r.affine, atol=1e-3):
        raise UserError(prediction, f"does not lie on the grid of {reference}", "resample it to the reference")
    return p.array, r.array, r.spacing
