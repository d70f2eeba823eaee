"""Why a file is not released."""

from __future__ import annotations

__all__ = ["Refusal"]


class Refusal(Exception):
    """A file that cannot be judged or cleaned, and so does not leave.

    Args:
        reason: why, in words that hold nothing of the file: no value, no path.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
