r"""How many different volumes are in a set? Vendi score, and similarity of random pairs.

The Vendi score of n items with kernel K (K_ii = 1) and probabilities p is the exponential of the Renyi entropy of
order q of the eigenvalues of diag(sqrt p) K diag(sqrt p), which sum to 1:

    VS_q = (sum_i lambda_i^q)^(1 / (1 - q)),    q = 1: exp(-sum_i lambda_i ln lambda_i),    q = inf: 1 / max lambda

the *effective number* of different items: n for n items without likeness, 1 for n copies, m for m equal groups of
copies at every order. It falls with q: a small order counts rare items, a large one asks how much the most common
kind fills. For q = 2 no eigenvalue is needed: 1 / sum_ij p_i p_j K_ij^2.

With the cosine kernel K = X X^T of unit rows X the eigenvalues are the squared singular values of diag(sqrt p) X, which
are as many as the smaller side of X: the primal (n x n) and the dual form (d x d) are one computation.

Both measures describe one set and depend on its size and scale. Compare two sets with equally many items, and with one
kernel, whose bandwidth comes from the real set. Features of one organ all point the same way, and then a cosine kernel
finds hardly more than one item: subtract the real set's mean from both sets first, or use an RBF kernel.

MS-SSIM needs no features: the structural similarity of Wang et al. on several scales, averaged over random pairs; lower
is more diverse. It compares position by position, so it sees a shifted copy as another volume.

Sources: Friedman and Dieng, The Vendi Score, TMLR 2023; Pasarkar and Dieng, Cousins of the Vendi Score, AISTATS 2024
(orders, weights); Wang, Simoncelli and Bovik, Multiscale Structural Similarity, Asilomar 2003; Odena et al.,
Conditional Image Synthesis with Auxiliary Classifier GANs, ICML 2017 (its mean over pairs as diversity).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from monai.metrics import CumulativeIterationMetric
from monai.metrics.regression import compute_ms_ssim
from torch import Generator, Tensor
from torch.nn import functional as F

from voxscore.errors import UserError
from voxscore.evaluation.kernels import feature_rows

__all__ = ["PairSimilarity", "VendiScoreMetric", "ms_ssim_diversity", "vendi_score", "vendi_score_of_kernel"]

# Wang et al., finest scale first; fewer scales keep the first weights, rescaled to sum to 1.
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# Edge and standard deviation of the Gaussian window, voxels. The customary edge of 11 leaves a volume of 40 voxels two
# scales and costs three times as much; 7 leaves it three, and all five from 112 voxels on.
WINDOW, WINDOW_STD = 7, 1.5
PAIRS_AT_A_TIME = 8


def vendi_score(features: Tensor, q: float = 1.0, p: Tensor | None = None) -> float:
    """Effective number of different items by the cosine similarity of their features.

    Args:
        features: (n, d), a row for each item.
        q: order, from 0 to infinity.
        p: (n,), probability of each item; by default all are equal.

    Returns:
        A number from 1 to min(n, d).

    Raises:
        UserError: a row is 0, which has no direction, features are not finite rows, or `q` or `p` makes no sense.
    """
    x = feature_rows(features, "features", least=1)
    if not x.any(dim=1).all():
        raise UserError("features", "have a row of zeros", "cosine similarity needs a direction for every item")
    weighted = F.normalize(x, dim=1) * _probabilities(p, x).sqrt()[:, None]
    if _order(q) == 2:
        n, d = x.shape
        gram = weighted @ weighted.T if n < d else weighted.T @ weighted
        return 1 / float(gram.square().sum())
    return _effective_number(torch.linalg.svdvals(weighted).square(), q)


def vendi_score_of_kernel(kernel: Tensor, q: float = 1.0, p: Tensor | None = None) -> float:
    """Effective number of different items by any similarity.

    Args:
        kernel: (n, n), symmetric and positive semi-definite, the latter not being checked; it is scaled to a unit
            diagonal.
        q: order, from 0 to infinity.
        p: (n,), probability of each item; by default all are equal.

    Returns:
        A number from 1 to n.

    Raises:
        UserError: the kernel is not a symmetric matrix with a positive diagonal, or `q` or `p` makes no sense.
    """
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        raise UserError("kernel", f"has shape {tuple(kernel.shape)}", "give an (n, n) matrix")
    k = feature_rows(kernel, "kernel", least=1)
    if not torch.allclose(k, k.T, rtol=1e-5, atol=1e-8) or not (k.diagonal() > 0).all():
        fault = "is not symmetric with a positive diagonal"
        raise UserError("kernel", fault, "give the similarity of every item to every item")
    scale = (_probabilities(p, k) / k.diagonal()).sqrt()
    weighted = k * scale[:, None] * scale
    if _order(q) == 2:
        return 1 / float(weighted.square().sum())
    return _effective_number(torch.linalg.eigvalsh(weighted), q)


def _order(q: float) -> float:
    if not q >= 0:
        raise UserError("q", f"is {q}", "give an order from 0 to math.inf")
    return q


def _probabilities(p: Tensor | None, like: Tensor) -> Tensor:
    """(n,) in float64, checked; equal ones by default."""
    n = len(like)
    if p is None:
        return like.new_full((n,), 1 / n)
    p = p.to(like)
    if p.shape != (n,) or not (p >= 0).all() or not math.isclose(float(p.sum()), 1, abs_tol=1e-6):
        fault = f"have shape {tuple(p.shape)} and sum to {float(p.sum()):g}"
        raise UserError("probabilities", fault, f"give {n} numbers that are not negative and sum to 1")
    return p / p.sum()


def _effective_number(eigenvalues: Tensor, q: float) -> float:
    # What rounding left of a zero eigenvalue would count in full at order 0, and dearly below 1.
    kept = eigenvalues[eigenvalues > len(eigenvalues) * torch.finfo(torch.float64).eps * eigenvalues.max()]
    if q == math.inf:
        return 1 / float(kept.max())
    if abs(q - 1) < 1e-8:  # nearer, the general formula is 0 / 0
        return math.exp(float(torch.special.entr(kept).sum()))
    return math.exp(float(torch.logsumexp(q * kept.log(), dim=0)) / (1 - q))


class VendiScoreMetric(CumulativeIterationMetric):
    """The Vendi score of features that arrive in batches, from all processes.

    Call it with features `y_pred` (B, d); `aggregate` scores all of them together.

    Args:
        q: order, from 0 to infinity.
    """

    def __init__(self, q: float = 1.0) -> None:
        super().__init__()
        self.q = _order(q)

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **_: Any) -> Tensor:
        return y_pred

    def aggregate(self) -> Tensor:
        """The score of everything since the last reset, ().

        Raises:
            UserError: there has been nothing.
        """
        features = self.get_buffer()
        if features is None:
            raise UserError("Vendi score", "has seen no features", "call the metric before `aggregate`")
        return torch.tensor(vendi_score(features, self.q), dtype=torch.float64)


class PairSimilarity(NamedTuple):
    """MS-SSIM of pairs of volumes.

    Attributes:
        mean: over the pairs; lower is more diverse.
        values: (P,), of each pair. Pairs share volumes, so their spread is not that of independent values.
        scales: on how many scales: halvings plus one.
    """

    mean: float
    values: Tensor
    scales: int


@torch.no_grad()
def ms_ssim_diversity(
    volumes: Tensor, value_range: tuple[float, float], pairs: int, generator: Generator
) -> PairSimilarity:
    """Mean multi-scale structural similarity of pairs of volumes of a set.

    A volume of 40 voxels along its shortest side is compared on three scales, one of 112 on all five. The mean depends
    on the scales, hence on the size, so only sets on one grid can be compared. At each scale but the coarsest, a
    negative mean of the contrast and structure term counts as 0, and so makes the pair's similarity 0.

    Args:
        volumes: (N, C, *spatial), 2-D or 3-D.
        value_range: the intensities of black and white, one pair for all sets to be compared. The measure supposes
            intensities that are not negative, so they are first brought to 0 to 1 by these; none is cut off.
        pairs: how many different pairs are drawn; all there are if they are no more.
        generator: where the draw comes from.

    Raises:
        UserError: there are fewer than two volumes or no pair, they are smaller than the window of 7 voxels, or the
            range is empty.
    """
    dims, n = volumes.ndim - 2, len(volumes)
    if dims not in (2, 3) or n < 2:
        fault = f"have shape {tuple(volumes.shape)}"
        raise UserError("volumes", fault, "give two or more of shape (C, H, W) or (C, H, W, D)")
    low, high = value_range
    if not (math.isfinite(high - low) and low < high):
        raise UserError("value_range", f"is {low} to {high}", "give the intensities of black and white")
    if pairs < 1:
        raise UserError("pairs", f"are {pairs}", "draw at least one")
    scales = _scales(min(volumes.shape[2:]))

    every = torch.combinations(torch.arange(n), 2)
    if pairs < len(every):
        every = every[torch.randperm(len(every), generator=generator, device=generator.device)[:pairs].cpu()]
    weights = [weight / sum(SCALE_WEIGHTS[:scales]) for weight in SCALE_WEIGHTS[:scales]]
    values = []
    for chunk in every.split(PAIRS_AT_A_TIME):
        first, second = (((volumes[i] - low) / (high - low)).float() for i in chunk.to(volumes.device).T)
        similarity = compute_ms_ssim(
            first, second, dims, data_range=1.0, kernel_size=WINDOW, kernel_sigma=WINDOW_STD, weights=weights
        )
        values.append(similarity[:, 0])
    found = torch.cat(values).double().cpu()
    return PairSimilarity(float(found.mean()), found, scales)


def _scales(side: int) -> int:
    """How many of the five scales fit."""
    if side < WINDOW:
        raise UserError("volumes", f"are {side} voxels along one side", f"MS-SSIM's window needs {WINDOW}")
    # The coarsest must hold a window; MONAI refuses by (scales - 1)^2 in place of 2^(scales - 1), a little sooner.
    return max(s for s in range(1, 6) if side // max(2 ** (s - 1), (s - 1) ** 2) >= WINDOW)
