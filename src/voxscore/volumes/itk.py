"""NRRD and MetaImage: ITK's two formats.

ITK describes a grid by an origin o, spacings s and a direction matrix D in LPS mm; the affine's columns are
D[:, a] s[a]. MetaImage stores D and s, NRRD their product. SimpleITK does not give NRRD back exactly: it
takes s as the norm of a column and D as the quotient, and the product of the two differs from the file's
column in the last bit. So it reads the voxels here, and the columns come from the text header. MetaImage is
read without it: it would print complaints to standard error and accept voxels with a wrong checksum. Writing
either is a dozen lines of text before the voxels.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxscore.errors import UserError
from voxscore.volumes.files import base_name, read_bytes
from voxscore.volumes.volume import Label, Volume, check_affine, check_shape, check_voxels, flip_lps_ras

__all__ = ["ItkGeometry", "metaimage_bytes", "nrrd_bytes", "read_metaimage", "read_nrrd"]

_COMPRESSION = 1
_AGAIN = "export or copy it again"
_DAMAGED_NRRD = ("is not a readable NRRD file, or a damaged one", _AGAIN)
_DAMAGED_META = ("is not a readable MetaImage file, or a damaged one", _AGAIN)
# MetaImage's LONG has four bytes, whatever the machine.
_META_DTYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2"},
    **{"MET_INT": "i4", "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4"},
    **{"MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
_NRRD_TYPES = {"u1": "uint8", "u2": "uint16", "f4": "float"}
_META_TYPES = {"u1": "MET_UCHAR", "u2": "MET_USHORT", "f4": "MET_FLOAT"}
# The sign of each axis of an NRRD space in LPS.
_NRRD_SPACES = {
    **dict.fromkeys(("left-posterior-superior", "lps"), (1, 1, 1)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (-1, -1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (1, -1, 1)),
}


@dataclass(frozen=True)
class ItkGeometry:
    """A grid as ITK states it, in LPS mm.

    Attributes:
        origin: centre of the first voxel, mm.
        spacing: mm.
        direction: the (3, 3) direction matrix, row by row.
    """

    origin: tuple[float, ...]
    spacing: tuple[float, ...]
    direction: tuple[float, ...]

    def affine(self) -> np.ndarray:
        """Return the (4, 4) affine from voxel index to LPS mm."""
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(self.direction, (3, 3)) * np.asarray(self.spacing)
        affine[:3, 3] = self.origin
        return affine


def read_nrrd(path: Path) -> Volume:
    """Read a .nrrd file.

    Raises:
        UserError: damaged file, not one real-valued 3-D volume, or not placed in space.
    """
    import SimpleITK as sitk

    content = read_bytes(path)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        if reader.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
            raise UserError(path, "holds complex voxels", "export a real, single-channel image")
        _check_channels(reader.GetNumberOfComponents(), path)
        check_shape(reader.GetSize(), path)
        image = reader.Execute()
    except RuntimeError as error:
        raise UserError(path, *_DAMAGED_NRRD) from error
    while image.GetDimension() > 3:
        image = image[..., 0]
    geometry = ItkGeometry(image.GetOrigin(), image.GetSpacing(), image.GetDirection())
    lps = geometry.affine()
    exact = _nrrd_affine(content)
    # Should the header be of a sort that _nrrd_affine misreads, ITK's word counts.
    if exact is not None and np.allclose(exact, lps, rtol=1e-9, atol=1e-9):
        lps = exact
    affine = flip_lps_ras(lps)
    check_affine(affine, path)
    voxels = check_voxels(sitk.GetArrayViewFromImage(image).T, path)
    return Volume(voxels, affine, path, base_name(path), "nrrd", geometry)


def read_metaimage(path: Path) -> Volume:
    """Read a .mha file.

    Raises:
        UserError: damaged file, not one real-valued 3-D volume, or not placed in space.
    """
    content = read_bytes(path)
    start = re.search(rb"^ElementDataFile *= *(\S+) *\r?\n", content, flags=re.MULTILINE)
    if start is None:
        raise UserError(path, *_DAMAGED_META)
    if start[1].upper() != b"LOCAL":
        raise UserError(path, "keeps its voxels in another file", "save it as one .mha or .nii.gz file")
    header = content[: start.start()].decode("latin-1")
    fields = dict(re.findall(r"^(\w+) *= *(.*?) *\r?$", header, flags=re.MULTILINE))
    try:
        shape = tuple(int(n) for n in fields["DimSize"].split())
        geometry = _meta_geometry(fields, len(shape))
        channels = int(fields.get("ElementNumberOfChannels", "1"))
        big = _first(fields, ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"), "False").lower() == "true"
        dtype = np.dtype("<>"[big] + _META_DTYPES[fields["ElementType"].removesuffix("_ARRAY")])
        compressed = fields.get("CompressedData", "False").lower() == "true"
        if fields.get("BinaryData", "True").lower() != "true" or min(shape) < 0:
            raise ValueError("voxels written as text, or negative extents")
        _check_channels(channels, path)
        check_shape(shape, path)
        voxels = memoryview(content)[start.end() :]
        if compressed:
            stream = zlib.decompressobj()
            voxels = memoryview(stream.decompress(voxels))
            if not stream.eof:
                raise UserError(path, "is cut short (its compressed voxels have no end)", _AGAIN)
        missing = math.prod(shape) * dtype.itemsize - len(voxels)
        if missing > 0:
            raise UserError(path, f"is cut short ({missing} bytes of voxels are missing)", _AGAIN)
        array = np.frombuffer(voxels, dtype, math.prod(shape)).reshape(shape, order="F")
    except (KeyError, ValueError, OverflowError, zlib.error) as error:
        raise UserError(path, *_DAMAGED_META) from error
    affine = flip_lps_ras(geometry.affine())
    check_affine(affine, path)
    return Volume(check_voxels(array, path), affine, path, base_name(path), "metaimage", geometry)


def nrrd_bytes(array: np.ndarray, like: Volume, labels: Sequence[Label] | None) -> bytes:
    """Return the bytes of a gzip-encoded NRRD file in the geometry of `like`.

    Args:
        array: (X, Y, Z) or (X, Y, Z, C), uint8, uint16 or float32.
        like: the volume whose geometry is taken.
        labels: written as the segment keys of 3D Slicer, or None.
    """
    lps = flip_lps_ras(like.affine)
    axes = [_triple(column) for column in lps[:3, :3].T]
    channels = array.shape[3:]
    lines = [
        "NRRD0004",
        f"type: {_NRRD_TYPES[array.dtype.str[1:]]}",
        f"dimension: {array.ndim}",
        "space: left-posterior-superior",
        "sizes: " + " ".join(map(str, (*channels, *array.shape[:3]))),
        "space directions: " + " ".join(["none"] * len(channels) + axes),
        "kinds: " + " ".join(["list"] * len(channels) + ["domain"] * 3),
        "endian: little",
        "encoding: gzip",
        f"space origin: {_triple(lps[:3, 3])}",
        *(f"{key}:={value}" for key, value in _segment_keys(array, labels).items()),
    ]
    voxels = gzip.compress(_file_order(array), _COMPRESSION, mtime=0)
    return ("\n".join(lines) + "\n\n").encode() + voxels


def metaimage_bytes(array: np.ndarray, like: Volume, labels: Sequence[Label] | None) -> bytes:
    """Return the bytes of a compressed MetaImage file in the geometry of `like`.

    Args:
        array: (X, Y, Z) or (X, Y, Z, C), uint8, uint16 or float32.
        like: the volume whose geometry is taken.
        labels: written as plain keys under the names 3D Slicer gives them in NRRD files, or None.
    """
    geometry = _itk_geometry(like)
    voxels = zlib.compress(_file_order(array), _COMPRESSION)
    columns = np.reshape(geometry.direction, (3, 3)).T.ravel()
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"CompressedDataSize = {len(voxels)}",
        f"TransformMatrix = {_numbers(columns)}",
        f"Offset = {_numbers(geometry.origin)}",
        "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {_numbers(geometry.spacing)}",
        *(f"{key} = {value}" for key, value in _segment_keys(array, labels).items()),
        "DimSize = " + " ".join(map(str, array.shape[:3])),
        *(f"ElementNumberOfChannels = {n}" for n in array.shape[3:]),
        f"ElementType = {_META_TYPES[array.dtype.str[1:]]}",
        "ElementDataFile = LOCAL",
    ]
    return ("\n".join(lines) + "\n").encode() + voxels


def _itk_geometry(like: Volume) -> ItkGeometry:
    """Origin, spacing and direction whose product is the affine of `like`, bit for bit."""
    lps = flip_lps_ras(like.affine)
    if isinstance(like.header, ItkGeometry) and np.array_equal(like.header.affine(), lps):
        return like.header
    pairs = [_factor(column) for column in lps[:3, :3].T]
    direction = np.stack([unit for _, unit in pairs], axis=1)
    return ItkGeometry(tuple(lps[:3, 3].tolist()), tuple(s for s, _ in pairs), tuple(direction.ravel().tolist()))


def _factor(column: np.ndarray) -> tuple[float, np.ndarray]:
    """Split a column v into s and u with fl(s u) = v exactly.

    s = |v|, u = v/s rarely multiplies back to v in all three components. Shifting s by a few units in the
    last place and u by one finds a pair that does: each component fits with a chance of at least one half.
    """
    norm = float(np.linalg.norm(column))
    for shift in range(4096):
        s = norm + np.spacing(norm) * (shift // 2 + 1) * (-1) ** shift if shift else norm
        unit = column / s
        candidates = np.stack([unit, np.nextafter(unit, np.inf), np.nextafter(unit, -np.inf)])
        fits = candidates * s == column
        if fits.any(axis=0).all():
            return float(s), candidates[fits.argmax(axis=0), np.arange(3)]
    raise AssertionError(f"no exact spacing and direction for the column {column}")


def _segment_keys(array: np.ndarray, labels: Sequence[Label] | None) -> dict[str, Any]:
    """The keys by which 3D Slicer stores segments in a label map; one shared layer, background left out."""
    if labels is None or array.ndim != 3:
        return {}
    keys: dict[str, Any] = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for number, label in enumerate(label for label in labels if label.value):
        segment = f"Segment{number}_"
        keys[segment + "ID"] = f"Segment_{label.value}"
        keys[segment + "Name"] = label.name
        keys[segment + "NameAutoGenerated"] = 0
        keys[segment + "Color"] = " ".join(f"{c / 255:.6g}" for c in label.color)
        keys[segment + "ColorAutoGenerated"] = 0
        keys[segment + "LabelValue"] = label.value
        keys[segment + "Layer"] = 0
        keys[segment + "Extent"] = " ".join(map(str, _extent(array == label.value)))
    return keys


def _extent(mask: np.ndarray) -> list[int]:
    """First and last index along each axis; 0 and -1 for an empty mask, as 3D Slicer has it."""
    if not mask.any():
        return [0, -1] * 3
    extent = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        extent += [int(hit[0]), int(hit[-1])]
    return extent


def _file_order(array: np.ndarray) -> bytes:
    """Little-endian voxels, X fastest; channels, where there are any, before X."""
    spatial = np.moveaxis(array, 3, 0) if array.ndim == 4 else array
    return spatial.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(order="F")


def _numbers(values: Sequence[float] | np.ndarray) -> str:
    # repr is the shortest text that reads back as the same double.
    return " ".join(repr(float(value)) for value in values)


def _triple(values: np.ndarray) -> str:
    return "(" + _numbers(values).replace(" ", ",") + ")"


def _nrrd_affine(content: bytes) -> np.ndarray | None:
    """The affine to LPS mm from an NRRD's text header, or None if it states none in a known space."""
    header = re.split(rb"\r?\n\r?\n", content[: 1 << 20], maxsplit=1)[0].decode("latin-1")
    fields = dict(re.findall(r"^([a-z ]+): *(.*?)\r?$", header, flags=re.MULTILINE))
    signs = _NRRD_SPACES.get(fields.get("space", "").lower())
    vectors = re.findall(r"\(([^)]*)\)", fields.get("space directions", "") + fields.get("space origin", ""))
    if signs is None or len(vectors) != 4:
        return None
    try:
        columns = np.array([[float(entry) for entry in vector.split(",")] for vector in vectors])
    except ValueError:
        return None  # ITK has read it, so ITK's word counts
    affine = np.eye(4)
    affine[:3] = columns.T * np.reshape(signs, (3, 1))
    return affine


