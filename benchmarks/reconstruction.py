r"""How well brain MRI is reconstructed: against zero-filling, CG-SENSE and L1-wavelets of the same scans.

    pip install 'voxscore[benchmark]'
    python benchmarks/reconstruction.py --data FOLDER [--samples 8] [--phase-encoding y|yz|both] [--picture FILE]

FOLDER holds brain_mni/patient07, a patient whom brain_mri_reconstruction was not trained on. Of each contrast a crop at
1 mm is taken from the middle of the brain, where it holds the most of it, negative voxels (of its resampling) set to 0
and divided by its maximum, 1 from here on.

**The scan.** Eight coils (`simulate_maps`), a smooth phase of the image (`simulate_phase`), a variable-density
Cartesian mask with eight lines in the middle of every phase-encoding axis, and Gaussian noise whose standard deviation
is 0.01, 1 % of the maximum of the crop, in the real and in the imaginary part of unitary k-space. Everything after
that sees the scan as `LoadKspace` reads it from a file: no method is told the phase or the noise. The file has the
coils' maps in it. With `--estimate-maps` it has not, and ESPIRiT has to find them: a crop out of the middle of a brain
fills its field of view, a harder case than a scan with air around the head.

**The baselines** are chosen with the truth in hand, setting by setting: CG-SENSE of a real image with its best number
of steps; SigPy's `L1WaveletRecon` (db4, 100 iterations) of a complex image, as published, and of a real one, which is
told as much as ours is, each with its best weight on a grid of factors of 1.6. SigPy is given this package's operator
in place of its own, which computes the same several times faster. Negative voxels are set to 0.

**Scores.** PSNR with the maximum of the crop as its peak, SSIM in Gaussian windows of 11 voxels, NMSE
(`voxscore.evaluation.score_volume`). Coverage is the share of voxels above 5 % of the maximum whose truth lies within
mean +- 2 standard deviations of N samples. A perfect posterior of Gaussian voxels would not reach 95.4 % there, for
the deviation is that of a few antithetic pairs, but P(|t_(N/2)| < 2), 88 % of N = 8: it stands beside.

Super-resolution is of slices four times as thick with noise of 1 % of the maximum, which ours is told, against cubic
interpolation. Seconds are wall time of everything, loading and data consistency included. The sizes are run first and
in ascending order, so the peak memory of the process is that of each.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import sigpy
import sigpy.mri
import torch
from rich.console import Console
from rich.table import Table
from scipy import stats
from torch import Generator, Tensor

from voxscore.bundles import find_bundle
from voxscore.diffusion.posteriors import conjugate_gradient
from voxscore.evaluation import Fidelity, score_volume
from voxscore.measured import Measurement, Problem, read_measurement
from voxscore.measurement import CartesianMRI, Downsample, gaussian_noise, simulate_maps, variable_density_mask
from voxscore.reconstruction import Reconstruction, Reconstructor, result_sheet
from voxscore.transforms.simulate import simulate_phase
from voxscore.volumes import make_raw, read_volume, write_raw

PATIENT = Path("brain_mni") / "patient07"
COILS, CENTER, NOISE = 8, 8, 0.01
AXES = {"y": [1], "yz": [1, 2]}
CG_STEPS = (2, 3, 4, 6, 8, 11, 16, 24)
WEIGHTS = [0.001 * 1.6**k for k in range(-4, 10)]
SLICES = (1.0, 1.0, 4.0)
SIZES = [(64, 64, 32), (96, 96, 32), (96, 96, 64)]
ZERO_FILLED, CG, L1, L1_REAL = "zero-filled", "CG-SENSE, real", "L1-wavelet", "L1-wavelet, real"
MEAN, SINGLE = "ours, mean", "ours, one sample"


@dataclass(frozen=True)
class Crop:
    """A part of a brain, largest value 1."""

    contrast: str
    truth: np.ndarray
    affine: np.ndarray

    def volume(self) -> Tensor:
        """The truth (1, 1, X, Y, Z)."""
        return torch.from_numpy(self.truth)[None, None]


@dataclass(frozen=True)
class Found:
    """A method's result and what it took."""

    name: str
    score: Fidelity
    setting: str = ""


