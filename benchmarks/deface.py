"""Prints how much of a face is removed, and how much brain is lost, on phantom heads of several voxel sizes.

    python benchmarks/deface.py

The phantom is analytic: a cerebrum, temporal lobes, a cerebellum and a brain stem of ellipsoids with the extent of the
MNI152 brain, in a skull, in a head with neck, jaw, eyes, nose, lips and chin, drawn as MR or CT with noise. Its face is
the eyeballs, the nose, the lips, the chin, and the skin 6 mm deep that is seen from the front below the brow, 50 mm to
either side. The table is made with the brain mask given and with the brain estimated; brain lost is counted against the
true brain in both.

Measured: 99.6 to 99.9 % of the face, no voxel of the brain, background 0 in MR and -1000 in CT, in all twelve rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from voxscore.deidentify.faces import deface
from voxscore.errors import UserError

SPACINGS = ((1.0, 1.0, 1.0), (1.0, 1.0, 3.0), (0.5, 0.5, 2.0))
LOW, HIGH = np.array([-92.0, -124.0, -140.0]), np.array([92.0, 124.0, 100.0])


@dataclass
class Phantom:
    """A head: intensities, brain and face, (X, Y, Z), and the affine to RAS mm."""

    image: np.ndarray
    brain: np.ndarray
    face: np.ndarray
    affine: np.ndarray


def ellipsoid(points: np.ndarray, centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    """Where points, (3, ...) in mm, lie in an ellipsoid."""
    return sum(((points[a] - centre[a]) / radii[a]) ** 2 for a in range(3)) <= 1


def both(points: np.ndarray, centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    """The same on both sides."""
    return ellipsoid(np.stack([abs(points[0]), points[1], points[2]]), centre, radii)


def phantom(affine: np.ndarray, shape: tuple[int, ...], ct: bool = False, seed: int = 0) -> Phantom:
    """Draw a head on a grid."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32)
    p = np.tensordot(affine[:3, :3].astype(np.float32), index, 1) + affine[:3, 3, None, None, None].astype(np.float32)
    x, y, z = p
    del index
    brain = ellipsoid(p, (0, -16, 14), (68, 88, 64)) | both(p, (42, 0, -28), (20, 28, 22))
    brain |= ellipsoid(p, (0, -62, -42), (50, 34, 26)) | ((x / 14) ** 2 + ((y + 30) / 14) ** 2 <= 1) & (z < 0) & (
        z > -75
    )
    skull = ellipsoid(p, (0, -16, 14), (75, 95, 71)) | both(p, (42, 0, -28), (26, 34, 28))
    skull |= ellipsoid(p, (0, -62, -42), (56, 40, 32)) | ((x**2 + (y + 30) ** 2 <= 20**2) & (z < 0))
    eyes = both(p, (32, 64, -36), (12.5, 12.5, 12.5))
    nose = ellipsoid(p, (0, 88, -45), (15, 24, 24))
    lips = ellipsoid(p, (0, 86, -82), (24, 10, 10))
    chin = ellipsoid(p, (0, 80, -112), (22, 16, 14))
    jaw = ellipsoid(p, (0, 30, -65), (62, 58, 75))
    neck = ((x / 58) ** 2 + ((y + 35) / 60) ** 2 <= 1) & (z < -20)
    # The air of the pharynx and the sinuses; without it a head is one lump.
    hollow = ellipsoid(p, (0, 50, -42), (10, 22, 14))
    head = ellipsoid(p, (0, -16, 10), (82, 101, 80)) | jaw | neck | skull | eyes | nose | lips | chin
    inner = ellipsoid(p, (0, 30, -65), (56, 52, 69)) | ellipsoid(p, (0, -16, 10), (76, 95, 74))
    skin = head & ~inner & (z < -12) & (y > 20) & (abs(x) < 50)
    face = (eyes | nose | lips | chin | skin) & head & ~skull
    air, soft, bone, white, eye = (-1000, 40, 900, 35, 10) if ct else (0, 260, 25, 400, 150)
    image = np.full(shape, air, dtype=np.float32)
    for where, value in ((head, soft), (skull, bone), (brain, white), (eyes & ~skull, eye), (hollow & ~skull, air)):
        image[where] = value
    image += np.random.default_rng(seed).normal(0, 8, shape).astype(np.float32)
    return Phantom(np.rint(image).clip(None if ct else 0), brain, face, affine)


def on_spacing(spacing: tuple[float, ...], ct: bool = False) -> Phantom:
    """Draw a head with a voxel size, in RAS order."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = LOW
    shape = np.ceil((HIGH - LOW) / spacing).astype(int) + 1
    return phantom(affine, tuple(shape), ct)


def main() -> None:
    """Print the table."""
    table = Table("voxels [mm]", "image", "brain mask", "face removed [%]", "brain voxels lost", "fill", box=None)
    for spacing in SPACINGS:
        for ct in (False, True):
            head = on_spacing(spacing, ct)
            for mask in (head.brain, None):
                size = " x ".join(f"{s:g}" for s in spacing)
                kind = "estimated" if mask is None else "given"
                try:
                    done = deface(head.image, head.affine, mask)
                except UserError as error:
                    table.add_row(size, "CT" if ct else "MR", kind, f"refused: {error}")
                    continue
                gone = 100 * done.removed[head.face].mean()
                lost = np.count_nonzero(done.removed & head.brain)
                table.add_row(size, "CT" if ct else "MR", kind, f"{gone:.2f}", str(lost), f"{done.record.fill:g}")
    Console().print(table)


if __name__ == "__main__":
    main()
