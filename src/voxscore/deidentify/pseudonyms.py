"""Keyed pseudonyms: the same value under the same key gets the same new one, and nobody without the key can tell.

    h(kind, value) = HMAC-SHA-256(key, kind || 0 || value)

A plain hash of a name or a record number is no protection: whoever can list the candidates hashes them all. With a
secret key that fails, and still two processes, or two runs a year apart, agree without a table between them. The kind
keeps apart what happens to be spelled alike: a patient `4711` and an accession number `4711` share nothing.

Whoever holds the key can link a pseudonym to its value again, so these data are pseudonymised, not anonymous.
"""

from __future__ import annotations

import hashlib
import hmac
import uuid
from pathlib import Path

from voxscore.errors import UserError
from voxscore.volumes.files import read_bytes

__all__ = ["Pseudonyms", "read_key"]

MIN_KEY_BYTES = 32
MAX_SHIFT_DAYS = 3650


class Pseudonyms:
    """New identifiers from old ones, by one secret key.

    Args:
        key: 32 or more secret bytes.

    Raises:
        ValueError: the key is shorter.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < MIN_KEY_BYTES:
            raise ValueError(f"a key has {MIN_KEY_BYTES} or more bytes, not {len(key)}")
        self._key = key

    def __repr__(self) -> str:
        return f"Pseudonyms(key_id={self.key_id!r})"  # the key itself must not reach a log

    @property
    def key_id(self) -> str:
        """Eight hexadecimal digits that tell keys apart and give none away."""
        return self._digest("id", "").hex()[:8]

    def uid(self, value: str) -> str:
        """Return the UID `2.25.<n>` for a UID; n is the 128 bits of a UUID of version 8."""
        bits = bytearray(self._digest("uid", value)[:16])
        bits[6] = bits[6] & 0x0F | 0x80
        bits[8] = bits[8] & 0x3F | 0x80
        return f"2.25.{uuid.UUID(bytes=bytes(bits)).int}"

    def identifier(self, kind: str, value: str, length: int = 16) -> str:
        """Return `length` upper-case hexadecimal digits for a value.

        Args:
            kind: what the value is, such as "patient" or "accession".
            value: the identifier to replace.
            length: 1 to 64; two of n values collide with a probability of about n^2 / 2^(4 length + 1).
        """
        if not 1 <= length <= 64:
            raise ValueError(f"a pseudonym has 1 to 64 digits, not {length}")
        return self._digest(kind, value).hex()[:length].upper()

    def day_shift(self, patient: str) -> int:
        """Return by how many whole days all dates of a patient move: -3650 to -1, into the past."""
        return -1 - int.from_bytes(self._digest("date", patient)[:8], "big") % MAX_SHIFT_DAYS

    def _digest(self, kind: str, value: str) -> bytes:
        return hmac.new(self._key, kind.encode() + b"\0" + value.encode(), hashlib.sha256).digest()


def read_key(path: Path) -> bytes:
    """Return the key in a file: all its bytes, but for white space at the end.

    Raises:
        UserError: no such file, or too short.
    """
    key = read_bytes(path).rstrip()
    if len(key) < MIN_KEY_BYTES:
        fault = f"is too short for a key ({len(key)} of {MIN_KEY_BYTES} bytes)"
        raise UserError(path, fault, "make one with 'openssl rand -hex 32'")
    return key
