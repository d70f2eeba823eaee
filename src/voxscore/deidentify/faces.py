"""Faces: taken out of head images, the brain left alone.

A head image shows a face as well as a photograph does. Here every voxel in front of and below the brain is replaced by
background. In millimetres, RAS, with p a voxel's centre, B the centres of the brain's voxels and m the margin, a voxel
goes if for one of a fan of directions n, from straight ahead to 60 degrees down and 45 degrees to either side,

    n . p > max over b in B of n . b + m

Each line alone cuts along a plane that touches the brain, as shearing tools do with a single one. All of them together
follow the convex hull of the brain from the forehead under the frontal and temporal lobes, so eyes, nose, mouth and
chin go, whichever way the head nods. No voxel of B can fulfil it: the brain is safe by construction, and counted all
the same.

Background fills all of that region, air too: a nose would show as a hole in the noise. Its value is the median of what
was air there, about -1000 in CT and about nothing in MR.

The limits: forehead, ears and the shape of the skull stay, as do ghosts of the face elsewhere in the image. Published
matching of faces still found 28 to 38 % of people after such removal. It makes recognition harder; it does not make
an image anonymous.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from voxscore.deidentify.brain import BRAIN_ML, SPACING, CoarseHead
from voxscore.errors import UserError

__all__ = ["Defaced", "FaceRecord", "deface", "face_region"]

MARGIN = 8.0  # mm
SURFACE = 0.8  # of the visible face; with less of it gone nothing is released
_DOWN = np.deg2rad(np.arange(0.0, 61.0, 7.5))
_ASIDE = np.deg2rad(np.arange(-45.0, 46.0, 7.5))
_MASK_ML = (100.0, BRAIN_ML[1])  # a given mask may be a newborn's
_HALF_FACE = 50.0  # mm to either side
_ENOUGH_AIR = 100  # voxels
_ROUNDING = 1e-6  # mm


@dataclass(frozen=True)
class FaceRecord:
    """What was done to one image, without anything that tells whose it was.

    Attributes:
        margin_mm: distance kept from the brain.
        brain: "given" or "estimated".
        brain_ml: volume of the brain.
        brain_removed: voxels of the brain that were replaced: 0.
        changed: share of all voxels that were replaced.
        tissue_removed_ml: volume of the head that was replaced.
        face_surface_removed: of the surface that the face shows to the front, below the frontal pole and 50 mm to
            either side, the share that was replaced.
        fill: the value of the background.
    """

    margin_mm: float
    brain: str
    brain_ml: float
    brain_removed: int
    changed: float
    tissue_removed_ml: float
    face_surface_removed: float
    fill: float

    def as_dict(self) -> dict[str, float | int | str]:
        """Return the fields as plain numbers and words."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Defaced:
    """A defaced image.

    Attributes:
        array: (X, Y, Z), in the type of the input.
        removed: (X, Y, Z) bool, the voxels replaced.
        brain: (X, Y, Z) bool, the brain that was given or found.
        record: what was done.
    """

    array: np.ndarray
    removed: np.ndarray
    brain: np.ndarray
    record: FaceRecord


def face_region(brain: np.ndarray, affine: np.ndarray, margin: float = MARGIN) -> np.ndarray:
    """Return the region in front of and below a brain, (X, Y, Z) bool.

    Args:
        brain: (X, Y, Z) bool, not empty.
        affine: (4, 4), voxel index to RAS mm.
        margin: distance kept from the brain, mm.
    """
    i, j, k = (np.arange(n) for n in brain.shape)
    # Of each column of voxels a plane takes one end, so two numbers a column are the union of all.
    above = np.full(brain.shape[:2], np.inf)
    below = np.full(brain.shape[:2], -np.inf)
    for direction, bound in _planes(brain, affine, margin):
        step = direction @ affine[:3, :3]
        missing = bound - direction @ affine[:3, 3] - step[0] * i[:, None] - step[1] * j
        if step[2] > 0:
            above = np.minimum(above, missing / step[2])
        elif step[2] < 0:
            below = np.maximum(below, missing / step[2])
        else:
            above[missing < 0] = -np.inf
    return (k > above[:, :, None]) | (k < below[:, :, None])


