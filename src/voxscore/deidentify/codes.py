"""Where new identifiers come from."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Codes"]


class Codes(Protocol):
    """New identifiers: keyed, or drawn at random."""

    @property
    def key_id(self) -> str:
        """Tells keys apart, and gives none away."""

    def uid(self, value: str) -> str:
        """Return the new UID for a UID."""

    def identifier(self, kind: str, value: str, length: int = 16) -> str:
        """Return a code of `length` characters for an identifier of a kind."""

    def day_shift(self, patient: str) -> int:
        """Return by how many days the dates of a patient move."""
