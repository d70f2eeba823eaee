"""One denoiser, many names: predictions, score, noise and velocity agree, whatever the path, the time and the dtype."""

import typing

import pytest
import torch
from oracles import PURE_NOISE, f64, normal, on_paths, times_between

from voxscore.diffusion import (
    EDM,
    VP,
    Cosine,
    Denoiser,
    DiagonalCovariance,
    EmpiricalDenoiser,
    Flow,
    FourierCovariance,
    Gaussian,
    GaussianDenoiser,
    LowRankCovariance,
    MixtureDenoiser,
    NetDenoiser,
    bind,
    guide,
)
from voxscore.diffusion.denoisers import Prediction, expand

SHAPE = (2, 4)  # channels, voxels

# What a network of each kind is trained to give, of a clean volume, its noise and its noisy version.
TARGETS = {
    "x0": lambda x0, eps, a, s: x0,
    "eps": lambda x0, eps, a, s: eps,
    "v": lambda x0, eps, a, s: a * eps - s * x0,
    "score": lambda x0, eps, a, s: -eps / s,
    "flow": lambda x0, eps, a, s: eps - x0,
    "flow_monai": lambda x0, eps, a, s: x0 - eps,
    "edm": lambda x0, eps, a, s: (
        (x0 - a * 0.3**2 / (a**2 * 0.3**2 + s**2) * (a * x0 + s * eps)) * torch.sqrt(a**2 * 0.3**2 + s**2) / (s * 0.3)
    ),
}


class Wavy(Denoiser):
    """No expectation of anything, but some smooth function of volume and time."""

    def forward(self, x, t):
        return torch.sin(2 * x) + 0.1 * x.flip(-1) ** 2 + torch.cos(expand(self.path.sigma(t), x))


def oracle_network(denoiser, prediction):
    """The network that was trained, without error, to predict what this denoiser says."""

    def network(scaled, t):
        t = t.reshape(-1, 1, 1)
        a, s = denoiser.path.alpha(t), denoiser.path.sigma(t)
        x = scaled * torch.sqrt(a**2 * 0.3**2 + s**2) if prediction == "edm" else scaled
        x0 = denoiser(x, t.flatten())
        return TARGETS[prediction](x0, (x - a * x0) / s, a, s)

    return network


def mixture(path):
    means = 1.5 * normal(3, *SHAPE, seed=1)
    return MixtureDenoiser(path, means, f64([0.1, 0.5, 0.3]), f64([0.5, 0.2, 0.3]))


def scaled(volume, factor):
    return factor * volume


DENOISERS = {
    "x0-network": lambda path: NetDenoiser(lambda x, t: torch.tanh(x), path, "x0"),
    "edm-network": lambda path: NetDenoiser(lambda x, t: torch.tanh(x), path, "edm", sigma_data=0.3),
    "flow-network": lambda path: NetDenoiser(lambda x, t: torch.tanh(x), path, "flow"),
    "v-network": lambda path: NetDenoiser(lambda x, t: torch.tanh(x), path, "v"),
    "eps-network": lambda path: NetDenoiser(lambda x, t: x.tanh() / x.abs().add(1), path, "eps"),
    "score-network": lambda path: NetDenoiser(lambda x, t: x.tanh(), path, "score"),
    "guided": lambda path: guide(mixture(path), GaussianDenoiser(path, mixture(path).gaussian()), 1.5),
    "bound": lambda path: bind(NetDenoiser(lambda x, t, factor: scaled(torch.tanh(x), factor), path, "x0"), factor=0.5),
    "diagonal": lambda path: GaussianDenoiser(path, Gaussian(normal(*SHAPE), DiagonalCovariance(normal(*SHAPE) ** 2))),
    "low-rank": lambda path: GaussianDenoiser(
        path,
        Gaussian(
            normal(*SHAPE),
            LowRankCovariance(torch.linalg.qr(normal(8, 2)).Q.T.reshape(2, *SHAPE), f64([2.0, 1.0]), 0.1),
        ),
    ),
    "fourier": lambda path: GaussianDenoiser(
        path, Gaussian(normal(*SHAPE), FourierCovariance(torch.fft.fft(normal(*SHAPE)).abs() ** 2 + 0.1))
    ),
    "mixture": mixture,
    "empirical": lambda path: EmpiricalDenoiser(path, normal(5, *SHAPE, seed=2)),
}
every_denoiser = pytest.mark.parametrize("make", DENOISERS.values(), ids=DENOISERS)
VIEWS = ["forward", "score", "noise", "velocity"]


