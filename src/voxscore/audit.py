"""The privacy audit of a set of synthetic volumes: does it hold copies of the volumes that the model was trained on?

    synthetic, training, held-out volumes  ->  likeness of every pair  ->  tests with controls  ->  a verdict

A held-out volume is a real one that the model has not seen: without such volumes nobody can say how alike strangers
are. What is tested, and what a verdict means, stands in `voxscore.evaluation.copies`, `copy_audit` and `verdict`.

    FOLDER/images/, labels/         or imagesTr/, labelsTr/ as a Decathlon task has them, or volumes alone
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import CenterSpatialCropd, Compose, SpatialPadd
from torch import Generator, Tensor

from voxscore.bundles import Bundle
from voxscore.diffusion import Path as DiffusionPath
from voxscore.diffusion import VolumeNoise, denoising_loss
from voxscore.errors import UserError
from voxscore.evaluation import (
    LEVEL,
    PLANTED,
    UNLIKE,
    ContrastiveEncoder,
    CopyAudit,
    Finding,
    Likeness,
    Membership,
    Registration,
    Subgroup,
    Verdict,
    audit_copies,
    audit_page,
    case_traits,
    contact_sheet,
    control_finding,
    covered,
    membership_inference,
    on_grid,
    overall,
    planted_copy,
    power_finding,
    refused,
    search_grid,
    subgroup_audit,
    train_encoder,
)
from voxscore.inference import inference_config, loaded_network
from voxscore.inferers import volume_seed
from voxscore.volumes import Volume, base_name, find_volumes, read_label_map, read_volume, sha256

__all__ = ["NO_PROMISE", "Audit", "Case", "audit", "bundle_membership", "find_cases"]

CONTROLS = 60  # training volumes of the negative control, at most
NOISE_LEVELS, QUERY = (0.2, 1.0, 5.0, 20.0), 1.0  # sigma / alpha of the losses, and of the attack
SHOWN = 12  # pairs on the page
COLORS = ((255, 170, 60), (80, 180, 255), (120, 220, 120), (230, 120, 220))  # of labels 1 to 4
NO_PROMISE = (
    "A PASS is evidence that this search found no copies. It is not anonymity, and it is not differential privacy."
)
LAYOUTS = (("images", "labels"), ("imagesTr", "labelsTr"))


@dataclass(frozen=True)
class Case:
    """A volume of a set.

    Attributes:
        name: base name of its file.
        image: its file.
        label: its label map, if there is one.
    """

    name: str
    image: Path
    label: Path | None


def find_cases(folder: Path) -> list[Case]:
    """The volumes of a set, in the order of their names.

    Raises:
        UserError: no such folder, or no volume in it.
    """
    for images, labels in LAYOUTS:
        if (folder / images).is_dir():
            files = find_volumes(folder / images)
            beside = [folder / labels / file.name for file in files]
            break
    else:
        files = find_volumes(folder)
        beside = files
    return [
        Case(base_name(file), file, label if label != file and label.is_file() else None)
        for file, label in zip(files, beside, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found.

    Attributes:
        synthetic: the volumes that were audited.
        training: those the model was trained on.
        held_out: those it was not.
        copies: the copy audit by each measure.
        membership: of the bundle, if one was given.
        groups: the audit by groups, if there are label maps.
        settings: what was compared, and how.
    """

    synthetic: Sequence[Case]
    training: Sequence[Case]
    held_out: Sequence[Case]
    copies: Sequence[CopyAudit]
    membership: Membership | None
    groups: Sequence[Subgroup]
    settings: dict[str, Any]

    @property
    def findings(self) -> list[Finding]:
        """Of all tests."""
        size = power_finding(len(self.synthetic), len(self.held_out))
        of_copies = [finding for copies in self.copies for finding in copies.findings()]
        of_network = [] if self.membership is None else [self.membership.finding()]
        return [size, control_finding(self.copies), *of_copies, *of_network]

    @property
    def verdict(self) -> Verdict:
        """Of all findings."""
        return overall(self.findings)

    @property
    def refused(self) -> list[Case]:
        """Synthetic volumes that are not to be released."""
        return [case for case, no in zip(self.synthetic, refused(self.copies).tolist(), strict=True) if no]

    def content(self) -> dict[str, Any]:
        """All of it, of JSON types."""
        return {
            "verdict": self.verdict.value,
            "meaning": NO_PROMISE,
            "findings": [{"test": f.test, "verdict": f.verdict.value, "sentence": f.sentence} for f in self.findings],
            "refused": [case.name for case in self.refused],
            "settings": self.settings,
            "measures": {copies.measure: self._measure(copies) for copies in self.copies},
            "membership": None if self.membership is None else asdict(self.membership),
            "groups": [{key: _finite(v) for key, v in group._asdict().items()} for group in self.groups],
        }

    def _measure(self, copies: CopyAudit) -> dict[str, Any]:
        counts = {"flagged": copies.count, "real_flagged": copies.control, "distance_ratio": copies.ratio_count}
        flagged = copies.refused.tolist()
        return {
            "copy_level": copies.copy_level,
            "planted": {
                "number": len(copies.planted_found),
                "found": int(copies.planted_found.sum()),
                "least": float(copies.planted_likeness.min()),
            },
            "nearest_share": copies.share._asdict(),
            **{
                key: count and {k: v for k, v in vars(count).items() if k != "flagged"} | {"of": len(count.flagged)}
                for key, count in counts.items()
            },
            "held_out_likeness": copies.held_out_scores.tolist(),
            "volumes": [
                {
                    "name": case.name,
                    "nearest_training": self.training[int(copies.nearest[i])].name,
                    "likeness": float(copies.scores[i]),
                    "distance_ratio": float(copies.ratios[i]),
                    "flagged": flagged[i],
                    "copy": bool(copies.copies[i]),
                }
                for i, case in enumerate(self.synthetic)
            ],
        }

    def page(self) -> str:
        """An HTML page for a reader, with the pairs that are most alike side by side."""
        first = self.copies[0]
        pairs = []
        for i in first.scores.argsort(descending=True)[:SHOWN].tolist():
            both = [self.synthetic[i], self.training[int(first.nearest[i])]]
            items = [_picture_item(case) for case in both]
            present = sorted({int(value) for item in items for value in np.unique(item[2]) if value})
            colors = {value: COLORS[value - 1] for value in present}
            names = {value: f"label {value}" for value in present}
            word = "copy" if first.copies[i] else "flagged" if first.refused[i] else "not flagged"
            pairs.append(
                (
                    f"{both[0].name} and training volume {both[1].name}",
                    contact_sheet(items, colors, names),
                    f"likeness {float(first.scores[i]):.3f}, distance ratio {float(first.ratios[i]):.2f}: {word}",
                )
            )
        return audit_page(self.verdict, NO_PROMISE, self.findings, self.groups, pairs, self.content())


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _picture_item(case: Case) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    volume = read_volume(case.image)
    labels = np.zeros(volume.array.shape, int) if case.label is None else read_label_map(case.label).array
    # More labels than there are colours are drawn as the last.
    return case.name, volume.array, np.minimum(labels, len(COLORS)), volume.affine


