"""Score augmentation: transform the noisy volume, signal and noise alike, and tell the denoiser which transform it was.

For a linear transform T_omega, training minimises

    E |D(T x_t, t, omega) - T x_0|^2,    x_t = alpha x_0 + sigma eps,

so the noise is turned, shifted and scaled with the volume, and the denoiser learns what it would have to in every
transformed space. Where T has an inverse, y = T x_t says as much as x_t does, and the optimum and its score are

    D_T(y, t) = T D(T^-1 y, t),    score_T(y) = T^-T score(T^-1 y):

nothing that is learned from a transformed volume leaks into the untransformed ones. Where it has none (a cutout, a
shift that drops voxels) the optimum is E[T x_0 | T x_t], made from what is left.

A transform and its parameters are one vector omega: it is drawn first, kept as numbers, applied later, and it is what
the denoiser is told. Zeros are the identity, which is what sampling uses. Brightness c leaves a noise level of c sigma,
which the denoiser can only know from (t, omega).

Voxels that a transform leaves empty are 0, in the channels of a one-hot label too: there they have no class, which the
cross-entropy of `joint_loss` takes for "nothing to learn here". For an image it presumes that 0 is its background.

Source: Hou et al., Score Augmentation for Diffusion Models, arXiv 2508.07926, 2025 (the loss, the transforms; for an
invertible T the optimum above follows from it).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

__all__ = [
    "Augmentation",
    "Brightness",
    "Cutout",
    "Flip",
    "QuarterTurn",
    "ScoreAug",
    "Transform",
    "Translate",
]


class Transform(ABC):
    """A family of linear maps of a volume; a vector of parameters names the member, and zeros name the identity."""

    @abstractmethod
    def features(self, spatial_dims: int) -> int:
        """Length of the parameters for volumes of so many spatial dimensions."""

    @abstractmethod
    def draw(self, shape: Sequence[int], generator: Generator) -> Tensor:
        """Random parameters (features,), float64 on the CPU, for volumes of the spatial shape `shape`."""

    @abstractmethod
    def apply(self, x: Tensor, omega: Tensor) -> Tensor:
        """The transform of one volume x (C, *spatial) by parameters omega (features,) that are not all zero."""

    def inverse(self, omega: Tensor) -> Tensor:
        """Parameters of the inverse transform.

        Raises:
            ValueError: a transform that loses voxels.
        """
        raise ValueError(f"{type(self).__name__} loses voxels and has no inverse")


@dataclass(frozen=True)
class Flip(Transform):
    """Mirror one axis, all of them equally likely. One feature an axis: 1 where it is mirrored."""

    def features(self, spatial_dims: int) -> int:
        """One an axis."""
        return spatial_dims

    def draw(self, shape: Sequence[int], generator: Generator) -> Tensor:
        """One axis."""
        return _one_hot(_integer(0, len(shape) - 1, generator), len(shape))

    def apply(self, x: Tensor, omega: Tensor) -> Tensor:
        """Mirror the axes whose feature is 1."""
        return x.flip([1 + axis for axis, flipped in enumerate(omega.tolist()) if flipped])

    def inverse(self, omega: Tensor) -> Tensor:
        """Itself."""
        return omega


@dataclass(frozen=True)
class QuarterTurn(Transform):
    """Turn one plane by 90, 180 or 270 degrees. Three features a plane, one for each angle; one of them all is 1.

    A plane whose sides have different lengths is only turned by 180 degrees. Nothing is known here of the voxel
    spacing: name the planes in which it is the same.

    Args:
        planes: pairs of spatial axes; all if None.
    """

    planes: Sequence[Sequence[int]] | None = None

    def _planes(self, spatial_dims: int) -> list[Sequence[int]]:
        return list(combinations(range(spatial_dims), 2) if self.planes is None else self.planes)

    def features(self, spatial_dims: int) -> int:
        """Three a plane."""
        return 3 * len(self._planes(spatial_dims))

    def draw(self, shape: Sequence[int], generator: Generator) -> Tensor:
        """One plane and angle of those that fit the shape, all equally likely."""
        planes = self._planes(len(shape))
        fitting = [
            3 * plane + turns - 1
            for plane, (a, b) in enumerate(planes)
            for turns in ((1, 2, 3) if shape[a] == shape[b] else (2,))
        ]
        if not fitting:
            raise ValueError(f"QuarterTurn: a volume of spatial shape {tuple(shape)} has no plane to turn")
        return _one_hot(fitting[_integer(0, len(fitting) - 1, generator)], 3 * len(planes))

    def apply(self, x: Tensor, omega: Tensor) -> Tensor:
        """Turn the plane by the angle.

        Raises:
            ValueError: a quarter turn of a plane whose sides have different lengths.
        """
        plane, turns = divmod(int(omega.argmax()), 3)
        a, b = self._planes(x.ndim - 1)[plane]
        turned = x.rot90(turns + 1, (1 + a, 1 + b))
        if turned.shape != x.shape:
            raise ValueError(f"QuarterTurn: axes {a} and {b} of a volume {tuple(x.shape[1:])} differ in length")
        return turned

    def inverse(self, omega: Tensor) -> Tensor:
        """The angle that completes the circle."""
        return omega.reshape(-1, 3).flip(1).flatten()


@dataclass(frozen=True)
class Translate(Transform):
    """Shift by whole voxels; what enters is 0. One feature an axis: the shift as a part of the axis' length.

    A shift drops the voxels it pushes out, so that it has no inverse.

    Args:
        limit: the largest shift, as a part of the length, in (0, 1).

    Raises:
        ValueError: a limit outside.
    """

    limit: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.limit < 1:
            raise ValueError(f"Translate: the limit is a part of the length between 0 and 1, got {self.limit}")

    def features(self, spatial_dims: int) -> int:
        """One an axis."""
        return spatial_dims

    def draw(self, shape: Sequence[int], generator: Generator) -> Tensor:
        """A whole number of voxels along every axis, uniform within the limit."""
        most = [int(self.limit * n) for n in shape]
        return _parts([_integer(-m, m, generator) for m in most], shape)

    def apply(self, x: Tensor, omega: Tensor) -> Tensor:
        """Shift every axis, to higher indices if positive."""
        shifts = [round(part * n) for part, n in zip(omega.tolist(), x.shape[1:], strict=True)]
        # Negative padding crops, and the last axis comes first.
        return pad(x, [side for shift in reversed(shifts) for side in (shift, -shift)])


@dataclass(frozen=True)
class Brightness(Transform):
    """Scale by c, whose logarithm is uniform in [-ln limit, ln limit]. One feature: ln c.

    Args:
        limit: the largest c; the smallest is its inverse.
        channels: which channels are scaled, for instance those of the image in a joint state; all if None.

    Raises:
        ValueError: a limit that is not above 1.
    """

    limit: float = 2.0
    channels: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not self.limit > 1:
            raise ValueError(f"Brightness: the limit is a factor above 1, got {self.limit}")

    def features(self, spatial_dims: int) -> int:
        """One."""
        return 1

    def draw(self, shape: Sequence[int], generator: Generator) -> Tensor:
        """ln c."""
        return (2 * _uniform(1, generator) - 1) * math.log(self.limit)

    def apply(self, x: Tensor, omega: Tensor) -> Tensor:
        """Scale the channels."""
        channels = range(len(x)) if self.channels is None else self.channels
        c = torch.ones(len(x), dtype=torch.float64)
        c[list(channels)] = math.exp(float(omega))
        return c.to(x).reshape(-1, *[1] * (x.ndim - 1)) * x

    def inverse(self, omega: Tensor) -> Tensor:
        """-ln c."""
        return -omega


@dataclass(frozen=True)
class Cutout(Transform):
    """Set a box to 0. Two features an axis: where it begins and its length, as parts of the axis' length.

    Args:
        limit: the longest side, as a part of the axis' length, in (0, 1].

    Raises:
        ValueError: a limit outside.
    """

    limit: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.limit <= 1:
            raise ValueError(f"Cutout: the limit is a part of the length, at most all of it, got {self.limit}")

    def features(self, spatial_dims: int) -> int:
        """Two an axis."""
        return 2 * spatial_dims

    def draw(self, shape: Sequence[int], generator: Generator) -> Tensor:
        """A box of one voxel at least that lies in the volume, its sides uniform up to the limit."""
        lengths = [_integer(1, max(int(self.limit * n), 1), generator) for n in shape]
        starts = [_integer(0, n - length, generator) for n, length in zip(shape, lengths, strict=True)]
        return torch.cat([_parts(starts, shape), _parts(lengths, shape)])

    def apply(self, x: Tensor, omega: Tensor) -> Tensor:
        """Empty the box, in all channels."""
        starts, lengths = omega.reshape(2, -1).tolist()
        box = [
            slice(round(start * n), round(start * n) + round(length * n))
            for start, length, n in zip(starts, lengths, x.shape[1:], strict=True)
        ]
        cut = x.clone()
        cut[(slice(None), *box)] = 0
        return cut


def _integer(low: int, high: int, generator: Generator) -> int:
    """Uniform in low, ..., high."""
    return int(torch.randint(low, high + 1, (), generator=generator, device=generator.device))


def _uniform(n: int, generator: Generator) -> Tensor:
    return torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64).cpu()


def _one_hot(index: int, length: int) -> Tensor:
    return (torch.arange(length) == index).double()


def _parts(voxels: Sequence[int], shape: Sequence[int]) -> Tensor:
    return torch.tensor([v / n for v, n in zip(voxels, shape, strict=True)], dtype=torch.float64)


@dataclass(frozen=True)
class ScoreAug:
    """Transforms of which each volume gets one, or none: all equally likely, the identity among them.

    Args:
        transforms: the families to draw from.
        spatial_dims: of the volumes.
    """

    transforms: Sequence[Transform]
    spatial_dims: int = 3

    @property
    def sizes(self) -> list[int]:
        """How many features of omega belong to each family, in order."""
        return [transform.features(self.spatial_dims) for transform in self.transforms]

    @property
    def features(self) -> int:
        """Length of omega: what a network needs to know to be told it, the `cond_features` of a `ScoreUNet`."""
        return sum(self.sizes)

    def draw(self, shape: Sequence[int], generator: Generator) -> Augmentation:
        """One transform for each volume of a batch.

        Args:
            shape: of the batch (B, C, *spatial).
            generator: where the choice and the parameters come from.

        Raises:
            ValueError: another number of spatial dimensions; a transform that does not fit the shape.
        """
        batch, _, *spatial = shape
        if len(spatial) != self.spatial_dims:
            raise ValueError(f"ScoreAug is for {self.spatial_dims} spatial dimensions, the batch is {tuple(shape)}")
        omega = torch.zeros(batch, self.features, dtype=torch.float64)
        for row in omega:
            chosen = _integer(0, len(self.transforms), generator)
            if chosen:
                row.split(self.sizes)[chosen - 1].copy_(self.transforms[chosen - 1].draw(spatial, generator))
        return Augmentation(self, omega)


@dataclass(frozen=True, eq=False)
class Augmentation:
    """Drawn transforms, one for each volume of a batch.

    Args:
        score_aug: the families.
        omega: (B, features), their parameters one family after the other; `omega.tolist()` is all there is to keep.

    Raises:
        ValueError: omega has another shape, or names two transforms for one volume.
    """

    score_aug: ScoreAug
    omega: Tensor

    def __post_init__(self) -> None:
        if self.omega.ndim != 2 or self.omega.shape[1] != self.score_aug.features:
            expected = f"(batch, {self.score_aug.features})"
            raise ValueError(f"Augmentation: omega has shape {tuple(self.omega.shape)}, expected {expected}")
        if any(len(self._named(row)) > 1 for row in self.omega):
            raise ValueError("Augmentation: a volume gets one transform, omega names several")

    def _named(self, row: Tensor) -> list[tuple[Transform, Tensor]]:
        """The transform that a row of omega names, with its own parameters; nothing if it is the identity."""
        parts = zip(self.score_aug.transforms, row.split(self.score_aug.sizes), strict=True)
        return [(transform, part) for transform, part in parts if part.any()]

    def __call__(self, x: Tensor) -> Tensor:
        """T x of every volume of x (B, C, *spatial).

        Raises:
            ValueError: another batch, or a quarter turn that does not fit.
        """
        if len(x) != len(self.omega):
            raise ValueError(f"Augmentation: drawn for a batch of {len(self.omega)}, got {tuple(x.shape)}")
        volumes = []
        for volume, row in zip(x, self.omega, strict=True):
            for transform, part in self._named(row):
                volume = transform.apply(volume, part)
            volumes.append(volume)
        return torch.stack(volumes)

    def inverse(self) -> Augmentation:
        """The transforms that undo these.

        Raises:
            ValueError: one of them loses voxels.
        """
        omega = self.omega.clone()
        for row in omega:
            for transform, part in self._named(row):
                part.copy_(transform.inverse(part))
        return Augmentation(self.score_aug, omega)
