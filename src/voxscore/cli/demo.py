"""`voxscore demo`: synthesize a labelled case, segment it, compare, with no data at all.

One bundle draws an image together with its label map; another, trained separately, sees the image alone. Where both
have learned the same anatomy, the two label maps agree, on a case that neither has seen before.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

import voxscore
from voxscore.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from voxscore.bundles import Bundle
    from voxscore.synthesis import Synthetic

__all__ = ["demo"]

SYNTHESIS = "hippocampus_synthesis"
SEGMENTATION = "hippocampus_segmentation"


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("demo"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:n.")] = "auto",
    seed: Annotated[int, typer.Option(help="Another seed shows another case.", min=0)] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
) -> None:
    """Synthesize a labelled hippocampus, segment it and compare; needs no data."""
    names = ("synthetic.nii.gz", "synthetic_label.nii.gz", "synthetic_seg.nii.gz", "synthetic.png")
    on = voxscore.segmentation.resolve_device(device)
    bundle = voxscore.find_bundle(SEGMENTATION)
    synthesizer, segmenter = voxscore.Synthesizer(voxscore.find_bundle(SYNTHESIS), on), voxscore.Segmenter(bundle, on)
    with ExitStack() as stack:
        # First, so that an output that cannot be written costs no sampling. All are complete before one gets its name.
        image, own, found, picture = (
            stack.enter_context(voxscore.volumes.written_whole(output / name, overwrite)) for name in names
        )
        try:
            made = synthesizer(voxscore.inferers.volume_seed(seed, 0))
        except FloatingPointError as error:
            raise UserError(f"seed {seed}", f"gives no case: {error}", "try another --seed") from error
        volume = voxscore.volumes.Volume(made.image, made.affine, output / names[0], "synthetic", "nifti", None)
        segmentation = segmenter(volume)
        voxscore.write_volume(made.image, volume, image, overwrite=True)
        voxscore.write_volume(made.labels, volume, own, synthesizer.labels, overwrite=True)
        voxscore.write_volume(segmentation.labels, volume, found, bundle.labels, overwrite=True)
        _side_by_side(made, segmentation.labels, bundle).save(picture, format="PNG")
    scores = voxscore.evaluation.score_labels(
        segmentation.labels, made.labels, volume.spacing, {value: label.name for value, label in bundle.labels.items()}
    )
    table = Table("structure", box=None)
    for column in ("its own label [mL]", "segmented [mL]", "Dice"):
        table.add_column(column, justify="right")
    for score in scores:
        table.add_row(score.name, f"{score.reference_ml:.2f}", f"{score.volume_ml:.2f}", f"{score.dice:.3f}")
    Console(markup=False, emoji=False).print(table)
    print(
        f"Synthesized in {made.evaluations} evaluations of the network, {made.seconds:.1f} s; "
        f"segmented in {segmentation.seconds:.1f} s."
    )
    print(f"Look at {output / names[-1]} first.")


def _side_by_side(made: Synthetic, segmented: np.ndarray, bundle: Bundle) -> Image.Image:
    """Both label maps on the same slices, those through the middle of the two together."""
    places = (made.labels.astype(bool) | segmented.astype(bool)).nonzero()
    center = [round(float(axis.mean())) for axis in places] if len(places[0]) else None
    colors = {value: label.color for value, label in bundle.labels.items()}
    names = {value: label.name for value, label in bundle.labels.items()}
    return voxscore.evaluation.montage(
        [
            voxscore.evaluation.contour_sheet(
                made.image, labels, made.affine, colors, names, title, center, zoom_mm=float("inf")
            )
            for title, labels in (("Synthetic, its own label", made.labels), ("The same, segmented", segmented))
        ],
        columns=2,
    )