def audit(
    synthetic: Path,
    training: Path,
    held_out: Path,
    bundle: Bundle | None = None,
    device: torch.device | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda step: None,
) -> Audit:
    """Audits a set of synthetic volumes.

    Args:
        synthetic: folder of the volumes to audit.
        training: folder of all volumes that the model was trained on.
        held_out: folder of real volumes of the same kind that it was not trained on.
        bundle: that made the volumes, whose network is then asked as well.
        device: where the network runs, the CPU if None.
        seed: of the planted copies, the encoder, the noise and the permutations.
        progress: is told what is being done.

    Raises:
        UserError: a folder holds no volumes or one that cannot be read, fewer than two training volumes, or held-out
            volumes that are also training volumes.
    """
    sets = {"synthetic": find_cases(synthetic), "training": find_cases(training), "held_out": find_cases(held_out)}
    if len(sets["training"]) < 2:
        raise UserError(training, "holds one volume", "give all volumes that the model was trained on")
    digests = {name: [sha256(case.image) for case in cases] for name, cases in sets.items()}
    if shared := set(digests["training"]) & set(digests["held_out"]):
        raise UserError(held_out, f"shares {len(shared)} volumes with {training}", "hold out volumes not trained on")

    progress("reading")
    rng = np.random.default_rng(seed)
    volumes = {name: [read_volume(case.image) for case in cases] for name, cases in sets.items()}
    grid = search_grid([v.array.shape for v in volumes["training"]], [v.affine for v in volumes["training"]])
    grids = {name: torch.stack([on_grid(v.array, v.affine, grid) for v in of_set]) for name, of_set in volumes.items()}
    order = rng.permutation(len(sets["training"]))
    sources, controls = torch.from_numpy(order[:PLANTED].copy()), torch.from_numpy(order[:CONTROLS].copy())
    originals = [volumes["training"][i] for i in sources.tolist()]
    planted = torch.stack([on_grid(planted_copy(v.array, rng), v.affine, grid) for v in originals])

    progress("comparing")
    generator = Generator().manual_seed(seed)
    queries = {**grids, "planted": planted, "controls": grids["training"][controls]}
    by_search = _registered(Registration(grids["training"], grid), queries, sources, controls)
    progress("learning to compare")
    encoder = train_encoder(grids["training"], grid, seed)
    features = {name: encoder.features(volumes, grid) for name, volumes in queries.items()}
    by_features = _learned(encoder, features, sources, controls)
    copies = [
        audit_copies(name, likeness, generator)
        for name, likeness in {"registered correlation": by_search, "learned features": by_features}.items()
    ]
    groups = _groups(sets, volumes, refused(copies), {name: f[:, 0] for name, f in features.items()})
    found = None
    if bundle is not None:
        progress("asking the network")
        found = bundle_membership(bundle, sets["training"], sets["held_out"], device or torch.device("cpu"), seed)
    settings = {
        "number": {name: len(cases) for name, cases in sets.items()},
        "level": LEVEL,
        "voxel_mm": grid.voxel,
        "grid": list(grid.shape),
        "seed": seed,
        "bundle": None if bundle is None else {"name": bundle.name, "version": bundle.version},
    }
    return Audit(sets["synthetic"], sets["training"], sets["held_out"], copies, found, groups, settings)


