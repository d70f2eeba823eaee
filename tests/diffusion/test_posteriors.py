"""Posteriors of a linear-Gaussian problem, where the answer is known."""

import pytest
import torch
from torch import Generator

import voxscore.diffusion.posteriors
from voxscore.diffusion import (
    DPS,
    EDM,
    VP,
    Decomposed,
    DiagonalCovariance,
    Flow,
    FourierCovariance,
    Gaussian,
    GaussianDenoiser,
    Heun,
    LowRankCovariance,
    MomentMatching,
    PiGDM,
    Projection,
    karras_times,
    log_likelihood,
    log_uniform_times,
    sample,
)
from voxscore.diffusion.posteriors import conjugate_gradient

F64 = torch.float64
N, M, NOISE = 12, 5, 0.2


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=F64)


def dense_gaussian(mean, covariance):
    """Any covariance is of full rank N: its eigenvectors are the components and no tail is left."""
    values, vectors = torch.linalg.eigh(covariance)
    return Gaussian(mean[None], LowRankCovariance(vectors.T[:, None], values, 0.0))


class Problem:
    """y = A x_0 + NOISE z for Gaussian x_0 of N voxels, M measurements; prior, posterior and three measurements."""

    def __init__(self, path):
        b = normals(N, N)
        prior_covariance, mean, self.a = b @ b.T / N + 0.1 * torch.eye(N), normals(N, seed=1), normals(M, N, seed=2)
        self.x0 = mean + normals(3, N, seed=3) @ torch.linalg.cholesky(prior_covariance).T
        self.y = self.x0 @ self.a.T + NOISE * normals(3, M, seed=4)
        self.prior = GaussianDenoiser(path, dense_gaussian(mean, prior_covariance))
        precision = torch.linalg.inv(prior_covariance) + self.a.T @ self.a / NOISE**2
        covariance = torch.linalg.inv(precision)
        self.posteriors = [
            GaussianDenoiser(
                path,
                dense_gaussian(
                    covariance @ (torch.linalg.solve(prior_covariance, mean) + self.a.T @ y / NOISE**2), covariance
                ),
            )
            for y in self.y
        ]

    def operator(self, x):
        return x[:, 0] @ self.a.T

    def exact(self, x, t):
        return torch.cat([p(x[k : k + 1], t) for k, p in enumerate(self.posteriors)])

    def mean(self):
        return torch.stack([p.gaussian.mean for p in self.posteriors])


def error(estimate, truth):
    """Root mean square over voxels."""
    return float((estimate - truth).square().mean().sqrt())


