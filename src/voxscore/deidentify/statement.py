"""What a profile does, in words: one attribute explained, and the conformance statement that PS3.15 asks for."""

from __future__ import annotations

import re

from pydicom.datadict import dictionary_description, tag_for_keyword

from voxscore.deidentify.private import safe_private_attributes
from voxscore.deidentify.profile import Profile
from voxscore.deidentify.table import EDITION, OPTION_CODES, find_row, vr_of
from voxscore.errors import UserError

__all__ = ["conformance_statement", "explain"]

_MEANINGS = {
    "X": "remove",
    "Z": "empty",
    "D": "dummy value",
    "U": "new UID",
    "K": "keep",
    "C": "clean",
    "U*": "new UIDs",
}


def explain(text: str) -> str:
    """Return what happens to an attribute.

    Args:
        text: "00100010", "(0010,0010)", "0010,0010" or "PatientName".

    Raises:
        UserError: no attribute.
    """
    digits = re.sub(r"[(),\s]", "", text)
    tag = int(digits, 16) if re.fullmatch(r"[0-9A-Fa-f]{8}", digits) else tag_for_keyword(text)
    if tag is None:
        raise UserError(text, "is neither a tag nor a keyword of DICOM", "write 00100010 or PatientName")
    name = f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
    if (tag >> 16) % 2:
        return f"{name} private: removed, unless option safe-private knows its creator and element"
    if not vr_of(tag):
        return f"{name} not in the dictionary: removed"
    lines = [f"{name} {dictionary_description(tag)}, VR {vr_of(tag)}"]
    row = find_row(tag)
    if row is None:
        return lines[0] + f"\nnot in Table E.1-1 of PS3.15 {EDITION}: judged by its VR"
    meaning = " or ".join(_MEANINGS[part] for part in row.basic.split("/"))
    lines.append(f"basic profile: {row.basic} ({meaning}{', by the type in its object' if '/' in row.basic else ''})")
    lines += [f"{option}: {action} ({_MEANINGS[action]})" for option, action in sorted(row.options.items())]
    return "\n".join(lines)


_MANNER = {
    "clean-descriptors": "Free text keeps words of a vocabulary of technique and anatomy, short numbers, numbers with "
    "a unit and technical codes. Everything else is dropped, and of these what stands in a date, telephone number, "
    "address, record number or age, after a title, or is a name or number of the same header.",
    "clean-graphics": "Texts of annotations are cleaned like descriptors. Overlays and curves are removed whole, those "
    "in unused bits of the pixels included.",
    "clean-structured-content": "Content items that name people, subjects or rooms get dummy values; other text is "
    "cleaned like descriptors; references get new UIDs; measurements and codes stay.",
    "modified-dates": "All dates of a patient move by one number of whole days, 1 to 3650 into the past, derived from "
    "the key and the patient ID. Times of day stay. A partial date is removed. Birth dates are removed.",
    "full-dates": "Dates and times stay, but for birth dates.",
    "patient-characteristics": "Sex, age, size and weight stay; ages over 89 years are given as 090Y; descriptions are "
    "cleaned like descriptors.",
    "device-identity": "Attributes that identify the device stay; network titles are replaced.",
    "institution-identity": "Attributes that identify the institution stay.",
    "uids": "UIDs stay.",
}
_RANDOM = "Patients, accessions, studies and UIDs get random codes, remembered in a crosswalk."
_KEYED = (
    "Patients, accessions, studies and UIDs get pseudonyms, HMAC-SHA-256 of kind and value under a secret key; UIDs "
    "are of the form 2.25.n. Whoever holds the key can link them again: the data are pseudonymised."
)


def conformance_statement(profile: Profile) -> str:
    """Return a conformance statement in Markdown."""
    lines = [
        f"# De-identification conformance: profile {profile.name}",
        "",
        "voxscore as a de-identifier follows the Basic Application Level Confidentiality Profile of DICOM PS3.15",
        f"{EDITION} at any depth of nesting, with the options",
        "",
        *(f"- {OPTION_CODES[o][1]} ({OPTION_CODES[o][0]}, DCM)" for o in sorted(profile.options)),
        "- Clean Pixel Data Option (113101, DCM), for objects that a pixel rule or their ultrasound regions cover",
        "",
        "(0012,0064) lists the options of which an action ran on the object at hand. Option columns of attributes that",
        "are newer than edition 2024b are not followed; their basic action is.",
        "",
        "## Manner",
        "",
        f"- **Identifiers.** {_RANDOM if profile.strict else _KEYED}",
        *(f"- **{o}.** {_MANNER[o]}" for o in sorted(profile.options) if o in _MANNER),
        "- **What the table does not list.** Names, network titles, addresses and unknown bytes are removed, UIDs",
        "  replaced, text cleaned as above; attributes that the dictionary does not know are removed.",
        "- **Pixels.** Objects that carry text as a rule (ultrasound, angiography, screen captures, declared text) are",
        "  released only where a rule says what to blank. Faces in volumes are not removed by this command.",
        "  Comments and application segments of JPEG, JPEG-LS and JPEG 2000 are overwritten; videos are not read.",
        "- **File.** Preamble and file meta information are replaced.",
        "- **NIfTI and BIDS.** Headers are built anew from the fields that say how to read and place the voxels. Names",
        "  get codes. Sidecars and tables keep listed keys and columns whose values have the listed form. Age, sex and",
        f"  handedness {'stay' if 'patient-characteristics' in profile.options else 'go'}, acquisition times",
        f"  {'are shifted' if 'modified-dates' in profile.options else 'go'}.",
        "",
        "## Private attributes",
        "",
    ]
    if "safe-private" not in profile.options:
        return "\n".join([*lines, "All are removed.", ""])
    kept = sorted(safe_private_attributes().items())
    return "\n".join(
        [
            *lines,
            "These are kept, with their creators, if their values have the form of their VR:",
            "",
            "| creator | element | VR |",
            "|---|---|---|",
            *(f"| {creator} | ({group:04X},xx{element:02X}) | {vr} |" for (creator, group, element), vr in kept),
            "",
        ]
    )
