"""Ignite handlers that make a MONAI training run resumable, reproducible and documented.

All randomness of an epoch is a function of (seed, epoch, rank): `EpochSeed` sets every generator anew when an
epoch starts. So a checkpoint needs no generator states, and a run killed at any time and started again repeats
the unbroken run bit for bit on the same machine. Each handler has MONAI's form, `attach(engine)`, and is built
from JSON in a bundle's train.json.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import random
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset
from monai.engines.utils import IterationEvents
from torch import nn

from voxscore.errors import UserError
from voxscore.training.data import Case, fingerprint
from voxscore.volumes import written_whole

__all__ = ["Checkpoint", "ClipGradients", "EpochSeed", "History", "Provenance"]


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


class EpochSeed:
    """Seeds Python, NumPy, PyTorch, the data set's transforms and a distributed sampler at every epoch.

    Args:
        seed: of the whole run.
        dataset: whose random transforms are seeded.
        sampler: a `DistributedSampler`, if there is one.
    """

    def __init__(self, seed: int, dataset: Dataset, sampler: Any = None) -> None:
        self.seed, self.dataset, self.sampler = seed, dataset, sampler

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed the epoch that starts."""
        words = np.random.SeedSequence([self.seed, engine.state.epoch, _rank()]).generate_state(2)
        seed = int(words[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        self.dataset.transform.set_random_state(seed=int(words[1]))
        if self.sampler is not None:
            self.sampler.set_epoch(engine.state.epoch)


class ClipGradients:
    """Clips the gradient's norm before each optimiser step, and stops where it is not finite.

    Args:
        network: whose parameters are meant.
        max_norm: greatest Euclidean norm.
    """

    def __init__(self, network: nn.Module, max_norm: float) -> None:
        self.network, self.max_norm = network, max_norm

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Clip in place.

        Raises:
            FloatingPointError: the norm is NaN or infinite.
        """
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"gradient norm {norm.item()} in epoch {engine.state.epoch}, iteration {engine.state.iteration}: "
                "lower the learning rate or look for a bad case"
            )


class Checkpoint:
    """Loads a run's state where one was left, saves it after every epoch.

    Args:
        path: the checkpoint file.
        objects: name -> object with `state_dict` and `load_state_dict`.
    """

    def __init__(self, path: str | Path, objects: Mapping[str, Any]) -> None:
        self.path, self.objects = Path(path), dict(objects)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self.load)
        if _rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def load(self, engine: Engine) -> None:
        """Go on from the file, if it is there."""
        if not self.path.is_file():
            return
        ours: Any = engine.state  # MONAI adds the device to Ignite's state
        state = torch.load(self.path, map_location=ours.device, weights_only=True)
        for name, thing in self.objects.items():
            thing.load_state_dict(state["objects"][name])
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]

    def save(self, engine: Engine) -> None:
        """Write the state after the epoch that ended."""
        state = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "objects": {name: thing.state_dict() for name, thing in self.objects.items()},
        }
        with written_whole(self.path, overwrite=True) as partial:
            torch.save(state, partial)


class History:
    """Loss, learning rate, validation Dice and seconds of each epoch, as JSON lines and as a picture.

    Args:
        path: of the JSON-lines file; the picture has the same name with `.png`.
        optimizer: whose learning rate is noted.
        evaluator: the validation engine whose metrics are noted.
        tensorboard: also write the rows for TensorBoard, in the folder `tensorboard` beside `path`.
    """

    def __init__(
        self, path: str | Path, optimizer: torch.optim.Optimizer, evaluator: Engine, tensorboard: bool = False
    ) -> None:
        self.path, self.optimizer, self.evaluator = Path(path), optimizer, evaluator
        self.tensorboard = tensorboard
        self.rows: list[dict[str, float]] = []
        self._losses: list[float] = []
        self._start = 0.0
        self._validated = 0

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the rows of a checkpoint."""
        self.rows = list(state["rows"])

    def attach(self, engine: Engine) -> None:
        """Register with a trainer.

        Raises:
            UserError: matplotlib, which draws the picture, is not installed; better now than after an epoch.
        """
        if importlib.util.find_spec("matplotlib") is None:
            raise UserError("matplotlib", "is not installed", "pip install 'voxscore[train]'")
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._note)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)

        @self.evaluator.on(Events.COMPLETED)
        def validated() -> None:
            self._validated = engine.state.epoch

    def _begin(self) -> None:
        self._losses, self._start = [], time.perf_counter()

    def _note(self, engine: Engine) -> None:
        output: Any = engine.state.output  # decollated: a list of one dictionary a case, all with the same loss
        self._losses.append(float((output[0] if isinstance(output, Sequence) else output)["loss"]))

    def _end(self, engine: Engine) -> None:
        row = {
            "epoch": engine.state.epoch,
            "loss": float(np.mean(self._losses)),
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "seconds": round(time.perf_counter() - self._start, 2),
        }
        if self._validated == engine.state.epoch:
            metrics = self.evaluator.state.metrics
            row |= {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}
        self.rows.append(row)
        if _rank() == 0:
            lines = "".join(json.dumps(r) + "\n" for r in self.rows)
            with written_whole(self.path, overwrite=True) as partial:
                partial.write_text(lines)
            with written_whole(self.path.with_suffix(".png"), overwrite=True) as partial:
                self.draw(partial)
            if self.tensorboard:
                self._log(row)

    def _log(self, row: Mapping[str, float]) -> None:
        # tensorboard is an extra of its own. A writer an epoch leaves nothing open when a run is killed.
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.path.parent / "tensorboard")) as writer:
            for name in row.keys() - {"epoch"}:
                writer.add_scalar(name, row[name], int(row["epoch"]))

    def draw(self, path: Path) -> None:
        """Write the loss and validation curves as a PNG."""
        # matplotlib comes with the train extra only, and this module also serves bundles that never draw.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        left = figure.subplots()
        left.plot([r["epoch"] for r in self.rows], [r["loss"] for r in self.rows], color="tab:gray")
        left.set(xlabel="epoch", ylabel="training loss")
        names = sorted({k for r in self.rows for k in r} - {"epoch", "loss", "learning_rate", "seconds"})
        right = left.twinx()
        for name in names:
            points = [(r["epoch"], r[name]) for r in self.rows if name in r]
            right.plot(*zip(*points, strict=True), marker=".", label=f"{name} {points[-1][1]:.4f}")
        right.set(ylabel="validation")
        if names:
            right.legend(loc="center right")
        FigureCanvasAgg(figure).print_png(path)


