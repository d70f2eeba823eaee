"""What a scanner does to a volume, as a map with an adjoint.

A linear operator A maps volumes x (B, C, *spatial) to measurements y (B, ...). Its adjoint A^H is defined by

    <A x, y> = <x, A^H y>        for all x and y,

with <a, b> the sum over a conj(b). Volumes are real here (intensities) while measurements may be complex, so spaces
are real vector spaces: the inner product is Re sum a conj(b), and the adjoint of an operator that ends in complex
numbers returns the real part. That is the adjoint automatic differentiation uses, too, hence

    grad_x 1/2 |A x - y|^2 = A^H (A x - y)

holds exactly for every operator of this package, and posteriors may use either.

Operators are written as `later @ earlier` and `Stack([a, b], shape)`:

    (A B)^H = B^H A^H,        [A; B]^H (y_1, y_2) = A^H y_1 + B^H y_2.

`A`, `A_adjoint` are other names of the same two methods: with them, deepinv's solvers accept an operator of this
package as it is.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Compose", "Identity", "LinearOperator", "Operator", "Scaled", "Stack", "operator_norm"]


class Operator(ABC):
    """What a scanner does: `operator(x)` is the noiseless measurement of volumes x (B, C, *spatial)."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Measurement (B, ...) of x (B, C, *spatial)."""

    def A(self, x: Tensor) -> Tensor:
        """The same as a call, under deepinv's name."""
        return self(x)


class LinearOperator(Operator):
    """An operator with an adjoint.

    Fields that are tensors stay where they were made; `to(device)` returns a copy elsewhere. Data keep their precision:
    a float64 volume is measured in float64 or complex128, a float32 one in float32 or complex64.
    """

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^H y (B, C, *spatial) of a measurement y (B, ...)."""

    def A_adjoint(self, y: Tensor) -> Tensor:
        """The same as `adjoint`, under deepinv's name."""
        return self.adjoint(y)

    @abstractmethod
    def to(self, device: torch.device | str) -> LinearOperator:
        """The same operator on another device."""

    def normal(self, x: Tensor) -> Tensor:
        """A^H A x, for which some operators have a shorter way."""
        return self.adjoint(self(x))

    def __matmul__(self, earlier: LinearOperator) -> LinearOperator:
        """`self` after `earlier`."""
        return Compose(self, earlier)

    def __rmul__(self, factor: float) -> LinearOperator:
        """`factor * self`, of a real factor."""
        return Scaled(factor, self)


class Identity(LinearOperator):
    """Measures the volume itself: denoising is this operator and the noise of the measurement."""

    def __call__(self, x: Tensor) -> Tensor:
        """X itself."""
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """Y itself."""
        return y

    def to(self, device: torch.device | str) -> Identity:
        """Itself: it holds nothing."""
        return self


class Compose(LinearOperator):
    """`later` after `earlier`."""

    def __init__(self, later: LinearOperator, earlier: LinearOperator) -> None:
        self.later, self.earlier = later, earlier

    def __call__(self, x: Tensor) -> Tensor:
        """Later(earlier(x))."""
        return self.later(self.earlier(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """The adjoints, in the other order."""
        return self.earlier.adjoint(self.later.adjoint(y))

    def to(self, device: torch.device | str) -> Compose:
        """Both on another device."""
        return Compose(self.later.to(device), self.earlier.to(device))


class Scaled(LinearOperator):
    """A real factor times an operator."""

    def __init__(self, factor: float, operator: LinearOperator) -> None:
        self.factor, self.operator = factor, operator

    def __call__(self, x: Tensor) -> Tensor:
        """Factor times A x."""
        return self.factor * self.operator(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Factor times A^H y."""
        return self.factor * self.operator.adjoint(y)

    def to(self, device: torch.device | str) -> Scaled:
        """The same on another device."""
        return Scaled(self.factor, self.operator.to(device))


class Stack(LinearOperator):
    """Several measurements of one volume, laid end to end.

    Its measurement is (B, n): the flattened measurements one after the other, complex if any of them is. `split` gives
    them back in their shapes.

    Args:
        operators: what is measured.
        shape: (C, *spatial) of the volumes, from which the shapes of the measurements are found.

    Raises:
        ValueError: no operators.
    """

    def __init__(self, operators: Sequence[LinearOperator], shape: Sequence[int]) -> None:
        if not operators:
            raise ValueError("a stack needs at least one operator")
        self.operators, self.shape = tuple(operators), tuple(shape)
        parts = [operator(torch.zeros(1, *self.shape)) for operator in self.operators]
        self._parts = [(part.shape[1:], part.is_complex()) for part in parts]

    def __call__(self, x: Tensor) -> Tensor:
        """The measurements of x, (B, n)."""
        return torch.cat([operator(x).flatten(1) for operator in self.operators], dim=1)

    def split(self, y: Tensor) -> list[Tensor]:
        """A measurement (B, n) as one tensor per operator."""
        flat = y.split([shape.numel() for shape, _ in self._parts], dim=1)
        return [
            (part if is_complex or not part.is_complex() else part.real).reshape(len(y), *shape)
            for part, (shape, is_complex) in zip(flat, self._parts, strict=True)
        ]

    def adjoint(self, y: Tensor) -> Tensor:
        """The sum of the parts' adjoints."""
        parts = zip(self.operators, self.split(y), strict=True)
        return torch.stack([operator.adjoint(part) for operator, part in parts]).sum(0)

    def to(self, device: torch.device | str) -> Stack:
        """All on another device."""
        moved = copy.copy(self)
        moved.operators = tuple(operator.to(device) for operator in self.operators)
        return moved


def operator_norm(operator: LinearOperator, like: Tensor, iterations: int = 30) -> float:
    """Largest singular value of an operator, by power iteration on A^H A from `like`.

    Args:
        operator: A.
        like: where to begin, (1, C, *spatial), not zero; random numbers are best.
        iterations: of the power method; the estimate grows towards the true value from below.
    """
    x = like
    size = 0.0
    for _ in range(iterations):
        x = operator.normal(x / torch.linalg.vector_norm(x))
        size = float(torch.linalg.vector_norm(x))
        if size == 0:
            return 0.0
    return size**0.5
