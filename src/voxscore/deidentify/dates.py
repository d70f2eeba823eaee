"""Dates moved by whole days.

All dates of a patient move by the same number of days and all times of day stay. So every interval is kept: between
two studies, between injection and scan (SUV = activity x weight / dose x 2^(interval / half-life)), and across
midnight, where a date and its time stand in two attributes.
"""

from __future__ import annotations

import datetime
import re

__all__ = ["shift_date", "shift_datetime"]

_DATE = re.compile(r"(\d{4})(\d{2})(\d{2})")
_OLD_DATE = re.compile(r"(\d{4})\.(\d{2})\.(\d{2})")  # ACR-NEMA
_DATETIME = re.compile(r"(\d{8})(\d{2}(?:\d{2}(?:\d{2}(?:\.\d{1,6})?)?)?)?([+-]\d{4})?")


def shift_date(value: str, days: int) -> str:
    """Return a DA value moved by `days`; "" if it is no full date or leaves the calendar.

    The old form 1993.08.22 comes back as 19930731; a range "19990101-19991231" keeps both ends.
    """
    ends = value.strip(" \0").split("-")
    if len(ends) > 2:
        return ""
    shifted = [_shift(end.strip(), days) if end.strip() else "" for end in ends]
    lost = [bool(end.strip()) and not new for end, new in zip(ends, shifted, strict=True)]
    return "" if any(lost) or not any(shifted) else "-".join(shifted)


def shift_datetime(value: str, days: int) -> str:
    """Return a DT value moved by `days`, its time and offset from UTC kept; "" if it has no full date."""
    match = _DATETIME.fullmatch(value.strip(" \0"))
    if not match:
        return ""
    date = _shift(match[1], days)
    return date + (match[2] or "") + (match[3] or "") if date else ""


def _shift(text: str, days: int) -> str:
    match = _DATE.fullmatch(text) or _OLD_DATE.fullmatch(text)
    if not match:
        return ""
    try:
        moved = datetime.date(*map(int, match.groups())) + datetime.timedelta(days=days)
    except (ValueError, OverflowError):
        return ""
    return f"{moved.year:04d}{moved.month:02d}{moved.day:02d}"