def _registered(registration: Registration, queries: dict[str, Tensor], sources: Tensor, controls: Tensor) -> Likeness:
    """By registered correlation; every query is compared with training and held-out volumes together."""
    real = torch.cat([queries["training"], queries["held_out"]])
    n = len(queries["training"])

    def own(places: Tensor) -> Tensor:
        """Each volume may not be compared with itself."""
        excluded = torch.zeros(len(places), len(real), dtype=torch.bool)
        excluded[torch.arange(len(places)), places] = True
        return excluded

    synthetic = registration.likeness(queries["synthetic"], real)
    held_out = registration.likeness(queries["held_out"], real, own(n + torch.arange(len(queries["held_out"]))))
    training = registration.likeness(queries["controls"], real, own(controls))
    planted = registration.likeness(queries["planted"], real)
    return Likeness(synthetic[:, :n], synthetic[:, n:], held_out[:, :n], training[:, :n], planted[:, :n], sources)


def _learned(encoder: ContrastiveEncoder, features: dict[str, Tensor], sources: Tensor, controls: Tensor) -> Likeness:
    """By the features of an encoder."""
    training = encoder.likeness(features["controls"], features["training"])
    training[torch.arange(len(controls)), controls] = UNLIKE
    return Likeness(
        encoder.likeness(features["synthetic"], features["training"]),
        encoder.likeness(features["synthetic"], features["held_out"]),
        encoder.likeness(features["held_out"], features["training"]),
        training,
        encoder.likeness(features["planted"], features["training"]),
        sources,
    )


