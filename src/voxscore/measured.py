"""A file as a measurement: which operator made it, of a volume on which grid, with how much noise.

    k-space                            Cartesian MR, with the coil maps of `voxscore.transforms.LoadKspace`
    sinogram                           parallel or fan-beam CT
    image, "super-resolution"          thick slices: means over blocks of `factor` voxels
    image, "denoise"                   the volume itself
    image, "inpaint"                   the voxels of a mask

`read_measurement` reads the file and finds the grid, which tells how much memory a reconstruction takes; what costs
time, such as coil maps, waits for `prepare`.

**Orientation.** A prior knows volumes whose axes run to the right, to the front and up. A file may store them in any
order and direction, so the operator A that the prior meets is A T, where T brings a volume from RAS to the order of the
file; only axes are permuted and reversed, and no voxel is resampled.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import affine_transform
from torch import Tensor

from voxscore.errors import UserError
from voxscore.measurement import (
    Downsample,
    FanBeam,
    Identity,
    Inpaint,
    LinearOperator,
    ParallelBeam,
    image_noise_std,
)
from voxscore.measurement.mri import CartesianMRI
from voxscore.transforms import LoadKspace
from voxscore.volumes import (
    RawData,
    Sinogram,
    Volume,
    is_sinogram,
    read_label_map,
    read_raw,
    read_sinogram,
    read_volume,
    volume_suffix,
)

__all__ = ["OPERATORS", "Measurement", "Problem", "Turned", "read_measurement"]

OPERATORS = ("super-resolution", "denoise", "inpaint")
"""What an image may be a measurement by."""

MOST_FACTOR = 16.0
_SAME_GRID_MM = 1e-3


@dataclass(frozen=True, eq=False)
class Problem:
    """What there is to solve: y = A x + noise.

    Attributes:
        operator: A, of volumes (1, 1, X, Y, Z).
        y: the measurement (1, ...).
        noise_std: of the noise, of real and imaginary part each if y is complex.
        plain: (X, Y, Z) float32, the inverse without a prior.
    """

    operator: LinearOperator
    y: Tensor
    noise_std: float
    plain: np.ndarray


@dataclass(frozen=True, eq=False)
class Measurement:
    """A measurement, read but not prepared.

    Attributes:
        path: what the user named.
        name: base name for outputs.
        kind: "k-space", "sinogram", or one of `OPERATORS`.
        plain_name: what the inverse without a prior is called.
        shape: (X, Y, Z) of the volume that was measured.
        affine: (4, 4) float64, its voxel index to RAS+ mm.
        size: bytes of the measurement.
        shown: the part of the volume that is an output.
        source: the image that is the measurement, or None.
        prepare: makes the `Problem`.
    """

    path: Path
    name: str
    kind: str
    plain_name: str
    shape: tuple[int, int, int]
    affine: np.ndarray
    size: int
    shown: tuple[slice, slice, slice]
    source: Volume | None
    prepare: Callable[[], Problem]

    @property
    def shown_affine(self) -> np.ndarray:
        """(4, 4) float64 of the part that is shown."""
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [part.start for part in self.shown]
        return affine


class Turned(LinearOperator):
    """An operator that sees a volume in the order of a file, as a prior meets it: with RAS axes.

    Args:
        operator: of volumes (B, C, X, Y, Z) in the order of the file.
        affine: (4, 4), voxel index of that order to RAS+ mm.
    """

    def __init__(self, operator: LinearOperator, affine: np.ndarray) -> None:
        orientation = nib.orientations.io_orientation(affine)
        self.operator, self.affine = operator, affine
        self._axes = [2 + int(axis) for axis in orientation[:, 0]]
        self._back = [2 + int(axis) for axis in np.argsort(orientation[:, 0])]
        self._reversed = [2 + axis for axis in range(3) if orientation[axis, 1] < 0]

    def stored(self, x: Tensor) -> Tensor:
        """A RAS volume (B, C, R, A, S) in the order of the file."""
        return x.permute(0, 1, *self._axes).flip(self._reversed)

    def ras(self, x: Tensor) -> Tensor:
        """A volume of the file (B, C, X, Y, Z) in the order of RAS."""
        return x.flip(self._reversed).permute(0, 1, *self._back)

    def __call__(self, x: Tensor) -> Tensor:
        """The measurement of a RAS volume."""
        return self.operator(self.stored(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """A^H y as a RAS volume."""
        return self.ras(self.operator.adjoint(y))

    def normal(self, x: Tensor) -> Tensor:
        """A^H A x by the operator's own way."""
        return self.ras(self.operator.normal(self.stored(x)))

    def to(self, device: torch.device | str) -> Turned:
        """The same on another device."""
        return Turned(self.operator.to(device), self.affine)


