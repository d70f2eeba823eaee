"""Both hippocampi of the MNI152 template, with nothing to download.

    python examples/mni152_hippocampi.py [--output demo]

nilearn ships the MNI152 T1 template in its wheel (`pip install '.[examples]'`). The hippocampi lie about
(±27, -21, -15) mm there. Around each this cuts a crop of the size that the bundle was trained on, segments the right
one mirrored (the bundle's `side`) and puts both label maps back into the template's grid. The template is left-right
symmetric, so the two sides must agree.
"""

from __future__ import annotations

import argparse
import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import voxscore
from voxscore.evaluation import contour_sheet, label_volumes
from voxscore.segmentation import resolve_device
from voxscore.volumes import Volume, written_whole

CENTERS_MM = {"left": (-27.0, -21.0, -15.0), "right": (27.0, -21.0, -15.0)}


def template_path() -> Path:
    """The template inside nilearn's wheel, found without importing nilearn, which takes seconds."""
    package = importlib.util.find_spec("nilearn")
    if package is None or package.origin is None:
        raise SystemExit("nilearn is not installed; pip install 'nilearn>=0.11'")
    return next((Path(package.origin).parent / "datasets" / "data").glob("mni_icbm152_t1*.nii.gz"))


def crop_around(
    volume: Volume, center_mm: tuple[float, float, float], size_mm: tuple[float, float, float]
) -> tuple[Volume, tuple[slice, slice, slice]]:
    """The box of `size_mm` around a point in RAS mm, of a volume whose axes are parallel to RAS, and where it lies."""
    center = np.linalg.solve(volume.affine, [*center_mm, 1.0])[:3]
    size = np.round(np.asarray(size_mm) / volume.spacing).astype(int)
    start = np.round(center - size / 2).astype(int)
    x, y, z = (slice(int(a), int(a + n)) for a, n in zip(start, size, strict=True))
    affine = volume.affine.copy()
    affine[:3, 3] = (volume.affine @ [*start, 1.0])[:3]
    return replace(volume, array=volume.array[x, y, z].copy(), affine=affine), (x, y, z)


def main() -> None:
    """Segment both sides, write the label maps and a picture, print the volumes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for the results")
    output = parser.parse_args().output

    template = voxscore.read_volume(template_path())
    bundle, device = voxscore.find_bundle("hippocampus_segmentation"), resolve_device("auto")
    names = {value: label.name for value, label in bundle.labels.items()}
    colors = {value: label.color for value, label in bundle.labels.items()}
    both = np.zeros(template.array.shape, np.uint8)
    volumes_ml = {}
    for side, center in CENTERS_MM.items():
        crop, where = crop_around(template, center, bundle.metadata["field_of_view_mm"])
        labels = np.zeros_like(both)
        labels[where] = voxscore.Segmenter(bundle, device, side)(crop).labels
        file = output / f"mni152_{side}_hippocampus.nii.gz"
        voxscore.write_volume(labels, template, file, bundle.labels, overwrite=True)
        volumes_ml[side] = label_volumes(labels, template.affine, names)
        both = np.maximum(both, labels)
    picture = output / "mni152_hippocampi.png"
    sheet = contour_sheet(
        template.array, both, template.affine, colors, names, title="MNI152 T1 template, both hippocampi"
    )
    with written_whole(picture, overwrite=True) as partial:
        sheet.save(partial, format="PNG")

    table = Table("structure", "left [mL]", "right [mL]", box=None)
    for name in names.values():
        table.add_row(name, *(f"{found[name]:.2f}" for found in volumes_ml.values()))
    table.add_row("whole hippocampus", *(f"{sum(found.values()):.2f}" for found in volumes_ml.values()))
    Console(markup=False, emoji=False).print(table)
    print(f"Look at {picture} first.")


if __name__ == "__main__":
    main()