def crop_of(data: Path, contrast: str, size: Sequence[int]) -> Crop:
    """The crop that holds the most brain; of several, the one nearest to the middle of the brain."""
    brain = read_volume(data / PATIENT / "T1.nii.gz").array > 0
    held = np.pad(brain.astype(np.float64), ((1, 0),) * 3).cumsum(0).cumsum(1).cumsum(2)
    for axis, n in enumerate(size):
        first = np.arange(held.shape[axis] - n)
        held = held.take(first + n, axis) - held.take(first, axis)
    places = np.argwhere(held > held.max() - 0.5)
    middle = np.argwhere(brain).mean(0)
    origin = places[((places + np.array(size) / 2 - middle) ** 2).sum(1).argmin()]
    volume = read_volume(data / PATIENT / f"{contrast}.nii.gz")
    part = volume.array[tuple(slice(a, a + n) for a, n in zip(origin, size, strict=True))].clip(min=0)
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ origin
    return Crop(contrast, np.ascontiguousarray(part / part.max()), affine)


def scan_of(crop: Crop, axes: Sequence[int], acceleration: float, estimate_maps: bool, folder: Path) -> Measurement:
    """A file of k-space, read again."""
    generator = Generator().manual_seed(0)
    size = crop.truth.shape
    mask = variable_density_mask(size, axes, acceleration, generator, CENTER)
    phase = simulate_phase(size, generator)
    maps = simulate_maps(COILS, size)
    seen = CartesianMRI(mask, maps * torch.polar(torch.ones_like(phase), phase))(crop.volume())
    y = gaussian_noise(seen, NOISE, generator)[0].numpy()
    path = folder / "scan.h5"
    known = None if estimate_maps else maps.numpy()
    write_raw(make_raw(y, path, "voxscore", mask.numpy(), known, crop.affine), path, overwrite=True)
    return read_measurement(path)


def slices_of(crop: Crop, folder: Path) -> Measurement:
    """A file of thick slices, read again."""
    y = Downsample(crop.truth.shape, SLICES)(crop.volume())
    y = gaussian_noise(y, NOISE, Generator().manual_seed(0))[0, 0].numpy()
    coarse = np.eye(4)
    coarse[:3, :3], coarse[:3, 3] = np.diag(SLICES), (np.array(SLICES) - 1) / 2
    path = folder / "slices.nii.gz"
    nib.save(nib.Nifti1Image(y, crop.affine @ coarse), path)
    return read_measurement(path, "super-resolution", SLICES, noise_std=NOISE)


