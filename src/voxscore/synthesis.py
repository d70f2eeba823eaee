"""Synthesizing labelled volumes with a bundle, as a data set that training tools load as it is.

    noise -> sampler of the bundle -> image and label         or, given a mask,  noise -> image of that mask

    DIR/imagesTr/synthetic_0000.nii.gz      image, RAS, 1 mm, standardised intensities
    DIR/labelsTr/synthetic_0000.nii.gz      its label map
    DIR/dicom/synthetic_0000/               the image as a DICOM series, and synthetic_0000_seg.dcm, if asked for
    DIR/dataset.json                        the list of pairs, as the Medical Segmentation Decathlon writes it
    DIR/manifest.json                       how each volume came about
    DIR/contact_sheet.png                   what to look at first

Volume k of a run depends on the bundle, the settings, the seed and k alone, so that any volume can be made again
alone and a run that was killed goes on where it stopped. The headers are made here; nothing of a source is in them.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.networks.utils import one_hot
from monai.transforms import Compose, SaveImaged
from torch import Tensor
from torch.nn import functional

from voxscore.bundles import Bundle
from voxscore.errors import UserError
from voxscore.evaluation import contact_sheet, label_volumes
from voxscore.inference import inference_config, loaded_network
from voxscore.inferers import volume_seed
from voxscore.volumes import (
    Volume,
    read_label_map,
    read_volume,
    sha256,
    write_dicom_mr,
    write_dicom_seg,
    write_volume,
    written_whole,
)

__all__ = ["SAMPLERS", "Synthesizer", "Synthetic", "SyntheticSet"]

SAMPLERS = {
    "ddim": {"_target_": "voxscore.diffusion.Euler"},
    "heun": {"_target_": "voxscore.diffusion.Heun"},
    "dpmpp-2m": {"_target_": "voxscore.diffusion.DPMSolver", "order": 2},
    "dpmpp-3m": {"_target_": "voxscore.diffusion.DPMSolver", "order": 3},
    "unipc": {"_target_": "voxscore.diffusion.UniPC", "order": 2},
    "ancestral": {"_target_": "voxscore.diffusion.Ancestral"},
}
"""What `--sampler` names, as a bundle's configuration writes it."""

ON_SHEET = 48


@dataclass(frozen=True)
class Synthetic:
    """One labelled volume that shows nobody.

    Attributes:
        image: (X, Y, Z) float32, mean 0 and standard deviation 1 over a training crop.
        labels: (X, Y, Z) uint8.
        affine: (4, 4), voxel index to RAS mm.
        evaluations: of the network (NFE).
        seconds: of sampling.
    """

    image: np.ndarray
    labels: np.ndarray
    affine: np.ndarray
    evaluations: int
    seconds: float


