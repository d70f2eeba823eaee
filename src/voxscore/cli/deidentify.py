"""`voxscore deidentify`: DICOM files, NIfTI volumes and BIDS data sets without the people in them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from typer.core import TyperGroup

import voxscore

__all__ = ["app"]


class _RunByDefault(TyperGroup):
    """What is no command is an input: `voxscore deidentify FOLDER ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "--help"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="deidentify",
    cls=_RunByDefault,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="De-identify DICOM (PS3.15 Annex E), NIfTI and BIDS: voxscore deidentify INPUT --output DIR --key FILE.",
)

Profile = Annotated[
    str, typer.Option(help="basic, research, tcia or strict; more options after plus signs: basic+modified-dates.")
]


@app.command()
def run(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A file, or a folder with all below it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder, or one of the same run cut short.")],
    key: Annotated[Path, typer.Option(help="File with the secret key; make one with 'openssl rand -hex 32'.")],
    profile: Profile = "research",
    crosswalk: Annotated[
        Path | None, typer.Option(help="Write old and new identifiers to this file, outside the output.")
    ] = None,
    pixel_rules: Annotated[
        Path | None, typer.Option(help="JSON: where which kind of image carries text.", show_default="none")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes.", show_default="one a core")] = 0,
) -> None:
    """De-identify a file or a folder of DICOM files, NIfTI volumes or a BIDS data set; the default command.

    NIfTI headers are built anew, and names, sidecars and tables coded or reduced. Faces stay: see voxscore deface.

    The same key gives the same result, and a run that was killed goes on where it stopped. What cannot be judged or
    cleaned is not released: it is copied to OUTPUT_quarantine, and the exit code is 1.

    [bold]Examples[/bold]

        openssl rand -hex 32 > study.key

        voxscore deidentify scans/ --output shared --key study.key

        voxscore deidentify scans/ --output shared --key study.key --profile strict --crosswalk private/codes.csv

        voxscore deidentify verify shared --originals scans/
    """
    settings = voxscore.deidentify.Settings(key, profile, crosswalk, pixel_rules)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("de-identifying", total=None)
        summary = voxscore.deidentify.deidentify_tree(
            source,
            output,
            settings,
            workers or len(os.sched_getaffinity(0)),
            lambda done, files: progress.update(task, completed=done, total=files),
        )
    print(f"{summary.done} files in {output}; {summary.manifest} tells what was done")
    for reason, count in sorted(summary.quarantined.items()):
        print(f"voxscore: {count} not released: {reason}", file=sys.stderr)
    if summary.quarantined:
        print(f"voxscore: they lie in {voxscore.deidentify.quarantine_of(output)}", file=sys.stderr)
        raise typer.Exit(1 if summary.done else 2)


@app.command()
def verify(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Output folder of a run.")],
    originals: Annotated[
        Path | None, typer.Option(help="The originals: the outputs are searched for their names, numbers and UIDs.")
    ] = None,
) -> None:
    """Search the outputs of a run for what should not be there."""
    findings = voxscore.deidentify.verify(output, originals)
    for finding in findings:
        print(f"voxscore: {finding.file or output}: {finding.fault}", file=sys.stderr)
    if findings:
        raise typer.Exit(1)
    print("nothing found" if originals else "nothing found; give --originals to search for their names and numbers")


@app.command()
def explain(tag: Annotated[str, typer.Argument(metavar="TAG", help="00100010, (0010,0010) or PatientName.")]) -> None:
    """Say what the profile and its options do to an attribute."""
    print(voxscore.deidentify.explain(tag))


@app.command("conformance-statement")
def conformance_statement(profile: Profile = "research") -> None:
    """Print the conformance statement of a profile, in Markdown."""
    print(voxscore.deidentify.conformance_statement(voxscore.deidentify.find_profile(profile)))
