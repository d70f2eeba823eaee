"""Text burned into pixels: blanked where a rule says where it is, refused where it is likely and no rule says so.

Whether pixels spell a name cannot be read from a header with certainty. What is known is where it happens: ultrasound,
angiography and screen captures carry text as a rule, X-ray and slices seldom. So for the former a rule must exist; an
empty rule is a person's word that there is nothing to blank. Ultrasound that says where its image regions are needs no
rule: all outside of them is blanked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.utils import get_expected_length

from voxscore.deidentify.refusal import Refusal
from voxscore.errors import UserError
from voxscore.volumes.files import read_bytes

__all__ = ["Box", "PixelCleaner", "PixelReader", "PixelRule", "read_rules"]

Box = tuple[int, int, int, int]
_CLASS = "1.2.840.10008.5.1.4.1.1."
_RISKY_CLASSES = (_CLASS + "7", _CLASS + "6.1", _CLASS + "3.1", _CLASS + "6.2", _CLASS + "12.", _CLASS + "77.1.")
_RISKY_MODALITIES = {"US", "IVUS", "XA", "RF", "SC", "OT", "ES", "GM", "SM", "XC", "OP", "DOC", "ECG"}
_DOCUMENTS = _CLASS + "104."
_VIDEO = tuple(f"1.2.840.10008.1.2.4.{n}" for n in range(100, 109))
_MATCHED = ("Modality", "Manufacturer", "ManufacturerModelName", "Rows", "Columns", "SOPClassUID", "ConversionType")


class PixelReader(Protocol):
    """Optical character recognition of the user's own."""

    def __call__(self, frame: np.ndarray) -> Iterable[Box]:
        """Return boxes (left, top, right, bottom) of text in a frame (rows, columns) or (rows, columns, 3)."""
        ...


@dataclass(frozen=True)
class PixelRule:
    """Where objects of one kind carry text.

    Attributes:
        match: header keyword -> value it must have.
        blank: boxes (left, top, right, bottom) in pixels, the latter two not included; none if there is no text.
    """

    match: dict[str, Any]
    blank: tuple[Box, ...]

    def fits(self, dataset: Dataset) -> bool:
        """Whether the rule is for an object."""
        return all(str(dataset.get(keyword, "")) == str(value) for keyword, value in self.match.items())


