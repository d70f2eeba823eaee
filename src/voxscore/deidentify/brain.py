"""Where the head and the brain are, estimated from intensity alone.

Everything happens on one grid, 3 mm in every direction and along right, anterior and superior, whatever the voxels of
the image are. There

1. the head is what is brighter than air (half of Otsu's threshold; -300 HU in CT), its largest piece, hollows filled;
2. m is the median intensity deeper than 25 mm in the head and at most 100 mm below its top: mostly brain;
3. tissue is what is brighter than 0.55 m (-10 to 90 HU in CT), which leaves out bone, air and fat of the skull but not
   of the scalp, so 4 mm below the skin are left out too;
4. the brain is the piece of tissue in the middle of the head that a ball of 5 mm radius reaches without passing
   anything narrower, such as the optic canal; hollows up to 24 mm wide, ventricles and fissures among them, are closed,
   and what sticks out by less than 20 mm in width, such as a leak into an orbit, is cut off.

The limits: it errs by some millimetres, outwards at the skull base and, most in T2, into the orbits, inwards at gyri.
It is made for the intact heads of adults and children in MR (T1, T2, FLAIR) and unenhanced CT; newborns, resected
skulls and large haemorrhages are beyond it. What cannot be a brain by its volume, or by what lies
around it, is refused. Where a brain mask from a better source is at hand, use that one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from voxscore.errors import UserError

__all__ = ["BRAIN_ML", "SPACING", "CoarseHead", "is_ct"]

SPACING = 3.0  # mm
BRAIN_ML = (500.0, 2300.0)
_CT_AIR = -500.0
_CT_SKIN = -300.0
_CT_BRAIN = (-10.0, 90.0)
_DEEP = 25.0
_BELOW_TOP = 100.0
_HEIGHT = 200.0
_TISSUE = 0.55
_SKIN = 4.0
_REACH = 5.0
_FOLD = 12.0
_LEAK = 10.0
_NECK = 15.0
_BONE = 6.0
_SHARE = 0.4  # of a head's slices through the upper half of the brain; 0.53 to 0.72 in MR of four people
_REMEDY = "give a brain mask, or leave images without a whole head as they are"


def is_ct(array: np.ndarray) -> bool:
    """Whether the intensities are Hounsfield units: the darkest hundredth is air at about -1000."""
    return bool(np.percentile(array, 1) < _CT_AIR)


@dataclass(frozen=True, eq=False)
class CoarseHead:
    """An image on the 3 mm grid, and the head in it.

    Attributes:
        array: (x, y, z) float32 intensities.
        head: (x, y, z) bool, without hollows.
        origin: centre of the first voxel, mm in RAS.
        ct: whether the image is CT.
    """

    array: np.ndarray
    head: np.ndarray
    origin: np.ndarray
    ct: bool
    _fine: Any

    @classmethod
    def of(cls, array: np.ndarray, affine: np.ndarray) -> CoarseHead:
        """Resample an image and find the head in it.

        Args:
            array: (X, Y, Z).
            affine: (4, 4), voxel index to RAS mm.
        """
        import SimpleITK as sitk
        from skimage.filters import threshold_otsu

        # ITK counts in LPS; as nothing here leaves for a file, its coordinates may as well be RAS.
        fine = sitk.GetImageFromArray(np.ascontiguousarray(array.T, dtype=np.float32))
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        fine.SetSpacing(sizes.tolist())
        fine.SetDirection((affine[:3, :3] / sizes).ravel().tolist())
        fine.SetOrigin(affine[:3, 3].tolist())
        corners = np.stack(np.meshgrid(*((0, n - 1) for n in array.shape), indexing="ij"), -1).reshape(-1, 3)
        corners = corners @ affine[:3, :3].T + affine[:3, 3]
        origin = corners.min(axis=0)
        size = np.ceil((corners.max(axis=0) - origin) / SPACING).astype(int) + 1
        # Averaged first, lest the noise of single voxels be picked; by half a voxel of the new grid, lest bone blur.
        shrunk = sitk.BinShrink(fine, [max(1, int(SPACING / 2 / s)) for s in sizes])
        air = float(np.percentile(array, 1))
        coarse = sitk.Resample(
            shrunk,
            size.tolist(),
            sitk.Transform(),
            sitk.sitkLinear,
            origin.tolist(),
            [SPACING] * 3,
            np.eye(3).ravel().tolist(),
            air,
        )
        voxels = sitk.GetArrayFromImage(coarse).T
        ct = is_ct(array)
        skin = _CT_SKIN if ct else air + (threshold_otsu(voxels) - air) / 2
        head = _filled(_closed(_largest(_closed(voxels > skin, _BONE)), _NECK))
        return cls(voxels, head, origin, ct, fine)

    def brain(self) -> np.ndarray:
        """Estimate the brain, (x, y, z) bool.

        Raises:
            UserError: nothing there has the volume of a brain, or it lies in a body rather than a head.
        """
        depth = _inside(self.head)
        if not self.head.any():
            raise _no_brain(0.0)
        below = (np.flatnonzero(self.head.any(axis=(0, 1)))[-1] - np.arange(self.head.shape[2])) * SPACING
        middle = (depth > _DEEP) & (below < _BELOW_TOP)
        if not middle.any():
            raise _no_brain(0.0)
        low, high = _CT_BRAIN if self.ct else (_TISSUE * float(np.median(self.array[middle])), np.inf)
        tissue = (self.array > low) & (self.array < high) & (depth > _SKIN) & (below < _HEIGHT)
        core = _largest(_inside(tissue) > _REACH, middle)
        if not core.any():
            raise _no_brain(0.0)
        brain = _filled(_closed((_inside(~core) <= _REACH + 1) & tissue, _FOLD))
        brain &= _inside(~(_inside(brain) > _LEAK)) <= _LEAK
        volume = float(brain.sum()) * SPACING**3 / 1000
        if not BRAIN_ML[0] <= volume <= BRAIN_ML[1]:
            raise _no_brain(volume)
        slices = slice(int(np.argwhere(brain)[:, 2].mean()), np.flatnonzero(brain.any(axis=(0, 1)))[-1] + 1)
        if brain[..., slices].sum() < _SHARE * self.head[..., slices].sum():
            raise UserError(
                "the image", "does not look like a head: too much lies around what could be a brain", _REMEDY
            )
        return brain

    def on_image(self, mask: np.ndarray) -> np.ndarray:
        """Return a mask of the coarse grid on the grid of the image, (X, Y, Z) bool."""
        import SimpleITK as sitk

        image = _image(mask.T)
        image.SetOrigin(self.origin.tolist())
        return (
            sitk.GetArrayFromImage(sitk.Resample(image, self._fine, sitk.Transform(), sitk.sitkNearestNeighbor)).T > 0
        )


def _no_brain(volume: float) -> UserError:
    return UserError(
        "the brain",
        f"cannot be found in this image (what could be it has {volume:.0f} mL; {BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f} "
        "are plausible)",
        _REMEDY,
    )


def _image(mask: np.ndarray) -> Any:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing([SPACING] * 3)
    return image


def _inside(mask: np.ndarray) -> np.ndarray:
    """Distance of every voxel of a mask to the nearest one outside, mm; what lies beyond the image goes on."""
    import SimpleITK as sitk

    if mask.all() or not mask.any():
        return np.where(mask, np.inf, -np.inf)
    pad = 8
    image = _image(np.pad(mask, pad, mode="edge"))
    distance = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    return -sitk.GetArrayFromImage(distance)[pad:-pad, pad:-pad, pad:-pad]


def _closed(mask: np.ndarray, radius: float) -> np.ndarray:
    """Morphological closing with a ball of a radius in mm; beyond the image there is nothing."""
    pad = int(radius / SPACING) + 2
    grown = _inside(~np.pad(mask, pad)) <= radius
    closed = _inside(grown) > radius
    return mask | closed[pad:-pad, pad:-pad, pad:-pad]


def _largest(mask: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """The connected piece with the most voxels, counted only `where` told."""
    from skimage.measure import label

    pieces = label(mask, connectivity=1)
    counts = np.bincount((pieces if where is None else pieces[where]).ravel(), minlength=pieces.max() + 1)
    counts[0] = 0
    return (pieces == counts.argmax()) & mask


def _filled(mask: np.ndarray) -> np.ndarray:
    """Fill hollows; the lower and upper end of the image count as closed."""
    import SimpleITK as sitk

    plates = np.pad(np.pad(mask, ((1, 1), (1, 1), (0, 0))), ((0, 0), (0, 0), (1, 1)), constant_values=True)
    plates[[0, -1], :, :] = plates[:, [0, -1], :] = False
    return sitk.GetArrayFromImage(sitk.BinaryFillhole(_image(plates)))[1:-1, 1:-1, 1:-1] > 0
