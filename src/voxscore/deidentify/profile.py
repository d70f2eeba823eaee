"""Which confidentiality profile and options of DICOM PS3.15 are asked for."""

from __future__ import annotations

from dataclasses import dataclass

from voxscore.deidentify.table import EDITION, OPTION_CODES
from voxscore.errors import UserError

__all__ = ["PROFILES", "Profile", "find_profile"]

_CLEAN = ("clean-graphics", "clean-structured-content", "clean-descriptors")
_RESEARCH = (*_CLEAN, "modified-dates", "patient-characteristics", "safe-private")


@dataclass(frozen=True)
class Profile:
    """The Basic Profile with options.

    Attributes:
        name: what the user called it.
        options: names of `OPTION_CODES` other than "basic"; clean-pixel-data and clean-visual-features are not asked
            for here, they are stated where pixels were in fact cleaned.
        strict: replacement codes are drawn at random instead of being derived from a key.

    Raises:
        UserError: an unknown option, or two that contradict each other.
    """

    name: str = "basic"
    options: frozenset[str] = frozenset()
    strict: bool = False

    def __post_init__(self) -> None:
        choices = set(OPTION_CODES) - {"basic", "clean-pixel-data", "clean-visual-features"}
        unknown = sorted(self.options - choices)
        if unknown:
            raise UserError(f"profile {self.name}", f"{unknown[0]!r} is no option", f"choose of {sorted(choices)}")
        if {"full-dates", "modified-dates"} <= self.options:
            raise UserError(f"profile {self.name}", "keeps dates and shifts them", "choose one of the two")
        if self.strict and {"full-dates", "modified-dates", "device-identity", "uids"} & self.options:
            raise UserError(f"profile {self.name}", "strict mode keeps no dates, devices or UIDs", "leave them out")

    def describe(self) -> str:
        """Return one line: edition, profile, options."""
        return f"PS3.15 {EDITION} " + "+".join(["basic", *sorted(self.options)])


PROFILES = {
    "basic": Profile(),
    "research": Profile("research", frozenset(_RESEARCH)),
    "tcia": Profile("tcia", frozenset((*_RESEARCH, "device-identity"))),
    "strict": Profile("strict", frozenset(_CLEAN), strict=True),
}


def find_profile(text: str) -> Profile:
    """Return a profile by name, with more options after plus signs: "research+institution-identity".

    Raises:
        UserError: no such profile or option.
    """
    name, *more = text.split("+")
    if name not in PROFILES:
        raise UserError(f"profile {text}", f"there is no profile {name!r}", f"choose of {', '.join(PROFILES)}")
    if not more:
        return PROFILES[name]
    return Profile(text, PROFILES[name].options | set(more), PROFILES[name].strict)