def read_rules(path: Path) -> list[PixelRule]:
    """Return the rules of a JSON file: [{"match": {"Modality": "US", "Rows": 480}, "blank": [[0, 0, 640, 40]]}, ...].

    Raises:
        UserError: not such a file.
    """
    try:
        entries = json.loads(read_bytes(path))
        rules = [PixelRule(dict(entry["match"]), tuple(_box(box) for box in entry["blank"])) for entry in entries]
        good = all(
            rule.match
            and set(rule.match) <= set(_MATCHED)
            and all(0 <= box[0] < box[2] and 0 <= box[1] < box[3] for box in rule.blank)
            for rule in rules
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        good = False
    if not good:
        raise UserError(
            path,
            "is no list of pixel rules",
            'write [{"match": {"Modality": "US"}, "blank": [[left, top, right, bottom]]}]; match by '
            + ", ".join(_MATCHED),
        )
    return rules


def _box(box: Sequence[Any]) -> Box:
    left, top, right, bottom = map(int, box)
    return left, top, right, bottom


class PixelCleaner:
    """Blanks text in pixels.

    Args:
        rules: the first that fits an object is used.
        reader: also finds text, in every frame of every object.
    """

    def __init__(self, rules: Sequence[PixelRule] = (), reader: PixelReader | None = None) -> None:
        self._rules, self._reader = rules, reader

    def clean(self, dataset: Dataset) -> bool:
        """Clean an object in place; compressed pixels that have to be changed come out uncompressed.

        Args:
            dataset: with file meta information.

        Returns:
            Whether its pixels were checked by a rule, by its own regions or by the reader.

        Raises:
            Refusal: text is likely and nothing says where, or the pixels cannot be read or are incomplete.
        """
        risk = _risk(dataset)
        rule = next((rule for rule in self._rules if rule.fits(dataset)), None)
        regions = _regions(dataset) if rule is None and dataset.get("Modality") in ("US", "IVUS") else []
        if risk and (rule is None and not regions and (self._reader is None or "PixelData" not in dataset)):
            raise Refusal(risk)
        if "PixelData" not in dataset:
            return False
        hidden_overlay = any(
            0x6000 <= tag.group <= 0x60FF and tag.element == 0x0102 and dataset[tag].value
            for tag in list(dataset.keys())
        )
        blank = rule.blank if rule else ()
        if not (blank or regions or self._reader or hidden_overlay):
            _check_length(dataset)
            return rule is not None
        if dataset.file_meta.TransferSyntaxUID in _VIDEO:
            raise Refusal("is a video, and there are pixels to blank")
        _decompress(dataset)
        _check_length(dataset)
        if hidden_overlay:
            _drop_unused_bits(dataset)
        if self._reader is not None:
            blank = (*blank, *self._read(dataset))
        if blank or regions:
            _blank(dataset, blank, regions)
        return rule is not None or bool(regions) or self._reader is not None

    def _read(self, dataset: Dataset) -> list[Box]:
        assert self._reader is not None
        frames = dataset.pixel_array
        axes = 2 if int(dataset.get("SamplesPerPixel", 1)) == 1 else 3
        frames = frames[None] if frames.ndim == axes else frames
        return [_box(box) for frame in frames for box in self._reader(frame)]


def _risk(dataset: Dataset) -> str:
    """Why text in the pixels is likely, "" if it is not."""
    sop_class = str(dataset.get("SOPClassUID", ""))
    if sop_class.startswith(_DOCUMENTS) or "EncapsulatedDocument" in dataset:
        return "is an encapsulated document, which cannot be searched for names"
    if "PixelData" not in dataset and "FloatPixelData" not in dataset:
        return ""
    if str(dataset.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        return "declares text burned into its pixels, and no pixel rule covers it"
    if sop_class.startswith(_RISKY_CLASSES) or str(dataset.get("Modality", "")).strip() in _RISKY_MODALITIES:
        return "is of a kind that carries text in its pixels, and no pixel rule covers it"
    kind = " ".join(map(str, dataset.get("ImageType") or [])).upper()
    if any(word in kind for word in ("SCREEN", "DOSE", "REPORT", "CAPTURE")) or dataset.get("ConversionType"):
        return "is a screen capture, and no pixel rule covers it"
    if dataset.file_meta.TransferSyntaxUID in _VIDEO:
        return "is a video, and no pixel rule covers it"
    return ""


def _regions(dataset: Dataset) -> list[Box]:
    """Where an ultrasound object says that its images are."""
    boxes = []
    for item in dataset.get("SequenceOfUltrasoundRegions") or []:
        corners = [item.get(f"RegionLocation{name}") for name in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
        if any(corner is None for corner in corners):
            return []
        left, top, right, bottom = map(int, corners)
        boxes.append((left, top, right + 1, bottom + 1))
    return [box for box in boxes if box[0] < box[2] and box[1] < box[3]]


def _decompress(dataset: Dataset) -> None:
    if not dataset.file_meta.TransferSyntaxUID.is_compressed or dataset.file_meta.TransferSyntaxUID.is_deflated:
        return
    try:
        dataset.decompress(generate_instance_uid=False)
    except Exception as error:  # decoders raise many types on bad bytes
        raise Refusal("its pixels have to be changed and cannot be decoded") from error


def _check_length(dataset: Dataset) -> None:
    """Cut what follows native pixels.

    Raises:
        Refusal: there are fewer pixels than the header says.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not syntax.is_deflated:
        return
    try:
        expected = get_expected_length(dataset)
    except Exception as error:  # a missing or absurd size
        raise Refusal("its header does not say what its pixels are") from error
    found = len(dataset.PixelData or b"")
    if found < expected:
        raise Refusal("it has fewer pixels than its header says")
    if found > expected + expected % 2:
        dataset.PixelData = dataset.PixelData[:expected] + bytes(expected % 2)


def _words(dataset: Dataset) -> np.ndarray:
    """The pixels as (frames, rows, columns, samples) that can be written to, whatever their planar order.

    Native YBR_FULL_422 gives (frames, rows, columns / 2, 4).
    """
    bits = int(dataset.BitsAllocated)
    if bits not in (8, 16, 32):
        raise Refusal("its pixels have to be changed and are packed in an unusual way")
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    words = np.frombuffer(dataset.PixelData, f"{order}u{bits // 8}")[
        : get_expected_length(dataset, "bytes") * 8 // bits
    ]
    rows, columns, samples = int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel)
    frames = int(dataset.get("NumberOfFrames") or 1)
    words = words.copy()
    if dataset.PhotometricInterpretation == "YBR_FULL_422":
        return words.reshape(frames, rows, columns // 2, 4)
    if samples > 1 and int(dataset.get("PlanarConfiguration") or 0) == 1:
        return words.reshape(frames, samples, rows, columns).transpose(0, 2, 3, 1)
    return words.reshape(frames, rows, columns, samples)


def _store(dataset: Dataset, words: np.ndarray) -> None:
    if words.shape[-1] == 3 and int(dataset.get("PlanarConfiguration") or 0) == 1:
        words = words.transpose(0, 3, 1, 2)
    content = words.tobytes()
    dataset.PixelData = content + bytes(len(content) % 2)


def _blank(dataset: Dataset, boxes: Iterable[Box], regions: Sequence[Box]) -> None:
    """Make boxes, and all outside of regions if there are any, black in every frame."""
    hidden = np.zeros((int(dataset.Rows), int(dataset.Columns)), bool)
    if regions:
        hidden[:] = True
        for left, top, right, bottom in regions:
            hidden[max(top, 0) : bottom, max(left, 0) : right] = False
    for left, top, right, bottom in boxes:
        hidden[max(top, 0) : bottom, max(left, 0) : right] = True
    words = _words(dataset)
    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "YBR_FULL_422":
        words[:, hidden[:, 0::2] | hidden[:, 1::2]] = (0, 0, 128, 128)
    elif photometric.startswith("YBR"):
        words[:, hidden] = (0, 128, 128)
    else:
        words[:, hidden] = 2 ** int(dataset.BitsStored) - 1 if photometric == "MONOCHROME1" else 0
    _store(dataset, words)


def _drop_unused_bits(dataset: Dataset) -> None:
    """Clear the bits beside those of the image, where overlays of old lie."""
    stored, high = int(dataset.BitsStored), int(dataset.HighBit)
    if high + 1 != stored or int(dataset.get("PixelRepresentation") or 0):
        raise Refusal("an overlay lies in its pixels in an unusual way")
    words = _words(dataset)
    words &= words.dtype.type(2**stored - 1)
    _store(dataset, words)
