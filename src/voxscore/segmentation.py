"""Segmenting a volume with a bundle: the same steps as `monai.bundle run`, without an engine around them.

    volume -> preprocessing -> network in its inferer -> softmax and inverse transforms -> argmax

Steps, network and weights come from the bundle's `configs/inference.json`. As in MONAI Label, its `SaveImaged` is
left to the host, because voxscore writes in the input's geometry and format. Probabilities are resampled back to the
input's grid before the argmax, not labels.

A bundle with the id `sampling` also has a posterior. One evaluation says how likely each class is at a voxel; samples
say what one evaluation cannot, how voxels go together, and so how sure the volume of a structure is:

    volume -> preprocessing -> N sampling runs, inverse transforms of each -> argmax of each

A sample is a label map that hangs together, where the argmax of one evaluation decides every voxel for itself.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Activationsd, AsDiscreted, Compose, SaveImaged

from voxscore.bundles import Bundle
from voxscore.errors import UserError
from voxscore.evaluation import label_volumes
from voxscore.inference import inference_config, loaded_network
from voxscore.inferers import FittedWindowInferer, SamplerInferer, volume_seed
from voxscore.posterior import Posterior, voxel_entropy
from voxscore.volumes import Volume, sha256, write_dicom_seg, write_volume, written_whole

__all__ = ["Outputs", "Result", "Segmentation", "Segmenter", "content_sha256", "resolve_device", "segment_volume"]

BATCH = 4  # samples that are drawn together; a seed means the same sample at any number


def resolve_device(name: str) -> torch.device:
    """The device of `auto`, `cpu`, `cuda` or `cuda:n`.

    Raises:
        UserError: not such a name, or that device is not on this machine.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device {name}", "is not known", "choose auto, cpu, cuda or cuda:n") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name}", "is not supported", "choose auto, cpu, cuda or cuda:n")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(f"device {name}", f"is not there ({found} CUDA devices found)", "choose --device cpu")
    return device


