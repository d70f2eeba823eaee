"""A volume: voxels and the affine that places them in the patient.

The affine A maps a voxel index to millimetres in RAS+ (right, anterior, superior):

    (r, a, s, 1) = A (i, j, k, 1)

DICOM and ITK count left and posterior as positive (LPS); `flip_lps_ras` converts in either direction by
changing the sign of two rows, which is exact in floating point. Every reader passes its result through the
checks of this module, so that what the rest of voxscore sees is finite, three-dimensional and not empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxscore.errors import UserError

__all__ = [
    "Label",
    "Volume",
    "check_affine",
    "check_labels",
    "check_shape",
    "check_voxels",
    "flip_lps_ras",
    "label_dtype",
]


@dataclass(frozen=True, eq=False)
class Volume:
    """One image volume as read from a file or a DICOM series.

    Attributes:
        array: (X, Y, Z) float32 voxels in the index order of the file; for DICOM X runs along the columns,
            Y along the rows and Z along the slices, towards the slice normal.
        affine: (4, 4) float64, voxel index to RAS+ mm.
        path: what the user named.
        name: base name for outputs.
        format: "nifti", "nrrd", "metaimage" or "dicom".
        header: what the writers need to give back the same geometry: a nibabel header, an `ItkGeometry`, or
            the list of instance paths in slice order.
    """

    array: np.ndarray
    affine: np.ndarray
    path: Path
    name: str
    format: str
    header: Any

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxel centres along X, Y and Z, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


@dataclass(frozen=True)
class Label:
    """One class of a label map.

    Attributes:
        value: the voxel value, 0 to 65535; 0 is background.
        name: for people, one printable line.
        color: red, green and blue, 0 to 255.
        code: the DICOM property type as (code value, scheme designator, meaning).
        category: the DICOM property category, likewise.

    Raises:
        ValueError: if a field is out of its range.
    """

    value: int
    name: str
    color: tuple[int, int, int]
    code: tuple[str, str, str] = ("85756007", "SCT", "Tissue")
    category: tuple[str, str, str] = ("85756007", "SCT", "Tissue")

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 65535:
            raise ValueError(f"a label value lies in 0..65535, not {self.value}")
        if not self.name.strip() or not self.name.isprintable():
            raise ValueError(f"a label name is one printable line, not {self.name!r}")
        if len(self.color) != 3 or not all(0 <= c <= 255 for c in self.color):
            raise ValueError(f"a colour is three numbers in 0..255, not {self.color}")


def flip_lps_ras(affine: np.ndarray) -> np.ndarray:
    """Turn an affine to LPS mm into one to RAS mm, or back: its own inverse, exactly.

    Args:
        affine: (4, 4).
    """
    flipped = np.array(affine, dtype=np.float64)
    flipped[:2] *= -1
    return flipped + 0.0  # -0.0 becomes 0.0, which reads better in a text header


def check_shape(shape: tuple[int, ...], path: Path) -> None:
    """Refuse what is not one three-dimensional volume; trailing axes of length one are allowed.

    Raises:
        UserError: 2-D, 4-D, 5-D or empty.
    """
    extents = "x".join(map(str, shape))
    if 0 in shape:
        raise UserError(path, f"holds no voxels (its shape is {extents})", "export the image again")
    squeezed = shape[:3] + tuple(n for n in shape[3:] if n != 1)
    if len(squeezed) < 3 or (len(squeezed) == 3 and min(squeezed) == 1):
        raise UserError(path, f"is a 2-D image ({extents})", "give a 3-D volume with two or more slices")
    if len(squeezed) == 4:
        raise UserError(
            path,
            f"holds {squeezed[3]} volumes ({extents}, 4-D), not one",
            "extract one, for example with nibabel.funcs.four_to_three(image)[0] or 'fslroi IN OUT 0 1'",
        )
    if len(squeezed) > 4:
        raise UserError(path, f"is {len(squeezed)}-D ({extents}), not one volume", "extract one 3-D volume from it")


def check_affine(affine: np.ndarray, path: Path) -> None:
    """Refuse an affine that does not place the voxels in space.

    Raises:
        UserError: not finite, or singular.
    """
    remedy = "restore its orientation and voxel size, or convert the original images again"
    if not np.isfinite(affine).all():
        raise UserError(path, "its affine has entries that are not finite", remedy)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    # Relative to the voxel size, so that neither fine nor coarse voxels decide what counts as flat.
    if lengths.min() == 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
        raise UserError(path, "its affine is singular: the voxels do not span a volume", remedy)


def check_voxels(array: np.ndarray, path: Path) -> np.ndarray:
    """Return the voxels as (X, Y, Z) float32 in C order, or refuse them.

    Args:
        array: real voxels, (X, Y, Z) or with trailing axes of length one.
        path: for the message.

    Raises:
        UserError: wrong shape, or NaN or infinite voxels.
    """
    check_shape(array.shape, path)
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite and is counted below
        voxels = np.array(array.reshape(array.shape[:3]), dtype=np.float32, order="C")
    bad = voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
    if bad:
        raise UserError(
            path,
            f"{bad} of {voxels.size} voxels are NaN or infinite",
            "replace them, for example with numpy.nan_to_num, or export the image again",
        )
    return voxels


def check_labels(labels: Mapping[int, Label]) -> list[Label]:
    """Return the labels sorted by value.

    Raises:
        ValueError: if a key is not its label's value.
    """
    wrong = [key for key, label in labels.items() if key != label.value]
    if wrong:
        raise ValueError(f"labels are keyed by their value; these keys are not: {wrong}")
    return [labels[value] for value in sorted(labels)]


def label_dtype(array: np.ndarray) -> np.dtype:
    """Return the file type for an array: uint8 or uint16 for integers, float32 for real numbers.

    Raises:
        ValueError: labels outside 0..65535, or an array that is neither integer nor real.
    """
    if array.dtype.kind == "f":
        return np.dtype(np.float32)
    if array.dtype.kind not in "biu":
        raise ValueError(f"an integer label map or a real array can be written, not {array.dtype}")
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low < 0 or high > 65535:
        raise ValueError(f"label values lie in 0..65535, not {low}..{high}")
    return np.dtype(np.uint8) if high <= 255 else np.dtype(np.uint16)
