"""Looks for what should not be there, in the outputs of a run.

Two independent searches. The first needs the outputs alone: are they whole, marked and listed in the manifest, and do
they hold no attribute, header field, key or column that a profile never lets pass? The second needs the originals: all
names, numbers and UIDs of their DICOM headers, and the labels of BIDS subjects, are looked for in the text of every
output, wherever it may stand.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from voxscore.deidentify import values
from voxscore.deidentify.bids import has_numbers_only, scrub_sidecar
from voxscore.deidentify.nifti import rebuilt_nifti
from voxscore.deidentify.refusal import Refusal
from voxscore.deidentify.table import ROOT, vr_of
from voxscore.deidentify.text import tokens_of, vocabulary
from voxscore.deidentify.tree import MANIFEST, find_files
from voxscore.errors import UserError
from voxscore.volumes.files import sha256
from voxscore.volumes.quiet import quiet

__all__ = ["Finding", "verify"]

_IDENTIFIERS = {0x00100020, 0x00101000, 0x00080050, 0x00101001, 0x00101040, 0x00102154, 0x00080080, 0x00080081}
_VENDORS = ("Manufacturer", "ManufacturerModelName")
_WORDS = re.compile(rb"[A-Za-z0-9.]{4,64}")
_PIXELS = {0x7FE00010, 0x7FE00008, 0x7FE00009}


@dataclass(frozen=True)
class Finding:
    """Something wrong, told without values.

    Attributes:
        file: under the output folder; "" for the folder itself.
        fault: what is wrong.
    """

    file: str
    fault: str


def verify(output: Path, source: Path | None = None) -> list[Finding]:
    """Return what is wrong with the outputs of a run, nothing if all is well.

    Args:
        output: folder of a run.
        source: the originals, to search the outputs for what they hold.

    Raises:
        UserError: the folder holds no manifest.
    """
    try:
        manifest = json.loads((output / MANIFEST).read_bytes())
        listed = {entry["output"]: entry["sha256"] for entry in manifest["entries"] if "output" in entry}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(output, "holds no manifest of a finished run", "name the output folder of one") from error
    findings = []
    present = {path.relative_to(output).as_posix() for path in find_files(output)} - {MANIFEST}
    findings += [Finding(name, "is not in the manifest") for name in sorted(present - set(listed))]
    findings += [Finding(name, "is in the manifest, but not there") for name in sorted(set(listed) - present)]
    secrets = _secrets(source) if source is not None else set()
    for name in sorted(present & set(listed)):
        path = output / name
        if sha256(path) != listed[name]:
            findings.append(Finding(name, "was changed since"))
        faults = _faults if path.suffix == ".dcm" else _volume_faults
        findings += [Finding(name, fault) for fault in faults(path, secrets)]
    return findings


def _volume_faults(path: Path, secrets: set[bytes]) -> list[str]:
    content = path.read_bytes()
    try:
        if path.name.endswith((".nii", ".nii.gz")):
            plain = gzip.decompress(content) if path.suffix == ".gz" else content
            clean, content = plain == rebuilt_nifti(content, path, compressed=False), b""
        elif path.suffix == ".json":
            clean = scrub_sidecar(content, path.name == "dataset_description.json")[0] == content
        else:
            clean = path.suffix == ".tsv" or has_numbers_only(content)
    except (UserError, OSError, EOFError, zlib.error):
        return ["cannot be read"]
    return ([] if clean else ["holds what should have been dropped"]) + _hits(content, secrets)


def _hits(content: bytes, secrets: set[bytes]) -> list[str]:
    hits = len({word.lower() for word in _WORDS.findall(content)} & secrets) if secrets else 0
    return [f"holds {hits} names, numbers or UIDs of the originals"] if hits else []


def _faults(path: Path, secrets: set[bytes]) -> list[str]:
    faults = []
    with quiet():
        try:
            dataset = pydicom.dcmread(path)
            for element in dataset.iterall():
                if element.tag.is_private or not vr_of(int(element.tag)):
                    continue
                if (
                    element.VR == "PN"
                    and element.value
                    and not re.fullmatch(r"[0-9A-F]{16}|REMOVED", str(element.value))
                ):
                    faults.append(f"({element.tag.group:04X},{element.tag.element:04X}) holds a name")
            if any(path.open("rb").read(128)):
                faults.append("its preamble is not empty")
            if dataset.get("PatientIdentityRemoved") != "YES" or not dataset.get("DeidentificationMethodCodeSequence"):
                faults.append("does not say that it was de-identified")
            if dataset.file_meta.MediaStorageSOPInstanceUID != dataset.SOPInstanceUID:
                faults.append("names itself differently in its file meta information")
            content = _searchable(dataset)
        except Exception:
            return ["cannot be read"]
    return faults + _hits(content, secrets)


def _searchable(dataset: Dataset) -> bytes:
    """All strings of a data set, whatever their tags."""
    strings: list[bytes] = []
    for element in dataset.iterall():
        if (
            element.VR == "SQ"
            or int(element.tag) in _PIXELS
            or element.VR in values.BINARY
            or element.VR in ("DS", "IS")
        ):
            continue
        value = element.value
        strings.append(value if isinstance(value, bytes) else str(value).encode("utf-8", "replace"))
    return b"\0".join(strings)


def _secrets(source: Path) -> set[bytes]:
    """Names, numbers and UIDs in the headers and labels of subjects in the names of the originals, in lower case."""
    secrets: set[str] = set()
    vendors: set[str] = set()
    for path in find_files(source):
        secrets |= {part[4:].split("_")[0].lower() for part in path.parts if part.startswith("sub-")}
        with quiet():
            try:
                dataset = pydicom.dcmread(path, stop_before_pixels=True)
                vendors |= {token for name in _VENDORS for token in tokens_of(str(dataset.get(name, "")))}
                _collect(dataset, secrets, values.encodings_of(None, ["iso8859"]))
            except (Refusal, Exception):
                continue
    known = vocabulary() | vendors  # an institution may be called after a vendor
    return {secret.encode("utf-8", "replace") for secret in secrets if len(secret) >= 4 and secret not in known}


def _collect(dataset: Dataset, secrets: set[str], encodings: list[str]) -> None:
    for element in dataset.iterall():
        tag: Any = int(element.tag)
        if element.VR == "PN" or tag in _IDENTIFIERS:
            secrets |= {token for token in tokens_of(str(element.value)) if not token.isdigit() or len(token) > 4}
        elif element.VR == "UI":
            found = [element.value] if isinstance(element.value, str) else element.value or []
            secrets |= {str(uid) for uid in found if uid and not str(uid).startswith(ROOT)}
