"""Values of header elements as text, and which of them may stay as they are.

An element that was read and never looked at is still the bytes of the file, and stays so: that keeps what is kept
exact, and it is fast. Bytes are decoded only where a rule has to see the text.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from pydicom.charset import convert_encodings, decode_bytes, python_encoding
from pydicom.datadict import dictionary_VM

from voxscore.deidentify.refusal import Refusal
from voxscore.deidentify.table import vr_of

__all__ = [
    "BINARY",
    "BULK",
    "TEXT",
    "acceptable",
    "cap_age",
    "encodings_of",
    "is_code",
    "is_scheme",
    "kind_of",
    "standard_vr",
    "texts",
]

BINARY = frozenset({"US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "AT"})
_SIZES = {"US": 2, "SS": 2, "UL": 4, "SL": 4, "UV": 8, "SV": 8, "FL": 4, "FD": 8, "AT": 4}
BULK = frozenset({"OB", "OW", "OF", "OD", "OL", "OV"})
TEXT = frozenset({"PN", "LO", "SH", "LT", "ST", "UT", "UC"})
_STRINGS = TEXT | {"AE", "AS", "CS", "DA", "DT", "TM", "DS", "IS", "UI", "UR"}
_ONE_VALUE = frozenset({"LT", "ST", "UT", "UR"})

_ACCEPTED = {
    "DS": re.compile(r" *[+-]?(?:\d{1,16}\.?\d{0,16}|\.\d{1,16})(?:[eE][+-]?\d{1,3})? *|"),
    "IS": re.compile(r" *[+-]?\d{1,12}(?:\.0*)? *|"),
    "UI": re.compile(r"[0-9.]{0,64}"),
}
_LOOSE_CODE = re.compile(r"[A-Za-z0-9 _./+-]{0,16}")
_AGE = re.compile(r"(\d{3})([DWMY])")


def standard_vr(tag: int, actual: str | None) -> str:
    """Return the VR by which an element is judged: the dictionary's, or the element's own if it fits that.

    Raises:
        Refusal: the element has a VR of quite another kind than its tag has.
    """
    known = vr_of(tag)
    if actual in (None, "UN"):
        return known
    choices = known.split(" or ")
    if actual in (*choices, known):
        return str(actual)
    if kind_of(str(actual)) not in {kind_of(choice) for choice in choices}:
        raise Refusal("an element has a VR that its tag cannot have")
    return choices[0]


def kind_of(vr: str) -> str:
    """Return "text", "binary", "bulk" or the VR itself."""
    if vr in _STRINGS:
        return "text"
    return "binary" if vr in BINARY else "bulk" if vr in BULK else vr


def encodings_of(element: Any, parent: list[str]) -> list[str]:
    """Return Python's names of the character sets of Specific Character Set; those of the parent where it is absent.

    Raises:
        Refusal: a character set that DICOM does not know.
    """
    if element is None:
        return parent
    names = [name.strip(" \0") for name in texts(element, "CS", ["latin-1"])]
    if any(name and name not in python_encoding for name in names):
        raise Refusal("its character set is unknown")
    return convert_encodings(names or [""])


def texts(element: Any, vr: str, encodings: list[str]) -> list[str]:
    """Return the values of a string element.

    Args:
        element: a DataElement or RawDataElement.
        vr: its standard VR; those of one value are not split at backslashes.
        encodings: Python's names of the character sets, for the VRs that use them.

    Raises:
        Refusal: bytes that the character set does not have.
    """
    value = element.value
    if value is None:
        return []
    if isinstance(value, bytes):
        value = _decode(value, vr, encodings)
    elif not isinstance(value, str):
        parts = value if isinstance(value, (list, tuple)) or hasattr(value, "append") else [value]
        return [str(part) if vr == "PN" else str(getattr(part, "original_string", part)) for part in parts]
    value = value.rstrip("\0")
    if not value:
        return []
    return [value] if vr in _ONE_VALUE else value.split("\\")


def _decode(value: bytes, vr: str, encodings: list[str]) -> str:
    try:
        if vr not in TEXT:
            return value.decode("latin-1")
        if len(encodings) == 1 and not encodings[0].startswith("iso2022"):
            return value.decode(encodings[0])
        text = decode_bytes(value, encodings, set(map(ord, "\r\n\t\f\\^=")))
    except (UnicodeError, LookupError) as error:
        raise Refusal("text does not fit its character set") from error
    if "\ufffd" in text:
        raise Refusal("text does not fit its character set")
    return text


def acceptable(value: str, vr: str) -> bool:
    """Whether a CS, DS, IS or UI value has the form that its VR demands; codes may be written a little freely."""
    value = value.rstrip(" \0")
    if vr == "CS":
        return bool(_LOOSE_CODE.fullmatch(value)) and not re.search(r"\d{5}", value)
    return bool(_ACCEPTED[vr].fullmatch(value))


def check_bytes(value: bytes, tag: int, vr: str, denied: Collection[str]) -> None:
    """Look into bytes that nobody decodes: a wrong length can make a number swallow the names behind it.

    Raises:
        Refusal: more numbers than the tag has room for, or an identifier of the same header.
    """
    size = _SIZES.get(vr)
    if size and dictionary_VM(tag).isdigit() and len(value) > size * int(dictionary_VM(tag)):
        raise Refusal("an element is longer than its tag allows")
    lower = value.lower()
    if any(len(token) > 4 and token.encode("utf-8", "replace") in lower for token in denied):
        raise Refusal("an identifier of the patient lies in binary data")


def cap_age(value: str) -> str:
    """Return an AS value with ages over 89 years as 090Y, "" if it is none."""
    match = _AGE.fullmatch(value.strip(" \0"))
    if not match:
        return ""
    years = int(match[1]) / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[match[2]]
    return "090Y" if years >= 90 else match[0]


# How the codes of the usual schemes look; a code of a local scheme may hold anything.
_CODES = {
    "DCM": r"\d{6}",
    "SCT": r"\d{6,18}",
    "SRT": r"[A-Z][A-Z0-9]?-[0-9A-F]{5}",
    "SNM3": r"[A-Z][A-Z0-9]?-[0-9A-F]{5}",
    "99SDM": r"[A-Z][A-Z0-9]?-[0-9A-F]{5}",
    "LN": r"\d{1,5}-\d",
    "UMLS": r"C\d{7}",
    "FMA": r"\d{1,7}",
    "RADLEX": r"RID\d{1,6}",
    "NCIt": r"C\d{2,7}",
    "BI": r"BI\.\d{1,3}",
    "UCUM": r"[A-Za-z0-9\[\]{}%/.*'^+-]{1,16}",
    "DCMR": r"\d{4}",
}


def is_code(scheme: str, value: str) -> bool:
    """Whether a code value has the form that its coding scheme gives to codes."""
    return scheme in _CODES and bool(re.fullmatch(_CODES[scheme], value))


def is_scheme(scheme: str) -> bool:
    """Whether a coding scheme designator is one of the usual ones."""
    return scheme in _CODES
