"""A group without noise is conditioned on, one of pure noise is marginalised out: exactly, where the joint is known."""

from itertools import permutations

import pytest
import torch
from oracles import DenseGaussian, f64, normal, on_paths, random_covariance, times_between
from torch.distributions import MultivariateNormal

from voxscore.diffusion import (
    EDM,
    VP,
    DPMSolver,
    Flow,
    Group,
    JointDenoiser,
    JointNetDenoiser,
    MixtureDenoiser,
    NetDenoiser,
    condition,
    log_uniform_times,
    marginalize,
    sample,
)

VOXELS = 2


class DenseJoint(JointDenoiser):
    """The exact denoiser of one Gaussian over all channels and voxels, with a time for each group."""

    def __init__(self, path, groups, seed=0):
        super().__init__(path, groups)
        n = VOXELS * sum(group.channels for group in groups)
        self.dense = DenseGaussian(normal(n, seed=seed), random_covariance(n, seed=seed + 1))

    def owner(self):
        """The index of the group of every entry of a flattened volume."""
        return torch.cat([torch.full((VOXELS * g.channels,), k) for k, g in enumerate(self.groups)])

    def entries(self, name):
        """Which entries belong to this group."""
        return self.owner() == [g.name for g in self.groups].index(name)

    def noisy(self, times):
        """The marginal where every group has its time (G,)."""
        return self.dense.marginal(self.path.alpha(times)[self.owner()], self.path.sigma(times)[self.owner()])

    def forward(self, x, t):
        rows = []
        for volume, times in zip(x.flatten(1), self.group_times(x, t).expand(len(x), -1), strict=True):
            alpha, sigma = self.path.alpha(times)[self.owner()], self.path.sigma(times)[self.owner()]
            rows.append(self.dense.denoise(volume[None], alpha, sigma))
        return torch.cat(rows).reshape(x.shape)


class DenseMixture(JointDenoiser):
    """An image and its label map: whole label maps of given probability, and around each a Gaussian image."""

    maps = torch.nn.functional.one_hot(torch.tensor([[0, 0], [0, 1], [2, 1]]), 3).mT.double()  # (K, classes, voxels)
    weights, variances = f64([0.5, 0.2, 0.3]), f64([0.3, 0.8, 0.5])

    def __init__(self, path):
        super().__init__(path, [Group("image", 2), Group("label", 3, categorical=True)])
        self.means = 0.7 * normal(3, 2, VOXELS, seed=5)

    def log_likelihoods(self, x, means, variances, alpha, sigma):
        """ln N(x; alpha mean, alpha^2 variance + sigma^2) of x (B, C, voxels) for every component: (B, K)."""
        variance = alpha**2 * variances + sigma**2
        squares = (x[:, None] - alpha * means).square().flatten(2).sum(2)
        # Without any variance a component either is the value or is impossible.
        exponents = torch.where(squares == 0, 0.0, -0.5 * squares / variance)
        return exponents - 0.5 * means[0].numel() * torch.where(variance > 0, variance, 1.0).log()

    def forward(self, x, t):
        image, label = x.split([2, 3], dim=1)
        rows = []
        for k, times in enumerate(self.group_times(x, t).expand(len(x), -1)):
            alpha, sigma = self.path.alpha(times), self.path.sigma(times)
            log = self.weights.log()
            log = log + self.log_likelihoods(image[k : k + 1], self.means, self.variances, alpha[0], sigma[0])
            log = log + self.log_likelihoods(label[k : k + 1], self.maps, 0 * self.variances, alpha[1], sigma[1])
            posterior = log.softmax(1)[0]
            gain = (alpha[0] * self.variances / (alpha[0] ** 2 * self.variances + sigma[0] ** 2)).reshape(-1, 1, 1)
            images = self.means + gain * (image[k] - alpha[0] * self.means)
            rows.append(torch.einsum("k,kcv->cv", posterior, torch.cat([images, self.maps], dim=1)))
        return torch.stack(rows)

    def posterior(self, image):
        """P(map | clean image (C, voxels)): (K,)."""
        densities = [
            MultivariateNormal(m.flatten(), v * torch.eye(m.numel(), dtype=torch.float64)).log_prob(image.flatten())
            for m, v in zip(self.means, self.variances, strict=True)
        ]
        return (self.weights.log() + torch.stack(densities)).softmax(0)


