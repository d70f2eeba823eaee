"""`voxscore synthesize`: a data set of labelled volumes that show nobody."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track

import voxscore
from voxscore.errors import UserError

if TYPE_CHECKING:
    from voxscore.synthesis import SyntheticSet

__all__ = ["synthesize"]

DEFAULT_BUNDLE = "hippocampus_synthesis"


def synthesize(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the data set.")],
    number: Annotated[
        int | None, typer.Option("--number", "-n", help="How many volumes.", show_default="1, or one a mask")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same volumes.", min=0)] = 0,
    condition_on: Annotated[
        list[Path] | None,
        typer.Option(
            "--condition-on", metavar="MASK", help="Label map, or a folder of them, to show; may be given repeatedly."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Evaluations of the network a volume.", show_default="the bundle's")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="ddim, heun, dpmpp-2m, dpmpp-3m, unipc or ancestral.", show_default="the bundle's"),
    ] = None,
    bundle: Annotated[str, typer.Option(help="Name of an installed bundle, or a bundle's folder.")] = DEFAULT_BUNDLE,
    audit: Annotated[
        bool,
        typer.Option("--audit", help="Audit them, and withhold those that may be copies. Needs the next two options."),
    ] = False,
    training: Annotated[
        Path | None, typer.Option(help="For the audit: folder of all volumes the bundle was trained on.")
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option("--held-out", help="For the audit: folder of real volumes it was not trained on.")
    ] = None,
    dicom: Annotated[bool, typer.Option("--dicom", help="Also write DICOM: MR series and DICOM SEG.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:n.")] = "auto",
) -> None:
    """Synthesize labelled volumes: images with their label maps, as a data set to train on.

    Volume k of a seed is always the same. Give the same command again to go on after an interruption,
    or with a greater number for more volumes.

    [bold]Examples[/bold]

        voxscore synthesize --number 8 --output synthetic

        voxscore synthesize --number 200 --output synthetic --seed 1 --dicom

        voxscore synthesize --condition-on crop_seg.nii.gz --number 4 --output variants

        voxscore synthesize --number 200 --output synthetic --audit --training training --held-out held_out
    """
    if audit and (training is None or held_out is None):
        raise UserError("--audit", "lacks the real volumes", "give --training and --held-out")
    if not audit and (training is not None or held_out is not None):
        raise UserError("--training and --held-out", "are for the audit", "add --audit")
    for real in (training, held_out):
        if real is not None:
            voxscore.audit.find_cases(real)  # refused now rather than after the work
    masks = [path for given in condition_on or [] for path in voxscore.volumes.find_volumes(given)]
    wanted = (len(masks) or 1) if number is None else number
    if wanted < 1:
        raise UserError(f"number {wanted}", "asks for no volume", "give 1 or more")
    chosen = voxscore.bundles.find_bundle(bundle)
    synthesizer = voxscore.synthesis.Synthesizer(chosen, voxscore.segmentation.resolve_device(device), steps, sampler)
    made = voxscore.synthesis.SyntheticSet(synthesizer, output, seed, masks, dicom)
    missing = made.missing(wanted)
    if len(missing) < wanted:
        print(f"voxscore: {wanted - len(missing)} of {wanted} volumes are there already", file=sys.stderr)
    console = Console(stderr=True)
    try:
        for k in track(missing, "synthesizing", console=console, transient=True, disable=not sys.stderr.isatty()):
            made.make(k)
    except UserError as error:
        if not made.entries:
            raise
        print(f"voxscore: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    for failure in made.failures.values():
        print(f"voxscore: {failure['name']}: {failure['error']}; not written, try another seed", file=sys.stderr)
    verdict = 0
    if made.entries and training is not None and held_out is not None:
        verdict = _audit(made, training, held_out)
    if made.entries:
        made.finish()
        print(f"{len(made.entries)} volumes in {output}. Look at {output / 'contact_sheet.png'} first.")
    if made.failures:
        raise typer.Exit(1 if made.entries else 2)
    raise typer.Exit(verdict)


def _audit(made: SyntheticSet, training: Path, held_out: Path) -> int:
    """Audits the volumes, withholds those that are flagged, and returns the verdict's exit code."""
    with Console(stderr=True).status("auditing") as status:
        found = voxscore.audit.audit(made.folder, training, held_out, progress=status.update)
    with voxscore.volumes.written_whole(made.folder / "audit.json", True) as partial:
        partial.write_text(json.dumps(found.content(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    names = [case.name for case in found.refused]
    made.withhold(names, f"flagged by the audit, whose verdict is {found.verdict.value}")
    print(f"audit: {found.verdict.value}, {len(names)} volumes withheld; see {made.folder / 'audit.json'}")
    for finding in found.findings:
        if finding.verdict.exit_code:
            print(f"audit: {finding.verdict.value}: {finding.test}: {finding.sentence}")
    return found.verdict.exit_code
