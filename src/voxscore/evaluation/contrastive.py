r"""Likeness by learned features: a small network that knows every training volume by sight.

Registered correlation compares voxel by voxel and so must search; a network can learn what stays the same. Two views of
a volume are made at random (mirrored, turned, shifted, cropped, its ranks bent, noise added), and of 2B views in a
batch an encoder f learns which belong together (NT-Xent): with cosine similarity c and temperature T

    L = - mean_i ln [ exp(c(f_i, f_i') / T) / sum_{j != i} exp(c(f_i, f_j) / T) ].

What it learns is what tells the training volumes apart and nothing that a view changes, so it also finds copies that
were bent beyond the reach of a search, and it is worth nothing where the training set is tiny. The encoder is trained
anew on the training set of each audit, from a seed, in about a minute on one core. It is not kept, for it knows the
training set: whoever holds it can ask it about a volume.

Sources: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020; Dar et al.,
Unconditional Latent Diffusion Models Memorize Patient Imaging Data, 2024 (for finding copies in 3-D).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from voxscore.evaluation.registration import FLIPS, SearchGrid, middle_part

__all__ = ["ContrastiveEncoder", "nt_xent", "train_encoder"]

SHRINK = 2  # voxels of the search grid to one of the encoder's
CHANNELS, FEATURES = (16, 32, 64), 64
BATCH, STEPS, RATE, TEMPERATURE = 24, 300, 2e-3, 0.1
TURN, SCALE, BEND, NOISE = 0.15, 0.05, 0.4, 0.05  # of a view: radians, part, log exponent, of the range of ranks


class ContrastiveEncoder(nn.Module):
    """Volumes (B, 1, *spatial) of ranks to unit vectors (B, 64)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((1, *CHANNELS), CHANNELS, strict=False):
            stride = 1 if before == 1 else 2
            layers += [nn.Conv3d(before, after, 3, stride, 1), nn.GroupNorm(4, after), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.LazyLinear(128), nn.SiLU(), nn.Linear(128, FEATURES))

    def forward(self, volumes: Tensor) -> Tensor:
        """Unit vectors (B, 64)."""
        # Where something is matters, so that the last features are not averaged over all of space.
        features = F.adaptive_avg_pool3d(self.layers(volumes - 0.5), 3).flatten(1)
        return F.normalize(self.head(features), dim=1)

    @torch.no_grad()
    def features(self, volumes: Tensor, grid: SearchGrid) -> Tensor:
        """Of volumes on the grid (n, *grid.shape), plain and in all mirrorings: (n, 8, 64)."""
        small = F.avg_pool3d(volumes[:, None], SHRINK)
        views = [self(_middle(small.flip([2 + axis for axis in flip]), grid)) for flip in FLIPS]
        return torch.stack(views, dim=1)

    def likeness(self, queries: Tensor, references: Tensor) -> Tensor:
        """The greatest cosine of a query in any mirroring and a reference as it is: (n, m).

        Args:
            queries: `features` of queries, (n, 8, 64).
            references: `features` of references, (m, 8, 64).
        """
        return torch.einsum("nfd,md->nmf", queries, references[:, 0]).amax(2).clamp(max=1)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The loss of two views' unit vectors, (B, d) each: ()."""
    both = torch.cat([first, second])
    n = len(first)
    similarity = (both @ both.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(similarity, torch.arange(2 * n, device=both.device).roll(n))


def train_encoder(training: Tensor, grid: SearchGrid, seed: int, steps: int = STEPS) -> ContrastiveEncoder:
    """An encoder that tells the training volumes apart, the same for the same seed.

    Args:
        training: volumes on the grid, (M, *grid.shape).
        grid: of the search.
        seed: of weights and views.
        steps: of training.
    """
    small = F.avg_pool3d(training[:, None], SHRINK)
    generator = Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = ContrastiveEncoder()
        encoder(_middle(small[:1], grid))  # the head takes its size
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(steps):
        batch = small[torch.randperm(len(small), generator=generator)[:BATCH]]
        first, second = (encoder(_view(batch, grid, generator)) for _ in range(2))
        loss = nt_xent(first, second, TEMPERATURE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return encoder.eval()


def _middle(small: Tensor, grid: SearchGrid) -> Tensor:
    return middle_part(small, [n // SHRINK for n in grid.template])


def _view(batch: Tensor, grid: SearchGrid, generator: Generator) -> Tensor:
    """What one may see of volumes (B, 1, *spatial): (B, 1, *template)."""
    n = len(batch)

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(shape, generator=generator) - 1

    sizes = [s // SHRINK for s in grid.template]
    part = torch.tensor([s / full for s, full in zip(sizes, batch.shape[2:], strict=True)])
    # Columns of a rotation to first order, made orthogonal, then mirrored and scaled to the part that is seen.
    x, y, z = (TURN * uniform(n, 3)).unbind(1)
    zero = torch.zeros(n)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).reshape(n, 3, 3)
    turn = torch.matrix_exp(skew)
    mirror = torch.where(uniform(n, 3) > 0, 1.0, -1.0)
    scale = part * mirror * (1 + SCALE * uniform(n, 3))
    # `affine_grid` counts axes from the last one; the extents differ, so the turn is made in voxels.
    size = torch.tensor(batch.shape[2:], dtype=torch.float32)
    matrix = turn * scale[:, None, :] * size[None, None, :] / size[None, :, None]
    shift = (1 - part) * uniform(n, 3)
    theta = torch.cat([matrix, shift[:, :, None]], dim=2)[:, [2, 1, 0]][:, :, [2, 1, 0, 3]]
    place = F.affine_grid(theta, [n, 1, *sizes], align_corners=False)
    seen = F.grid_sample(batch, place, padding_mode="border", align_corners=False)
    bent = seen.clamp(min=1e-6) ** (BEND * uniform(n, 1, 1, 1, 1)).exp()
    return bent + NOISE * torch.randn(seen.shape, generator=generator)
