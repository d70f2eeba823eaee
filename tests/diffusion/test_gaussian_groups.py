"""A group with a Gaussian starts as that Gaussian's exact denoiser, and asks the network for what is left."""

import pytest
import torch
from oracles import f64, normal, on_paths, times_between

from voxscore.diffusion import (
    EDM,
    FourierCovariance,
    Gaussian,
    GaussianDenoiser,
    Group,
    JointNetDenoiser,
    condition,
    joint_loss,
)

SIZE = (4, 6)


def gaussian(channels=1, seed=0):
    """With a mean, and a spectrum from 0.2 to 10."""
    return Gaussian.fit(1 + 2 * normal(16, channels, *SIZE, seed=seed).cumsum(-1), "fourier")


def joint(path, net=None, g=None):
    groups = [Group("image", 1, gaussian=g or gaussian()), Group("label", 2, categorical=True)]
    return JointNetDenoiser(net or (lambda x, t: torch.zeros_like(x[:, 1:])), path, groups)


@pytest.fixture
def state():
    label = torch.nn.functional.one_hot(torch.randint(2, (3, *SIZE), generator=torch.Generator().manual_seed(3)), 2)
    return torch.cat([normal(3, 1, *SIZE, seed=2), label.movedim(-1, 1).double()], dim=1)


@on_paths()
def test_a_network_that_says_nothing_leaves_the_exact_denoiser(path, state):
    g = gaussian()
    for t in times_between(path, 4):
        table = torch.stack([t, t]).expand(3, 2)
        found = joint(path, g=g)(state, table)[:, :1]
        torch.testing.assert_close(found, GaussianDenoiser(path, g)(state[:, :1], t), rtol=1e-10, atol=1e-10)


@on_paths()
def test_what_is_left_has_unit_variance_at_every_level(path):
    """The weight is 1 / E|x_0 - D|^2; here the expectation is exact, as a trace over the frequencies."""
    g = gaussian()
    group = Group("image", 1, gaussian=g)
    t = times_between(path, 5)
    alpha, sigma = path.alpha(t), path.sigma(t)
    spectrum = g.covariance.spectrum.flatten()
    left = torch.stack([(spectrum * s**2 / (a**2 * spectrum + s**2)).mean() for a, s in zip(alpha, sigma, strict=True)])
    torch.testing.assert_close(group.weight(path, t), 1 / left, rtol=1e-10, atol=0)


def test_the_loss_of_silence_is_one_on_volumes_of_that_gaussian():
    g, path = gaussian(), EDM()
    clean = torch.zeros((), dtype=torch.float64)
    x0 = torch.cat([g.sample(normal(4000, 1, *SIZE, seed=5), path, clean), torch.zeros(4000, 2, *SIZE).double()], dim=1)
    for ratio in (0.1, 1.0, 30.0):
        t = torch.full((4000, 2), ratio, dtype=torch.float64)
        losses = joint_loss(joint(path, g=g), x0, t, normal(*x0.shape, seed=6)).losses[:, 0]
        assert abs(float(losses.mean()) - 1) < 4 * float(losses.std()) / 4000**0.5


@on_paths()
def test_white_noise_of_sigma_data_is_the_plain_preconditioning(path, state):
    white = Gaussian(
        torch.zeros(1, *SIZE).double(), FourierCovariance(torch.full((1, *SIZE), 0.3**2, dtype=torch.float64))
    )

    def net(x, t):
        return torch.sin(x[:, -3:])

    def plain(x, t):
        return torch.sin(x)

    with_gaussian = [Group("image", 1, sigma_data=0.3, gaussian=white), Group("label", 2, categorical=True)]
    without = [Group("image", 1, sigma_data=0.3), Group("label", 2, categorical=True)]
    t = times_between(path, 3)
    table = torch.stack([t, t.flip(0)], dim=1)
    torch.testing.assert_close(with_gaussian[0].weight(path, t), without[0].weight(path, t), rtol=1e-10, atol=0)

    def reordered(x, t):
        return net(torch.cat([x[:, :1], x[:, 2:]], dim=1), t)

    found = JointNetDenoiser(reordered, path, with_gaussian)(state, table)
    torch.testing.assert_close(found, JointNetDenoiser(plain, path, without)(state, table), rtol=1e-10, atol=1e-10)


def test_the_network_sees_the_estimate_beside_the_volume(state):
    seen = []

    def net(x, t):
        seen.append(x)
        return torch.zeros_like(x[:, 1:])

    g, path = gaussian(), EDM()
    t = f64(2.0)
    joint(path, net, g)(state, t)
    assert seen[0].shape == (3, 4, *SIZE)
    torch.testing.assert_close(seen[0][:, 1:2], g.denoise(state[:, :1], path, t))


def test_a_clean_group_is_its_own_estimate_at_any_size():
    """So the label of an image of any size can be told, one volume clean and another not among them."""
    g, path = gaussian(), EDM()
    seen = []

    def net(x, t):
        seen.append(x)
        return torch.zeros_like(x[:, 1:])

    image = normal(1, 1, 5, 3, seed=7)
    condition(joint(path, net, g), "image", image)(normal(1, 2, 5, 3), f64(80.0))
    assert torch.equal(seen[0][:, 1:2], image)
    state = normal(2, 3, *SIZE, seed=8)
    mixed = joint(path, g=g)(state, torch.tensor([[0.0, 1.0], [2.0, 1.0]]).double())
    assert torch.equal(mixed[0, 0], state[0, 0])
    torch.testing.assert_close(mixed[1:, :1], g.denoise(state[1:, :1], path, f64(2.0)))
    with pytest.raises(ValueError, match="the Gaussian is of volumes"):
        joint(path, g=g)(normal(1, 3, 5, 3), f64(2.0))


@pytest.mark.parametrize(("kind", "rank"), [("diagonal", None), ("fourier", None), ("low_rank", 3)])
def test_saved_and_loaded(tmp_path, kind, rank):
    fitted = Gaussian.fit(normal(8, 2, 4, 6, seed=3).float(), kind, rank)
    torch.save(fitted.state_dict(), tmp_path / "gaussian.pt")
    again = Gaussian.from_state_dict(torch.load(tmp_path / "gaussian.pt", weights_only=True))
    x, t = normal(2, 2, 4, 6, seed=4).float(), torch.tensor(0.7)
    assert torch.equal(again.denoise(x, EDM(), t), fitted.denoise(x, EDM(), t))
    half = Gaussian.from_state_dict({name: v.half() for name, v in fitted.state_dict().items()})
    torch.testing.assert_close(half.denoise(x, EDM(), t), fitted.denoise(x, EDM(), t), rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match=r"\['mean', 'other'\] are the tensors of no family"):
        Gaussian.from_state_dict({"mean": fitted.mean, "other": fitted.mean})
