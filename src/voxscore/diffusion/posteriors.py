"""Posteriors: a denoiser that has seen a measurement is a denoiser again.

Of a volume x_0 a scanner measured y = A(x_0) + r z. Tweedie's formula for the posterior,

    E[x_0 | x_t, y] = D + (sigma^2/alpha) grad ln p(y | x_t),

turns a denoiser D into the posterior's, which every sampler and the likelihood take. The methods differ in what they
believe of p(x_0 | x_t), on which p(y | x_t) = N(y; A D, A C A^T + r^2) rests:

    MomentMatching   C = (sigma^2/alpha) dD/dx, its true covariance: exact for Gaussian data and linear A
    PiGDM            C = r_t^2, one number for all voxels, but the gradient still goes through the network
    Projection       as PiGDM without the network's gradient: the least change of D that agrees with y (DDNM, r = 0)
    Decomposed       a few conjugate-gradient steps towards the same, from D (DDS): the cheapest

with r_t^2 = sigma^2 s^2 / (alpha^2 s^2 + sigma^2), the variance that is left of N(0, s^2). `DPS` needs the sampling
loop, since it takes a gradient step after each sampling step, and is therefore a sampler.

Any callable does for A: it maps volumes (B, C, *spatial) to measurements (B, ...), real or complex; its derivative at
D and that derivative's adjoint come from automatic differentiation, so A may be non-linear too. A `Linear` operator
brings its adjoint and A^H A along, which is several times faster for accelerated MRI. Gradients are taken
inside whether the caller switched them off or not; where x itself asks for a gradient, as in a likelihood, the result
can be differentiated once more, at the price of a graph through all of it.

How far off they are: of a Gaussian with 12 voxels of standard deviation about 1, five noisy measurements; the ODE is
followed for 50 Heun steps with the exact posterior and with each method, and the root mean square distance of the
ends is 0 for MomentMatching, 0.08 for PiGDM, 0.148 for Projection and Decomposed, 0.18 for DPS at the best zeta found
(0.03; at the published 1 it is above 1), 0.73 for the prior alone. tests/diffusion/test_posteriors.py measures it.

Sources: Rozet et al., Learning Diffusion Priors from Observations by Expectation Maximization, NeurIPS 2024
(moment matching); Song et al., Pseudoinverse-Guided Diffusion Models for Inverse Problems, ICLR 2023 (PiGDM); Chung
et al., Diffusion Posterior Sampling, ICLR 2023 (DPS); Wang et al., DDNM, ICLR 2023; Chung et al., Decomposed
Diffusion Sampler, ICLR 2024 (DDS).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from voxscore.diffusion.denoisers import Denoiser
from voxscore.diffusion.ode_samplers import Levels, ddim_step
from voxscore.diffusion.samplers import Noise, Sampler

__all__ = ["DPS", "Decomposed", "Linear", "MomentMatching", "PiGDM", "Projection", "conjugate_gradient"]

Operator = Callable[[Tensor], Tensor]


@runtime_checkable
class Linear(Protocol):
    """A linear operator that knows its adjoint, as those of `voxscore.measurement` do."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """A x (B, ...) of volumes x (B, C, *spatial)."""

    def adjoint(self, y: Tensor, /) -> Tensor:
        """A^H y (B, C, *spatial), in the real inner product."""

    def normal(self, x: Tensor, /) -> Tensor:
        """A^H A x."""


@contextmanager
def _gradients() -> Iterator[None]:
    """Gradients inside, whatever the caller switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _asks_for_gradient(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


def _leaf(x: Tensor) -> Tensor:
    """x to differentiate by: itself if its caller does too, else a copy without a past."""
    return x if _asks_for_gradient(x) else x.detach().clone().requires_grad_()


class _Tangent:
    """The derivative of an operator at a volume, its adjoint, and the product of both."""

    def __init__(self, operator: Operator, x: Tensor, graph: bool) -> None:
        with _gradients():
            self.graph = graph
            self.x = x if graph else x.detach().clone().requires_grad_()
            self.y = operator(self.x)
            self.cotangent = torch.zeros_like(self.y, requires_grad=True)
            (self.pullback,) = torch.autograd.grad(self.y, self.x, self.cotangent, create_graph=True)

    def adjoint(self, v: Tensor) -> Tensor:
        return torch.autograd.grad(self.y, self.x, v, retain_graph=True, create_graph=self.graph)[0]

    def forward(self, u: Tensor) -> Tensor:
        return torch.autograd.grad(self.pullback, self.cotangent, u, retain_graph=True, create_graph=self.graph)[0]

    def normal(self, u: Tensor) -> Tensor:
        return self.adjoint(self.forward(u))


class _LinearTangent:
    """The same of an operator that is its own derivative."""

    def __init__(self, operator: Linear, x: Tensor, graph: bool) -> None:
        self.graph = graph
        self.y = operator(x if graph else x.detach())
        self.forward, self.adjoint, self.normal = operator.__call__, operator.adjoint, operator.normal


def _tangent(operator: Operator, x: Tensor, graph: bool) -> _Tangent | _LinearTangent:
    return _LinearTangent(operator, x, graph) if isinstance(operator, Linear) else _Tangent(operator, x, graph)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The real inner product of each volume (or measurement), (B, 1, ...)."""
    product = (a.conj() * b).real if a.is_complex() else a * b
    return product.flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))


def conjugate_gradient(
    matvec: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float = 1e-6
) -> Tensor:
    """Solve M z = b for a symmetric positive semi-definite M, each member of the batch on its own, from z = 0.

    Args:
        matvec: z -> M z.
        b: (B, ...), real or complex.
        iterations: at most so many products.
        tolerance: stop once every residual is below this share of its b.

    Returns:
        z, shaped like b.
    """
    z, residual = torch.zeros_like(b), b
    direction, size = residual, _dot(residual, residual)
    goal = tolerance**2 * size
    for _ in range(iterations):
        if (size <= goal).all():
            break
        product = matvec(direction)
        curvature = _dot(direction, product)
        # A member that has converged, or a direction M does not see, stands still.
        step = torch.where((size > goal) & (curvature > 0), size / curvature, 0.0)
        z, residual = z + step * direction, residual - step * product
        size, previous = _dot(residual, residual), size
        direction = residual + torch.where(previous > 0, size / previous, 0.0) * direction
    return z


class _Measured(Denoiser):
    """What the methods share.

    Args:
        denoiser: E[x_0 | x_t] of the prior.
        operator: A.
        y: the measurement (1 or B, ...).
        noise_std: r, standard deviation of its noise (of each of real and imaginary part, if complex).
    """

    def __init__(self, denoiser: Denoiser, operator: Operator, y: Tensor, noise_std: float) -> None:
        super().__init__(denoiser.path)
        if noise_std < 0:
            raise ValueError(f"{type(self).__name__}: noise_std cannot be negative, got {noise_std}")
        self.denoiser, self.operator, self.y, self.noise_std = denoiser, operator, y, noise_std

    def residual(self, tangent: _Tangent | _LinearTangent) -> Tensor:
        """Measurement y - A(D).

        Raises:
            ValueError: A maps to another shape than the measurement has.
        """
        predicted = tangent.y if tangent.graph else tangent.y.detach()
        return _misfit(self.y, predicted)

    def tweedie_gain(self, x: Tensor, t: Tensor) -> Tensor:
        """sigma^2 / alpha, ready to multiply x.

        Raises:
            ValueError: no signal is left at t, where it is infinite.
        """
        gain = self.path.sigma(t) ** 2 / self.path.alpha(t)
        if torch.isinf(gain).any():
            raise ValueError(
                f"{type(self).__name__} needs some signal: begin the times below pure noise, as karras_times does"
            )
        return self.expand(gain, x)


def _misfit(y: Tensor, predicted: Tensor) -> Tensor:
    if y.shape[1:] != predicted.shape[1:] or len(y) not in (1, len(predicted)):
        raise ValueError(
            f"the operator makes {tuple(predicted.shape)} of the volume, the measurement is {tuple(y.shape)}"
        )
    return y.to(predicted.device) - predicted


class MomentMatching(_Measured):
    """C = (sigma^2/alpha) dD/dx: exact for Gaussian data and a linear operator.

    Solves (A C A^T + r^2) w = y - A D by conjugate gradients and returns D + C A^T w. An iteration costs one backward
    pass through the network.

    Args:
        denoiser: E[x_0 | x_t] of the prior.
        operator: A.
        y: the measurement (1 or B, ...).
        noise_std: r.
        iterations: of conjugate gradients.
        tolerance: relative residual at which they stop.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        operator: Operator,
        y: Tensor,
        noise_std: float,
        iterations: int = 8,
        tolerance: float = 1e-6,
    ) -> None:
        super().__init__(denoiser, operator, y, noise_std)
        self.iterations, self.tolerance = iterations, tolerance

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """E[x_0 | x_t = x, y] of x (B, C, *spatial) at times t, () or (B,).

        Raises:
            ValueError: no signal is left at t; the operator makes another shape than the measurement has.
        """
        gain, graph = self.tweedie_gain(x, t), _asks_for_gradient(x)
        with _gradients():
            leaf = _leaf(x)
            d = self.denoiser(leaf, t, **cond)

        def covariance(u: Tensor) -> Tensor:
            return gain * torch.autograd.grad(d, leaf, u, retain_graph=True, create_graph=graph)[0]

        tangent = _tangent(self.operator, d, graph)
        w = conjugate_gradient(
            lambda v: tangent.forward(covariance(tangent.adjoint(v))) + self.noise_std**2 * v,
            self.residual(tangent),
            self.iterations,
            self.tolerance,
        )
        return (d if graph else d.detach()) + covariance(tangent.adjoint(w))


