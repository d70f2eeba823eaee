"""Free text reduced to words known to be safe.

A description such as "CT chest abdomen pelvis - 55F Dr. Smith" mixes technique with identity. Recognising every name
is an open task; recognising technique is a closed one, since its words are few. So nothing stays but

* words of a vocabulary of technique and anatomy,
* short numbers, numbers with a unit and technical codes (3mm, b1000, L5, TE90),

and even these go where they stand in a date, telephone number, address of the net, record number or age, where they
follow a title ("Dr. Hand"), or where they are a name of the same patient's header. What was left alone by the removal
of its neighbour, such as the 12 of "Ward B 12" or an initial, goes too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache, lru_cache
from importlib import resources
from typing import Protocol

__all__ = ["Recognizer", "TextCleaner", "tokens_of", "vocabulary"]


class Recognizer(Protocol):
    """A model of the user's own that finds identifying text."""

    def __call__(self, text: str) -> Iterable[tuple[int, int]]:
        """Return the spans (start, end) of `text` that identify someone."""
        ...


_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    r"|o[ck]t(?:ober)?|nov(?:ember)?|de[cz](?:ember)?|januar|februar|märz|mai|juni|juli)"
)
_PATTERNS = [
    r"\S+@\S+",
    r"(?:https?://|www\.)\S+",
    r"\b\d{1,3}(?:\.\d{1,3}){3}\b",  # IP address
    rf"\b\d{{1,2}}(?:st|nd|rd|th)?[\s./-]*{_MONTH}\b\.?(?:[\s,./-]*(?:\d{{4}}|\d{{2}})\b)?",
    rf"\b{_MONTH}\b\.?[\s./-]*\d{{1,2}}(?:st|nd|rd|th)?\b(?:[\s,./-]+(?:\d{{4}}|\d{{2}})\b)?",
    rf"\b{_MONTH}\b\.?[\s,./-]*(?:19|20)\d\d\b",
    r"\b\d{1,4}([/.-])\d{1,2}\1\d{2,4}\b",
    r"(?<!\d)(?:19|20)\d\d(?:[-/.]?\d\d){0,2}(?!\d)",
    r"\b\d{1,2}:\d{2}(?::\d{2})?(?:\s*[ap]\.?m\b)?",
    r"\+?\(?\d[\d()\s./-]{7,}\d",  # telephone
    r"\b\d{3}[-\s]\d{2}[-\s]\d{4}\b",  # social security number
    r"\b(?:mrn|pid|id|acc(?:ession)?|case|no|nr|num(?:ber)?|ssn|nhs|tel|phone|fax|room|bed|ward|rm|pat)\b[\s#:.=]*"
    r"[\w/-]*\d[\w/-]*",
    r"#\s*\w+",
    r"\b(?:dob|born|geb|née?)\b[\s:.]*\S*",
    r"\bage[ds]?\b[\s:]*\d+\w*",
    r"\b\d{1,3}\s*-?\s*(?:y|yo|yr|yrs|years?|jahre?|ans|a[ñn]os)\b(?:[\s-]*old)?(?:\s*/?\s*[mfwh]\b)?",
    r"\b\d{1,3}\s?[mfw]\b(?!m)",
    r"\b[mfw]\s?/?\s?\d{2,3}\b(?:\s?y(?:o|rs?)?)?",
]
_TITLE = re.compile(
    r"\b(?:dr|doctor|prof|professor|mr|mrs|ms|miss|herr|frau|mme|sr|sra|sig|nurse|technologist|tech|physician|radiologist"
    r"|referrer|referring|ref|attending|resident|surgeon|name|pt|pat|patient|signed|dictated|attn|c/o|by)\b[\s.:,]+"
    r"(?:(?:dr|prof|mr|mrs|ms|by|name)\b[\s.:,]+)*"
    r"(?:(?:[A-Za-z]\.?|van|von|de|la|del|di|der|den|st\.?|mc|o')[\s.]+)*[\w'’-]+",
    re.IGNORECASE,
)
# Words that are titles elsewhere and technique with these words behind them.
_NOT_A_TITLE = re.compile(
    r"\b(?:patient\s+(?:position|orientation|table|recumbent)|by\s+(?:protocol|side|device))\b|\b(?:MS|PT)\s*[-/]?\s*CT\b",
    re.IGNORECASE,
)
_MODALITY = re.compile(r"\b(?:MR|MS|PT)\s+(\w+)")  # "MR brain"
_IDENTIFYING = re.compile("|".join(f"(?:{p})" for p in _PATTERNS).replace(r"\1", r"[/.-]"), re.IGNORECASE)
_WORD = re.compile(r"[^\s_,;:()\[\]{}<>|\"=&+*/\\!?~#^.-]+(?:\.\d+)?%?")
_CODE = re.compile(
    r"\d{1,3}(?:\.\d{1,3})?%?"
    r"|\d{1,5}(?:\.\d{1,3})?(?:mm2?|cm|um|m?s|sec|hz|khz|mhz|t|kg|mg|g|ml|cc|m?bq|mci|c?gy|deg|hu|ppm|kvp?|kev|ma|mas)"
    r"|\d{1,3}(?:\.\d)?(?:mm)?x\d{1,3}(?:\.\d)?(?:mm)?(?:x\d{1,3}(?:\.\d)?(?:mm)?)?"
    r"|b\d{1,4}|t[er]\d{1,5}|ti\d{1,4}|fa\d{1,3}|te\d{1,3}|[clts]\d{1,2}|[pxirvn]\d{1,2}|[1-4]d|[bhijq][rlvfk]?\d{2}[fshp]?"
    r"|mb\d|\d{1,2}scan|dir\d{1,3}|\d{1,3}dir|venc\d{1,3}|kv\d{2,3}|ph\d{1,3}|\d{1,3}ph|\d{1,2}ch|\d{1,3}pct|te\d|echo\d|run\d{1,2}"
    r"|[a-z]{1,6}\d?w",
    re.IGNORECASE,
)
_CARETS = re.compile(r"\S*\^\S*")
_CAMEL = re.compile(r"[A-ZÀ-Ý]?[a-zà-ÿ]+|[A-ZÀ-Ý]+(?![a-zà-ÿ])|\d+(?:mm|cm|ms|s)?")


