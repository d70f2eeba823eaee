"""Denoisers: what the clean volume would look like, D(x, t) = E[x_0 | x_t = x].

The denoiser is the only object of this package. Score, noise and velocity are other names for it (Tweedie),

    score     grad log p_t(x) = (alpha D - x) / sigma^2
    noise     E[eps | x_t]    = (x - alpha D) / sigma
    velocity  dx/dt           = alpha' D + sigma' E[eps | x_t]        (probability-flow ODE)

and a network becomes one by a row of a single table: whatever it was trained to predict, its denoiser is

    D = c_skip x + c_out F(c_in x, time)

prediction   F estimates                c_skip                  c_out                              c_in
x0           x_0                        0                       1                                  1
eps          eps                        1/alpha                 -sigma/alpha                       1
v            alpha eps - sigma x_0      alpha/(alpha^2+sigma^2) -sigma/(alpha^2+sigma^2)           1
score        score                      1/alpha                 sigma^2/alpha                      1
flow         eps - x_0                  1/(alpha+sigma)         -sigma/(alpha+sigma)               1
flow_monai   x_0 - eps                  1/(alpha+sigma)         sigma/(alpha+sigma)                1
edm          its own unit-variance      alpha s^2/n^2           sigma s/n                          1/n
             target                     with s = sigma_data and n^2 = alpha^2 s^2 + sigma^2

Only a network trained with a squared error estimates an expectation. One trained with an absolute error estimates a
median: its samples may look right, its scores, likelihoods and posteriors are not justified.

Sources: Song et al., ICLR 2021 (score, velocity); Salimans and Ho, Progressive Distillation, ICLR 2022 (v); Lipman
et al., ICLR 2023 (flow); Karras et al., NeurIPS 2022, eq. 7 (edm, here for alpha != 1 too); Ho and Salimans,
Classifier-Free Diffusion Guidance, 2022, and Karras et al., Guiding a Diffusion Model with a Bad Version of Itself,
NeurIPS 2024 (guidance).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from voxscore.diffusion.paths import Path

__all__ = ["Denoiser", "NetDenoiser", "Prediction", "bind", "expand", "guide"]

Prediction = Literal["x0", "eps", "v", "score", "flow", "flow_monai", "edm"]


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient () or (B,) in a shape that multiplies x (B, C, *spatial) without changing the dtype of x.

    A coefficient for the whole batch stays a float64 scalar, which costs no precision and no copy to the device.

    Raises:
        ValueError: neither one coefficient nor one for each volume.
    """
    if coefficient.ndim == 0:
        return coefficient
    if coefficient.ndim > 1 or len(coefficient) not in (1, len(x)):
        raise ValueError(f"times are one number or one for each of {len(x)} volumes, got {tuple(coefficient.shape)}")
    return coefficient.to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))


