"""What a result is worth: how right, how sure, how real and how varied it is, and the pages a person reads.

    overlap         Dice, surface distances and volume errors of a segmentation
    fidelity        PSNR, SSIM and error of a volume against the one it should be
    calibration     is 90 % right nine times in ten? intervals for a volume
    distribution    do synthetic volumes have the distribution of the real ones? Frechet distance, MMD
    diversity       how many different ones are there? Vendi score, MS-SSIM
    kernels         ... and the similarities that these two stand on
    copies          are volumes copies of training volumes? thresholds, counts and shares with their null
    registration    ... by registered correlation of whitened volumes
    contrastive     ... by features learned on the training set
    copy_audit      ... with planted copies as controls
    membership      does a network tell who it was trained on?
    subgroups       who is copied, who is forgotten
    verdict         PASS, FAIL or INCONCLUSIVE
    pictures        slices with contours
    contact_sheets  ... of many cases, to see a set at a glance
    plots           reliability diagram, distributions real against synthetic
    report          a page to keep
    reconstructions ... and the sheet and page of a reconstruction
    audit_report    ... and one of an audit

The public names are loaded on first use, because scores need MONAI, whose import takes seconds, while a
picture or a report needs neither MONAI nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voxscore.evaluation.audit_report import audit_page
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
    from voxscore.evaluation.contrastive import ContrastiveEncoder, nt_xent, train_encoder
    from voxscore.evaluation.copies import (
        CopyCount,
        NearestShare,
        copy_count,
        copy_threshold,
        detectable_share,
        distance_ratio,
        held_out_needed,
        nearest_share,
    )
    from voxscore.evaluation.copy_audit import (
        LEVEL,
        PLANTED,
        CopyAudit,
        Likeness,
        audit_copies,
        control_finding,
        planted_copy,
        power_finding,
        refused,
    )
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
    from voxscore.evaluation.membership import Gap, Membership, auc, membership_inference, rate_at_few_false_positives
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
    from voxscore.evaluation.registration import UNLIKE, Registration, SearchGrid, on_grid, search_grid
    from voxscore.evaluation.report import ReportItem, segmentation_report
    from voxscore.evaluation.subgroups import Subgroup, case_traits, covered, subgroup_audit
    from voxscore.evaluation.verdict import Finding, Verdict, overall

__all__ = [
    "LEVEL",
    "PLANTED",
    "UNLIKE",
    "Calibration",
    "CalibrationMetric",
    "ContrastiveEncoder",
    "CopyAudit",
    "CopyCount",
    "Coverage",
    "Estimate",
    "FeatureDistanceMetric",
    "Fidelity",
    "Finding",
    "Gap",
    "Kernel",
    "LabelScore",
    "LabelSummary",
    "Likeness",
    "MMDTest",
    "Membership",
    "NearestShare",
    "PairSimilarity",
    "PolynomialKernel",
    "Population",
    "RBFKernel",
    "Registration",
    "ReliabilityTable",
    "ReportItem",
    "SearchGrid",
    "Subgroup",
    "VendiScoreMetric",
    "Verdict",
    "VolumeInterval",
    "auc",
    "audit_copies",
    "audit_page",
    "bootstrap_mean",
    "case_traits",
    "contact_sheet",
    "contour_sheet",
    "control_finding",
    "copy_count",
    "copy_threshold",
    "covered",
    "detectable_share",
    "dilated_foreground",
    "distance_ratio",
    "distribution_sheet",
    "frechet_distance",
    "held_out_needed",
    "interval_coverage",
    "label_volumes",
    "median_distance",
    "membership_inference",
    "mmd",
    "mmd_test",
    "montage",
    "ms_ssim_diversity",
    "nearest_share",
    "nt_xent",
    "on_grid",
    "overall",
    "paired_difference",
    "planted_copy",
    "power_finding",
    "rate_at_few_false_positives",
    "reconstruction_report",
    "reconstruction_sheet",
    "refused",
    "reliability_diagram",
    "score_labels",
    "score_volume",
    "search_grid",
    "segmentation_features",
    "segmentation_report",
    "subgroup_audit",
    "summary",
    "train_encoder",
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
    "verdict",
    "copies",
    "copy_audit",
    "registration",
    "contrastive",
    "audit_report",
    "membership",
    "subgroups",
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