class Scan(sigpy.linop.Linop):
    """An operator of this package in SigPy's terms: of complex images, or of real ones stored as complex."""

    def __init__(self, operator: CartesianMRI, size: Sequence[int], step: str = "forward") -> None:
        self.operator, self.size, self.step = operator, tuple(size), step
        shapes = {"forward": ((COILS, *size), size), "adjoint": (size, (COILS, *size)), "normal": (size, size)}
        super().__init__(*shapes[step])

    def _apply(self, input: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(input)[None]
        if self.step == "adjoint":
            return self._image(self.operator.adjoint(given))
        parts = torch.stack([given.real, given.imag][: self.operator.channels], dim=1)
        if self.step == "normal":
            return self._image(self.operator.normal(parts))
        return self.operator(parts)[0].numpy()

    def _image(self, parts: Tensor) -> np.ndarray:
        imaginary = parts[0, 1] if self.operator.channels == 2 else torch.zeros_like(parts[0, 0])
        return torch.complex(parts[0, 0], imaginary).numpy()

    def _adjoint_linop(self) -> Scan:
        return Scan(self.operator, self.size, "adjoint" if self.step == "forward" else "forward")

    def _normal_linop(self) -> Scan:
        return Scan(self.operator, self.size, "normal")


def scored(name: str, truth: np.ndarray, images: Sequence[np.ndarray], setting: str = "") -> Found:
    """The best of a method's images."""
    return max((Found(name, score_volume(i, truth), setting) for i in images), key=lambda found: found.score.psnr)


def cg_sense(problem: Problem, truth: np.ndarray) -> Found:
    """Conjugate gradients on |A x - y|^2, stopped where it is best."""
    b = problem.operator.adjoint(problem.y)
    found = []
    for steps in CG_STEPS:
        x = conjugate_gradient(problem.operator.normal, b, steps)[0, 0].clamp(min=0)
        found.append(scored(CG, truth, [x.numpy()], f"{steps} steps"))
    return max(found, key=lambda f: f.score.psnr)


def l1_wavelet(problem: Problem, truth: np.ndarray, channels: int, start: int) -> tuple[Found, int]:
    """SigPy's L1-wavelet reconstruction with its best weight, climbed to from `WEIGHTS[start]`; and where that is."""
    known = problem.operator
    assert isinstance(known, CartesianMRI)
    assert known.maps is not None
    operator, y, maps = CartesianMRI(known.mask, known.maps, channels), problem.y[0].numpy(), known.maps.numpy()

    def run(k: int) -> Found:
        with mock.patch.object(sigpy.mri.linop, "Sense", return_value=Scan(operator, truth.shape)):
            # The maps' sum of squares is 1 at most, hence the largest eigenvalue and the step are 1.
            app = sigpy.mri.app.L1WaveletRecon(y, maps, WEIGHTS[k], show_pbar=False, alpha=1, max_iter=100)
        x = app.run()
        name = L1 if channels == 2 else L1_REAL
        return scored(name, truth, [np.abs(x), x.real.clip(min=0)], f"weight {WEIGHTS[k]:.4f}")

    best, at = run(start), start
    for step in (1, -1):
        while 0 <= at + step < len(WEIGHTS) and (found := run(at + step)).score.psnr > best.score.psnr:
            best, at = found, at + step
        if at != start:
            break
    return best, at


def coverage(truth: np.ndarray, found: Reconstruction) -> float:
    """The share of voxels of the brain whose truth lies within two standard deviations of the mean."""
    assert found.sd is not None
    return float((np.abs(truth - found.mean) <= 2 * found.sd)[truth > 0.05].mean())


def perfect_coverage(samples: int) -> float:
    """What coverage is of a posterior that is right, see above."""
    return float(2 * stats.t(samples / 2).cdf(2) - 1)


def signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}"


def score_table(title: str, rows: dict[str, list[Found]], references: Sequence[str]) -> Table:
    """Scores of each contrast, differences to the references, and the means of all contrasts."""
    differences = [column for name in references for column in (f"dB to {name}", "SSIM")]
    table = Table("contrast", "method", "PSNR, dB", "SSIM", "NMSE", *differences, "best setting", title=title)
    names = [found.name for found in next(iter(rows.values()))]
    means: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for contrast, results in rows.items():
        by_name = {found.name: found.score for found in results}
        for found in results:
            s = found.score
            apart = [d for r in references for d in (s.psnr - by_name[r].psnr, s.ssim - by_name[r].ssim)]
            means[found.name].append(np.array([s.psnr, s.ssim, s.nmse, *apart]))
            table.add_row(contrast, found.name, *cells(means[found.name][-1]), found.setting)
        table.add_section()
    for name, values in means.items():
        table.add_row("mean", name, *cells(np.mean(values, axis=0)))
    return table


def cells(values: np.ndarray) -> list[str]:
    psnr, ssim, nmse, *apart = values.tolist()
    return [f"{psnr:.2f}", f"{ssim:.3f}", f"{nmse:.4f}", *(signed(d, 2 + k % 2) for k, d in enumerate(apart))]


