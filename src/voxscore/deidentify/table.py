"""Table E.1-1 of DICOM PS3.15, edition 2026c, as data: what happens to which attribute under which option.

The basic profile gives every listed attribute an action:

    X remove   Z zero length   D dummy value   U new UID   K keep (recurse into a sequence)   C clean

Composite actions such as X/Z/D name what is allowed; which one is right depends on whether the object's definition
demands the attribute, and a value in it: Type 1 (present, with a value), Type 2 (present), Type 3 (optional). Where
the type is unknown the last of them is taken, D before Z before X, which never breaks an object.

An option overrides the basic action of its own attributes. Two options need no list, since they follow the value
representation (VR): dates and times, and UIDs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from pydicom.datadict import dictionary_VR

__all__ = ["EDITION", "OPTION_CODES", "Row", "attribute_type", "find_row", "lines", "resolve", "rows", "vr_of"]

EDITION = "2026c"
ROOT = "1.2.840.10008."

# Context Group 7050 of PS3.16: option -> (code value, code meaning); "basic" is the profile itself.
OPTION_CODES = {
    "basic": ("113100", "Basic Application Confidentiality Profile"),
    "clean-pixel-data": ("113101", "Clean Pixel Data Option"),
    "clean-visual-features": ("113102", "Clean Recognizable Visual Features Option"),
    "clean-graphics": ("113103", "Clean Graphics Option"),
    "clean-structured-content": ("113104", "Clean Structured Content Option"),
    "clean-descriptors": ("113105", "Clean Descriptors Option"),
    "full-dates": ("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    "modified-dates": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "patient-characteristics": ("113108", "Retain Patient Characteristics Option"),
    "device-identity": ("113109", "Retain Device Identity Option"),
    "uids": ("113110", "Retain UIDs Option"),
    "safe-private": ("113111", "Retain Safe Private Option"),
    "institution-identity": ("113112", "Retain Institution Identity Option"),
}

_DATE_VRS = ("DA", "DT", "TM")
_NO_DATE_OPTION = {0x00100030, 0x00100032, 0x00160077}  # birth date and time, GPS time stamp
_MORE_DATES = {0x04000310, 0x00340007, 0x00080201}  # time stamps of other VRs, offset from UTC
_NO_UID_OPTION = {0x04000100, 0x0040A124}


@dataclass(frozen=True)
class Row:
    """What the table says of one attribute.

    Attributes:
        tag: eight hexadecimal digits, "x" for any.
        basic: the action of the Basic Profile.
        options: option -> action, K or C.
    """

    tag: str
    basic: str
    options: dict[str, str] = field(default_factory=dict)


@cache
def vr_of(tag: int) -> str:
    """Return the VR of a standard attribute, "" if the dictionary does not know it; some have a choice: "US or SS"."""
    try:
        return dictionary_VR(tag)
    except KeyError:
        return ""


def lines(name: str) -> Iterator[list[str]]:
    """Yield the rows of a data file, split at tabs, without its comments."""
    text = resources.files("voxscore.deidentify").joinpath("data", name).read_text(encoding="utf-8")
    yield from (line.split("\t") for line in text.splitlines() if not line.startswith("#"))


@cache
def _table() -> dict[str, Row]:
    table: dict[str, Row] = {}
    for label, group, elements in lines("actions.tsv"):
        option, action = label.split(" ")
        for element in elements.split(" "):
            tag = group + element
            if option == "basic":
                table[tag] = Row(tag, action)
            else:
                table[tag].options[option] = action
    for tag, row in table.items():
        if "x" in tag:
            continue
        number = int(tag, 16)
        vr = vr_of(number)
        if (vr in _DATE_VRS and number not in _NO_DATE_OPTION) or number in _MORE_DATES:
            row.options.update({"full-dates": "K", "modified-dates": "C"})
        if vr == "UI" and number not in _NO_UID_OPTION:
            row.options["uids"] = "K"
    return table


def rows() -> list[Row]:
    """Return all rows, sorted by tag."""
    return sorted(_table().values(), key=lambda row: row.tag)


@cache
def find_row(tag: int) -> Row | None:
    """Return the row that covers a standard attribute, None if the table does not list it."""
    digits = f"{tag:08X}"
    group = tag >> 16
    if 0x5000 <= group <= 0x50FF:
        return _table()["50xxxxxx"]
    if 0x6000 <= group <= 0x60FF:
        return _table().get("60xx" + digits[4:])
    return _table().get(digits)


@cache
def _types() -> tuple[dict[str, int], dict[tuple[int, int], list[tuple[str, set[int]]]]]:
    objects: dict[str, int] = {}
    types: dict[tuple[int, int], list[tuple[str, set[int]]]] = {}
    for line in lines("attribute_types.tsv"):
        if line[0] == "object":
            objects.update({ROOT + uid: int(line[1]) for uid in line[2].split(" ")})
            continue
        tag, parent, kind, ranges = line
        where: set[int] = set()
        for part in ranges.split(" "):
            low, _, high = part.partition("-")
            where.update(range(int(low), int(high or low) + 1))
        key = (0 if parent == "-" else int(parent, 16), int(tag, 16))
        types.setdefault(key, []).append((kind, where))
    return objects, types


@cache
def attribute_type(sop_class: str, parent: int, tag: int) -> str:
    """Return the type of an attribute with a composite action: "1", "2" or "3", "" if it is not known.

    Args:
        sop_class: SOP Class UID of the object.
        parent: tag of the sequence that holds the attribute, 0 at top level.
        tag: the attribute.
    """
    objects, types = _types()
    number = objects.get(sop_class)
    if number is None:
        return ""
    for kind, where in types.get((parent, tag), ()):
        if number in where:
            return kind
    # Within a sequence the listing is not complete: macros of functional groups are missing from it.
    return "3" if parent == 0 else ""


def resolve(action: str, kind: str) -> str:
    """Return the one action that a composite action means for an attribute of type `kind`; "U" for U*."""
    choices = action.split("/")
    if len(choices) == 1:
        return action
    by_type = {"3": choices[0], "2": "Z" if "Z" in choices else choices[-1]}
    return by_type.get(kind, choices[-1]).removesuffix("*")
