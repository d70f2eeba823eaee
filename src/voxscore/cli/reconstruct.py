"""`voxscore reconstruct`: a volume from what a scanner measured, and how sure it is."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

import voxscore
from voxscore.errors import UserError

__all__ = ["reconstruct"]

DEFAULT_BUNDLE = "brain_mri_reconstruction"


def reconstruct(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="K-space (fastMRI, ISMRMRD or voxscore HDF5, BART .cfl), a sinogram (HDF5), or with --operator an "
            "image (.nii .nii.gz .nrrd .mha, a DICOM series folder).",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")],
    bundle: Annotated[str, typer.Option(help="Name of an installed bundle, or a bundle's folder.")] = DEFAULT_BUNDLE,
    operator: Annotated[
        str | None,
        typer.Option(help="What made the image: super-resolution, denoise or inpaint.", show_default="raw data know"),
    ] = None,
    factor: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="X Y Z", help="Of super-resolution: how much finer along each axis of the image."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Samples of the posterior: 2 or more give a spread.", show_default="the bundle's"
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="decomposed, projection, pigdm or dps.", show_default="the bundle's"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Of the sampler, a sample.", show_default="the bundle's")] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="1 where k-space counts as sampled (.npy, .nii.gz, HDF5, .cfl), or where an image was seen.",
            show_default="the file's",
        ),
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(help="Coil sensitivities (.npy, .nii.gz, HDF5, .cfl).", show_default="the file's, or estimated"),
    ] = None,
    noise_std: Annotated[
        float | None,
        typer.Option(help="Standard deviation of the noise, in the input's units.", show_default="estimated"),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Show the network at most N voxels along each axis at once: less memory, more time.",
            show_default="the bundle's",
        ),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="The volume as it is: gives PSNR, SSIM, NMSE and, in the report, the error.")
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Also write a page with pictures.")] = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same samples.", min=0)] = 0,
    series: Annotated[str | None, typer.Option(help="Which DICOM series: its number or UID.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:n.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print a machine-readable manifest.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
) -> None:
    """Reconstruct a volume from raw data, or from an image with thick slices, noise or holes.

    Writes NAME_mean.nii.gz and, of two samples or more, NAME_sd.nii.gz, their standard deviation.
    A DICOM series also gives a DICOM series that refers to it.

    [bold]Examples[/bold]

        voxscore reconstruct kspace.h5 --output out --samples 8 --report

        voxscore reconstruct scan.cfl --output out --maps maps.cfl

        voxscore reconstruct thick.nii.gz --operator super-resolution --factor 1 1 4 --output out

        voxscore reconstruct dicom_folder --operator denoise --series 13 --output out
    """
    if output.exists() and not output.is_dir():
        raise UserError(output, "is a file", "name a folder for the results")
    read = voxscore.measured.read_measurement(source, operator, factor, mask, maps, noise_std, series)
    truth = None if reference is None else voxscore.volumes.read_volume(reference)
    chosen = voxscore.bundles.find_bundle(bundle)
    on = voxscore.segmentation.resolve_device(device)
    reconstructor = voxscore.reconstruction.Reconstructor(chosen, on, steps, method, tile)
    number = reconstructor.samples if samples is None else samples
    outputs = voxscore.reconstruction.Outputs(
        mean=output / f"{read.name}_mean.nii.gz",
        sd=output / f"{read.name}_sd.nii.gz" if number > 1 else None,
        dicom=output / f"{read.name}_mean" if read.source is not None and read.source.format == "dicom" else None,
        report=output / f"{read.name}_report.html" if report else None,
    )
    _check_free(outputs.files(), [source, mask, maps, reference])
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("reconstructing", total=number * reconstructor.advances)
        result = voxscore.reconstruction.reconstruct_measurement(
            reconstructor, read, outputs, overwrite, number, seed, truth, lambda: progress.advance(task)
        )
    entry = result.entry
    for warning in entry["warnings"]:
        print(f"voxscore: warning: {source}: {warning}", file=sys.stderr)
    if json:
        manifest = {"voxscore": voxscore.__version__, **reconstructor.manifest(), **entry}
        print(json_format.dumps(manifest, indent=2))
    elif sys.stdout.isatty():
        _summary(entry)


def _check_free(files: list[Path], inputs: list[Path | None]) -> None:
    """Refuse outputs that are inputs themselves."""
    named = {path.resolve() for path in inputs if path is not None}
    for file in files:
        if file.resolve() in named:
            raise UserError(file, "is an input itself", "choose another output")


def _summary(entry: dict[str, Any]) -> None:
    for name, scores in entry.get("scores", {}).items():
        print(f"{name}: PSNR {scores['psnr']:.2f} dB, SSIM {scores['ssim']:.4f}, NMSE {scores['nmse']:.4g}")
    for written in entry["outputs"]:
        print(written["path"])
    print(f"{entry['samples']} samples of {entry['evaluations']} evaluations in {entry['seconds']:.1f} s")
