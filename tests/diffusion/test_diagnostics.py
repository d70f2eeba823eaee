"""Diagnostics against Stokes, log-densities, and gradient descent whose exact risk is known at every step."""

import math

import pytest
import torch

from voxscore.diffusion import (
    EDM,
    Denoiser,
    DiagonalCovariance,
    EmpiricalDenoiser,
    Flow,
    Gaussian,
    GaussianDenoiser,
    Heun,
    MixtureDenoiser,
    karras_times,
    sample,
)
from voxscore.diffusion.diagnostics import (
    EarlyStopping,
    HeldOutLoss,
    jacobian_asymmetry,
    line_integral,
    loop_integral,
    memorisation_ratio,
)
from voxscore.diffusion.objectives import EDMWeight

SHAPE = (1, 2, 2, 2)
N = math.prod(SHAPE)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def mixture():
    return MixtureDenoiser(EDM(), normals(3, *SHAPE, seed=1), numbers(0.1, 0.3, 0.5), numbers(0.5, 0.3, 0.2))


def skew():
    """A skew matrix with A^T A = I: quarter turns of four planes."""
    return torch.block_diag(*[numbers(0.0, -1.0, 1.0, 0.0).reshape(2, 2)] * (N // 2))


def linear(matrix):
    return lambda x: (x.flatten(1) @ matrix.T).reshape(x.shape)


def plus_rotation(field, omega):
    rotation = linear(omega * skew())
    return lambda x: field(x) + rotation(x)


# ---------------------------------------------------------------------------------------- is it a score?


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_an_exact_score_has_a_symmetric_jacobian(mode):
    score, t = mixture(), numbers(0.5)[0]
    x = normals(4, *SHAPE, seed=2)
    with mode():
        asymmetry = jacobian_asymmetry(lambda x: score.score(x, t), x, 3, generator())
    assert asymmetry.shape == (4,)
    assert asymmetry.max() < 1e-12
    assert not asymmetry.requires_grad


def test_asymmetry_of_a_score_and_a_rotation_is_known_for_each_volume():
    """J = -1/v I + omega A with A skew and orthogonal: 4 omega^2 / (1/v^2 + omega^2), for any signs."""
    zeros = torch.zeros(SHAPE, dtype=torch.float64)
    score = GaussianDenoiser(EDM(), Gaussian(zeros, DiagonalCovariance(zeros + 1)))
    t, omega = numbers(0.2, 1.0, 3.0), 0.37
    field = plus_rotation(lambda x: score.score(x, t), omega)
    asymmetry = jacobian_asymmetry(field, normals(3, *SHAPE), 2, generator())
    expected = 4 * omega**2 / ((1 + t**2) ** -2 + omega**2)
    torch.testing.assert_close(asymmetry, expected, rtol=1e-12, atol=0)
    pure = jacobian_asymmetry(linear(skew()), normals(1, *SHAPE), 1, generator())
    torch.testing.assert_close(pure, numbers(4.0), rtol=1e-12, atol=0)


def test_asymmetry_is_relative_to_the_jacobian_not_to_its_transpose():
    """The columns of this J are orthogonal, its rows are not: |J v| is the same for all signs, |J^T v| is not."""
    j = numbers(1.0, 2.0, 4.0, -0.5).reshape(2, 2)
    asymmetry = jacobian_asymmetry(linear(j), normals(20, 1, 2), 1, generator())
    expected = numbers(2 * (4.0 - 2.0) ** 2 / (1.0 + 4.0 + 16.0 + 0.25)).expand(20)
    torch.testing.assert_close(asymmetry, expected, rtol=1e-12, atol=0)


def test_probes_average_to_the_ratio_of_frobenius_norms():
    weights = normals(N, N, seed=3)
    x = normals(1, *SHAPE, seed=4)

    def field(x):
        return torch.tanh(linear(weights)(x))

    jacobian = torch.autograd.functional.jacobian(lambda x: field(x).flatten(), x).reshape(N, N)
    expected = (jacobian - jacobian.T).square().sum() / jacobian.square().sum()
    found = jacobian_asymmetry(field, x.expand(200, *SHAPE), 20, generator())
    # Each volume has probes of its own, so their spread tells the error of the mean.
    error = found.std() / math.sqrt(len(found))
    assert error < 0.01 * expected
    assert abs(found.mean() - expected) < 5 * error + 0.01 * expected


def test_loops_of_an_exact_score_vanish_and_rotations_obey_stokes():
    score, t = mixture(), numbers(0.5)[0]
    radius, omega = 0.7, 0.37
    center, directions = normals(3, *SHAPE, seed=5), normals(2, 3, *SHAPE, seed=6)
    exact = loop_integral(lambda x: score.score(x, t), center, radius, directions, points=128)
    assert exact.shape == (3,)
    assert exact.abs().max() < 1e-10

    # In the plane of u and w the rotation has the circulation 2 pi R^2 omega w^T A u.
    u, w = directions.flatten(2)
    u = u / u.norm(dim=1, keepdim=True)
    w = w - (u * w).sum(1, keepdim=True) * u
    w = w / w.norm(dim=1, keepdim=True)
    expected = 2 * math.pi * radius**2 * omega * (w * (u @ skew().T)).sum(1)
    field = plus_rotation(lambda x: score.score(x, t), omega)
    found = loop_integral(field, center, radius, directions, points=128)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)

    # In a plane that A turns, this is Stokes' area of the disc.
    plane = torch.eye(N, dtype=torch.float64)[:2].reshape(2, 1, *SHAPE)
    found = loop_integral(field, center[:1], radius, plane, points=128)
    torch.testing.assert_close(found, numbers(2 * math.pi * radius**2 * omega), rtol=0, atol=1e-10)


def test_line_integral_of_a_score_is_the_difference_of_log_densities():
    score, t = mixture(), numbers(0.5)[0]
    a, b, c = normals(3, 4, *SHAPE, seed=7)

    def field(x):
        return score.score(x, t)

    expected = score.log_prob(b, t) - score.log_prob(a, t)
    direct = line_integral(field, a, b, points=64)
    torch.testing.assert_close(direct, expected, rtol=0, atol=1e-10)
    detour = line_integral(field, a, c, points=64) + line_integral(field, c, b, points=64)
    torch.testing.assert_close(detour, direct, rtol=0, atol=1e-10)


def test_gauss_legendre_is_exact_for_polynomials_of_its_degree():
    """n points integrate degree 2 n - 1 exactly and degree 2 n not."""
    zero, one = torch.zeros(1, 1, 1).double(), torch.ones(1, 1, 1).double()
    for points in (1, 2, 5):
        exact, inexact = (
            float(line_integral(lambda x, d=degree: x**d, zero, one, points)) - 1 / (degree + 1)
            for degree in (2 * points - 1, 2 * points)
        )
        assert abs(exact) < 1e-14
        assert abs(inexact) > 1e-7


def test_integrals_of_a_network_hold_no_graph():
    net = torch.nn.Linear(2, 2, dtype=torch.float64)
    x = normals(3, 1, 2)
    assert not loop_integral(net, x, 1.0, normals(2, 3, 1, 2), points=8).requires_grad
    assert not line_integral(net, x, 2 * x, points=2).requires_grad


# ---------------------------------------------------------------------------------------- when to stop?


class Scaled(Denoiser):
    """D = c x."""

    def __init__(self, path, c):
        super().__init__(path)
        self.c = c

    def forward(self, x, t):
        return self.c * x


def test_held_out_noise_depends_on_the_seed_and_the_volume_alone():
    volumes, times = normals(6, *SHAPE), numbers(0.1, 1.0, 5.0)

    def curve(batch, seed=0):
        return HeldOutLoss(volumes.split(batch), times, EDMWeight(), seed)(Scaled(EDM(), 0.5)).curve

    expected = curve(6)
    assert torch.equal(curve(6), expected)
    torch.manual_seed(1)
    assert torch.equal(curve(6), expected)
    torch.testing.assert_close(curve(1), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(curve(4), expected, rtol=1e-12, atol=0)
    assert (curve(6, seed=1) != expected).all()


def test_held_out_curve_and_mean_in_closed_form():
    """D = 0 errs by the volume, D = x by sigma eps; all levels share one eps."""
    volumes, times = normals(5, *SHAPE), numbers(0.1, 1.0, 5.0)
    held_out = HeldOutLoss(volumes.split(2), times, EDMWeight(0.5))
    curve, mean = held_out(Scaled(EDM(), 0.0))
    torch.testing.assert_close(curve, volumes.square().mean().expand(3), rtol=1e-12, atol=0)
    torch.testing.assert_close(mean, ((1 / times**2 + 4) * curve).mean(), rtol=1e-12, atol=0)
    curve, _ = held_out(Scaled(EDM(), 1.0))
    torch.testing.assert_close(curve / times**2, (curve[1] / times[1] ** 2).expand(3), rtol=1e-12, atol=0)
    # |eps|^2 / 40 has the variance 2 / 40.
    assert abs(curve[1] - 1) < 4 * math.sqrt(2 / 40)
    assert not curve.requires_grad


def test_held_out_loss_works_on_paths_that_scale_the_signal():
    volumes, times = normals(5, *SHAPE), numbers(0.1, 0.5)
    curve, mean = HeldOutLoss([volumes], times, lambda path, t: path.alpha(t))(Scaled(Flow(), 0.0))
    torch.testing.assert_close(mean, (numbers(0.9, 0.5) * curve).mean(), rtol=1e-12, atol=0)


D, SIGMA = 16, 1.0
SIGNAL = torch.arange(1, D + 1, dtype=torch.float64) ** -0.5
"""Variances of the clean channels of `descend`."""


class Matrix(Denoiser):
    """D = W x over channels, alike at every voxel."""

    def __init__(self, w):
        super().__init__(EDM())
        self.w = w

    def forward(self, x, t):
        return (self.w @ x.flatten(2)).reshape(x.shape)


def descend(n, steps, rate=0.02):
    """Gradient descent of a linear denoiser on the expected loss of n < D training vectors; and its exact risk."""
    train = normals(n, D, seed=n) * SIGNAL.sqrt()
    seen = train.T @ train / n
    eye, w = torch.eye(D, dtype=torch.float64), torch.zeros(D, D, dtype=torch.float64)
    for _ in range(steps):
        truth = torch.diag(SIGNAL)
        risk = torch.trace(truth - 2 * w @ truth + w @ (truth + SIGMA**2 * eye) @ w.T) / D
        yield w, float(risk)
        w = w - rate * (w @ (seen + SIGMA**2 * eye) - seen)


def test_early_stopping_finds_the_bottom_of_the_exact_risk_and_more_data_moves_it_back():
    """The held-out loss is that of 8 volumes of 16 channels and 1024 independent voxels each."""
    volumes = normals(8, D, 16, 64, seed=3) * SIGNAL.sqrt()[:, None, None]
    held_out = HeldOutLoss(volumes.split(4), numbers(SIGMA), lambda path, t: torch.ones_like(t))
    stops = []
    for n in (4, 8):
        path = list(descend(n, 300))
        risks = [risk for _, risk in path]
        bottom = risks.index(min(risks))
        assert 0 < bottom < 100
        assert risks[-1] > 1.02 * min(risks)
        stopping = EarlyStopping(patience=5)
        for step, (w, risk) in enumerate(path):
            loss = float(held_out(Matrix(w)).mean)
            assert loss == pytest.approx(risk, rel=0.03)
            if stopping.update(step, loss):
                break
        assert abs(stopping.best_step - bottom) <= 1
        assert step == stopping.best_step + 5
        stops.append(stopping.best_step)
    assert stops[1] > stops[0]


def test_stopping_keeps_the_best_and_counts_what_came_after():
    losses = [3.0, 2.0, 2.5, math.nan, 1.0, 1.0, 1.5, 1.2]
    stopping = EarlyStopping(patience=3)
    told = [stopping.update(10 * k, loss) for k, loss in enumerate(losses)]
    assert told == [False] * 7 + [True]
    assert (stopping.best, stopping.best_step, stopping.waited) == (1.0, 40, 3)


def test_stopping_resumes_where_it_was_with_the_patience_of_the_caller():
    losses = [3.0, 2.0, 2.5, 2.6, 2.7, 1.0]
    straight = EarlyStopping(patience=3)
    told = [straight.update(k, loss) for k, loss in enumerate(losses)]
    for cut in range(len(losses)):
        first, second = EarlyStopping(patience=3), EarlyStopping(patience=3)
        resumed = [first.update(k, losses[k]) for k in range(cut)]
        second.load_state_dict(first.state_dict())
        resumed += [second.update(k, losses[k]) for k in range(cut, len(losses))]
        assert resumed == told
        assert second == straight
    patient = EarlyStopping(patience=4)
    patient.load_state_dict(straight.state_dict())
    assert patient.patience == 4


# ---------------------------------------------------------------------------------------- does it copy?


def test_copies_have_ratio_zero_and_volumes_between_two_ratio_one():
    train = normals(20, *SHAPE)
    found = memorisation_ratio(train[[3, 7]], train)
    assert found.ratio.tolist() == [0, 0]
    assert found.share == 1
    # The corners of a simplex are all as far from its centre.
    corners = torch.eye(N, dtype=torch.float64).reshape(N, *SHAPE)
    between = memorisation_ratio(corners.mean(0, keepdim=True), corners)
    torch.testing.assert_close(between.ratio, numbers(1.0), rtol=1e-14, atol=0)
    assert between.share == 0


def test_the_ratio_of_distances_is_that_on_a_line():
    train = numbers(0.0, 10.0, 100.0).reshape(3, 1, 1)
    samples = numbers(2.0, 2.4, 2.6, -1.0, 60.0).reshape(5, 1, 1)
    found = memorisation_ratio(samples, train)
    torch.testing.assert_close(found.ratio, numbers(2 / 8, 2.4 / 7.6, 2.6 / 7.4, 1 / 11, 40 / 50))
    assert found.share == pytest.approx(3 / 5)


def test_training_batches_and_copies_among_them_change_nothing():
    train, samples = normals(700, *SHAPE), normals(9, *SHAPE, seed=1)
    expected = memorisation_ratio(samples, train).ratio
    everything = torch.cdist(samples.flatten(1), train.flatten(1)).sort(dim=1).values
    torch.testing.assert_close(expected, everything[:, 0] / everything[:, 1], rtol=1e-10, atol=0)
    assert torch.equal(memorisation_ratio(samples, (batch for batch in train.split(3))).ratio, expected)
    assert torch.equal(memorisation_ratio(samples, train.flip(0)).ratio, expected)
    # A perfect copy of a volume that occurs twice is a copy all the same.
    assert memorisation_ratio(train[:1], torch.cat([train, train])).ratio == 0


def test_near_copies_of_large_volumes_keep_their_digits_in_float32():
    train = (1000 + normals(30, 1, 8, 8, 8)).float()
    sample_ = train[:1] + 1e-3
    expected = memorisation_ratio(sample_.double(), train.double()).ratio
    torch.testing.assert_close(memorisation_ratio(sample_, train).ratio.double(), expected, rtol=1e-4, atol=0)


def test_one_training_volume_has_no_second():
    with pytest.raises(ValueError, match="two training volumes at least, got 1"):
        memorisation_ratio(normals(3, *SHAPE), normals(1, *SHAPE))


def test_samples_of_the_finite_set_are_flagged_and_those_of_its_gaussian_are_not():
    path, train = EDM(), normals(12, 1, 4, 4, 4)
    times = karras_times(path, 24, ratio_min=0.01, clean=True)
    start = 80 * normals(16, 1, 4, 4, 4, seed=1)
    copies = sample(EmpiricalDenoiser(path, train), start, times, Heun())
    assert memorisation_ratio(copies, train).share == 1
    gaussian = Gaussian.fit(train)
    fresh = sample(GaussianDenoiser(path, gaussian), start, times, Heun())
    assert memorisation_ratio(fresh, train).share == 0
