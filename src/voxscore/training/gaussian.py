"""The Gaussian of a training set, fitted once a run: what a joint denoiser starts from and teleportation jumps by."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from monai.data import Dataset

from voxscore.diffusion import Gaussian
from voxscore.volumes import written_whole

__all__ = ["fitted_gaussian"]


def fitted_gaussian(volumes: Dataset, path: str | Path) -> Gaussian:
    """The stationary Gaussian of a data set's joint states, kept in a file; a run that is resumed reads it there.

    Args:
        volumes: items with a joint state `image` (C, *spatial), all of one size.
        path: of the file, a state dict for `torch.load`.
    """
    path = Path(path)
    if path.is_file():
        return Gaussian.from_state_dict(torch.load(path, weights_only=True))
    states = (torch.as_tensor(volumes[i]["image"])[None].float() for i in range(len(volumes)))
    fitted = Gaussian.fit((state.as_subclass(torch.Tensor) for state in states), "fourier")
    # The eigenvalues too in float32: read back, the Gaussian must be the one that was trained with.
    state = {name: value.float() for name, value in fitted.state_dict().items()}
    if int(os.environ.get("RANK", 0)) == 0:
        with written_whole(path, overwrite=True) as partial:
            torch.save(state, partial)
    return Gaussian.from_state_dict(state)