def _groups(
    sets: dict[str, list[Case]], volumes: dict[str, list[Volume]], flagged: Tensor, features: dict[str, Tensor]
) -> list[Subgroup]:
    """The audit by groups; none if a case has no label map."""
    traits: dict[str, dict[str, np.ndarray]] = {}
    for name, cases in sets.items():
        rows = []
        for case, volume in zip(cases, volumes[name], strict=True):
            if case.label is None:
                return []
            label = read_label_map(case.label)
            if label.array.shape != volume.array.shape:
                raise UserError(case.label, f"does not lie on the grid of {case.image}", "give its own label map")
            rows.append(case_traits(volume.array, label.array, volume.affine))
        traits[name] = {trait: np.array([row[trait] for row in rows]) for trait in rows[0]}
    recalled = {name: covered(features[name], features["synthetic"]).numpy() for name in ("held_out", "training")}
    return subgroup_audit(
        traits["training"],
        traits["held_out"],
        traits["synthetic"],
        flagged.numpy(),
        recalled["held_out"],
        recalled["training"],
    )


def bundle_membership(
    bundle: Bundle, training: Sequence[Case], held_out: Sequence[Case], device: torch.device, seed: int = 0
) -> Membership:
    """Membership inference from the denoiser of a synthesis bundle.

    The bundle's `inference.json` has the ids `inferer`, which makes a denoiser of its network, and `size`; its
    `train.json` prepares volumes by `preprocessing_transforms` and `joint_transforms`.

    Args:
        bundle: whose network is asked.
        training: cases with label maps.
        held_out: likewise.
        device: where the network runs.
        seed: of the noise.

    Raises:
        UserError: a case without a label map, or a bundle that does not synthesize.
    """
    for case in (*training, *held_out):
        if case.label is None:
            raise UserError(case.image, "has no label map", f"{bundle.name} needs one, in labels/ beside images/")
    parser = inference_config(bundle, device)
    if not {"inferer", "size"} <= parser.get().keys():
        raise UserError(f"bundle {bundle.name}", "does not synthesize", "choose one that does")
    network = loaded_network(bundle, parser)
    inferer = parser.get_parsed_content("inferer")
    denoiser = inferer.denoiser(lambda x, *args, **kwargs: inferer.fast(x, network, *args, **kwargs))
    recipe = ConfigParser()
    recipe.read_config(bundle.config("train"))
    size = parser.get_parsed_content("size")
    keys = ["image", "label"]
    prepare = Compose(
        [
            *recipe.get_parsed_content("preprocessing_transforms"),
            SpatialPadd(keys, size, mode=["edge", "constant"]),
            CenterSpatialCropd(keys, size),
            *recipe.get_parsed_content("joint_transforms"),
        ]
    )
    times = [denoiser.path.time(torch.tensor(level, dtype=torch.float64)) for level in NOISE_LEVELS]
    tables = []
    for cases in (training, held_out):
        rows = []
        for case in cases:
            x0 = prepare({"image": str(case.image), "label": str(case.label)})["image"].as_tensor()[None].float()
            # A volume's noise is its own, whichever set it is in.
            own = Generator().manual_seed(volume_seed(seed, int(sha256(case.image)[:12], 16)))
            x0 = x0.to(device)
            noise = VolumeNoise(own, 1)(x0)
            with torch.inference_mode():
                rows.append([float(denoising_loss(denoiser, x0, t, noise, _unweighted)) for t in times])
        tables.append(torch.tensor(rows, dtype=torch.float64))
    of_training, of_held_out = tables
    return membership_inference(of_training, of_held_out, NOISE_LEVELS, QUERY, Generator().manual_seed(seed))


def _unweighted(path: DiffusionPath, t: Tensor) -> Tensor:
    return torch.ones_like(t)
