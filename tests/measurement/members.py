"""The linear operators that laws are applied to, each with random volumes it measures."""

import torch

from voxscore.measurement import (
    Blur,
    CartesianMRI,
    Compose,
    Downsample,
    FanBeam,
    Identity,
    Inpaint,
    ParallelBeam,
    Scaled,
    Stack,
    gaussian,
    random_mask,
)

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def volumes(*shape, seed=0):
    """Two random volumes (2, C, *spatial)."""
    return torch.randn(2, *shape, generator=generator(seed), dtype=F64)


def random_maps(coils, *spatial):
    return torch.randn(coils, *spatial, generator=generator(9), dtype=torch.complex128)


def scan(*spatial, coils=None, channels=1, axes=(-1,)):
    """A random scan of a grid, three coils or so, twofold."""
    mask = random_mask(spatial, axes, 2, generator(8), 1)
    return CartesianMRI(mask, coils and random_maps(coils, *spatial), channels)


# name: a function without arguments that makes (operator, volumes (2, C, *spatial) of float64).
MEMBERS = {
    "identity": lambda: (Identity(), volumes(1, 3, 4)),
    "scaled": lambda: (Scaled(-1.7, scan(6, 5)), volumes(1, 6, 5)),
    "compose": lambda: (Compose(Scaled(0.3, scan(6, 5, coils=2)), Scaled(2.0, Identity())), volumes(1, 6, 5)),
    "stack": lambda: (Stack([Identity(), scan(6, 5, coils=2), Scaled(3.0, Identity())], (1, 6, 5)), volumes(1, 6, 5)),
    "stack of real": lambda: (Stack([Identity(), Scaled(3.0, Identity())], (2, 6, 5)), volumes(2, 6, 5)),
    "mri 2-d": lambda: (scan(6, 5), volumes(1, 6, 5)),
    "mri 2-d complex": lambda: (scan(7, 8, channels=2), volumes(2, 7, 8)),
    "mri 2-d coils": lambda: (scan(7, 8, coils=3), volumes(1, 7, 8)),
    "mri 3-d coils": lambda: (scan(4, 5, 6, coils=3, axes=(0, 2)), volumes(1, 4, 5, 6)),
    "mri 3-d complex coils": lambda: (scan(4, 5, 3, coils=2, channels=2, axes=(1, 2)), volumes(2, 4, 5, 3)),
    "mri all of k-space": lambda: (
        CartesianMRI(torch.ones(1, 1, dtype=torch.bool), random_maps(2, 4, 5)),
        volumes(1, 4, 5),
    ),
    "parallel beam": lambda: (ParallelBeam((6, 5), [0.0, 0.4, 1.6, 2.9], spacing=0.8), volumes(2, 6, 5, 3)),
    "parallel beam 2-d": lambda: (ParallelBeam((6, 5), [0.3, 2.0], detectors=5), volumes(1, 6, 5)),
    "fan beam": lambda: (FanBeam((6, 5), [0.2, 1.9, 4.0], 12.0, 20.0, spacing=1.5), volumes(1, 6, 5, 2)),
    "curved fan beam": lambda: (FanBeam((5, 5), [0.2, 1.9, 4.0], 9.0, 9.0, curved=True), volumes(1, 5, 5)),
    "blur": lambda: (Blur((5, 6, 4), (2.0, 0.0, 3.5)), volumes(2, 5, 6, 4)),
    "downsample": lambda: (Downsample((5, 6, 7), (1, 2, 2.5)), volumes(1, 5, 6, 7)),
    "downsample gaussian": lambda: (Downsample((7, 9), 2.2, gaussian, thickness=(3.0, 1.0)), volumes(2, 7, 9)),
    "inpaint": lambda: (Inpaint(torch.rand(2, 5, 6, generator=generator(7)) > 0.4), volumes(2, 5, 6)),
}
