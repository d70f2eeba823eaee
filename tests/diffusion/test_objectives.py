"""Objectives on Gaussian data, where every expectation is a finite sum.

A quadratic function of standard normals has the same mean over the 2 n points +-sqrt(n) e_k as over the normal
distribution in n dimensions, and the loss of a linear denoiser is quadratic in signal and noise.
"""

import json
import math

import pytest
import torch

from voxscore.diffusion import (
    EDM,
    VE,
    VP,
    Cosine,
    Denoiser,
    Discrete,
    Flow,
    Gaussian,
    GaussianDenoiser,
    Group,
    JointNetDenoiser,
    LowRankCovariance,
    NetDenoiser,
    SubVP,
)
from voxscore.diffusion.augmentation import Augmentation, Flip, ScoreAug, Translate
from voxscore.diffusion.objectives import (
    EDMWeight,
    GroupTimes,
    LogNormalTimes,
    MinSNRWeight,
    Uncertainty,
    denoising_loss,
    joint_loss,
)

PATHS = [EDM(), VE(), VP(), SubVP(), Cosine(), Flow(), Discrete(torch.linspace(1e-4, 0.02, 1000))]
SHAPE = (2, 2, 1, 3)
N = math.prod(SHAPE)


def by_name(path):
    return type(path).__name__


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def unit(path, t):
    return torch.ones_like(t)


def gaussian():
    """Correlated voxels and a mean."""
    vectors = torch.linalg.qr(normals(N, 3, seed=1)).Q.T.reshape(3, *SHAPE)
    return Gaussian(normals(*SHAPE, seed=2), LowRankCovariance(vectors, numbers(2.0, 1.0, 0.5), 0.1))


def cubature(distribution):
    """Clean volumes and noise, (4 N, *SHAPE) each, over which quadratic functions have their exact mean."""
    n = 2 * N
    points = math.sqrt(n) * torch.cat([torch.eye(n, dtype=torch.float64), -torch.eye(n, dtype=torch.float64)])
    signal, noise = (part.reshape(-1, *SHAPE) for part in points.chunk(2, dim=1))
    return distribution.sample(signal, EDM(), numbers(0.0)[0]), noise


class Linear(Denoiser):
    """D(x) = K x + b for one time."""

    def __init__(self, path, k, b):
        super().__init__(path)
        self.k, self.b = torch.nn.Parameter(k), torch.nn.Parameter(b)

    def forward(self, x, t):
        return (x.flatten(1) @ self.k.T + self.b).reshape(x.shape)


def exact_linear(path, t, distribution):
    """The exact denoiser as a matrix and an offset, found by probing it."""
    exact = GaussianDenoiser(path, distribution)
    basis = torch.eye(N, dtype=torch.float64).reshape(N, *SHAPE)
    b = exact(torch.zeros(1, *SHAPE, dtype=torch.float64), t).flatten()
    return (exact(basis, t).flatten(1) - b).T.clone(), b.clone()


# ---------------------------------------------------------------------------------------- denoising score matching