def test_every_prediction_is_tested():
    assert set(typing.get_args(Prediction)) == set(TARGETS)


@on_paths()
@pytest.mark.parametrize("prediction", TARGETS)
def test_all_predictions_are_one_denoiser(path, prediction):
    truth = Wavy(path)
    network = NetDenoiser(oracle_network(truth, prediction), path, prediction, sigma_data=0.3)
    t = times_between(path, 5)
    x = expand(path.sigma(t), normal(5, *SHAPE)) * normal(5, *SHAPE) + normal(5, *SHAPE, seed=3)
    for view in VIEWS:
        expected = getattr(truth, view)(x, t)
        # A rounding of the prediction reaches D multiplied by rho, at most 20 here.
        atol = 1e-12 * float(expected.abs().max())
        torch.testing.assert_close(getattr(network, view)(x, t), expected, rtol=1e-12, atol=atol)


@on_paths()
@pytest.mark.parametrize("sigma_data", [0.2, 1.0])
def test_edm_with_a_zero_network_is_the_gaussian_of_its_sigma_data(path, sigma_data):
    zero = NetDenoiser(lambda x, t: torch.zeros_like(x), path, "edm", sigma_data)
    gaussian = Gaussian(torch.zeros(SHAPE), DiagonalCovariance(torch.full(SHAPE, sigma_data**2, dtype=torch.float64)))
    x, t = normal(5, *SHAPE), times_between(path, 5)
    torch.testing.assert_close(zero(x, t), GaussianDenoiser(path, gaussian)(x, t), rtol=1e-13, atol=0)


@on_paths()
def test_edm_feeds_and_asks_for_unit_variance(path):
    """Var(c_in x_t) = 1, and the target (x_0 - c_skip x_t)/c_out has variance 1, of data with variance sigma_data^2."""
    sigma_data, t, seen = 0.3, times_between(path, 5), []

    def network(x, time):
        seen.append(x)
        return torch.ones_like(x)

    denoiser = NetDenoiser(network, path, "edm", sigma_data)
    ones = torch.ones(5, 1, 1, dtype=torch.float64)
    c_skip_and_out, c_out = denoiser(ones, t).flatten(), denoiser(0 * ones, t).flatten()
    c_in, c_skip = seen[0].flatten(), c_skip_and_out - c_out
    alpha, sigma = path.alpha(t), path.sigma(t)
    one = torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(c_in**2 * (alpha**2 * sigma_data**2 + sigma**2), one, rtol=1e-12, atol=0)
    target = ((1 - c_skip * alpha) ** 2 * sigma_data**2 + c_skip**2 * sigma**2) / c_out**2
    # 1 - c_skip alpha loses digits where c_skip alpha is nearly 1: 1e-16 (alpha sigma_data / sigma)^2 = 4e-15.
    torch.testing.assert_close(target, one, rtol=1e-11, atol=0)


