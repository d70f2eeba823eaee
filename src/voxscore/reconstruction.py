"""Reconstructing a volume from what a scanner measured, with a bundle that knows such volumes.

    measurement -> operator A, y, noise -> N samples of p(x | A x + noise = y) -> their mean and standard deviation

    DIR/<name>_mean.nii.gz      posterior mean, on the grid of the volume that was measured
    DIR/<name>_sd.nii.gz        standard deviation of the samples, from two on
    DIR/<name>_mean/            the mean as a DICOM series of the study, for DICOM input
    DIR/<name>_report.html      what was measured, what was found, how sure it is, if asked for

A reconstruction depends on the file, the settings and the seed alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.inferers import Inferer
from PIL.Image import Image
from torch import Tensor

from voxscore.bundles import Bundle
from voxscore.diffusion import DPS, Denoiser
from voxscore.errors import UserError
from voxscore.evaluation import reconstruction_report, reconstruction_sheet, score_volume
from voxscore.inference import inference_config, loaded_network
from voxscore.inferers import ReconstructionInferer, sample_moments
from voxscore.measured import Measurement, Problem, Turned
from voxscore.measurement import LinearOperator
from voxscore.memory import check_memory, evaluation_bytes
from voxscore.volumes import Volume, sha256, write_dicom_derived, write_volume, written_whole

__all__ = [
    "METHODS",
    "Outputs",
    "Reconstruction",
    "Reconstructor",
    "Result",
    "dps",
    "reconstruct_measurement",
    "result_sheet",
]

METHODS = {
    "decomposed": {"_target_": "voxscore.diffusion.Decomposed", "_mode_": "callable"},
    "projection": {"_target_": "voxscore.diffusion.Projection", "_mode_": "callable"},
    "pigdm": {"_target_": "voxscore.diffusion.PiGDM", "_mode_": "callable"},
    "dps": {"_target_": "voxscore.reconstruction.dps", "_mode_": "callable"},
}
"""What `--method` names, as a bundle's configuration writes it."""

LEAST_TILE = 32  # below, a window is mostly margin
# How many copies of the volume and of the measurement a run holds: iterates and right-hand sides of the solvers.
VOLUME_COPIES, MEASUREMENT_COPIES = 16, 8
_SAME_GRID_MM = 1e-3


