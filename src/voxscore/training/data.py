"""Which cases there are, which fold a case belongs to, and what exactly was trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxscore.errors import UserError
from voxscore.volumes import VOLUME_SUFFIXES, base_name, read_volume, volume_suffix

__all__ = ["datalist", "fingerprint", "kfold", "split", "subject_volumes"]

Case = dict[str, str]


def datalist(dataset_dir: str | Path) -> list[Case]:
    """The labelled cases of a data set, sorted by name.

    Args:
        dataset_dir: a folder with `images/` and `labels/` that hold equal file names, or a Medical Segmentation
            Decathlon task with its `dataset.json`.

    Returns:
        One `{"image": path, "label": path, "name": base name}` a case.

    Raises:
        UserError: no such folder, neither layout, an image without its label, or no case at all.
    """
    root = Path(dataset_dir)
    if not root.is_dir():
        raise UserError(root, "is not a folder", "name the folder that holds images/ and labels/")
    if (root / "dataset.json").is_file():
        try:
            entries = json.loads((root / "dataset.json").read_text(encoding="utf-8"))["training"]
            pairs = [(root / e["image"], root / e["label"]) for e in entries]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(root / "dataset.json", "is not a Decathlon dataset.json", "restore it") from error
    elif (root / "images").is_dir() and (root / "labels").is_dir():
        images = sorted(p for p in (root / "images").iterdir() if volume_suffix(p))
        pairs = [(p, root / "labels" / p.name) for p in images]
    else:
        raise UserError(root, "has neither images/ and labels/ nor a dataset.json", "name a folder that has")
    for image, label in pairs:
        for file in (image, label):
            if not file.is_file():
                raise UserError(file, "is missing", f"complete the data set in {root}")
    if not pairs:
        raise UserError(root, "holds no labelled volume", f"put volumes ({', '.join(VOLUME_SUFFIXES)}) in images/")
    cases = [{"image": str(image), "label": str(label), "name": base_name(image)} for image, label in pairs]
    return sorted(cases, key=lambda case: case["name"])


def kfold(n: int, n_folds: int = 5, seed: int = 12345) -> list[list[int]]:
    """Validation indices of each fold; with the defaults, nnU-Net's split of n sorted cases.

    Equals scikit-learn's `KFold(n_folds, shuffle=True, random_state=seed)`.
    """
    order = np.random.RandomState(seed).permutation(n)
    return [sorted(int(i) for i in part) for part in np.array_split(order, n_folds)]


def split(cases: Sequence[Case], fold: int | None, n_folds: int = 5) -> tuple[list[Case], list[Case]]:
    """Training and validation cases.

    Args:
        cases: sorted, as `datalist` returns them.
        fold: 0 .. n_folds - 1; None trains on every case and validates on the first of them, which then says
            that the run is alive and nothing about quality.
        n_folds: number of folds.

    Raises:
        UserError: a fold outside that range, or fewer cases than folds.
    """
    if fold is None:
        return list(cases), list(cases[: max(1, len(cases) // 20)])
    if not 0 <= fold < n_folds:
        raise UserError(f"fold {fold}", "does not exist", f"choose 0 to {n_folds - 1}, or none for all cases")
    if len(cases) < n_folds:
        raise UserError(f"fold {fold}", f"needs {n_folds} cases at least, found {len(cases)}", "add cases or use all")
    held_out = set(kfold(len(cases), n_folds)[fold])
    train = [case for i, case in enumerate(cases) if i not in held_out]
    return train, [case for i, case in enumerate(cases) if i in held_out]


def subject_volumes(
    dataset_dir: str | Path, patterns: Sequence[str], held_out: Sequence[str]
) -> tuple[list[Case], list[Case]]:
    """Volumes without labels, of which each folder holds those of one subject; some subjects are kept out.

    Args:
        dataset_dir: the folder that the patterns begin in.
        patterns: of the volumes, for instance `brain/*/T*.nii.gz`.
        held_out: names of the subjects' folders that are not trained on.

    Returns:
        Training and validation volumes, one `{"image": path, "name": subject/base name}` each, sorted by path.

    Raises:
        UserError: no such folder, or no volume to train on or to validate on.
    """
    root = Path(dataset_dir)
    if not root.is_dir():
        raise UserError(root, "is not a folder", f"name the folder that holds {', '.join(patterns)}")
    paths = sorted({p for pattern in patterns for p in root.glob(pattern) if volume_suffix(p)})
    cases = [({"image": str(p), "name": f"{p.parent.name}/{base_name(p)}"}, p.parent.name) for p in paths]
    train = [case for case, subject in cases if subject not in held_out]
    validation = [case for case, subject in cases if subject in held_out]
    if not train or not validation:
        fault = f"holds {len(train)} volumes to train on and {len(validation)} of {', '.join(held_out)}"
        raise UserError(root, fault, f"put volumes in {', '.join(patterns)}")
    return train, validation


def fingerprint(cases: Sequence[Case]) -> dict[str, Any]:
    """What was trained on, in a form that can be compared: content hash, shapes and spacings, never names.

    Returns:
        `cases`, `sha256` over all files in order, and the least, median and greatest shape (voxels) and
        spacing (mm).
    """
    digest = hashlib.sha256()
    shapes, spacings = [], []
    for case in cases:
        for key in ("image", "label"):
            if key not in case:
                continue
            digest.update(Path(case[key]).read_bytes())
        volume = read_volume(case["image"])
        shapes.append(volume.array.shape)
        spacings.append(volume.spacing)

    def spread(values: list[Any]) -> list[list[float]]:
        return np.quantile(np.asarray(values, float), [0, 0.5, 1], axis=0).round(4).tolist()

    return {
        "cases": len(cases),
        "sha256": digest.hexdigest(),
        "shape_min_median_max": spread(shapes),
        "spacing_mm_min_median_max": spread(spacings),
    }
