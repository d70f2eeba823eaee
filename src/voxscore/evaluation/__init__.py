"""What a result is worth: how right, how sure, how real and how varied it is, and the pages a person reads.

    overlap         Dice, surface distances and volume errors of a segmentation
    fidelity        PSNR, SSIM and error of a volume against the one it should be
    calibration     is 90 % right nine times in ten? intervals for a volume
    distribution    do synthetic volumes have the distribution of the real ones? Frechet distance, MMD
    diversity       how many different ones are there? Vendi score, MS-SSIM
    kernels         ... and the similarities that these two stand on
    pictures        slices with contours
    contact_sheets  ... of many cases, to see a set at a glance
    plots           reliability diagram, distributions real against synthetic
    report          a page to keep
    reconstructions ... and the sheet and page of a reconstruction

The public names are loaded on first use, because scores need MONAI, whose import takes seconds, while a
picture or a report needs neither MONAI nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voxscore.evaluation.calibration import (
        Calibration,
        CalibrationMetric,
        Coverage,
        ReliabilityTable,
        VolumeInterval,
        dilated_foreground,
        interval_coverage,
        volume_interval,
        voxel_calibration,
    )
    from voxscore.evaluation.contact_sheets import contact_sheet
    from voxscore.evaluation.distribution import (
        FeatureDistanceMetric,
        MMDTest,
        frechet_distance,
        mmd,
        mmd_test,
        segmentation_features,
    )
    from voxscore.evaluation.diversity import (
        PairSimilarity,
        VendiScoreMetric,
        ms_ssim_diversity,
        vendi_score,
        vendi_score_of_kernel,
    )
    from voxscore.evaluation.fidelity import Fidelity, score_volume
    from voxscore.evaluation.kernels import Kernel, PolynomialKernel, RBFKernel, median_distance
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
    from voxscore.evaluation.plots import Population, distribution_sheet, reliability_diagram
    from voxscore.evaluation.reconstructions import reconstruction_report, reconstruction_sheet
    from voxscore.evaluation.report import ReportItem, segmentation_report

__all__ = [
    "Calibration",
    "CalibrationMetric",
    "Coverage",
    "Estimate",
    "FeatureDistanceMetric",
    "Fidelity",
    "Kernel",
    "LabelScore",
    "LabelSummary",
    "MMDTest",
    "PairSimilarity",
    "PolynomialKernel",
    "Population",
    "RBFKernel",
    "ReliabilityTable",
    "ReportItem",
    "VendiScoreMetric",
    "VolumeInterval",
    "bootstrap_mean",
    "contact_sheet",
    "contour_sheet",
    "dilated_foreground",
    "distribution_sheet",
    "frechet_distance",
    "interval_coverage",
    "label_volumes",
    "median_distance",
    "mmd",
    "mmd_test",
    "montage",
    "ms_ssim_diversity",
    "paired_difference",
    "reconstruction_report",
    "reconstruction_sheet",
    "reliability_diagram",
    "score_labels",
    "score_volume",
    "segmentation_features",
    "segmentation_report",
    "summary",
    "vendi_score",
    "vendi_score_of_kernel",
    "volume_interval",
    "voxel_calibration",
]

# In this order a picture or a report is found before the module that needs MONAI is touched.
_MODULES = (
    "pictures",
    "contact_sheets",
    "report",
    "reconstructions",
    "plots",
    "overlap",
    "fidelity",
    "kernels",
    "calibration",
    "distribution",
    "diversity",
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            home = import_module(f"{__name__}.{module}")
            if name in home.__all__:
                return getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