class Denoiser(nn.Module, ABC):
    """E[x_0 | x_t = x] on a path; keyword arguments are a network's conditions.

    Score, noise and velocity are those of noisy volumes, sigma(t) > 0.

    Args:
        path: that of x_t = alpha(t) x_0 + sigma(t) eps.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """E[x_0 | x_t = x] of x (B, C, *spatial) at times t, () or (B,); the result is shaped like x."""

    def expand(self, coefficient: Tensor, x: Tensor) -> Tensor:
        """A function of the times, of their shape, ready to multiply x; computed in their dtype, rounded last."""
        return expand(coefficient, x)

    def levels(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at t, ready to multiply x."""
        return self.expand(self.path.alpha(t), x), self.expand(self.path.sigma(t), x)

    def score(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """grad log p_t(x), shaped like x."""
        alpha, sigma = self.levels(x, t)
        return (alpha * self(x, t, **cond) - x) / sigma / sigma  # the square may leave the range of a short dtype

    def noise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """E[eps | x_t = x], shaped like x."""
        alpha, sigma = self.levels(x, t)
        return (x - alpha * self(x, t, **cond)) / sigma

    def velocity(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """dx/dt of the probability-flow ODE, shaped like x."""
        alpha, sigma = self.levels(x, t)
        alpha_rate, sigma_rate = (self.expand(rate, x) for rate in self.path.rates(t))
        d = self(x, t, **cond)
        return alpha_rate * d + sigma_rate * (x - alpha * d) / sigma


Coefficients = tuple[Tensor | float, Tensor | float, Tensor | float]

PREDICTIONS: dict[str, Callable[[Tensor, Tensor, float], Coefficients]] = {
    "x0": lambda a, s, _: (0.0, 1.0, 1.0),
    "eps": lambda a, s, _: (1 / a, -s / a, 1.0),
    "v": lambda a, s, _: (a / (a**2 + s**2), -s / (a**2 + s**2), 1.0),
    "score": lambda a, s, _: (1 / a, s**2 / a, 1.0),
    "flow": lambda a, s, _: (1 / (a + s), -s / (a + s), 1.0),
    "flow_monai": lambda a, s, _: (1 / (a + s), s / (a + s), 1.0),
    "edm": lambda a, s, d: (
        a * d**2 / (a**2 * d**2 + s**2),
        s * d / torch.sqrt(a**2 * d**2 + s**2),
        1 / torch.sqrt(a**2 * d**2 + s**2),
    ),
}


def coefficients(prediction: str, path: Path, t: Tensor, sigma_data: float, x: Tensor) -> list[Tensor | float]:
    """(c_skip, c_out, c_in) of the table at times t, () or (B,): computed in the dtype of t, rounded to that of x."""
    row = PREDICTIONS[prediction](path.alpha(t), path.sigma(t), sigma_data)
    return [c if isinstance(c, float) else expand(c, x) for c in row]


class NetDenoiser(Denoiser):
    """A network as a denoiser, by its row of the table above.

    The network is called as `net(c_in * x, time, **cond)` with `time` (B,), the mapped t, in the dtype of x or in
    float32 if that is shorter.

    Args:
        net: the network; its output is shaped like x.
        path: the path it was trained on.
        prediction: what it was trained to predict.
        sigma_data: standard deviation of the clean data, of the row "edm" alone.
        time_map: what the network is told of t. By default t itself, which is right for a DDPM network on
            `Discrete`; a rectified flow of MONAI is told `lambda t: 1000 * t`, a `ScoreUNet` is told `path.ratio`.
            MONAI's sinusoidal embedding is made for numbers up to 1000: told a t in [0, 1] or EDM's ln(sigma)/4, it
            barely distinguishes noise levels.

    Raises:
        ValueError: an unknown prediction.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        path: Path,
        prediction: Prediction,
        sigma_data: float = 0.5,
        time_map: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(path)
        if prediction not in PREDICTIONS:
            raise ValueError(f"NetDenoiser: prediction is one of {list(PREDICTIONS)}, got {prediction!r}")
        self.net, self.prediction, self.sigma_data, self.time_map = net, prediction, sigma_data, time_map

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """E[x_0 | x_t = x] of x (B, C, *spatial) at times t, () or (B,).

        Raises:
            TypeError: the network's output is no tensor.
            ValueError: it is not shaped like x.
        """
        c_skip, c_out, c_in = coefficients(self.prediction, self.path, t, self.sigma_data, x)
        time = t if self.time_map is None else self.time_map(t)
        f = self.net(c_in * x, network_time(time, x), **cond)
        if not isinstance(f, Tensor):
            raise TypeError(f"NetDenoiser: the network must return one tensor, it returned {type(f).__name__}")
        if f.shape != x.shape:
            raise ValueError(f"NetDenoiser: the network made {tuple(f.shape)} of a volume {tuple(x.shape)}")
        return c_skip * x + c_out * f


def network_time(time: Tensor, x: Tensor) -> Tensor:
    """A time () or (B,) as networks take it: (B,) on the device of x, in its dtype but float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return time.to(x.device, dtype).expand(len(x))


class _Guided(Denoiser):
    def __init__(self, main: Denoiser, reference: Denoiser, weight: float) -> None:
        super().__init__(main.path)
        self.main, self.reference, self.weight = main, reference, weight

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        reference = self.reference(x, t, **cond)
        return reference + self.weight * (self.main(x, t, **cond) - reference)


def guide(main: Denoiser, reference: Denoiser, weight: float) -> Denoiser:
    """reference + weight (main - reference): 0 is the reference, 1 the main denoiser, above 1 exaggerates it.

    With the same network without its condition as reference this is classifier-free guidance (weight = 1 + w of
    Ho and Salimans); with a smaller or less trained network it is autoguidance. Each evaluation costs one of both.

    Args:
        main: the denoiser to follow.
        reference: the denoiser to lead away from, on the same path.
        weight: the guidance weight.

    Raises:
        ValueError: the two are on different paths.
    """
    if main.path != reference.path:
        raise ValueError(f"guide: both denoisers must be on one path, got {main.path} and {reference.path}")
    return _Guided(main, reference, weight)


class _Bound(Denoiser):
    def __init__(self, denoiser: Denoiser, cond: dict[str, Any]) -> None:
        super().__init__(denoiser.path)
        self.denoiser, self.cond = denoiser, cond

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.denoiser(x, t, **self.cond, **cond)


def bind(denoiser: Denoiser, **cond: Any) -> Denoiser:
    """The denoiser with these conditions of its network fixed, as samplers and `guide` want it.

    Args:
        denoiser: whose network takes conditions.
        **cond: the network's keyword arguments, for instance `context` of a `DiffusionModelUNet`.
    """
    return _Bound(denoiser, cond)
