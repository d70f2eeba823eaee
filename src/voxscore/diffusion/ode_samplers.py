"""Step rules along the probability-flow ODE.

With x/alpha = u, rho = sigma/alpha, lambda = -ln rho and eps = E[noise | x_t] = (u - D)/rho the ODE has two forms,

    du/d rho = eps                                  Euler, Heun, DEIS: polynomials of eps in rho
    d(u/rho)/d lambda = e^lambda D                  DPM-Solver++, UniPC: polynomials of D in lambda

and a rule is exact when its polynomial is. Steps are written for x itself, x_s = alpha_s D + sigma_s eps + ..., which
is finite where alpha = 0 (pure noise, rho infinite) and where sigma = 0 (clean data); there every rule makes a step of
first order. For a point mass (D constant) the rules in lambda are exact in one step, and Euler is the same on all
paths: DDIM, an Euler step of EDM and one of flow matching are one formula.

A multistep rule of order p needs p - 1 steps before it is itself. Its order survives first steps one order lower, so
rules of order 3 begin with one single step of order 2, which costs one evaluation more.

Sources: Song et al., Denoising Diffusion Implicit Models, ICLR 2021 (DDIM); Karras et al., NeurIPS 2022, Alg. 1-2
(Heun, churn); Lu et al., DPM-Solver++, 2022; Zhang and Chen, Fast Sampling of Diffusion Models with Exponential
Integrator, ICLR 2023 (DEIS, rho-AB); Zhao et al., UniPC, NeurIPS 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from voxscore.diffusion.denoisers import Denoiser
from voxscore.diffusion.paths import Path
from voxscore.diffusion.samplers import Noise, Sampler

__all__ = ["DEIS", "DPMSolver", "Euler", "Heun", "UniPC"]


class Levels(NamedTuple):
    """alpha and sigma at both ends of a step, float64 scalars."""

    alpha_t: Tensor
    sigma_t: Tensor
    alpha_s: Tensor
    sigma_s: Tensor

    @classmethod
    def of(cls, path: Path, t: Tensor, s: Tensor) -> Levels:
        return cls(path.alpha(t), path.sigma(t), path.alpha(s), path.sigma(s))

    @property
    def decay(self) -> Tensor:
        """rho_s / rho_t = exp(-h), in [0, 1)."""
        return (self.sigma_s * self.alpha_t) / (self.alpha_s * self.sigma_t)

    @property
    def one_sided(self) -> bool:
        """Whether one end has no signal or no noise, so that h or rho is infinite."""
        return bool(self.alpha_t == 0) or bool(self.sigma_s == 0)


def eps_of(x: Tensor, d: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise that a denoised volume d leaves in x."""
    return (x - alpha * d) / sigma


def ddim_step(x: Tensor, d: Tensor, levels: Levels, eta: float, noise: Noise) -> Tensor:
    """x_s = alpha_s D + sqrt(sigma_s^2 - tau^2) eps + tau z with tau = eta sigma_s sqrt(1 - (rho_s/rho_t)^2).

    DDIM, eq. 12 and 16, for any path. At eta = 1 it draws from q(x_s | x_t, x_0 = D).
    """
    eps = eps_of(x, d, levels.alpha_t, levels.sigma_t)
    if eta == 0:
        return levels.alpha_s * d + levels.sigma_s * eps
    tau = eta * levels.sigma_s * torch.sqrt(1 - levels.decay**2)
    return levels.alpha_s * d + torch.sqrt(levels.sigma_s**2 - tau**2) * eps + tau * noise(x)


@dataclass(frozen=True)
class Euler(Sampler):
    """First order. With eta = 0 DDIM, which is Euler on every path; with eta > 0 DDIM's stochastic family.

    Args:
        eta: share of fresh noise in [0, 1]; 1 is ancestral sampling.

    Raises:
        ValueError: eta outside [0, 1].
    """

    order: ClassVar[int] = 1
    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"Euler: eta lies in [0, 1], got {self.eta}")

    @property
    def stochastic(self) -> bool:
        """True if eta > 0."""
        return self.eta > 0

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: None
    ) -> tuple[Tensor, None]:
        """One evaluation."""
        return ddim_step(x, denoiser(x, t), Levels.of(denoiser.path, t, s), self.eta, noise), None


