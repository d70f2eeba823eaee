"""What was done to one object, without any value of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Record"]


@dataclass
class Record:
    """What was done to one object; holds no value of it.

    Attributes:
        actions: action -> how many elements.
        tags: "GGGGEEEE action" -> how many elements.
        options: the options of which an action ran, "basic" included.
        unknown: tags that the dictionary does not know, all dropped.
        private: safe private elements kept, as "creator (GGGG,ee)".
        dates: "REMOVED", "MODIFIED" or "UNMODIFIED", "" where the object has none.
        overlay_in_pixels: whether an overlay lies in unused bits of the pixels.
    """

    actions: Counter[str] = field(default_factory=Counter)
    tags: Counter[str] = field(default_factory=Counter)
    options: set[str] = field(default_factory=lambda: {"basic"})
    unknown: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    dates: str = ""
    overlay_in_pixels: bool = False

    def count(self, tag: int, action: str) -> None:
        """Note one element."""
        self.actions[action] += 1
        self.tags[f"{tag:08X} {action}"] += 1
