"""`voxscore simulate`: what a scanner would have measured of a volume, as a file to reconstruct."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

import voxscore
from voxscore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from voxscore.volumes import Volume

__all__ = ["simulate"]

OPTIONS = {
    "mri": ("acceleration", "coils", "sampling", "partial_fourier", "phase_encoding", "noise", "with_maps"),
    "ct": ("angles", "geometry", "photons"),
    "super-resolution": ("factor", "noise"),
    "denoise": ("noise",),
    "inpaint": ("mask", "noise"),
}
SAMPLINGS = ("equispaced", "random", "variable-density", "poisson-disc")
MIDDLE = 24
"""Lines of the fully sampled middle along each axis, unless they were more than half of what is measured."""
WATER = 0.0193
"""Attenuation of water per mm at 70 keV, about the mean of a spectrum of 120 kV."""
AIR = -500
"""Hounsfield units that some voxel of a volume with air is below."""
SOURCE_TO_ISOCENTRE, SOURCE_TO_DETECTOR = 595.0, 1085.0
"""Of the fan, in mm, about those of clinical scanners."""


def simulate(
    volume: Annotated[
        Path, typer.Argument(metavar="VOLUME", help="A volume (.nii .nii.gz .nrrd .mha) or a DICOM series folder.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .h5 for mri and ct, .nii.gz for the others.")
    ],
    operator: Annotated[str, typer.Option(help="mri, ct, super-resolution, denoise or inpaint.")] = "mri",
    acceleration: Annotated[
        float | None, typer.Option(help="mri: how many times less than all is measured.", show_default="4")
    ] = None,
    coils: Annotated[int | None, typer.Option(help="mri: receive coils.", min=1, show_default="8")] = None,
    sampling: Annotated[
        str | None,
        typer.Option(help=f"mri: {', '.join(SAMPLINGS)}.", show_default="variable-density"),
    ] = None,
    partial_fourier: Annotated[
        float | None,
        typer.Option(help="mri: share of the first phase encoding that is measured, such as 0.75.", show_default="all"),
    ] = None,
    phase_encoding: Annotated[
        str | None,
        typer.Option(help="mri: axes that are undersampled, such as y or yz.", show_default="yz, equispaced y"),
    ] = None,
    with_maps: Annotated[
        bool | None, typer.Option("--with-maps", help="mri: also write the coil sensitivities.", show_default=False)
    ] = None,
    angles: Annotated[int | None, typer.Option(help="ct: views.", min=1, show_default="180")] = None,
    geometry: Annotated[str | None, typer.Option(help="ct: parallel or fan.", show_default="parallel")] = None,
    photons: Annotated[
        float | None, typer.Option(help="ct: sent to each detector element.", show_default="no noise")
    ] = None,
    factor: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="X Y Z", help="super-resolution: how much coarser along each axis."),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="inpaint: a label map, 1 where the image is seen.")] = None,
    noise: Annotated[
        float | None,
        typer.Option(
            help="Standard deviation as a share of the maximum, of mri in the coils' images.",
            show_default="mri 0.01, denoise 0.05, else none",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same measurement.", min=0)] = 0,
    series: Annotated[str | None, typer.Option(help="Which DICOM series: its number or UID.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Simulate the measurement of a volume: k-space, a sinogram, thick slices, noise or holes.

    The image is given a smooth phase that reconstruction has to find; coil sensitivities are left out of the file
    unless asked for. CT takes volumes in Hounsfield units and measures attenuation per mm times mm.

    [bold]Examples[/bold]

        voxscore simulate brain.nii.gz --operator mri --acceleration 4 --coils 8 --output kspace.h5

        voxscore simulate brain.nii.gz --sampling equispaced --partial-fourier 0.75 -o kspace.h5

        voxscore simulate chest.nii.gz --operator ct --angles 60 --photons 100000 -o sinogram.h5

        voxscore simulate brain.nii.gz --operator super-resolution --factor 1 1 4 -o thick.nii.gz
    """
    given = {name: value for name, value in locals().items() if value is not None}
    if operator not in OPTIONS:
        raise UserError(f"operator {operator}", "is not known", f"choose one of: {', '.join(OPTIONS)}")
    for name in sorted({name for names in OPTIONS.values() for name in names} - set(OPTIONS[operator])):
        if name in given:
            raise UserError(f"--{name.replace('_', '-')}", f"means nothing for operator {operator}", "leave it away")
    suffixes = (".h5", ".hdf5") if operator in ("mri", "ct") else (".nii", ".nii.gz")
    if not output.name.lower().endswith(suffixes):
        raise UserError(output, f"a file of operator {operator} ends in another way", f"use {' or '.join(suffixes)}")
    options = {name: given[name] for name in OPTIONS[operator] if name in given}
    image = voxscore.volumes.read_volume(volume, series)
    with voxscore.volumes.written_whole(output, overwrite) as partial_file:
        if operator == "mri":
            done = _mri(image, partial_file, seed, **options)
        elif operator == "ct":
            done = _ct(image, partial_file, seed, **options)
        else:
            done = _image(image, partial_file, seed, operator, options, series)
    print(f"{output}: {done}")


