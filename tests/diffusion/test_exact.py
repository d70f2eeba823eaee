"""The distributions in closed form against dense linear algebra, quadrature and numerical integration."""

import math

import pytest
import torch
from oracles import (
    PURE_NOISE,
    DenseGaussian,
    f64,
    fine_grid,
    normal,
    on_paths,
    runge_kutta,
    square_root,
    times_between,
)
from torch.distributions import MultivariateNormal

from voxscore.diffusion import (
    EDM,
    VP,
    Cosine,
    DiagonalCovariance,
    EmpiricalDenoiser,
    Flow,
    FourierCovariance,
    Gaussian,
    GaussianDenoiser,
    LowRankCovariance,
    MixtureDenoiser,
)
from voxscore.diffusion.exact import Covariance

SHAPES = [(1, 6), (2, 5), (1, 4, 3), (2, 3, 6), (1, 2, 3, 4), (2, 3, 2, 3)]


def diagonal(shape):
    variance = normal(*shape, seed=1) ** 2
    return DiagonalCovariance(variance), torch.diag(variance.flatten())


def low_rank(shape, rank=3):
    n = math.prod(shape)
    u, values, tail = torch.linalg.qr(normal(n, rank, seed=1)).Q, f64([3.0, 1.0, 0.05][:rank]), 0.2
    dense = u @ torch.diag(values) @ u.T + tail * (torch.eye(n, dtype=torch.float64) - u @ u.T)
    return LowRankCovariance(u.T.reshape(rank, *shape), values, tail), dense


def fourier_matrix(sizes):
    """The orthonormal discrete Fourier transform of a grid as a matrix, from its definition."""
    matrix = torch.ones(1, 1, dtype=torch.complex128)
    for n in sizes:
        k = torch.arange(n, dtype=torch.float64)
        matrix = torch.kron(matrix, torch.exp(-2j * math.pi * k[:, None] * k / n) / math.sqrt(n))
    return matrix


def fourier(shape):
    axes = tuple(range(1, len(shape)))
    half = normal(*shape, seed=1) ** 2
    spectrum = half + half.flip(axes).roll([1] * len(axes), axes)  # S(k) = S(-k)
    f = fourier_matrix(shape[1:])
    blocks = [f.mH @ torch.diag(s.flatten()).to(f) @ f for s in spectrum]
    return FourierCovariance(spectrum), torch.block_diag(*(block.real for block in blocks))


FAMILIES = {"diagonal": diagonal, "low_rank": low_rank, "fourier": fourier}
every_covariance = [
    pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES),
    pytest.mark.parametrize("shape", SHAPES, ids=str),
]


def on_every_covariance(test):
    for mark in every_covariance:
        test = mark(test)
    return test


def gaussians(family, shape):
    covariance, dense = family(shape)
    mean = normal(*shape, seed=2)
    return Gaussian(mean, covariance), DenseGaussian(mean.flatten(), dense)


def assert_close(value, expected, tolerance=1e-10):
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


@on_every_covariance
def test_functions_of_a_covariance(family, shape):
    covariance, dense = family(shape)
    x, c = normal(3, *shape), f64([0.5, 1.0, 2.0])
    assert_close(covariance.apply(lambda v: v, x).flatten(1), x.flatten(1) @ dense)
    assert_close(covariance.apply(lambda v: 0 * v + 1, x), x)
    root = covariance.apply(torch.sqrt, covariance.apply(torch.sqrt, x))
    assert_close(root, covariance.apply(lambda v: v, x))
    exact = torch.cat([v.flatten(1) @ torch.matrix_exp(-s * dense) for v, s in zip(x[:, None], c, strict=True)])
    assert_close(covariance.apply(lambda v, s: torch.exp(-s * v), x, c).flatten(1), exact)
    assert_close(covariance.apply(lambda v, s: torch.exp(-s * v), x, c[1])[1].flatten(), exact[1])


