"""Coded concepts, and the content items of structured reports that they name."""

from __future__ import annotations

from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from voxscore.deidentify import values
from voxscore.deidentify.dummies import REMOVED
from voxscore.deidentify.profile import Profile
from voxscore.deidentify.text import TextCleaner

__all__ = ["clean_code", "names_somebody"]

_CODE_VALUE, _SCHEME, _MEANING, _CONCEPT_NAME = 0x00080100, 0x00080102, 0x00080104, 0x0040A043
_IDENTITY_CODES = {  # DCM codes of content items that say who: observers, subjects, rooms
    *("121008", "121009", "121010", "121011", "121012", "121013", "121021", "121022", "121023", "121024"),
    *("121025", "121029", "121030", "121031", "121036", "121041", "121121", "121434", "121435", "111700"),
}
_CHARACTERISTIC_CODES = {"121032", "121033", "121034", "121035"}  # sex, age, and species and breed with it


def clean_code(item: Dataset, text: TextCleaner, encodings: list[str]) -> None:
    """Clean an item of a code sequence in place.

    A code stays if its scheme is a usual one and its value looks like that scheme's; its meaning is text like any
    other.
    """
    scheme, value, meaning = (
        "".join(values.texts(item.get_item(tag), vr, encodings)).strip(" ") if tag in item else ""
        for tag, vr in ((_SCHEME, "SH"), (_CODE_VALUE, "SH"), (_MEANING, "LO"))
    )
    meaning = text.clean(meaning)
    if not values.is_code(scheme, value):
        value = text.clean(value) or REMOVED
        scheme = scheme if values.is_scheme(scheme) else "99VOXSCORE"
    for tag, vr, new in ((_CODE_VALUE, "SH", value), (_SCHEME, "SH", scheme), (_MEANING, "LO", meaning or value)):
        if tag in item:
            item[tag] = DataElement(tag, vr, new)


def names_somebody(item: Dataset, encodings: list[str], profile: Profile) -> bool:
    """Whether a content item of a structured report says who somebody is, or of what sex if that may not stay."""
    if _CONCEPT_NAME not in item:
        return False
    names: list[Any] = item[_CONCEPT_NAME].value or []
    codes = {
        code.strip(" ")
        for name in names
        if _CODE_VALUE in name
        for code in values.texts(name.get_item(_CODE_VALUE), "SH", encodings)
    }
    hidden = set() if "patient-characteristics" in profile.options else _CHARACTERISTIC_CODES
    return bool(codes & (_IDENTITY_CODES | hidden))