def _mri(
    image: Volume,
    path: Path,
    seed: int,
    acceleration: float = 4,
    coils: int = 8,
    sampling: str = "variable-density",
    partial_fourier: float | None = None,
    phase_encoding: str | None = None,
    noise: float = 0.01,
    with_maps: bool = False,
) -> str:
    mask = _mask(image.array.shape, acceleration, sampling, partial_fourier, phase_encoding)
    scanner = voxscore.transforms.SimulateKspace(mask, coils, noise)
    scanner.set_random_state(seed)
    scan = scanner(voxscore.transforms.LoadVolume()(image))
    # Those of the scan hold the phase of the image, which no calibration of coils would know.
    maps = voxscore.measurement.simulate_maps(coils, image.array.shape).numpy() if with_maps else None
    raw = voxscore.volumes.make_raw(
        scan.kspace.numpy(), path, "voxscore", scan.mask.numpy(), maps=maps, affine=image.affine
    )
    voxscore.volumes.write_raw(raw, path, overwrite=True)
    share = 1 / float(scan.mask.float().mean())
    return f"{coils} coils, acceleration {share:.2f}, noise of standard deviation {float(scan.noise_std):.4g}"


def _mask(
    shape: tuple[int, ...], acceleration: float, sampling: str, fraction: float | None, phase_encoding: str | None
) -> Callable[..., Tensor]:
    if sampling not in SAMPLINGS:
        raise UserError(f"sampling {sampling}", "is not known", f"choose one of: {', '.join(SAMPLINGS)}")
    letters = phase_encoding or ("y" if sampling == "equispaced" else "yz")
    if not set(letters) <= set("xyz") or len(set(letters)) != len(letters) or len(letters) > 2:
        raise UserError(f"phase encoding {letters}", "is not one or two axes", "give one of x, y, z, or two such as yz")
    axes = ["xyz".index(letter) for letter in letters]
    if not 1 <= acceleration < math.inf:
        raise UserError("acceleration", f"is {acceleration:g}", "give 1 (all of k-space) or more")
    measured = math.prod(shape[axis] for axis in axes) / acceleration
    middle = min(MIDDLE, *(shape[axis] for axis in axes), int((measured / 2) ** (1 / len(axes))))
    measurement = voxscore.measurement
    common: dict[str, Any] = {"acceleration": acceleration, "center": middle}
    if sampling == "equispaced":
        if len(axes) != 1:
            raise UserError(f"phase encoding {letters}", "are two axes", "equispaced lines run along one, such as y")
        drawn = partial(measurement.equispaced_mask, axis=axes[0], **common)
    elif sampling == "random":
        drawn = partial(measurement.random_mask, axes=axes, **common)
    elif sampling == "poisson-disc":
        drawn = partial(measurement.poisson_disc_mask, axes=axes, **common)
    else:
        drawn = partial(measurement.variable_density_mask, axes=axes, **common)
    if fraction is None:
        return drawn
    side = measurement.partial_fourier_mask(shape, axes[0], fraction)
    return lambda *arguments, **options: drawn(*arguments, **options) & side


