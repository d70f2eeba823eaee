"""Averages of a network's weights over its training, of a width that is chosen afterwards.

With parameters theta_t after step t = 1, 2, ..., the power-function average

    ema_t = beta_t ema_{t-1} + (1 - beta_t) theta_t,    beta_t = (1 - 1/t)^(gamma + 1),

weighs step tau by tau^(gamma+1) - (tau-1)^(gamma+1), about tau^gamma, so that its width grows with the training and
the first weights are forgotten. The width is told as the profile's standard deviation over the length of training,

    sigma_rel = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))).

Two averages and a few snapshots of each span the profiles between them: any other is their linear combination by
least squares, and the best width can be looked for without training again.

Source: Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models (EDM2), CVPR 2024, section 3
and appendix C.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from voxscore.errors import UserError
from voxscore.training.handlers import _rank
from voxscore.volumes import written_whole

__all__ = ["PowerEMA", "profile_exponent", "reconstruct_ema"]

_UNIFORM = 12**-0.5  # sigma_rel of gamma = 0, the plain mean


def profile_exponent(sigma_rel: float) -> float:
    """Return gamma of the profile tau^gamma whose relative standard deviation is `sigma_rel`.

    Raises:
        ValueError: not between 0 and 12^(-1/2) = 0.289, beyond which early steps would weigh more than late ones.
    """
    if not 0 < sigma_rel < _UNIFORM:
        raise ValueError(f"profile_exponent: sigma_rel lies between 0 and {_UNIFORM:.3f}, got {sigma_rel}")
    # gamma^3 + 7 gamma^2 + (16 - sigma_rel^-2) gamma + 12 - sigma_rel^-2 = 0; all three roots are real
    return float(np.roots([1, 7, 16 - sigma_rel**-2, 12 - sigma_rel**-2]).real.max())


class PowerEMA:
    """Handler that averages a network's parameters after every iteration and keeps snapshots of the averages.

    A snapshot `<folder>/ema_<step>.pt` holds `step`, `sigma_rel` (K,), `averages` name -> (K, *shape) and `buffers`
    name -> (*shape). `reconstruct_ema` averages up to the last one, so let `interval` divide the run's iterations,
    and give each run a folder of its own.

    Args:
        network: whose parameters are averaged, in float32 or more, on the device where they lie now; buffers are
            copied.
        folder: where snapshots go.
        interval: iterations from one snapshot to the next. On a smooth path 32 snapshots of the default widths give
            the width 0.075 to 1e-4 of its distance from the last weights, and twice as many a sixteenth of that.
        sigma_rel: K relative widths.

    Raises:
        ValueError: no width, one given twice or out of range, or an interval below 1.
    """

    def __init__(
        self, network: nn.Module, folder: str | Path, interval: int, sigma_rel: Sequence[float] = (0.05, 0.10)
    ) -> None:
        if not sigma_rel or len(set(sigma_rel)) < len(sigma_rel):
            raise ValueError(f"PowerEMA: sigma_rel must be different widths, at least one, got {list(sigma_rel)}")
        if interval < 1:
            raise ValueError(f"PowerEMA: interval must be 1 iteration or more, got {interval}")
        self.network, self.folder, self.interval = network, Path(folder), interval
        self.sigma_rel = tuple(sigma_rel)
        self.gammas = [profile_exponent(s) for s in self.sigma_rel]
        self.step = 0
        self.averages = {
            name: torch.stack([p.detach()] * len(self.gammas)).to(torch.promote_types(p.dtype, torch.float32))
            for name, p in self._parameters().items()
        }

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.network.named_parameters(remove_duplicate=False))

    def _buffers(self) -> dict[str, Tensor]:
        return {name: v for name, v in self.network.state_dict().items() if name not in self.averages}

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Take in the parameters after the iteration that ended."""
        self.step += 1
        for name, p in self._parameters().items():
            for average, gamma in zip(self.averages[name], self.gammas, strict=True):
                average.lerp_(p.to(average), 1 - (1 - 1 / self.step) ** (gamma + 1))
        if self.step % self.interval == 0 and _rank() == 0:
            self._save()

    def _save(self) -> None:
        snapshot = {
            "step": torch.tensor(self.step),
            "sigma_rel": torch.tensor(self.sigma_rel, dtype=torch.float64),
            "averages": {name: v.cpu() for name, v in self.averages.items()},
            "buffers": {name: v.cpu() for name, v in self._buffers().items()},
        }
        # A resumed run comes by the steps after its checkpoint a second time.
        with written_whole(self.folder / f"ema_{self.step}.pt", overwrite=True) as partial:
            torch.save(snapshot, partial)

    def state_dict(self) -> dict[str, Any]:
        """The averages so far; like a module's, not a copy."""
        return {"step": self.step, "sigma_rel": list(self.sigma_rel), "averages": self.averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the averages of a checkpoint.

        Raises:
            ValueError: they are of other widths or of another network.
        """
        if tuple(state["sigma_rel"]) != self.sigma_rel:
            raise ValueError(f"PowerEMA: tracks sigma_rel {list(self.sigma_rel)}, state has {state['sigma_rel']}")
        if _shapes(state["averages"]) != _shapes(self.averages):
            raise ValueError("PowerEMA: the state is of a network with other parameters")
        self.step = state["step"]
        for name, average in self.averages.items():
            average.copy_(state["averages"][name])


def reconstruct_ema(folder: str | Path, sigma_rel: float) -> dict[str, Tensor]:
    """Return the network's state dict, averaged with any relative width up to the last snapshot in a folder.

    Tracked widths come out exactly and those between them closely; farther out it needs more snapshots.

    Args:
        folder: of snapshots that one `PowerEMA` wrote.
        sigma_rel: the width wanted.

    Raises:
        UserError: no snapshot there, or not all of one network.
        ValueError: the width is out of range.
    """
    gamma = profile_exponent(sigma_rel)
    paths = list(Path(folder).glob("ema_*.pt"))
    if not paths:
        raise UserError(folder, "holds no snapshot ema_<step>.pt", "name the folder that PowerEMA wrote to")
    snapshots = [torch.load(path, map_location="cpu", mmap=True, weights_only=True) for path in paths]
    last = max(snapshots, key=lambda s: int(s["step"]))
    for path, snapshot in zip(paths, snapshots, strict=True):
        if _shapes(snapshot["averages"]) != _shapes(last["averages"]):
            raise UserError(path, f"has other parameters than step {int(last['step'])}", "keep each run in a folder")
    # One row for each average of each snapshot.
    rows = [(int(s["step"]), profile_exponent(float(width))) for s in snapshots for width in s["sigma_rel"]]
    weights = iter(torch.from_numpy(_weights(np.array(rows, dtype=np.float64), int(last["step"]), gamma)))
    sums = {name: torch.zeros(v.shape[1:], dtype=torch.float64) for name, v in last["averages"].items()}
    for snapshot in snapshots:
        w = torch.stack([next(weights) for _ in snapshot["sigma_rel"]])
        for name, average in snapshot["averages"].items():
            sums[name] += torch.tensordot(w, average.double(), dims=1)
    averages = {name: v.to(last["averages"][name].dtype) for name, v in sums.items()}
    return averages | {name: v.clone() for name, v in last["buffers"].items()}


def _weights(rows: np.ndarray, step: int, gamma: float) -> np.ndarray:
    """Weights (N,) of the profiles `rows` (N, 2) of (step, gamma) that come nearest to the one wanted."""
    t, g = rows.T
    A, b = _product(t[:, None], g[:, None], t, g), _product(t, g, np.array(step), np.array(gamma))
    w = np.linalg.solve(A, b)
    return w / w.sum()


def _product(ta: np.ndarray, ga: np.ndarray, tb: np.ndarray, gb: np.ndarray) -> np.ndarray:
    """Inner product of two profiles p(tau) = (gamma + 1) tau^gamma / t^(gamma+1) on [0, t]."""
    e = np.where(ta < tb, gb, -ga)
    return (ga + 1) * (gb + 1) * (ta / tb) ** e / ((ga + gb + 1) * np.maximum(ta, tb))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: v.shape for name, v in tensors.items()}
