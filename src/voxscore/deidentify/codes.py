"""Where new identifiers come from: a key, or chance; and the crosswalk that leads back.

Keyed pseudonyms need no table: whoever has the key derives them again. Strict mode wants codes that are not derived
from anything about the patient, so they are drawn at random, and the crosswalk is what makes them the same next time.
Either way a crosswalk re-identifies everybody in it: it is readable for its owner alone, and lies outside the output.

Several processes share one crosswalk. Whoever misses an entry takes the file's lock, reads what the others have added,
and only then adds its own.
"""

from __future__ import annotations

import csv
import fcntl
import io
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from voxscore.deidentify.pseudonyms import MAX_SHIFT_DAYS, Pseudonyms
from voxscore.errors import UserError

__all__ = ["Codes", "Crosswalk", "RandomCodes", "RecordedCodes"]

_HEADER = ["kind", "old", "new"]
# Not identifiers of a person or an object, so of no use in a crosswalk.
_UNRECORDED = {"file", "seal", "title"}
# One code for all lengths, so that it does not matter whether DICOM or BIDS asks for a patient first.
_RECORDED = 16


class Codes(Protocol):
    """New identifiers."""

    @property
    def key_id(self) -> str:
        """Tells keys apart, and gives none away."""

    def uid(self, value: str) -> str:
        """Return the new UID for a UID."""

    def identifier(self, kind: str, value: str, length: int = 16) -> str:
        """Return a code of `length` characters for an identifier of a kind."""

    def day_shift(self, patient: str) -> int:
        """Return by how many days the dates of a patient move."""


class Crosswalk:
    """Old and new identifiers in a CSV file: kind, old, new.

    Args:
        path: the file; made if it is not there, readable for its owner alone.

    Raises:
        UserError: it cannot be written, or is something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[tuple[str, str], str] = {}
        self._read_to = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise UserError(path, f"cannot be written ({error.strerror})", "check its permissions") from error
        self.get("format", "1", lambda: "voxscore crosswalk")
        if self._known.get(("format", "1")) != "voxscore crosswalk":
            raise UserError(path, "is no crosswalk of voxscore", "name another file")

    def get(self, kind: str, old: str, make: Callable[[], str]) -> str:
        """Return the new value for an old one, made and written down if there is none yet."""
        new = self._known.get((kind, old))
        if new is not None:
            return new
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            self._read()
            new = self._known.get((kind, old))
            if new is None:
                new = make()
                line = io.StringIO()
                writer = csv.writer(line)
                if self._read_to == 0:
                    writer.writerow(_HEADER)
                writer.writerow([kind, old.replace("\0", "|"), new])
                self._read_to += os.write(self._descriptor, line.getvalue().encode())
                self._known[kind, old] = new
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return new

    def _read(self) -> None:
        """Read what was added; a last line that was cut off by a crash is taken away."""
        size = os.fstat(self._descriptor).st_size
        content = os.pread(self._descriptor, size - self._read_to, self._read_to)
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.ftruncate(self._descriptor, self._read_to + len(whole))
        self._read_to += len(whole)
        for row in csv.reader(io.StringIO(whole.decode("utf-8", "replace"), newline="")):
            if len(row) != 3:
                raise UserError(self._path, "is no crosswalk of voxscore", "name another file")
            if row != _HEADER:
                self._known[row[0], row[1].replace("|", "\0")] = row[2]


class RecordedCodes:
    """Keyed pseudonyms, written down in a crosswalk as well."""

    def __init__(self, pseudonyms: Pseudonyms, crosswalk: Crosswalk) -> None:
        self._pseudonyms, self._crosswalk = pseudonyms, crosswalk

    @property
    def key_id(self) -> str:
        """That of the key."""
        return self._pseudonyms.key_id

    def uid(self, value: str) -> str:
        """Return the new UID for a UID."""
        return self._crosswalk.get("uid", value, lambda: self._pseudonyms.uid(value))

    def identifier(self, kind: str, value: str, length: int = 16) -> str:
        """Return the keyed code of an identifier."""
        if kind in _UNRECORDED:
            return self._pseudonyms.identifier(kind, value, length)
        return self._crosswalk.get(kind, value, lambda: self._pseudonyms.identifier(kind, value, _RECORDED))[:length]

    def day_shift(self, patient: str) -> int:
        """Return the keyed shift of a patient's dates."""
        return int(self._crosswalk.get("days", patient, lambda: str(self._pseudonyms.day_shift(patient))))


class RandomCodes:
    """Codes drawn at random and remembered in a crosswalk.

    Args:
        pseudonyms: for what identifies nobody: the names of files in the manifest, seals.
        crosswalk: remembers.
    """

    def __init__(self, pseudonyms: Pseudonyms, crosswalk: Crosswalk) -> None:
        self._pseudonyms, self._crosswalk = pseudonyms, crosswalk

    @property
    def key_id(self) -> str:
        """That of the key."""
        return self._pseudonyms.key_id

    def uid(self, value: str) -> str:
        """Return a random UID, always the same for one UID."""
        return self._crosswalk.get("uid", value, lambda: Pseudonyms(secrets.token_bytes(32)).uid(""))

    def identifier(self, kind: str, value: str, length: int = 16) -> str:
        """Return random hexadecimal digits, always the same for one value of a kind."""
        if kind in _UNRECORDED:
            return self._pseudonyms.identifier(kind, value, length)
        return self._crosswalk.get(kind, value, lambda: secrets.token_hex(_RECORDED // 2).upper())[:length]

    def day_shift(self, patient: str) -> int:
        """Return a random shift, always the same for one patient."""
        return int(self._crosswalk.get("days", patient, lambda: str(-1 - secrets.randbelow(MAX_SHIFT_DAYS))))
