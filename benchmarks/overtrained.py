"""Does the audit fail a model that has learned its cases by heart? One is trained so, and audited on the way.

    python benchmarks/overtrained.py --data DATASET [--cases 16] [--steps 500 2000 6000]

A small score network is trained on 16 real cases at 2 mm without augmentation. After each number of steps it makes 48
volumes, which are audited against the 16, with the 42 cases that the synthesis bundle held out as strangers. Prints,
for each, the verdict, how many volumes are called copies and how many are flagged, and the membership that the training
loss gives away at a noise-to-signal ratio of 1. A network that is barely trained makes blurs, which are no copies.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.transforms import CenterSpatialCrop, SpatialPad
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Generator, Tensor
from torch.nn.functional import avg_pool3d

from voxscore.audit import audit
from voxscore.bundles import find_bundle
from voxscore.diffusion import (
    EDM,
    DPMSolver,
    EDMWeight,
    LogNormalTimes,
    NetDenoiser,
    VolumeNoise,
    denoising_loss,
    karras_times,
    sample,
)
from voxscore.evaluation import auc
from voxscore.inferers import volume_seed
from voxscore.networks import ScoreUNet
from voxscore.training import DenoisingObjective, datalist
from voxscore.volumes import read_volume

SIZE = (20, 28, 20)  # voxels of 2 mm
MADE, EVALUATIONS, BATCH = 48, 20, 4
RATIO = 1.0  # of the membership query


def small(path: str) -> Tensor:
    """A case of standard deviation 1, (1, *SIZE)."""
    array = torch.from_numpy(np.ascontiguousarray(read_volume(path).array)).float()[None]
    pooled = avg_pool3d(array[None], 2)[0]
    placed = CenterSpatialCrop(SIZE)(SpatialPad(SIZE, mode="edge")(pooled))
    return ((placed - placed.mean()) / placed.std()).as_tensor()


def saved(volumes: Tensor, folder: Path) -> Path:
    folder.mkdir()
    for k, volume in enumerate(volumes):
        nib.save(nib.Nifti1Image(volume[0].numpy(), np.diag([2.0, 2.0, 2.0, 1.0])), folder / f"volume_{k:03d}.nii.gz")
    return folder


def made(denoiser: NetDenoiser) -> Tensor:
    """Volumes of the model."""
    times = karras_times(denoiser.path, EVALUATIONS, ratio_min=0.02, ratio_max=80.0, clean=True)
    volumes = []
    for first in range(0, MADE, BATCH):
        generators = [Generator().manual_seed(volume_seed(0, k)) for k in range(first, first + BATCH)]
        noise = 80 * VolumeNoise(generators, BATCH)(torch.empty(BATCH, 1, *SIZE))
        volumes.append(sample(denoiser, noise, times, DPMSolver(2), generators))
    return torch.cat(volumes)


def membership(denoiser: NetDenoiser, training: Tensor, held_out: Tensor) -> float:
    """AUC of the denoising loss."""
    t = denoiser.path.time(torch.tensor(RATIO, dtype=torch.float64))
    losses = []
    for volumes in (training, held_out):
        noise = torch.randn(volumes.shape, generator=Generator().manual_seed(1))
        each = [
            denoising_loss(denoiser, x[None], t, n[None], EDMWeight(1.0)) for x, n in zip(volumes, noise, strict=True)
        ]
        losses.append(torch.cat(each))
    return auc(*losses)


def main() -> None:
    """Train, audit, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--steps", type=int, nargs="+", default=[500, 2000, 6000])
    arguments = parser.parse_args()
    kept_out = set(find_bundle("hippocampus_synthesis").metadata["held_out_cases"])
    every = datalist(arguments.data)
    real = [case["image"] for case in every if case["name"] not in kept_out][: arguments.cases]
    training = torch.stack([small(path) for path in real])
    held_out = torch.stack([small(case["image"]) for case in every if case["name"] in kept_out])

    torch.manual_seed(0)
    net, path = ScoreUNet(3, 1, 1, channels=(16, 32, 64), n_times=1), EDM()
    denoiser = NetDenoiser(net, path, "edm", sigma_data=1.0, time_map=path.ratio)
    objective = DenoisingObjective(denoiser, LogNormalTimes(0.0, 1.6), EDMWeight(1.0))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0)
    console = Console(stderr=True)
    table = Table("steps", "verdict", "copies", "flagged", "expected", "AUC of membership")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folders = [saved(training, root / "training"), saved(held_out, root / "held_out")]
        for step in track(range(1, max(arguments.steps) + 1), "training", console=console):
            batch = training[torch.randint(len(training), (BATCH,))]
            loss = objective(batch).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            if step not in arguments.steps:
                continue
            net.eval()
            with torch.no_grad():
                volumes, by_loss = made(denoiser), membership(denoiser, training, held_out)
            net.train()
            found = audit(saved(volumes, root / f"made_{step}"), *folders)
            first = found.copies[0]
            count = first.count
            table.add_row(
                *(str(step), found.verdict.value, f"{int(first.copies.sum())} of {MADE}"),
                *((str(count.count), f"{count.expected:.1f}") if count else ("-", "-")),
                f"{by_loss:.3f}",
            )
            console.print(table)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
