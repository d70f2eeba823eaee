"""Watching a denoiser while it trains: does it still learn, or does it begin to copy?

On volumes it was not trained on the denoising loss falls and then rises again, while on its training volumes it only
falls. At every validation `HeldOutMonitor` measures both at fixed noise levels with fixed noise. The gap between them
is what has been memorised; when the held-out loss has not fallen for `patience` validations, training ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import Dataset
from torch import Tensor

from voxscore.diffusion import Denoiser, EarlyStopping, HeldOutLoss
from voxscore.networks.precision import fast_dtype

__all__ = ["HeldOutMonitor"]


class HeldOutMonitor:
    """Handler that adds `held_out_loss` and `training_loss` to a validation's metrics, and ends a training that copies.

    Both are E|D - x_0|^2 per voxel and channel, divided by the mean square of x_0, and averaged over the levels: 1 is
    the loss of the zero volume. The state is saved with the run by `Checkpoint`.

    Args:
        evaluator: the validation engine, whose metrics `History` notes.
        denoiser: with the averaged network inside; a joint one is told the same time for all groups.
        held_out: volumes not trained on, items with an `image` (a joint state, for a joint denoiser) (C, *spatial).
        training: as many of the training volumes, prepared the same way.
        times: the noise levels.
        patience: validations in a row without a smaller held-out loss before training ends.
        device: where the denoiser is.
    """

    def __init__(
        self,
        evaluator: Engine,
        denoiser: Denoiser,
        held_out: Dataset,
        training: Dataset,
        times: Sequence[float],
        patience: int,
        device: torch.device,
    ) -> None:
        self.evaluator, self.denoiser, self.device = evaluator, denoiser, device
        self.sets = {"held_out_loss": held_out, "training_loss": training}
        self.times = torch.tensor(times, dtype=torch.float64)
        self.stopping = EarlyStopping(patience)

    def state_dict(self) -> dict[str, Any]:
        """The smallest held-out loss so far, and when it was."""
        return self.stopping.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.stopping.load_state_dict(state)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, before the `ValidationHandler`."""

        @self.evaluator.on(Events.COMPLETED)
        def measure() -> None:
            losses = {name: self._loss(volumes) for name, volumes in self.sets.items()}
            self.evaluator.state.metrics.update(losses)
            if self.stopping.update(engine.state.epoch, losses["held_out_loss"]):
                engine.terminate()

        @engine.on(Events.EPOCH_STARTED)
        def stay_ended() -> None:
            if self.stopping.waited >= self.stopping.patience:  # a checkpoint of a training that had ended
                engine.terminate()

    def _loss(self, volumes: Dataset) -> float:
        batches = [self._state(volumes[i]) for i in range(len(volumes))]
        square = sum(float(x0.double().square().mean()) for x0 in batches) / len(batches)
        dtype = fast_dtype(self.device)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32):
            found = HeldOutLoss(batches, self.times, lambda path, t: torch.ones_like(t))(self.denoiser)
        return float(found.mean) / square

    def _state(self, item: dict[str, Any]) -> Tensor:
        return torch.as_tensor(item["image"])[None].float().to(self.device)