def dps(denoiser: Denoiser, operator: LinearOperator, y: Tensor, noise_std: float) -> DPS:
    """Diffusion posterior sampling as a method: a sampler, which knows no noise of the measurement."""
    return DPS(operator, y)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What a measurement says of a volume, on the grid of the file.

    Attributes:
        mean: (X, Y, Z) float32, in the units of the measurement.
        sd: (X, Y, Z) float32, standard deviation of the samples; None of a single sample.
        plain: (X, Y, Z) float32, the inverse without a prior.
        affine: (4, 4) float64, voxel index to RAS+ mm.
        noise_std: of the measurement.
        samples: how many.
        evaluations: of the network for each sample (NFE); one in windows counts once.
        seconds: of preparation and sampling.
    """

    mean: np.ndarray
    sd: np.ndarray | None
    plain: np.ndarray
    affine: np.ndarray
    noise_std: float
    samples: int
    evaluations: int
    seconds: float


class _Counted(Inferer):
    """An inferer that counts how often it was called."""

    def __init__(self, evaluate: Inferer) -> None:
        self.evaluate, self.calls = evaluate, 0

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.evaluate(inputs, network, *args, **kwargs)


def _ras_spacing(affine: np.ndarray) -> list[float]:
    """Voxel sizes along the axes to the right, anterior and superior, mm."""
    axes = nib.orientations.io_orientation(affine)[:, 0]
    sizes: list[float] = nib.affines.voxel_sizes(affine)[np.argsort(axes)].tolist()
    return sizes


class Reconstructor:
    """A bundle that reconstructs, loaded once and called per measurement.

    Its `configs/inference.json` has the ids `inferer`, a `ReconstructionInferer`, and `method`, `steps`, `samples` and
    `window`, which it is made of.

    Args:
        bundle: the bundle.
        device: where the network runs.
        steps: of the sampler; the bundle's own if None.
        method: a name of `METHODS`; the bundle's own if None.
        window: edge of the largest window of the network, voxels; the bundle's own if None.

    Raises:
        UserError: the bundle does not reconstruct; weights missing, corrupt or of another network; an unknown method;
            too few steps, too small a window.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: torch.device,
        steps: int | None = None,
        method: str | None = None,
        window: int | None = None,
    ) -> None:
        self.bundle, self.device = bundle, device
        parser = inference_config(bundle, device)
        if not {"inferer", "method", "steps", "samples", "window"} <= parser.get().keys():
            raise UserError(f"bundle {bundle.name}", "does not reconstruct", "choose one that does")
        if steps is not None and steps < 2:
            raise UserError(f"steps {steps}", "are too few", "give 2 or more")
        if method is not None and method not in METHODS:
            raise UserError(f"method {method}", "is not known", f"choose one of: {', '.join(METHODS)}")
        if window is not None and window < LEAST_TILE:
            raise UserError(f"tile {window}", "is too small for the network", f"give {LEAST_TILE} or more")
        if steps is not None:
            parser["steps"] = steps
        if window is not None:
            parser["window"] = [window] * 3
        if method is not None:
            # The spread of the data is a fact of the bundle, whatever the method.
            own = parser["method"] if isinstance(parser["method"], Mapping) else {}
            known = {"sigma_data": own["sigma_data"]} if "sigma_data" in own and method != "dps" else {}
            if own.get("_target_") != METHODS[method]["_target_"]:
                parser["method"] = METHODS[method] | known
        self.network = loaded_network(bundle, parser)
        self.inferer: ReconstructionInferer = parser.get_parsed_content("inferer")
        self.inferer.evaluate = self._counted = _Counted(self.inferer.evaluate)
        self.steps, self.samples, self.window = (
            parser.get_parsed_content(name) for name in ("steps", "samples", "window")
        )
        target = str(parser["method"]["_target_"]) if isinstance(parser["method"], Mapping) else str(parser["method"])
        self.method = target.rpartition(".")[2]

    @property
    def advances(self) -> int:
        """How often a sample calls for progress."""
        return len(self.inferer.times)

    def check(self, measurement: Measurement, samples: int) -> None:
        """Refuse what the bundle does not know, and what does not fit the memory.

        Raises:
            UserError: a sinogram for a bundle that knows no CT; no samples; more memory than there is.
        """
        inputs = self.bundle.metadata.get("network_data_format", {}).get("inputs", {})
        if measurement.kind == "sinogram" and "CT" not in {part.get("modality") for part in inputs.values()}:
            raise UserError(
                measurement.path,
                f"is a measurement of CT, which {self.bundle.name} has never seen, and no bundle of CT ships",
                "name one with --bundle; benchmarks/tomography.py reconstructs with a Gaussian prior",
            )
        if samples < 1:
            raise UserError(f"samples {samples}", "asks for no sample", "give 1 or more; 2 or more give a spread")
        remedy = "lower it with fewer --samples, or use a machine with more"
        if self.window is None or min(self.window) > LEAST_TILE:
            remedy = "lower it with --tile N, such as --tile 64, or with fewer --samples"
        check_memory(measurement.path, self._bytes(measurement, samples), self.device, remedy)

    def _bytes(self, measurement: Measurement, samples: int) -> float:
        """What a run holds at once, see `voxscore.memory`."""
        prior = self.inferer.denoiser(lambda x, *args, **kw: self.inferer.evaluate(x, self.network, *args, **kw))
        gradient = self.method in ("PiGDM", "MomentMatching", "dps", "DPS")
        t = self.inferer.times[0].to(self.device)
        per_voxel = evaluation_bytes(lambda x: prior(x, t), self.device, gradient)
        window = self.window or measurement.shape
        given = [16 * math.ceil(min(n, w) / 16) for n, w in zip(measurement.shape, window, strict=True)]
        volume = 4 * math.prod(measurement.shape)
        copies = VOLUME_COPIES * volume + MEASUREMENT_COPIES * measurement.size
        return per_voxel * math.prod(given) + copies + 2 * samples * volume

    def __call__(
        self,
        measurement: Measurement,
        samples: int | None = None,
        seed: int = 0,
        advance: Callable[[], None] | None = None,
    ) -> Reconstruction:
        """Reconstruct one measurement.

        Args:
            measurement: what `read_measurement` read.
            samples: how many to draw; the bundle's own number if None.
            seed: of the samples, see `ReconstructionInferer`.
            advance: called `advances` times for each sample.

        Raises:
            UserError: as `check`; the measurement cannot be prepared, or says nothing of the volume's brightness; the
                network returned NaN or infinity.
        """
        samples = self.samples if samples is None else samples
        self.check(measurement, samples)
        start = time.perf_counter()
        self._counted.calls = 0
        try:
            problem = measurement.prepare()
            drawn = self._drawn(problem, measurement, samples, seed, advance)
        except (MemoryError, torch.OutOfMemoryError) as error:
            remedy = "lower what it takes with --tile N, or use --device cpu"
            raise UserError(measurement.path, f"does not fit the memory of {self.device}", remedy) from error
        except FloatingPointError as error:
            raise UserError(measurement.path, f"sampling failed: {error}", "try another --seed or --method") from error
        shown = measurement.shown
        mean, sd = sample_moments(drawn)
        return Reconstruction(
            mean[0, 0].numpy()[shown],
            None if sd is None else sd[0, 0].numpy()[shown],
            np.ascontiguousarray(problem.plain[shown]),
            measurement.shown_affine,
            problem.noise_std,
            samples,
            self._counted.calls // samples,
            time.perf_counter() - start,
        )

    def _drawn(
        self,
        problem: Problem,
        measurement: Measurement,
        samples: int,
        seed: int,
        advance: Callable[[], None] | None,
    ) -> Tensor:
        """Samples (N, 1, X, Y, Z) on the grid of the file."""
        operator = Turned(problem.operator, measurement.affine).to(self.device)
        with torch.no_grad():
            try:
                drawn = self.inferer.reconstruct(
                    *(self.network, operator, problem.y.to(self.device), problem.noise_std, samples, seed, advance),
                    spacing=_ras_spacing(measurement.affine),
                )
            except ValueError as error:
                fault = "says nothing of how bright the volume is"
                raise UserError(measurement.path, fault, "check that this is the measurement you meant") from error
            return operator.stored(drawn.cpu()).contiguous()

    def warnings_for(self, measurement: Measurement) -> list[str]:
        """What the user should know before trusting a result on this measurement."""
        trained = self.bundle.metadata.get("voxel_spacing_mm")
        if trained is None:
            return []
        spacing = _ras_spacing(measurement.affine)
        if all(low / 1.3 <= s <= 1.3 * high for s, (low, high) in zip(spacing, trained, strict=True)):
            return []
        known = " x ".join(f"{low:g}" if low == high else f"({low:g} to {high:g})" for low, high in trained)
        return [
            f"has voxels of {' x '.join(f'{s:.3g}' for s in spacing)} mm (right x anterior x superior), but "
            f"{self.bundle.name} was trained on {known}: it may know their look less well than its README says"
        ]

    def manifest(self) -> dict[str, Any]:
        """What a result depends on besides its input: bundle, weights, settings, device."""
        return {
            "bundle": {
                "name": self.bundle.name,
                "version": self.bundle.version,
                "weights_sha256": self.bundle.metadata["weights_sha256"],
            },
            "method": self.method,
            "steps": self.steps,
            "window": self.window,
            "device": str(self.device),
        }