class Synthesizer:
    """A synthesis bundle, loaded once and called per volume.

    Its `configs/inference.json` has the ids `inferer`, which samples a joint state, `conditional`, which samples the
    image of a one-hot label, `mask_preprocessing`, which makes the label map of a file, and `size`, of both.

    Args:
        bundle: a bundle that synthesizes.
        device: where the network runs.
        steps: of the sampler; the bundle's own if None.
        sampler: a name of `SAMPLERS`; the bundle's own if None.

    Raises:
        UserError: the bundle does not synthesize; weights missing, corrupt or of another network; an unknown sampler,
            or too few steps.
    """

    def __init__(
        self, bundle: Bundle, device: torch.device, steps: int | None = None, sampler: str | None = None
    ) -> None:
        self.bundle, self.device, self.labels = bundle, device, bundle.labels
        parser = inference_config(bundle, device)
        if not {"inferer", "conditional", "mask_preprocessing", "size", "steps", "sampler"} <= parser.get().keys():
            raise UserError(f"bundle {bundle.name}", "does not synthesize", "choose one that does")
        if steps is not None and steps < 2:
            raise UserError(f"steps {steps}", "are too few", "give 2 or more")
        if sampler is not None and sampler not in SAMPLERS:
            raise UserError(f"sampler {sampler}", "is not known", f"choose one of: {', '.join(SAMPLERS)}")
        if steps is not None:
            parser["steps"] = steps
        if sampler is not None:
            parser["sampler"] = SAMPLERS[sampler]
        self.network = loaded_network(bundle, parser)
        self.steps: int = parser.get_parsed_content("steps")
        self.sampler: str = parser["sampler#_target_"].rpartition(".")[2]
        self.size: list[int] = parser.get_parsed_content("size")
        self.inferer, self.conditional, self.prepare, self.prepare_mask = (
            parser.get_parsed_content(name)
            for name in ("inferer", "conditional", "preprocessing", "mask_preprocessing")
        )
        finish = parser.get_parsed_content("postprocessing")
        self.finish = Compose([t for t in finish.transforms if not isinstance(t, SaveImaged)])

    def __call__(self, seed: int, mask: Volume | None = None) -> Synthetic:
        """One volume, the same for the same seed.

        Args:
            seed: of its noise.
            mask: the label map that the image shall show, or None for an image and a label of its own.

        Raises:
            UserError: the mask holds no structure, or labels that the bundle does not know, or is too large.
            FloatingPointError: the network returned NaN or infinity; the message says at which noise level.
        """
        return self._joint(seed) if mask is None else self._of_mask(seed, mask)

    def _joint(self, seed: int) -> Synthetic:
        item = self.prepare({"image": ""})
        item["pred"], evaluations, seconds = self._sample(self.inferer, item["image"], seed)
        item = self.finish(item)
        image = item["image"].as_tensor().numpy()[0]
        labels = item["label"].as_tensor().numpy()[0].astype(np.uint8)
        return Synthetic(image, labels, item["image"].affine.numpy(), evaluations, seconds)

    def _of_mask(self, seed: int, mask: Volume) -> Synthetic:
        label, pads = self.prepared(mask)
        whole = functional.pad(label.as_tensor(), pads)
        known = MetaTensor(one_hot(whole[None], len(self.labels) + 1)[0], affine=label.affine)
        sample, evaluations, seconds = self._sample(self.conditional, known, seed)
        # What was added comes off again; what was cut away stays away.
        undo = [-max(n, 0) for n in pads]
        image, labels = (functional.pad(v, undo).numpy()[0] for v in (sample.as_tensor(), whole))
        affine = label.affine.numpy().astype(np.float64)
        affine[:3, 3] += affine[:3, :3] @ [max(-n, 0) for n in pads[-2::-2]]
        return Synthetic(image, labels.astype(np.uint8), affine, evaluations, seconds)

    def prepared(self, mask: Volume) -> tuple[MetaTensor, list[int]]:
        """A mask's label map (1, X, Y, Z), RAS at 1 mm, and the padding that brings it to the sampler's size.

        Raises:
            UserError: no structure in it, unknown labels, or a structure larger than the sampler's size.
        """
        found = {int(v) for v in np.unique(mask.array)} - {0}
        if not found:
            raise UserError(mask.path, "is empty: no voxel has a label", "give a mask of the structure")
        if unknown := sorted(found - self.labels.keys()):
            known = ", ".join(f"{value} {label.name}" for value, label in self.labels.items())
            raise UserError(mask.path, f"holds labels {unknown} that {self.bundle.name} does not know", f"use {known}")
        label = self.prepare_mask({"label": mask})["label"]
        if (pads := _to_size(label[0].as_tensor(), self.size)) is None:
            size = " x ".join(map(str, self.size))
            raise UserError(mask.path, f"holds a structure of more than {size} mm", "give the mask of one structure")
        return label, pads

    def _sample(self, inferer: Any, inputs: MetaTensor, seed: int) -> tuple[MetaTensor, int, float]:
        calls: list[None] = []
        hook = self.network.register_forward_hook(lambda *_: calls.append(None))
        start = time.perf_counter()
        try:
            with torch.inference_mode():
                known: Tensor = inputs.as_tensor()[None].to(self.device)
                sample = inferer(known, self.network, seeds=[seed])[0].cpu()
        except torch.OutOfMemoryError as error:
            raise UserError("a volume", f"does not fit the memory of {self.device}", "use --device cpu") from error
        finally:
            hook.remove()
        return MetaTensor(sample, affine=inputs.affine), len(calls), time.perf_counter() - start


def _to_size(label: Tensor, size: Sequence[int]) -> list[int] | None:
    """What to add (or, negative, cut) before and after each axis, last axis first, to bring a label to a size.

    A grid that is too small gets its margins on both sides; one that is too large is cut around its structure, None
    if that does not fit.
    """
    pads = []
    for axis, (n, wanted) in enumerate(zip(label.shape, size, strict=True)):
        found = (label > 0).nonzero()[:, axis]
        low, high = int(found.min()), int(found.max()) + 1
        if high - low > wanted:
            return None
        missing = wanted - n
        before = missing // 2 if missing >= 0 else -min(max((low + high - wanted) // 2, 0), n - wanted)
        pads.append((before, missing - before))
    return [n for pair in reversed(pads) for n in pair]