@pytest.mark.parametrize("path", [EDM(), VP(), Flow()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("ratio", [5.0, 1.0, 0.2])
def test_moment_matching_is_exact(path, ratio):
    problem = Problem(path)
    t = path.time(torch.tensor(ratio, dtype=F64))
    x = path.alpha(t) * problem.x0[:, None] + path.sigma(t) * normals(3, 1, N, seed=5)
    matched = MomentMatching(problem.prior, problem.operator, problem.y, NOISE, iterations=2 * M, tolerance=1e-14)
    torch.testing.assert_close(matched(x, t), problem.exact(x, t), rtol=0, atol=1e-10)


def test_sampling_the_matched_posterior_is_the_posteriors_transport():
    path = EDM()
    problem, times = Problem(path), log_uniform_times(path, 60, ratio_min=0.01)
    x = 80 * normals(3, 1, N, seed=6)
    matched = MomentMatching(problem.prior, problem.operator, problem.y, NOISE, iterations=2 * M, tolerance=1e-14)
    got = sample(matched, x, times, Heun())
    for k, posterior in enumerate(problem.posteriors):
        exact = sample(posterior, x[k : k + 1], times, Heun())
        torch.testing.assert_close(got[k : k + 1], exact, rtol=0, atol=1e-8)


METHODS = [MomentMatching, PiGDM, Projection, Decomposed]


@pytest.fixture(scope="module")
def sampled_errors():
    """Root mean square distance of what the ODE leads to from what it leads to with the exact posterior."""
    path = EDM()
    problem, times = Problem(path), karras_times(path, 50, clean=True)
    x = 80 * normals(3, 1, N, seed=6)
    exact = torch.cat([sample(p, x[k : k + 1], times, Heun()) for k, p in enumerate(problem.posteriors)])
    denoisers = {method.__name__: method(problem.prior, problem.operator, problem.y, NOISE) for method in METHODS}
    errors = {
        name: error(sample(denoiser, x, times, Heun()), exact)
        for name, denoiser in {"prior": problem.prior, **denoisers}.items()
    }
    for zeta in (0.03, 1.0):
        run = sample(problem.prior, x, times, DPS(problem.operator, problem.y, zeta, eta=0.0))
        errors[f"DPS {zeta}"] = error(run, exact)
    return errors


def test_the_methods_rank_as_their_beliefs_do(sampled_errors):
    """The true covariance, one number with the network's gradient, one number without it, nothing seen."""
    e = sampled_errors
    assert e["MomentMatching"] < 1e-6
    assert e["PiGDM"] < e["Projection"] < 0.5 * e["prior"]
    # The published step size of 1 diverges from this posterior; the best one found is as good as Projection.
    assert e["DPS 0.03"] < 0.5 * e["prior"] < e["DPS 1.0"]


@pytest.mark.parametrize(
    ("name", "stated"),
    [("PiGDM", 0.080), ("Projection", 0.148), ("Decomposed", 0.148), ("DPS 0.03", 0.18), ("prior", 0.73)],
)
def test_the_errors_stated_in_the_module_are_measured(sampled_errors, name, stated):
    assert sampled_errors[name] == pytest.approx(stated, rel=0.03)
    text = voxscore.diffusion.posteriors.__doc__
    assert f"{stated:.3g}" in text


def test_projection_agrees_with_a_noiseless_measurement():
    """DDNM: A(D + A^+ (y - A D)) = y, and nothing changes that A cannot see."""
    problem, t = Problem(EDM()), torch.tensor(1.0, dtype=F64)
    x = normals(3, 1, N, seed=5)
    d, projected = problem.prior(x, t), Projection(problem.prior, problem.operator, problem.y, 0.0)(x, t)
    torch.testing.assert_close(problem.operator(projected), problem.y, rtol=0, atol=1e-5)
    pseudo_inverse = torch.linalg.pinv(problem.a)
    expected = d + ((problem.y - problem.operator(d)) @ pseudo_inverse.T)[:, None]
    torch.testing.assert_close(projected, expected, rtol=0, atol=1e-5)


def test_decomposed_tends_to_projection():
    """(A^T A + m)^-1 A^T = A^T (A A^T + m)^-1; after two steps it is not there yet."""
    problem, t = Problem(EDM()), torch.tensor(1.0, dtype=F64)
    x, arguments = normals(3, 1, N, seed=5), (problem.prior, problem.operator, problem.y, NOISE)
    projected = Projection(*arguments)(x, t)
    torch.testing.assert_close(Decomposed(*arguments, iterations=2 * M)(x, t), projected, rtol=0, atol=1e-5)
    assert error(Decomposed(*arguments, iterations=2)(x, t), projected) > 1e-3


def field(path, size):
    k = torch.stack(torch.meshgrid(*[torch.fft.fftfreq(n, dtype=F64) for n in size], indexing="ij")).square().sum(0)
    spectrum = (1 / (k + 0.05))[None]
    return GaussianDenoiser(path, Gaussian(torch.zeros_like(spectrum), FourierCovariance(spectrum)))


def test_complex_measurements_replace_what_was_measured():
    """Undersampled k-space of a real image: with a noiseless, symmetric mask the measured half comes back exactly."""
    denoiser, t = field(EDM(), (8, 8)), torch.tensor(1.0, dtype=F64)
    x0, x = denoiser.gaussian.sample(normals(2, 1, 8, 8), EDM(), torch.tensor(0.0, dtype=F64)), normals(2, 1, 8, 8)
    line = torch.tensor([1.0, 1, 0, 0, 1, 0, 0, 1], dtype=F64)

    def operator(x):
        return line * torch.fft.fft2(x, norm="ortho")

    projected = Projection(denoiser, operator, operator(x0), 0.0)(x, t)
    torch.testing.assert_close(operator(projected), operator(x0), rtol=0, atol=1e-5)
    left, kept = (torch.fft.fft2(v, norm="ortho") * (1 - line) for v in (projected, denoiser(x, t)))
    torch.testing.assert_close(left, kept, rtol=0, atol=1e-5)


def test_inpainting_in_three_dimensions_is_exact():
    path, size = EDM(), (3, 4, 5)
    denoiser, t, noise = field(path, size), torch.tensor(0.7, dtype=F64), 0.1
    seen = normals(*size, seed=7) > 0
    basis = torch.eye(60, dtype=F64).reshape(60, 1, *size)
    covariance = denoiser.gaussian.covariance.apply(lambda v: v, basis).reshape(60, 60)
    x, y = normals(2, 1, *size), normals(2, int(seen.sum()), seed=8)
    # Both x and y are linear in x_0 with independent noise: one linear-Gaussian update.
    a = torch.cat([torch.eye(60, dtype=F64), torch.eye(60, dtype=F64)[seen.flatten()]])
    r = torch.cat([torch.full((60,), 0.7, dtype=F64), torch.full((int(seen.sum()),), noise, dtype=F64)])
    gain = covariance @ a.T @ torch.linalg.inv(a @ covariance @ a.T + torch.diag(r**2))
    expected = (torch.cat([x.flatten(1), y], dim=1) @ gain.T).reshape(x.shape)
    matched = MomentMatching(denoiser, lambda v: v[:, 0, seen], y, noise, iterations=80, tolerance=1e-13)
    torch.testing.assert_close(matched(x, t), expected, rtol=0, atol=1e-9)


def test_a_nonlinear_operator_is_linearised_where_the_denoiser_points():
    """y = x_0^3 of scalars: the Gauss-Newton update of a Gaussian with mean D and variance C, in closed form."""
    path, variance, noise = EDM(), 2.0, 0.3
    gaussian = Gaussian(torch.zeros(1, 1, dtype=F64), DiagonalCovariance(torch.full((1, 1), variance, dtype=F64)))
    x, y, t = normals(4, 1, 1), normals(4, 1, 1, seed=1), torch.tensor(0.8, dtype=F64)
    gain = variance / (variance + t**2)
    d, c = gain * x, t**2 * gain
    slope = 3 * d**2
    expected = d + c * slope / (slope * c * slope + noise**2) * (y - d**3)
    got = MomentMatching(GaussianDenoiser(path, gaussian), lambda v: v**3, y, noise)(x, t)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_dps_is_the_published_step():
    """DDIM's ancestral step, then zeta / |r| times the gradient of |r|^2."""
    problem = Problem(EDM())
    x, z = normals(3, 1, N, seed=5), normals(3, 1, N, seed=6)
    t, s = torch.tensor(2.0, dtype=F64), torch.tensor(1.5, dtype=F64)
    leaf = x.clone().requires_grad_()
    d = problem.prior(leaf, t)
    squared = (problem.y - problem.operator(d)).square().sum(1)
    (gradient,) = torch.autograd.grad(squared.sum(), leaf)
    spread = s * torch.sqrt(1 - (s / t) ** 2)
    ancestral = d + torch.sqrt(s**2 - spread**2) * (x - d) / t + spread * z
    expected = ancestral - 0.4 / squared.sqrt()[:, None, None] * gradient
    got, _ = DPS(problem.operator, problem.y, 0.4).step(problem.prior, x, t, s, lambda x: z, None)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert DPS(problem.operator, problem.y).stochastic
    assert not DPS(problem.operator, problem.y, eta=0.0).stochastic


@pytest.mark.parametrize("method", METHODS)
def test_works_where_the_caller_switched_gradients_off(method):
    problem, times = Problem(EDM()), karras_times(EDM(), 4, clean=True)
    denoiser, x = method(problem.prior, problem.operator, problem.y, NOISE), 80 * normals(3, 1, N)
    expected = sample(denoiser, x, times, Heun())
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert torch.equal(sample(denoiser, x.clone(), times.clone(), Heun()), expected)
    assert not denoiser(x, times[0]).requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_volumes_do_not_mix_and_one_measurement_serves_all(method):
    problem, t = Problem(EDM()), torch.tensor(1.0, dtype=F64)
    x = normals(3, 1, N, seed=5)
    together = method(problem.prior, problem.operator, problem.y[:1], NOISE)(x, t)
    alone = method(problem.prior, problem.operator, problem.y[:1], NOISE)(x[1:2], t)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-6)


def test_conjugate_gradients_solve_each_member():
    matrices = normals(3, 6, 6)
    spd = matrices @ matrices.mT + 0.5 * torch.eye(6, dtype=F64)
    b = normals(3, 6, seed=1)
    b[1] = 0
    z = conjugate_gradient(lambda v: torch.einsum("bij,bj->bi", spd, v), b, 30, 1e-13)
    torch.testing.assert_close(z, torch.linalg.solve(spd, b), rtol=0, atol=1e-9)
    hermitian = torch.complex(spd, matrices - matrices.mT)
    hermitian = hermitian @ hermitian.mH
    c = torch.complex(b, normals(3, 6, seed=2))
    z = conjugate_gradient(lambda v: torch.einsum("bij,bj->bi", hermitian, v), c, 80, 1e-13)
    torch.testing.assert_close(z, torch.linalg.solve(hermitian, c), rtol=0, atol=1e-7)
    products = []
    conjugate_gradient(lambda v: products.append(v) or v, b, 30)
    assert len(products) == 1, "the identity is solved in one product"


@pytest.mark.parametrize("method", METHODS)
def test_bad_use(method):
    problem, t = Problem(EDM()), torch.tensor(1.0, dtype=F64)
    with pytest.raises(ValueError, match="noise_std cannot be negative"):
        method(problem.prior, problem.operator, problem.y, -1.0)
    with pytest.raises(ValueError, match=r"makes \(2, 5\) of the volume, the measurement is \(3, 5\)"):
        method(problem.prior, problem.operator, problem.y, NOISE)(normals(2, 1, N), t)


def test_the_likelihood_of_a_posterior_is_the_exact_one():
    """A posterior is a denoiser like any other, also for what differentiates it."""
    path = EDM()
    problem, times = Problem(path), log_uniform_times(path, 40, ratio_min=0.05, ratio_max=50.0)
    exact = problem.posteriors[0]
    x = exact.gaussian.sample(normals(2, 1, N, seed=9), path, times[-1])
    matched = MomentMatching(problem.prior, problem.operator, problem.y[:1], NOISE, iterations=2 * M, tolerance=1e-14)
    got = log_likelihood(matched, x, times, exact.gaussian)
    torch.testing.assert_close(got, log_likelihood(exact, x, times, exact.gaussian), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_derivative_of_the_posterior_is_that_of_its_values(method):
    problem, t = Problem(EDM()), torch.tensor(1.0, dtype=F64)
    denoiser = method(problem.prior, problem.operator, problem.y[:1], NOISE)
    x, direction = normals(1, 1, N, seed=5), normals(1, 1, N, seed=6)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((denoiser(leaf, t) * direction).sum(), leaf)
    h = 1e-4 * normals(1, 1, N, seed=7)
    difference = ((denoiser(x + h, t) - denoiser(x - h, t)) * direction).sum() / 2
    torch.testing.assert_close((gradient * h).sum(), difference, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_time_for_each_volume(method):
    problem, t = Problem(EDM()), torch.tensor([0.3, 1.0, 4.0], dtype=F64)
    denoiser, x = method(problem.prior, problem.operator, problem.y[:1], NOISE), normals(3, 1, N, seed=5)
    together = denoiser(x, t)
    for k in range(3):
        torch.testing.assert_close(together[k : k + 1], denoiser(x[k : k + 1], t[k]), rtol=0, atol=1e-6)


def test_pure_noise_has_a_clear_error_or_a_result():
    problem, t, x = Problem(Flow()), torch.tensor(1.0, dtype=F64), normals(3, 1, N, seed=5)
    arguments = problem.prior, problem.operator, problem.y, NOISE
    for method in (MomentMatching, PiGDM):
        with pytest.raises(ValueError, match=f"{method.__name__} needs some signal: begin the times below pure noise"):
            method(*arguments)(x, t)
    torch.testing.assert_close(Decomposed(*arguments)(x, t), Projection(*arguments)(x, t), rtol=0, atol=1e-5)
    # Of a volume without noise a measurement tells nothing more.
    prior, image, clean = field(Flow(), (4, 4)), normals(2, 1, 4, 4), torch.tensor(0.0, dtype=F64)
    for method in (Projection, Decomposed):
        told = method(prior, lambda v: v[..., :2], torch.zeros(1, 1, 4, 2, dtype=F64), NOISE)(image, clean)
        torch.testing.assert_close(told, image, rtol=0, atol=1e-12)


def test_dps_checks_its_measurement():
    problem = Problem(EDM())
    with pytest.raises(ValueError, match=r"makes \(3, 5\) of the volume, the measurement is \(3, 1\)"):
        sample(problem.prior, normals(3, 1, N), karras_times(EDM(), 2), DPS(problem.operator, problem.y[:, :1]))
