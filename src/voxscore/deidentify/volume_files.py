"""NIfTI files in a folder that is de-identified, as a BIDS data set or as loose volumes.

A folder with a `dataset_description.json` is a BIDS data set: its files are renamed and cleaned as `bids` says. Any
other NIfTI file gets a new header and a coded name, folder by folder, so that what lay together still lies together
and an image still has the name of its label. The `.json`, `.bval` and `.bvec` that converters write beside a volume
follow it.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from voxscore.deidentify.bids import has_numbers_only, scrub_bids, scrub_sidecar
from voxscore.deidentify.codes import Codes
from voxscore.deidentify.nifti import rebuilt_nifti
from voxscore.deidentify.profile import Profile
from voxscore.deidentify.refusal import Refusal
from voxscore.errors import UserError

__all__ = ["belongs_to_volumes", "deidentify_volume_file"]

_BESIDE = (".json", ".bval", ".bvec")
_VOLUMES = (".nii.gz", ".nii")
_ROLES = {"images", "labels", "imagesTr", "labelsTr", "imagesTs", "labelsTs"}
_CHANNEL = re.compile(r"_000\d$")  # nnU-Net's numbers of channels
_DESCRIPTION = "dataset_description.json"


def belongs_to_volumes(path: Path, source: Path) -> bool:
    """Whether a file is a NIfTI volume, lies beside one of the same name, or in a BIDS data set.

    Args:
        path: the file.
        source: the folder that is de-identified, or the file itself.
    """
    if _ending(path, _VOLUMES) or _bids_root(path, source) is not None:
        return True
    ending = _ending(path, _BESIDE)
    return bool(ending) and any(path.with_name(_stem(path) + suffix).exists() for suffix in _VOLUMES)


def deidentify_volume_file(
    content: bytes, path: Path, source: Path, profile: Profile, codes: Codes
) -> tuple[bytes, PurePosixPath, list[str]]:
    """De-identify one file that belongs to volumes.

    Args:
        content: its bytes.
        path: where it lies; read for its name.
        source: the folder that is de-identified, or the file itself.
        profile: whether acquisition times and the subjects' age and sex may stay.
        codes: new identifiers.

    Returns:
        New bytes, the path under the output folder, and the names of keys or columns that were dropped.

    Raises:
        Refusal: it cannot be judged.
    """
    root = _bids_root(path, source)
    try:
        if root is not None:
            content, name, dropped = scrub_bids(content, PurePosixPath(path.relative_to(root)), codes, profile)
            return content, PurePosixPath(*_coded_folders(root, source, codes), name), dropped
        ending = _ending(path, _VOLUMES + _BESIDE)
        channel = _CHANNEL.search(_stem(path))
        stem = _CHANNEL.sub("", _stem(path))
        name = PurePosixPath(codes.identifier("volume", stem) + (channel[0] if channel else "") + ending)
        place = PurePosixPath(*_coded_folders(path.parent, source, codes), name)
        if ending in _VOLUMES:
            return rebuilt_nifti(content, path), place, []
        if ending == ".json":
            content, dropped = scrub_sidecar(content)
            return content, place, dropped
    except UserError as error:
        raise Refusal(error.fault) from error
    if not has_numbers_only(content):
        raise Refusal("holds more than numbers")
    return content, place, []


def _coded_folders(folder: Path, source: Path, codes: Codes) -> list[str]:
    if folder == source or source not in folder.parents:
        return []
    parts = folder.relative_to(source).parts
    return [part if part in _ROLES else codes.identifier("folder", part) for part in parts]


def _bids_root(path: Path, source: Path) -> Path | None:
    """The nearest folder, no higher than the source, that calls itself a BIDS data set."""
    folders = [folder for folder in path.parents if folder == source or source in folder.parents]
    return next((folder for folder in folders if (folder / _DESCRIPTION).is_file()), None)


def _ending(path: Path, endings: tuple[str, ...]) -> str:
    return next((ending for ending in endings if path.name.lower().endswith(ending)), "")


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(_ending(path, _VOLUMES + _BESIDE))]