@on_every_covariance
def test_traces_of_a_covariance(family, shape):
    covariance, dense = family(shape)
    c, identity = f64([0.5, 1.0, 2.0]), torch.eye(len(dense), dtype=torch.float64)
    assert_close(covariance.trace(lambda v: v), dense.trace())
    assert_close(covariance.trace(lambda v: v**2), dense.square().sum())
    assert_close(
        covariance.trace(lambda v, s: torch.log(v + s), c), torch.stack([torch.logdet(dense + s * identity) for s in c])
    )
    assert_close(covariance.trace(lambda v, s: torch.log(v + s), c[0]), torch.logdet(dense + c[0] * identity))


@on_every_covariance
@on_paths("VP", "EDM", "Flow")
def test_a_gaussian_is_dense_linear_algebra(path, family, shape):
    gaussian, dense = gaussians(family, shape)
    x, t, s = normal(2, *shape, seed=3), times_between(path, 2, 0.3, 3.0), f64([0.02, 0.6])
    flat = [v.flatten()[None] for v in x]
    levels = list(zip(path.alpha(t), path.sigma(t), strict=True))
    denoised = torch.cat([dense.denoise(v, *level) for v, level in zip(flat, levels, strict=True)])
    log_prob = torch.cat([dense.at(path, a).log_prob(v) for v, a in zip(flat, t, strict=True)])
    moved = torch.cat([dense.transport(v, path, a, b) for v, a, b in zip(flat, t, s, strict=True)])
    assert_close(gaussian.denoise(x, path, t).flatten(1), denoised)
    assert_close(GaussianDenoiser(path, gaussian)(x, t), gaussian.denoise(x, path, t), 0)
    assert_close(gaussian.log_prob(x, path, t), log_prob)
    assert_close(gaussian.transport(x, path, t, s).flatten(1), moved)
    # One time for all volumes.
    assert_close(gaussian.denoise(x, path, t[1])[1].flatten(), denoised[1])
    assert_close(gaussian.log_prob(x, path, t[1])[1], log_prob[1])
    assert_close(gaussian.transport(x, path, t[1], s[1])[1].flatten(), moved[1])
    assert_close(gaussian.transport(x, path, t, s[1])[1].flatten(), moved[1])


@on_every_covariance
@on_paths("VP", "EDM", "Flow")
def test_samples_have_the_covariance_of_the_marginal(path, family, shape):
    """They are alpha m + M z; feeding unit vectors for z shows M, without any chance."""
    gaussian, dense = gaussians(family, shape)
    t = path.time(f64(0.7))
    n = math.prod(shape)
    mean = gaussian.sample(torch.zeros(1, *shape, dtype=torch.float64), path, t)
    matrix = gaussian.sample(torch.eye(n, dtype=torch.float64).reshape(n, *shape), path, t) - mean
    assert_close(mean.flatten(), path.alpha(t) * dense.mean)
    assert_close(matrix.flatten(1).T @ matrix.flatten(1), dense.at(path, t).covariance)
    assert_close(
        matrix.flatten(1), square_root(dense.at(path, t).covariance), 1e-7
    )  # roots halve the digits of small values
    each, times = normal(2, *shape), times_between(path, 2)
    assert_close(gaussian.sample(each, path, times)[1], gaussian.sample(each, path, times[1])[1])