def deface(
    array: np.ndarray,
    affine: np.ndarray,
    brain: np.ndarray | None = None,
    margin: float = MARGIN,
    fill: float | None = None,
) -> Defaced:
    """Replace the face in a head image by background.

    Args:
        array: (X, Y, Z) intensities, finite.
        affine: (4, 4), voxel index to RAS mm.
        brain: (X, Y, Z), the brain where not zero; None to estimate it (see `voxscore.deidentify.brain`).
        margin: distance kept from the brain, mm.
        fill: the value of the background; None to take that of the image.

    Raises:
        UserError: a mask that is no brain, no brain to be found, brain that would be lost, or a face that would stay.
    """
    if margin < 0 or not np.isfinite(margin):
        raise UserError("the margin", f"{margin:g} mm would cut into the brain", "give 0 or more, such as 8")
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    if brain is not None:
        brain = _checked(brain, array.shape, voxel_ml)
    head = CoarseHead.of(array, affine)
    mask = head.on_image(head.brain()) if brain is None else brain
    region = face_region(mask, affine, margin)
    lost = int(np.count_nonzero(region & mask))
    if lost:
        raise UserError("the brain", f"would lose {lost} voxels", "give a brain mask, or a greater margin")
    solid = head.on_image(head.head)
    value = _background(array, region, solid) if fill is None else float(fill)
    if array.dtype.kind in "iu":
        value = float(round(value))
    surface = _surface_removed(head, mask, affine, margin)
    if surface < SURFACE:
        raise UserError(
            "the face",
            f"would keep {1 - surface:.0%} of its surface",
            "give a brain mask that does not reach into the face; an image without a face needs no removal",
        )
    record = FaceRecord(
        margin_mm=float(margin),
        brain="estimated" if brain is None else "given",
        brain_ml=round(float(mask.sum()) * voxel_ml, 1),
        brain_removed=lost,
        changed=round(float(region.mean()), 4),
        tissue_removed_ml=round(float(np.count_nonzero(region & solid)) * voxel_ml, 1),
        face_surface_removed=round(surface, 4),
        fill=value,
    )
    return Defaced(np.where(region, array.dtype.type(value), array), region, mask, record)


def _checked(brain: np.ndarray, shape: tuple[int, ...], voxel_ml: float) -> np.ndarray:
    if brain.shape != shape:
        sizes = " and ".join("x".join(map(str, s)) for s in (brain.shape, shape))
        raise UserError("the brain mask", f"is not on the grid of the image ({sizes} voxels)", "resample the mask")
    if not np.isfinite(brain).all():
        raise UserError("the brain mask", "has voxels that are not finite", "make the mask again")
    mask = brain != 0
    volume = float(mask.sum()) * voxel_ml
    if mask.all() or not _MASK_ML[0] <= volume <= _MASK_ML[1]:
        raise UserError(
            "the brain mask",
            f"has {volume:.0f} mL, which no brain has ({_MASK_ML[0]:.0f} to {_MASK_ML[1]:.0f} mL)",
            "give a mask that is not zero in the brain and zero elsewhere",
        )
    return mask


def _background(array: np.ndarray, region: np.ndarray, solid: np.ndarray) -> float:
    """The median of the air in front of the face; else of all air; else the darkest voxel."""
    for air in (region & ~solid, ~solid):
        if np.count_nonzero(air) >= _ENOUGH_AIR:
            return float(np.median(array[air]))
    return float(array.min())


def _surface_removed(head: CoarseHead, brain: np.ndarray, affine: np.ndarray, margin: float) -> float:
    """Share of the rays from the front to the face that first meet it in the region."""
    ends = _column_ends(brain) @ affine[:3, :3].T + affine[:3, 3]
    top = ends[ends[:, 1].argmax(), 2]
    middle = (ends[:, 0].min() + ends[:, 0].max()) / 2
    x, y, z = (start + SPACING * np.arange(n) for start, n in zip(head.origin, head.head.shape, strict=True))
    i, k = np.nonzero(head.head.any(axis=1) & (abs(x - middle) <= _HALF_FACE)[:, None] & (z < top))
    if not len(i):
        return 0.0
    front = len(y) - 1 - head.head[:, ::-1].argmax(axis=1)
    skin = np.stack([x[i], y[front[i, k]], z[k]], axis=1)
    return float(np.any([skin @ n > bound for n, bound in _planes(brain, affine, margin)], axis=0).mean())


def _planes(brain: np.ndarray, affine: np.ndarray, margin: float) -> list[tuple[np.ndarray, float]]:
    """The normal of each plane, and how far along it, in mm, the brain and the margin reach."""
    ends = _column_ends(brain) @ affine[:3, :3].T + affine[:3, 3]
    down, aside = np.meshgrid(_DOWN, _ASIDE)
    fan = np.stack([np.cos(down) * np.sin(aside), np.cos(down) * np.cos(aside), -np.sin(down)], axis=-1)
    return [(n, float((ends @ n).max()) + margin + _ROUNDING) for n in fan.reshape(-1, 3)]


def _column_ends(mask: np.ndarray) -> np.ndarray:
    """Indices, (n, 3), of the first and the last voxel of each column: a plane that nears the mask meets one first."""
    occupied = mask.any(axis=2)
    i, j = np.nonzero(occupied)
    first = mask.argmax(axis=2)[occupied]
    last = mask.shape[2] - 1 - mask[:, :, ::-1].argmax(axis=2)[occupied]
    return np.concatenate([np.stack([i, j, first], axis=1), np.stack([i, j, last], axis=1)])
