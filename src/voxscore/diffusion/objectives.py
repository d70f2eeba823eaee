"""What training minimises: denoising score matching.

Among all functions of the noisy volume the one with the least squared error is the denoiser itself,

    argmin_D  E lambda(t) |D(x_t, t) - x_0|^2  =  E[x_0 | x_t],    x_t = alpha x_0 + sigma eps,

whatever the weight lambda(t) > 0 and whatever the times; both only decide where a network spends its capacity. In
terms of the noise-to-signal ratio rho = sigma/alpha, which makes them the same on every path,

    EDM            lambda = 1/rho^2 + 1/s^2       |F - target|^2 with weight 1 for the network F of the row "edm"
    min-SNR        lambda = min(1/rho^2, gamma)   the signal-to-noise ratio, capped
    uncertainty    loss / e^u(rho) + u(rho)       u learned; at its optimum every noise level weighs the same

and times are drawn by ln rho ~ N(mean, std^2). A joint state has a time for each group, drawn from regimes that are
mixed by their probabilities: each is a question the network is to answer later (see `groups`).

A categorical group is compared by cross-entropy, whose optimum p(class | x_t) is the same expectation.

Sources: Vincent, A Connection Between Score Matching and Denoising Autoencoders, Neural Computation 2011; Karras et
al., NeurIPS 2022, Table 1 (weight, distribution of noise levels); Hang et al., Efficient Diffusion Training via
Min-SNR Weighting Strategy, ICCV 2023; Karras et al., Analyzing and Improving the Training Dynamics of Diffusion
Models, CVPR 2024, eq. 21 (uncertainty); Bao et al., ICML 2023 (a time per group).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from voxscore.diffusion.augmentation import Augmentation
from voxscore.diffusion.denoisers import Denoiser
from voxscore.diffusion.groups import JointNetDenoiser
from voxscore.diffusion.paths import Path

__all__ = [
    "EDMWeight",
    "GroupMode",
    "GroupTimes",
    "JointLoss",
    "LogNormalTimes",
    "MinSNRWeight",
    "NoisyState",
    "Uncertainty",
    "Weight",
    "denoising_loss",
    "head_loss",
    "joint_loss",
    "noisy_state",
]

Weight = Callable[[Path, Tensor], Tensor]
"""lambda(path, t) of times t, shaped like t."""


@dataclass(frozen=True)
class EDMWeight:
    """1/rho^2 + 1/s^2, that is (rho^2 + s^2) / (rho s)^2 of Karras et al., Table 1; inf without noise.

    With (alpha, sigma) in the row "edm" the network's c_out^2 is the inverse of it on every path, so that each noise
    level puts the same weight on the network's output.

    Args:
        sigma_data: s, standard deviation of the clean data.
    """

    sigma_data: float = 0.5

    def __call__(self, path: Path, t: Tensor) -> Tensor:
        """The weight at times t, shaped like t."""
        return 1 / path.ratio(t) ** 2 + 1 / self.sigma_data**2


@dataclass(frozen=True)
class MinSNRWeight:
    """min(1/rho^2, gamma), the weight of Hang et al. for a squared error of x_0; 0 where no signal is left.

    Args:
        gamma: the cap.
    """

    gamma: float = 5.0

    def __call__(self, path: Path, t: Tensor) -> Tensor:
        """The weight at times t, shaped like t."""
        return (1 / path.ratio(t) ** 2).clamp(max=self.gamma)


class Uncertainty(nn.Module):
    """loss / e^u + u, where the learned u(rho) estimates the logarithm of the loss at each noise level.

    For a given network it is least at e^u = E[loss | rho]: every level then contributes 1 to the quotient, and its
    gradient on the network is relative to what is still wrong there. u is piecewise linear in ln rho, constant outside
    the knots, and 0 at first; the sum is convex in its parameters. It only serves training.

    Args:
        ratio_min: rho of the first knot.
        ratio_max: rho of the last.
        knots: how many, evenly spaced in ln rho.

    Raises:
        ValueError: not 0 < ratio_min < ratio_max, or fewer than two knots.
    """

    def __init__(self, ratio_min: float = 0.002, ratio_max: float = 80.0, knots: int = 16) -> None:
        super().__init__()
        if not 0 < ratio_min < ratio_max < math.inf or knots < 2:
            raise ValueError(
                f"Uncertainty: 0 < ratio_min < ratio_max and two knots at least, got {ratio_min}, {ratio_max}, {knots}"
            )
        self.log_min, self.log_max = math.log(ratio_min), math.log(ratio_max)
        self.values = nn.Parameter(torch.zeros(knots))

    def log_loss(self, ratio: Tensor) -> Tensor:
        """u at noise-to-signal ratios of any shape, 0 and inf included."""
        last = len(self.values) - 1
        position = (ratio.log() - self.log_min) / (self.log_max - self.log_min) * last
        position = position.to(self.values).clamp(0, last)
        k = position.detach().floor().long().clamp(max=last - 1)
        return torch.lerp(self.values[k], self.values[k + 1], position - k)

    def forward(self, loss: Tensor, path: Path, t: Tensor) -> Tensor:
        """The weighted loss.

        Args:
            loss: per volume (B,), already weighted, as `denoising_loss` returns it.
            path: the path.
            t: the times (B,) it was taken at; a time without noise keeps its loss as it is.
        """
        ratio = path.ratio(t).to(self.values)
        u = torch.where(ratio > 0, self.log_loss(ratio), 0.0).to(loss)
        return loss * torch.exp(-u) + u


@dataclass(frozen=True)
class LogNormalTimes:
    """Times with ln rho ~ N(mean, std^2); what would lie beyond the path's pure noise is moved there.

    Args:
        mean: of ln rho.
        std: of ln rho.
    """

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, path: Path, batch: int, generator: Generator) -> Tensor:
        """Times (batch,), float64, on the device of the generator."""
        z = torch.randn(batch, generator=generator, device=generator.device, dtype=torch.float64)
        return path.time(torch.exp(self.mean + self.std * z)).clamp(max=float(path.t_noise))


GroupMode = Literal["clean", "noise", "shared", "own"]
"""The noise of a group in a regime: none; pure; the level that all "shared" groups have; a level of its own."""

# From the path, the volume's shared times (B, 1) and each group's own (B, G), times that broadcast to (B, G).
_MODES: dict[GroupMode, Callable[[Path, Tensor, Tensor], Tensor]] = {
    "clean": lambda path, shared, own: torch.full_like(own, path.span[0]),
    "noise": lambda path, shared, own: torch.full_like(own, float(path.t_noise)),
    "shared": lambda path, shared, own: shared.expand_as(own),
    "own": lambda path, shared, own: own,
}


@dataclass(frozen=True)
class GroupTimes:
    """Times of the groups of a joint state: each volume gets a regime by its probability.

    For a state of an image and its label,

        GroupTimes([[0.4, ["clean", "noise"]], [0.35, ["shared", "shared"]], [0.25, ["own", "own"]]])

    spends 40 % on segmentation, 35 % on the way that `sample` walks with both groups, and 25 % on all other pairs of
    levels. "clean" conditions on a group, "noise" marginalises it.

    Args:
        regimes: pairs of a probability and a mode for each group, in the order of the groups. They may come from JSON.
        levels: the distribution of the levels that are neither clean nor pure noise.

    Raises:
        ValueError: no regime, probabilities that do not sum to one, an unknown mode, regimes of different lengths.
    """

    regimes: Sequence[tuple[float, Sequence[GroupMode]]]
    levels: LogNormalTimes = field(default_factory=LogNormalTimes)

    def __post_init__(self) -> None:
        regimes = tuple((float(probability), tuple(modes)) for probability, modes in self.regimes)
        object.__setattr__(self, "regimes", regimes)
        probabilities = [probability for probability, _ in regimes]
        if not regimes or min(probabilities) < 0 or abs(sum(probabilities) - 1) > 1e-6:
            raise ValueError(f"GroupTimes: the probabilities of the regimes must sum to one, got {probabilities}")
        if len({len(modes) for _, modes in regimes}) > 1:
            raise ValueError(f"GroupTimes: every regime names a mode for each group, got {regimes}")
        unknown = {mode for _, modes in regimes for mode in modes} - set(_MODES)
        if unknown:
            raise ValueError(f"GroupTimes: a mode is one of {list(_MODES)}, got {sorted(unknown)}")

    def __call__(self, path: Path, batch: int, generator: Generator) -> Tensor:
        """Times (batch, G), float64, on the device of the generator."""
        names = list(_MODES)
        device = generator.device
        probabilities = torch.tensor([p for p, _ in self.regimes], dtype=torch.float64, device=device)
        modes = torch.tensor([[names.index(mode) for mode in modes] for _, modes in self.regimes], device=device)
        chosen = modes[torch.multinomial(probabilities, batch, replacement=True, generator=generator)]
        shared = self.levels(path, batch, generator)[:, None]
        own = self.levels(path, chosen.numel(), generator).reshape(chosen.shape)
        times = torch.stack([times(path, shared, own) for times in _MODES.values()])
        return times.gather(0, chosen[None])[0]


def _noisy(
    denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, augmentation: Augmentation | None
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """T x_t, T x_0, and what the denoiser is told of T."""
    if noise.shape != x0.shape:
        raise ValueError(f"the noise must be shaped like the volumes {tuple(x0.shape)}, got {tuple(noise.shape)}")
    alpha, sigma = denoiser.levels(x0, t)
    x = alpha * x0 + sigma * noise
    if augmentation is None:
        return x, x0, {}
    omega = augmentation.omega.to(x.device, torch.promote_types(x.dtype, torch.float32))
    return augmentation(x), augmentation(x0), {"cond": omega}


def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    weight: Weight,
    augmentation: Augmentation | None = None,
) -> Tensor:
    """lambda(t) |D(x_t, t) - x_0|^2, the mean over channels and voxels, for each volume.

    Args:
        denoiser: to be trained.
        x0: clean volumes (B, C, *spatial).
        t: their times, (B,) or (), with noise.
        noise: standard normals shaped like x0.
        weight: lambda, for instance `EDMWeight`.
        augmentation: transforms of the noisy volumes, drawn by `ScoreAug`; the denoiser is told them as `cond`.

    Returns:
        (B,), to be averaged.

    Raises:
        ValueError: the noise or the denoiser's result has another shape than x0.
    """
    x, target, cond = _noisy(denoiser, x0, t, noise, augmentation)
    d = denoiser(x, t, **cond)
    if d.shape != target.shape:
        raise ValueError(f"denoising_loss: the denoiser made {tuple(d.shape)} of a volume {tuple(target.shape)}")
    error = (d - target).square().flatten(1).mean(1)
    return weight(denoiser.path, t).to(error) * error


class NoisyState(NamedTuple):
    """A joint state with noise on it, and what `joint_loss` knows of it.

    Args:
        x: noisy volumes (B, C, *spatial).
        t: their times (B, G).
        target: the clean volumes (B, C, *spatial).
        cond: what the network is told besides.
    """

    x: Tensor
    t: Tensor
    target: Tensor
    cond: dict[str, Any]


class JointLoss(NamedTuple):
    """What `joint_loss` found; outputs and targets are for further terms, a Dice loss of the label say.

    Args:
        losses: (B, G), a column per group, 0 where a group was clean.
        outputs: per group E[x_0 | x_t] or, of a categorical one, the logits, (B, C_g, *spatial).
        targets: per group what they are compared with, (B, C_g, *spatial).
    """

    losses: Tensor
    outputs: list[Tensor]
    targets: list[Tensor]


def joint_loss(
    denoiser: JointNetDenoiser, x0: Tensor, t: Tensor, noise: Tensor, augmentation: Augmentation | None = None
) -> JointLoss:
    """The loss of each group, in one evaluation: a squared error with its group's weight, or a cross-entropy in nats.

    Both are means over voxels. A voxel whose one-hot channels are all 0 has no class and adds nothing.

    Args:
        denoiser: to be trained.
        x0: clean volumes (B, C, *spatial), the channels of all groups.
        t: their times, as `GroupTimes` draws them, (B, G), or () for all alike.
        noise: standard normals shaped like x0.
        augmentation: transforms of the noisy volumes, drawn by `ScoreAug`; the network is told them as `cond`.

    Raises:
        ValueError: the noise or the network's output has another shape than x0; times or channels do not fit the
            groups.
    """
    state = noisy_state(denoiser, x0, t, noise, augmentation)
    return head_loss(denoiser, state, denoiser.raw(state.x, state.t, **state.cond))


def noisy_state(
    denoiser: JointNetDenoiser, x0: Tensor, t: Tensor, noise: Tensor, augmentation: Augmentation | None = None
) -> NoisyState:
    """The first half of `joint_loss`, of the same arguments: what the network is called with."""
    times = denoiser.group_times(x0, t).expand(len(x0), -1)
    x, target, cond = _noisy(denoiser, x0, times, noise, augmentation)
    return NoisyState(x, times, target, cond)


def head_loss(denoiser: JointNetDenoiser, state: NoisyState, f: Tensor) -> JointLoss:
    """The second half of `joint_loss`: the loss of what the network, or one head of it, made of a state.

    Args:
        denoiser: whose network it was.
        state: that `raw` of the denoiser was called with.
        f: shaped like `state.x`.
    """
    path, times = denoiser.path, state.t
    outputs = denoiser.interpret(f, state.x, times)
    targets = [state.target[:, part] for part in denoiser.slices().values()]
    noisy = (path.sigma(times) > 0).to(state.x.device)
    losses = []
    for k, (group, output, clean) in enumerate(zip(denoiser.groups, outputs, targets, strict=True)):
        if group.categorical:
            loss = cross_entropy(output, clean.to(output), reduction="none").flatten(1).mean(1)
        else:
            weight = group.weight(path, times[:, k]).to(state.x)
            # An infinite weight must not meet the zero error of a clean group, not even in the gradient.
            weight = torch.where(noisy[:, k], weight, 0.0)
            loss = weight * (output - clean).square().flatten(1).mean(1)
        losses.append(torch.where(noisy[:, k], loss, 0.0))
    return JointLoss(torch.stack(losses, dim=1), outputs, targets)
