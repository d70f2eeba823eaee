"""`voxscore demo`: both hippocampi of the MNI152 template, with nothing to download.

nilearn ships the MNI152 T1 template in its wheel. The hippocampi lie about (±27, -21, -15) mm there; around each
the demo cuts a crop of the size the bundle was trained on, segments the right one mirrored (the bundle's `side`),
and puts both label maps back into the template's grid.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import voxscore
from voxscore.errors import UserError

if TYPE_CHECKING:
    from voxscore.volumes import Volume

__all__ = ["crop_around", "demo", "template_path"]

BUNDLE = "hippocampus_segmentation"
CENTERS_MM = {"left": (-27.0, -21.0, -15.0), "right": (27.0, -21.0, -15.0)}


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("demo"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:n.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
) -> None:
    r"""Segment the hippocampi of the MNI152 template; needs the extra voxscore\[demo]."""
    template = voxscore.volumes.read_volume(template_path())
    bundle = voxscore.find_bundle(BUNDLE)
    on = voxscore.segmentation.resolve_device(device)
    files = {
        "left": output / "mni152_left_hippocampus.nii.gz",
        "right": output / "mni152_right_hippocampus.nii.gz",
        "picture": output / "mni152_hippocampi.png",
    }
    for file in files.values():
        if file.exists() and not overwrite:
            raise UserError(file, "exists already", "choose another --output, or replace it with --overwrite")
    both = np.zeros(template.array.shape, np.uint8)
    table = Table("structure", box=None)
    for column in ("left [mL]", "right [mL]"):
        table.add_column(column, justify="right")
    volumes_ml = {}
    for side, center in CENTERS_MM.items():
        crop, where = crop_around(template, center, bundle.metadata["field_of_view_mm"])
        labels = np.zeros_like(both)
        labels[where] = voxscore.Segmenter(bundle, on, side)(crop).labels
        voxscore.write_volume(labels, template, files[side], bundle.labels, overwrite)
        names = {value: label.name for value, label in bundle.labels.items()}
        volumes_ml[side] = voxscore.evaluation.label_volumes(labels, template.affine, names)
        both = np.maximum(both, labels)
    picture = voxscore.evaluation.contour_sheet(
        template.array,
        both,
        template.affine,
        {value: label.color for value, label in bundle.labels.items()},
        {value: label.name for value, label in bundle.labels.items()},
        title="MNI152 T1 template, both hippocampi",
    )
    with voxscore.volumes.written_whole(files["picture"], overwrite) as partial:
        picture.save(partial, format="PNG")
    for name in volumes_ml["left"]:
        table.add_row(name, *(f"{volumes_ml[side][name]:.2f}" for side in CENTERS_MM))
    table.add_row("whole hippocampus", *(f"{sum(volumes_ml[side].values()):.2f}" for side in CENTERS_MM))
    console = Console(markup=False, emoji=False)
    console.print(table)
    console.print(f"Look at {files['picture']} first.", highlight=False)


def template_path() -> Path:
    """The MNI152 T1 template inside nilearn's wheel, found without importing nilearn.

    Raises:
        UserError: nilearn is not installed, or has no such file.
    """
    package = importlib.util.find_spec("nilearn")
    if package is None or package.origin is None:
        raise UserError("nilearn", "is not installed", "pip install 'voxscore[demo]'")
    found = sorted((Path(package.origin).parent / "datasets" / "data").glob("mni_icbm152_t1*.nii.gz"))
    if not found:
        raise UserError("nilearn", "ships no MNI152 template in this version", "pip install 'nilearn>=0.11'")
    return found[0]


def crop_around(
    volume: Volume, center_mm: tuple[float, float, float], size_mm: tuple[float, float, float]
) -> tuple[Volume, tuple[slice, slice, slice]]:
    """The box of `size_mm` around a point in RAS mm, of a volume whose axes are parallel to RAS.

    Returns:
        The crop, and where it lies in the volume's array.

    Raises:
        UserError: the box does not lie inside the volume.
    """
    center = np.linalg.solve(volume.affine, [*center_mm, 1.0])[:3]
    size = np.round(np.asarray(size_mm) / volume.spacing).astype(int)
    start = np.round(center - size / 2).astype(int)
    if (start < 0).any() or (start + size > volume.array.shape).any():
        raise UserError(volume.path, f"does not reach {center_mm} mm", "give a volume in MNI space")
    x, y, z = (slice(int(a), int(a + n)) for a, n in zip(start, size, strict=True))
    affine = volume.affine.copy()
    affine[:3, 3] = (volume.affine @ [*start, 1.0])[:3]
    return replace(volume, array=volume.array[x, y, z].copy(), affine=affine), (x, y, z)
