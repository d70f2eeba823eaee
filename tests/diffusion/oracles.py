"""What the tests of the diffusion core share: every path, dense Gaussian algebra, a Runge-Kutta integration."""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch.distributions import MultivariateNormal

from voxscore.diffusion import EDM, VE, VP, Cosine, Discrete, Flow, SubVP, log_uniform_times

DDPM = Discrete(torch.linspace(1e-3, 0.2, 100, dtype=torch.float64))
# Ends in pure noise, as tables with "zero terminal signal" do.
ZERO_TERMINAL = Discrete([*torch.linspace(1e-3, 0.3, 40).tolist(), 1.0])

PATHS = {
    "VP": VP(),
    "VP-mild": VP(0.2, 12.0),
    "SubVP": SubVP(),
    "VE": VE(),
    "EDM": EDM(),
    "Cosine": Cosine(),
    "Cosine-offset": Cosine(0.01),
    "Flow": Flow(),
    "Discrete": DDPM,
    "Discrete-zero-terminal": ZERO_TERMINAL,
}
PURE_NOISE = ["Cosine", "Cosine-offset", "Flow", "Discrete-zero-terminal"]


def on_paths(*names):
    """Parametrise `path` with these paths, or with all."""
    return pytest.mark.parametrize("path", [pytest.param(PATHS[n], id=n) for n in names or PATHS])


def f64(value):
    """A float64 tensor."""
    return torch.tensor(value, dtype=torch.float64)


def normal(*shape, seed=0):
    """Float64 standard normals from a generator of their own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def times_between(path, n=7, low=0.05, high=20.0):
    """n ascending times of the path, evenly spaced in the logarithm of a ratio that every path reaches."""
    return path.time(torch.logspace(math.log10(low), math.log10(high), n, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class DenseGaussian:
    """N(mean, covariance) of flattened volumes by dense linear algebra: mean (n,), covariance (n, n)."""

    mean: torch.Tensor
    covariance: torch.Tensor

    def marginal(self, alpha, sigma):
        """The distribution of alpha x_0 + sigma eps; alpha and sigma are () or one per entry (n,)."""
        alpha, sigma = alpha.expand(len(self.mean)), sigma.expand(len(self.mean))
        covariance = alpha[:, None] * self.covariance * alpha + torch.diag(sigma**2)
        return DenseGaussian(alpha * self.mean, (covariance + covariance.T) / 2)

    def at(self, path, t):
        """The marginal at time t."""
        return self.marginal(path.alpha(t), path.sigma(t))

    def denoise(self, x, alpha, sigma):
        """E[x_0 | alpha x_0 + sigma eps = x] of x (B, n)."""
        noisy = self.marginal(alpha, sigma)
        gain = torch.linalg.solve(noisy.covariance, alpha.expand(len(self.mean))[:, None] * self.covariance)
        return self.mean + (x - noisy.mean) @ gain

    def log_prob(self, x):
        """ln N(x; mean, covariance) of x (B, n)."""
        return MultivariateNormal(self.mean, self.covariance).log_prob(x)

    def transport(self, x, path, t, s):
        """From time t to time s along the probability-flow ODE; the covariances of both times commute."""
        start, end = self.at(path, t), self.at(path, s)
        matrix = square_root(end.covariance) @ torch.linalg.inv(square_root(start.covariance))
        return end.mean + (x - start.mean) @ matrix.T

    def given(self, known, value):
        """The rest, given the entries `known` (bool, (n,)) have this value."""
        rest = ~known
        gain = torch.linalg.solve(self.covariance[known][:, known], self.covariance[known][:, rest])
        mean = self.mean[rest] + (value - self.mean[known]) @ gain
        return DenseGaussian(mean, self.covariance[rest][:, rest] - self.covariance[rest][:, known] @ gain)

    def part(self, kept):
        """The marginal of the entries `kept` (bool, (n,))."""
        return DenseGaussian(self.mean[kept], self.covariance[kept][:, kept])


def square_root(matrix):
    """The symmetric root of a symmetric matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T


def random_covariance(n, seed=0):
    """A dense positive definite matrix (n, n)."""
    a = normal(n, n, seed=seed)
    return a @ a.T / n + 0.1 * torch.eye(n, dtype=torch.float64)


def runge_kutta(denoiser, x, grid):
    """The probability-flow ODE by the classical method of fourth order, one step between neighbours of the grid."""
    for t, s in pairwise(grid):
        h = s - t
        k1 = denoiser.velocity(x, t)
        k2 = denoiser.velocity(x + h / 2 * k1, t + h / 2)
        k3 = denoiser.velocity(x + h / 2 * k2, t + h / 2)
        k4 = denoiser.velocity(x + h * k3, s)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def fine_grid(path, n=160, low=0.1, high=10.0):
    """Descending times for `runge_kutta`; those of a table stop at both sides of an entry, where the velocity jumps."""
    if isinstance(path, Discrete):
        last, first = (round(float(path.time(f64(r)))) for r in (low, high))
        near = f64([1 - 1e-9, 0.75, 0.5, 0.25, 1e-9])
        return (torch.arange(first - 1, last - 1, -1, dtype=torch.float64)[:, None] + near).flatten()
    return log_uniform_times(path, n, low, high)
