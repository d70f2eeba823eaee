"""Private attributes: which of them DICOM PS3.15 Table E.3.10-1 names as safe.

A private element (gggg,bbee) means nothing without the creator in (gggg,00bb), which reserves block bb of its group.
The block is whatever was free when the file was written, so an element is known by creator, group and ee alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from voxscore.deidentify.table import lines
from voxscore.deidentify.values import BINARY, acceptable, texts

__all__ = ["SafePrivate", "safe_private_attributes"]

_RATIO = set("0123456789.: ")


@cache
def safe_private_attributes() -> dict[tuple[str, int, int], str]:
    """Return (creator, group, element within the block) -> VR."""
    known = {}
    for creator, group, elements in lines("safe_private.tsv"):
        for entry in elements.split(" "):
            element, vr = entry.split(":")
            known[creator, int(group, 16), int(element, 16)] = vr
    return known


class SafePrivate:
    """The private elements of one data set that may stay."""

    def __init__(self, dataset: Any) -> None:
        self._creators: dict[int, str] = {}
        for tag in dataset.keys():  # noqa: SIM118 - a Dataset iterates over elements, which converts them all
            if tag.group % 2 and 0x10 <= tag.element <= 0xFF:
                name = texts(dataset.get_item(tag), "CS", ["latin-1"])
                self._creators[tag] = name[0].strip(" ") if len(name) == 1 else ""

    def vr(self, tag: Any, element: Any) -> str:
        """Return the VR of an element that may stay with the value it has, "" for any other."""
        creator = self._creators.get(tag.group << 16 | tag.element >> 8, "")
        vr = safe_private_attributes().get((creator, tag.group, tag.element & 0xFF), "")
        if not vr or element.VR not in (None, "UN", vr):
            return ""
        if vr in BINARY:
            return vr
        values = texts(element, vr, ["latin-1"])
        if vr == "SH":
            return vr if all(set(value) <= _RATIO for value in values) else ""
        return vr if all(acceptable(value, vr) for value in values) else ""

    @staticmethod
    def creator_tag(tag: Any) -> int:
        """Return the tag of the creator that a private element belongs to."""
        return int(tag.group << 16 | tag.element >> 8)
