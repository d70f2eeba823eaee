"""Which lines of k-space a Cartesian scan measures.

A mask is a boolean tensor that is True where k-space is measured. A readout comes at no cost and is always complete, so
a mask has the size of the grid along the phase-encoding axes and size 1 along the others: it broadcasts to the grid.
Along each phase-encoding axis the middle of k-space is index n // 2 of n.

The acceleration R of a mask counts everything that is measured, the centre too (as BART and SigPy count):

    R = (number of phase encodings) / (number of measured ones)

Every mask here measures round(number / R) phase encodings, to the one. If its fully sampled centre alone holds more,
that is an error. `center` is the size of that centre along each phase-encoding axis: a whole number counts lines, a
fraction below 1 is a share of the axis.

Where a density is asked for, positions are drawn with inclusion probabilities

    p(k) = min(1, c w(k)),    c such that sum p = the number wanted,

by systematic sampling in random order: a number u of [0, 1) is added to the running sum of p, and a position is taken
where the sum passes a whole number. This meets each p(k) and the number exactly.

Positions are drawn from a generator: the same seed gives the same mask. Masks are on the CPU.

Sources: Lustig et al., Sparse MRI, MRM 2007 (polynomial density); Bridson, Fast Poisson disk sampling in arbitrary
dimensions, SIGGRAPH 2007, and Vasanawala et al., MRM 2010 (Poisson discs for MRI); Madow, Annals of Mathematical
Statistics 1949 (systematic sampling).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from voxscore.errors import UserError

__all__ = ["equispaced_mask", "partial_fourier_mask", "poisson_disc_mask", "random_mask", "variable_density_mask"]


def equispaced_mask(
    shape: Sequence[int], axis: int, acceleration: float, generator: Generator, center: int | float = 0.08
) -> Tensor:
    """The centre, and the other lines at equal distances from a random first one.

    The distance is the number of lines outside the centre by the number of them that are measured, so a little more
    than R; where it is not whole, distances differ by one line.

    Args:
        shape: of the grid, *spatial.
        axis: of the phase encoding.
        acceleration: R, at least 1.
        generator: says where the first line is.
        center: lines, or share of the lines, that are measured in the middle.

    Returns:
        A mask (*spatial), 1 along the other axes.

    Raises:
        UserError: no such axis, an acceleration that the centre alone does not reach, or a centre larger than the grid.
    """
    middle = _center(shape, [axis], center)
    outside = (~middle).nonzero()[:, 0]
    count = _count(middle, acceleration)
    first = torch.rand((), generator=generator, dtype=torch.float64)
    steps = (torch.arange(count, dtype=torch.float64) + first) * (len(outside) / max(count, 1))
    return _spread(middle.index_fill(0, outside[steps.long().clamp(max=max(len(outside) - 1, 0))], True), shape, [axis])


def random_mask(
    shape: Sequence[int], axes: Sequence[int], acceleration: float, generator: Generator, center: int | float = 0.08
) -> Tensor:
    """The centre, and other phase encodings with equal probability.

    Args:
        shape: of the grid, *spatial.
        axes: of the phase encodings, one or more.
        acceleration: R, at least 1.
        generator: of the draw.
        center: lines, or share of the lines, along each of `axes` that are measured in the middle.

    Returns:
        A mask (*spatial), 1 along the other axes.

    Raises:
        UserError: no such axes, an acceleration that the centre alone does not reach, or a centre larger than the grid.
    """
    middle = _center(shape, axes, center)
    return _spread(_draw(middle, torch.ones(middle.shape), _count(middle, acceleration), generator), shape, axes)


def variable_density_mask(
    shape: Sequence[int],
    axes: Sequence[int],
    acceleration: float,
    generator: Generator,
    center: int | float = 0.08,
    power: float = 3.0,
) -> Tensor:
    """The centre, and other phase encodings with a density that falls off as (1 - r)^power.

    r is the distance from the middle of k-space, 0 there and just below 1 at the edge (of one axis) or in the corner
    (of several).

    Args:
        shape: of the grid, *spatial.
        axes: of the phase encodings, one or more.
        acceleration: R, at least 1.
        generator: of the draw.
        center: lines, or share of the lines, along each of `axes` that are measured in the middle.
        power: of the density; 0 is `random_mask`.

    Returns:
        A mask (*spatial), 1 along the other axes.

    Raises:
        UserError: no such axes, an acceleration that the centre alone does not reach, a centre larger than the grid,
            or a negative power.
    """
    if not 0 <= power < math.inf:
        raise UserError("power", f"is {power}", "give 0 or more, 3 for instance")
    middle = _center(shape, axes, center)
    # However steep, every position has a chance: there may be more to measure than the middle holds.
    density = ((1 - _radius(middle.shape) / math.sqrt(middle.ndim)) ** power).clamp(min=1e-30)
    return _spread(_draw(middle, density, _count(middle, acceleration), generator), shape, axes)


def poisson_disc_mask(
    shape: Sequence[int],
    axes: Sequence[int],
    acceleration: float,
    generator: Generator,
    center: int | float = 0.08,
    slope: float = 2.0,
) -> Tensor:
    """The centre, and phase encodings that keep a distance from one another that grows outwards.

    Outside the centre two measured positions are never closer than the smaller of their two distances

        d = max(1, s (1 + slope r)),    in lines,

    r being the distance from the middle of k-space, 1 at the middle of an edge. Positions are tried in random order
    and taken where they have this room; s is the largest found by bisection that leaves enough of them, and a few too
    many are taken away at random. A grid of 218 x 182 takes one or two seconds.

    Args:
        shape: of the grid, *spatial.
        axes: of the two phase encodings.
        acceleration: R, at least 1.
        generator: of the draw.
        center: lines, or share of the lines, along both of `axes` that are measured in the middle.
        slope: of the distance; 0 is the same distance everywhere.

    Returns:
        A mask (*spatial), 1 along the other axes.

    Raises:
        UserError: not two axes of the grid, an acceleration that the centre alone does not reach, a centre larger
            than the grid, or a negative slope.
    """
    if len(axes) != 2:
        raise UserError("axes", f"are {len(axes)}", "Poisson discs need two phase-encoding axes")
    if not 0 <= slope < math.inf:
        raise UserError("slope", f"is {slope}", "give 0 or more, 2 for instance")
    middle = _center(shape, axes, center)
    count = _count(middle, acceleration)
    distance = 1 + slope * _radius(middle.shape)
    outside = (~middle.flatten()).nonzero()[:, 0]
    order = outside[torch.randperm(len(outside), generator=generator)].tolist()
    low, high = 1 / float(distance.max()), float(max(middle.shape))
    taken = order  # at s = low every distance is 1
    while high - low > 5e-3 * low:
        s = math.sqrt(low * high)
        found = _discs(order, (s * distance).clamp(min=1))
        if len(found) >= count:
            low, taken = s, found
        else:
            high = s
    keep = torch.randperm(len(taken), generator=generator)[:count]
    mask = middle.flatten().index_fill(0, torch.tensor(taken, dtype=torch.long)[keep], True)
    return _spread(mask.reshape(middle.shape), shape, axes)


def partial_fourier_mask(shape: Sequence[int], axis: int, fraction: float) -> Tensor:
    """One side of k-space, and of the other side as much as the fraction asks for.

    A real image needs one half only, since y(-k) is the conjugate of y(k); the phase that images have is read off the
    fully sampled middle. With n of N lines measured it has 2 n - N, and one more if N is even: the outermost line of an
    even N has no conjugate, and is not measured. `&` joins this mask to another.

    Args:
        shape: of the grid, *spatial.
        axis: of the phase encoding.
        fraction: of the lines, above 1/2 and at most 1; the last ones of the axis are measured.

    Returns:
        A mask (*spatial), 1 along the other axes.

    Raises:
        UserError: no such axis, or a fraction that leaves out the middle of k-space.
    """
    middle = _center(shape, [axis], 0)
    size = len(middle)
    if not 0.5 < fraction <= 1:
        raise UserError("fraction", f"is {fraction}", "give more than 1/2 and at most 1, such as 0.625 or 0.75")
    return _spread(torch.arange(size) >= size - round(fraction * size), shape, [axis])


def _center(shape: Sequence[int], axes: Sequence[int], center: int | float) -> Tensor:
    """The fully sampled middle, (size of each of `axes`)."""
    if not axes or len({axis % len(shape) for axis in axes if -len(shape) <= axis < len(shape)}) != len(axes):
        raise UserError("axes", f"are {list(axes)}", f"name different axes of a grid of {len(shape)}")
    middle = torch.ones([shape[axis] for axis in sorted(axis % len(shape) for axis in axes)], dtype=torch.bool)
    for along, size in enumerate(middle.shape):
        lines = center if isinstance(center, int) else round(center * size) if 0 <= center < 1 else -1
        if not 0 <= lines <= size:
            remedy = "give a whole number of lines, or a fraction below 1 of them"
            raise UserError("center", f"is {center} of {size} lines", remedy)
        first = size // 2 - lines // 2
        line = (torch.arange(size) >= first) & (torch.arange(size) < first + lines)
        middle &= line.reshape(-1, *[1] * (middle.ndim - 1 - along))
    return middle


def _count(middle: Tensor, acceleration: float) -> int:
    """How many positions outside the middle are to be measured."""
    if not 1 <= acceleration < math.inf:
        raise UserError("acceleration", f"is {acceleration}", "give 1 (all of k-space) or more")
    wanted, given = round(middle.numel() / acceleration), int(middle.sum())
    if wanted < max(given, 1):
        fault = f"of {acceleration} leaves {wanted} of {middle.numel()} phase encodings, the centre has {given}"
        raise UserError("acceleration", fault, "give a smaller centre or a lower acceleration")
    return wanted - given


def _radius(sizes: Sequence[int]) -> Tensor:
    """Distance from the middle of k-space in half axes, (*sizes), below 1 along each axis."""
    axes = [(torch.arange(n, dtype=torch.float64) - n // 2) / ((n + 1) / 2) for n in sizes]
    return torch.stack([axis.square() for axis in torch.meshgrid(*axes, indexing="ij")]).sum(0).sqrt()


def _draw(middle: Tensor, weights: Tensor, count: int, generator: Generator) -> Tensor:
    """The middle and `count` positions outside, by systematic sampling with p = min(1, c w)."""
    outside = (~middle.flatten()).nonzero()[:, 0]
    outside = outside[torch.randperm(len(outside), generator=generator)]
    w = weights.flatten()[outside].double()
    if count == len(outside):
        return torch.ones_like(middle)
    # The largest weights come to p = 1 first: with m of them there, c = (count - m) / (sum of the others).
    ordered = w.sort(descending=True).values
    rest = ordered.flip(0).cumsum(0).flip(0)
    c = (count - torch.arange(len(w))) / rest
    p = (c[int((c * ordered > 1).sum())] * w).clamp(max=1)
    u = torch.rand((), generator=generator, dtype=torch.float64)
    steps = torch.floor(torch.cat([torch.zeros(1), p.cumsum(0)]) + u)
    steps[-1] = count  # their sum is a whole number but for the rounding
    return middle.flatten().index_fill(0, outside[steps.diff() > 0], True).reshape(middle.shape)


def _discs(order: Sequence[int], distance: Tensor) -> list[int]:
    """The positions of `order` that keep the distance of every earlier one."""
    rows, columns = distance.shape
    blocked = bytearray(rows * columns)
    radii = distance.flatten().tolist()
    taken = []
    for position in order:
        if blocked[position]:
            continue
        taken.append(position)
        row, column = divmod(position, columns)
        d = radii[position]
        for i in range(max(0, math.floor(row - d) + 1), min(rows, math.ceil(row + d))):
            reach = math.ceil(math.sqrt(d * d - (i - row) ** 2)) - 1
            first, last = max(0, column - reach), min(columns, column + reach + 1)
            blocked[i * columns + first : i * columns + last] = b"\1" * (last - first)
    return taken


def _spread(mask: Tensor, shape: Sequence[int], axes: Sequence[int]) -> Tensor:
    """The mask of the phase encodings with size 1 along the other axes."""
    kept = {axis % len(shape) for axis in axes}
    return mask.reshape([size if axis in kept else 1 for axis, size in enumerate(shape)])