@on_paths()
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_transport_is_a_semigroup(path, family):
    gaussian, _ = gaussians(family, (2, 3, 4))
    x = normal(3, 2, 3, 4)
    for t, s, r in (
        times_between(path, 3).flip(0),
        times_between(path, 3),
        path.time(f64([[0.5, 2.0, 9.0], [1.0] * 3, [0.1] * 3])),
    ):
        assert_close(gaussian.transport(x, path, t, t), x, 1e-13)
        there = gaussian.transport(x, path, t, s)
        assert_close(gaussian.transport(there, path, s, r), gaussian.transport(x, path, t, r), 1e-11)
        assert_close(gaussian.transport(there, path, s, t), x, 1e-11)
        # The ODE carries the density along: p_s(x_s) |dx_s/dx_t| = p_t(x_t).
        volume = gaussian.covariance.trace(
            lambda v, a, b, c, d: 0.5 * torch.log((c**2 * v + d**2) / (a**2 * v + b**2)),
            path.alpha(t), path.sigma(t), path.alpha(s), path.sigma(s),
        )  # fmt: skip
        assert_close(gaussian.log_prob(there, path, s) + volume, gaussian.log_prob(x, path, t))


@on_paths()
def test_transport_solves_the_probability_flow_ode(path):
    gaussian, _ = gaussians(diagonal, (1, 6))
    grid, x = fine_grid(path), normal(2, 1, 6)
    start = path.alpha(grid[0]) * gaussian.mean + path.sigma(grid[0]) * x
    exact = gaussian.transport(start, path, grid[0], grid[-1])
    # A step of fourth order errs by the fifth power of the relative change of the ratio, 3 % and in a table up to 10 %.
    solved = runge_kutta(GaussianDenoiser(path, gaussian), start, grid)
    torch.testing.assert_close(solved, exact, rtol=0, atol=1e-6)


@on_paths(*PURE_NOISE)
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_transport_from_pure_noise_to_clean_data(path, family):
    """At alpha = 0 the noise is white, so it becomes m + C^(1/2) x; and back."""
    gaussian, dense = gaussians(family, (1, 2, 3))
    x, noise, clean = normal(2, 1, 2, 3), f64(path.span[1]), f64(path.span[0])
    exact = dense.mean + x.flatten(1) @ square_root(dense.covariance)
    assert_close(gaussian.transport(x, path, noise, clean).flatten(1), exact, 1e-8)
    assert_close(gaussian.transport(gaussian.transport(x, path, noise, clean), path, clean, noise), x, 1e-7)
    assert_close(gaussian.denoise(x, path, noise), gaussian.mean.expand(2, 1, 2, 3), 1e-15)
    assert_close(gaussian.sample(x, path, noise), x, 1e-15)
    assert_close(gaussian.log_prob(x, path, noise), -0.5 * x.flatten(1).square().sum(1) - 3 * math.log(2 * math.pi))


def correlated(n, shape, seed=0):
    """Samples (n, *shape) of which no two voxels are independent."""
    size = math.prod(shape)
    return (normal(n, size, seed=seed) @ normal(size, size, seed=seed + 1) + 3 * normal(size)).reshape(n, *shape)


