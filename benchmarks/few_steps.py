"""How few evaluations a synthetic volume needs: with teleportation, without, and by MONAI's DDIM on the same weights.

    python benchmarks/few_steps.py --data DATASET [--number 16]

Every way makes the same volumes, from the same noise. Two measures, for each number of evaluations: the RMS distance
of the images to those of 200 evaluations without teleportation (that is the error of the sampler alone), as a part of
the images' standard deviation, and MMD^2 of segmentation features against all real cases (that is what it does to the
distribution; with few volumes it is noisy, but all ways share their noise). The last line says how many evaluations
teleportation saves at the MMD that each number reaches without it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from monai.networks.schedulers import DDIMScheduler
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from synthesis import LAYERS, loaded
from torch import Generator, Tensor

from voxscore.bundles import find_bundle
from voxscore.diffusion import Denoiser, Euler, RefineGroup, Sampler, Teleport, VolumeNoise, karras_times, sample
from voxscore.evaluation import mmd, segmentation_features
from voxscore.evaluation.kernels import RBFKernel, median_distance
from voxscore.inferers import volume_seed
from voxscore.segmentation import Segmenter
from voxscore.synthesis import Synthesizer

NUMBERS = (1, 4, 8, 12, 20, 50, 200)
BATCH = 4
LAST_RATIO = 0.1


def grid(denoiser: Denoiser, n: int, first: float) -> Tensor:
    """Times of n evaluations from a ratio down to clean data."""
    if n == 1:
        return torch.tensor([first, 0.0], dtype=torch.float64)
    return karras_times(denoiser.path, n, ratio_min=LAST_RATIO, ratio_max=first, clean=True)


def ddim(denoiser: Denoiser, noise: Tensor, n: int) -> Tensor:
    """MONAI's DDIM on the linear table of 1000 times; its x is alpha times the denoiser's."""
    scheduler = DDIMScheduler(1000, clip_sample=False, beta_start=1e-4, beta_end=0.02)
    scheduler.set_timesteps(n)
    x = noise
    for t in scheduler.timesteps:
        a = scheduler.alphas_cumprod[t].double()
        alpha, sigma = a.sqrt(), (1 - a).sqrt()
        with torch.no_grad():
            d = denoiser(x / alpha, sigma / alpha)
        x, _ = scheduler.step(((x - alpha * d) / sigma).to(x), int(t), x)
    return x


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--number", type=int, default=16)
    arguments = parser.parse_args()
    bundle = find_bundle("hippocampus_synthesis")
    synthesizer = Synthesizer(bundle, torch.device("cpu"))
    denoiser = synthesizer.inferer._denoiser(synthesizer.network)
    refine = synthesizer.inferer.sampler
    assert isinstance(refine, RefineGroup)
    teleport = refine.sampler  # the label's last evaluation changes no image
    assert isinstance(teleport, Teleport)
    sampler, top = teleport.sampler, float(denoiser.path.ratio(denoiser.path.t_noise))
    field = [int(n) for n in bundle.metadata["field_of_view_mm"]]
    margins = [((n - f) // 2, f) for n, f in zip(synthesizer.size, field, strict=True)]
    inner = (slice(None), slice(0, 1), *(slice(a, a + f) for a, f in margins))

    def run(way: str, n: int, noise: Tensor, generators: list[Generator]) -> Tensor:
        first = Euler() if n == 1 else sampler
        if way == "MONAI's DDIM":
            return ddim(denoiser, noise, n)
        rule: Sampler = first
        times = grid(denoiser, n, top)
        if way == "teleportation":
            rule = Teleport(first, teleport.gaussian, teleport.ratio)
            times = torch.cat([torch.tensor([top], dtype=torch.float64), grid(denoiser, n, teleport.ratio)])
        return sample(denoiser, top * noise, times, rule, generators)

    ways = ("plain", "teleportation", "MONAI's DDIM")
    images: dict[tuple[str, int], list[Tensor]] = {(way, n): [] for way in ways for n in NUMBERS}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("sampling", total=arguments.number * len(ways) * sum(NUMBERS))
        for start in range(0, arguments.number, BATCH):
            seeds = [volume_seed(0, k) for k in range(start, min(start + BATCH, arguments.number))]
            for way, n in images:
                generators = [Generator().manual_seed(seed) for seed in seeds]
                noise = VolumeNoise(generators, len(seeds))(torch.empty(len(seeds), 4, *synthesizer.size))
                images[way, n].append(run(way, n, noise, generators)[inner])
                progress.advance(task, n * len(seeds))
    made = {key: torch.cat(parts) for key, parts in images.items()}

    network = Segmenter(find_bundle("hippocampus_segmentation"), torch.device("cpu")).network
    real = segmentation_features(network, loaded(arguments.data, field)[1].split(4), LAYERS).double()
    center, scale = real.mean(0), real.std(0)
    real = (real - center) / scale
    kernel = RBFKernel(median_distance(real))
    discrepancy = {
        key: mmd((segmentation_features(network, x.split(4), LAYERS).double() - center) / scale, real, kernel)
        for key, x in made.items()
    }
    reference = made["plain", max(NUMBERS)]
    table = Table("evaluations", *(f"{way}: RMS" for way in ways), *(f"{way}: MMD^2" for way in ways))
    for n in NUMBERS:
        errors = [float((made[way, n] - reference).square().mean().sqrt() / reference.std()) for way in ways]
        table.add_row(str(n), *(f"{e:.3f}" for e in errors), *(f"{discrepancy[way, n]:.4f}" for way in ways))
    Console(width=160).print(table)
    for n in NUMBERS[1:-1]:
        fewer = [m for m in NUMBERS if discrepancy["teleportation", m] <= discrepancy["plain", n]]
        print(f"{n} evaluations without teleportation: as good with {min(fewer) if fewer else 'none of these'}")


if __name__ == "__main__":
    main()