def read_measurement(
    path: Path,
    operator: str | None = None,
    factor: Sequence[float] | None = None,
    mask: Path | None = None,
    maps: Path | None = None,
    noise_std: float | None = None,
    series: str | None = None,
) -> Measurement:
    """Read a file and say what it measured.

    Args:
        path: raw data (voxscore, fastMRI, ISMRMRD or BART), a sinogram, or an image of `read_volume`.
        operator: of an image, which of `OPERATORS` made it.
        factor: of super-resolution, how much finer the volume is along each axis of the file.
        mask: what was measured, of k-space or of an image to inpaint.
        maps: coil sensitivities of k-space.
        noise_std: of the measurement, in its units; estimated if None.
        series: which DICOM series, as in `read_volume`.

    Raises:
        UserError: the file cannot be read, or the arguments do not fit it.
    """
    if noise_std is not None and not 0 < noise_std < math.inf:
        raise UserError(
            f"noise-std {noise_std:g}", "is no standard deviation", "give a positive number, or leave it away"
        )
    if operator is not None and operator not in OPERATORS:
        raise UserError(f"operator {operator}", "is not known", f"choose one of: {', '.join(OPERATORS)}")
    image = path.is_dir() or bool(volume_suffix(path)) or path.suffix.lower() == ".dcm"
    given = {"--factor": factor, "--mask": mask, "--maps": maps, "--series": series}
    if operator is not None:
        allowed = {"super-resolution": {"--factor"}, "inpaint": {"--mask"}}.get(operator, set()) | {"--series"}
        _refuse(given, allowed, f"operator {operator}")
        if operator == "super-resolution" and factor is None:
            remedy = "add --factor, such as --factor 1 1 4 for slices four times as thick"
            raise UserError(f"operator {operator}", "needs to know how much finer the volume is", remedy)
        if operator == "inpaint" and mask is None:
            raise UserError(f"operator {operator}", "needs to know which voxels were seen", "add --mask")
        if path.exists() and not image and path.suffix.lower() in (".h5", ".hdf5", ".cfl", ".hdr"):
            raise UserError(path, f"is raw data, not an image to {operator}", "leave --operator away")
        return _of_image(read_volume(path, series), operator, factor, mask, noise_std)
    if image and path.exists():
        raise UserError(path, "is an image, and may be a measurement of many kinds", f"add --operator: {_either()}")
    if path.exists() and is_sinogram(path):
        _refuse(given, set(), "a sinogram")
        return _of_sinogram(read_sinogram(path), noise_std)
    _refuse(given, {"--mask", "--maps"}, "k-space")
    return _of_kspace(read_raw(path, mask, maps), noise_std)


def _refuse(given: Mapping[str, object], allowed: set[str], what: str) -> None:
    for option, value in given.items():
        if value is not None and option not in allowed:
            raise UserError(option, f"means nothing for {what}", "leave it away")


def _either() -> str:
    return f"{', '.join(OPERATORS[:-1])} or {OPERATORS[-1]}"


def _whole(shape: Sequence[int]) -> tuple[slice, slice, slice]:
    x, y, z = (slice(0, n) for n in shape)
    return x, y, z


