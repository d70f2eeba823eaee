"""What a scanner measured before there was an image: k-space of MR, a sinogram of CT.

k-space y of a volume x follows one convention here, whatever file it came from: the orthonormal transform with the
origin at index n // 2 on both sides,

    y = F x,    F = fftshift . fft . ifftshift  along x, y and z, scaled by 1 / sqrt(n_x n_y n_z),

so that F is unitary: energy is kept, the adjoint is the inverse, and white noise of a standard deviation stays white
of that standard deviation. With coil sensitivities s_c and a mask m of sampled places, coil c measured

    y_c = m F (s_c x) + noise,

and y_c is zero where m is false.

Scanners that measure slice by slice leave two-dimensional k-space and an image axis. The transform along that axis
is applied when such a file is read; it is exact and invertible as long as every slice was sampled at the same places,
which is checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxscore.errors import UserError
from voxscore.volumes.volume import check_affine

__all__ = [
    "RawData",
    "Sinogram",
    "centred_fft",
    "centred_ifft",
    "constant_axes_dropped",
    "make_raw",
    "make_sinogram",
    "maps_on_grid",
    "mask_on_grid",
]

_EXPORT = "export or copy it again"


@dataclass(frozen=True, eq=False)
class RawData:
    """k-space of one volume in the convention of this module.

    Attributes:
        kspace: (coils, X, Y, Z) complex64, zero where it was not sampled.
        mask: bool, three axes that broadcast to (X, Y, Z): where it was sampled.
        maps: (coils, X, Y, Z) complex64 coil sensitivities, or None.
        affine: (4, 4) float64, voxel index of the image to RAS+ mm. A file that knows only the voxel size gives a
            diagonal one, a file that knows nothing the identity.
        path: what the user named.
        name: base name for outputs.
        kind: "voxscore", "fastmri", "ismrmrd" or "bart".
        crop: the part (x, y, z) of the image about index n // 2 that the scanner would show, or None for all of it.
    """

    kspace: np.ndarray
    mask: np.ndarray
    maps: np.ndarray | None
    affine: np.ndarray
    path: Path
    name: str
    kind: str
    crop: tuple[int, int, int] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, Z) of the volume."""
        x, y, z = self.kspace.shape[1:]
        return x, y, z

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxel centres along X, Y and Z, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


@dataclass(frozen=True, eq=False)
class Sinogram:
    """Line integrals of the slices of a CT volume, and where the lines ran.

    Attributes:
        sinogram: (angles, detectors, Z) float32 line integrals, attenuation per mm times mm.
        angles: (angles,) float64, rad.
        geometry: "parallel" or "fan".
        detector_spacing: distance between detector elements, mm.
        image_shape: (X, Y) pixels of the image.
        spacing: distance between voxel centres along X, Y and Z, mm.
        affine: (4, 4) float64, voxel index of the image to RAS+ mm; diagonal where the file does not say.
        path: what the user named.
        name: base name for outputs.
        source_to_isocentre: mm, for a fan; None for parallel rays.
        source_to_detector: mm, for a fan; None for parallel rays.
    """

    sinogram: np.ndarray
    angles: np.ndarray
    geometry: str
    detector_spacing: float
    image_shape: tuple[int, int]
    spacing: tuple[float, float, float]
    affine: np.ndarray
    path: Path
    name: str
    source_to_isocentre: float | None = None
    source_to_detector: float | None = None


def centred_fft(array: np.ndarray, axes: Sequence[int] = (-3, -2, -1)) -> np.ndarray:
    """Return F of the module docstring along some axes, complex64.

    Args:
        array: image domain, any shape.
        axes: which axes to transform; the last three are X, Y and Z.
    """
    shifted = np.fft.fftn(np.fft.ifftshift(array, axes), axes=axes, norm="ortho")
    return np.fft.fftshift(shifted, axes).astype(np.complex64)


def centred_ifft(array: np.ndarray, axes: Sequence[int] = (-3, -2, -1)) -> np.ndarray:
    """Return the inverse (and adjoint) of `centred_fft`, complex64.

    Args:
        array: k-space, any shape.
        axes: which axes to transform; the last three are X, Y and Z.
    """
    shifted = np.fft.ifftn(np.fft.ifftshift(array, axes), axes=axes, norm="ortho")
    return np.fft.fftshift(shifted, axes).astype(np.complex64)


