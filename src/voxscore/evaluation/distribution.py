r"""Do synthetic volumes come from the distribution of the real ones? Frechet distance and MMD of their features.

    Frechet   |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))       Gaussians with the sets' moments
    MMD^2     E k(a, a') + E k(b, b') - 2 E k(a, b)                   any distributions, by a kernel

The first, squared Wasserstein-2 distance of two Gaussians, is the "FID" of features of any network. The second is the
squared distance of the two mean embeddings, and 0 for a characteristic kernel only if the distributions are equal.

The trace of the square root needs no square root. With C = A^T A for centred rows A scaled by 1 / sqrt(n - 1),

    tr (C_a C_b)^(1/2) = tr (A^T A B^T B)^(1/2) = |A B^T|_*,   the sum of the singular values of A B^T,

where A may be replaced by the triangle of its QR decomposition. Nothing is inverted and no square root is taken of a
rounding error, so fewer volumes than features are no special case.

Neither number means anything alone. The Frechet distance grows as the sets shrink (moments are estimated), so compare
sets of equal size, and quote what two halves of the real set give. The unbiased MMD^2 has expectation 0 for equal
distributions at any size, and is negative about as often as not; `mmd_test` says whether it is more than chance.

Features come from a network that knows the anatomy: `segmentation_features`. A segmentation network was trained to
overlook what does not matter for its labels (noise, bias field), and so do distances of its features.

Sources: Dowson and Landau, 1982 (the distance); Heusel et al., GANs Trained by a Two Time-Scale Update Rule, NeurIPS
2017 (FID); Gretton et al., A Kernel Two-Sample Test, JMLR 13, 2012 (MMD, the permutation test); Phipson and Smyth,
Permutation P-values Should Never Be Zero, 2010.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from monai.metrics import CumulativeIterationMetric
from torch import Generator, Tensor, nn

from voxscore.errors import UserError
from voxscore.evaluation.kernels import Kernel, RBFKernel, feature_rows, median_distance

__all__ = [
    "FeatureDistanceMetric",
    "MMDTest",
    "frechet_distance",
    "mmd",
    "mmd_test",
    "segmentation_features",
]


def segmentation_features(network: nn.Module, batches: Iterable[Tensor], layers: Sequence[str]) -> Tensor:
    """Features of volumes: the mean over space of what chosen layers put out.

    For a `ScoreUNet` of four levels, ["encoder.3"] is the bottleneck and ["encoder.0", ..., "encoder.3"] all levels.
    The network pads inside and the means run over the padding too, so give both sets to be compared on one grid. It
    runs in evaluation mode and without gradients, and is left in the mode it was in.

    Args:
        network: any that takes a volume as its one argument.
        batches: of volumes, each (B, C, *spatial), of which one at a time is on the network's device;
            `volumes.split(4)` makes them of one tensor.
        layers: names of submodules whose output is one tensor (B, channels, *spatial), as `named_modules` gives them.

    Returns:
        (n, d) in float32 on the CPU, d the channels of all layers.

    Raises:
        UserError: there is no such layer, it was not used, or its output is not one tensor; or there is no batch.
    """
    modules = dict(network.named_modules())
    if not layers or (unknown := [name for name in layers if name not in modules]):
        fault = f"are {list(layers)}, of which the network lacks {unknown}" if layers else "are none"
        raise UserError("layers", fault, "choose among the names in `network.named_modules()`")
    outputs: dict[str, Any] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs[name] = output

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in layers]
    # Module by module: a part may have been frozen in evaluation mode while the rest trains.
    modes = [(module, module.training) for module in network.modules()]
    place = next(network.parameters(), torch.empty(0))
    rows = []
    try:
        network.eval()
        for batch in batches:
            outputs.clear()
            with torch.no_grad():
                network(batch.to(place.device, torch.float32))
            rows.append(torch.cat([_spatial_mean(outputs.get(name), name) for name in layers], dim=1).cpu())
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    if not rows:
        raise UserError("batches", "are none", "give one batch of volumes or more")
    return torch.cat(rows)


def _spatial_mean(output: Any, name: str) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim < 2:
        fault = "was not used" if output is None else "does not put out one tensor (B, channels, *spatial)"
        raise UserError(f"layer {name}", fault, "choose a layer inside the network's forward pass, such as a block")
    return output.float().flatten(2).mean(2) if output.ndim > 2 else output.float()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Wasserstein-2 distance of the Gaussians with the two sets' means and covariances.

    Args:
        a: features (n, d); the two sets may be given in either order.
        b: features (m, d).

    Returns:
        0 or more, in squared units of the features.

    Raises:
        UserError: the sets are not two rows or more of d finite numbers.
    """
    a, b = _sets(a, b)
    (mean_a, root_a), (mean_b, root_b) = _moments(a), _moments(b)
    overlap = torch.linalg.svdvals(root_a @ root_b.T).sum()
    spread = root_a.square().sum() + root_b.square().sum() - 2 * overlap
    return float((mean_a - mean_b).square().sum() + spread.clamp(min=0))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,), and R with R^T R the covariance, of min(n, d) rows."""
    mean = x.mean(dim=0)
    return mean, torch.linalg.qr(x - mean, mode="r").R / math.sqrt(len(x) - 1)


def mmd(a: Tensor, b: Tensor, kernel: Kernel | None = None, unbiased: bool = True) -> float:
    """Squared maximum mean discrepancy of two sets.

    MONAI's `MMDMetric` has a linear kernel and so compares means alone.

    Args:
        a: features (n, d).
        b: features (m, d).
        kernel: by default an RBF kernel whose bandwidth is the median distance in the two sets together. Give one
            kernel, with the real set's median, to compare several synthetic sets.
        unbiased: leave out the likeness of each volume to itself. The biased estimate is never negative, and larger.

    Returns:
        The estimate of MMD^2.

    Raises:
        UserError: the sets are not two rows or more of d finite numbers.
    """
    a, b = _sets(a, b)
    likeness = _likeness(a, b, kernel)
    first = torch.zeros(len(likeness), 1).to(likeness)
    first[: len(a)] = 1
    return float(_discrepancy(likeness, first, unbiased))


class MMDTest(NamedTuple):
    """Whether two sets differ by more than chance.

    Attributes:
        mmd: the unbiased estimate of MMD^2.
        p_value: how probable one as large is if both sets come from one distribution.
    """

    mmd: float
    p_value: float


def mmd_test(a: Tensor, b: Tensor, permutations: int, generator: Generator, kernel: Kernel | None = None) -> MMDTest:
    """Permutation test of MMD: exact at any size, if volumes are independent.

    The default bandwidth depends on the two sets together alone, hence not on the permutation. Repeated scans of one
    patient are not independent: keep one.

    Args:
        a: features (n, d).
        b: features (m, d).
        permutations: how many ways to divide the volumes are drawn; the p-value is 1 / (permutations + 1) or more.
        generator: where they come from.
        kernel: as for `mmd`.

    Raises:
        UserError: the sets are not two rows or more of d finite numbers, or there is no permutation.
    """
    if permutations < 1:
        raise UserError("permutations", f"are {permutations}", "draw at least one; 999 are customary")
    a, b = _sets(a, b)
    likeness = _likeness(a, b, kernel)
    first = torch.zeros(permutations + 1, len(likeness)).to(likeness)
    first[0, : len(a)] = 1
    ranks = torch.rand(permutations, len(likeness), generator=generator, device=generator.device).argsort(dim=1)
    first[1:] = (ranks < len(a)).to(likeness)
    values = _discrepancy(likeness, first.T, unbiased=True)
    # A permutation within the sets gives the same value but for rounding, and counts.
    as_large = values[1:] >= values[0] - 1e-12 * likeness.abs().max()
    return MMDTest(float(values[0]), (1 + int(as_large.sum())) / (1 + permutations))


def _sets(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = feature_rows(a, "first features"), feature_rows(b, "second features")
    if a.shape[1] != b.shape[1]:
        raise UserError("features", f"are {a.shape[1]} and {b.shape[1]} for each volume", "take both from one network")
    return a, b.to(a.device)


def _likeness(a: Tensor, b: Tensor, kernel: Kernel | None) -> Tensor:
    """Kernel (n + m, n + m) of both sets together."""
    both = torch.cat([a, b])
    kernel = RBFKernel(median_distance(both)) if kernel is None else kernel
    return kernel(both, both)


def _discrepancy(likeness: Tensor, first: Tensor, unbiased: bool) -> Tensor:
    """MMD^2 for each of k ways to divide: (N, N) and (N, k), 1 for the members of the first set -> (k,)."""
    n, m = first[:, 0].sum(), (1 - first[:, 0]).sum()
    itself = likeness.diagonal()
    within_first = (first * (likeness @ first)).sum(0)
    between = likeness.sum(0) @ first - within_first
    within_second = likeness.sum() - within_first - 2 * between
    if not unbiased:
        return within_first / n**2 + within_second / m**2 - 2 * between / (n * m)
    within_first = (within_first - itself @ first) / (n * (n - 1))
    within_second = (within_second - itself @ (1 - first)) / (m * (m - 1))
    return within_first + within_second - 2 * between / (n * m)


class FeatureDistanceMetric(CumulativeIterationMetric):
    """A distance of two sets of features that arrive in batches, from all processes.

    Call it with features of synthetic volumes `y_pred` (B, d) and of real ones `y` (B, d); `aggregate` compares all of
    the one with all of the other.

    Args:
        distance: of two sets of features, such as `frechet_distance` or `mmd`.
    """

    def __init__(self, distance: Callable[[Tensor, Tensor], float] = frechet_distance) -> None:
        super().__init__()
        self.distance = distance

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **_: Any) -> list[Tensor]:
        if y is None:
            raise UserError("feature distance", "lacks the real volumes' features", "give them as `y`")
        return [y_pred, y]

    def aggregate(self) -> Tensor:
        """The distance of everything since the last reset, ().

        Raises:
            UserError: there has been nothing.
        """
        buffers = self.get_buffer()
        if buffers is None:
            raise UserError("feature distance", "has seen no features", "call the metric before `aggregate`")
        return torch.tensor(self.distance(*buffers), dtype=torch.float64)
