"""Raw data of others: fastMRI, ISMRMRD and BART files, brought to the convention of `raw_data`.

fastMRI (HDF5) holds slices of two-dimensional k-space (slices, coils, x, y), x along the readout, with an ISMRMRD
header as XML; single-coil files lack the axis of coils. The field of view of the encoding, divided by the samples,
is the voxel size; the header knows no gap between slices, so their distance is their thickness.

ISMRMRD (HDF5) holds one record for each readout with the counters that place it. The counter of the k-space centre
goes to n // 2, readouts of one place are averaged, and the directions and positions of the records (LPS mm, of the
image centre, index n // 2) become the affine.

Both come with readouts sampled twice as densely as the image needs. Where readouts are complete, the image outside
the field of view to be shown is cut off along x, which loses nothing of what is kept; the rest of that field, which
cannot be cut from undersampled lines, is `RawData.crop`. Measured slice by slice, both are transformed along z, too.

BART holds complex64 in Fortran order (.cfl) and the extents in a text (.hdr): x, y, z, coils. Its centred transform
has its origin at n // 2, and is the one of `raw_data` if called with -u (`bart fft -u 7`); without -u, k-space
is larger by sqrt(n_x n_y n_z), and so is everything reconstructed from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np

from voxscore.errors import UserError
from voxscore.volumes.raw_data import RawData, centred_fft, centred_ifft, constant_axes_dropped, make_raw, mask_on_grid
from voxscore.volumes.volume import flip_lps_ras

__all__ = ["bart_base", "read_bart", "read_cfl", "read_fastmri", "read_ismrmrd"]

_BART_AXES = (
    *("x", "y", "z", "coils", "maps", "echoes", "coefficients", "coefficients", "iterations", "cycles"),
    *("times", "times", "levels", "slices", "averages", "batches"),
)
_NO_IMAGE_LINES = (
    *("NOISE_MEASUREMENT", "PARALLEL_CALIBRATION", "NAVIGATION_DATA", "PHASECORR_DATA", "HPFEEDBACK_DATA"),
    *("DUMMYSCAN_DATA", "RTFEEDBACK_DATA", "SURFACECOILCORRECTIONSCAN_DATA"),
)
_ONE_ONLY = ("contrast", "phase", "repetition", "set")
_UNEVEN = 0.1


@dataclass(frozen=True)
class _Encoding:
    """The part of an ISMRMRD header that places k-space: (x, y, z) each, millimetres and samples."""

    trajectory: str
    matrix: tuple[int, int, int]
    view: np.ndarray
    view_shown: np.ndarray
    centers: tuple[int, int]

    def shown(self, shape: Sequence[int]) -> tuple[int, ...]:
        """How many voxels of each axis lie in the field of view to be shown."""
        kept = np.rint(np.array(shape) * self.view_shown / self.view).astype(int)
        return tuple(int(n) for n in np.clip(kept, 1, shape))


def read_fastmri(file: h5py.File, path: Path) -> RawData:
    """Read a fastMRI file, with one coil or several.

    Raises:
        UserError: another layout, or slices that are not sampled alike.
    """
    encoding = _encoding(file["ismrmrd_header"][()], path)
    stored = np.asarray(file["kspace"][()])
    if stored.ndim not in (3, 4):
        raise UserError(
            path,
            f"its k-space has {stored.ndim} axes",
            "fastMRI files have slices, coils, height and width, or three of them for a single coil",
        )
    stored = stored[:, None] if stored.ndim == 3 else stored
    kspace = stored.transpose(1, 2, 3, 0)
    lines = (kspace != 0).any(axis=(0, 1))  # lines that are zero throughout are padding, whatever the mask says
    mask = _same_in_every_slice(lines, path)[None]
    if "mask" in file:
        mask = mask & mask_on_grid(np.asarray(file["mask"][()]), kspace.shape[1:], path)
    spacing = encoding.view / (*kspace.shape[1:3], encoding.matrix[2])
    shown = (*encoding.shown(kspace.shape[1:])[:2], kspace.shape[3])
    kspace = centred_fft(_readout_cut(kspace, shown[0]), axes=(3,))
    return make_raw(kspace, path, "fastmri", mask, affine=np.diag([*spacing, 1.0]), crop=_crop(shown, kspace))


def read_ismrmrd(path: Path, group: str) -> RawData:
    """Read a Cartesian scan of one volume from an ISMRMRD file.

    Left out are readouts that are no image data: noise, navigators, and reference lines of a scan of their own.

    Args:
        path: the HDF5 file.
        group: the group in it that holds `xml` and `data`.

    Raises:
        UserError: the package ismrmrd is missing, another trajectory, several volumes, slices that are not sampled
            alike or not evenly spaced, or readouts that do not fit the header.
    """
    try:
        import ismrmrd
    except ImportError as error:
        fault = "is an ISMRMRD file, and the package that reads it is not installed"
        raise UserError(path, fault, "pip install 'voxscore[ismrmrd]'") from error

    with h5py.File(path) as file:
        encoding = _encoding(file[group]["xml"][0], path)
    if encoding.trajectory.lower() != "cartesian":
        raise UserError(path, f"its trajectory is {encoding.trajectory!r}", "voxscore reads Cartesian scans only")
    skipped = [getattr(ismrmrd, f"ACQ_IS_{name}") for name in _NO_IMAGE_LINES]
    try:
        with ismrmrd.File(str(path), "r") as scan:
            lines = scan[group].acquisitions[:]
    except (OSError, KeyError, IndexError, TypeError, ValueError) as error:  # what it raises on bad bytes
        raise UserError(path, "its ISMRMRD records are damaged", "copy or convert it again") from error
    lines = [
        line
        for line in lines
        if line.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
        or not any(line.is_flag_set(flag) for flag in skipped)
    ]
    _check_lines(lines, any(line.is_flag_set(ismrmrd.ACQ_IS_REVERSE) for line in lines), path)

    n_x, n_y, n_z = encoding.matrix
    places = _slice_places(lines, path)
    if n_z > 1 and len(places) > 1:
        raise UserError(path, f"holds {len(places)} slabs of 3-D k-space", "export one slab")
    by_slice = n_z == 1
    kspace = np.zeros((lines[0].active_channels, n_x, n_y, len(places) if by_slice else n_z), dtype=np.complex64)
    counts = np.zeros(kspace.shape[1:], dtype=np.int32)
    for line in lines:
        data = line.data[:, line.discard_pre : line.number_of_samples - line.discard_post]
        start = n_x // 2 - (line.center_sample - line.discard_pre) if data.shape[1] != n_x else 0
        j = line.idx.kspace_encode_step_1 - encoding.centers[0] + n_y // 2
        k = line.idx.kspace_encode_step_2 - encoding.centers[1] + n_z // 2
        if not (0 <= start <= n_x - data.shape[1] and 0 <= j < n_y and 0 <= k < n_z):
            raise UserError(
                path,
                f"readout {line.scan_counter} lies outside the {n_x}x{n_y}x{n_z} samples of its header",
                "convert the scanner's file again",
            )
        place = np.s_[start : start + data.shape[1], j, places[line.idx.slice] if by_slice else k]
        kspace[(slice(None), *place)] += data
        counts[place] += 1
    kspace /= np.maximum(counts, 1)
    mask = counts > 0
    shown = (*encoding.shown((n_x, n_y, 1))[:2], kspace.shape[3]) if by_slice else encoding.shown((n_x, n_y, n_z))
    if (mask == mask[:1]).all():
        kspace, mask = _readout_cut(kspace, shown[0]), mask[:1]
    if by_slice:
        kspace = centred_fft(kspace, axes=(3,))
        mask = _same_in_every_slice(mask, path)
    mask = constant_axes_dropped(mask)
    affine = _placement(lines, places, encoding, kspace.shape[1:], path)
    return make_raw(kspace, path, "ismrmrd", mask, affine=affine, crop=_crop(shown, kspace))


def bart_base(path: Path) -> Path | None:
    """The path of a pair of BART files without suffix, if `path` names it, its .cfl or its .hdr; None otherwise."""
    if path.suffix in (".cfl", ".hdr"):
        return path.with_suffix("")
    return path if not path.exists() and path.with_name(path.name + ".cfl").exists() else None


def read_bart(base: Path) -> RawData:
    """Read k-space of one volume from BART files.

    Raises:
        UserError: as `read_cfl`, or an axis of the file that is none of x, y, z and coils.
    """
    return make_raw(read_cfl(base).transpose(3, 0, 1, 2), base.with_name(base.name + ".cfl"), "bart")


def read_cfl(base: Path) -> np.ndarray:
    """Return the array of a pair of BART files as (x, y, z, coils) complex64.

    Args:
        base: the path without .cfl and .hdr.

    Raises:
        UserError: one of the files is missing or damaged, their sizes disagree, or there are further axes.
    """
    header, data = base.with_name(base.name + ".hdr"), base.with_name(base.name + ".cfl")
    for file, other in ((header, data), (data, header)):
        if not file.is_file():
            raise UserError(file, "there is no such file", f"put it beside {other.name}: BART writes two files")
    try:
        words = header.read_text().split("# Dimensions", 1)[1].strip().splitlines()[0].split()
        extents = [int(word) for word in words]
        if not extents or len(extents) > len(_BART_AXES) or min(extents) < 1:
            raise ValueError("extents")
    except (IndexError, ValueError) as error:
        raise UserError(header, "is no BART header with positive dimensions", "export or copy it again") from error
    extents += [1] * (4 - len(extents))
    further = [f"{n} {_BART_AXES[i]}" for i, n in enumerate(extents) if i > 3 and n > 1]
    if further:
        raise UserError(
            data,
            f"holds {', '.join(further)} beside x, y, z and coils",
            "take one of them with 'bart slice'; for sensitivities, 'bart ecalib -m 1' gives one map",
        )
    count = int(np.prod(extents, dtype=object))
    if data.stat().st_size != 8 * count:
        fault = f"has {data.stat().st_size} bytes where its header asks for {8 * count}"
        raise UserError(data, fault, "copy or export it again")
    return np.fromfile(data, dtype="<c8").astype(np.complex64, copy=False).reshape(extents[:4], order="F")


def _encoding(document: bytes | str, path: Path) -> _Encoding:
    """The first encoding of an ISMRMRD header."""
    try:
        root = ElementTree.fromstring(document)
        first = next(node for node in root if node.tag.endswith("}encoding") or node.tag == "encoding")
        ns = first.tag[: -len("encoding")]

        def vector(space: str, field: str) -> list[float]:
            node = first.find(f"{ns}{space}/{ns}{field}")
            return [float(node.findtext(ns + axis)) for axis in "xyz"]  # type: ignore[union-attr, arg-type]

        def center(step: int, default: int) -> int:
            return int(first.findtext(f"{ns}encodingLimits/{ns}kspace_encoding_step_{step}/{ns}center") or default)

        n_x, n_y, n_z = (int(n) for n in vector("encodedSpace", "matrixSize"))
        view, shown = (np.array(vector(s, "fieldOfView_mm")) for s in ("encodedSpace", "reconSpace"))
        if min(n_x, n_y, n_z) < 1 or not (np.isfinite([view, shown]).all() and (view > 0).all() and (shown > 0).all()):
            raise ValueError("extents")
        trajectory = first.findtext(f"{ns}trajectory") or "unknown"
        return _Encoding(trajectory, (n_x, n_y, n_z), view, shown, (center(1, n_y // 2), center(2, n_z // 2)))
    except (ElementTree.ParseError, StopIteration, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            path,
            "its ISMRMRD header lacks an encoding with matrix sizes and fields of view",
            "convert the scanner's file again",
        ) from error


def _check_lines(lines: Sequence[Any], reverse: bool, path: Path) -> None:
    """Refuse readouts that are not those of one volume."""
    if not lines:
        raise UserError(path, "holds no readouts of image data", "convert the scanner's file again")
    several = [name for name in _ONE_ONLY if len({getattr(line.idx, name) for line in lines}) > 1]
    if several:
        raise UserError(path, f"holds several volumes: its {', '.join(several)} counters differ", "export one volume")
    if len({line.encoding_space_ref for line in lines}) > 1:
        raise UserError(path, "holds scans of several encoding spaces", "export one of them")
    if len({line.active_channels for line in lines}) > 1:
        raise UserError(path, "its readouts differ in their number of coils", "convert the scanner's file again")
    if reverse:
        raise UserError(path, "holds reversed readouts (echo-planar imaging)", "voxscore reads one direction only")
    directions = np.array([[*line.read_dir, *line.phase_dir, *line.slice_dir] for line in lines])
    if not np.allclose(directions, directions[0], atol=1e-3):
        raise UserError(path, "its readouts differ in orientation", "export one orientation")


def _slice_places(lines: Sequence[Any], path: Path) -> dict[int, int]:
    """From the slice counter to the index along z: in the order of positions along the normal, if there are any."""
    heights = {line.idx.slice: float(np.dot(line.position, line.slice_dir)) for line in lines}
    placed = len(set(heights.values())) > 1
    ordered = sorted(heights, key=heights.__getitem__ if placed else None)
    gaps = np.diff([heights[number] if placed else number for number in ordered])
    if len(gaps) and (np.abs(gaps - np.median(gaps)) > _UNEVEN * np.median(gaps)).any():
        raise UserError(path, "its slices are not equally far apart, or some are missing", "export the whole stack")
    return {number: k for k, number in enumerate(ordered)}


def _placement(
    lines: Sequence[Any], places: dict[int, int], encoding: _Encoding, shape: tuple[int, ...], path: Path
) -> np.ndarray:
    """The affine to RAS mm of directions, positions and fields of view; diagonal if the records have no directions."""
    spacing = encoding.view / encoding.matrix
    directions = np.array([lines[0].read_dir, lines[0].phase_dir, lines[0].slice_dir], dtype=np.float64).T
    if not directions.any():
        return np.diag([*spacing, 1.0])
    if not np.allclose(directions.T @ directions, np.eye(3), atol=1e-3):
        raise UserError(
            path, "the directions of its readouts are no orthogonal axes", "convert the scanner's file again"
        )
    centers = {places[line.idx.slice]: np.array(line.position, dtype=np.float64) for line in lines}
    first, last = centers[0], centers[len(centers) - 1]
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    if not np.array_equal(first, last):
        affine[:3, 2] = (last - first) / (len(centers) - 1)
    origin = [shape[0] // 2, shape[1] // 2, 0 if encoding.matrix[2] == 1 else shape[2] // 2]
    affine[:3, 3] = first - affine[:3, :3] @ origin
    return flip_lps_ras(affine)


def _readout_cut(kspace: np.ndarray, keep: int) -> np.ndarray:
    """k-space whose image along x is the `keep` voxels about index n // 2 of the image before."""
    n = kspace.shape[1]
    if keep == n:
        return kspace
    start = n // 2 - keep // 2
    return centred_fft(centred_ifft(kspace, axes=(1,))[:, start : start + keep], axes=(1,))


def _same_in_every_slice(mask: np.ndarray, path: Path) -> np.ndarray:
    """A mask (..., slices) with one slice for all."""
    if (mask != mask[..., :1]).any():
        raise UserError(
            path,
            "its slices are sampled at different places, so they do not make up 3-D k-space",
            "reconstruct each slice as a file of its own",
        )
    return mask[..., :1]


def _crop(shown: tuple[int, ...], kspace: np.ndarray) -> tuple[int, int, int] | None:
    x, y, z = shown
    return None if (x, y, z) == kspace.shape[1:] else (x, y, z)