def constant_axes_dropped(mask: np.ndarray) -> np.ndarray:
    """Return a mask with length one along every axis on which it does not depend."""
    for axis in range(mask.ndim):
        first = mask.take([0], axis)
        mask = first if (mask == first).all() else mask
    return mask


def mask_on_grid(mask: np.ndarray, shape: tuple[int, int, int], path: Path) -> np.ndarray:
    """Return a mask as bool with three axes that broadcast to (X, Y, Z).

    Args:
        mask: zeros and ones; (Y,) for lines along X, (Y, Z) for a mask of both phase encodings, or three axes
            of length one or of that of the volume.
        shape: (X, Y, Z).
        path: the file it came from.

    Raises:
        UserError: it does not fit, holds other values, or samples nothing.
    """
    extents = "x".join(map(str, mask.shape))
    while mask.ndim > 3 and mask.shape[-1] == 1:
        mask = mask[..., 0]
    full = {1: mask[None, ..., None], 2: mask[None], 3: mask}.get(mask.ndim)
    fits = full is not None and all(n in (1, m) for n, m in zip(full.shape, shape, strict=True))
    if full is None or not fits or (mask.ndim < 3 and mask.shape != shape[1 : 1 + mask.ndim]):
        x, y, z = shape
        raise UserError(
            path,
            f"its mask of shape {extents} does not fit k-space of {x}x{y}x{z}",
            f"give one of shape ({y},), ({y}, {z}) or ({x}, {y}, {z}), where a 1 repeats along its axis",
        )
    sampled = full.astype(bool)
    if full.dtype.kind not in "biuf" or (sampled != full).any():
        raise UserError(path, "its mask holds other values than 0 and 1", "store 1 where k-space was sampled")
    if not sampled.any():
        raise UserError(path, "its mask samples nothing", "store 1 where k-space was sampled")
    return sampled


def maps_on_grid(maps: np.ndarray, shape: tuple[int, ...], path: Path) -> np.ndarray:
    """Return coil sensitivities as complex64.

    Args:
        maps: (coils, X, Y, Z) numbers.
        shape: the shape of k-space.
        path: the file they came from.

    Raises:
        UserError: another shape, NaN or infinite values, or nothing but zeros.
    """
    if maps.shape != shape:
        raise UserError(
            path,
            f"its coil maps have shape {_extents(maps)}, the k-space {'x'.join(map(str, shape))} (coils, x, y, z)",
            "give one map for each coil on the grid of the image",
        )
    maps = _complex(maps, "coil maps", path)
    if not maps.any():
        raise UserError(path, "its coil maps are zero everywhere", "estimate them again")
    return maps


def make_raw(
    kspace: np.ndarray,
    path: Path,
    kind: str,
    mask: np.ndarray | None = None,
    maps: np.ndarray | None = None,
    affine: np.ndarray | None = None,
    crop: tuple[int, int, int] | None = None,
) -> RawData:
    """Check the parts of raw data and put them together.

    Args:
        kspace: (coils, X, Y, Z) complex; what the mask leaves out becomes zero.
        path: for messages and the name.
        kind: as in `RawData`.
        mask: as in `mask_on_grid`; None takes the places where some coil is not exactly zero.
        maps: (coils, X, Y, Z) complex, or None.
        affine: (4, 4) voxel index to RAS+ mm, or None for the identity.
        crop: as in `RawData`.

    Raises:
        UserError: parts that disagree, NaN or infinite values, or nothing but zeros.
    """
    if kspace.ndim != 4 or 0 in kspace.shape:
        raise UserError(
            path, f"its k-space has shape {_extents(kspace)}", "give four axes: coils, x, y and z, none of them empty"
        )
    kspace = _complex(kspace, "k-space", path)
    shape = kspace.shape[1:]
    if mask is None:
        mask = constant_axes_dropped((kspace != 0).any(axis=0))
    else:
        mask = mask_on_grid(mask, shape, path)
        kspace = kspace * mask
    if not kspace.any():
        raise UserError(path, "its k-space is zero wherever it was sampled", _EXPORT)
    maps = None if maps is None else maps_on_grid(maps, kspace.shape, path)
    if crop is not None and not all(0 < n <= m for n, m in zip(crop, shape, strict=True)):
        raise UserError(path, f"its crop to {crop} does not fit a volume of {shape}", _EXPORT)
    return RawData(kspace, mask, maps, _affine(affine, (1.0, 1.0, 1.0), path), path, path.stem, kind, crop)


