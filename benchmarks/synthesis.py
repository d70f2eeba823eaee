"""What a synthetic set is worth against the real cases it was learned from and the real cases it never saw.

    voxscore synthesize --number 208 --output SYNTHETIC
    python benchmarks/synthesis.py --data DATASET --synthetic SYNTHETIC [--picture distributions.png]

Prints Frechet distance, MMD with its permutation test, Vendi scores and MS-SSIM, each beside what two sets of real
cases give, and how near the synthetic cases come to training cases, beside how near the held-out ones come. Features
are those of the segmentation network of hippocampus_segmentation, whose training saw every real case: for a comparison
of sets that favours no one, since it has no part in making either. Of the labels it prints how rough they are, and
their Dice with that network's own of the same image; that of the held-out cases is too high, it has seen them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from monai.metrics import DiceMetric
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    NormalizeIntensityd,
    Orientationd,
    ScaleIntensityRangePercentilesd,
    Spacingd,
    SpatialPadd,
)
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor

from voxscore.bundles import find_bundle
from voxscore.diffusion import memorisation_ratio
from voxscore.evaluation import (
    Population,
    distribution_sheet,
    frechet_distance,
    label_volumes,
    mmd_test,
    ms_ssim_diversity,
    segmentation_features,
    vendi_score,
)
from voxscore.evaluation.kernels import RBFKernel, median_distance
from voxscore.segmentation import Segmenter
from voxscore.training import datalist
from voxscore.transforms import LoadVolumed

LAYERS = ["encoder.1", "encoder.2", "encoder.3"]
ORDERS = (0.5, 1.0, 2.0, float("inf"))
KEYS = ["image", "label"]


def loaded(data: Path, size: list[int]) -> tuple[list[str], Tensor, Tensor]:
    """Names, images (n, 1, *size) and label maps of a data set, prepared as for training, on one grid."""
    prepare = Compose(
        [
            LoadVolumed("image"),
            LoadVolumed("label", label_map=True),
            Orientationd(KEYS, axcodes="RAS", labels=None),
            Spacingd(KEYS, pixdim=[1.0] * 3, mode=["bilinear", "nearest"]),
            ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0.0, 1.0, clip=True),
            NormalizeIntensityd("image"),
            SpatialPadd(KEYS, size, mode=["edge", "constant"]),
            CenterSpatialCropd(KEYS, size),
        ]
    )
    cases = datalist(data)
    items = [prepare({key: case[key] for key in KEYS}) for case in cases]
    images, labels = (torch.stack([item[key].as_tensor() for item in items]) for key in KEYS)
    return [case["name"] for case in cases], images.float(), labels.long()


def volumes(labels: Tensor, names: dict[int, str]) -> dict[str, list[float]]:
    """mL of each structure in each case."""
    rows = [label_volumes(label[0].numpy(), np.eye(4), names) for label in labels]
    return {name: [row[name] for row in rows] for name in names.values()}


def roughness(labels: np.ndarray) -> float:
    """Faces between structure and background / voxels of the structure^(2/3): 6 of a cube, more of a ragged one."""
    inside = np.pad(labels > 0, 1).astype(np.int8)
    faces = sum(np.count_nonzero(np.diff(inside, axis=axis)) for axis in range(3))
    return float(faces / np.count_nonzero(inside) ** (2 / 3))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--synthetic", type=Path, required=True)
    parser.add_argument("--bundle", default="hippocampus_synthesis")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    bundle = find_bundle(arguments.bundle)
    # Where the synthetic volumes end, so that nothing of them is padded.
    size = [int(n) for n in bundle.metadata["field_of_view_mm"]]
    names, images, labels = loaded(arguments.data, size)
    _, synthetic, synthetic_labels = loaded(arguments.synthetic, size)
    kept_out = torch.tensor([name in set(bundle.metadata["held_out_cases"]) for name in names])
    sets = {"training": images[~kept_out], "held out": images[kept_out], "real": images, "synthetic": synthetic}

    segmenter = Segmenter(find_bundle("hippocampus_segmentation"), torch.device("cpu"))
    features = {name: segmentation_features(segmenter.network, x.split(4), LAYERS).double() for name, x in sets.items()}
    center, scale = features["real"].mean(0), features["real"].std(0)
    features = {name: (x - center) / scale for name, x in features.items()}
    console, kernel = Console(width=160), RBFKernel(median_distance(features["real"]))

    table = Table("set", "against", "n, m", "Frechet", "MMD^2", "p", title="Distribution of features")
    n = min(len(features["held out"]), len(features["synthetic"]))
    for name in ("held out", "synthetic"):
        subset = features[name][:n]
        test = mmd_test(subset, features["training"], 999, Generator().manual_seed(0), kernel)
        distance = frechet_distance(subset, features["training"])
        sizes = f"{n}, {len(features['training'])}"
        table.add_row(name, "training", sizes, f"{distance:.2f}", f"{test.mmd:.4f}", f"{test.p_value:.3f}")
    if len(features["synthetic"]) > n:
        test = mmd_test(features["synthetic"], features["real"], 999, Generator().manual_seed(0), kernel)
        distance = frechet_distance(features["synthetic"], features["real"])
        sizes = f"{len(features['synthetic'])}, {len(features['real'])}"
        table.add_row("synthetic", "real", sizes, f"{distance:.2f}", f"{test.mmd:.4f}", f"{test.p_value:.3f}")
    console.print(table)

    n = min(len(features["real"]), len(features["synthetic"]))
    table = Table("set", "n", *(f"Vendi, q = {q}" for q in ORDERS), "MS-SSIM of pairs", title="Diversity")
    for name in ("real", "synthetic"):
        scores = [vendi_score(features[name][:n], q) for q in ORDERS]
        similarity = ms_ssim_diversity(sets[name][:n], (-2.0, 3.0), 200, Generator().manual_seed(0))
        table.add_row(name, str(n), *(f"{s:.2f}" for s in scores), f"{similarity.mean:.4f}")
    console.print(table)

    table = Table("set", "n", "nearest / second nearest, median", "below 1/3", "distance to nearest, 5 %, median")
    table.title = "Nearness to the training cases, voxels"
    threshold = 0.0
    for name in ("held out", "synthetic"):
        found = memorisation_ratio(sets[name], sets["training"])
        nearest = (
            torch.cdist(sets[name].flatten(1), sets["training"].flatten(1)).min(1).values / sets[name][0].numel() ** 0.5
        )
        low, median = (float(nearest.quantile(q)) for q in (0.05, 0.5))
        table.add_row(
            name, str(len(nearest)), f"{found.ratio.median():.3f}", f"{found.share:.3f}", f"{low:.3f}, {median:.3f}"
        )
        if name == "held out":
            threshold = low
        else:
            flagged = float((nearest < threshold).float().mean())
    console.print(table)
    print(f"nearer to a training case than 95 % of the held-out cases are: {flagged:.3f} of the synthetic ones")

    structures = {value: label.name for value, label in bundle.labels.items()}
    table = Table("set", "n", "roughness, mean", "Dice with the segmentation bundle", title="Labels")
    for name, of_set in {"held out": labels[kept_out], "synthetic": synthetic_labels}.items():
        with torch.inference_mode():
            found_labels = [segmenter.network(x).argmax(1, keepdim=True) for x in sets[name].split(4)]
        dice = DiceMetric(include_background=False, num_classes=len(structures) + 1)
        dice(torch.cat(found_labels), of_set)
        rough = np.mean([roughness(label[0].numpy()) for label in of_set])
        table.add_row(name, str(len(of_set)), f"{rough:.2f}", f"{dice.aggregate().item():.3f}")
    console.print(table)
    real_ml, synthetic_ml = volumes(labels, structures), volumes(synthetic_labels, structures)
    for name in structures.values():
        found = [f"{np.mean(ml[name]):.3f} +- {np.std(ml[name], ddof=1):.3f}" for ml in (real_ml, synthetic_ml)]
        print(f"{name}: real {found[0]} mL, synthetic {found[1]} mL (mean, standard deviation over cases)")
    if arguments.picture:
        pick = Generator().manual_seed(0)

        def some(x: Tensor) -> np.ndarray:
            return x.flatten()[torch.randint(x.numel(), (200_000,), generator=pick)].numpy()

        real, made = Population(some(images), real_ml), Population(some(synthetic), synthetic_ml)
        distribution_sheet(real, made, f"{bundle.name}: {len(images)} real, {len(synthetic)} synthetic").save(
            arguments.picture
        )


if __name__ == "__main__":
    main()
