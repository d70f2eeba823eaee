"""Exact denoisers: distributions whose E[x_0 | x_t] is known in closed form.

They test samplers, serve as priors, and are what teleportation and likelihoods stand on.

    Gaussian N(m, C)   D = m + alpha C V^-1 (x - alpha m),  V_t = alpha_t^2 C + sigma_t^2
                       x_s = alpha_s m + (V_s / V_t)^(1/2) (x_t - alpha_t m)
    Mixture            D = sum_k r_k(x) D_k(x),  r_k proportional to w_k N(x; alpha m_k, alpha^2 v_k + sigma^2)
    Finite set {y_k}   the mixture with v_k = 0: what a network tends to that memorises its training data

The second line is the probability-flow ODE of a Gaussian, solved from time t to s. A covariance is diagonal in some
basis; every formula above is a function of its eigenvalues, so a covariance needs to know just two things: how to
apply a function of itself to a volume, and the sum of a function over its eigenvalues.

Source: Wang and Vastola, The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion Models and its
Applications, TMLR 2024 (Gaussian and mixture scores, transport).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from voxscore.diffusion.denoisers import Denoiser, expand
from voxscore.diffusion.paths import Path

__all__ = [
    "Covariance",
    "DiagonalCovariance",
    "EmpiricalDenoiser",
    "FourierCovariance",
    "Gaussian",
    "GaussianDenoiser",
    "LowRankCovariance",
    "MixtureDenoiser",
]


class Covariance(ABC):
    """A covariance of volumes (C, *spatial), as functions of its eigenvalues.

    Functions are given as f(eigenvalues, *coefficients); each coefficient is () or (B,), one per volume.
    """

    @abstractmethod
    def apply(self, f: Callable[..., Tensor], x: Tensor, *coefficients: Tensor) -> Tensor:
        """f(C) x for every volume of x (B, C, *spatial)."""

    @abstractmethod
    def trace(self, f: Callable[..., Tensor], *coefficients: Tensor) -> Tensor:
        """The sum of f over the eigenvalues: (), or (B,) if a coefficient is."""

    @abstractmethod
    def to(self, device: torch.device) -> Covariance:
        """A copy on this device."""


def _against(eigenvalues: Tensor, coefficients: tuple[Tensor, ...]) -> list[Tensor]:
    """The eigenvalues, and each coefficient () or (B,) in a shape that gives them a batch axis; all in float64."""
    e = eigenvalues.double()
    return [e, *(c.to(e).reshape((*c.shape, *[1] * (e.ndim * c.ndim))) for c in coefficients)]


@dataclass(frozen=True, eq=False)
class DiagonalCovariance(Covariance):
    """Independent voxels.

    Args:
        variance: (C, *spatial).
    """

    variance: Tensor

    def apply(self, f: Callable[..., Tensor], x: Tensor, *coefficients: Tensor) -> Tensor:
        """f(C) x: voxel by voxel."""
        return f(*_against(self.variance, coefficients)).to(x) * x

    def trace(self, f: Callable[..., Tensor], *coefficients: Tensor) -> Tensor:
        """Sum over voxels."""
        value = f(*_against(self.variance, coefficients))
        return value.flatten(value.ndim - self.variance.ndim).sum(-1)

    def to(self, device: torch.device) -> DiagonalCovariance:
        """A copy on this device."""
        return DiagonalCovariance(self.variance.to(device))


@dataclass(frozen=True, eq=False)
class LowRankCovariance(Covariance):
    """A few principal components and the same variance in all other directions.

    Args:
        vectors: (r, C, *spatial), orthonormal.
        values: (r,), their variances.
        tail: the variance of every other direction.
    """

    vectors: Tensor
    values: Tensor
    tail: float

    def apply(self, f: Callable[..., Tensor], x: Tensor, *coefficients: Tensor) -> Tensor:
        """f(C) x = f(tail) x + U (f(values) - f(tail)) U^T x."""
        values, *scalars = _against(self.values, coefficients)
        tail = f(torch.full_like(values[:1], self.tail), *scalars)
        weights = (f(values, *scalars) - tail).to(x)
        u = self.vectors.to(x).flatten(1)
        projected = (x.flatten(1) @ u.T * weights) @ u
        return (tail.to(x) * x.flatten(1) + projected).reshape(x.shape)

    def trace(self, f: Callable[..., Tensor], *coefficients: Tensor) -> Tensor:
        """Sum over the components, and the tail as often as directions are left."""
        values, *scalars = _against(self.values, coefficients)
        rest = self.vectors[0].numel() - len(values)
        tail = f(torch.full_like(values[:1], self.tail), *scalars)
        return f(values, *scalars).sum(-1) + rest * tail.squeeze(-1)

    def to(self, device: torch.device) -> LowRankCovariance:
        """A copy on this device."""
        return LowRankCovariance(self.vectors.to(device), self.values.to(device), self.tail)


@dataclass(frozen=True, eq=False)
class FourierCovariance(Covariance):
    """A stationary field on a periodic grid of any dimension: the discrete Fourier transform diagonalises it.

    Args:
        spectrum: (C, *spatial), the variance of each frequency of the orthonormal FFT, in FFT order and even,
            S(k) = S(-k); channels are independent.
    """

    spectrum: Tensor

    def apply(self, f: Callable[..., Tensor], x: Tensor, *coefficients: Tensor) -> Tensor:
        """f(C) x by two real FFTs, in float32 at least."""
        axes = tuple(range(2, x.ndim))
        half = self.spectrum[..., : self.spectrum.shape[-1] // 2 + 1]
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        transfer = f(*_against(half, coefficients)).to(y)
        return torch.fft.irfftn(torch.fft.rfftn(y, dim=axes) * transfer, s=y.shape[2:], dim=axes).to(x.dtype)

    def trace(self, f: Callable[..., Tensor], *coefficients: Tensor) -> Tensor:
        """Sum over all frequencies."""
        return DiagonalCovariance(self.spectrum).trace(f, *coefficients)

    def to(self, device: torch.device) -> FourierCovariance:
        """A copy on this device."""
        return FourierCovariance(self.spectrum.to(device))


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, covariance) of clean volumes, and its marginals along any path.

    Methods raise ValueError for volumes of another shape than the mean's. Times are () or (B,). Functions of the
    eigenvalues are computed in float64; volumes keep their dtype.

    Args:
        mean: (C, *spatial).
        covariance: of such volumes; a tensor (C, *spatial) is taken for the variance of each voxel.
    """

    mean: Tensor
    covariance: Covariance

    def __post_init__(self) -> None:
        if isinstance(self.covariance, Tensor):
            object.__setattr__(self, "covariance", DiagonalCovariance(self.covariance))

    @classmethod
    def fit(
        cls,
        samples: Tensor | Iterable[Tensor],
        kind: Literal["diagonal", "low_rank", "fourier"] = "diagonal",
        rank: int | None = None,
    ) -> Gaussian:
        """The Gaussian with the mean and (in its family) the covariance, a mean over N, of these volumes.

        Args:
            samples: volumes (N, C, *spatial), or batches of them; one batch at a time is held, except for "low_rank",
                which needs all.
            kind: the family of the covariance.
            rank: number of components of "low_rank", below N; the directions left share what variance is left.

        Returns:
            Its mean (and components) in the dtype of the samples, its eigenvalues in float64.

        Raises:
            ValueError: an unknown kind, a rank that does not fit, fewer than two volumes.
        """
        batches = [samples] if isinstance(samples, Tensor) else samples
        if kind == "low_rank":
            return cls._fit_low_rank(list(batches), rank)
        if kind not in ("diagonal", "fourier"):
            raise ValueError(f"Gaussian.fit: kind is 'diagonal', 'low_rank' or 'fourier', got {kind!r}")
        if rank is not None:
            raise ValueError(f"Gaussian.fit: a {kind} covariance has no rank")

        def spectrum(x: Tensor) -> Tensor:
            return x if kind == "diagonal" else torch.fft.fftn(x, dim=tuple(range(2, x.ndim)), norm="ortho")

        count, total, power, dtype = 0, torch.zeros(()), torch.zeros(()), torch.float32
        for batch in batches:
            x, dtype = batch.double(), batch.dtype
            count, total = count + len(x), total + x.sum(0)
            power = power + spectrum(x).abs().square().sum(0)
        if count < 2:
            raise ValueError(f"Gaussian.fit: needs two volumes at least, got {count}")
        mean = total / count
        variance = (power / count - spectrum(mean[None])[0].abs().square()).clamp(min=0)
        return cls(mean.to(dtype), DiagonalCovariance(variance) if kind == "diagonal" else FourierCovariance(variance))

    @classmethod
    def _fit_low_rank(cls, batches: list[Tensor], rank: int | None) -> Gaussian:
        """Principal components from the N x N Gram matrix, since N is far below the number of voxels."""
        count = sum(map(len, batches))
        if rank is None or not 0 < rank < count or rank > batches[0][0].numel():
            raise ValueError(
                f"Gaussian.fit: 'low_rank' needs 0 < rank < number of volumes {count}, at most the voxels, got {rank}"
            )
        x = torch.cat(batches).double()
        mean = x.mean(0)
        centred = (x - mean).flatten(1)
        values, weights = torch.linalg.eigh(centred @ centred.T / len(x))
        # The largest first: QR keeps the leading columns, and rounding errors are all there is in an empty component.
        values, weights = values.flip(0)[:rank].clamp(min=0), weights.flip(1)[:, :rank]
        vectors = torch.linalg.qr(centred.T @ weights).Q.T.reshape(rank, *mean.shape)
        rest = centred.square().sum() / len(x) - values.sum()
        tail = float(rest.clamp(min=0)) / max(mean.numel() - rank, 1)
        dtype = batches[0].dtype
        return cls(mean.to(dtype), LowRankCovariance(vectors.to(dtype), values, tail))

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors it is made of, by name."""
        return {"mean": self.mean, **{name: torch.as_tensor(value) for name, value in vars(self.covariance).items()}}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Gaussian:
        """What `state_dict` was taken of; half precision becomes float32.

        Raises:
            ValueError: the names are of no family.
        """
        half = (torch.float16, torch.bfloat16)
        parts: dict[str, Any] = {name: v.float() if v.dtype in half else v for name, v in state.items()}
        mean = parts.pop("mean", None)
        if "tail" in parts:
            parts["tail"] = float(parts["tail"])
        for family in (DiagonalCovariance, FourierCovariance, LowRankCovariance):
            if mean is not None and parts.keys() == {field.name for field in fields(family)}:
                return cls(mean, family(**parts))
        raise ValueError(f"Gaussian.from_state_dict: {sorted(state)} are the tensors of no family")

    def to(self, device: torch.device) -> Gaussian:
        """A copy on this device."""
        return Gaussian(self.mean.to(device), self.covariance.to(device))

    def sample(self, noise: Tensor, path: Path, t: Tensor) -> Tensor:
        """Volumes of the marginal at time t, made from standard normals (B, C, *spatial)."""
        alpha, sigma = path.alpha(t), path.sigma(t)
        return self._mean(alpha, noise) + self.covariance.apply(_spread, noise, alpha, sigma)

    def _mean(self, alpha: Tensor, x: Tensor) -> Tensor:
        """alpha m, ready to be added to x (B, C, *spatial)."""
        if x.shape[1:] != self.mean.shape:
            raise ValueError(f"the Gaussian is of volumes {tuple(self.mean.shape)}, got {tuple(x.shape)}")
        return expand(alpha, x) * self.mean.to(x)

    def log_prob(self, x: Tensor, path: Path, t: Tensor) -> Tensor:
        """ln N(x; alpha m, alpha^2 C + sigma^2) of x (B, C, *spatial), in nats: (B,)."""
        alpha, sigma = path.alpha(t), path.sigma(t)
        d = x - self._mean(alpha, x)
        whitened = self.covariance.apply(lambda v, a, s: 1 / _variance(v, a, s), d, alpha, sigma)
        log_det = self.covariance.trace(lambda v, a, s: torch.log(2 * math.pi * _variance(v, a, s)), alpha, sigma)
        return -0.5 * ((d * whitened).flatten(1).sum(1) + log_det.to(x))

    def denoise(self, x: Tensor, path: Path, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x] of x (B, C, *spatial)."""
        alpha, sigma = path.alpha(t), path.sigma(t)
        d = x - self._mean(alpha, x)
        return self.mean.to(x) + self.covariance.apply(lambda v, a, s: a * v / _variance(v, a, s), d, alpha, sigma)

    def transport(self, x: Tensor, path: Path, t: Tensor, s: Tensor) -> Tensor:
        """The probability-flow ODE from time t to time s, solved exactly; finite where alpha = 0."""
        alpha_t, alpha_s = path.alpha(t), path.alpha(s)
        d = x - self._mean(alpha_t, x)
        moved = self.covariance.apply(
            lambda v, at, st, as_, ss: torch.sqrt(_variance(v, as_, ss) / _variance(v, at, st)),
            d, alpha_t, path.sigma(t), alpha_s, path.sigma(s),
        )  # fmt: skip
        return self._mean(alpha_s, x) + moved


