"""Time grids: where a sampler's steps are put.

A grid is descending times (n + 1,) in a path's own t, in float64 on the CPU. What matters is where its noise-to-signal
ratios rho = sigma/alpha lie, which has the same meaning on every path:

    Karras        rho_i^(1/7) evenly spaced: short steps at low noise
    log-uniform   ln rho_i evenly spaced: equal steps for the rules in lambda = -ln rho
    uniform       t_i evenly spaced, as DDPM and rectified flows are usually sampled

Source: Karras et al., NeurIPS 2022, eq. 5 and Appendix D.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from voxscore.diffusion.paths import Path

__all__ = ["karras_times", "log_uniform_times", "uniform_times"]


def karras_times(
    path: Path,
    n: int,
    rho: float = 7.0,
    ratio_min: float | None = None,
    ratio_max: float | None = None,
    clean: bool = False,
) -> Tensor:
    """The grid of Karras et al., eq. 5: the noise-to-signal ratios are evenly spaced in ratio^(1/rho).

    Args:
        path: whose times are returned.
        n: number of steps.
        rho: 7 puts most steps at low noise; 1 spaces the ratios evenly.
        ratio_min: last positive ratio; the path's own if None.
        ratio_max: first ratio; the path's own if None.
        clean: end at clean data: the last of the n steps goes from `ratio_min` to ratio 0.

    Returns:
        n + 1 descending times, float64 on the CPU.

    Raises:
        ValueError: rho <= 0, n < 1 (n < 2 with `clean`), ratios that are not 0 < ratio_min < ratio_max < inf, or a
            ratio_max beyond the end of the path.
    """
    if rho <= 0:
        raise ValueError(f"karras_times: rho is positive, got {rho}")
    return _ratio_grid(path, n, ratio_min, ratio_max, clean, lambda r: r ** (1 / rho), lambda u: u**rho)


def log_uniform_times(
    path: Path, n: int, ratio_min: float | None = None, ratio_max: float | None = None, clean: bool = False
) -> Tensor:
    """Noise-to-signal ratios evenly spaced in their logarithm; arguments, result and errors as `karras_times`."""
    return _ratio_grid(path, n, ratio_min, ratio_max, clean, torch.log, torch.exp)


def uniform_times(path: Path, n: int, t_min: float | None = None, t_max: float | None = None) -> Tensor:
    """Times evenly spaced in the path's own t, from pure noise to clean data unless told otherwise.

    Args:
        path: whose times are returned.
        n: number of steps.
        t_min: last time; if None, clean data, or the smallest usual ratio on a path that never quite gets there (VE).
        t_max: first time; `path.t_noise` if None.

    Returns:
        n + 1 descending times, float64 on the CPU.

    Raises:
        ValueError: n < 1, or not -inf < t_min < t_max < inf.
    """
    if t_min is None:
        t_min = path.span[0]
        if not math.isfinite(t_min):
            t_min = float(path.time(torch.tensor(path.ratios[0], dtype=torch.float64)))
    t_max = float(path.t_noise) if t_max is None else t_max
    if n < 1 or not -math.inf < t_min < t_max < math.inf:
        raise ValueError(f"a time grid needs n >= 1 and finite t_min < t_max, got n = {n}, {t_min} and {t_max}")
    return torch.linspace(t_max, t_min, n + 1, dtype=torch.float64)


def _ratio_grid(
    path: Path,
    n: int,
    ratio_min: float | None,
    ratio_max: float | None,
    clean: bool,
    stretch: Callable[[Tensor], Tensor],
    unstretch: Callable[[Tensor], Tensor],
) -> Tensor:
    positive = n if clean else n + 1
    if positive < 2:
        raise ValueError(f"a time grid needs {'two steps' if clean else 'one step'} at least, got n = {n}")
    low = path.ratios[0] if ratio_min is None else ratio_min
    high = path.ratios[1] if ratio_max is None else ratio_max
    if not 0 < low < high < math.inf:
        raise ValueError(f"a time grid needs 0 < ratio_min < ratio_max < inf, got {low} and {high}")
    last = float(path.ratio(torch.tensor(path.span[1], dtype=torch.float64)))
    if high > last * (1 + 1e-9):
        raise ValueError(f"{path} ends at the ratio {last:g}, a time grid cannot begin at {high:g}")
    first, final = stretch(torch.tensor([high, low], dtype=torch.float64))
    ratios = unstretch(torch.lerp(first, final, torch.linspace(0, 1, positive, dtype=torch.float64)))
    ratios[0], ratios[-1] = high, low  # exactly, whatever the stretching rounds them to
    # At the end of a path the inverse of the ratio may be a rounding beyond it.
    return path.time(torch.cat([ratios, ratios.new_zeros(int(clean))])).clamp(*path.span)