class _Isotropic(_Measured):
    """C = r_t^2, one number for all voxels."""

    def __init__(
        self,
        denoiser: Denoiser,
        operator: Operator,
        y: Tensor,
        noise_std: float,
        sigma_data: float = 1.0,
        iterations: int = 32,
    ) -> None:
        super().__init__(denoiser, operator, y, noise_std)
        self.sigma_data, self.iterations = sigma_data, iterations

    def spread(self, t: Tensor) -> Tensor:
        """r_t^2 at times t, shaped like t."""
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        return sigma**2 * self.sigma_data**2 / (alpha**2 * self.sigma_data**2 + sigma**2)

    def agreement(self, tangent: _Tangent | _LinearTangent, t: Tensor) -> Tensor:
        """A^T (r_t^2 A A^T + r^2)^-1 (y - A D)."""
        residual, noise = self.residual(tangent), self.noise_std**2
        spread = self.expand(self.spread(t), residual.real)
        return tangent.adjoint(
            conjugate_gradient(
                lambda v: spread * tangent.forward(tangent.adjoint(v)) + noise * v, residual, self.iterations
            )
        )


class PiGDM(_Isotropic):
    """C = r_t^2: one backward pass through the network.

    Returns D + (sigma^2/alpha) (dD/dx)^T A^T w with (r_t^2 A A^T + r^2) w = y - A D (eq. 7 and 8, noisy case).

    Args:
        denoiser: E[x_0 | x_t] of the prior.
        operator: A.
        y: the measurement (1 or B, ...).
        noise_std: r.
        sigma_data: standard deviation of the clean data, 1 as published.
        iterations: of conjugate gradients, which cost no evaluation.
    """

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """An estimate of E[x_0 | x_t = x, y] of x (B, C, *spatial) at times t, () or (B,).

        Raises:
            ValueError: no signal is left at t; the operator makes another shape than the measurement has.
        """
        gain, graph = self.tweedie_gain(x, t), _asks_for_gradient(x)
        with _gradients():
            leaf = _leaf(x)
            d = self.denoiser(leaf, t, **cond)
        pull = self.agreement(_tangent(self.operator, d, graph), t)
        (gradient,) = torch.autograd.grad(d, leaf, pull, create_graph=graph)
        return (d if graph else d.detach()) + gain * gradient


