"""Seconds per evaluation and memory kept for backward: ScoreUNet against MONAI's DiffusionModelUNet of equal size.

    python benchmarks/network_speed.py [--batch 2] [--size 40 56 40] [--repeats 5]

One evaluation of a joint state of an image and three classes. MONAI's network has its own defaults (two residual
blocks a level, attention at the last level) with channels chosen so that both have about the same number of
parameters; it is timed as it comes, in float32, and at its best, in bfloat16 on channels-last memory with flash
attention, which is how ScoreUNet is timed. Networks take turns, and the fastest of their repeats counts. Memory is
what autograd keeps, each storage once, without parameters.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from monai.networks.nets import DiffusionModelUNet
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from voxscore.networks import ScoreUNet

CHANNELS, MONAI_CHANNELS = (24, 48, 96, 192), (24, 32, 48, 72)


def score_unet(checkpointing: bool = False) -> nn.Module:
    return ScoreUNet(3, 4, 4, CHANNELS, n_times=2, checkpointing=checkpointing)


def diffusion_unet(flash: bool) -> nn.Module:
    return DiffusionModelUNet(
        spatial_dims=3,
        in_channels=4,
        out_channels=4,
        channels=MONAI_CHANNELS,
        attention_levels=(False, False, False, True),
        norm_num_groups=8,
        num_head_channels=24,
        num_res_blocks=2,
        use_flash_attention=flash,
    )


def kept_for_backward(network: nn.Module, call: Callable[[], Tensor]) -> int:
    """Bytes that autograd holds after one evaluation."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call()
    del output
    return sum(kept.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=3, default=[40, 56, 40], help="multiples of 8")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    x = torch.randn(arguments.batch, 4, *arguments.size)
    levels, steps = torch.full((arguments.batch, 2), 0.5), torch.full((arguments.batch,), 500.0)
    cases: dict[str, tuple[nn.Module, Tensor, bool]] = {
        "ScoreUNet, bfloat16 channels-last": (score_unet(), levels, True),
        "ScoreUNet, float32": (score_unet(), levels, False),
        "DiffusionModelUNet, as it comes": (diffusion_unet(False), steps, False),
        "DiffusionModelUNet, at its best": (diffusion_unet(True), steps, True),
    }

    def call(name: str) -> Tensor:
        network, t, fast = cases[name]
        volume = x.contiguous(memory_format=torch.channels_last_3d) if fast else x
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            return network(volume, t)

    for network, _, fast in cases.values():
        if fast:
            network.to(memory_format=torch.channels_last_3d)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with torch.no_grad():
        for _ in range(1 + arguments.repeats):  # the first warms up
            for name in cases:
                began = time.perf_counter()
                call(name)
                seconds[name].append(time.perf_counter() - began)
    fastest = {name: min(times[1:]) for name, times in seconds.items()}
    own = fastest["ScoreUNet, bfloat16 channels-last"]
    table = Table("network", "parameters [M]", "evaluation [s]", "ratio", "kept [kB/voxel]")
    for name, (network, _, _) in cases.items():
        size = sum(p.numel() for p in network.parameters()) / 1e6
        kept = kept_for_backward(network, lambda name=name: call(name)) / x[:, 0].numel() / 1000  # type: ignore[misc]
        table.add_row(name, f"{size:.2f}", f"{fastest[name]:.3f}", f"{fastest[name] / own:.1f}", f"{kept:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