class Provenance:
    """Writes what a run was made of beside its weights, before the first step.

    Args:
        path: of the JSON file.
        cases: training cases, for the fingerprint.
        validation: validation cases.
        settings: anything else worth keeping: seed, fold, epochs.
    """

    def __init__(
        self, path: str | Path, cases: Sequence[Case], validation: Sequence[Case], settings: Mapping[str, Any]
    ) -> None:
        self.path, self.cases, self.validation, self.settings = Path(path), cases, validation, dict(settings)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if _rank() == 0:
            engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the file."""
        state: Any = engine.state
        device = state.device
        record = {
            "settings": self.settings,
            "training_data": fingerprint(self.cases),
            "validation_cases": [case["name"] for case in self.validation],
            "environment": {
                "python": platform.python_version(),
                "platform": platform.platform(),
                "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
                "threads": torch.get_num_threads(),
                "world_size": int(os.environ.get("WORLD_SIZE", 1)),
                **{name: _version(name) for name in ("voxscore", "torch", "monai", "pytorch-ignite", "numpy")},
                "git_revision": _git_revision(),
            },
        }
        text = json.dumps(record, indent=2) + "\n"
        with written_whole(self.path, overwrite=True) as partial:
            partial.write_text(text)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """The checkout's revision, with "-dirty" where it has changes; None for an installed package."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
