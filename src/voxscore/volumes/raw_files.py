"""Raw data in and out of files.

What a file is, its content says. voxscore's own files are HDF5 with the attributes `voxscore` ("k-space" or
"sinogram") and `version` on the root:

    k-space     /kspace (coils, x, y, z) complex64, /mask bool, /maps like /kspace (optional), /affine (4, 4);
                attribute crop (optional)
    sinogram    /sinogram (angles, detectors, z) float32, /angles rad, /affine (4, 4, optional); attributes geometry,
                detector_spacing, image_shape, spacing, and of a fan source_to_isocentre, source_to_detector, in mm

Every dataset carries a checksum, so that a damaged file is refused. Samples of a scan are noise and do not compress;
the runs of zeros between them do, for which the fastest compression is enough, and better without shuffled bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np

from voxscore.errors import UserError
from voxscore.volumes.files import volume_suffix, written_whole
from voxscore.volumes.quiet import quiet
from voxscore.volumes.raw_data import RawData, Sinogram, make_raw, make_sinogram, maps_on_grid, mask_on_grid
from voxscore.volumes.raw_formats import bart_base, read_bart, read_cfl, read_fastmri, read_ismrmrd

__all__ = ["is_sinogram", "read_raw", "read_sinogram", "write_raw", "write_sinogram"]

_VERSION = 1
_SUFFIXES = (".h5", ".hdf5")
_COMPRESSED: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "fletcher32": True}
_LAYOUTS = (
    "kspace with the attribute 'voxscore' (ours), kspace and ismrmrd_header (fastMRI), a group with xml and data "
    "(ISMRMRD), or sinogram and angles"
)


def read_raw(path: str | Path, mask: str | Path | None = None, maps: str | Path | None = None) -> RawData:
    """Read k-space of one volume from a voxscore, fastMRI, ISMRMRD or BART file.

    Args:
        path: an HDF5 file, or a BART file with or without its suffix.
        mask: .npy, .nii, .nii.gz, HDF5 or BART file of where k-space counts as sampled: (Y,), (Y, Z) or (X, Y, Z)
            zeros and ones. Samples outside are dropped; where the file itself was not sampled, nothing is added.
        maps: such a file of coil sensitivities, (coils, X, Y, Z), in NIfTI and BART (X, Y, Z, coils); instead of
            those in `path`.

    Raises:
        UserError: whatever keeps the files from being k-space of one volume, with the file and what to do.
    """
    raw = _read(Path(path))
    if mask is None and maps is None:
        return raw
    sampled, sensitivities = raw.mask, raw.maps
    if mask is not None:
        sampled = sampled & mask_on_grid(_read_array(Path(mask), "mask"), raw.shape, Path(mask))
        if not sampled.any():
            raise UserError(mask, "samples only what the k-space does not hold", "give the mask of this scan")
    if maps is not None:
        sensitivities = maps_on_grid(_read_array(Path(maps), "maps"), raw.kspace.shape, Path(maps))
    return make_raw(raw.kspace, raw.path, raw.kind, sampled, sensitivities, raw.affine, raw.crop)


def is_sinogram(path: str | Path) -> bool:
    """Whether a file is HDF5 and holds a sinogram.

    Raises:
        UserError: it is a damaged HDF5 file.
    """
    if not Path(path).is_file() or not h5py.is_hdf5(path):
        return False
    with _opened(Path(path)) as file:
        return "sinogram" in _datasets(file)


def read_sinogram(path: str | Path) -> Sinogram:
    """Read a sinogram from an HDF5 file of the layout above.

    Raises:
        UserError: another layout, or parts that disagree.
    """
    path = Path(path)
    _check_hdf5(path)
    with _opened(path) as file:
        if not {"sinogram", "angles"} <= _datasets(file):
            raise _other_layout(path, file, "sinogram and angles")
        _check_version(file, path)
        facts = file.attrs
        wanted = ("geometry", "detector_spacing", "image_shape", "spacing")
        missing = [name for name in wanted if name not in facts]
        if missing:
            raise UserError(path, f"lacks the attributes {', '.join(missing)}", "say how it was measured, in mm")
        try:
            width, height = (int(n) for n in facts["image_shape"])
            x, y, z = (float(d) for d in facts["spacing"])
            step = float(facts["detector_spacing"])
            of_a_fan = ("source_to_isocentre", "source_to_detector")
            source = {name: float(facts[name]) for name in of_a_fan if name in facts}
        except (TypeError, ValueError) as error:
            fault = "its image_shape, spacing or distances are not two, three and single numbers"
            raise UserError(path, fault, "store them as numbers, in mm") from error
        affine = np.asarray(file["affine"][()]) if "affine" in file else None
        sinogram, angles = np.asarray(file["sinogram"][()]), np.asarray(file["angles"][()])
        geometry = str(facts["geometry"])
    return make_sinogram(sinogram, angles, geometry, step, (width, height), (x, y, z), path, affine, **source)


def write_raw(raw: RawData, path: str | Path, overwrite: bool = False) -> None:
    """Write k-space as voxscore's HDF5; `read_raw` gives back every number.

    Args:
        raw: what to write.
        path: .h5 or .hdf5; it appears complete or not at all.
        overwrite: whether a file already there may be replaced.

    Raises:
        UserError: another suffix, an existing output, or a place that cannot be written to.
    """
    arrays = {"kspace": raw.kspace, "mask": raw.mask, "maps": raw.maps, "affine": raw.affine}
    _write(Path(path), overwrite, arrays, {"voxscore": "k-space", "crop": raw.crop})


def write_sinogram(sinogram: Sinogram, path: str | Path, overwrite: bool = False) -> None:
    """Write a sinogram as voxscore's HDF5; `read_sinogram` gives back every number.

    Args:
        sinogram: what to write.
        path: .h5 or .hdf5; it appears complete or not at all.
        overwrite: whether a file already there may be replaced.

    Raises:
        UserError: another suffix, an existing output, or a place that cannot be written to.
    """
    arrays = {"sinogram": sinogram.sinogram, "angles": sinogram.angles, "affine": sinogram.affine}
    names = ("geometry", "detector_spacing", "image_shape", "spacing", "source_to_isocentre", "source_to_detector")
    _write(Path(path), overwrite, arrays, {"voxscore": "sinogram"} | {name: getattr(sinogram, name) for name in names})


def _write(path: Path, overwrite: bool, arrays: Mapping[str, np.ndarray | None], facts: Mapping[str, Any]) -> None:
    if path.suffix.lower() not in _SUFFIXES:
        raise UserError(path, "raw data are written as HDF5 only", f"use one of {', '.join(_SUFFIXES)}")
    with written_whole(path, overwrite) as partial, h5py.File(partial, "w") as file:
        for name, array in arrays.items():
            if array is not None:
                file.create_dataset(name, data=array, **_COMPRESSED)
        for name, value in {"version": _VERSION, **facts}.items():
            if value is not None:
                file.attrs[name] = value


def _read(path: Path) -> RawData:
    base = bart_base(path)
    if base is not None:
        return read_bart(base)
    _check_hdf5(path)
    with _opened(path) as file:
        datasets = _datasets(file)
        groups = [name for name, node in file.items() if isinstance(node, h5py.Group) and {"xml", "data"} <= set(node)]
        if {"kspace", "ismrmrd_header"} <= datasets:
            return read_fastmri(file, path)
        if "kspace" in datasets and "voxscore" in file.attrs:
            return _read_own(file, path)
        if "sinogram" in datasets:
            raise UserError(path, "holds a sinogram, not k-space", "give k-space here")
        if "kspace" in datasets:
            raise UserError(
                path,
                "holds kspace, but no attribute 'voxscore' and no ismrmrd_header that tells the order of its axes",
                "bring them to coils, x, y, z and set the attributes voxscore = 'k-space' and version = 1",
            )
        if not groups:
            raise _other_layout(path, file, _LAYOUTS)
    if len(groups) > 1 and "dataset" not in groups:
        raise UserError(path, f"holds {len(groups)} ISMRMRD scans: {', '.join(groups)}", "keep one, named 'dataset'")
    return read_ismrmrd(path, "dataset" if "dataset" in groups else groups[0])


def _read_own(file: h5py.File, path: Path) -> RawData:
    _check_version(file, path)
    kspace, mask, maps, affine = (
        np.asarray(file[name][()]) if name in file else None for name in ("kspace", "mask", "maps", "affine")
    )
    try:
        crop = tuple(int(n) for n in file.attrs["crop"]) if "crop" in file.attrs else None
        if crop is not None and len(crop) != 3:
            raise ValueError("crop")
    except (TypeError, ValueError) as error:
        raise UserError(path, "its attribute crop is not three whole numbers", "correct or remove it") from error
    return make_raw(kspace, path, "voxscore", mask, maps, affine, crop)  # type: ignore[arg-type]


def _read_array(path: Path, name: str) -> np.ndarray:
    """A mask or coil maps from a file of their own, coils first."""
    base = bart_base(path)
    if base is not None:
        array = read_cfl(base)
        if name == "maps":
            return array.transpose(3, 0, 1, 2)
        return array.real if not array.imag.any() else array
    _check_file(path)
    if h5py.is_hdf5(path):
        with _opened(path) as file:
            datasets = _datasets(file)
            if name not in datasets and len(datasets) != 1:
                raise _other_layout(path, file, name)
            return np.asarray(file[name if name in datasets else datasets.pop()][()])
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        if volume_suffix(path) in (".nii", ".nii.gz"):
            with quiet():
                array = np.asanyarray(nib.Nifti1Image.from_filename(path).dataobj)
            return np.moveaxis(array, -1, 0) if name == "maps" and array.ndim == 4 else array
    except Exception as error:  # nibabel and numpy raise many types on bad bytes
        raise UserError(path, "is damaged, or not what its suffix says", "copy or export it again") from error
    raise UserError(path, f"voxscore does not read {name} from this kind", "use .npy, .nii.gz, HDF5 or .cfl")


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise UserError(path, "is a folder, not a file", "name a file in it")
    if not path.exists():
        raise UserError(path, "there is no such file", "check the path")
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "check its permissions") from error
    if empty:
        raise UserError(path, "is an empty file", "copy or export it again")


def _check_hdf5(path: Path) -> None:
    _check_file(path)
    if not h5py.is_hdf5(path):
        raise UserError(path, "is neither HDF5 nor a BART file", "give raw data as .h5 or as .cfl with its .hdr")


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file to read, whose damages become one clear error."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError) as error:  # what h5py raises on bad bytes
        raise UserError(path, "is a damaged HDF5 file, or one cut short", "copy or export it again") from error


def _datasets(file: h5py.File) -> set[str]:
    return {name for name, node in file.items() if isinstance(node, h5py.Dataset)}


def _check_version(file: h5py.File, path: Path) -> None:
    version = file.attrs.get("version", _VERSION)
    if version != _VERSION:
        raise UserError(path, f"its layout is version {version}, not {_VERSION}", "install a newer voxscore")


def _other_layout(path: Path, file: h5py.File, expected: str) -> UserError:
    found = ", ".join(sorted(file)[:12]) or "nothing"
    return UserError(path, f"holds {found}; expected: {expected}", "export it in one of these layouts")