@cache
def vocabulary() -> frozenset[str]:
    """Return the words that may stay, in lower case."""
    file = resources.files("voxscore.deidentify").joinpath("data", "vocabulary.txt")
    lines = (line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    words = {word.casefold() for line in lines for word in line.split()}
    # A word with a hyphen is looked up piece by piece.
    return frozenset(words | {piece for word in words for piece in re.split(r"[-/]", word) if piece})


def tokens_of(value: str) -> set[str]:
    """Return the pieces of a name or number that would identify it: words of three or more letters or digits."""
    return {piece.casefold() for piece in re.findall(r"[^\W_]+", value) if len(piece) >= 3}


class TextCleaner:
    """Keeps what is known to be safe.

    Args:
        words: may stay, in lower case; the vocabulary that voxscore ships unless given.
        recognizers: models that find more to remove.
    """

    def __init__(self, words: Collection[str] | None = None, recognizers: Sequence[Recognizer] = ()) -> None:
        self._words = vocabulary() if words is None else frozenset(words)
        self._recognizers: Sequence[Callable[[str], Iterable[tuple[int, int]]]] = recognizers
        self._clean = lru_cache(maxsize=4096)(self._clean_one)  # the slices of a series repeat their descriptions

    def knows(self, word: str) -> bool:
        """Whether a word is in the vocabulary."""
        return word.casefold() in self._words

    def clean(self, text: str, denied: Collection[str] = frozenset()) -> str:
        """Return the safe part of a text.

        Args:
            text: one value of a header element.
            denied: tokens of the same patient's names and identifiers, in lower case.

        Returns:
            The words that may stay with the signs between them; "" if none.
        """
        return self._clean(text, frozenset(denied))

    def _clean_one(self, text: str, denied: frozenset[str]) -> str:
        spans = self._spans(text)
        found = list(_WORD.finditer(text))
        kept = [
            not any(start < word.end() and word.start() < end for start, end in spans) and self._safe(word[0], denied)
            for word in found
        ]
        bare = [kept[i] and self._depends(word[0]) for i, word in enumerate(found)]
        for i in (i for i, lonely in enumerate(bare) if lonely):
            # Only words beside it in the same breath count: "Smith, 3 planes" leaves the 3 to the planes.
            before = i > 0 and not kept[i - 1]
            after = i + 1 < len(found) and not kept[i + 1] and len(found) > 1
            kept[i] = not (before or after)
        pieces: list[str] = []
        end = None
        for i, word in enumerate(found):
            if not kept[i]:
                continue
            if end is not None:
                pieces.append(text[end : word.start()] if kept[i - 1] else " ")
            pieces.append(word[0])
            end = word.end()
        return "".join(pieces)

    def _spans(self, text: str) -> list[tuple[int, int]]:
        original, text = text, text.replace("_", " ")  # an underscore separates words
        exempt = [match.span() for match in _NOT_A_TITLE.finditer(text)]
        exempt += [match.span() for match in _MODALITY.finditer(text) if self.knows(match[1])]
        spans = [match.span() for match in _IDENTIFYING.finditer(text)]
        # The form of DICOM names, but also of protocols: "Abdomen^Routine".
        spans += [
            match.span()
            for match in _CARETS.finditer(text)
            if not all(self._safe(piece, ()) for piece in match[0].split("^") if piece)
        ]
        spans += [
            match.span()
            for match in _TITLE.finditer(text)
            if not any(start <= match.start() < end for start, end in exempt)
        ]
        return spans + [span for recognize in self._recognizers for span in recognize(original)]

    def _safe(self, word: str, denied: Collection[str]) -> bool:
        lower = word.casefold()
        if lower in denied or any(piece in denied for piece in tokens_of(word)):
            return False
        if lower in self._words or _CODE.fullmatch(word):
            return not lower.endswith("w") or lower in self._words or lower[:-1] in self._words or len(lower) <= 3
        pieces = _CAMEL.findall(word)
        return len(pieces) > 1 and "".join(pieces) == word and all(self._piece(piece, denied) for piece in pieces)

    def _piece(self, piece: str, denied: Collection[str]) -> bool:
        lower = piece.casefold()
        return lower not in denied and (
            bool(_CODE.fullmatch(piece)) if piece[0].isdigit() else len(piece) > 1 and lower in self._words
        )

    @staticmethod
    def _depends(word: str) -> bool:
        """Whether a word says nothing on its own: a bare number, a single letter."""
        return len(word) == 1 or word.replace(".", "").isdigit()