def _meta_geometry(fields: dict[str, str], dimensions: int) -> ItkGeometry:
    """The spatial part of a MetaImage header; a missing field has its neutral value.

    Raises:
        ValueError: numbers that are none, or not as many as there are dimensions.
    """
    n = dimensions
    if int(fields["NDims"]) != n:
        raise ValueError("DimSize and NDims disagree")
    ones, zeros, identity = " ".join("1" * n), " ".join("0" * n), " ".join(map(str, np.eye(n).ravel()))
    matrix = _first(fields, ("TransformMatrix", "Rotation", "Orientation"), identity)
    direction = np.array(matrix.split(), dtype=np.float64).reshape(n, n).T[:3, :3]
    origin = np.array(_first(fields, ("Offset", "Position", "Origin"), zeros).split(), dtype=np.float64)
    spacing = np.array(_first(fields, ("ElementSpacing", "ElementSize"), ones).split(), dtype=np.float64)
    if len(origin) != n or len(spacing) != n:
        raise ValueError("the geometry has not as many numbers as there are dimensions")
    return ItkGeometry(*(tuple(values.tolist()) for values in (origin[:3], spacing[:3], direction.ravel())))


def _first(fields: dict[str, str], keys: Sequence[str], default: str) -> str:
    return next((fields[key] for key in keys if key in fields), default)


def _check_channels(channels: int, path: Path) -> None:
    if channels != 1:
        fault = f"holds {channels} values per voxel (a colour or vector image)"
        raise UserError(path, fault, "export a real, single-channel image")
