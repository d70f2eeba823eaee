"""Values that stand where an object's definition demands one and the true one may not stay."""

from __future__ import annotations

from typing import Any

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

__all__ = ["REMOVED", "code_item", "dummy_sequence", "dummy_value"]

REMOVED = "REMOVED"

_TEXT = {vr: REMOVED for vr in ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT")}
_DUMMIES: dict[str, Any] = {
    **_TEXT,
    "AS": "000Y",
    "DA": "19000101",
    "DT": "19000101000000",
    "TM": "000000",
    "DS": "0",
    "IS": "0",
    "UR": "about:blank",
    **{vr: 0 for vr in ("US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "AT")},
    **{vr: bytes(8) for vr in ("OB", "OW", "OF", "OD", "OL", "OV", "UN")},
}


def dummy_value(vr: str) -> Any:
    """Return a value for a VR other than SQ and UI that says nothing; for "US or SS" that of the first."""
    return _DUMMIES[vr.split(" ")[0]]


def code_item(value: str, scheme: str, meaning: str) -> Dataset:
    """Return an item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _removed_code() -> Dataset:
    return code_item(REMOVED, "99VOXSCORE", "Removed")


def dummy_sequence(tag: int) -> Sequence:
    """Return the one item that stands for a sequence whose contents may not stay.

    Args:
        tag: the sequence; one that is not known here is taken for a code sequence, the commonest kind.
    """
    item = Dataset()
    if tag == 0x0040A730:  # Content
        item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", REMOVED
        item.ConceptNameCodeSequence = Sequence([code_item("121106", "DCM", "Comment")])
    elif tag == 0x0040A073:  # Verifying Observer
        item.VerifyingObserverName = item.VerifyingOrganization = REMOVED
        item.VerificationDateTime = _DUMMIES["DT"]
        item.VerifyingObserverIdentificationCodeSequence = Sequence()
    elif tag == 0x00081072:  # Operator Identification
        item.PersonIdentificationCodeSequence = Sequence([_removed_code()])
        item.InstitutionCodeSequence = Sequence([_removed_code()])
    elif tag == 0x00700001:  # Graphic Annotation
        item.GraphicLayer = REMOVED
        text = Dataset()
        text.AnchorPointAnnotationUnits, text.AnchorPoint, text.AnchorPointVisibility = "DISPLAY", [0.0, 0.0], "N"
        text.UnformattedTextValue = REMOVED
        item.TextObjectSequence = Sequence([text])
    elif tag == 0x0040B020:  # Waveform Annotation
        item.UnformattedTextValue, item.ReferencedWaveformChannels, item.AnnotationGroupNumber = REMOVED, [1, 0], 0
    elif tag == 0x00340001:  # Flow Identifier
        item.FlowIdentifier = item.SourceIdentifier = bytes(8)
    else:
        item = _removed_code()
    return Sequence([item])
