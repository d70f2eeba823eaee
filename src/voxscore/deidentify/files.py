"""One file de-identified: read, judged, cleaned, written whole or refused.

A file of ours is recognised by its seal, a keyed digest of all its other bytes: given in again under the same key, it
comes out as it is, and so de-identification is idempotent. A file that was changed since has a broken seal and is
treated like any other.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from voxscore.deidentify.code_streams import blank_comments
from voxscore.deidentify.codes import Codes
from voxscore.deidentify.headers import HeaderCleaner
from voxscore.deidentify.pixels import PixelCleaner
from voxscore.deidentify.profile import Profile
from voxscore.deidentify.record import Record
from voxscore.deidentify.refusal import Refusal
from voxscore.deidentify.table import ROOT
from voxscore.deidentify.text import TextCleaner
from voxscore.deidentify.volume_files import belongs_to_volumes, deidentify_volume_file
from voxscore.volumes.files import written_whole
from voxscore.volumes.quiet import quiet

__all__ = ["Deidentifier", "Outcome", "deidentify_file"]

IMPLEMENTATION = "2.25.271828182845904523536028747135266249775"
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
_DIGITS = 32
_OPEN_SEAL = b"seal " + b"0" * _DIGITS
_SEAL = re.compile(rb"seal ([0-9A-F]{32})")


@dataclass(frozen=True)
class Outcome:
    """What became of one file that was released; holds no value of it.

    Attributes:
        output: where it is, under the output folder.
        sha256: of the output's bytes.
        sop_class: its SOP class, "" for other formats.
        actions: action -> how many elements.
        tags: "GGGGEEEE action", or "key X" for a key or column of BIDS that was dropped -> how many.
        codes: options of which an action ran.
        unknown: tags that the dictionary does not know.
        private: safe private elements that were kept.
        pixels_before: SHA-256 of the pixels read, "" without pixels.
        pixels_after: SHA-256 of the pixels written.
    """

    output: str
    sha256: str
    sop_class: str = ""
    actions: dict[str, int] = field(default_factory=dict)
    tags: dict[str, int] = field(default_factory=dict)
    codes: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    private: list[str] = field(default_factory=list)
    pixels_before: str = ""
    pixels_after: str = ""


class Deidentifier:
    """De-identifies DICOM objects, NIfTI volumes and BIDS files.

    Args:
        profile: what is asked for.
        codes: new identifiers.
        text: reduces free text; with the vocabulary that voxscore ships unless given.
        pixels: blanks burned-in text; without rules unless given, so what may carry text is refused.
    """

    def __init__(
        self, profile: Profile, codes: Codes, text: TextCleaner | None = None, pixels: PixelCleaner | None = None
    ) -> None:
        self.profile, self.codes = profile, codes
        self._headers = HeaderCleaner(profile, codes, text or TextCleaner())
        self._pixels = pixels or PixelCleaner()

    def dataset(self, dataset: Dataset) -> tuple[Dataset, Record]:
        """Return a copy of a data set with a de-identified header; its pixels are not looked at.

        Raises:
            Refusal: it cannot be judged.
        """
        with quiet():
            return self._headers.clean(dataset)

    def dicom(self, content: bytes) -> tuple[bytes, Outcome]:
        """Return the bytes of a de-identified DICOM file and what was done.

        Raises:
            Refusal: it is not released.
        """
        with quiet():
            try:
                return self._dicom(content)
            except Refusal:
                raise
            except InvalidDicomError as error:
                raise Refusal("is no DICOM file, or a damaged one") from error
            except Exception as error:  # pydicom raises many types on bad bytes, with values of the file in them
                raise Refusal("is a damaged DICOM file") from error

    def volume_file(self, content: bytes, path: Path, source: Path) -> tuple[bytes, Outcome]:
        """Return the bytes of a NIfTI volume or of what belongs to it, and what was done.

        Args:
            content: of the file.
            path: where it lies.
            source: the folder that is de-identified.

        Raises:
            Refusal: it is not released.
        """
        written, name, dropped = deidentify_volume_file(content, path, source, self.profile, self.codes)
        return written, Outcome(
            name.as_posix(), hashlib.sha256(written).hexdigest(), tags={f"{k} X": 1 for k in dropped}
        )

    def _dicom(self, content: bytes) -> tuple[bytes, Outcome]:
        dataset = pydicom.dcmread(BytesIO(content))
        if self._sealed(content):
            return content, self._outcome(dataset, content, Record(options=set()), _pixel_digest(dataset))
        _check(dataset)
        before = _pixel_digest(dataset)
        cleaned_pixels = self._pixels.clean(dataset)
        syntax = UID(dataset.file_meta.TransferSyntaxUID)
        if syntax.is_encapsulated and "PixelData" in dataset:
            dataset.PixelData = blank_comments(dataset.PixelData, syntax)
        new, record = self._headers.clean(dataset, ["clean-pixel-data"] if cleaned_pixels else [])
        if cleaned_pixels:
            new.BurnedInAnnotation = "NO"
        new.DeidentificationMethod = [*_values(new.DeidentificationMethod), _OPEN_SEAL.decode()]
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = new.SOPClassUID, new.SOPInstanceUID
        meta.TransferSyntaxUID, meta.ImplementationClassUID = syntax, UID(IMPLEMENTATION)
        meta.ImplementationVersionName = "VOXSCORE"
        new.file_meta, new.preamble = meta, bytes(128)
        buffer = BytesIO()
        pydicom.dcmwrite(
            buffer,
            new,
            implicit_vr=syntax.is_implicit_VR,
            little_endian=syntax.is_little_endian,
            enforce_file_format=True,
        )
        written = self._seal(buffer.getvalue())
        return written, self._outcome(new, written, record, before)

    def _seal(self, content: bytes) -> bytes:
        if content.count(_OPEN_SEAL) != 1:  # deflated: not sealed, so not recognised either
            return content
        digest = hashlib.sha256(content).hexdigest()
        return content.replace(_OPEN_SEAL, b"seal " + self.codes.identifier("seal", digest, _DIGITS).encode())

    def _sealed(self, content: bytes) -> bool:
        found = _SEAL.findall(content, 0, 1 << 20)
        if len(found) != 1:
            return False
        opened = hashlib.sha256(content.replace(b"seal " + found[0], _OPEN_SEAL)).hexdigest()
        return self.codes.identifier("seal", opened, _DIGITS).encode() == found[0]

    @staticmethod
    def _outcome(new: Dataset, content: bytes, record: Record, before: str) -> Outcome:
        parts = [str(new.get(keyword) or "none") for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")]
        return Outcome(
            output="/".join([*parts, f"{new.SOPInstanceUID}.dcm"]),
            sha256=hashlib.sha256(content).hexdigest(),
            sop_class=str(new.SOPClassUID),
            actions=dict(record.actions),
            tags=dict(record.tags),
            codes=sorted(record.options),
            unknown=sorted(record.unknown),
            private=sorted(record.private),
            pixels_before=before,
            pixels_after=_pixel_digest(new),
        )


def deidentify_file(path: Path, output: Path, deidentifier: Deidentifier, source: Path | None = None) -> Outcome:
    """De-identify one file, by its format.

    Args:
        path: the file.
        source: the folder it is part of, which says what names of folders mean; the file alone unless given.
        output: the folder under which the new file goes, with a name made of new identifiers.
        deidentifier: does it.

    Raises:
        Refusal: it is not released; nothing is written.
        UserError: the output cannot be written.
    """
    if path.is_symlink():
        raise Refusal("is a symbolic link")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Refusal("cannot be read") from error
    if belongs_to_volumes(path, source or path):
        written, outcome = deidentifier.volume_file(content, path, source or path)
    else:
        written, outcome = deidentifier.dicom(content)
    with written_whole(output / outcome.output, overwrite=True) as unfinished:
        unfinished.write_bytes(written)
    return outcome


def _check(dataset: Dataset) -> None:
    """Refuse what is no complete standard object."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    sop_class = str(dataset.get("SOPClassUID", ""))
    if syntax is None or not UID(syntax).is_transfer_syntax or UID(syntax).is_private:
        raise Refusal("its transfer syntax is missing or private")
    if sop_class == _MEDIA_DIRECTORY or dataset.file_meta.get("MediaStorageSOPClassUID") == _MEDIA_DIRECTORY:
        raise Refusal("is a DICOMDIR, which lists files by their old names; make a new one of the outputs")
    if not sop_class or not dataset.get("SOPInstanceUID"):
        raise Refusal("has no SOP class or instance UID")
    if not sop_class.startswith(ROOT):
        raise Refusal("is of a private SOP class")
    for tag in list(dataset.keys()):
        element = dataset.get_item(tag)
        length = getattr(element, "length", 0xFFFFFFFF)
        if isinstance(element.value, bytes) and length not in (0xFFFFFFFF, len(element.value)):
            raise Refusal("is truncated")


def _pixel_digest(dataset: Dataset) -> str:
    element = dataset.get_item(0x7FE00010) if 0x7FE00010 in dataset else None
    return "" if element is None or not element.value else hashlib.sha256(element.value).hexdigest()


def _values(value: object) -> list[str]:
    return [value] if isinstance(value, str) else [str(one) for one in value]  # type: ignore[attr-defined]
