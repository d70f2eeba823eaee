"""Paths: how a clean volume becomes noise.

A path adds Gaussian noise at time t,

    x_t = alpha(t) x_0 + sigma(t) eps,    eps ~ N(0, I),

and everything else follows from alpha and sigma. The forward SDE dx = f x dt + g dw with these marginals has

    f = alpha' / alpha,    g^2 = (sigma^2)' - 2 f sigma^2.

With x/alpha for the volume and the noise-to-signal ratio rho = sigma/alpha for the time, every path obeys one and
the same probability-flow ODE,

    d(x/alpha) / d rho = (x/alpha - E[x_0 | x_t]) / rho,

so a sampler never needs to know which path it walks on; paths differ in the times at which a network was trained.

Sources: Song et al., Score-Based Generative Modeling through SDEs, ICLR 2021 (VP, sub-VP, VE); Karras et al.,
Elucidating the Design Space of Diffusion-Based Generative Models, NeurIPS 2022 (EDM); Nichol and Dhariwal,
Improved DDPM, ICML 2021 (cosine); Lipman et al., Flow Matching, ICLR 2023 (flow); Ho et al., DDPM, NeurIPS 2020
(discrete).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = [
    "EDM",
    "VE",
    "VP",
    "Cosine",
    "Discrete",
    "Flow",
    "Path",
    "SubVP",
]


class Path(ABC):
    """alpha(t) and sigma(t) of x_t = alpha x_0 + sigma eps; all other functions of time are derived from them.

    Times are floating-point tensors of any shape; results have their shape, dtype and device.
    """

    @property
    @abstractmethod
    def span(self) -> tuple[float, float]:
        """(clean, noise): the times at which sigma = 0 and at which the path ends."""

    @property
    @abstractmethod
    def ratios(self) -> tuple[float, float]:
        """(smallest, largest) rho, both positive and finite, between which a time grid runs unless told otherwise."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the signal at time t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise at time t."""

    @abstractmethod
    def time(self, ratio: Tensor) -> Tensor:
        """The time at which sigma/alpha is `ratio`, in [0, inf]: the inverse of `ratio`."""

    def ratio(self, t: Tensor) -> Tensor:
        """rho = sigma / alpha at time t; inf where no signal is left."""
        return self.sigma(t) / self.alpha(t)

    @property
    def t_noise(self) -> Tensor:
        """The time that stands for pure noise, float64: the path's end, or its largest usual ratio if it has none."""
        end = torch.tensor(self.span[1], dtype=torch.float64)
        return end if math.isfinite(end) else self.time(torch.tensor(self.ratios[1], dtype=torch.float64))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha', sigma') at time t, by automatic differentiation; sigma > 0 there."""
        return _derivative(self.alpha, t), _derivative(self.sigma, t)

    def drift(self, t: Tensor) -> Tensor:
        """f(t) = alpha'/alpha of the forward SDE, in 1/time."""
        return self.rates(t)[0] / self.alpha(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """Squared diffusion g^2(t) = (sigma^2)' - 2 f sigma^2 of the forward SDE, in 1/time."""
        alpha_rate, sigma_rate = self.rates(t)
        sigma = self.sigma(t)
        return 2 * sigma * (sigma_rate - alpha_rate / self.alpha(t) * sigma)


def _derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        t = t.detach().clone().requires_grad_()
        value = function(t)
        if not value.requires_grad:  # a constant alpha
            return torch.zeros_like(t)
        return torch.autograd.grad(value.sum(), t)[0]


@dataclass(frozen=True)
class _LinearBeta(Path):
    """What VP and sub-VP share: alpha = exp(-B/2) with B the integral of beta, which is linear in t."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(f"{type(self).__name__}: 0 < beta_min <= beta_max, got {self.beta_min}, {self.beta_max}")

    @property
    def span(self) -> tuple[float, float]:
        """(0, 1)."""
        return 0.0, 1.0

    @property
    def ratios(self) -> tuple[float, float]:
        """rho at t = 1e-3 and at t = 1, the sampling range of Song et al."""
        low, high = self.ratio(torch.tensor([1e-3, 1.0], dtype=torch.float64)).tolist()
        return low, high

    def integral(self, t: Tensor) -> Tensor:
        """B(t) = beta_min t + (beta_max - beta_min) t^2 / 2."""
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def integral_time(self, b: Tensor) -> Tensor:
        """The root t >= 0 of B(t) = b, in the form without cancellation and with t = inf at b = inf."""
        start = self.beta_min / b
        return 2 / (start + torch.sqrt(start**2 + 2 * (self.beta_max - self.beta_min) / b))

    def alpha(self, t: Tensor) -> Tensor:
        """exp(-B/2)."""
        return torch.exp(-0.5 * self.integral(t))


@dataclass(frozen=True)
class VP(_LinearBeta):
    """Variance preserving: alpha = exp(-B/2), sigma^2 = 1 - exp(-B), B = beta_min t + (beta_max - beta_min) t^2 / 2.

    Published form: f = -beta/2, g^2 = beta with beta = B' (Song et al., eq. 11). Times in [0, 1].

    Args:
        beta_min: beta(0).
        beta_max: beta(1).

    Raises:
        ValueError: not 0 < beta_min <= beta_max.
    """

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - exp(-B))."""
        return torch.sqrt(-torch.expm1(-self.integral(t)))

    def time(self, ratio: Tensor) -> Tensor:
        """B = ln(1 + rho^2)."""
        return self.integral_time(torch.log1p(ratio**2))


@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """Sub-variance preserving: alpha as VP, sigma = 1 - exp(-B).

    Published form: f = -beta/2, g^2 = beta (1 - exp(-2B)) (Song et al., eq. 12). Times in [0, 1].

    Args:
        beta_min: beta(0).
        beta_max: beta(1).

    Raises:
        ValueError: not 0 < beta_min <= beta_max.
    """

    def sigma(self, t: Tensor) -> Tensor:
        """1 - exp(-B)."""
        return -torch.expm1(-self.integral(t))

    def time(self, ratio: Tensor) -> Tensor:
        """rho = 2 sinh(B/2), so B = 2 asinh(rho/2)."""
        return self.integral_time(2 * torch.asinh(0.5 * ratio))


@dataclass(frozen=True)
class VE(Path):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max/sigma_min)^t.

    Published form: f = 0, g^2 = 2 sigma^2 ln(sigma_max/sigma_min) (Song et al., eq. 9, whose sigma_max is the largest
    distance between two training volumes). Sampling uses times in [0, 1]; clean data lies at t = -inf, where the
    formula gives sigma = 0.

    Args:
        sigma_min: sigma(0).
        sigma_max: sigma(1).

    Raises:
        ValueError: not 0 < sigma_min < sigma_max.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"VE: 0 < sigma_min < sigma_max, got {self.sigma_min}, {self.sigma_max}")

    @property
    def span(self) -> tuple[float, float]:
        """(-inf, 1)."""
        return -math.inf, 1.0

    @property
    def ratios(self) -> tuple[float, float]:
        """(sigma_min, sigma_max)."""
        return self.sigma_min, self.sigma_max

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_min (sigma_max/sigma_min)^t."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def time(self, ratio: Tensor) -> Tensor:
        """ln(rho/sigma_min) / ln(sigma_max/sigma_min)."""
        return torch.log(ratio / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class EDM(Path):
    """Karras et al.: alpha = 1 and the time is the noise level itself, sigma = t. Times in [0, inf).

    Published form: f = 0, g^2 = 2 t.

    Args:
        sigma_min: smallest noise level of a time grid.
        sigma_max: largest noise level of a time grid.

    Raises:
        ValueError: not 0 < sigma_min < sigma_max.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"EDM: 0 < sigma_min < sigma_max, got {self.sigma_min}, {self.sigma_max}")

    @property
    def span(self) -> tuple[float, float]:
        """(0, inf)."""
        return 0.0, math.inf

    @property
    def ratios(self) -> tuple[float, float]:
        """(sigma_min, sigma_max)."""
        return self.sigma_min, self.sigma_max

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """t."""
        return t.clone()

    def time(self, ratio: Tensor) -> Tensor:
        """rho."""
        return ratio.clone()


@dataclass(frozen=True)
class Cosine(Path):
    """Nichol and Dhariwal: alpha = cos(a)/cos(a_0), a = (t + s)/(1 + s) pi/2, sigma^2 = 1 - alpha^2 (eq. 17).

    Computed from a - a_0 and pi/2 - a, which are proportional to t and 1 - t: neither end loses digits.

    Published form: f = -a' tan(a), g^2 = 2 a' tan(a). Times in [0, 1]; no signal is left at t = 1.

    Args:
        s: offset that keeps the first noise levels from being too small.

    Raises:
        ValueError: a negative s.
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        if self.s < 0:
            raise ValueError(f"Cosine: s cannot be negative, got {self.s}")

    @property
    def span(self) -> tuple[float, float]:
        """(0, 1)."""
        return 0.0, 1.0

    @property
    def ratios(self) -> tuple[float, float]:
        """rho at t = 1e-3 and the 80 of Karras et al.; at t = 1 it is infinite."""
        return float(self.ratio(torch.tensor(1e-3, dtype=torch.float64))), 80.0

    @property
    def _start(self) -> float:
        return self.s / (1 + self.s) * math.pi / 2

    @property
    def _rate(self) -> float:
        """da/dt = pi/2 - a_0."""
        return math.pi / 2 / (1 + self.s)

    def alpha(self, t: Tensor) -> Tensor:
        """cos(a) / cos(a_0) = sin(pi/2 - a) / cos(a_0), exactly 0 at t = 1."""
        return torch.sin((1 - t) * self._rate) / math.cos(self._start)

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(cos^2 a_0 - cos^2 a) / cos a_0, as the product sin(a - a_0) sin(a + a_0)."""
        rise = t * self._rate
        return torch.sqrt(torch.sin(rise) * torch.sin(rise + 2 * self._start)) / math.cos(self._start)

    def time(self, ratio: Tensor) -> Tensor:
        """cos a = cos a_0 / sqrt(1 + rho^2), inverted by the arctangent; exactly 0 and 1 at its ends."""
        a0 = self._start
        a = torch.atan2(torch.sqrt(ratio**2 + math.sin(a0) ** 2), torch.full_like(ratio, math.cos(a0)))
        t = ((a - a0) / (math.pi / 2 - a0)).clamp(0, 1)
        return torch.where(ratio > 0, t, torch.zeros_like(t))


@dataclass(frozen=True)
class Flow(Path):
    """Flow matching along straight lines: alpha = 1 - t, sigma = t. Times in [0, 1].

    Published form: f = -1/(1 - t), g^2 = 2 t/(1 - t). The rectified flows of MONAI have this path; their networks
    predict x_0 - eps (`prediction="flow_monai"`) and are told 1000 t.

    Multiplying rho by kappa, `time(kappa * ratio(t))`, is the shift t -> kappa t / (1 + (kappa - 1) t) by which such
    networks are moved to other volume sizes.
    """

    @property
    def span(self) -> tuple[float, float]:
        """(0, 1)."""
        return 0.0, 1.0

    @property
    def ratios(self) -> tuple[float, float]:
        """Those of Karras et al.; at t = 1 rho is infinite."""
        return 0.002, 80.0

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """t."""
        return t.clone()

    def time(self, ratio: Tensor) -> Tensor:
        """rho / (1 + rho)."""
        return 1 / (1 + 1 / ratio)


@dataclass(frozen=True)
class Discrete(Path):
    """The table of a DDPM checkpoint: at the integer time k, alpha^2 = prod_{j<=k} (1 - beta_j), sigma^2 = 1 - alpha^2.

    Time is the index the network was trained with, 0 to T - 1; clean data lies at t = -1, where the product is empty.
    Between two entries the angle arctan(rho) is linear in t, which is finite everywhere, also for tables that end in
    pure noise (beta = 1).

    Args:
        betas: the table, any iterable of T numbers in (0, 1), the last of which may be 1; a MONAI scheduler's is
            `scheduler.betas`.

    Raises:
        ValueError: an empty table, a beta outside (0, 1), or a 1 that is not the last or is alone.
    """

    betas: tuple[float, ...]

    def __init__(self, betas: Iterable[float] | Tensor) -> None:
        table = tuple(betas.tolist() if isinstance(betas, Tensor) else map(float, betas))
        if not table or not all(0 < b < 1 for b in (table[0], *table[:-1])) or not 0 < table[-1] <= 1:
            raise ValueError("Discrete: betas are numbers in (0, 1), of which the last may be 1 if it is not alone")
        object.__setattr__(self, "betas", table)

    @cached_property
    def _angles(self) -> Tensor:
        """arctan(rho) at t = -1, 0, ..., T - 1, float64 on the CPU."""
        with torch.inference_mode(False):  # it is kept, and others take derivatives
            squared_alpha = torch.cumprod(1 - torch.tensor(self.betas, dtype=torch.float64), dim=0)
            angles = torch.atan2(torch.sqrt(1 - squared_alpha), torch.sqrt(squared_alpha))
            return torch.cat([torch.zeros(1, dtype=torch.float64), angles])

    @property
    def span(self) -> tuple[float, float]:
        """(-1, T - 1)."""
        return -1.0, len(self.betas) - 1.0

    @property
    def ratios(self) -> tuple[float, float]:
        """rho of the first and of the last entry that still has signal."""
        angles = self._angles[1:]
        finite = angles[angles < math.pi / 2]
        return math.tan(finite[0]), math.tan(finite[-1])

    def _angle(self, t: Tensor) -> Tensor:
        angles = self._angles.to(t.device)
        position = t.double() + 1
        k = position.detach().floor().long().clamp(0, len(angles) - 2)
        return torch.lerp(angles[k], angles[k + 1], position - k)

    def alpha(self, t: Tensor) -> Tensor:
        """cos(arctan rho), as the sine of the complement: exactly 0 where the table says so, with its slope."""
        return torch.sin(math.pi / 2 - self._angle(t)).to(_floating(t))

    def sigma(self, t: Tensor) -> Tensor:
        """sin(arctan rho)."""
        return torch.sin(self._angle(t)).to(_floating(t))

    def time(self, ratio: Tensor) -> Tensor:
        """The index, with its fraction, at which the table has this ratio."""
        angles = self._angles.to(ratio.device)
        angle = torch.atan(ratio.double())
        k = (torch.searchsorted(angles, angle.detach(), right=True) - 1).clamp(0, len(angles) - 2)
        return (k + (angle - angles[k]) / (angles[k + 1] - angles[k]) - 1).to(ratio.dtype)


def _floating(t: Tensor) -> torch.dtype:
    """The dtype of results at times t: integer steps, as DDPM counts them, have alpha and sigma in float64."""
    return t.dtype if t.is_floating_point() else torch.float64
