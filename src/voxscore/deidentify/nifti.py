"""NIfTI files with a new header: what is on a list of what may stay, and the voxels as they are.

A NIfTI header has five fields of free text (`descrip`, `aux_file`, `intent_name`, `db_name`, `data_type`), and after it
may come extensions, one kind of which is a whole DICOM header. Converters fill them with names and times, and saving
an image with its old header copies them all. So the header is built anew from the fields that say how to read the
voxels and where they lie; extensions are dropped. The voxels are copied as bytes: no value changes, whatever its type.

A damaged header may place the first voxel before the end of the header or of its extensions and so pass off text as
voxels. Hence the file must add up: header, extensions that end where they say, voxels up to the last byte. Text that
somebody hid in the numbers of an affine is not looked for, though most of it reads as an absurd number and is refused.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from voxscore.errors import UserError
from voxscore.volumes.quiet import quiet

__all__ = ["rebuilt_nifti"]

_KEPT = (
    *("dim_info", "intent_code", "datatype", "bitpix", "scl_slope", "scl_inter", "xyzt_units", "cal_max", "cal_min"),
    *("slice_start", "slice_end", "slice_code", "slice_duration"),
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
_EMPTY_EXTENSION = b"\0\0\0\0"
_MAX_DIMENSIONS = 7
_SIZES = (1e-4, 1e4)  # mm a voxel
_FURTHEST = 1e5  # mm
_GREATEST = 1e12


def rebuilt_nifti(
    content: bytes, path: Path, compressed: bool | None = None, region: np.ndarray | None = None, fill: float = 0.0
) -> bytes:
    """Return the bytes of a single-file NIfTI image with a header built anew.

    Args:
        content: the bytes of a .nii or .nii.gz file, NIfTI-1 or NIfTI-2, of any dimension and type.
        path: for the message; what has a name that ends in .gz is compressed.
        compressed: whether to compress; None for what the input is.
        region: (X, Y, Z) bool, voxels to replace; None for none.
        fill: their new value, after the scaling that the header asks for.

    Raises:
        UserError: not NIfTI, or a file that does not add up.
    """
    packed = path.name.lower().endswith(".gz")
    if packed:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(path, "is not a whole gzip stream", "copy or export it again") from error
    header_class = _header_class(content)
    if header_class is None:
        raise _damaged(path, "it has no NIfTI header")
    size = header_class.sizeof_hdr
    try:
        with quiet():
            old = header_class(content[:size], check=False)
    except (HeaderDataError, ValueError) as error:
        raise _damaged(path, "its header cannot be read") from error
    shape = _shape(old, path)
    _check_placed(old, path)
    start = int(old["vox_offset"]) if np.isfinite(old["vox_offset"]) else 0
    voxels = int(np.prod(shape, dtype=object)) * _voxel_bytes(old, path)
    if start < _extensions_end(content, size, old.endianness, start, path) or len(content) != start + voxels:
        raise _damaged(path, "its header, extensions and voxels do not make up its length")
    new = header_class(endianness=old.endianness)
    for field in _KEPT:
        new[field] = old[field]
    if np.isnan(old["scl_slope"]):  # how nibabel writes that there is no scaling; the standard's way is 0
        new["scl_slope"] = new["scl_inter"] = 0
    # Beyond the dimensions in use both arrays may hold anything.
    used = len(shape) + 1
    new["dim"][:] = [len(shape), *shape, *[1] * (_MAX_DIMENSIONS - len(shape))]
    new["pixdim"][:] = 1
    new["pixdim"][:used] = old["pixdim"][:used]
    new["vox_offset"] = size + len(_EMPTY_EXTENSION)
    stored = content[start:] if region is None else _replaced(content[start:], new, shape, region, fill)
    rebuilt = new.binaryblock + _EMPTY_EXTENSION + stored
    return gzip.compress(rebuilt, 6, mtime=0) if (packed if compressed is None else compressed) else rebuilt


def _replaced(voxels: bytes, header: Any, shape: tuple[int, ...], region: np.ndarray, fill: float) -> bytes:
    """The bytes of the voxels with a region of them set to a value."""
    array = np.frombuffer(voxels, header.get_data_dtype()).reshape(shape, order="F").copy(order="F")
    slope, inter = header.get_slope_inter()
    value = fill if slope is None else (fill - inter) / slope
    if array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        value = np.clip(np.rint(value), limits.min, limits.max)
    array[region] = value
    return array.tobytes(order="F")


def _damaged(path: Path, what: str) -> UserError:
    return UserError(path, f"is not a NIfTI file that adds up: {what}", "convert or export the image again")


def _header_class(content: bytes) -> Any:
    """NIfTI-1 or NIfTI-2 in one file, by size and magic; None for anything else."""
    for header_class, size, magic in (
        (nib.Nifti1Header, 348, content[344:348]),
        (nib.Nifti2Header, 540, content[4:8]),
    ):
        orders = (size.to_bytes(4, "little"), size.to_bytes(4, "big"))
        if content[:4] in orders and magic == header_class.single_magic.ljust(len(magic), b"\0"):
            return header_class
    return None


def _shape(header: Any, path: Path) -> tuple[int, ...]:
    dimensions = int(header["dim"][0])
    shape = tuple(int(n) for n in header["dim"][1 : max(dimensions, 0) + 1])
    if not 1 <= dimensions <= _MAX_DIMENSIONS or min(shape) < 1:
        raise _damaged(path, "its extents are impossible")
    return shape


def _voxel_bytes(header: Any, path: Path) -> int:
    code, bits = int(header["datatype"]), int(header["bitpix"])
    known = header._data_type_codes
    size = known.dtype[code].itemsize if code in known else 0
    if size == 0 or 8 * size != bits:
        raise _damaged(path, "its type of voxels is unknown")
    return size


def _check_placed(header: Any, path: Path) -> None:
    """Refuse numbers that place the voxels nowhere or are none: text read as a number is mostly absurd."""
    used = int(header["dim"][0]) + 1
    codes = (int(header["qform_code"]), int(header["sform_code"]))
    unscaled = ("scl_slope", "scl_inter") if np.isnan(header["scl_slope"]) else ()
    kept = [field for field in _KEPT if field not in unscaled]
    numbers = [header[field] for field in kept if np.asarray(header[field]).dtype.kind == "f"]
    sizes = header["pixdim"][1 : min(used, 4)]
    offsets = [header[f"qoffset_{axis}"] for axis in "xyz"] + [header[f"srow_{axis}"] for axis in "xyz"]
    sane = all((np.abs(n) < _GREATEST).all() for n in (*numbers, header["pixdim"][:used]))
    if not sane or np.abs(np.hstack(offsets)).max() > _FURTHEST or min(codes) < 0 or max(codes) > 5:
        raise _damaged(path, "its affine places the voxels nowhere")
    if not ((np.abs(sizes) > _SIZES[0]) & (np.abs(sizes) < _SIZES[1])).all():
        raise _damaged(path, "its voxels have no size")


def _extensions_end(content: bytes, start: int, endianness: str, limit: int, path: Path) -> int:
    """Where the extensions end that the four bytes after the header announce."""
    flags = content[start : start + 4]
    end = start + len(flags)
    if not any(flags[:1]):
        return end
    order = "little" if endianness == "<" else "big"
    while end < limit and any(content[end:limit]):
        size = int.from_bytes(content[end : end + 4], order)  # type: ignore[arg-type]
        if size < 16 or size % 16 or end + size > limit:
            raise _damaged(path, "its extensions do not end where they say")
        end += size
    return end