def scaling(reconstruct: Reconstructor, data: Path, contrast: str, folder: Path) -> Table:
    """Seconds and memory of one sample at three sizes."""
    columns = ("size", "evaluations", "s per evaluation", "us per voxel and evaluation", "to the first", "s", "MiB")
    table = Table(*columns, title="One sample, R = 4 along y: time, and peak memory of the process")
    first = 0.0
    for size in [(32, 32, 32), *SIZES]:
        found = reconstruct(scan_of(crop_of(data, contrast, size), AXES["y"], 4, False, folder), 1)
        if size == (32, 32, 32):  # not shown: the first of all evaluations pays for what PyTorch sets up
            continue
        each = found.seconds / found.evaluations
        per_voxel = 1e6 * each / found.mean.size
        first = first or per_voxel
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        text = "x".join(map(str, size))
        table.add_row(
            *(text, str(found.evaluations), f"{each:.2f}", f"{per_voxel:.2f}", f"{per_voxel / first:.2f}"),
            *(f"{found.seconds:.0f}", f"{peak:.0f}"),
        )
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", default="brain_mri_reconstruction")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--phase-encoding", choices=[*AXES, "both"], default="y")
    parser.add_argument("--acceleration", type=float, nargs="+", default=[4.0, 8.0])
    parser.add_argument("--contrasts", nargs="+", default=["T1", "T2", "FLAIR"])
    parser.add_argument("--size", type=int, nargs=3, default=[96, 96, 32])
    parser.add_argument("--method", help="of the bundle's posterior; its own if not given")
    parser.add_argument("--steps", type=int, help="of the sampler; the bundle's own if not given")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--estimate-maps", action="store_true", help="do not let the file hold the coils' maps")
    parser.add_argument("--baselines-only", action="store_true", help="without the bundle")
    parser.add_argument("--picture", type=Path, help="of the first contrast at the first acceleration")
    parser.add_argument("--without-l1", action="store_true", help="without L1-wavelets, which take the longest")
    arguments = parser.parse_args()
    console, progress = Console(width=180), Console(stderr=True)
    ours: Reconstructor | None = None
    if not arguments.baselines_only:
        bundle, device = find_bundle(arguments.bundle), torch.device(arguments.device)
        ours = Reconstructor(bundle, device, arguments.steps, arguments.method)
    crops = [crop_of(arguments.data, contrast, arguments.size) for contrast in arguments.contrasts]
    columns = ("measurement", "contrast", "evaluations per sample", "s per evaluation", "s per sample", "coverage")
    perfect = f"{perfect_coverage(arguments.samples):.1%}" if arguments.samples > 1 else "-"
    cost = Table(*columns, title=f"{arguments.samples} samples; a perfect posterior would cover {perfect}")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def drawn(measurement: Measurement, crop: Crop, label: str) -> list[Found]:
            if ours is None:
                return []
            one, many = ours(measurement, 1), ours(measurement, arguments.samples)
            if arguments.picture is not None and not cost.rows:
                result_sheet(measurement.plain_name, many, crop.truth).save(arguments.picture)
            each = many.seconds / arguments.samples
            share = f"{coverage(crop.truth, many):.1%}" if arguments.samples > 1 else "-"
            cost.add_row(
                *(label, crop.contrast, str(many.evaluations), f"{each / many.evaluations:.2f}", f"{each:.1f}", share)
            )
            return [scored(SINGLE, crop.truth, [one.mean]), scored(MEAN, crop.truth, [many.mean])]

        if ours is not None:
            console.print(scaling(ours, arguments.data, arguments.contrasts[0], folder))
        weight = {1: 5, 2: 5}
        for encoding in AXES if arguments.phase_encoding == "both" else [arguments.phase_encoding]:
            for acceleration in arguments.acceleration:
                label = f"R = {acceleration:g} along {encoding}"
                rows: dict[str, list[Found]] = {}
                for crop in crops:
                    progress.print(f"{label}, {crop.contrast}")
                    scan = scan_of(crop, AXES[encoding], acceleration, arguments.estimate_maps, folder)
                    problem = scan.prepare()
                    results = [scored(ZERO_FILLED, crop.truth, [problem.plain]), cg_sense(problem, crop.truth)]
                    for channels in () if arguments.without_l1 else (2, 1):
                        found, weight[channels] = l1_wavelet(problem, crop.truth, channels, weight[channels])
                        results.append(found)
                    rows[crop.contrast] = results + drawn(scan, crop, label)
                references = [ZERO_FILLED, *([] if arguments.without_l1 else [L1, L1_REAL])]
                console.print(score_table(label, rows, references))
        rows = {}
        for crop in crops:
            thick = slices_of(crop, folder)
            cubic = thick.prepare().plain
            rows[crop.contrast] = [
                scored("cubic", crop.truth, [cubic]),
                *drawn(thick, crop, "slices of 4"),
            ]
        console.print(score_table("Super-resolution, slices four times as thick", rows, ["cubic"]))
    if ours is not None:
        console.print(cost)


if __name__ == "__main__":
    main()
