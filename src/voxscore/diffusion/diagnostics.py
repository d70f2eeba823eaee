"""Is it a score? When to stop? Does it copy?

A score is the gradient of a log-density. Its Jacobian J is symmetric and its integral between two volumes does not
depend on the way, so that

    E |(J - J^T) v|^2 = |J - J^T|_F^2 = 0      for random signs v,
    the integral of score . dl round any circle = 0,
    the integral of score . dl from a to b = ln p(b) - ln p(a).

A network obeys none of them by construction. They are diagnostics, not measures of quality: a field r with
div(p_t r) = 0 may be added to the score and every marginal p_t stays as it is, however far from a gradient r is. An
asymmetry matters where the field is used as a gradient: in line integrals, in guidance that mixes two of them, in
large steps.

Trained for long on few volumes a denoiser tends to that of the finite set (`EmpiricalDenoiser`), which can only copy:
its loss on held-out volumes falls, and then rises. `HeldOutLoss` measures it at fixed noise levels with fixed noise, so
that two evaluations differ by the network alone, `EarlyStopping` watches it, and `memorisation_ratio` looks at samples.

Sources: Vuong et al., Are We Really Learning the Score Function?, TMLR 2025 (both constraints); Hutchinson, 1989
(random signs); Bonnaire et al., Why Diffusion Models Don't Memorize, NeurIPS 2025 (the time to memorise grows with the
set); Yoon et al., Diffusion Probabilistic Models Generalize when They Fail to Memorize, ICML 2023 workshop (the ratio
and its threshold 1/3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from voxscore.diffusion.denoisers import Denoiser
from voxscore.diffusion.objectives import Weight, denoising_loss
from voxscore.diffusion.samplers import VolumeNoise

__all__ = [
    "EarlyStopping",
    "HeldOut",
    "HeldOutLoss",
    "Memorisation",
    "VectorField",
    "jacobian_asymmetry",
    "line_integral",
    "loop_integral",
    "memorisation_ratio",
]

VectorField = Callable[[Tensor], Tensor]
"""Volumes (B, C, *spatial) to as many of the same shape, each for itself: `lambda x: denoiser.score(x, t)`."""


def jacobian_asymmetry(function: VectorField, x: Tensor, probes: int, generator: Generator) -> Tensor:
    """E|(J - J^T) v|^2 / E|J v|^2: 0 for a gradient, 4 for a rotation. A diagnostic, not a score of quality.

    Each probe costs one evaluation and two passes back through it, whether gradients are switched off outside or not.

    Args:
        function: the field; differentiable twice.
        x: where, (B, C, *spatial).
        probes: number of random signs v, shared by numerator and denominator.
        generator: where they come from.

    Returns:
        (B,), the expectations being means over the probes.
    """
    difference, size = x.new_zeros(len(x)), x.new_zeros(len(x))
    for _ in range(probes):
        signs = torch.randint(2, x.shape, generator=generator, device=generator.device)
        with torch.inference_mode(False), torch.enable_grad():
            point = x.detach().clone().requires_grad_()
            v = (2 * signs - 1).to(x).requires_grad_()
            # J^T v is linear in v, and the gradient of w . J^T v is J w: no forward-mode differentiation is needed.
            (transposed,) = torch.autograd.grad(function(point), point, v, create_graph=True)
            (forward,) = torch.autograd.grad(transposed, v, v.detach())
        difference += (forward - transposed.detach()).square().flatten(1).sum(1)
        size += forward.square().flatten(1).sum(1)
    return difference / size


@torch.no_grad()
def loop_integral(function: VectorField, center: Tensor, radius: float, directions: Tensor, points: int = 64) -> Tensor:
    """The integral of the field round a circle: 0 for a gradient. A diagnostic, not a score of quality.

    The trapezoid rule on a circle converges faster than any power of the number of points, for a smooth field.

    Args:
        function: the field.
        center: of the circles, (B, C, *spatial).
        radius: of all of them, in units of x.
        directions: (2, B, C, *spatial), two vectors that span the plane of each circle; two standard normals make it
            a random plane.
        points: on a circle; each costs an evaluation.

    Returns:
        (B,).
    """
    first, second = directions.flatten(2)
    first = first / first.norm(dim=1, keepdim=True)
    second = second - (first * second).sum(1, keepdim=True) * first
    second = second / second.norm(dim=1, keepdim=True)
    total = center.new_zeros(len(center))
    for angle in torch.arange(points, dtype=torch.float64) * (2 * math.pi / points):
        cos, sin = float(angle.cos()), float(angle.sin())
        value = function(center + radius * (cos * first + sin * second).reshape(center.shape))
        total += (value.flatten(1) * (cos * second - sin * first)).sum(1)
    return total * (2 * math.pi * radius / points)


@torch.no_grad()
def line_integral(function: VectorField, start: Tensor, end: Tensor, points: int = 16) -> Tensor:
    """The integral of the field along the straight line, for a score ln p(end) - ln p(start).

    Args:
        function: the field.
        start: (B, C, *spatial).
        end: shaped like it.
        points: of the Gauss-Legendre rule; each costs an evaluation.

    Returns:
        (B,), in nats for a score.
    """
    # Golub and Welsch, 1969: nodes and weights from the recurrence of the Legendre polynomials.
    k = torch.arange(1, points, dtype=torch.float64)
    off_diagonal = torch.diag(k / torch.sqrt(4 * k**2 - 1), 1)
    nodes, vectors = torch.linalg.eigh(off_diagonal + off_diagonal.T)
    total = start.new_zeros(len(start))
    for node, weight in zip(nodes.tolist(), vectors[0].square().tolist(), strict=True):
        value = function(torch.lerp(start, end, (1 + node) / 2))
        total += weight * (value * (end - start)).flatten(1).sum(1)
    return total


class HeldOut(NamedTuple):
    """The loss on held-out volumes.

    Args:
        curve: (n,), E|D - x_0|^2 per voxel at each noise level, without weight.
        mean: (), the mean over the levels of lambda(t) times the curve: what training minimises.
    """

    curve: Tensor
    mean: Tensor


@dataclass(frozen=True, eq=False)
class HeldOutLoss:
    """The denoising loss on held-out volumes, with the same noise levels and the same noise each time it is called.

    A volume's noise follows from the seed and its place among the volumes, not from the batches. All levels share it.
    The denoiser is called as it is: one with dropout belongs in evaluation mode first.

    Args:
        batches: of clean volumes, each (B, C, *spatial); `volumes.split(4)` makes them of one tensor.
        times: the noise levels (n,), all with noise.
        weight: lambda, by which the mean weighs the levels; the training's own makes it comparable with training.
        seed: of the noise.
    """

    batches: Sequence[Tensor]
    times: Tensor
    weight: Weight
    seed: int = 0

    def __call__(self, denoiser: Denoiser) -> HeldOut:
        """The loss of a denoiser, in float64; costs an evaluation of each batch at each level."""
        times = self.times.double()
        generator = Generator().manual_seed(self.seed)
        total, count = torch.zeros(len(times), dtype=torch.float64), 0
        for x0 in self.batches:
            noise = VolumeNoise(generator, len(x0))(x0)
            with torch.no_grad():
                losses = [denoising_loss(denoiser, x0, t, noise, lambda _, t: torch.ones_like(t)) for t in times]
            total += torch.stack([loss.double().sum() for loss in losses]).cpu()
            count += len(x0)
        curve = total / count
        return HeldOut(curve, (self.weight(denoiser.path, times).cpu() * curve).mean())


@dataclass
class EarlyStopping:
    """Remembers the smallest loss and says when to stop looking for a smaller one.

    Args:
        patience: how many evaluations in a row may pass without a smaller loss.
        best: the smallest loss so far.
        best_step: where it was found; None before the first. The weights of that step are the ones to keep.
        waited: evaluations since then.
    """

    patience: int
    best: float = math.inf
    best_step: int | None = None
    waited: int = 0

    def update(self, step: int, loss: float) -> bool:
        """Take note of a loss; NaN is never smaller. True says to stop."""
        if loss < self.best:
            self.best, self.best_step, self.waited = loss, step, 0
        else:
            self.waited += 1
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """What it remembers; the patience is the caller's."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what another remembered."""
        self.best, self.best_step, self.waited = state["best"], state["best_step"], state["waited"]


