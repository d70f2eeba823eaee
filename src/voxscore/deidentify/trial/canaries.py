"""One planted identifier for each row of PS3.15 Table E.1-1, at any depth.

Every row gets a value that occurs nowhere else: a word for text, a root of its own for UIDs, a day of its own for
dates, a number of its own for numbers. Whatever of these is found in the bytes of an encoded output has leaked,
wherever it may stand there.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from voxscore.deidentify.table import Row, rows, vr_of

__all__ = ["Canaries", "plant_every_row"]

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
# Kept sequences, one in the other.
NEST = ("SharedFunctionalGroupsSequence", "PixelMeasuresSequence", "FrameContentSequence")
_UID_ROOT = "1.2.826.0.1.3680043.10.1234."
_REPEATING = {"50xxxxxx": 0x50003000, "60xx3000": 0x60003000, "60xx4000": 0x60004000}
_FIRST_DAY = datetime.date(1931, 1, 1)
# Farther apart than any shift, so that no planted date is another one moved.
_DAYS_APART = 3651


@dataclass
class Canaries:
    """A data set full of identifiers.

    Attributes:
        dataset: the object; the identifiers lie `depth` sequences down.
        secrets: row -> what must not be found in the encoded output; times of day, sexes and the like are no secrets.
        where: row -> its tag in the item `depth` sequences down.
    """

    dataset: Dataset
    secrets: dict[str, list[bytes]] = field(default_factory=dict)
    where: dict[str, int] = field(default_factory=dict)


def plant_every_row(depth: int = 0, sop_class: str = CT_IMAGE) -> Canaries:
    """Return an object with an identifier for each row of the table.

    Args:
        depth: how many sequences down.
        sop_class: what the object claims to be.
    """
    item = Dataset()
    planted = Canaries(item)
    for number, row in enumerate(rows()):
        tag = _REPEATING.get(row.tag) or int(row.tag, 16)
        if tag >> 16 < 8 and tag >> 16 != 4:
            continue  # commands and file meta information are no part of a data set
        vr = ("OW" if tag in _REPEATING.values() else vr_of(tag) or "LO").split(" ")[0]
        if tag == 0x60004000:
            vr = "LT"
        value, secrets = _value(vr, number, row)
        item[tag] = DataElement(tag, vr, value)
        planted.secrets[row.tag], planted.where[row.tag] = secrets, tag
    for name in NEST[:depth]:
        outer = Dataset()
        setattr(outer, name, Sequence([planted.dataset]))
        planted.dataset = outer
    planted.dataset.SOPClassUID = sop_class
    if depth:
        planted.dataset.PatientID = "QZTOPLEVEL"
        planted.secrets["PatientID"] = [b"QZTOPLEVEL"]
    return planted


def _value(vr: str, number: int, row: Row) -> tuple[Any, list[bytes]]:
    word = f"QZ{number:03d}Y{row.tag[:4].upper()}".replace("X", "W")
    day = (_FIRST_DAY + datetime.timedelta(days=number * _DAYS_APART)).strftime("%Y%m%d")
    uid = f"{_UID_ROOT}{number + 1000}.77"
    if vr == "SQ":
        inner = Dataset()
        inner.PersonName, inner.TextValue = f"{word}^PERSON", f"seen by {word}"
        inner.CodeValue, inner.CodingSchemeDesignator, inner.CodeMeaning = word, f"S{word}", f"{word} meaning"
        inner.ReferencedSOPClassUID, inner.ReferencedSOPInstanceUID = CT_IMAGE, uid
        inner.PatientID, inner.StudyDate, inner.StudyDescription = f"I{word}", day, f"CHEST {word}"
        return Sequence([inner]), [word.encode(), uid.encode(), day.encode()]
    if vr in ("DA", "DT"):
        return day + ("101112.25" if vr == "DT" else ""), [day.encode()]
    if vr == "UI":
        return uid, [uid.encode()]
    if vr == "TM":
        return "101112", []
    if vr == "AS":
        return "047Y", []
    if vr in ("DS", "IS"):
        return str(4_710_000 + number), [str(4_710_000 + number).encode()]
    if vr in ("US", "SS", "UL", "SL", "FL", "FD", "AT"):
        return 17 + number % 10, []
    if vr.startswith("O") or vr == "UN":
        return (word.encode() * 2)[:20], [word.encode()]
    if vr == "UR":
        return f"http://{word}.example", [word.encode()]
    return f"{word}^JOHN" if vr == "PN" else word, [word.encode()]