@dataclass(frozen=True)
class Segmentation:
    """What a bundle says about one volume, in that volume's grid.

    Attributes:
        labels: (X, Y, Z) uint8.
        probabilities: (K, X, Y, Z) float32, background first, summing to one.
        seconds: preprocessing, network and postprocessing.
        posterior: the samples, if there are any.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    seconds: float
    posterior: Posterior | None = None


class Segmenter:
    """A segmentation bundle, loaded once and called per volume.

    Args:
        bundle: a bundle with an `inference.json`.
        device: where the network runs.
        side: "left" or "right", for bundles of a paired structure that declare a side; None keeps the bundle's.

    Raises:
        UserError: weights missing, corrupt or of another network; metadata without labels; a side the bundle does
            not know.
    """

    def __init__(self, bundle: Bundle, device: torch.device, side: str | None = None) -> None:
        self.bundle, self.device, self.labels = bundle, device, bundle.labels
        parser = inference_config(bundle, device)
        if side is not None:
            if "side" not in parser:
                raise UserError(f"bundle {bundle.name}", "has no sides", "leave --side away")
            if side not in ("left", "right"):
                raise UserError(f"side {side}", "is not known", "choose left or right")
            parser["side"] = side
        self.side = parser.get("side")
        self.network = loaded_network(bundle, parser)
        self.inferer = parser.get_parsed_content("inferer")
        self.prepare = parser.get_parsed_content("preprocessing")
        self.sampling: SamplerInferer | None = parser.get_parsed_content("sampling") if "sampling" in parser else None
        finish = parser.get_parsed_content("postprocessing")
        self.finish = Compose([t for t in finish.transforms if not isinstance(t, (AsDiscreted, SaveImaged))])
        # A sample is a probability vector already.
        self.finish_sample = Compose([t for t in self.finish.transforms if not isinstance(t, Activationsd)])

    def __call__(self, volume: Volume) -> Segmentation:
        """Segment one volume.

        Raises:
            UserError: the GPU's memory does not suffice; the network returned NaN or infinity.
        """
        start = time.perf_counter()
        probabilities = self._evaluated(volume, self.prepare({"image": volume}))
        return Segmentation(probabilities.argmax(0).astype(np.uint8), probabilities, time.perf_counter() - start)

    def _evaluated(self, volume: Volume, item: dict[str, Any]) -> np.ndarray:
        """Class probabilities of one evaluation in the volume's grid, (K, X, Y, Z)."""
        with torch.inference_mode():
            image = item["image"].as_tensor()[None].to(self.device)
            try:
                pred = MetaTensor(self.inferer(image, self.network)[0].cpu())
            except torch.OutOfMemoryError as error:
                raise UserError(volume.path, f"does not fit the memory of {self.device}", "use --device cpu") from error
        probabilities: np.ndarray = self.finish({**item, "pred": pred})["pred"].as_tensor().numpy()
        if not np.isfinite(probabilities).all():
            raise UserError(
                volume.path,
                "cannot be segmented: the network returned NaN or infinity",
                "check its intensities, or use --device cpu if this was another device",
            )
        return probabilities

    def sample(
        self, volume: Volume, n: int, seed: int = 0, progress: Callable[[], object] | None = None
    ) -> Segmentation:
        """Segment one volume, and draw samples of the posterior beside it.

        Labels, probabilities and entropy are those of one evaluation, with any number of samples: it knows each voxel's
        own posterior, which the share of samples that give a class only approaches as 1 / sqrt(n).

        Args:
            volume: no larger than the bundle's window, because samples of tiles would not fit each other.
            n: number of samples.
            seed: sample k, counted from 0, has the seed `volume_seed(seed, k)`.
            progress: called after each sample.

        Raises:
            UserError: as `check_sampling`; the volume is larger than the window; the GPU's memory does not suffice;
                the network returned NaN or infinity.
        """
        sampling = self.check_sampling(n, seed)
        start = time.perf_counter()
        item: dict[str, Any] = self.prepare({"image": volume})
        self._check_window(volume, tuple(item["image"].shape[1:]))
        probabilities = self._evaluated(volume, item)
        samples = np.empty((n, *volume.array.shape), np.uint8)
        calls: list[None] = []
        with self.network.register_forward_pre_hook(lambda *_: calls.append(None)):
            for k, p in enumerate(self._draw(sampling, volume, item, n, seed)):
                samples[k] = p.argmax(0)
                if progress is not None:
                    progress()
        posterior = Posterior(
            samples,
            voxel_entropy(probabilities),
            seed,
            evaluations=len(calls) // math.ceil(n / BATCH),
            sampler=type(sampling.sampler).__name__,
        )
        labels = probabilities.argmax(0).astype(np.uint8)
        return Segmentation(labels, probabilities, time.perf_counter() - start, posterior)

    def check_sampling(self, n: int, seed: int) -> SamplerInferer:
        """What draws the samples, if n of them can be drawn.

        Raises:
            UserError: the bundle has no posterior, or n or the seed cannot be used.
        """
        if self.sampling is None:
            raise UserError(
                f"bundle {self.bundle.name}",
                "has no posterior to sample",
                "choose one that has, such as hippocampus_posterior, or leave --samples away",
            )
        if n < 1:
            raise UserError(f"samples {n}", "asks for no sample", "give 1 or more; 39 give intervals of 95 %")
        if not 0 <= seed < 2**63:
            raise UserError(f"seed {seed}", "is out of range", "give a number of 0 or more, below 2^63")
        return self.sampling

    def _check_window(self, volume: Volume, size: tuple[int, ...]) -> None:
        window = self.inferer.roi_size if isinstance(self.inferer, FittedWindowInferer) else size
        if any(n > w for n, w in zip(size, window, strict=True)):
            raise UserError(
                volume.path,
                f"is {' x '.join(map(str, size))} voxels to the network, and a sample covers at most "
                f"{' x '.join(map(str, window))}: samples of tiles would not fit each other",
                "crop it around the structure, or leave --samples away",
            )

    def _draw(
        self, sampling: SamplerInferer, volume: Volume, item: dict[str, Any], n: int, seed: int
    ) -> Iterator[np.ndarray]:
        """The ends of n runs as class probabilities in the volume's grid, (K, X, Y, Z) each."""
        image = item["image"].as_tensor()[None].to(self.device)
        for first in range(0, n, BATCH):
            seeds = [volume_seed(seed, k) for k in range(first, min(first + BATCH, n))]
            try:
                ends = sampling(image.expand(len(seeds), *image.shape[1:]), self.network, seeds=seeds).cpu()
            except torch.OutOfMemoryError as error:
                raise UserError(volume.path, f"does not fit the memory of {self.device}", "use --device cpu") from error
            except FloatingPointError as error:
                raise UserError(volume.path, f"sampling failed: {error}", "try another --seed") from error
            for end in ends:
                yield self.finish_sample({**item, "pred": MetaTensor(end)})["pred"].as_tensor().numpy()

    def manifest(self) -> dict[str, Any]:
        """What a result depends on besides its input: bundle, weights, side, device."""
        return {
            "bundle": {
                "name": self.bundle.name,
                "version": self.bundle.version,
                "weights_sha256": self.bundle.metadata["weights_sha256"],
            },
            "side": self.side,
            "device": str(self.device),
        }

    def warnings_for(self, volume: Volume) -> list[str]:
        """What the user should know before trusting a result on this volume."""
        trained = self.bundle.metadata.get("field_of_view_mm")
        extent = np.sort([n * s for n, s in zip(volume.array.shape, volume.spacing, strict=True)])
        if trained and (extent > 1.3 * np.sort(trained)).any():
            return [
                f"covers {' x '.join(f'{e:.0f}' for e in extent)} mm, but {self.bundle.name} was trained on crops of "
                f"about {' x '.join(f'{t:.0f}' for t in sorted(trained))} mm: labels outside such a crop mean nothing"
            ]
        return []