class Memorisation(NamedTuple):
    """Whether samples are copies.

    Args:
        ratio: (N,), distance to the nearest training volume over that to the second nearest: 0 for a copy, 1 between.
        share: the part of the samples whose ratio is below 1/3, which Yoon et al. call memorised.
    """

    ratio: Tensor
    share: float


def memorisation_ratio(samples: Tensor, train: Tensor | Iterable[Tensor]) -> Memorisation:
    """How much nearer each sample is to one training volume than to all others, by Euclidean distance.

    Training volumes that occur twice hide their copies, except perfect ones: leave out duplicates first.

    Args:
        samples: (N, C, *spatial).
        train: volumes (M, C, *spatial), or batches of them, of which one at a time is held.

    Raises:
        ValueError: fewer than two training volumes.
    """
    batches = train.split(256) if isinstance(train, Tensor) else train
    x = samples.flatten(1).to(torch.promote_types(samples.dtype, torch.float32))
    nearest, count = x.new_full((len(x), 2), math.inf), 0
    for batch in batches:
        # The faster way by matrix products has no digits left for a distance of a copy.
        distances = torch.cdist(x, batch.flatten(1).to(x), compute_mode="donot_use_mm_for_euclid_dist")
        nearest = torch.cat([nearest, distances], dim=1).topk(2, largest=False).values
        count += len(batch)
    if count < 2:
        raise ValueError(f"memorisation_ratio: needs two training volumes at least, got {count}")
    first, second = nearest.unbind(1)
    ratio = torch.where(first == 0, 0.0, first / second)
    return Memorisation(ratio, float((ratio < 1 / 3).double().mean()))