def moments(samples):
    flat = samples.double().flatten(1)
    return flat.mean(0), torch.cov(flat.T, correction=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fit_diagonal(shape):
    samples = correlated(9, shape)
    mean, dense = moments(samples)
    gaussian = Gaussian.fit(samples)
    assert_close(gaussian.mean.flatten(), mean, 1e-12)
    assert_close(gaussian.covariance.variance.flatten(), dense.diagonal(), 1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fit_fourier(shape):
    """The power at each frequency is the diagonal of the covariance in the Fourier basis, channel by channel."""
    samples = correlated(9, shape)
    mean, dense = moments(samples)
    gaussian, f, n = Gaussian.fit(samples, "fourier"), fourier_matrix(shape[1:]), math.prod(shape[1:])
    blocks = [dense[c * n : (c + 1) * n, c * n : (c + 1) * n].to(f) for c in range(shape[0])]
    spectrum = torch.stack([(f @ block @ f.mH).diagonal().real for block in blocks])
    assert_close(gaussian.mean.flatten(), mean, 1e-12)
    assert_close(gaussian.covariance.spectrum.flatten(1), spectrum, 1e-11)
    axes = tuple(range(1, len(shape)))
    mirrored = gaussian.covariance.spectrum.flip(axes).roll([1] * len(axes), axes)
    assert_close(gaussian.covariance.spectrum, mirrored, 1e-12)
    assert_close(gaussian.covariance.trace(lambda v: v), dense.trace(), 1e-12)


def test_fit_fourier_recovers_a_stationary_field():
    """Every shift of one volume together: their covariance is circulant, so nothing is lost."""
    volume = normal(1, 4, 5)
    samples = torch.stack([volume.roll((i, j), (1, 2)) for i in range(4) for j in range(5)])
    mean, dense = moments(samples)
    x, t = normal(2, 1, 4, 5), f64(0.5)
    exact = DenseGaussian(mean, dense).denoise(x.flatten(1), EDM().alpha(t), EDM().sigma(t))
    assert_close(Gaussian.fit(samples, "fourier").denoise(x, EDM(), t).flatten(1), exact)


@pytest.mark.parametrize("shape", [(1, 12), (2, 3, 4), (2, 3, 2, 2)], ids=str)
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_fit_low_rank(shape, rank):
    """The leading principal components; the rest of the variance is shared, so none is lost."""
    samples = correlated(8, shape)
    mean, dense = moments(samples)
    values, vectors = torch.linalg.eigh(dense)
    values, vectors = values[-rank:], vectors[:, -rank:]
    n = math.prod(shape)
    tail = (dense.trace() - values.sum()) / (n - rank)
    exact = vectors @ torch.diag(values - tail) @ vectors.T + tail * torch.eye(n, dtype=torch.float64)
    gaussian = Gaussian.fit(samples, "low_rank", rank)
    assert_close(gaussian.mean.flatten(), mean, 1e-12)
    identity = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    assert_close(gaussian.covariance.apply(lambda v: v, identity).flatten(1), exact)
    assert_close(gaussian.covariance.trace(lambda v: v), dense.trace())
    u = gaussian.covariance.vectors.flatten(1)
    assert_close(u @ u.T, torch.eye(rank, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("rank", [2, 5, 9])
def test_fit_low_rank_of_data_with_fewer_dimensions(rank):
    """Empty components must not disturb the full ones."""
    plane = torch.linalg.qr(normal(20, 2)).Q * f64([3.0, 1.0])
    samples = (normal(10, 2, seed=3) @ plane.T + 5).reshape(10, 1, 4, 5)
    _, dense = moments(samples)
    gaussian = Gaussian.fit(samples, "low_rank", rank)
    identity = torch.eye(20, dtype=torch.float64).reshape(20, 1, 4, 5)
    assert_close(gaussian.covariance.apply(lambda v: v, identity).flatten(1), dense)


def test_fit_low_rank_of_more_volumes_than_voxels():
    samples = correlated(12, (1, 4))
    _, dense = moments(samples)
    gaussian = Gaussian.fit(samples, "low_rank", 4)
    assert_close(gaussian.covariance.apply(lambda v: v, torch.eye(4, dtype=torch.float64)[:, None]).flatten(1), dense)
    with pytest.raises(ValueError, match=r"low_rank.* needs 0 < rank"):
        Gaussian.fit(samples, "low_rank", 5)


@pytest.mark.parametrize(("kind", "rank"), [("diagonal", None), ("fourier", None), ("low_rank", 4)])
def test_fit_of_a_stream_of_batches(kind, rank):
    samples = correlated(10, (2, 3, 3))
    whole = Gaussian.fit(samples, kind, rank)
    x = normal(2, 2, 3, 3)
    for batches in (samples.split(4), (samples[i : i + 1] for i in range(10))):
        streamed = Gaussian.fit(batches, kind, rank)
        assert_close(streamed.mean, whole.mean, 1e-12)
        # Nothing but the order of summation differs.
        assert_close(streamed.covariance.apply(lambda v: v, x), whole.covariance.apply(lambda v: v, x), 1e-12)


@pytest.mark.parametrize(("kind", "rank"), [("diagonal", None), ("fourier", None), ("low_rank", 4)])
def test_a_fit_has_the_dtype_of_its_samples_and_exact_moments(kind, rank):
    samples = correlated(10, (2, 3, 3)).float()
    fitted, exact = Gaussian.fit(samples, kind, rank), Gaussian.fit(samples.double(), kind, rank)
    assert fitted.mean.dtype is torch.float32
    assert_close(fitted.mean.double(), exact.mean, 1e-6)
    assert_close(fitted.covariance.trace(lambda v: v), exact.covariance.trace(lambda v: v), 1e-12)


def test_bad_fits_teach():
    samples = normal(5, 1, 8)
    for rank in (None, 0, -1, 5, 6):
        with pytest.raises(ValueError, match=f"'low_rank' needs 0 < rank .* got {rank}"):
            Gaussian.fit(samples, "low_rank", rank)
    with pytest.raises(ValueError, match="kind is 'diagonal', 'low_rank' or 'fourier', got 'full'"):
        Gaussian.fit(samples, "full")
    for kind in ("diagonal", "fourier"):
        with pytest.raises(ValueError, match=f"a {kind} covariance has no rank"):
            Gaussian.fit(samples, kind, 2)
        for few in (samples[:1], [samples[:1]], []):
            with pytest.raises(ValueError, match=f"needs two volumes at least, got {len(few)}"):
                Gaussian.fit(few, kind)
    with pytest.raises(ValueError, match=r"Gaussian\.fit"):
        Gaussian.fit([], "low_rank", 1)


def mixture(path, shape=(2, 3), k=3):
    means = 2 * normal(k, *shape, seed=4)
    return MixtureDenoiser(
        path, means, f64([0.3, 1.0, 0.05, 0.7][:k]), f64([0.2, 0.5, 0.3, 0.0][:k]) / f64([0.2, 0.5, 0.3, 0.0][:k]).sum()
    )


@on_paths()
def test_the_density_of_a_mixture(path):
    denoiser, t = mixture(path), times_between(path, 3)
    x = normal(3, 2, 3)
    densities = []
    for volume, a, s in zip(x, path.alpha(t), path.sigma(t), strict=True):
        components = [
            MultivariateNormal(a * m.flatten(), (a**2 * v + s**2) * torch.eye(6, dtype=torch.float64))
            for m, v in zip(denoiser.means, denoiser.variances, strict=True)
        ]
        densities.append(
            sum(w * c.log_prob(volume.flatten()).exp() for w, c in zip(denoiser.weights, components, strict=True))
        )
    assert_close(denoiser.log_prob(x, t), torch.stack(densities).log(), 1e-11)
    assert_close(denoiser.log_prob(x, t[1])[1], denoiser.log_prob(x, t)[1], 1e-13)


@on_paths("VP", "EDM", "Flow")
def test_a_mixture_by_quadrature(path):
    """On a line: the density integrates to one, and D = integral of x_0 p(x_0 | x_t), by sums over a fine grid.

    The trapezoidal rule is exact to rounding for integrands as smooth as these.
    """
    denoiser, t = mixture(path, (1, 1)), path.time(f64(0.8))
    alpha, sigma = path.alpha(t), path.sigma(t)
    grid = torch.linspace(-15, 15, 6001, dtype=torch.float64)
    h = grid[1] - grid[0]
    assert_close(denoiser.log_prob(grid.reshape(-1, 1, 1), t).exp().sum() * h, f64(1.0), 1e-12)
    m, v = denoiser.means.flatten(), denoiser.variances
    prior = (denoiser.weights / torch.sqrt(2 * math.pi * v) * torch.exp(-0.5 * (grid[:, None] - m) ** 2 / v)).sum(1)
    x = f64([-2.0, -0.3, 0.4, 1.7])
    joint = prior * torch.exp(-0.5 * ((x[:, None] - alpha * grid) / sigma) ** 2) / (math.sqrt(2 * math.pi) * sigma)
    assert_close(denoiser(x.reshape(-1, 1, 1), t).flatten(), (joint * grid).sum(1) / joint.sum(1), 1e-11)
    assert_close(denoiser.log_prob(x.reshape(-1, 1, 1), t), (joint.sum(1) * h).log(), 1e-11)


@pytest.mark.parametrize(("shape", "k"), [((2, 3), 1), ((2, 3), 3), ((1, 2), 4)])
def test_the_gaussian_of_a_mixture(shape, k):
    """It has the mixture's mean and covariance, also where the means outnumber the voxels."""
    denoiser, n = mixture(EDM(), shape, k), math.prod(shape)
    w, v, m = denoiser.weights, denoiser.variances, denoiser.means.flatten(1)
    mean = w @ m
    dense = (w * v).sum() * torch.eye(n, dtype=torch.float64) + torch.einsum("k,ki,kj->ij", w, m - mean, m - mean)
    gaussian = denoiser.gaussian()
    assert_close(gaussian.mean.flatten(), mean, 1e-13)
    identity = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    assert_close(gaussian.covariance.apply(lambda v: v, identity).flatten(1), dense, 1e-12)
    assert_close(gaussian.covariance.trace(lambda v: v), dense.trace(), 1e-12)


@on_paths()
def test_a_mixture_of_one_is_a_gaussian(path):
    denoiser, x, t = mixture(path, k=1), normal(4, 2, 3), times_between(path, 4)
    gaussian = denoiser.gaussian()
    assert_close(denoiser(x, t), GaussianDenoiser(path, gaussian)(x, t), 1e-12)
    assert_close(denoiser.log_prob(x, t), gaussian.log_prob(x, path, t), 1e-12)


@on_paths()
def test_a_finite_set_is_a_mixture_of_points(path):
    data, t = normal(5, 2, 3), times_between(path, 4, low=0.2)
    x = normal(4, 2, 3, seed=6)
    points = MixtureDenoiser(
        path, data, torch.zeros(5, dtype=torch.float64), torch.full((5,), 0.2, dtype=torch.float64)
    )
    assert_close(EmpiricalDenoiser(path, data)(x, t), points(x, t), 1e-11)
    assert_close(EmpiricalDenoiser(path, data)(x, t[1])[1], points(x, t)[1], 1e-11)


@on_paths()
def test_a_finite_set_at_little_and_at_much_noise(path):
    """Its nearest member, and its mean."""
    data, x = normal(5, 2, 3), normal(4, 2, 3, seed=6)
    nearest = data[torch.cdist(x.flatten(1), data.flatten(1)).argmin(1)]
    little = path.time(f64(1e-2))
    assert_close(EmpiricalDenoiser(path, data)(path.alpha(little) * x, little), nearest, 1e-12)
    much = path.t_noise
    # Weights differ from 1/5 by about <x, y>/rho, of order 6/50 at the noisy end of VE.
    error = (EmpiricalDenoiser(path, data)(path.sigma(much) * x, much) - data.mean(0)).abs().max()
    assert float(error) < 10 / float(path.ratio(much)) + 1e-15


def test_a_finite_set_of_pure_noise_is_exactly_its_mean():
    data = normal(5, 2, 3)
    assert_close(EmpiricalDenoiser(Flow(), data)(normal(2, 2, 3), f64(1.0)), data.mean(0).expand(2, 2, 3), 1e-15)


def test_modules_move_and_save_their_data():
    x, t = normal(2, 2, 3), f64([0.4, 0.6])
    for denoiser, names in [
        (mixture(VP()), {"means", "variances", "weights"}),
        (EmpiricalDenoiser(VP(), normal(5, 2, 3)), {"data"}),
    ]:
        exact = denoiser(x, t)
        assert set(denoiser.state_dict()) == names
        assert list(denoiser.parameters()) == []
        assert denoiser(x.float(), t).dtype is torch.float32
        assert_close(denoiser(x.float(), t).double(), exact, 1e-5)
        denoiser.to(torch.float32)
        assert {buffer.dtype for buffer in denoiser.buffers()} == {torch.float32}
        value = denoiser(x, t)
        assert value.dtype is torch.float64
        assert_close(value, exact, 1e-5)
    gaussian, _ = gaussians(diagonal, (2, 3))
    assert_close(GaussianDenoiser(VP(), gaussian).to(torch.float32)(x, t), gaussian.denoise(x, VP(), t), 0)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_copy_on_a_device(family):
    gaussian, _ = gaussians(family, (2, 3))
    x, copy = normal(2, 2, 3), gaussian.to(torch.device("cpu"))
    assert isinstance(copy.covariance, type(gaussian.covariance))
    assert_close(copy.denoise(x, VP(), f64(0.4)), gaussian.denoise(x, VP(), f64(0.4)), 0)
    meta = gaussian.to(torch.device("meta"))
    tensors = [v for v in (meta.mean, *vars(meta.covariance).values()) if isinstance(v, torch.Tensor)]
    assert {v.device.type for v in tensors} == {"meta"}
    with pytest.raises(TypeError, match="abstract"):
        Covariance()


def test_volumes_in_float32():
    """Eigenvalues stay in float64 and results in float32."""
    for family in FAMILIES.values():
        gaussian, _ = gaussians(family, (2, 3, 4))
        x, t = normal(2, 2, 3, 4).float(), f64([0.3, 0.5])
        for value, exact in [
            (gaussian.denoise(x, Cosine(), t), gaussian.denoise(x.double(), Cosine(), t)),
            (gaussian.transport(x, Cosine(), t, t / 2), gaussian.transport(x.double(), Cosine(), t, t / 2)),
            (gaussian.sample(x, Cosine(), t), gaussian.sample(x.double(), Cosine(), t)),
            (gaussian.log_prob(x, Cosine(), t), gaussian.log_prob(x.double(), Cosine(), t)),
        ]:
            assert value.dtype is torch.float32
            assert_close(value.double(), exact, 1e-5)


def test_bad_mixtures_teach():
    means, variances, weights = normal(2, 1, 3), f64([1.0, 1.0]), f64([0.5, 0.5])
    for arguments in [
        (means, variances[:1], weights),
        (means, variances, weights[:1]),
        (means, variances[:, None], weights),
    ]:
        with pytest.raises(ValueError, match=r"means \(K, C, ...\), variances \(K,\) and weights \(K,\), got"):
            MixtureDenoiser(EDM(), *arguments)
    for arguments in [
        (means, -variances, weights),
        (means, variances, f64([1.5, -0.5])),
        (means, variances, 2 * weights),
    ]:
        with pytest.raises(ValueError, match="not negative, and weights sum to one"):
            MixtureDenoiser(EDM(), *arguments)
    mixed = MixtureDenoiser(EDM(), means, variances, weights)
    for view in (mixed, mixed.log_prob, EmpiricalDenoiser(EDM(), means)):
        with pytest.raises(ValueError, match=r"volumes \(1, 3\), got \(2, 3, 1\)"):
            view(normal(2, 3, 1), f64(1.0))
    with pytest.raises(ValueError, match="EmpiricalDenoiser"):
        EmpiricalDenoiser(EDM(), means[:0])


def test_volumes_of_another_shape_are_refused():
    gaussian = Gaussian(
        torch.zeros(1, 4, dtype=torch.float64), DiagonalCovariance(torch.ones(1, 4, dtype=torch.float64))
    )
    x, t = torch.zeros(2, 3, 4, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    for call in (gaussian.denoise, gaussian.log_prob, gaussian.sample):
        with pytest.raises(ValueError, match=r"volumes \(1, 4\), got \(2, 3, 4\)"):
            call(x, EDM(), t)