def heun_step(denoiser: Denoiser, x: Tensor, d: Tensor, s: Tensor, levels: Levels) -> Tensor:
    """Euler, then the mean of eps at both ends of the step; d is the denoised x."""
    eps = eps_of(x, d, levels.alpha_t, levels.sigma_t)
    y = levels.alpha_s * d + levels.sigma_s * eps
    if levels.one_sided:
        return y
    eps_s = eps_of(y, denoiser(y, s), levels.alpha_s, levels.sigma_s)
    return y + 0.5 * (levels.sigma_s - levels.alpha_s * levels.sigma_t / levels.alpha_t) * (eps_s - eps)


@dataclass(frozen=True)
class Heun(Sampler):
    """Second order, two evaluations a step; the step to clean data is Euler's, so n steps cost 2n - 1 evaluations.

    With `gamma` the noise level is first raised to (1 + gamma) rho, the churn of Karras et al.

    Args:
        gamma: their S_churn divided by the number of steps; at most sqrt(2) - 1 is used.
        ratio_min: churn only where rho is at least this (S_tmin).
        ratio_max: churn only where rho is at most this (S_tmax).
        noise_scale: standard deviation of the fresh noise (S_noise); 1 keeps the distribution.

    Raises:
        ValueError: a negative gamma.
    """

    order: ClassVar[int] = 2
    gamma: float = 0.0
    ratio_min: float = 0.0
    ratio_max: float = math.inf
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"Heun: gamma cannot be negative, got {self.gamma}")

    @property
    def stochastic(self) -> bool:
        """True if gamma > 0."""
        return self.gamma > 0

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: None
    ) -> tuple[Tensor, None]:
        """Two evaluations, or one at the ends of the path."""
        path = denoiser.path
        ratio = path.ratio(t)
        # Pure noise cannot be made noisier.
        if self.gamma > 0 and self.ratio_min <= float(ratio) <= self.ratio_max and not torch.isinf(ratio):
            raised = path.time((1 + min(self.gamma, math.sqrt(2) - 1)) * ratio).clamp(max=path.span[1])
            x, t = renoise(path, x, t, raised, self.noise_scale * noise(x)), raised
        return heun_step(denoiser, x, denoiser(x, t), s, Levels.of(path, t, s)), None


def renoise(path: Path, x: Tensor, t: Tensor, s: Tensor, z: Tensor) -> Tensor:
    """Forward along the path, from time t to the noisier time s: x_s = k x_t + sqrt(sigma_s^2 - k^2 sigma_t^2) z."""
    k = path.alpha(s) / path.alpha(t)
    return k * x + torch.sqrt((path.sigma(s) ** 2 - k**2 * path.sigma(t) ** 2).clamp(min=0)) * z


History = tuple[tuple[Tensor, Tensor], ...]
"""(position, value) of earlier evaluations, the latest first."""