def _ct(
    image: Volume, path: Path, seed: int, angles: int = 180, geometry: str = "parallel", photons: float | None = None
) -> str:
    if geometry not in ("parallel", "fan"):
        raise UserError(f"geometry {geometry}", "is not known", "choose parallel or fan")
    if image.array.min() > AIR:
        fault = f"holds no air: its least value is {image.array.min():g}, so it is not in Hounsfield units"
        raise UserError(image.path, fault, "give a CT volume")
    width, size = image.spacing[0], image.array.shape
    views = [(1 if geometry == "parallel" else 2) * math.pi * k / angles for k in range(angles)]
    step, distances = width, None
    rays: Callable[..., Any] = partial(voxscore.measurement.ParallelBeam, angles=views)
    if geometry == "fan":
        distances = SOURCE_TO_ISOCENTRE, SOURCE_TO_DETECTOR
        # One element a voxel, where the rays cross the middle.
        step = width * SOURCE_TO_DETECTOR / SOURCE_TO_ISOCENTRE
        if width * math.hypot(*size[:2]) / 2 >= SOURCE_TO_ISOCENTRE:
            fault = f"its slices reach beyond the source, {SOURCE_TO_ISOCENTRE:g} mm from the middle"
            raise UserError(image.path, fault, "use --geometry parallel")
        rays = partial(
            voxscore.measurement.FanBeam,
            angles=views,
            source_to_isocentre=SOURCE_TO_ISOCENTRE / width,
            source_to_detector=SOURCE_TO_DETECTOR / width,
            spacing=step / width,
        )
    scanner = voxscore.transforms.SimulateSinogram(rays, photons)
    scanner.set_random_state(seed)
    attenuation = replace(image, array=(WATER * (1 + image.array / 1000)).clip(min=0))
    try:
        seen = scanner(voxscore.transforms.LoadVolume()(attenuation))[0].numpy()
    except UserError as error:
        raise UserError(
            image.path if error.subject == "volume" else error.subject, error.fault, error.remedy
        ) from error
    sinogram = voxscore.volumes.make_sinogram(
        *(seen, np.array(views), geometry, step, (size[0], size[1]), image.spacing, path, image.affine),
        *(distances or (None, None)),
    )
    voxscore.volumes.write_sinogram(sinogram, path, overwrite=True)
    return f"{angles} views of {seen.shape[1]} detector elements, {geometry}"


def _image(image: Volume, path: Path, seed: int, operator: str, options: Mapping[str, Any], series: str | None) -> str:
    if operator == "inpaint" and "mask" not in options:
        raise UserError("operator inpaint", "needs to know which voxels are seen", "add --mask")
    if operator == "super-resolution" and "factor" not in options:
        remedy = "add --factor, such as --factor 1 1 4 for slices four times as thick"
        raise UserError("operator super-resolution", "needs to know how thick slices are", remedy)
    seen: Any = voxscore.transforms.LoadVolume()(image)
    noise = options.get("noise", 0.05 if operator == "denoise" else None)
    if operator == "super-resolution":
        factor = options["factor"]
        if min(factor) < 1 or max(factor) == 1 or any(f > n for f, n in zip(factor, image.array.shape, strict=True)):
            subject = f"factor {' '.join(f'{f:g}' for f in factor)}"
            raise UserError(subject, "does not make slices of this volume thicker", "give such as --factor 1 1 4")
        seen = voxscore.transforms.SimulateLowResolution(factor)(seen)
        # The header of the source describes the fine grid.
        image = replace(image, array=seen[0].numpy(), affine=seen.affine.numpy(), header=None)
    if noise is not None:
        scanner = voxscore.transforms.SimulateNoise(noise)
        scanner.set_random_state(seed)
        seen = scanner(seen)
    if operator == "inpaint":
        problem = voxscore.measured.read_measurement(image.path, operator, None, options["mask"], None, 1.0, series)
        seen = problem.prepare().operator(seen)
    voxscore.volumes.write_volume(seen[0].numpy(), image, path, overwrite=True)
    return f"{operator}, {'no noise' if noise is None else f'noise of {noise:g} of the maximum'}"