def two(path):
    return DenseJoint(path, [Group("image", 2), Group("label", 1)])


def three(path):
    return DenseJoint(path, [Group("a", 1), Group("b", 2), Group("c", 1)])


def volumes(batch, channels, seed=0):
    return normal(batch, channels, VOXELS, seed=seed)


@on_paths()
@pytest.mark.parametrize(("known", "rest"), [("image", "label"), ("label", "image")])
def test_a_clean_group_is_conditioned_on(path, known, rest):
    joint = two(path)
    channels = {g.name: g.channels for g in joint.groups}
    t, x = times_between(path, 3), volumes(3, channels[rest])
    for value in (volumes(3, channels[known], seed=1), volumes(1, channels[known], seed=2)):
        conditional = condition(joint, known, value)
        assert [g.name for g in conditional.groups] == [rest]
        exact = [
            joint.dense.given(joint.entries(known), v.flatten()).denoise(
                x[i : i + 1].flatten(1), path.alpha(t[i]), path.sigma(t[i])
            )
            for i, v in enumerate(value.expand(3, -1, -1))
        ]
        torch.testing.assert_close(conditional(x, t), torch.cat(exact).reshape(x.shape), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(conditional(x, t[1])[1], conditional(x, t)[1], rtol=1e-12, atol=1e-12)


@on_paths("Flow", "Cosine", "Cosine-offset", "Discrete-zero-terminal")
@pytest.mark.parametrize(("unknown", "rest"), [("image", "label"), ("label", "image")])
def test_a_group_of_pure_noise_is_marginalised_out(path, unknown, rest):
    joint = two(path)
    channels = {g.name: g.channels for g in joint.groups}
    t, x = times_between(path, 3), volumes(3, channels[rest])
    exact = joint.dense.part(joint.entries(rest))
    exact = torch.cat(
        [exact.denoise(v.flatten(1), path.alpha(s), path.sigma(s)) for v, s in zip(x[:, None], t, strict=True)]
    )
    for noise in (None, volumes(3, channels[unknown], seed=1), volumes(1, channels[unknown], seed=2)):
        marginal = marginalize(joint, unknown, noise)
        assert [g.name for g in marginal.groups] == [rest]
        torch.testing.assert_close(marginal(x, t), exact.reshape(x.shape), rtol=1e-10, atol=1e-10)


def marginal_error(path, noise=None):
    joint, x, t = two(path), volumes(3, 2), path.time(f64(0.7))
    exact = joint.dense.part(joint.entries("image")).denoise(x.flatten(1), path.alpha(t), path.sigma(t))
    return float((marginalize(joint, "label", noise)(x, t).flatten(1) - exact).abs().max())


def test_elsewhere_a_group_is_hidden_as_well_as_the_largest_noise_hides_it():
    """Filled with its mean the error falls with the square of the ratio, filled with a normal with the ratio itself."""
    assert marginal_error(EDM(sigma_max=80)) < 1e-3
    assert marginal_error(VP()) < 1e-3
    assert marginal_error(EDM(sigma_max=80)) / marginal_error(EDM(sigma_max=8000)) == pytest.approx(1e4, rel=0.01)
    noise = volumes(3, 1, seed=1)
    near, far = (marginal_error(EDM(sigma_max=s), noise) for s in (80, 8000))
    assert near < 0.1
    assert near / far == pytest.approx(100, rel=0.1)


@on_paths()
def test_a_label_given_a_clean_image(path):
    """The posterior over label maps, as a mixture of points with the probabilities of the image."""
    joint, t = DenseMixture(path), times_between(path, 3, high=3.0)
    image = joint.means[[0, 1, 2]] + 0.5 * volumes(3, 2, seed=1)
    label = 2 * volumes(3, 3, seed=2)
    exact = [
        MixtureDenoiser(path, joint.maps, f64([0.0] * 3), joint.posterior(image[i]))(label[i : i + 1], t[i])
        for i in range(3)
    ]
    torch.testing.assert_close(condition(joint, "image", image)(label, t), torch.cat(exact), rtol=1e-10, atol=1e-12)


@on_paths("Flow", "Cosine")
def test_segmentation_in_one_evaluation(path):
    """With a clean image, a label of pure noise is answered by the posterior mean of the label."""
    joint = DenseMixture(path)
    image, noise = joint.means[:2] + 0.5 * volumes(2, 2), volumes(2, 3, seed=1)
    exact = torch.stack([torch.einsum("k,kcv->cv", joint.posterior(v), joint.maps) for v in image])
    torch.testing.assert_close(condition(joint, "image", image)(noise, path.t_noise), exact, rtol=1e-12, atol=1e-12)
    times = torch.stack([f64(path.span[0]), path.t_noise])[None]
    torch.testing.assert_close(joint(torch.cat([image, noise], 1), times)[:, 2:], exact, rtol=1e-12, atol=1e-12)


@on_paths()
@pytest.mark.parametrize("k", [0, 1, 2])
def test_an_image_given_a_label(path, k):
    """The Gaussian of that label map alone."""
    joint, t, x = DenseMixture(path), times_between(path, 3), volumes(3, 2)
    exact = MixtureDenoiser(path, joint.means[k : k + 1], joint.variances[k : k + 1], f64([1.0]))(x, t)
    conditional = condition(joint, "label", joint.maps[k : k + 1])
    torch.testing.assert_close(conditional(x, t), exact, rtol=1e-10, atol=1e-12)


@on_paths("Flow", "Cosine")
def test_an_image_of_an_unknown_label(path):
    joint, t, x = DenseMixture(path), times_between(path, 3), volumes(3, 2)
    exact = MixtureDenoiser(path, joint.means, joint.variances, joint.weights)(x, t)
    torch.testing.assert_close(marginalize(joint, "label")(x, t), exact, rtol=1e-10, atol=1e-12)
    label = MixtureDenoiser(path, joint.maps, f64([0.0] * 3), joint.weights)(volumes(3, 3), t)
    torch.testing.assert_close(marginalize(joint, "image")(volumes(3, 3), t), label, rtol=1e-10, atol=1e-12)


@on_paths("Flow", "Cosine")
@pytest.mark.parametrize(("known", "unknown", "rest"), list(permutations("abc")))
def test_three_groups(path, known, unknown, rest):
    joint = three(path)
    channels = {g.name: g.channels for g in joint.groups}
    t, x, value = path.time(f64(0.8)), volumes(2, channels[rest]), volumes(1, channels[known], seed=1)
    given = joint.dense.given(joint.entries(known), value.flatten())
    exact = given.part(joint.entries(rest)[~joint.entries(known)])
    exact = exact.denoise(x.flatten(1), path.alpha(t), path.sigma(t)).reshape(x.shape)
    first = condition(marginalize(joint, unknown), known, value)
    second = marginalize(condition(joint, known, value), unknown)
    for nested in (first, second):
        torch.testing.assert_close(nested(x, t), exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pinned", ["a", "b", "c"])
def test_the_remaining_groups_keep_their_times(pinned):
    joint, path = three(Flow()), Flow()
    rest = [g for g in joint.groups if g.name != pinned]
    x, value, t = volumes(2, sum(g.channels for g in rest)), volumes(1, 4)[:, :1], f64([[0.2, 0.7], [0.5, 0.3]])
    value = value.expand(1, {g.name: g.channels for g in joint.groups}[pinned], VOXELS)
    conditional = condition(joint, pinned, value)
    assert conditional.groups == tuple(rest)
    dense, known = joint.dense.given(joint.entries(pinned), value.flatten()), joint.entries(pinned)
    owner = torch.unique(joint.owner()[~known], return_inverse=True)[1]
    exact = [
        dense.denoise(v.flatten()[None], path.alpha(s)[owner], path.sigma(s)[owner]) for v, s in zip(x, t, strict=True)
    ]
    torch.testing.assert_close(conditional(x, t), torch.cat(exact).reshape(x.shape), rtol=1e-10, atol=1e-10)


@on_paths("VP", "EDM", "Flow", "Discrete")
def test_a_row_of_times_for_each_volume(path):
    joint, x = two(path), volumes(3, 3)
    t = torch.stack([times_between(path, 3), times_between(path, 3).flip(0)], dim=1)
    for view in (joint.__call__, joint.score, joint.noise, joint.velocity):
        each = torch.cat([view(x[i : i + 1], t[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(view(x, t), each, rtol=1e-11, atol=1e-11)
        # One row is for all volumes, and one number for all groups.
        torch.testing.assert_close(view(x, t[:1]), view(x, t[:1].expand(3, -1)), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(view(x, t[0, 0]), view(x, t[:1, :1].expand(3, 2)), rtol=1e-11, atol=1e-11)


@on_paths("VP", "EDM", "Flow", "Discrete")
def test_tweedie_with_a_time_for_each_group(path):
    joint, t = two(path), torch.stack([times_between(path, 3), times_between(path, 3).flip(0)], dim=1)
    x = volumes(3, 3).requires_grad_()
    log_prob = sum(joint.noisy(times).log_prob(v.flatten()) for v, times in zip(x, t, strict=True))
    score = torch.autograd.grad(log_prob, x)[0]
    x = x.detach()
    torch.testing.assert_close(joint.score(x, t), score, rtol=1e-9, atol=1e-10)

    def channels(coefficient):
        return coefficient[:, [0, 0, 1], None]

    torch.testing.assert_close(joint.noise(x, t), -channels(path.sigma(t)) * score, rtol=1e-9, atol=1e-10)
    velocity = channels(path.drift(t)) * x - 0.5 * channels(path.diffusion(t)) * score
    torch.testing.assert_close(joint.velocity(x, t), velocity, rtol=1e-9, atol=1e-9)


@on_paths("VP", "EDM", "Flow")
def test_sampling_a_conditional_lands_where_its_ode_does(path):
    joint, value = two(path), volumes(1, 1, seed=1)
    times = log_uniform_times(path, 100, 0.05, 20.0)
    x = path.sigma(times[0]) * volumes(2, 2)
    exact = joint.dense.given(joint.entries("label"), value.flatten())
    exact = exact.transport(x.flatten(1), path, times[0], times[-1]).reshape(x.shape)
    # Third order: 100 steps of 0.06 in the logarithm of the ratio.
    y = sample(condition(joint, "label", value), x, times, DPMSolver(order=3))
    torch.testing.assert_close(y, exact, rtol=0, atol=1e-4)


def elementwise(x, ratios):
    """A network that knows its groups by their channels: one channel, then two, then three, with a ratio each."""
    return torch.tanh(x) + ratios.repeat_interleave(torch.tensor([1, 2, 3]), dim=1)[..., None].atan()


def net_groups():
    return [Group("a", 1, sigma_data=0.2), Group("b", 2, sigma_data=1.5), Group("c", 3, True, sigma_data=0.7)]


@on_paths()
def test_a_network_of_several_noise_levels_is_one_of_each(path):
    t = torch.stack([times_between(path, 4).roll(k) for k in range(3)], dim=1)
    x, groups = normal(4, 6, 5), net_groups()
    joint = JointNetDenoiser(elementwise, path, groups)
    d, outputs = joint(x, t), joint.outputs(x, t)
    for k, (group, part) in enumerate(joint.slices().items()):
        sigma_data = groups[k].sigma_data
        if group == "c":
            n = torch.sqrt(path.alpha(t[:, k]) ** 2 * sigma_data**2 + path.sigma(t[:, k]) ** 2).reshape(-1, 1, 1)
            alpha, sigma = (level(t[:, k]).reshape(-1, 1, 1) for level in (path.alpha, path.sigma))
            evidence = torch.where(sigma > 0, alpha * x[:, part] / sigma**2, 0.0)
            logits = torch.tanh(x[:, part] / n) + path.ratio(t[:, k]).reshape(-1, 1, 1).atan() + evidence
            torch.testing.assert_close(outputs[k], logits, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(d[:, part], logits.softmax(1), rtol=1e-12, atol=0)
            torch.testing.assert_close(d[:, part].sum(1), torch.ones(4, 5, dtype=torch.float64), rtol=1e-14, atol=0)
        else:
            alone = NetDenoiser(
                lambda v, r: torch.tanh(v) + r.reshape(-1, 1, 1).atan(), path, "edm", sigma_data, path.ratio
            )
            torch.testing.assert_close(d[:, part], alone(x[:, part], t[:, k]), rtol=1e-12, atol=1e-13)
            torch.testing.assert_close(outputs[k], d[:, part], rtol=0, atol=0)


@pytest.mark.parametrize("path", [EDM(), VP(), Flow()], ids=["EDM", "VP", "Flow"])
@pytest.mark.parametrize("ratio", [0.05, 0.7, 3.0, 40.0])
def test_a_network_that_knows_the_prior_alone_is_the_exact_denoiser_of_independent_labels(path, ratio):
    """Voxels drawn on their own from the unit vectors with probabilities pi: a mixture of points, in closed form."""
    pi = f64([0.5, 0.2, 0.3])
    groups = [Group("label", 3, categorical=True, sigma_data=0.3)]
    joint = JointNetDenoiser(lambda x, r: pi.log().reshape(1, 3, 1).expand_as(x), path, groups)
    t = path.time(f64(ratio))
    x = path.alpha(t) * torch.eye(3, dtype=torch.float64)[None] + path.sigma(t) * normal(1, 3, 3)
    points = torch.eye(3, dtype=torch.float64)
    squares = (x[0].T[:, None] - path.alpha(t) * points[None]).square().sum(2)
    p = (pi.log() - squares / (2 * path.sigma(t) ** 2)).softmax(1)
    torch.testing.assert_close(joint(x, t)[0].T, p, rtol=1e-10, atol=1e-12)


def test_a_clean_group_passes_through():
    """c_skip = 1 and c_out = 0 at zero noise, whatever the network says."""
    joint, x = JointNetDenoiser(elementwise, Flow(), net_groups()), normal(2, 6, 5)
    d = joint(x, f64([[0.0, 0.5, 1.0]]))
    torch.testing.assert_close(d[:, :1], x[:, :1], rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    ("dtype", "told"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_the_network_is_told_a_ratio_for_each_volume_and_group(dtype, told):
    calls, x = [], normal(2, 6, 5).to(dtype)

    def network(x, ratios, **cond):
        calls.append((x, ratios, cond))
        return x

    path, table = VP(), f64([[0.0, 0.3, 1.0], [0.2, 0.6, 0.9]])
    joint = JointNetDenoiser(network, path, net_groups())
    for t in (f64(0.3), table[:1], table):
        joint(x, t, context=1)
        torch.testing.assert_close(calls[-1][1], path.ratio(t).expand(2, 3).to(told), rtol=0, atol=0)
        assert calls[-1][0].dtype is dtype
        assert calls[-1][2] == {"context": 1}
    JointNetDenoiser(network, path, net_groups(), time_map=lambda t: 1000 * t)(x, table)
    torch.testing.assert_close(calls[-1][1], (1000 * table).to(told), rtol=0, atol=0)
    condition(joint, "a", normal(1, 1, 5))(x[:, 1:], table[:, 1:], context=2)
    assert calls[-1][2] == {"context": 2}
    assert calls[-1][1][:, 0].tolist() == [0, 0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("groups", [net_groups(), [Group("a", 3, True), Group("b", 3, True)]], ids=["mixed", "labels"])
def test_the_state_keeps_its_dtype(dtype, tolerance, groups):
    joint, x = JointNetDenoiser(lambda x, ratios: torch.tanh(x), Flow(), groups), normal(2, 6, 5).to(dtype)
    for t in (f64(0.5), f64([[0.3, 0.6, 0.5], [0.5, 0.4, 0.7]])[:, : len(groups)]):
        for view in (joint.__call__, joint.score, joint.noise, joint.velocity):
            exact = view(x.double(), t)
            assert view(x, t).dtype is dtype
            torch.testing.assert_close(view(x, t).double(), exact, rtol=0, atol=tolerance * float(exact.abs().max()))
    assert sample(joint, x, f64([0.9, 0.5, 0.1]), DPMSolver()).dtype is dtype


def test_logits_are_compared_in_float32_at_least():
    """A cross-entropy of bfloat16 logits would be wrong in the third digit."""
    joint = JointNetDenoiser(lambda x, ratios: torch.tanh(x), Flow(), net_groups())
    assert joint.outputs(normal(2, 6, 5).bfloat16(), f64(0.5))[2].dtype is torch.float32
    assert joint.outputs(normal(2, 6, 5), f64(0.5))[2].dtype is torch.float64


def test_one_group_takes_times_like_any_denoiser():
    path, x, t = VP(), volumes(3, 2), times_between(VP(), 3)
    single = DenseJoint(path, [Group("image", 2)])
    for view in (single.__call__, single.score, single.noise, single.velocity):
        torch.testing.assert_close(view(x, t), view(x, t[:, None]), rtol=0, atol=0)
        torch.testing.assert_close(view(x, t)[1:2], view(x[1:2], t[1]), rtol=1e-12, atol=1e-12)


def test_groups_are_values():
    assert Group("image", 2) == Group("image", 2, categorical=False, sigma_data=0.5) != Group("image", 3)
    assert len({Group("image", 2), Group("image", 2)}) == 1
    assert three(VP()).slices() == {"a": slice(0, 1), "b": slice(1, 3), "c": slice(3, 4)}


@pytest.mark.parametrize("pin", [lambda joint, name: condition(joint, name, volumes(1, 1)), marginalize])
def test_bad_groups_teach(pin):
    with pytest.raises(ValueError, match=r"no group 'mask' among \['image', 'label'\]"):
        pin(two(VP()), "mask")
    with pytest.raises(ValueError, match="'image' is the only group"):
        pin(DenseJoint(VP(), [Group("image", 2)]), "image")
    with pytest.raises(ValueError, match="'image' is the only group"):
        pin(marginalize(two(VP()), "label"), "image")


def test_bad_states_teach():
    joint, t = two(VP()), f64(0.5)
    for groups in ([], [Group("a", 1), Group("a", 2)]):
        with pytest.raises(ValueError, match="groups with different names"):
            DenseJoint(VP(), groups)
    with pytest.raises(ValueError, match=r"\['image', 'label'\] have 3 channels, the volume has shape \(1, 2, 2\)"):
        joint(volumes(1, 2), t)
    for times in (f64([0.5] * 3), f64([[0.5] * 3] * 3), f64([[0.5] * 2] * 2), f64([[[0.5]]])):
        with pytest.raises(ValueError, match=r"one number, or a table \(batch, 2\); got"):
            joint(volumes(3, 3), times)
        with pytest.raises(ValueError, match=r"one number, or a table \(batch, 2\); got"):
            joint.score(volumes(3, 3), times)
    for value in (volumes(1, 2), volumes(2, 1), normal(1, 1, VOXELS + 1)):
        with pytest.raises(ValueError, match=r"the group 'label' must have shape \(3, 1, 2\) here, its value has"):
            condition(joint, "label", value)(volumes(3, 2), t)
        with pytest.raises(ValueError, match=r"the group 'label' must have shape \(3, 1, 2\) here, its value has"):
            marginalize(joint, "label", value)(volumes(3, 2), t)
    with pytest.raises(ValueError, match=r"the network made \(2, 5, 5\) of a volume \(2, 6, 5\)"):
        JointNetDenoiser(lambda x, ratios: x[:, 1:], VP(), net_groups())(normal(2, 6, 5), t)
    several = JointNetDenoiser(lambda x, ratios: (x, 2 * x), VP(), net_groups())
    with pytest.raises(TypeError, match="the network must return one tensor, it returned tuple"):
        several(normal(2, 6, 5), t)


def test_each_of_several_outputs_is_read_as_the_only_one_would_be():
    path, x, t = VP(), normal(4, 6, 5), torch.stack([times_between(VP(), 4).roll(k) for k in range(3)], dim=1)
    several = JointNetDenoiser(lambda x, r: (elementwise(x, r), 2 * elementwise(x, r)), path, net_groups())
    for k, f in enumerate(several.raw(x, t)):
        alone = JointNetDenoiser(lambda x, r, k=k: (k + 1) * elementwise(x, r), path, net_groups())
        for found, expected in zip(several.interpret(f, x, t), alone.outputs(x, t), strict=True):
            assert torch.equal(found, expected)


def test_only_joint_denoisers_have_groups():
    plain = MixtureDenoiser(EDM(), torch.zeros(1, 1, 2), [1.0], [1.0])
    for ask in (lambda: condition(plain, "image", torch.zeros(1, 1, 2)), lambda: marginalize(plain, "image")):
        with pytest.raises(TypeError, match="only a joint denoiser has groups, got MixtureDenoiser"):
            ask()