@dataclass(frozen=True)
class Outputs:
    """Where one volume's results go; None is not written.

    Attributes:
        labels: label map, .nii, .nii.gz, .nrrd or .mha.
        dicom_seg: DICOM SEG, for DICOM input.
        probabilities: (X, Y, Z, K) float32, background first.
        entropy: (X, Y, Z) float32, nats; beside samples alone.
    """

    labels: Path | None = None
    dicom_seg: Path | None = None
    probabilities: Path | None = None
    entropy: Path | None = None

    def files(self) -> list[Path]:
        """The paths that are written."""
        return [p for p in (self.labels, self.dicom_seg, self.probabilities, self.entropy) if p is not None]


@dataclass(frozen=True)
class Result:
    """One volume, done: what was read, what was found, and the manifest's entry."""

    volume: Volume
    segmentation: Segmentation
    entry: dict[str, Any]


def segment_volume(
    segmenter: Segmenter,
    volume: Volume,
    outputs: Outputs,
    overwrite: bool = False,
    samples: int | None = None,
    seed: int = 0,
    progress: Callable[[], object] | None = None,
) -> Result:
    """Segment one volume and write what `outputs` names, all of it or nothing.

    Args:
        segmenter: the bundle.
        volume: what to segment.
        outputs: where the results go.
        overwrite: whether existing outputs may be replaced.
        samples: draw so many samples of the posterior beside the one evaluation; None draws none.
        seed: of the samples.
        progress: called after each sample.

    Returns:
        The result, with the manifest entry: input, outputs with SHA-256, volumes in mL, seconds, warnings; of samples
        also the volumes' intervals with their level, and how the samples were drawn.

    Raises:
        UserError: an output exists, or cannot be written; as `Segmenter` and its `sample`.
        ValueError: an entropy is asked for without samples.
    """
    if outputs.entropy is not None and samples is None:
        raise ValueError("there is no entropy without samples")
    bundle, labels = segmenter.bundle, segmenter.labels
    with ExitStack() as stack:
        # First, so that an output that cannot be written costs no segmentation. Every file is complete before
        # the first gets its name.
        partial = {p: stack.enter_context(written_whole(p, overwrite)) for p in outputs.files()}
        segmentation = segmenter(volume) if samples is None else segmenter.sample(volume, samples, seed, progress)
        posterior = segmentation.posterior
        if outputs.labels:
            write_volume(segmentation.labels, volume, partial[outputs.labels], labels, overwrite=True)
        if outputs.probabilities:
            channels_last = np.moveaxis(segmentation.probabilities, 0, -1)
            write_volume(channels_last, volume, partial[outputs.probabilities], overwrite=True)
        if outputs.entropy and posterior:
            write_volume(posterior.entropy, volume, partial[outputs.entropy], overwrite=True)
        if outputs.dicom_seg:
            write_dicom_seg(
                segmentation.labels,
                volume,
                partial[outputs.dicom_seg],
                labels,
                overwrite=True,
                algorithm_name=f"voxscore {bundle.name}"[:64],
                algorithm_version=bundle.version[:64],
            )
    names = {value: label.name for value, label in labels.items()}
    volumes_ml = label_volumes(segmentation.labels, volume.affine, names)
    entry: dict[str, Any] = {
        "input": str(volume.path),
        "input_sha256": content_sha256(volume),
        "outputs": [{"path": str(p), "sha256": sha256(p)} for p in outputs.files()],
        "volumes_ml": {name: round(ml, 6) for name, ml in volumes_ml.items()},
        "seconds": round(segmentation.seconds, 3),
        "warnings": segmenter.warnings_for(volume),
    }
    if posterior is not None:
        entry["volume_intervals_ml"] = {
            name: {
                "median": round(interval.median_ml, 6),
                "low": round(interval.low_ml, 6),
                "high": round(interval.high_ml, 6),
                "level": round(posterior.level, 6),
            }
            for name, interval in posterior.volume_intervals(volume.affine, names).items()
        }
        entry["sampling"] = {
            "samples": len(posterior.samples),
            "seed": posterior.seed,
            "evaluations": posterior.evaluations,
            "sampler": posterior.sampler,
        }
    return Result(volume, segmentation, entry)


def content_sha256(volume: Volume) -> str:
    """SHA-256 of a volume's file; of a DICOM series, of its instances' digests in slice order."""
    if volume.format != "dicom":
        return sha256(volume.path)
    return hashlib.sha256("".join(sha256(p) for p in volume.header).encode()).hexdigest()
