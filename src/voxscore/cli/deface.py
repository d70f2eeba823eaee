"""`voxscore deface`: head images without the face."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import voxscore
from voxscore.errors import UserError

__all__ = ["deface"]


def deface(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...", help="Volumes (.nii .nii.gz .nrrd .mha), folders of volumes, or DICOM series folders."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A file for one input, a folder for several.")],
    brain: Annotated[
        Path | None,
        typer.Option(help="Brain mask on the grid of every input.", show_default="estimated from each image"),
    ] = None,
    margin: Annotated[float, typer.Option(help="Distance kept from the brain, in mm.")] = 8.0,
    fill: Annotated[float | None, typer.Option(help="Value put there.", show_default="the image's background")] = None,
    series: Annotated[str | None, typer.Option(help="Which DICOM series: its number or UID.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a machine-readable manifest.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
) -> None:
    """Take the face out of head images, and the header's text with it.

    Everything in front of and below the brain becomes background; no voxel of the brain changes.
    Where brain or face cannot be told apart, nothing is written. Look at every result: forehead and ears
    stay, and no tool makes a head anonymous. File names stay too.

    [bold]Examples[/bold]

        voxscore deface head.nii.gz --output head_defaced.nii.gz

        voxscore deface head.nii.gz --output defaced --brain brain_mask.nii.gz

        voxscore deface heads/ --output defaced --json
    """
    sources: dict[Path, Path] = {}
    failures: list[dict[str, str]] = []
    for path in inputs:
        try:
            sources |= {p.parent.resolve() / p.name: p for p in voxscore.volumes.find_volumes(path, series)}
        except UserError as error:
            _complain(failures, error, path)
    as_file = voxscore.volumes.volume_suffix(output) != "" and not output.is_dir()
    if as_file and len(sources) + len(failures) > 1:
        raise UserError(output, "is the name of one file, but there are several inputs", "name a folder")
    if not as_file and output.exists() and not output.is_dir():
        raise UserError(output, "is a file, and not of a kind that voxscore writes", "name a folder")
    entries: list[dict[str, Any]] = []
    named: set[Path] = {path.resolve() for path in sources.values()}
    taken: set[Path] = set()
    console = Console(stderr=True)
    for source in track(sources.values(), "defacing", console=console, transient=True, disable=not sys.stderr.isatty()):
        try:
            volume = voxscore.volumes.read_volume(source, series)
            suffix = voxscore.volumes.volume_suffix(source) or ".nii.gz"
            target = output if as_file else output / f"{volume.name}{suffix}"
            if target.resolve() in named | taken:
                raise UserError(target, "is an input or the output of another input", "choose another output")
            entry = voxscore.deidentify.deface_file(volume, target, brain, margin, fill, overwrite)
            taken.add(target.resolve())
            entries.append({"input": str(source), **entry})
        except UserError as error:
            _complain(failures, error, source)
    if json:
        manifest = {"voxscore": voxscore.__version__, "results": entries, "failures": failures}
        print(json_format.dumps(manifest, indent=2))
    elif sys.stdout.isatty() and entries:
        Console(markup=False, emoji=False).print(_table(entries))
    if any(entry["brain"] == "estimated" for entry in entries):
        print("voxscore: the brain was estimated: look at every result before it leaves", file=sys.stderr)
    if failures:
        raise typer.Exit(1 if entries else 2)


def _complain(failures: list[dict[str, str]], error: UserError, source: Path) -> None:
    print(f"voxscore: {error}", file=sys.stderr)
    failures.append({"input": str(source), "error": str(error)})


def _table(entries: list[dict[str, Any]]) -> Table:
    table = Table("output", box=None)
    for name in ("brain [mL]", "brain lost", "removed [mL]", "face surface removed [%]"):
        table.add_column(name, justify="right")
    for entry in entries:
        surface = f"{100 * entry['face_surface_removed']:.0f}"
        numbers = (
            f"{entry['brain_ml']:.0f}",
            str(entry["brain_removed"]),
            f"{entry['tissue_removed_ml']:.0f}",
            surface,
        )
        table.add_row(entry["path"], *numbers)
    return table
