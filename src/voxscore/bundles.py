"""Finding MONAI bundles, and refusing weights that are not the ones they were published with.

A bundle is a folder of configuration and weights (`configs/`, `models/`, `docs/`) without Python. voxscore reads
keys of its `configs/metadata.json` beyond MONAI's own:

    weights_sha256   {"models/model.pt": hex digest, ...}     checked before every load
    labels           {"1": {"name": ..., "color": [r, g, b], "code": [value, scheme, meaning]}, ...}
    field_of_view_mm the extent of what the network was trained on, in mm per RAS axis
    voxel_spacing_mm the smallest and the largest spacing it was trained on, in mm: [[low, high], ...] per RAS axis
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxscore.errors import UserError
from voxscore.volumes import Label, sha256

__all__ = ["Bundle", "find_bundle", "installed_bundles", "verified_weights"]

WEIGHTS = "models/model.pt"
METADATA = "configs/metadata.json"
ANATOMICAL_STRUCTURE = ("91723000", "SCT", "Anatomical Structure")


@dataclass(frozen=True)
class Bundle:
    """A bundle folder and its metadata."""

    root: Path
    metadata: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's name, by which `--bundle` finds it."""
        return self.root.name

    @property
    def version(self) -> str:
        """Version of the bundle, from its metadata."""
        return self.metadata["version"]

    @property
    def labels(self) -> dict[int, Label]:
        """Label value -> name, colour and DICOM code, without background.

        Raises:
            UserError: the metadata does not describe labels.
        """
        try:
            return {
                int(value): Label(
                    int(value), entry["name"], tuple(entry["color"]), tuple(entry["code"]), ANATOMICAL_STRUCTURE
                )
                for value, entry in self.metadata["labels"].items()
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            file = self.root / METADATA
            raise UserError(file, "has no labels with name, color and code", "restore it or add them") from error

    def config(self, name: str) -> Path:
        """Path of `configs/<name>.json`.

        Raises:
            UserError: the bundle has no such configuration.
        """
        path = self.root / "configs" / f"{name}.json"
        if not path.is_file():
            raise UserError(path, "is missing", f"the bundle {self.name} cannot do this; choose another")
        return path

    def verify(self) -> None:
        """Refuse what is not as published, before anything of it is used.

        Raises:
            UserError: a `.pt` file that metadata.json lists is missing, or another one.
        """
        for file in self.metadata.get("weights_sha256", {}):
            if file.endswith(".pt"):
                verified_weights(self.root, file)


def _plugins() -> Path:
    """The shipped bundles: inside an installed package, or beside src/ in a checkout."""
    package = Path(__file__).parent
    installed = package / "plugins"
    return installed if installed.is_dir() else package.parents[1] / "plugins"


def installed_bundles() -> list[Bundle]:
    """The bundles that came with voxscore, by name."""
    folder = _plugins()
    return [_read(p) for p in sorted(folder.iterdir()) if (p / METADATA).is_file()]


def find_bundle(name_or_path: str | os.PathLike[str]) -> Bundle:
    """An installed bundle by its name, or any bundle by its folder.

    Raises:
        UserError: neither is there, or the metadata cannot be read.
    """
    path = Path(name_or_path)
    for root in (_plugins() / path, path):
        if (root / METADATA).is_file():
            return _read(root.resolve())
    names = ", ".join(bundle.name for bundle in installed_bundles())
    raise UserError(f"bundle {name_or_path}", "is not known", f"choose one of: {names}; or name its folder")


def _read(root: Path) -> Bundle:
    file = root / METADATA
    remedy = "restore it from the bundle's source"
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(file, "cannot be read as JSON", remedy) from error
    if not isinstance(metadata, dict) or not {"version", "task"} <= metadata.keys():
        raise UserError(file, "is not a bundle's metadata (it names no version and task)", remedy)
    return Bundle(root, metadata)


def verified_weights(bundle_root: str | os.PathLike[str], file: str = WEIGHTS) -> str:
    """Path of a bundle's weights, after their SHA-256 agreed with the bundle's metadata.

    MONAI runs a bundle with a missing checkpoint on random weights without a word; this raises instead.

    Raises:
        UserError: the file is missing, or is not the one that metadata.json names.
    """
    root = Path(bundle_root)
    path = root / file
    if not path.is_file():
        raise UserError(path, "the weights are missing", "reinstall the bundle, or train it with its train.json")
    expected = _read(root).metadata.get("weights_sha256", {}).get(file)
    if expected is None:
        raise UserError(root / METADATA, f"names no SHA-256 of {file}", "add weights_sha256")
    if sha256(path) != expected:
        raise UserError(path, "the weights are not those of metadata.json (SHA-256 differs)", "reinstall the bundle")
    return str(path)