@dataclass(frozen=True)
class DPMSolver(Sampler):
    """DPM-Solver++ 1, 2M and 3M (data prediction, multistep), and with eta > 0 their SDE form.

    x_s = (sigma_s/sigma_t) x_t + alpha_s [ (1 - e^-h) D_0 + phi_2 d_1 - 2 phi_3 d_2 ], h = lambda_s - lambda_t,
    phi_2 = 1 + (e^-h - 1)/h, phi_3 = phi_2/h - 1/2, with d_1, d_2 the first and second divided differences of D in
    units of h. The factor 2 integrates the quadratic exactly; code in circulation lacks it and is of second order.
    2M takes the midpoint form (1 - e^-h)/2 for phi_2, as published.

    Args:
        order: 1, 2 or 3.
        eta: 0 solves the ODE, 1 the reverse SDE (SDE-DPM-Solver++); order 2 at most, since noise costs the third.

    Raises:
        ValueError: an order other than 1, 2, 3; eta outside [0, 1]; eta > 0 with order 3.
    """

    order: int = 2
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3) or not 0 <= self.eta <= 1 or (self.eta > 0 and self.order == 3):
            raise ValueError(f"DPMSolver: order is 1, 2 or 3, eta in [0, 1] and 0 for order 3; got {self}")

    @property
    def stochastic(self) -> bool:
        """True if eta > 0."""
        return self.eta > 0

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: History | None
    ) -> tuple[Tensor, History]:
        """One evaluation; two in the first step of order 3."""
        levels = Levels.of(denoiser.path, t, s)
        d0, past = denoiser(x, t), state or ()
        decay = levels.decay
        h = -torch.log(decay)
        fade = decay**self.eta
        gain = 1 - decay * fade  # 1 - e^-(1 + eta) h
        y = levels.sigma_s / levels.sigma_t * fade * x + levels.alpha_s * gain * d0
        if not levels.one_sided:
            if self.order == 3 and not past:
                y = self._midpoint_step(denoiser, x, d0, t, levels)
            elif self.order == 3 and len(past) == 2:
                y = y + levels.alpha_s * _quadratic_part(h, d0, past)
            elif self.order > 1 and past:
                y = y + levels.alpha_s * 0.5 * gain * (h / past[0][0]) * (d0 - past[0][1])
        if self.eta > 0:
            y = y + levels.sigma_s * torch.sqrt(1 - fade**2) * noise(x)
        # An infinite step tells nothing of how D changes.
        return y, () if levels.one_sided else ((h, d0), *past)[: self.order - 1]

    @staticmethod
    def _midpoint_step(denoiser: Denoiser, x: Tensor, d0: Tensor, t: Tensor, levels: Levels) -> Tensor:
        """DPM-Solver++ 2S: D in the middle of the step, in lambda, stands for the whole step."""
        path = denoiser.path
        middle = path.time(path.ratio(t) * torch.sqrt(levels.decay))
        half = Levels.of(path, t, middle)
        u = half.sigma_s / half.sigma_t * x + half.alpha_s * (1 - half.decay) * d0
        return levels.sigma_s / levels.sigma_t * x + levels.alpha_s * (1 - levels.decay) * denoiser(u, middle)


def _quadratic_part(h: Tensor, d0: Tensor, past: History) -> Tensor:
    """phi_2 d_1 - 2 phi_3 d_2 of the quadratic through D_0 and two earlier evaluations, each with the step after it."""
    (h1, d1), (h2, d2) = past
    r1, r2 = h1 / h, h2 / h
    slope1, slope2 = (d0 - d1) / r1, (d1 - d2) / r2
    second = (slope1 - slope2) / (r1 + r2)
    first = slope1 + r1 * second
    phi2 = 1 + torch.expm1(-h) / h
    phi3 = phi2 / h - 0.5
    return phi2 * first - 2 * phi3 * second


def quadrature(nodes: Tensor) -> Tensor:
    """Weights w with sum_i w_i p(z_i) = the integral of p over [0, 1], for polynomials p of degree below len(nodes)."""
    powers = torch.arange(len(nodes), dtype=nodes.dtype)
    return torch.linalg.solve(nodes[None] ** powers[:, None], 1 / (powers + 1))


