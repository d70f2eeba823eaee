"""NIfTI in and out.

A NIfTI header places the voxels twice: a quaternion (qform) and a matrix (sform), each with a code that says
whether and how it holds; with both codes zero only the voxel sizes count. Which of them a program believes
differs, so an output copies all of them with their codes and does not merely store an equivalent affine. The
rest of the header (free text, extensions) may name the patient and stays behind.

nibabel reads lazily and stops once it has the voxels it expects, so it would accept a gzip stream whose
checksum is wrong. Here the stream is unpacked completely first.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Extension
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from voxscore.errors import UserError
from voxscore.volumes.files import base_name, read_bytes
from voxscore.volumes.quiet import quiet
from voxscore.volumes.volume import Label, Volume, check_affine, check_shape, check_voxels

__all__ = ["nifti_bytes", "read_nifti"]

_GEOMETRY = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
    *("pixdim", "xyzt_units"),
)
_ECODE_CARET = 30
_COMPRESSION = 1
_BAD_BYTES = (
    *(ImageFileError, HeaderDataError, WrapStructError, OSError, EOFError, ValueError),
    *(OverflowError, MemoryError),  # from absurd extents in a damaged header
)


def read_nifti(path: Path) -> Volume:
    """Read a .nii or .nii.gz file, NIfTI-1 or NIfTI-2, with its intensity scaling applied.

    Raises:
        UserError: damaged file, not one real-valued 3-D volume, or not placed in space.
    """
    content = read_bytes(path)
    if path.name.lower().endswith(".gz"):
        content = _gunzip(content, path)
    # The first field is the header's own size, in either byte order: 348 in NIfTI-1, 540 in NIfTI-2.
    second = content[:4] in ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))
    try:
        with quiet():
            image = (nib.Nifti2Image if second else nib.Nifti1Image).from_bytes(content)
            check_shape(image.shape, path)
            kind = image.get_data_dtype()
            if kind.kind not in "iuf":
                what = "complex" if kind.kind == "c" else "colour"
                raise UserError(path, f"holds {what} voxels", "export a real, single-channel image")
            with np.errstate(all="ignore"):  # what overflows or is invalid is counted by check_voxels
                voxels = image.get_fdata(dtype=np.float32, caching="unchanged")
    except _BAD_BYTES as error:
        raise UserError(path, "is not a readable NIfTI file, or a damaged one", "export or copy it again") from error
    affine = np.asarray(image.affine, dtype=np.float64)
    check_affine(affine, path)
    return Volume(check_voxels(voxels, path), affine, path, base_name(path), "nifti", image.header.copy())


def nifti_bytes(array: np.ndarray, like: Volume, labels: Sequence[Label] | None, compressed: bool = True) -> bytes:
    """Return the bytes of a NIfTI file in the geometry of `like`.

    From a NIfTI source the geometry fields are copied and the affine read back is the source's, bit for bit.
    From other sources it is stored in NIfTI-1's single precision (within about 1e-5 mm): NIfTI-2 would hold
    it exactly, but SimpleITK does not read that.

    Args:
        array: (X, Y, Z) or (X, Y, Z, C), in the type to store.
        like: the volume whose geometry is taken.
        labels: names and colours for the values of a label map, or None.
        compressed: whether to gzip.
    """
    source = like.header if isinstance(like.header, nib.Nifti1Header) else None
    image_class = nib.Nifti2Image if isinstance(source, nib.Nifti2Header) else nib.Nifti1Image
    header = image_class.header_class()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    if source is None:
        header.set_qform(like.affine, code="scanner")
        header.set_sform(like.affine, code="scanner")
        header.set_xyzt_units("mm")
    else:
        for field in _GEOMETRY:
            header[field] = source[field]
    if array.dtype.kind == "u":
        header.set_intent("label")
    if labels is not None:
        header.extensions.append(Nifti1Extension(_ECODE_CARET, _label_table(labels)))
    content = image_class(array, None, header).to_bytes()
    return gzip.compress(content, _COMPRESSION, mtime=0) if compressed else content


def _gunzip(content: bytes, path: Path) -> bytes:
    try:
        return gzip.decompress(content)
    except EOFError as error:
        raise UserError(path, "is cut short (its gzip stream has no end)", "copy or export it again") from error
    except gzip.BadGzipFile as error:
        if not content.startswith(b"\x1f\x8b"):
            raise UserError(
                path, "is not gzip-compressed, whatever its name says", "export it again or mend the suffix"
            ) from error
        raise UserError(path, "is damaged (its gzip checksum is wrong)", "copy or export it again") from error
    except zlib.error as error:
        raise UserError(path, "is damaged (its gzip stream is broken)", "copy or export it again") from error


def _label_table(labels: Sequence[Label]) -> bytes:
    """Names and colours as the Connectome Workbench XML that several viewers read."""
    root = ElementTree.Element("CaretExtension")
    information = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(information, "LabelTable")
    for label in labels:
        red, green, blue = (f"{c / 255:.6g}" for c in label.color)
        entry: Mapping[str, Any] = {"Key": str(label.value), "Red": red, "Green": green, "Blue": blue}
        element = ElementTree.SubElement(table, "Label", {**entry, "Alpha": "1" if label.value else "0"})
        element.text = label.name
    ElementTree.SubElement(information, "StudyMetaDataLinkSet")
    ElementTree.SubElement(information, "VolumeType").text = "Label"
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