@on_paths()
def test_tweedie(path):
    denoiser = mixture(path)
    t = times_between(path, 6)
    x = (expand(path.alpha(t), normal(6, *SHAPE)) * normal(6, *SHAPE) + normal(6, *SHAPE, seed=4)).requires_grad_()
    score = torch.autograd.grad(denoiser.log_prob(x, t).sum(), x)[0]
    # The score is (alpha D - x)/sigma^2, with 1/sigma^2 up to 400: a rounding is 1e-16 x 400.
    torch.testing.assert_close(denoiser.score(x, t).detach(), score, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(denoiser.noise(x, t).detach(), -expand(path.sigma(t), x) * score, rtol=1e-10, atol=1e-12)


@on_paths()
@every_denoiser
def test_velocity_is_the_probability_flow(path, make):
    """dx/dt = f x - g^2/2 score, of any denoiser."""
    denoiser = make(path)
    t, x = times_between(path, 6), normal(6, *SHAPE)
    drift, diffusion = expand(path.drift(t), x), expand(path.diffusion(t), x)
    expected = drift * x - 0.5 * diffusion * denoiser.score(x, t)
    torch.testing.assert_close(denoiser.velocity(x, t), expected, rtol=1e-10, atol=1e-11)


@on_paths(*PURE_NOISE)
def test_velocity_at_pure_noise(path):
    """alpha' D + sigma' x there, the limit of the velocity just before."""
    denoiser, x, end = mixture(path), normal(3, *SHAPE), f64(path.span[1])
    before = denoiser.velocity(x, end - 1e-7)
    torch.testing.assert_close(denoiser.velocity(x, end), before, rtol=0, atol=1e-5 * float(before.abs().max()))


def test_velocity_of_flow_at_pure_noise():
    denoiser, x = mixture(Flow()), normal(3, *SHAPE)
    torch.testing.assert_close(denoiser.velocity(x, f64(1.0)), x - denoiser(x, f64(1.0)))


@every_denoiser
@on_paths("VP", "EDM", "Flow", "Discrete")
def test_a_time_for_all_or_a_time_each(path, make):
    denoiser, x, t = make(path), normal(3, *SHAPE), times_between(path, 3)
    for view in VIEWS:
        function = denoiser if view == "forward" else getattr(denoiser, view)
        each = torch.cat([function(x[i : i + 1], t[i]) for i in range(3)])
        torch.testing.assert_close(function(x, t), each, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(function(x, t[1].expand(3)), function(x, t[1]), rtol=1e-12, atol=1e-13)


@every_denoiser
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.2)])
@on_paths("VP", "Flow")
def test_the_volume_keeps_its_dtype(make, dtype, tolerance, path):
    """bfloat16 has 8 bits: a mixture's exponents of order 10 err by 0.05, and differences of denoisers by more."""
    denoiser, t = make(path), path.time(f64([0.7, 1.5]))
    x = normal(2, *SHAPE).to(dtype)
    for view in VIEWS:
        function = denoiser if view == "forward" else getattr(denoiser, view)
        exact = function(x.double(), t)
        for times, expected in ((t, exact), (t[0], function(x.double(), t[0]))):
            value = function(x, times)
            assert value.dtype is dtype
            atol = tolerance * float(expected.abs().max())
            torch.testing.assert_close(value.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("prediction", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@on_paths("VP", "Flow")
def test_coefficients_are_rounded_once(path, prediction, dtype):
    """They are computed in float64, and a time for each volume gives the very numbers that a time for all gives."""
    t = times_between(path, 40, low=0.01)
    for x, output in ((1.0, 0.0), (0.0, 1.0)):  # c_skip, c_out
        denoiser = NetDenoiser(lambda x, time, f=output: torch.full_like(x, f), path, prediction)
        volumes = torch.full((40, 1, 1), x, dtype=dtype)
        each = torch.cat([denoiser(volumes[:1], s) for s in t])
        torch.testing.assert_close(denoiser(volumes, t), each, rtol=0, atol=0)


def test_a_score_does_not_overflow_with_its_variance():
    """300^2 is beyond float16, x/300^2 is not."""
    denoiser = NetDenoiser(lambda x, time: 0 * x, EDM(), "x0")
    x = torch.full((1, 1, 1), 300.0, dtype=torch.float16)
    torch.testing.assert_close(denoiser.score(x, f64([300.0])), -x / 300 / 300, rtol=2e-3, atol=0)


def recorded(calls):
    def network(x, time, **cond):
        calls.append((x, time, cond))
        return 0 * x

    return network


@pytest.mark.parametrize("t", [f64(0.3), f64([0.3, 0.6])], ids=["scalar", "batch"])
@pytest.mark.parametrize(
    ("dtype", "told"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_the_network_is_told_a_time_for_each_volume(t, dtype, told):
    calls, x = [], normal(2, *SHAPE).to(dtype)
    NetDenoiser(recorded(calls), Cosine(), "v")(x, t)
    NetDenoiser(recorded(calls), Cosine(), "v", time_map=lambda t: 1000 * t)(x, t)
    NetDenoiser(recorded(calls), Cosine(), "v", time_map=Cosine().ratio)(x, t)
    for (given, time, _), expected in zip(calls, (t, 1000 * t, Cosine().ratio(t)), strict=True):
        assert given.dtype is dtype
        assert time.dtype is told
        torch.testing.assert_close(time, expected.expand(2).to(told), rtol=0, atol=0)


def test_a_network_is_part_of_its_denoiser():
    layer = torch.nn.Linear(4, 4).double()
    denoiser = NetDenoiser(layer_on(layer), EDM(), "edm")
    assert [id(p) for p in denoiser.parameters()] == [id(p) for p in layer.parameters()]
    denoiser(normal(2, *SHAPE), f64(1.0)).square().sum().backward()
    assert float(layer.weight.grad.abs().max()) > 0


def layer_on(layer):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, time):
            return self.layer(x)

    return Network()


@on_paths("VP", "Flow")
@pytest.mark.parametrize("t", [f64(0.4), f64([0.4, 0.7])], ids=["scalar", "batch"])
def test_guidance_extrapolates_from_the_reference(path, t):
    main, reference, x = mixture(path), Wavy(path), normal(2, *SHAPE)
    a, b = main(x, t), reference(x, t)
    torch.testing.assert_close(guide(main, reference, 0.0)(x, t), b, rtol=0, atol=0)
    torch.testing.assert_close(guide(main, reference, 1.0)(x, t), a, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(guide(main, reference, 2.5)(x, t), 2.5 * a - 1.5 * b, rtol=1e-13, atol=1e-13)
    assert guide(main, reference, 2.5).path == path


def test_guidance_by_scores_is_guidance_by_denoisers():
    main, reference, x, t = mixture(VP()), Wavy(VP()), normal(2, *SHAPE), f64(0.4)
    score = 3 * main.score(x, t) - 2 * reference.score(x, t)
    torch.testing.assert_close(guide(main, reference, 3.0).score(x, t), score, rtol=1e-11, atol=1e-11)


def test_guidance_is_along_one_path():
    with pytest.raises(ValueError, match=r"on one path, got VP\(.*\) and EDM\("):
        guide(Wavy(VP()), Wavy(EDM()), 2.0)
    assert guide(Wavy(VP()), Wavy(VP()), 2.0).path == VP()


def test_conditions_reach_the_network():
    calls, x, t = [], normal(2, *SHAPE), f64(0.4)
    bare = NetDenoiser(recorded(calls), VP(), "eps")
    for view in (bare, bare.score, bare.noise, bare.velocity):
        view(x, t, context=1)
        assert calls.pop()[2] == {"context": 1}
    assert calls == []
    bind(bare, context=1)(x, t)
    bind(bind(bare, context=2), mask=2)(x, t)
    bind(bare, context=3)(x, t, mask=4)
    guide(bare, bare, 2.0)(x, t, context=7)
    guide(bind(bare, context=8), bind(bare, context=9), 2.0).velocity(x, t)
    conditions = [cond for _, _, cond in calls]
    assert conditions[:3] == [{"context": 1}, {"context": 2, "mask": 2}, {"context": 3, "mask": 4}]
    assert conditions[3:5] == [{"context": 7}] * 2
    assert sorted(cond["context"] for cond in conditions[5:]) == [8, 9]


def test_classifier_free_guidance():
    """(1 + w) D(condition) - w D(no condition)."""
    network = NetDenoiser(lambda x, t, shift: x + shift, VP(), "x0")
    x, w = normal(2, *SHAPE), 1.5
    guided = guide(bind(network, shift=1.0), bind(network, shift=0.0), 1 + w)
    torch.testing.assert_close(guided(x, f64(0.5)), x + (1 + w), rtol=1e-14, atol=1e-14)


def test_bad_networks_teach():
    x, t = normal(2, *SHAPE), f64(0.4)
    with pytest.raises(ValueError, match=r"the network made \(2, 1, 4\) of a volume \(2, 2, 4\)"):
        NetDenoiser(lambda x, t: x[:, :1], VP(), "eps")(x, t)
    with pytest.raises(ValueError, match=r"prediction is one of \['x0', .*'edm'\], got 'epsilon'"):
        NetDenoiser(lambda x, t: x, VP(), "epsilon")
    with pytest.raises(TypeError, match="abstract"):
        Denoiser(VP())


def test_expand():
    x = torch.zeros(2, 3, 4, dtype=torch.bfloat16)
    scalar, each = expand(f64(1 / 3), x), expand(f64([1 / 3, 2.0]), x)
    assert scalar.dtype is torch.float64
    assert (scalar * x).dtype is torch.bfloat16
    assert each.shape == (2, 1, 1)
    assert each.dtype is torch.bfloat16
    torch.testing.assert_close(each.flatten(), torch.tensor([1 / 3, 2.0], dtype=torch.bfloat16), rtol=0, atol=0)


def test_a_network_that_returns_several_tensors_is_named():
    with pytest.raises(TypeError, match="must return one tensor, it returned tuple"):
        NetDenoiser(lambda x, t: (x, x), EDM(), "x0")(torch.zeros(1, 1, 2), torch.tensor(1.0))


def test_times_are_one_or_one_for_each_volume():
    with pytest.raises(ValueError, match=r"one for each of 3 volumes, got \(2,\)"):
        NetDenoiser(lambda x, t: x, EDM(), "edm")(torch.zeros(3, 1, 2), torch.ones(2))