@pytest.mark.parametrize("path", PATHS, ids=by_name)
def test_loss_of_the_exact_denoiser_is_the_variance_it_cannot_explain(path):
    data = gaussian()
    x0, noise = cubature(data)
    for rho in (0.05, 1.0, 20.0):
        t = path.time(numbers(rho))[0]
        times = t.expand(len(x0))
        loss = denoising_loss(GaussianDenoiser(path, data), x0, times, noise, unit)
        assert loss.shape == (len(x0),)
        alpha, sigma = path.alpha(t), path.sigma(t)
        expected = data.covariance.trace(lambda v, a, s: v * s**2 / (a**2 * v + s**2), alpha, sigma) / N
        torch.testing.assert_close(loss.mean(), expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("path", [EDM(), VP(), Flow()], ids=by_name)
def test_the_exact_denoiser_minimises_the_loss_in_the_linear_family(path):
    """The excess is quadratic, tr(Delta V Delta^T) with V the covariance of x_t, so the minimum is the only one."""
    data = gaussian()
    x0, noise = cubature(data)
    t = path.time(numbers(0.7)).expand(len(x0))
    k, b = exact_linear(path, t[0], data)

    def loss(k, b):
        model = Linear(path, k, b)
        return denoising_loss(model, x0, t, noise, unit).mean(), model

    least, model = loss(k, b)
    for gradient in torch.autograd.grad(least, [model.k, model.b]):
        assert gradient.abs().max() < 1e-13

    delta, shift = normals(N, N, seed=3), normals(N, seed=4)
    alpha, sigma = path.alpha(t[0]), path.sigma(t[0])
    mean = alpha * data.mean.flatten()
    half = data.covariance.apply(
        lambda v, a, s: torch.sqrt(a**2 * v + s**2), delta.reshape(N, *SHAPE), alpha, sigma
    )  # rows of delta times V^(1/2)
    excess = (half.square().sum() + (delta @ mean + shift).square().sum()) / N
    torch.testing.assert_close(loss(k + delta, b + shift)[0] - least, excess, rtol=1e-11, atol=0)


def test_each_volume_has_its_own_loss_and_weight_at_its_own_time():
    data = gaussian()
    denoiser = GaussianDenoiser(Flow(), data)
    x0, noise, t = normals(3, *SHAPE, seed=5), normals(3, *SHAPE, seed=6), numbers(0.1, 0.5, 0.9)
    together = denoising_loss(denoiser, x0, t, noise, EDMWeight())
    alone = [denoising_loss(denoiser, x0[k : k + 1], t[k], noise[k : k + 1], EDMWeight()) for k in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=0)
    unweighted = denoising_loss(denoiser, x0, t, noise, unit)
    torch.testing.assert_close(together, EDMWeight()(Flow(), t) * unweighted, rtol=1e-12, atol=0)


def test_shapes_that_would_broadcast_are_refused():
    denoiser = GaussianDenoiser(EDM(), gaussian())
    x0, t = normals(3, *SHAPE), numbers(1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"noise must be shaped like the volumes \(3, 2, 2, 1, 3\)"):
        denoising_loss(denoiser, x0, t, normals(1, *SHAPE), unit)

    class Pooled(Denoiser):
        def forward(self, x, t):
            return x.mean(1, keepdim=True)

    with pytest.raises(ValueError, match=r"made \(3, 1, 2, 1, 3\) of a volume"):
        denoising_loss(Pooled(EDM()), x0, t, x0, unit)


# ---------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("path", PATHS, ids=by_name)
def test_the_edm_weight_undoes_the_gain_of_the_edm_row(path):
    """So the effective weight on the network's output is 1, at pure noise too."""
    sigma_data = 0.7
    x = torch.zeros(7, 1, 2, 2, dtype=torch.float64)
    rho = torch.logspace(-2, 1, 6, dtype=torch.float64)
    t = torch.cat([path.time(rho), path.t_noise[None]])
    d = NetDenoiser(lambda x, t: torch.ones_like(x), path, "edm", sigma_data)(x, t)
    weight = EDMWeight(sigma_data)(path, t)
    torch.testing.assert_close(weight * d[:, 0, 0, 0] ** 2, torch.ones_like(t), rtol=1e-9, atol=0)
    published = (rho**2 + sigma_data**2) / (rho * sigma_data) ** 2
    torch.testing.assert_close(weight[:6], published, rtol=1e-9, atol=0)


def test_min_snr_is_the_capped_signal_to_noise_ratio():
    path = Flow()
    t = path.time(numbers(0.0, 0.1, 0.5, 2.0, math.inf))
    assert MinSNRWeight()(path, t).tolist() == pytest.approx([5, 5, 4, 0.25, 0], rel=1e-12)
    assert MinSNRWeight(gamma=1.0)(path, t).tolist() == pytest.approx([1, 1, 1, 0.25, 0], rel=1e-12)


def test_learned_uncertainty_ends_with_every_level_contributing_the_same():
    """On Gaussian data: e^u becomes the expected loss of each level, whatever it is."""
    path, data = VP(), gaussian()
    uncertainty = Uncertainty(ratio_min=0.01, ratio_max=10.0, knots=5).double()
    rho = torch.logspace(-2, 1, 5, dtype=torch.float64)
    t = path.time(rho)
    x0, noise = cubature(data)
    with torch.no_grad():
        level = [denoising_loss(GaussianDenoiser(path, data), x0, s, noise, unit).mean() for s in t]
    losses = torch.stack(level)
    assert losses.max() > 100 * losses.min()
    torch.testing.assert_close(uncertainty(losses, path, t), losses, rtol=0, atol=0)

    optimizer = torch.optim.LBFGS(
        uncertainty.parameters(), max_iter=200, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        total = uncertainty(losses, path, t).mean()
        total.backward()
        return total

    optimizer.step(closure)
    u = uncertainty.log_loss(rho).detach()
    torch.testing.assert_close(losses * torch.exp(-u), torch.ones_like(losses), rtol=1e-8, atol=0)
    torch.testing.assert_close(uncertainty(losses, path, t).detach(), 1 + losses.log(), rtol=1e-8, atol=0)


def test_uncertainty_is_linear_between_knots_constant_outside_and_silent_without_noise():
    uncertainty = Uncertainty(ratio_min=0.01, ratio_max=100.0, knots=3).double()
    uncertainty.values.data = numbers(1.0, 2.0, 5.0)
    rho = numbers(0.0, 0.001, 0.01, 0.1, 1.0, 10.0, 1e4, math.inf)
    expected = numbers(1.0, 1.0, 1.0, 1.5, 2.0, 3.5, 5.0, 5.0)
    torch.testing.assert_close(uncertainty.log_loss(rho), expected, rtol=1e-12, atol=0)
    loss = uncertainty(torch.ones_like(rho), EDM(), rho)
    torch.testing.assert_close(loss[1:], torch.exp(-expected[1:]) + expected[1:], rtol=1e-12, atol=0)
    assert loss[0] == 1
    loss.sum().backward()
    assert uncertainty.values.grad.isfinite().all()


@pytest.mark.parametrize("arguments", [(0.0, 1.0, 4), (2.0, 1.0, 4), (0.1, math.inf, 4), (0.1, 1.0, 1)])
def test_uncertainty_needs_knots(arguments):
    with pytest.raises(ValueError, match="0 < ratio_min < ratio_max and two knots"):
        Uncertainty(*arguments)


# ---------------------------------------------------------------------------------------- times


@pytest.mark.parametrize("path", PATHS, ids=by_name)
def test_levels_are_log_normal_on_every_path(path):
    n, mean, std = 20000, -1.0, 0.8
    t = LogNormalTimes(mean, std)(path, n, generator())
    low, high = path.span
    assert t.shape == (n,)
    assert t.dtype == torch.float64
    assert ((t >= low) & (t <= high)).all()
    log = path.ratio(t).log()
    # Five standard errors of a mean and of a standard deviation.
    assert log.mean().item() == pytest.approx(mean, abs=5 * std / math.sqrt(n))
    assert log.std().item() == pytest.approx(std, abs=5 * std / math.sqrt(2 * n))
    third = (log - log.mean()).pow(3).mean() / log.std() ** 3
    assert abs(third) < 5 * math.sqrt(6 / n)
    assert torch.equal(LogNormalTimes(mean, std)(path, n, generator()), t)
    assert not torch.equal(LogNormalTimes(mean, std)(path, n, generator(1)), t)


@pytest.mark.parametrize("path", PATHS, ids=by_name)
def test_levels_beyond_pure_noise_become_pure_noise(path):
    t = LogNormalTimes(mean=50.0, std=1.0)(path, 10, generator())
    assert (t == path.t_noise).all()


RECIPE = '[[0.4, ["clean", "noise"]], [0.35, ["shared", "shared"]], [0.15, ["own", "own"]], [0.1, ["noise", "shared"]]]'


@pytest.mark.parametrize("path", PATHS, ids=by_name)
def test_groups_get_their_regimes_by_their_probabilities(path):
    n = 4000
    draw = GroupTimes(json.loads(RECIPE))
    t = draw(path, n, generator(3))
    assert t.shape == (n, 2)
    low, high = path.span
    assert ((t >= low) & (t <= high)).all()
    assert torch.equal(draw(path, n, generator(3)), t)
    assert not torch.equal(draw(path, n, generator(4)), t)

    image, label = t.unbind(1)
    clean, noise = path.sigma(image) == 0, path.t_noise
    counts = [clean & (label == noise), image == label, ~clean & (image != label) & (image != noise), image == noise]
    for rows, probability in zip(counts, (0.4, 0.35, 0.15, 0.1), strict=True):
        # Five standard deviations of a binomial count.
        assert abs(int(rows.sum()) - probability * n) < 5 * math.sqrt(n * probability * (1 - probability))
    assert not (path.sigma(label) == 0).any()

    # What is neither clean nor pure noise has the distribution of levels; independent columns are uncorrelated.
    own = t[counts[2]]
    log = path.ratio(own).log()
    assert abs(torch.corrcoef(log.T)[0, 1]) < 5 / math.sqrt(len(own))
    for column in (log[:, 0], log[:, 1], path.ratio(image[counts[1]]).log()):
        assert abs(column.mean() + 1.2) < 5 * 1.2 / math.sqrt(len(column))


def test_three_groups_share_a_level_where_the_regime_says_so():
    t = GroupTimes([(1.0, ("shared", "own", "shared"))])(EDM(), 50, generator())
    assert torch.equal(t[:, 0], t[:, 2])
    assert (t[:, 0] != t[:, 1]).all()


@pytest.mark.parametrize(
    ("regimes", "message"),
    [
        ([], "must sum to one"),
        ([(0.5, ["own", "own"])], "must sum to one"),
        ([(1.5, ["own"]), (-0.5, ["own"])], "must sum to one"),
        ([(0.5, ["own", "own"]), (0.5, ["own"])], "a mode for each group"),
        ([(1.0, ["own", "full"])], r"a mode is one of .*'clean'.*got \['full'\]"),
    ],
)
def test_regimes_that_make_no_sense_are_refused(regimes, message):
    with pytest.raises(ValueError, match=message):
        GroupTimes(regimes)


# ---------------------------------------------------------------------------------------- joint training

GROUPS = [Group("image", 2, sigma_data=0.6), Group("label", 3, categorical=True), Group("map", 1, sigma_data=1.3)]


def joint_state(batch, seed=7):
    """An image, a one-hot label and a map (batch, 6, 2, 3, 2), and noise."""
    classes = torch.randint(3, (batch, 2, 3, 2), generator=generator(seed))
    onehot = torch.nn.functional.one_hot(classes, 3).movedim(-1, 1).double()
    x0 = normals(batch, 6, 2, 3, 2, seed=seed)
    x0[:, 2:5] = onehot
    return x0, normals(batch, 6, 2, 3, 2, seed=seed + 1), classes


class Mixing(torch.nn.Module):
    """Channels mixed by a trainable matrix; remembers what it was told."""

    def __init__(self):
        super().__init__()
        self.matrix = torch.nn.Parameter(normals(6, 6, seed=11))

    def forward(self, x, t, cond=None):
        self.cond = cond
        return torch.einsum("ij,bj...->bi...", self.matrix, x)


@pytest.mark.parametrize("path", [EDM(), Flow(), VE()], ids=by_name)
def test_joint_losses_are_the_published_formulas(path):
    x0, noise, classes = joint_state(2)
    denoiser = JointNetDenoiser(Mixing(), path, GROUPS)
    rho = numbers(0.3, 2.0, 0.8, 1.5, 0.2, 0.9).reshape(2, 3)
    t = path.time(rho)
    loss = joint_loss(denoiser, x0, t, noise)

    alpha, sigma = denoiser.levels(x0, t)
    x = alpha * x0 + sigma * noise
    d = denoiser(x, t)
    for column, channels, s in ((0, slice(0, 2), 0.6), (2, slice(5, 6), 1.3)):
        r = rho[:, column]
        expected = (r**2 + s**2) / (r * s) ** 2 * (d - x0)[:, channels].square().flatten(1).mean(1)
        torch.testing.assert_close(loss.losses[:, column], expected, rtol=1e-10, atol=0)
    # The probability of the right class; logits are float32.
    right = d[:, 2:5].gather(1, classes[:, None])
    expected = -right.log().flatten(1).mean(1)
    torch.testing.assert_close(loss.losses[:, 1], expected, rtol=1e-5, atol=0)

    assert [tuple(o.shape) for o in loss.outputs] == [tuple(o.shape) for o in loss.targets]
    assert torch.equal(torch.cat(loss.targets, dim=1), x0)
    torch.testing.assert_close(loss.outputs[0], d[:, :2], rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.outputs[1].softmax(1).double(), d[:, 2:5], rtol=1e-5, atol=0)


@pytest.mark.parametrize("path", [EDM(), Flow(), VE()], ids=by_name)
@pytest.mark.parametrize("group", range(3))
def test_a_clean_group_contributes_nothing_not_even_to_the_gradient(path, group):
    x0, noise, _ = joint_state(2)
    net = Mixing()
    denoiser = JointNetDenoiser(net, path, GROUPS)
    t = path.time(torch.full((2, 3), 0.8, dtype=torch.float64))
    t[0, group] = path.span[0]
    t[1, (group + 1) % 3] = path.t_noise
    losses = joint_loss(denoiser, x0, t, noise).losses
    assert losses[0, group] == 0
    others = losses.clone()
    others[0, group] = math.inf
    assert (others > 0).all()
    (gradient,) = torch.autograd.grad(losses.sum(), net.matrix, retain_graph=True)
    assert gradient.isfinite().all()
    (gradient,) = torch.autograd.grad(losses[0, group], net.matrix)
    assert (gradient == 0).all()


def test_one_time_for_all_groups_is_the_table_with_that_time_everywhere():
    x0, noise, _ = joint_state(2)
    denoiser = JointNetDenoiser(Mixing(), EDM(), GROUPS)
    scalar = joint_loss(denoiser, x0, numbers(0.5)[0], noise).losses
    table = joint_loss(denoiser, x0, torch.full((2, 3), 0.5, dtype=torch.float64), noise).losses
    assert torch.equal(scalar, table)


def test_joint_augmentation_moves_all_groups_and_tells_the_network():
    x0, noise, _ = joint_state(2)
    net = Mixing()
    denoiser = JointNetDenoiser(net, EDM(), GROUPS)
    t = torch.full((2, 3), 0.7, dtype=torch.float64)
    score_aug = ScoreAug([Flip(), Translate(0.5)])
    omega = numbers(0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1 / 3, 0).reshape(2, 6)
    augmentation = Augmentation(score_aug, omega)
    loss = joint_loss(denoiser, x0, t, noise, augmentation)
    assert torch.equal(net.cond, omega)
    assert torch.equal(torch.cat(loss.targets, dim=1), augmentation(x0))

    # This network sees every voxel alone, so a flip changes no mean over voxels.
    plain = joint_loss(denoiser, x0, t, noise).losses
    torch.testing.assert_close(loss.losses[0], plain[0], rtol=1e-6, atol=0)
    # A shift by one of three voxels leaves a third empty, where the label has no class and adds nothing.
    kept = joint_loss(denoiser, x0[:, :, :, :2], t, noise[:, :, :, :2]).losses
    torch.testing.assert_close(loss.losses[1, 1], kept[1, 1] * 2 / 3, rtol=1e-6, atol=0)