@dataclass(frozen=True)
class Outputs:
    """Where the results of one measurement go; None is not written.

    Attributes:
        mean: .nii.gz.
        sd: .nii.gz, of two samples or more.
        dicom: folder of a derived series of the mean, for DICOM input.
        report: .html.
    """

    mean: Path
    sd: Path | None = None
    dicom: Path | None = None
    report: Path | None = None

    def files(self) -> list[Path]:
        """The paths that are written as one file."""
        return [p for p in (self.mean, self.sd, self.report) if p is not None]


@dataclass(frozen=True)
class Result:
    """One measurement, done: what was found, and the manifest's entry."""

    reconstruction: Reconstruction
    entry: dict[str, Any]


def reconstruct_measurement(
    reconstructor: Reconstructor,
    measurement: Measurement,
    outputs: Outputs,
    overwrite: bool = False,
    samples: int | None = None,
    seed: int = 0,
    reference: Volume | None = None,
    advance: Callable[[], None] | None = None,
) -> Result:
    """Reconstruct one measurement and write what `outputs` names, all of it or nothing.

    Args:
        reconstructor: the bundle.
        measurement: what was measured.
        outputs: where the results go.
        overwrite: whether existing outputs may be replaced.
        samples: how many to draw; the bundle's own number if None.
        seed: of the samples.
        reference: the volume as it is, on the grid of the output, for scores.
        advance: called `Reconstructor.advances` times for each sample.

    Raises:
        UserError: an output exists or cannot be written; the reference lies on another grid; as `Reconstructor`.
    """
    if reference is not None:
        _check_reference(reference, measurement)
    if outputs.dicom is not None and outputs.dicom.exists() and not overwrite:
        raise UserError(outputs.dicom, "exists already", "choose another output, or replace it with --overwrite")
    bundle = reconstructor.bundle
    with ExitStack() as stack:
        # First, so that an output that cannot be written costs no reconstruction. Every file is complete before the
        # first gets its name.
        partial = {p: stack.enter_context(written_whole(p, overwrite)) for p in outputs.files()}
        found = reconstructor(measurement, samples, seed, advance)
        grid = _grid(measurement, found)
        write_volume(found.mean, grid, partial[outputs.mean], overwrite=True)
        if outputs.sd is not None and found.sd is not None:
            write_volume(found.sd, grid, partial[outputs.sd], overwrite=True)
        entry = _entry(measurement, found, seed, reference, reconstructor.warnings_for(measurement))
        if outputs.report is not None:
            page = _page(measurement, found, reference, entry, reconstructor.manifest() | entry)
            # A file name need not be UTF-8.
            partial[outputs.report].write_text(page, encoding="utf-8", errors="backslashreplace")
        if outputs.dicom is not None and measurement.source is not None:
            write_dicom_derived(
                found.mean,
                measurement.source,
                outputs.dicom,
                f"{measurement.kind} by voxscore",
                overwrite,
                affine=found.affine,
                derivation=f"Posterior mean of {found.samples} samples, voxscore {bundle.name}, {measurement.kind}",
                software_version=f"{bundle.name} {bundle.version}",
            )
    entry["outputs"] = [{"path": str(p), "sha256": sha256(p)} for p in outputs.files()]
    if outputs.dicom is not None:
        entry["outputs"].append({"path": str(outputs.dicom)})
    return Result(found, entry)