class Projection(_Isotropic):
    """The least change of D that agrees with the measurement; with r = 0 DDNM, D + A^+ (y - A D).

    With noise the change is r_t^2 A^T (r_t^2 A A^T + r^2)^-1 (y - A D), which trusts the measurement less the smaller
    the noise level. Nothing goes backward through the network.

    Args:
        denoiser: E[x_0 | x_t] of the prior.
        operator: A.
        y: the measurement (1 or B, ...).
        noise_std: r.
        sigma_data: standard deviation of the clean data.
        iterations: of conjugate gradients, which cost no evaluation.
    """

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """An estimate of E[x_0 | x_t = x, y] of x (B, C, *spatial) at times t, () or (B,).

        Raises:
            ValueError: the operator makes another shape than the measurement has.
        """
        d = self.denoiser(x, t, **cond)
        pull = self.agreement(_tangent(self.operator, d, _asks_for_gradient(d)), t)
        return d + self.expand(self.spread(t), x) * pull


class Decomposed(_Isotropic):
    """A few conjugate-gradient steps from D towards the measurement, in the space of clean volumes (DDS).

    The steps solve (A^T A + r^2/r_t^2) change = A^T (y - A D); stopping early keeps the change where the measurement
    speaks clearly. The published weight gamma is r_t^2/r^2 here, so that it follows the noise of the measurement.

    Args:
        denoiser: E[x_0 | x_t] of the prior.
        operator: A.
        y: the measurement (1 or B, ...).
        noise_std: r.
        sigma_data: standard deviation of the clean data.
        iterations: conjugate-gradient steps, 5 as published; they cost no evaluation.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        operator: Operator,
        y: Tensor,
        noise_std: float,
        sigma_data: float = 1.0,
        iterations: int = 5,
    ) -> None:
        super().__init__(denoiser, operator, y, noise_std, sigma_data, iterations)

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """An estimate of E[x_0 | x_t = x, y] of x (B, C, *spatial) at times t, () or (B,).

        Raises:
            ValueError: the operator makes another shape than the measurement has.
        """
        d = self.denoiser(x, t, **cond)
        tangent = _tangent(self.operator, d, _asks_for_gradient(d))
        # Multiplied by r_t^2, so that it holds without noise in x or in y.
        spread = self.expand(self.spread(t), x)
        return d + conjugate_gradient(
            lambda u: spread * tangent.normal(u) + self.noise_std**2 * u,
            spread * tangent.adjoint(self.residual(tangent)),
            self.iterations,
        )


@dataclass(frozen=True, eq=False)
class DPS(Sampler):
    """Diffusion posterior sampling as published: an ancestral step, then a step down the misfit (Alg. 1).

    x_s = ancestral(x_t) - zeta / |y - A D| grad |y - A D|^2, the gradient with respect to x_t, norms per volume. It is
    no denoiser: the step does not scale with sigma, so its strength depends on the number of steps and on zeta.

    Args:
        operator: A.
        y: the measurement (1 or B, ...).
        zeta: step size, their zeta'.
        eta: 1 is the published ancestral sampling, 0 makes the run deterministic.
    """

    order: ClassVar[int] = 1
    operator: Operator
    y: Tensor
    zeta: float = 1.0
    eta: float = 1.0

    @property
    def stochastic(self) -> bool:
        """True if eta > 0."""
        return self.eta > 0

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: None
    ) -> tuple[Tensor, None]:
        """One evaluation and one backward pass through the network.

        Raises:
            ValueError: the operator makes another shape than the measurement has.
        """
        with _gradients():
            leaf = x.detach().clone().requires_grad_()
            d = denoiser(leaf, t)
            misfit = torch.linalg.vector_norm(_misfit(self.y, self.operator(d)).flatten(1), dim=1)
            # grad |.|^2 / |.| = 2 grad |.|
            (gradient,) = torch.autograd.grad(misfit.sum(), leaf)
        moved = ddim_step(x, d.detach(), Levels.of(denoiser.path, t, s), self.eta, noise)
        return moved - 2 * self.zeta * gradient, None