@dataclass(frozen=True)
class DEIS(Sampler):
    """Adams-Bashforth for eps in rho (rho-AB DEIS).

    Args:
        order: 1 (Euler), 2 or 3.

    Raises:
        ValueError: another order.
    """

    stochastic: ClassVar[bool] = False
    order: int = 2

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"DEIS: order is 1, 2 or 3, got {self.order}")

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: History | None
    ) -> tuple[Tensor, History]:
        """One evaluation; two in the first step of order 3."""
        levels = Levels.of(denoiser.path, t, s)
        d, past = denoiser(x, t), state or ()
        eps = eps_of(x, d, levels.alpha_t, levels.sigma_t)
        if levels.alpha_t == 0:
            return levels.alpha_s * d + levels.sigma_s * eps, ()
        rho_t, rho_s = levels.sigma_t / levels.alpha_t, levels.sigma_s / levels.alpha_s
        history = ((rho_t, eps), *past)[: self.order]
        if self.order == 3 and not past:
            return heun_step(denoiser, x, d, s, levels), history
        weights = quadrature(torch.stack([(rho - rho_t) / (rho_s - rho_t) for rho, _ in history]))
        y = levels.alpha_s * d + levels.sigma_s * eps
        for weight, (_, earlier) in zip(weights[1:], history[1:], strict=True):
            y = y + levels.alpha_s * (rho_s - rho_t) * weight * (earlier - eps)
        return y, history


@dataclass(frozen=True)
class UniPC(Sampler):
    """Predictor of order p and a corrector that uses the evaluation the next step needs anyway (B(h) = e^h - 1).

    The method converges with order p + 1 at one evaluation a step; the first step costs one more, and the step to
    clean data has no corrector.

    Args:
        order: p of the predictor, 1, 2 or 3.

    Raises:
        ValueError: another order.
    """

    stochastic: ClassVar[bool] = False
    order: int = 2

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"UniPC: order is 1, 2 or 3, got {self.order}")

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: History | None
    ) -> tuple[Tensor, History | None]:
        """One evaluation; two in the first step, none in a last step to clean data."""
        levels = Levels.of(denoiser.path, t, s)
        history = state or ((torch.log(levels.alpha_t / levels.sigma_t), denoiser(x, t)),)
        d0 = history[0][1]
        y = levels.sigma_s / levels.sigma_t * x + levels.alpha_s * (1 - levels.decay) * d0
        if levels.one_sided:
            return y, None
        lambda_s = torch.log(levels.alpha_s / levels.sigma_s)
        h = lambda_s - history[0][0]
        earlier = [((position - history[0][0]) / h, value) for position, value in history[1:]]
        slopes = [(value - d0) / r for r, value in earlier]
        weights = _unipc_weights(h, [float(r) for r, _ in earlier])
        gain = levels.alpha_s * (1 - levels.decay)
        predicted = y + gain * sum(w * slope for w, slope in zip(weights.predictor, slopes, strict=True))
        d_s = denoiser(predicted, s)
        *inner, last = weights.corrector
        corrected = y + gain * (sum(w * slope for w, slope in zip(inner, slopes, strict=True)) + last * (d_s - d0))
        return corrected, ((lambda_s, d_s), *history)[: self.order]


class _UniPCWeights(NamedTuple):
    predictor: list[float]
    corrector: list[float]


def _unipc_weights(h: Tensor, nodes: list[float]) -> _UniPCWeights:
    """The weights of the slopes (UniPC, eq. 5 to 9): R a = b with R_jk = r_k^(j-1) and B(h) b_j = h phi_{j+1}(h) j!.

    Nodes r are in units of h, the corrector's last is 1. A single unknown is 1/2, as the paper sets it.
    """
    r = torch.tensor([*nodes, 1.0], dtype=torch.float64)
    b, phi, factorial = [], torch.expm1(-h) / -h - 1, 1
    for j in range(1, len(r) + 1):
        b.append(phi * factorial / torch.expm1(-h))
        factorial *= j + 1
        phi = phi / -h - 1 / factorial

    def solve(n: int) -> list[float]:
        if n < 2:
            return [0.5] * n
        powers = torch.arange(n, dtype=torch.float64)
        return torch.linalg.solve(r[:n][None] ** powers[:, None], torch.stack(b[:n])).tolist()

    return _UniPCWeights(solve(len(nodes)), solve(len(r)))
