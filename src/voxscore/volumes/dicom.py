"""A DICOM series as one volume.

A series is a heap of slices in no particular order, and file names and instance numbers do not tell where
a slice lies. Its ImagePositionPatient p (centre of the first pixel, LPS mm) and its ImageOrientationPatient
(unit vectors r along a row and c along a column) do: slices are sorted by p . (r x c), and with PixelSpacing
(d_row, d_column) pixel (column i, row j) of slice k lies at

    p_0 + i d_column r + j d_row c + k (p_last - p_0) / (n - 1)

The formula holds only if the slices are parallel, equally far apart and complete, so each of these is checked
and a series that fails is refused: interpolating over a gap would invent anatomy.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxscore.errors import UserError
from voxscore.volumes.files import volume_suffix
from voxscore.volumes.quiet import quiet
from voxscore.volumes.volume import Volume, check_affine, check_voxels, flip_lps_ras

__all__ = ["Instance", "has_dicom", "is_dicom", "read_dicom", "scan_series"]

_TAGS = (
    *("SOPClassUID", "SeriesInstanceUID", "SeriesNumber", "Modality", "Rows", "Columns", "NumberOfFrames"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SamplesPerPixel", "ImageType"),
)
# Objects with pixels that are not images of the patient: results, doses, maps drawn for a screen.
_NOT_IMAGES = {"SEG", "PR", "KO", "SR", "RTDOSE", "RTSTRUCT", "RTPLAN", "REG", "DOC"}
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
_DUPLICATE_MM = 1e-3
# Scanners round positions, some to 0.1 mm; a missing slice shifts its neighbours by a whole gap.
_GAP_TOLERANCE = 0.1


@dataclass(frozen=True)
class Instance:
    """What the header of one DICOM image says about its place in a series and in the patient.

    Attributes:
        path: the file.
        uid: SeriesInstanceUID.
        number: SeriesNumber as text, "" if there is none.
        modality: such as MR.
        size: (columns, rows).
        frames: number of frames, 1 for an ordinary slice.
        samples: values per pixel.
        position: (3,) ImagePositionPatient, LPS mm, or None.
        axes: (2, 3) unit vectors along a row and along a column, or None.
        pixel_spacing: (2,) distance between rows and between columns, mm, or None.
    """

    path: Path
    uid: str
    number: str
    modality: str
    size: tuple[int, int]
    frames: int
    samples: int
    position: Any
    axes: Any
    pixel_spacing: Any


def is_dicom(path: Path) -> bool:
    """Whether a file has the DICOM signature and is not a DICOMDIR.

    Raises:
        UserError: it cannot be opened; passing over it could pass over a slice.
    """
    if path.name.upper() == "DICOMDIR":
        return False
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "check its permissions") from error


def has_dicom(folder: Path) -> bool:
    """Whether a folder or one of its subfolders holds a DICOM file; a file named like a volume is none."""
    return any(is_dicom(path) for path in _files(folder) if not volume_suffix(path))


def scan_series(path: Path) -> dict[str, list[Instance]]:
    """Read the headers under `path` and group the images by SeriesInstanceUID.

    Args:
        path: a DICOM file, or a folder that is searched with its subfolders.

    Raises:
        UserError: a file that has the DICOM signature and cannot be parsed, or is named .dcm and lacks it.
    """
    from pydicom import dcmread

    series: dict[str, list[Instance]] = {}
    for file in _files(path) if path.is_dir() else [path]:
        if not is_dicom(file):
            if file.suffix.lower() == ".dcm":
                raise UserError(file, "is empty or not DICOM, whatever its name says", "copy or export it again")
            continue
        try:
            with quiet():
                dataset = dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
                if dataset.file_meta.get("MediaStorageSOPClassUID") == _MEDIA_DIRECTORY:
                    continue
                if "SOPClassUID" not in dataset:
                    raise ValueError("no SOPClassUID, which every DICOM object has")
                if "Rows" not in dataset or dataset.get("Modality") in _NOT_IMAGES:
                    continue
                instance = _instance(file, dataset)
                series.setdefault(instance.uid, []).append(instance)
        except Exception as error:  # pydicom raises many types on bad bytes
            raise UserError(file, "is a damaged DICOM file", "copy or export it again") from error
    return series


def read_dicom(path: Path, series: str | None = None) -> Volume:
    """Read one series as a volume, with modality rescaling applied.

    Args:
        path: a folder that holds the series, or a multi-frame file.
        series: SeriesNumber, SeriesInstanceUID, or at least eight of its last characters.

    Raises:
        UserError: no or several series, or slices that do not make up one complete regular volume.
    """
    found = scan_series(path)
    if not found:
        raise UserError(path, "holds no DICOM images", "name the folder of an image series")
    instances = _choose(found, series, path)
    name = path.name if path.is_dir() else path.stem
    name = name or path.resolve().name
    if len(found) > 1:
        name += f"_series{instances[0].number or instances[0].uid[-8:]}"
    if any(instance.samples != 1 for instance in instances):
        raise UserError(path, "holds colour images", "name a series with one value per pixel")
    if any(instance.frames > 1 for instance in instances):
        return _read_multiframe(path, name, instances)
    ordered = _in_slice_order(path, instances)
    affine = _affine(path, ordered)
    voxels = np.stack([_pixels(instance).T for instance in ordered], axis=2)
    files = [instance.path for instance in ordered]
    return Volume(check_voxels(voxels, path), affine, path, name, "dicom", files)


def _files(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(error.filename, f"cannot be read ({error.strerror})", "check its permissions") from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _instance(path: Path, dataset: Any) -> Instance:
    number = dataset.get("SeriesNumber")
    axes = _numbers(dataset, "ImageOrientationPatient", 6)
    return Instance(
        path,
        uid=str(dataset.get("SeriesInstanceUID", "")),
        number="" if number is None else str(int(number)),
        modality=str(dataset.get("Modality") or ""),
        size=(int(dataset.Columns), int(dataset.Rows)),
        frames=int(dataset.get("NumberOfFrames") or 1),
        samples=int(dataset.get("SamplesPerPixel") or 1),
        position=_numbers(dataset, "ImagePositionPatient", 3),
        axes=None if axes is None else axes.reshape(2, 3),
        pixel_spacing=_numbers(dataset, "PixelSpacing", 2),
    )


def _numbers(dataset: Any, keyword: str, count: int) -> np.ndarray | None:
    """The numbers of a header element, None if it is absent or empty.

    Raises:
        ValueError: text that is no number, or another count.
    """
    value = dataset.get(keyword)
    if value is None:
        return None
    numbers = np.array(value, dtype=np.float64)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"{keyword} is not {count} numbers")
    return numbers


def _choose(found: dict[str, list[Instance]], series: str | None, path: Path) -> list[Instance]:
    """The instances of the one series meant."""
    chosen = list(found)
    if series is not None:
        number = series.strip().lstrip("0") or "0"
        exact = [uid for uid in found if series == uid]
        numbered = [uid for uid, instances in found.items() if instances[0].number == number]
        ending = [uid for uid in found if len(series) >= 8 and uid.endswith(series)]
        chosen = exact or numbered or ending
    if len(chosen) == 1:
        return found[chosen[0]]
    listed = ", ".join(_describe(instances) for instances in found.values())
    if series is None:
        fault = f"holds {len(found)} DICOM series: {listed}"
    elif chosen:
        fault = f"'{series}' fits {len(chosen)} of its {len(found)} DICOM series: {listed}"
    else:
        fault = f"holds no DICOM series '{series}', only: {listed}"
    raise UserError(path, fault, "choose one with --series NUMBER-or-UID (the end of the UID is enough)")


def _describe(instances: Sequence[Instance]) -> str:
    # Descriptions are free text and may name the patient; modality, counts and sizes do not.
    first = instances[0]
    count = sum(instance.frames for instance in instances)
    images = "image" if count == 1 else "images"
    number = f"number {first.number}" if first.number else "no number"
    size = f"{first.size[0]}x{first.size[1]}"
    return f"{number} ({first.modality[:16]} {count} {images} {size}, UID ...{first.uid[-12:]})"


def _in_slice_order(path: Path, instances: Sequence[Instance]) -> list[Instance]:
    """The slices sorted along their common normal.

    Raises:
        UserError: slices that lack a position, differ in size or orientation, share a place or leave gaps.
    """
    if len(instances) < 2:
        raise UserError(path, "is a single 2-D DICOM slice", "name the folder that holds the whole series")
    _check_alike(path, instances)
    normal = np.cross(*instances[0].axes)
    heights = np.array([instance.position @ normal for instance in instances])
    order = np.argsort(heights, kind="stable")
    gaps = np.diff(heights[order])
    places = 1 + int(np.count_nonzero(gaps > _DUPLICATE_MM))
    if places < len(instances):
        raise UserError(
            path,
            f"{len(instances)} images lie at only {places} positions: several phases or echoes, or copies",
            "keep one image for each position in a folder of its own",
        )
    gap = float(np.median(gaps))
    wide = np.flatnonzero(np.abs(gaps - gap) > _GAP_TOLERANCE * gap)
    if len(wide):
        where = ", ".join(f"{k + 1} and {k + 2} ({gaps[k]:.2f} mm)" for k in wide[:5])
        more = f" and {len(wide) - 5} more" if len(wide) > 5 else ""
        count = "1 gap" if len(wide) == 1 else f"{len(wide)} gaps"
        raise UserError(
            path,
            f"{count} among {len(instances)} slices {gap:.2f} mm apart, between slices {where}{more}",
            "export the whole series again; slices are missing or not equally far apart",
        )
    return [instances[k] for k in order]


def _check_alike(path: Path, instances: Sequence[Instance]) -> None:
    for instance in instances:
        places = {
            "ImagePositionPatient": instance.position,
            "ImageOrientationPatient": instance.axes,
            "PixelSpacing": instance.pixel_spacing,
        }
        for keyword, value in places.items():
            if value is None:
                raise UserError(
                    instance.path,
                    f"this DICOM image has no {keyword}, so its place in the patient is unknown",
                    "name a series of slices from a scanner, not screen captures",
                )
        if not np.allclose(instance.axes @ instance.axes.T, np.eye(2), atol=1e-3):
            raise UserError(instance.path, "its ImageOrientationPatient is not two unit vectors", "export it again")
    first = instances[0]
    sizes = Counter(instance.size for instance in instances)
    spacings = {tuple(instance.pixel_spacing.round(4).tolist()) for instance in instances}
    turned = sum(not np.allclose(i.axes, first.axes, atol=1e-3) for i in instances)
    remedy = "keep the slices that belong together in a folder of their own"
    if len(sizes) > 1:
        listed = ", ".join(f"{n} of {x}x{y}" for (x, y), n in sizes.items())
        raise UserError(path, f"its slices differ in size ({listed})", remedy)
    if len(spacings) > 1:
        raise UserError(path, f"its slices have {len(spacings)} different pixel spacings", remedy)
    if turned:
        fault = f"{turned} of {len(instances)} images have another orientation than the first (a localizer?)"
        raise UserError(path, fault, remedy)


def _affine(path: Path, ordered: Sequence[Instance]) -> np.ndarray:
    """The affine of the module docstring, turned to RAS mm."""
    first, last = ordered[0], ordered[-1]
    along_row, along_column = first.axes
    d_row, d_column = first.pixel_spacing
    step = (last.position - first.position) / (len(ordered) - 1)
    affine = np.eye(4)
    affine[:3] = np.stack([d_column * along_row, d_row * along_column, step, first.position], axis=1)
    # Slices of a tilted gantry shift evenly and are fine (a sheared grid); uneven shifts are not a grid.
    expected = first.position + np.arange(len(ordered))[:, None] * step
    shifts = np.linalg.norm(np.stack([i.position for i in ordered]) - expected, axis=1)
    if shifts.max() > max(_GAP_TOLERANCE * float(np.linalg.norm(step)), 0.05):
        raise UserError(
            path,
            f"slice {int(shifts.argmax()) + 1} lies {shifts.max():.2f} mm off the line through the others",
            "keep the slices that belong together in a folder of their own",
        )
    affine = flip_lps_ras(affine)
    check_affine(affine, path)
    return affine


def _pixels(instance: Instance) -> np.ndarray:
    """(rows, columns) float32 pixels of one slice after the modality transform."""
    from pydicom import dcmread
    from pydicom.pixels import apply_modality_lut

    path = instance.path
    try:
        with quiet():
            dataset = dcmread(path)
            if "PixelData" not in dataset:
                raise UserError(path, "this DICOM image has no pixel data", "export the series with its pixels")
            pixels = apply_modality_lut(dataset.pixel_array, dataset)
    except UserError:
        raise
    except Exception as error:  # decoders raise many types on bad bytes
        raise _undecodable(path, error) from error
    return np.asarray(pixels, dtype=np.float32)


def _undecodable(path: Path, error: Exception) -> UserError:
    from pydicom import dcmread

    with quiet():
        syntax = dcmread(path, stop_before_pixels=True, force=True).file_meta.get("TransferSyntaxUID")
    compressed = syntax is not None and syntax.is_transfer_syntax and syntax.is_compressed
    if compressed and isinstance(error, (RuntimeError, NotImplementedError)):
        return UserError(
            path,
            f"no decoder for its compression ({syntax.name}) is installed",
            "pip install 'pylibjpeg[all]', or decompress the series with dcmdjpeg or gdcmconv --raw",
        )
    return UserError(path, "its pixel data are damaged or incomplete", "copy or export the series again")


def _read_multiframe(path: Path, name: str, instances: Sequence[Instance]) -> Volume:
    """Read an enhanced multi-frame image."""
    from highdicom import imread

    if len(instances) > 1:
        raise UserError(path, f"the series is spread over {len(instances)} multi-frame files", "name one of the files")
    file = instances[0].path
    try:
        with quiet():
            volume = imread(file).get_volume(apply_real_world_transform=False, apply_presentation_lut=False)
    except Exception as error:  # highdicom raises many types for what is no regular stack
        raise UserError(
            file,
            "its frames do not make up one regular 3-D volume that voxscore can read",
            "convert it with dcm2niix and give the NIfTI file",
        ) from error
    # highdicom's axes are (slice, row, column).
    affine = flip_lps_ras(np.asarray(volume.affine)[:, [2, 1, 0, 3]])
    check_affine(affine, path)
    return Volume(check_voxels(volume.array.transpose(2, 1, 0), path), affine, path, name, "dicom", [file])
