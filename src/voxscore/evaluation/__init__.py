"""What a result is worth: overlap and surface distance, the picture of it, and the page a person reads.

The public names are loaded on first use, because scores need MONAI, whose import takes seconds, while a
picture or a report needs neither MONAI nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voxscore.evaluation.overlap import (
        Estimate,
        LabelScore,
        LabelSummary,
        bootstrap_mean,
        label_volumes,
        paired_difference,
        score_labels,
        summary,
    )
    from voxscore.evaluation.pictures import contour_sheet, montage
    from voxscore.evaluation.report import ReportItem, segmentation_report

__all__ = [
    "Estimate",
    "LabelScore",
    "LabelSummary",
    "ReportItem",
    "bootstrap_mean",
    "contour_sheet",
    "label_volumes",
    "montage",
    "paired_difference",
    "score_labels",
    "segmentation_report",
    "summary",
]

# In this order a picture or a report is found before the module that needs MONAI is touched.
_MODULES = ("pictures", "report", "overlap")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            home = import_module(f"{__name__}.{module}")
            if name in home.__all__:
                return getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