def _of_kspace(raw: RawData, noise_std: float | None) -> Measurement:
    def prepare() -> Problem:
        scan = LoadKspace(noise_std=noise_std)(raw)
        return Problem(
            CartesianMRI(scan.mask, scan.maps), scan.kspace[None], float(scan.noise_std), np.asarray(scan.image[0])
        )

    # As the readers cut a readout: about index n // 2.
    crop = raw.shape if raw.crop is None else raw.crop
    x, y, z = (slice(n // 2 - m // 2, n // 2 - m // 2 + m) for n, m in zip(raw.shape, crop, strict=True))
    return Measurement(
        *(raw.path, raw.name, "k-space", "zero-filled", raw.shape, raw.affine, raw.kspace.nbytes, (x, y, z), None),
        prepare,
    )


def _of_sinogram(scan: Sinogram, noise_std: float | None) -> Measurement:
    width, height, _ = scan.spacing
    if not math.isclose(width, height, rel_tol=1e-4):
        raise UserError(scan.path, f"its pixels of {width:g} x {height:g} mm are not square", "give square ones")
    _, detectors, slices = scan.sinogram.shape

    def prepare() -> Problem:
        # Operators count in voxels, files in millimetres.
        beam: ParallelBeam | FanBeam
        angles, step = torch.from_numpy(scan.angles), scan.detector_spacing / width
        if scan.source_to_isocentre is None or scan.source_to_detector is None:
            beam = ParallelBeam(scan.image_shape, angles, detectors, step)
        else:
            distances = scan.source_to_isocentre / width, scan.source_to_detector / width
            try:
                beam = FanBeam(scan.image_shape, angles, *distances, detectors, step)
            except ValueError as error:
                fault = "its source is inside the image"
                raise UserError(scan.path, fault, "give source_to_isocentre and spacing in mm") from error
        y = torch.from_numpy(scan.sinogram)[None, None]
        plain = beam.filtered_backprojection(y / width)[0, 0].numpy()
        return Problem(width * beam, y, _noise(y.squeeze(-1), noise_std, scan.path), plain)

    shape = (*scan.image_shape, slices)
    return Measurement(
        *(scan.path, scan.name, "sinogram", "filtered backprojection", shape, scan.affine, scan.sinogram.nbytes),
        *(_whole(shape), None, prepare),
    )


def _of_image(
    volume: Volume, operator: str, factor: Sequence[float] | None, mask: Path | None, noise_std: float | None
) -> Measurement:
    array = volume.array
    affine, plain_name = volume.affine, {"super-resolution": "cubic interpolation"}.get(operator, "as measured")
    shape: tuple[int, ...] = array.shape
    if factor is not None:
        f = np.asarray(factor, dtype=np.float64)
        if not (np.all(f >= 1) and np.all(f <= MOST_FACTOR) and f.max() > 1):
            fault = f"is no factor of refinement for three axes, 1 to {MOST_FACTOR:g} with one above 1 at least"
            raise UserError(f"factor {' '.join(f'{v:g}' for v in f)}", fault, "give such as --factor 1 1 4")
        # Sample k of the coarse volume lies at the fine index k f + (f - 1) / 2.
        coarse = np.eye(4)
        coarse[:3, :3], coarse[:3, 3] = np.diag(f), (f - 1) / 2
        affine = affine @ np.linalg.inv(coarse)
        shape = tuple(max(round(n * v), n) for n, v in zip(array.shape, f, strict=True))
    seen = None if mask is None else _seen(mask, volume)

    def prepare() -> Problem:
        known = array if seen is None else np.where(seen, array, np.float32(0))
        y = torch.from_numpy(known)[None, None]
        std = _noise(y, noise_std, volume.path)
        if factor is not None:
            steps = 1 / np.asarray(factor, dtype=np.float64)
            plain = affine_transform(
                array, steps, (steps - 1) / 2, output_shape=shape, output=np.float32, order=3, mode="nearest"
            )
            return Problem(Downsample(shape, tuple(float(v) for v in factor)), y, std, plain)
        return Problem(Identity() if seen is None else Inpaint(torch.from_numpy(seen)), y, std, known)

    x, y, z = shape
    return Measurement(
        *(volume.path, volume.name, operator, plain_name, (x, y, z), affine, array.nbytes, _whole(shape), volume),
        prepare,
    )


def _seen(mask: Path, volume: Volume) -> np.ndarray:
    """Which voxels of a volume were measured."""
    found = read_label_map(mask)
    if found.array.shape != volume.array.shape or np.abs(found.affine - volume.affine).max() > _SAME_GRID_MM:
        raise UserError(mask, f"does not lie on the grid of {volume.path}", "give a mask of the same shape and place")
    if found.array.max() > 1:
        raise UserError(
            mask, "holds other values than 0 and 1", "give 1 where a voxel was seen, 0 where it is to be found"
        )
    if not found.array.any():
        raise UserError(mask, "samples nothing", "give 1 where a voxel was seen, 0 where it is to be found")
    if found.array.all():
        raise UserError(mask, "leaves no voxel to be found", "give 1 where a voxel was seen, 0 where it is to be found")
    return found.array.astype(bool)


def _noise(y: Tensor, noise_std: float | None, path: str | os.PathLike[str]) -> float:
    """The noise of a real measurement (1, 1, ...) that was not said."""
    if noise_std is not None:
        return noise_std
    if min(y.shape[2:]) < 2:
        raise UserError(path, "is too thin to estimate its noise from", "add --noise-std")
    return float(image_noise_std(y)[0, 0])