class SyntheticSet:
    """A folder of synthetic volumes: begun, gone on with, and completed by `dataset.json` and the contact sheet.

    Args:
        synthesizer: makes the volumes.
        folder: of the set; made if missing.
        seed: of the run.
        masks: label maps that the volumes take turns to show; none for labels of their own.
        dicom: also write each image as a DICOM series, with its label as DICOM SEG.

    Raises:
        UserError: the folder holds other files, or volumes of other settings; a mask that cannot be used.
    """

    def __init__(
        self,
        synthesizer: Synthesizer,
        folder: Path,
        seed: int = 0,
        masks: Sequence[Path] = (),
        dicom: bool = False,
    ) -> None:
        self.synthesizer, self.folder, self.seed, self.dicom = synthesizer, folder, seed, dicom
        self.masks = [read_label_map(path) for path in masks]
        for mask in self.masks:
            synthesizer.prepared(mask)  # refused now rather than half-way
        bundle = synthesizer.bundle
        self.settings = {
            "bundle": {
                "name": bundle.name,
                "version": bundle.version,
                "weights_sha256": bundle.metadata["weights_sha256"],
            },
            "sampler": synthesizer.sampler,
            "steps": synthesizer.steps,
            "seed": seed,
            "masks_sha256": [sha256(mask.path) for mask in self.masks],
            "dicom": dicom,
        }
        self.entries: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, dict[str, Any]] = {}
        self.withheld: dict[str, dict[str, Any]] = {}
        self._resume()

    def _resume(self) -> None:
        manifest = self.folder / "manifest.json"
        if manifest.is_file():
            try:
                content = json.loads(manifest.read_text(encoding="utf-8"))
                before, entries, withheld = content["settings"], content["volumes"], content.get("withheld", [])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(manifest, "is not a manifest of synthesis", "choose an empty folder") from error
            if before != self.settings:
                changed = [key for key in self.settings if before.get(key) != self.settings[key]]
                raise UserError(
                    self.folder, f"holds volumes of another {' and '.join(changed)}", "choose an empty folder"
                )
            self.entries = {entry["name"]: entry for entry in entries if self._is_there(entry)}
            self.withheld = {entry["name"]: entry for entry in withheld}
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UserError(self.folder, "is not empty and not a synthesis begun before", "choose an empty folder")

    def _is_there(self, entry: dict[str, Any]) -> bool:
        files = {key: self.folder / entry[key]["path"] for key in ("image", "label")}
        return all(path.is_file() and sha256(path) == entry[key]["sha256"] for key, path in files.items())

    def name(self, k: int) -> str:
        """Of volume k, counted from 0."""
        return f"synthetic_{k:04d}"

    def missing(self, number: int) -> list[int]:
        """Which of the first `number` volumes are not there yet, and not withheld."""
        return [k for k in range(number) if self.name(k) not in self.entries.keys() | self.withheld.keys()]

    def make(self, k: int) -> None:
        """Make volume k, or note why it cannot be made; the manifest is up to date afterwards.

        Raises:
            UserError: a file cannot be written; nothing of this volume is there.
        """
        name, seed = self.name(k), volume_seed(self.seed, k)
        self.failures.pop(name, None)
        mask = self.masks[k % len(self.masks)] if self.masks else None
        try:
            made = self.synthesizer(seed, mask)
        except FloatingPointError as error:
            self.failures[name] = {"name": name, "seed": seed, "error": str(error)}
        else:
            self.entries[name] = {"name": name, "seed": seed, **self._write(k, made)}
        self._write_json("manifest.json", self.manifest())

    def withhold(self, names: Sequence[str], reason: str) -> None:
        """Take volumes out of the set, so that they are neither released nor made again; `finish` it anew.

        Args:
            names: of volumes that are there.
            reason: for the manifest.
        """
        if names:
            for listed in ("dataset.json", "contact_sheet.png"):
                (self.folder / listed).unlink(missing_ok=True)
        for name in names:
            entry = self.entries.pop(name)
            self.withheld[name] = {"name": name, "seed": entry["seed"], "reason": reason}
            # The manifest first: what a kill leaves behind is a file that it does not list.
            self._write_json("manifest.json", self.manifest())
            for key in ("image", "label"):
                (self.folder / entry[key]["path"]).unlink()
            shutil.rmtree(self.folder / "dicom" / name, ignore_errors=True)
            (self.folder / "dicom" / f"{name}_seg.dcm").unlink(missing_ok=True)

    def _write(self, k: int, made: Synthetic) -> dict[str, Any]:
        """The files of volume k, and its entry in the manifest."""
        name = self.name(k)
        labels = self.synthesizer.labels
        grid = Volume(made.image, made.affine, Path(name), name, "nifti", None)
        files = {"image": Path("imagesTr") / f"{name}.nii.gz", "label": Path("labelsTr") / f"{name}.nii.gz"}
        with ExitStack() as stack:
            partial = {key: stack.enter_context(written_whole(self.folder / f, True)) for key, f in files.items()}
            write_volume(made.image, grid, partial["image"], overwrite=True)
            write_volume(made.labels, grid, partial["label"], labels, overwrite=True)
            if self.dicom:
                self._write_dicom(k, made)
        names = {value: label.name for value, label in labels.items()}
        return {
            **{key: {"path": str(f), "sha256": sha256(self.folder / f)} for key, f in files.items()},
            "evaluations": made.evaluations,
            "seconds": round(made.seconds, 3),
            "volumes_ml": {n: round(v, 6) for n, v in label_volumes(made.labels, made.affine, names).items()},
        }

    def _write_dicom(self, k: int, made: Synthetic) -> None:
        bundle, name = self.synthesizer.bundle, self.name(k)
        folder = self.folder / "dicom" / name
        write_dicom_mr(
            made.image,
            made.affine,
            folder,
            f"{self.settings} {name}",
            bundle.name,
            overwrite=True,
            number=k,
            software_version=f"{bundle.name} {bundle.version}",
        )
        write_dicom_seg(
            made.labels,
            read_volume(folder),
            self.folder / "dicom" / f"{name}_seg.dcm",
            self.synthesizer.labels,
            overwrite=True,
            algorithm_name=f"voxscore {bundle.name}"[:64],
            algorithm_version=bundle.version[:64],
        )

    def manifest(self) -> dict[str, Any]:
        """Settings, and what is there."""
        return {
            "synthetic": True,
            "settings": self.settings,
            "device": str(self.synthesizer.device),
            "volumes": sorted(self.entries.values(), key=lambda entry: entry["name"]),
            "failures": sorted(self.failures.values(), key=lambda entry: entry["name"]),
            "withheld": sorted(self.withheld.values(), key=lambda entry: entry["name"]),
        }

    def finish(self) -> None:
        """Write `dataset.json` and the contact sheet of all volumes that are there."""
        entries = self.manifest()["volumes"]
        bundle, labels = self.synthesizer.bundle, self.synthesizer.labels
        dataset = {
            "name": f"{bundle.name}, synthetic",
            "description": f"Synthetic volumes: no patient was imaged. {bundle.metadata['task']}.",
            "reference": f"voxscore, bundle {bundle.name} {bundle.version}",
            "licence": "see docs/data_license.txt of the bundle",
            "release": bundle.version,
            "tensorImageSize": "3D",
            "modality": {"0": "MRI"},
            "labels": {"0": "background", **{str(value): label.name for value, label in labels.items()}},
            "numTraining": len(entries),
            "numTest": 0,
            "training": [{key: f"./{entry[key]['path']}" for key in ("image", "label")} for entry in entries],
            "test": [],
        }
        self._write_json("dataset.json", dataset)
        items = []
        for entry in entries[:ON_SHEET]:
            image, label = (
                read_volume(self.folder / entry["image"]["path"]),
                read_label_map(self.folder / entry["label"]["path"]),
            )
            items.append((entry["name"], image.array, label.array.astype(np.uint8), image.affine))
        sheet = contact_sheet(
            items,
            {value: label.color for value, label in labels.items()},
            {value: label.name for value, label in labels.items()},
            title=f"{bundle.name}: {len(items)} of {len(entries)} synthetic volumes",
        )
        with written_whole(self.folder / "contact_sheet.png", True) as partial:
            sheet.save(partial, format="PNG")

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        with written_whole(self.folder / name, True) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