def _check_reference(reference: Volume, measurement: Measurement) -> None:
    shape = tuple(part.stop - part.start for part in measurement.shown)
    apart = np.abs(reference.affine - measurement.shown_affine).max()
    if reference.array.shape != shape or apart > _SAME_GRID_MM:
        at = "" if reference.array.shape != shape else f", {apart:.3g} mm off"
        raise UserError(
            reference.path,
            f"is {' x '.join(map(str, reference.array.shape))}{at}, on another grid than the reconstruction",
            f"resample it to {' x '.join(map(str, shape))} at the place of {measurement.path}",
        )


def _grid(measurement: Measurement, found: Reconstruction) -> Volume:
    """The grid of the output: that of the input itself, bit for bit, where they are the same."""
    source = measurement.source
    if source is not None and np.array_equal(source.affine, found.affine):
        return replace(source, array=found.mean)
    return Volume(found.mean, found.affine, measurement.path, measurement.name, "nifti", None)


def _entry(
    measurement: Measurement, found: Reconstruction, seed: int, reference: Volume | None, warnings: list[str]
) -> dict[str, Any]:
    """What the manifest says of one measurement, but for its outputs."""
    entry: dict[str, Any] = {
        "input": str(measurement.path),
        "kind": measurement.kind,
        "noise_std": found.noise_std,
        "samples": found.samples,
        "seed": seed,
        "evaluations": found.evaluations,
        "seconds": round(found.seconds, 3),
        "warnings": warnings,
    }
    if reference is not None:
        images = {measurement.plain_name: found.plain, "reconstruction": found.mean}
        entry["reference"] = str(reference.path)
        entry["scores"] = {name: score_volume(image, reference.array).rounded() for name, image in images.items()}
    return entry


def result_sheet(plain_name: str, found: Reconstruction, reference: np.ndarray | None = None) -> Image:
    """What was measured, what was found and how sure it is; with a reference also that and the error.

    Args:
        plain_name: what the inverse without a prior is called.
        found: the reconstruction.
        reference: the volume as it is, on the same grid.
    """
    images = {plain_name: found.plain, "reconstruction": found.mean}
    heats = {} if found.sd is None else {"spread (standard deviation)": found.sd}
    if reference is not None:
        images["reference"] = reference
        heats["error"] = np.abs(found.mean - reference)
    return reconstruction_sheet(images, heats, found.affine)


def _page(
    measurement: Measurement,
    found: Reconstruction,
    reference: Volume | None,
    entry: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> str:
    """The page of one reconstruction."""
    facts = {
        "measured": measurement.kind,
        "noise (standard deviation)": f"{found.noise_std:.4g}",
        "samples": str(found.samples),
        "evaluations of the network for each": str(found.evaluations),
        "seconds": f"{found.seconds:.1f}",
    }
    headings = {"psnr": "PSNR, dB", "ssim": "SSIM", "nmse": "NMSE"}
    scores = {
        name: {headings[key]: value for key, value in values.items()}
        for name, values in entry.get("scores", {}).items()
    }
    sheet = result_sheet(measurement.plain_name, found, None if reference is None else reference.array)
    title = f"voxscore {manifest['bundle']['name']}"
    return reconstruction_report(measurement.name, sheet, facts, scores, entry["warnings"], manifest, title)
