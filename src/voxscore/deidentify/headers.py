"""DICOM headers under the confidentiality profile of PS3.15 Annex E, at any depth of nesting.

Every element of a data set and of every item of every sequence is asked the same questions in the same order:

1. Private? Dropped, unless the safe private option knows it.
2. In Table E.1-1? Then the table's action, as the options change it and the object's definition resolves it.
3. Not in the table, but standard? The table lists what is known to identify; a name or a remark may stand elsewhere
   too. So the VR decides: names, addresses, network titles and unknown bytes go, UIDs are replaced, dates follow the
   date option, text is reduced to safe words, numbers and codes must have the form of numbers and codes.
4. Unknown? Dropped.

What the table says to keep must pass the third question's checks as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from voxscore.deidentify import values
from voxscore.deidentify.codes import Codes
from voxscore.deidentify.concepts import clean_code, names_somebody
from voxscore.deidentify.dates import shift_date, shift_datetime
from voxscore.deidentify.dummies import REMOVED, code_item, dummy_sequence, dummy_value
from voxscore.deidentify.private import SafePrivate
from voxscore.deidentify.profile import Profile
from voxscore.deidentify.record import Record
from voxscore.deidentify.refusal import Refusal
from voxscore.deidentify.table import OPTION_CODES, ROOT, attribute_type, find_row, resolve
from voxscore.deidentify.text import TextCleaner, tokens_of

__all__ = ["HeaderCleaner"]

_PATIENT_NAME, _PATIENT_ID, _ISSUER, _CHARACTER_SET = 0x00100010, 0x00100020, 0x00100021, 0x00080005
_AGE = 0x00101010
_UTC_OFFSET = 0x00080201
_PIXELS = 0x7FE00010
# Identifiers that stay distinguishable: attribute -> the kind of pseudonym; a trial's subject is the patient.
_KEYED = {
    _PATIENT_ID: "patient",
    0x00120040: "patient",
    0x00120042: "patient",
    0x00080050: "accession",
    0x00200010: "study",
}
# Sequences of references; a dummy would break what they point at, new UIDs do not.
_REFERENCES = {0x00081110, 0x00081111, 0x00081140, 0x00082112}
_CODE_VALUE, _SCHEME, _SCHEME_VERSION, _MEANING = 0x00080100, 0x00080102, 0x00080103, 0x00080104
_MARKS = {0x00120062, 0x00120063, 0x00120064, 0x00280303}
# Vendor's words about machine and method: kept as they are, where they hold nothing of the patient's.
_AS_IS = {
    *(0x00080070, 0x00081090, 0x00181020, 0x00180024, 0x00189005, 0x00181210, 0x00181160, 0x00180085, 0x00181250),
    *(0x00181251, 0x00189047, 0x00189041, 0x00189050, 0x00281054, 0x00283004, 0x00541101, 0x00541103, 0x00541105),
    *(0x00181016, 0x00181018, 0x00181019, 0x0018702A, 0x0018702B, 0x00189524, 0x00189525, 0x00189526, 0x00660036),
    *(0x00660031, 0x00209056, 0x00420012, 0x00620009, 0x3010001A, 0x00080222, _SCHEME, _SCHEME_VERSION),
}
# Code strings that operators type in.
_TYPED_CODES = {0x00180015}
# Code strings whose few values are known.
_ENUMERATED = {
    0x00100040: {"M", "F", "O"},
    0x001021A0: {"YES", "NO", "UNKNOWN"},
    0x00102203: {"ALTERED", "UNALTERED"},
}
# Bytes that are images, signals or colours.
_IMAGE_BYTES = {0x7FE00010, 0x00282000, 0x54001010, 0x5400100A, 0x54000110, 0x54000112, 0x00281408}
_IDENTIFIERS = {_PATIENT_ID, 0x00101000, 0x00101001, 0x00101040, 0x00102154, 0x00080050, 0x00080090, 0x00104000}
_REMOVED_DATE, _MODIFIED_DATE, _KEPT_DATE = "REMOVED", "MODIFIED", "UNMODIFIED"


@dataclass
class _Object:
    """What holds for all elements of one object."""

    sop_class: str
    days: int | None
    denied: frozenset[str]
    record: Record


class HeaderCleaner:
    """The header engine.

    Args:
        profile: what is asked for.
        codes: new identifiers.
        text: reduces free text.
    """

    def __init__(self, profile: Profile, codes: Codes, text: TextCleaner) -> None:
        self.profile, self.codes, self.text = profile, codes, text
        self._decided: dict[int, tuple[str, str]] = {}

    def clean(self, dataset: Dataset, done: Iterable[str] = ()) -> tuple[Dataset, Record]:
        """Return a de-identified copy of an object's data set, without file meta information, and what was done.

        Args:
            dataset: the object; left alone.
            done: options of which an action ran on it before, to be stated in it with the others.

        Raises:
            Refusal: it cannot be judged, or a date has to be shifted and there is no patient ID.
        """
        encodings = values.encodings_of(self._find(dataset, _CHARACTER_SET), ["iso8859"])
        patient = self._patient(dataset, encodings)
        days = self.codes.day_shift(patient) if "modified-dates" in self.profile.options and patient else None
        sop_class = "".join(self._texts(dataset, 0x00080016, "UI", encodings)[:1]).strip(" ")
        denied = frozenset(self._tokens(dataset, encodings))
        about = _Object(sop_class, days, denied, Record(options={"basic", *done}))
        try:
            cleaned = self._items(dataset, 0, about, encodings)
        except RecursionError as error:
            raise Refusal("its sequences are nested too deep") from error
        self._mark(cleaned, dataset, about.record)
        return cleaned, about.record

    def _items(self, dataset: Dataset, parent: int, about: _Object, encodings: list[str]) -> Dataset:
        """One data set or item; `parent` is the tag of the sequence that holds it."""
        out = Dataset()
        implicit, little = dataset.original_encoding
        out.set_original_encoding(implicit, little, dataset.original_character_set)
        encodings = values.encodings_of(self._find(dataset, _CHARACTER_SET), encodings)
        removed = parent == 0x0040A730 and names_somebody(dataset, encodings, self.profile)
        private = SafePrivate(dataset) if "safe-private" in self.profile.options else None
        for tag in list(dataset.keys()):
            element = dataset.get_item(tag)
            if tag.is_private:
                self._private(out, tag, element, private, about.record)
                continue
            if (tag.group < 8 and tag.group != 4) or tag.element == 0 or (tag in _MARKS and parent == 0):
                continue
            if parent and tag == _PIXELS:  # nobody looks at pictures within sequences
                self._count(about, _PIXELS, "X", None)
                continue
            kept = self._element(dataset, tag, element, parent, about, encodings, removed)
            if kept is not None:
                out[tag] = kept
        if _CODE_VALUE in out or _MEANING in out:
            clean_code(out, self.text, encodings)
        if private is not None:
            for creator in {private.creator_tag(tag) for tag in out.keys() if tag.is_private}:  # noqa: SIM118
                out[creator] = DataElement(creator, "LO", texts_joined(dataset.get_item(creator)))
        return out

    def _private(self, out: Dataset, tag: Any, element: Any, private: SafePrivate | None, record: Record) -> None:
        vr = private.vr(tag, element) if private else ""
        if not vr:
            record.count(tag, "X")
            return
        out[tag] = element._replace(VR=vr) if hasattr(element, "_replace") else element
        record.options.add("safe-private")
        record.private.add(f"({tag.group:04X},xx{tag.element & 0xFF:02X})")
        record.count(tag, "K")

    def _element(
        self, dataset: Dataset, tag: Any, element: Any, parent: int, about: _Object, encodings: list[str], removed: bool
    ) -> Any:
        """What stands in the place of a standard element; None for nothing."""
        number = int(tag)
        if 0x5000 <= tag.group <= 0x50FF or 0x6000 <= tag.group <= 0x60FF:
            # Curves and overlays are drawings; whether they spell a name cannot be told, so they all go.
            if tag.group >= 0x6000 and tag.element == 0x0102 and element.value and any(_numbers(element.value)):
                about.record.overlay_in_pixels = True
            return self._count(about, number, "X", None)
        action, option = self._decide(number)
        if action == "unknown":
            about.record.unknown.add(f"{number:08X}")
            return self._count(about, number, "X", None)
        if action == "X":
            return self._count(about, number, "X", None)
        vr = values.standard_vr(number, element.VR)
        if option:
            about.record.options.add(option)
        if "/" in action:
            action = resolve(action, attribute_type(about.sop_class, parent, number))
        if action == "X":
            return self._count(about, number, "X", None)
        if vr == "SQ":
            return self._sequence(dataset, tag, action, about, encodings)
        if removed and action in ("K", "C", "backstop") and vr in values.TEXT:
            action = "D"
        new = self._apply(action, number, vr, element, dataset, about, encodings)
        if isinstance(new, _Kept):
            return self._count(about, number, "K", element)
        if new is None:
            return self._count(about, number, "X", None)
        done = action if action != "backstop" else "C"
        return self._count(about, number, done, DataElement(tag, vr.split(" ")[0], new))

    @staticmethod
    def _count(about: _Object, tag: int, action: str, result: Any) -> Any:
        about.record.count(tag, action)
        return result

    def _decide(self, tag: int) -> tuple[str, str]:
        """The action for a tag and the option it comes from: a code of the table, "backstop" or "unknown"."""
        if tag not in self._decided:
            self._decided[tag] = self._look_up(tag)
        return self._decided[tag]

    def _look_up(self, tag: int) -> tuple[str, str]:
        row = find_row(tag)
        if row is None:
            return ("backstop" if values.vr_of(tag) else "unknown"), ""
        if not values.vr_of(tag):
            return "unknown", ""  # newer than the dictionary: without a VR there is no dummy either
        wanted = {option: action for option, action in row.options.items() if option in self.profile.options}
        # A shifted date is safer than one that another option would keep; keeping is more than cleaning.
        for option in ("modified-dates", "full-dates"):
            if option in wanted:
                return wanted[option], option
        for action in ("K", "C"):
            for option in sorted(wanted):
                if wanted[option] == action:
                    return action, option
        return row.basic, ""

    def _sequence(self, dataset: Dataset, tag: Any, action: str, about: _Object, encodings: list[str]) -> Any:
        items = dataset[tag].value or []
        number = int(tag)
        if action == "Z" or not items:
            items = Sequence()
        elif action == "D" and number not in _REFERENCES:
            items = dummy_sequence(number)
        else:
            items = Sequence([self._items(item, number, about, encodings) for item in items])
            action = "C"
        return self._count(about, number, action, DataElement(tag, "SQ", items))

    def _apply(
        self, action: str, tag: int, vr: str, element: Any, dataset: Dataset, about: _Object, encodings: list[str]
    ) -> Any:
        """The new value of an element that is no sequence; None to drop it, `_KEPT` to leave it untouched."""
        if element.value is None or len(_sized(element.value)) == 0:
            return _KEPT if action != "U" else ""
        if vr == "UI":
            return self._uids(action, element)
        if vr in ("DA", "DT", "TM") or tag == _UTC_OFFSET:
            return self._date(action, tag, vr, element, about)
        if action in ("Z", "D", "U"):
            return self._replacement(action, tag, vr, element, dataset, about, encodings)
        if action in ("C", "backstop"):
            return self._backstop(tag, vr, element, about, encodings, cleaned=action == "C")
        return self._checked(tag, vr, element, about, encodings)  # K

    def _uids(self, action: str, element: Any) -> Any:
        uids = values.texts(element, "UI", ["latin-1"])
        if action == "K" and all(values.acceptable(uid, "UI") for uid in uids):
            return _KEPT
        # Those defined by the standard are nobody's.
        standard = [uid.startswith(ROOT) and values.acceptable(uid, "UI") for uid in uids]
        if all(standard):
            return _KEPT
        new = [uid if known else self.codes.uid(uid.strip(" ")) for uid, known in zip(uids, standard, strict=True)]
        return "\\".join(new)

    def _date(self, action: str, tag: int, vr: str, element: Any, about: _Object) -> Any:
        options = self.profile.options
        if action == "backstop":
            action = "C" if "modified-dates" in options else "K" if "full-dates" in options else "X"
        found = values.texts(element, vr, ["latin-1"])
        if action == "C":
            if tag == _UTC_OFFSET:
                return _KEPT if all(_is_offset(value) for value in found) else None
            if vr == "TM":
                about.record.dates = about.record.dates or _MODIFIED_DATE
                return _KEPT if all(_is_time(value) for value in found) else None
            if about.days is None:
                raise Refusal("has dates to shift and no patient ID to know by how much")
            shift: Callable[[str, int], str] = shift_date if vr == "DA" else shift_datetime
            moved = [shift(value, about.days) for value in found]
            about.record.dates = _MODIFIED_DATE
            return "\\".join(moved)
        if action == "K":
            about.record.dates = _KEPT_DATE
            legal = all(set(value) <= set("0123456789.:+- ") for value in found)
            return _KEPT if legal else None
        about.record.dates = about.record.dates or _REMOVED_DATE
        return None if action == "X" else "" if action == "Z" else dummy_value(vr)

    def _replacement(
        self, action: str, tag: int, vr: str, element: Any, dataset: Dataset, about: _Object, encodings: list[str]
    ) -> Any:
        if tag in _KEYED:
            value = "\\".join(values.texts(element, vr, encodings)).strip(" ")
            kind = _KEYED[tag]
            return self.codes.identifier(
                kind, self._with_issuer(dataset, value, encodings) if kind == "patient" else value
            )
        if tag == _PATIENT_NAME:
            patient = self._patient(dataset, encodings)
            return self.codes.identifier("patient", patient) if patient else ""
        if action == "U":
            return self.codes.uid("\\".join(values.texts(element, vr, encodings)))
        return "" if action == "Z" else dummy_value(vr)

    def _backstop(self, tag: int, vr: str, element: Any, about: _Object, encodings: list[str], cleaned: bool) -> Any:
        """Rule 3 of the module docstring; `cleaned` where the table says C."""
        if (vr in values.TEXT and vr != "PN") or (vr == "CS" and cleaned):
            if tag in _AS_IS:
                return self._checked(tag, vr, element, about, encodings)
            if tag in (_CODE_VALUE, _MEANING):
                return _KEPT  # judged together, when the item is complete
            parts = [self.text.clean(part, about.denied) for part in values.texts(element, vr, encodings)]
            text = "\\".join(parts)
            if text.strip("\\"):
                return text
            row = find_row(tag)
            basic = (
                resolve(row.basic, attribute_type(about.sop_class, 0, tag))
                if row
                else "D"
                if tag == 0x0040A160
                else "X"
            )
            return REMOVED if basic == "D" else "" if basic == "Z" else None
        if vr in ("PN", "AE", "UR", "UN", "AS"):
            return (
                self.codes.identifier("title", "\\".join(values.texts(element, vr, encodings)))
                if (cleaned and vr == "AE")
                else None
            )
        if vr == "OB" and tag not in _IMAGE_BYTES:
            return None
        return self._checked(tag, vr, element, about, encodings)

    def _checked(self, tag: int, vr: str, element: Any, about: _Object, encodings: list[str]) -> Any:
        """A value that may stay, if its form is that of its VR and nothing in it is the patient's."""
        if vr in ("CS", "DS", "IS"):
            found = values.texts(element, vr, encodings)
            if not all(values.acceptable(value, vr) for value in found):
                return None
            if tag in _ENUMERATED:
                return _KEPT if {value.strip(" \0") for value in found} <= _ENUMERATED[tag] else None
            if vr == "CS" and tag in _TYPED_CODES:
                return _KEPT if all(self._typed_code(value, about) for value in found) else None
            hidden = [REMOVED if self._denied(value, about, vr) else value for value in found]
            return _KEPT if hidden == found else "\\".join(hidden) if vr == "CS" else None
        if vr == "AS":
            ages = [values.cap_age(value) for value in values.texts(element, vr, encodings)]
            return "\\".join(ages) if all(ages) and tag == _AGE else None
        if vr in values.TEXT:
            found = values.texts(element, vr, encodings)
            return _KEPT if not any(self._denied(value, about, vr) or "^" in value for value in found) else None
        if isinstance(element.value, bytes):
            values.check_bytes(element.value, tag, vr, about.denied)
        return _KEPT

    def _denied(self, value: str, about: _Object, vr: str) -> bool:
        tokens = {token for token in tokens_of(value) if len(token) >= (5 if vr in ("DS", "IS") else 4)}
        # A vocabulary word in a code is technique even if the patient has that name: Modality, HEAD, CHEST.
        return any(token in about.denied and not self.text.knows(token) for token in tokens)

    def _typed_code(self, value: str, about: _Object) -> bool:
        """Whether a code is made of safe words, run together or not: CHEST, CHESTABDOMEN, C SPINE."""
        return all(self._made_of_words(word.lower()) for word in value.split()) and not self._denied(value, about, "CS")

    def _made_of_words(self, word: str) -> bool:
        return self.text.knows(word) or any(
            self.text.knows(word[:i]) and self._made_of_words(word[i:]) for i in range(2, len(word) - 1)
        )

    def _patient(self, dataset: Dataset, encodings: list[str]) -> str:
        """What tells the patient from others: the ID with its issuer; "" if there is none."""
        patient = "\\".join(self._texts(dataset, _PATIENT_ID, "LO", encodings)).strip(" ")
        return self._with_issuer(dataset, patient, encodings) if patient else ""

    def _with_issuer(self, dataset: Dataset, patient: str, encodings: list[str]) -> str:
        issuer = "".join(self._texts(dataset, _ISSUER, "LO", encodings)).strip(" ")
        return f"{issuer}\0{patient}" if issuer else patient

    def _tokens(self, dataset: Dataset, encodings: list[str]) -> set[str]:
        """All that the object's own header calls people and their numbers."""
        encodings = values.encodings_of(self._find(dataset, _CHARACTER_SET), encodings)
        tokens: set[str] = set()
        for tag in dataset.keys():  # noqa: SIM118
            vr = values.vr_of(int(tag))
            if vr == "PN" or int(tag) in _IDENTIFIERS:
                for value in self._texts(dataset, int(tag), vr, encodings):
                    tokens |= tokens_of(value)
            elif vr == "SQ" and self._decide(int(tag))[0] != "X":
                for item in dataset[tag].value or []:
                    tokens |= self._tokens(item, encodings)
        return tokens

    @staticmethod
    def _find(dataset: Dataset, tag: int) -> Any:
        return dataset.get_item(tag) if tag in dataset else None

    def _texts(self, dataset: Dataset, tag: int, vr: str, encodings: list[str]) -> list[str]:
        element = self._find(dataset, tag)
        return [] if element is None else values.texts(element, vr, encodings)

    def _mark(self, out: Dataset, original: Dataset, record: Record) -> None:
        """State what was done, beside what an earlier de-identification stated."""
        out.PatientIdentityRemoved = "YES"
        ours = f"voxscore {self.profile.describe().replace('PS3.15 ', '')}"[:64]
        methods = [self.text.clean(text) for text in self._texts(original, 0x00120063, "LO", ["latin-1"])]
        out.DeidentificationMethod = [*(text for text in methods if text), ours]
        known = dict(OPTION_CODES.values())
        codes = {OPTION_CODES[option][0] for option in record.options}
        if 0x00120064 in original:
            for item in original[0x00120064].value or []:
                codes |= set(self._texts(item, _CODE_VALUE, "SH", ["latin-1"])) & set(known)
        out.DeidentificationMethodCodeSequence = Sequence(code_item(code, "DCM", known[code]) for code in sorted(codes))
        if record.dates:
            out.LongitudinalTemporalInformationModified = record.dates


class _Kept:
    """An element stays, byte for byte."""


_KEPT = _Kept()


def texts_joined(element: Any) -> str:
    """Return a private creator's name."""
    return "\\".join(values.texts(element, "CS", ["latin-1"]))


def _sized(value: Any) -> Any:
    return value if hasattr(value, "__len__") else (value,)


def _numbers(value: Any) -> Any:
    return value if isinstance(value, bytes) else [value]


def _is_time(value: str) -> bool:
    return len(value) <= 28 and set(value) <= set("0123456789.:- ")


def _is_offset(value: str) -> bool:
    return len(value.strip()) == 5 and value.strip()[0] in "+-" and value.strip()[1:].isdigit()