def make_sinogram(
    sinogram: np.ndarray,
    angles: np.ndarray,
    geometry: str,
    detector_spacing: float,
    image_shape: tuple[int, int],
    spacing: tuple[float, float, float],
    path: Path,
    affine: np.ndarray | None = None,
    source_to_isocentre: float | None = None,
    source_to_detector: float | None = None,
) -> Sinogram:
    """Check the parts of a sinogram and put them together; the arguments are the attributes of `Sinogram`.

    Raises:
        UserError: parts that disagree or are no geometry, NaN or infinite values, or nothing but zeros.
    """
    if sinogram.ndim != 3 or 0 in sinogram.shape or sinogram.dtype.kind not in "iuf":
        fault = f"its sinogram has shape {_extents(sinogram)} and type {sinogram.dtype}"
        raise UserError(path, fault, "give real numbers with three axes: angles, detectors and z")
    if angles.shape != sinogram.shape[:1] or angles.dtype.kind not in "iuf" or not np.isfinite(angles).all():
        raise UserError(
            path,
            f"it has {angles.size} angles for {sinogram.shape[0]} projections, or some that are not finite",
            "give one angle in radians for each projection",
        )
    _check_finite(sinogram, "sinogram", path)
    if not sinogram.any():
        raise UserError(path, "its sinogram is zero everywhere", _EXPORT)
    distances: tuple[float | None, ...] = (detector_spacing, *spacing)
    if geometry not in ("parallel", "fan"):
        raise UserError(path, f"its geometry is {geometry!r}", "say 'parallel' or 'fan'")
    if geometry == "fan":
        distances += (source_to_isocentre, source_to_detector)
    elif source_to_isocentre is not None or source_to_detector is not None:
        raise UserError(path, "parallel rays come from no source, but it has a distance to one", "say 'fan'")
    if not all(d is not None and np.isfinite(d) and d > 0 for d in distances):
        raise UserError(
            path,
            "its geometry lacks a distance, or one is not positive",
            "give the detector spacing, the voxel spacing and, for a fan, source_to_isocentre and source_to_detector",
        )
    if source_to_isocentre is not None and source_to_detector is not None and source_to_isocentre >= source_to_detector:
        raise UserError(path, "its detector is not behind the isocentre", "give both distances from the source, in mm")
    if min(image_shape) < 1:
        raise UserError(path, f"its image would have {image_shape[0]}x{image_shape[1]} pixels", "give at least one")
    placed = _affine(affine, spacing, path)
    if not np.allclose(np.linalg.norm(placed[:3, :3], axis=0), spacing, rtol=1e-4):
        raise UserError(path, "the voxel sizes of its affine are not its spacing", "correct one of them")
    return Sinogram(
        np.ascontiguousarray(sinogram, dtype=np.float32),
        np.asarray(angles, dtype=np.float64),
        *(geometry, float(detector_spacing), image_shape, spacing, placed, path, path.stem),
        *(source_to_isocentre, source_to_detector),
    )


def _affine(affine: np.ndarray | None, spacing: Sequence[float], path: Path) -> np.ndarray:
    affine = np.diag([*spacing, 1.0]) if affine is None else np.asarray(affine, dtype=np.float64)
    if affine.shape != (4, 4):
        raise UserError(path, f"its affine has shape {_extents(affine)}", "give a 4x4 matrix, voxel index to mm")
    check_affine(affine, path)
    return affine


def _complex(array: np.ndarray, what: str, path: Path) -> np.ndarray:
    if array.dtype.kind not in "iufc":
        raise UserError(path, f"its {what} holds {array.dtype}, not numbers", "store complex64")
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite and is counted below
        numbers = np.ascontiguousarray(array, dtype=np.complex64)
    _check_finite(numbers, what, path)
    return numbers


def _check_finite(array: np.ndarray, what: str, path: Path) -> None:
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise UserError(path, f"{bad} of {array.size} values of its {what} are NaN or infinite", _EXPORT)


def _extents(array: np.ndarray) -> str:
    return "x".join(map(str, array.shape)) or "of a single number"
