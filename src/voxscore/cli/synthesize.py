"""`voxscore synthesize`: a data set of labelled volumes that show nobody."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

import voxscore
from voxscore.errors import UserError

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
    """
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
    if made.entries:
        made.finish()
        print(f"{len(made.entries)} volumes in {output}. Look at {output / 'contact_sheet.png'} first.")
    if made.failures:
        raise typer.Exit(1 if made.entries else 2)
