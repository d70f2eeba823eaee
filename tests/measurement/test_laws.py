"""Every operator obeys the laws of linear maps and of their adjoints."""

import inspect

import pytest
import torch
from members import F64, MEMBERS, generator

import voxscore.measurement
from voxscore.diffusion import (
    EDM,
    Decomposed,
    DiagonalCovariance,
    Gaussian,
    GaussianDenoiser,
    MomentMatching,
    PiGDM,
    Projection,
)
from voxscore.diffusion.posteriors import Linear
from voxscore.measurement import Identity, LinearOperator, Scaled, Stack, operator_norm

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(params=MEMBERS)
def member(request):
    return MEMBERS[request.param]()


def measurement_like(y, seed=1):
    return torch.randn(y.shape, generator=generator(seed), dtype=y.dtype)


def dot(a, b):
    """The real inner product."""
    return float((a * b.conj()).real.sum())


def test_every_public_operator_has_a_member():
    public = {
        name
        for name in voxscore.measurement.__all__
        if inspect.isclass(item := getattr(voxscore.measurement, name))
        and issubclass(item, LinearOperator)
        and not inspect.isabstract(item)
    }
    assert public <= {type(make()[0]).__name__ for make in MEMBERS.values()}


def test_the_adjoint_is_the_adjoint(member):
    operator, x = member
    measured = operator(x)
    y = measurement_like(measured)
    left, right = dot(measured, y), dot(x, operator.adjoint(y))
    size = float(torch.linalg.vector_norm(measured) * torch.linalg.vector_norm(y))
    assert abs(left - right) <= 1e-12 * size
    assert operator.adjoint(y).shape == x.shape


def test_automatic_differentiation_finds_the_adjoint(member):
    operator, x = member
    x = x.requires_grad_()
    measured = operator(x)
    y = measurement_like(measured)
    ((measured * y.conj()).real.sum()).backward()
    torch.testing.assert_close(x.grad, operator.adjoint(y), **CLOSE)


def test_automatic_differentiation_of_the_adjoint_finds_the_operator(member):
    operator, x = member
    y = measurement_like(operator(x)).requires_grad_()
    (operator.adjoint(y) * x).sum().backward()
    torch.testing.assert_close(y.grad, operator(x), **CLOSE)


def test_operators_are_linear_and_leave_their_argument_alone(member):
    operator, x = member
    u = x.flip(0) + 1
    before = x.clone()
    torch.testing.assert_close(operator(1.7 * x - 0.3 * u), 1.7 * operator(x) - 0.3 * operator(u), **CLOSE)
    y, z = measurement_like(operator(x)), measurement_like(operator(x), seed=2)
    kept = y.clone()
    combined = operator.adjoint(1.7 * y - 0.3 * z)
    torch.testing.assert_close(combined, 1.7 * operator.adjoint(y) - 0.3 * operator.adjoint(z), **CLOSE)
    assert torch.equal(x, before)
    assert torch.equal(y, kept)


def test_a_volume_of_a_batch_is_measured_as_it_is_alone(member):
    operator, x = member
    torch.testing.assert_close(operator(x)[1:], operator(x[1:]), **CLOSE)


def test_the_precision_of_the_data_is_kept(member):
    operator, x = member
    y = operator(x)
    assert y.dtype in (F64, torch.complex128)
    assert operator.adjoint(y).dtype == operator.normal(x).dtype == F64
    single = operator(x.float())
    assert single.dtype == (torch.complex64 if y.is_complex() else torch.float32)
    assert operator.adjoint(single).dtype == operator.normal(x.float()).dtype == torch.float32
    torch.testing.assert_close(single.to(y.dtype), y, rtol=1e-4, atol=1e-4)


def test_an_operator_moves_to_another_device_as_a_copy(member):
    operator, x = member
    moved = operator.to("meta")
    y = moved(x.to("meta"))
    assert (y.device.type, y.shape) == ("meta", operator(x).shape)
    assert moved.adjoint(y).device.type == moved.normal(x.to("meta")).device.type == "meta"
    torch.testing.assert_close(operator.to("cpu")(x), operator(x), rtol=0, atol=0)


def test_the_normal_operator_is_the_adjoint_after_the_operator(member):
    operator, x = member
    torch.testing.assert_close(operator.normal(x), operator.adjoint(operator(x)), **CLOSE)


def test_deepinv_finds_its_names(member):
    operator, x = member
    torch.testing.assert_close(operator.A(x), operator(x), rtol=0, atol=0)
    torch.testing.assert_close(operator.A_adjoint(operator(x)), operator.adjoint(operator(x)), rtol=0, atol=0)


def test_products_and_factors(member):
    operator, x = member
    y = measurement_like(operator(x))
    twice = 2.5 * operator
    torch.testing.assert_close(twice(x), 2.5 * operator(x), **CLOSE)
    torch.testing.assert_close(twice.adjoint(y), 2.5 * operator.adjoint(y), **CLOSE)
    product = operator @ Scaled(-2.0, Identity())
    torch.testing.assert_close(product(x), -2 * operator(x), **CLOSE)
    torch.testing.assert_close(product.adjoint(y), -2 * operator.adjoint(y), **CLOSE)


def test_a_stack_measures_one_after_the_other_and_adds_the_adjoints(member):
    operator, x = member
    stack = Stack([operator, Identity()], x.shape[1:])
    first, second = stack.split(stack(x))
    torch.testing.assert_close(first, operator(x), rtol=0, atol=0)
    torch.testing.assert_close(second, x, rtol=0, atol=0)
    expected = operator.adjoint(operator(x)) + x
    torch.testing.assert_close(stack.adjoint(stack(x)), expected, **CLOSE)


def test_a_stack_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one operator"):
        Stack([], (1, 4, 4))


def test_the_norm_is_the_largest_singular_value(member):
    operator, x = member
    units = torch.eye(x[0].numel(), dtype=F64).reshape(-1, *x.shape[1:])
    columns = operator(units).flatten(1)
    # In the real inner product a complex number is two real ones.
    matrix = torch.view_as_real(columns).flatten(1) if columns.is_complex() else columns
    largest = float(torch.linalg.matrix_norm(matrix, ord=2))
    assert operator_norm(operator, x[:1], iterations=300) == pytest.approx(largest, rel=1e-3)


def test_the_norm_of_nothing_is_zero():
    assert operator_norm(Scaled(0.0, Identity()), torch.ones(1, 1, 2, 2)) == 0


@pytest.mark.parametrize("method", [MomentMatching, PiGDM, Projection, Decomposed])
def test_posteriors_need_no_automatic_differentiation_of_it(member, method):
    """With the adjoint that it brings along they are what they are of a function that only measures."""
    operator, x = member
    variances = torch.rand(x.shape[1:], generator=generator(3), dtype=F64) + 0.5
    prior = GaussianDenoiser(EDM(), Gaussian(torch.zeros_like(variances), DiagonalCovariance(variances)))
    y, t, found = measurement_like(operator(x)), torch.tensor(0.8, dtype=F64), []
    assert isinstance(operator, Linear)
    for a in (operator, lambda v: operator(v)):
        leaf = x.clone().requires_grad_()
        estimate = method(prior, a, y, 0.3, iterations=4)(leaf, t)
        found.append((estimate, *torch.autograd.grad(estimate.square().sum(), leaf)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