def _variance(eigenvalue: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return alpha**2 * eigenvalue + sigma**2


def _spread(eigenvalue: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return torch.sqrt(_variance(eigenvalue, alpha, sigma))


class GaussianDenoiser(Denoiser):
    """The exact denoiser of Gaussian data.

    Args:
        path: the path.
        gaussian: the distribution of clean volumes. It is no part of the module's state: `gaussian.to(device)` saves
            a copy to the device in each call.
    """

    def __init__(self, path: Path, gaussian: Gaussian) -> None:
        super().__init__(path)
        self.gaussian = gaussian

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]  # takes no conditions
        """E[x_0 | x_t = x] of x (B, C, *spatial) at times t, () or (B,)."""
        return self.gaussian.denoise(x, self.path, t)


class MixtureDenoiser(Denoiser):
    """The exact denoiser of a mixture of isotropic Gaussians.

    Args:
        path: the path.
        means: (K, C, *spatial).
        variances: (K,), of each voxel.
        weights: (K,), which sum to one.

    Raises:
        ValueError: K differs, a variance is negative, the weights are no distribution.
    """

    means: Tensor
    variances: Tensor
    weights: Tensor

    def __init__(self, path: Path, means: Tensor, variances: Tensor, weights: Tensor) -> None:
        super().__init__(path)
        means, variances, weights = (torch.as_tensor(values) for values in (means, variances, weights))
        if not len(means) == len(variances) == len(weights) or variances.ndim != 1 or weights.ndim != 1:
            shapes = tuple(means.shape), tuple(variances.shape), tuple(weights.shape)
            raise ValueError(f"MixtureDenoiser: means (K, C, ...), variances (K,) and weights (K,), got {shapes}")
        if (variances < 0).any() or (weights < 0).any() or abs(float(weights.sum()) - 1) > 1e-6:
            raise ValueError("MixtureDenoiser: variances and weights are not negative, and weights sum to one")
        self.register_buffer("means", means)
        self.register_buffer("variances", variances)
        self.register_buffer("weights", weights)

    def _components(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ln w_k N_k (B, K); the differences x - alpha m_k (B, K, C, *spatial); alpha v_k / var_k (B, K)."""
        if x.shape[1:] != self.means.shape[1:]:
            raise ValueError(f"the mixture is of volumes {tuple(self.means.shape[1:])}, got {tuple(x.shape)}")
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # squares of a volume leave the range of float16
        alpha, sigma = (level.to(x).reshape(-1, 1) for level in (self.path.alpha(t), self.path.sigma(t)))
        v = self.variances.to(x)
        variance = alpha**2 * v + sigma**2
        d = x[:, None] - alpha.reshape(-1, *[1] * x.ndim) * self.means.to(x)
        log = self.weights.to(x).log() - 0.5 * d.square().flatten(2).sum(2) / variance
        log = log - 0.5 * self.means[0].numel() * torch.log(2 * math.pi * variance)
        return log, d, alpha * v / variance

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """ln p_t(x) of x (B, C, *spatial) at times t, () or (B,), in nats: (B,)."""
        return self._components(x, t)[0].logsumexp(1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]  # takes no conditions
        """E[x_0 | x_t = x] of x (B, C, *spatial) at times t, () or (B,)."""
        log, d, gain = self._components(x, t)
        broadcast = (*log.shape, *[1] * (x.ndim - 1))
        posterior_means = self.means.to(d) + gain.expand(log.shape).reshape(broadcast) * d
        return (log.softmax(1).reshape(broadcast) * posterior_means).sum(1).to(x.dtype)

    def gaussian(self) -> Gaussian:
        """The Gaussian with the mixture's mean and covariance: the means span at most K - 1 directions."""
        w, v, m = self.weights.double(), self.variances.double(), self.means.double()
        mean = torch.einsum("k,k...->...", w, m)
        spread = (w.sqrt().reshape(-1, *[1] * mean.ndim) * (m - mean)).flatten(1)
        _, singular, vectors = torch.linalg.svd(spread, full_matrices=False)
        tail = float((w * v).sum())
        return Gaussian(mean, LowRankCovariance(vectors.reshape(-1, *mean.shape), singular**2 + tail, tail))


class EmpiricalDenoiser(Denoiser):
    """The ideal denoiser of a finite set: it can draw nothing but the set itself.

    Args:
        path: the path.
        data: the volumes (N, C, *spatial), equally likely.
    """

    data: Tensor

    def __init__(self, path: Path, data: Tensor) -> None:
        super().__init__(path)
        if not len(data):
            raise ValueError("EmpiricalDenoiser: needs one volume at least")
        self.register_buffer("data", data)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]  # takes no conditions
        """E[x_0 | x_t = x] of x (B, C, *spatial) at times t, () or (B,): a softmax of distances."""
        if x.shape[1:] != self.data.shape[1:]:
            raise ValueError(f"the set is of volumes {tuple(self.data.shape[1:])}, got {tuple(x.shape)}")
        alpha, sigma = (level.to(x).reshape(-1, 1) for level in (self.path.alpha(t), self.path.sigma(t)))
        y = self.data.to(x).flatten(1)
        # |x - alpha y|^2 without the term that all y share.
        log = (alpha * (x.flatten(1) @ y.T) - 0.5 * alpha**2 * y.square().sum(1)) / sigma**2
        return (log.softmax(1) @ y).reshape(x.shape)
