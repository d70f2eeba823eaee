"""The joint objective is the sum it says, at levels and noise that follow from the seed of the epoch."""

import pytest
import torch
from monai.bundle import ConfigParser
from monai.losses import DiceLoss
from torch import Generator, nn

from voxscore.bundles import find_bundle
from voxscore.diffusion import (
    EDM,
    EDMWeight,
    Flip,
    Flow,
    Gaussian,
    Group,
    GroupTimes,
    JointNetDenoiser,
    ScoreAug,
    joint_loss,
)
from voxscore.networks import DeepOutputs, JointScoreUNet, ScoreUNet
from voxscore.training import JointObjective, export_weights, initialized

GROUPS = [Group("image", 1, sigma_data=1.0), Group("label", 2, categorical=True, sigma_data=0.3)]


def denoiser(**kwargs):
    torch.manual_seed(1)
    network = ScoreUNet(3, 3, 3, (8, 8), n_times=2, **kwargs)
    torch.nn.init.normal_(network.head[-1].weight, std=0.1)  # it starts at zero and would have nothing to say
    return JointNetDenoiser(network, EDM(), GROUPS)


def volumes(batch=4):
    generator = Generator().manual_seed(0)
    label = torch.randn(batch, 1, 6, 4, 5, generator=generator) > 0.5
    return torch.cat([torch.randn(batch, 1, 6, 4, 5, generator=generator), ~label, label], dim=1).float()


def drawn(times, batch):
    """What the objective draws after `torch.manual_seed(7)`."""
    torch.manual_seed(7)
    generator = Generator().manual_seed(int(torch.randint(2**62, ())))
    return times(EDM(), batch, generator), generator


def test_it_is_the_weighted_sum():
    model, x0 = denoiser(), volumes()
    times = GroupTimes([[0.5, ["shared", "shared"]], [0.5, ["own", "own"]]])
    t, generator = drawn(times, 4)
    found = joint_loss(model, x0, t, torch.randn(x0.shape, generator=generator))
    dice = DiceLoss(include_background=False, softmax=True, reduction="none")(found.outputs[1], x0[:, 1:])
    expected = 0.7 * found.losses[:, 0] + 2.0 * (found.losses[:, 1] + 0.5 * dice.flatten(1).mean(1))
    torch.manual_seed(7)
    torch.testing.assert_close(JointObjective(model, times, [0.7, 2.0], dice_weight=0.5)(x0), expected)


def test_a_seed_is_a_loss_and_augmentation_reaches_the_network():
    augmentation = ScoreAug([Flip()])
    model, x0 = denoiser(cond_features=augmentation.features), volumes()
    objective = JointObjective(model, GroupTimes([[1.0, ["own", "own"]]]), [1.0, 1.0], augmentation)
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        runs.append(objective(x0).detach())
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[0], runs[2])
    told = []
    model.net.embed.cond.register_forward_pre_hook(lambda module, inputs: told.append(inputs[0]))
    objective(x0)
    assert told[0].shape == (4, 3)
    assert told[0].any()


@pytest.mark.parametrize(("clean", "channel"), [(0, slice(0, 1)), (1, slice(1, 3))])
def test_a_clean_group_costs_nothing(clean, channel):
    """Its part of the last layer gets no gradient, the Dice loss included."""
    modes = ["own", "own"]
    modes[clean] = "clean"
    model = denoiser()
    JointObjective(model, GroupTimes([[1.0, modes]]), [1.0, 1.0])(volumes()).sum().backward()
    gradient = model.net.head[-1].weight.grad
    assert not gradient[channel].any()
    assert gradient.isfinite().all()
    assert gradient.any()


def test_it_trains():
    """A few steps on one batch bring its loss down, at the same levels and noise."""
    model, x0 = denoiser(), volumes()
    objective = JointObjective(model, GroupTimes([[1.0, ["shared", "shared"]]]), [1.0, 1.0])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        torch.manual_seed(7)
        loss = objective(x0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_a_weight_for_each_group():
    with pytest.raises(ValueError, match="a weight for each of 2 groups"):
        JointObjective(denoiser(), GroupTimes([[1.0, ["own", "own"]]]), [1.0])


# ---------------------------------------------------------------------------------------- dual self-distillation

SHARED = GroupTimes([[1.0, ["shared", "shared"]]])


class Said(nn.Module):
    """A network that says the same of every volume; its outputs are its parameters, in the order of `DeepOutputs`."""

    def __init__(self, main, decoder=(), encoder=()):
        super().__init__()
        self.main, self.calls = nn.Parameter(main.clone()), 0
        self.decoder, self.encoder = (nn.ParameterList(z.clone() for z in side) for side in (decoder, encoder))

    def forward(self, x, t):
        self.calls += 1
        heads = tuple(self.decoder), tuple(self.encoder)
        return DeepOutputs(self.main, *heads) if any(heads) else self.main


def outputs(n, dtype=torch.float64):
    generator = Generator().manual_seed(5)
    return [torch.randn(4, 3, 6, 4, 5, generator=generator, dtype=dtype) for _ in range(n)]


def said(*heads, dtype=torch.float64):
    """One main output, and as many heads of the decoder and of the encoder as `heads` says."""
    z = outputs(1 + sum(heads), dtype)
    return Said(z[0], z[1 : 1 + heads[0]], z[1 + heads[0] :])


def loss_of(network, x0, times=SHARED, path=None, **kwargs):
    torch.manual_seed(7)
    return JointObjective(JointNetDenoiser(network, path or EDM(), GROUPS), times, [0.7, 2.0], **kwargs)(x0)


def gradients(network, *args, **kwargs):
    """Of the sum of all losses, by every parameter; zeros where there is none."""
    loss = loss_of(network, *args, **kwargs).sum()
    found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, materialize_grads=True)
    return dict(zip((name for name, _ in network.named_parameters()), found, strict=True))


def test_heads_that_agree_cost_their_number():
    """Without anything to distil, every head of the decoder costs what the main output does, the encoder's nothing."""
    x0, (z,) = volumes().double(), outputs(1)
    plain = loss_of(Said(z), x0)
    for weight in (0.0, 1.0, 100.0):
        heads = loss_of(Said(z, [z] * 3, [z] * 2), x0, distillation_weight=weight)
        torch.testing.assert_close(heads, 4 * plain, rtol=1e-12, atol=0)


@pytest.mark.parametrize("path", [EDM(), Flow()], ids=["EDM", "Flow"])
def test_distillation_is_its_formula(path):
    """The image's is told by denoised images and their EDM weight here, the label's by probabilities."""
    x0, network = volumes().double(), said(3, 2)
    times = GroupTimes([[0.5, ["shared", "shared"]], [0.5, ["own", "noise"]]])
    model = JointNetDenoiser(network, path, GROUPS)
    torch.manual_seed(7)
    generator = Generator().manual_seed(int(torch.randint(2**62, ())))
    t = times(path, 4, generator)
    alpha, sigma = model.levels(x0, t)
    x = alpha * x0 + sigma * torch.randn(x0.shape, generator=generator).to(x0)
    weight = EDMWeight(GROUPS[0].sigma_data)(path, t[:, 0])
    expected = sum(loss_of(Said(z), x0, times, path) for z in (network.main, *network.decoder))
    for teacher, *students in (network.decoder, network.encoder):
        image, logits = model.interpret(teacher, x, t)
        p = (logits / 2).softmax(1)
        for student in students:
            d, z = model.interpret(student, x, t)
            expected = expected + 0.3 * 0.7 * weight * (d - image).square().flatten(1).mean(1)
            kl = (p * (p / (z / 2).softmax(1)).log()).sum(1)
            expected = expected + 0.3 * 2.0 * 2**2 * kl.flatten(1).mean(1)
    found = loss_of(network, x0, times, path, distillation_weight=0.3, temperature=2.0)
    # The divergence is computed in float32.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_teachers_learn_nothing_from_their_students():
    x0 = volumes().double()
    alone, taught = (gradients(said(3, 3), x0, distillation_weight=weight) for weight in (0.0, 1.0))
    for name in alone:
        student = name not in ("main", "decoder.0", "encoder.0")
        assert torch.equal(alone[name], taught[name]) != student
    assert not taught["encoder.0"].any()


@pytest.mark.parametrize(("clean", "channels"), [(0, slice(0, 1)), (1, slice(1, 3))])
def test_a_clean_group_costs_its_heads_nothing(clean, channels):
    """Volume by volume: of the two regimes drawn here each head has its gradient where its group is noisy, and only
    there."""
    modes = ["own", "own"]
    modes[clean] = "clean"
    times = GroupTimes([[0.5, modes], [0.5, ["own", "own"]]])
    x0, network = volumes().double(), said(2, 2)
    silent = EDM().sigma(drawn(times, 4)[0][:, clean]) == 0
    assert 0 < silent.sum() < 4
    loss, found = loss_of(network, x0, times), gradients(network, x0, times)
    for name in ("main", "decoder.0", "decoder.1", "encoder.1"):
        assert found[name].isfinite().all()
        assert torch.equal(found[name][:, channels].flatten(1).any(1), ~silent)
    with torch.no_grad():
        for z in network.parameters():
            z[:, channels] *= 1.1
    assert torch.equal(loss_of(network, x0, times) == loss, silent)


def test_one_evaluation_serves_all_heads():
    network = said(3, 3)
    loss_of(network, volumes().double())
    assert network.calls == 1


def test_autocast_rounds_nothing_but_the_network():
    """What is made of the outputs holds no matrix product that autocast would compute in bfloat16."""
    x0, network = volumes(), said(2, 2, dtype=torch.float32)
    exact = loss_of(network, x0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss_of(network, x0), exact)


def headed(seed=1):
    """A network with heads, no output of which is 0."""
    torch.manual_seed(seed)
    network = JointScoreUNet(3, 1, 2, channels=(8, 8, 8), deep_heads=True)
    nn.init.normal_(network.head[-1].weight, std=0.1)
    return network


def test_bfloat16_is_float32_to_its_digits():
    x0, network = volumes(2), headed()
    exact = loss_of(network, x0)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_of(network, x0)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, exact, rtol=2**-8, atol=0)


def test_every_head_learns():
    """Also what DistributedDataParallel asks of a network."""
    network, x0 = headed(), volumes(2)
    for weight in (0.0, 1.0):
        network.zero_grad()
        loss_of(network, x0, distillation_weight=weight).mean().backward()
        assert [n for n, p in network.named_parameters() if p.grad is None] == []
    assert [n for n, p in network.deep_heads.named_parameters() if not p.grad.any()] == []


def steps(objective, optimizer, seeds):
    for seed in seeds:
        torch.manual_seed(seed)
        optimizer.zero_grad()
        objective(volumes(2)).mean().backward()
        optimizer.step()


def test_a_resumed_training_is_the_unbroken_one():
    def begun(seed=1):
        objective = JointObjective(JointNetDenoiser(headed(seed), EDM(), GROUPS), SHARED, [1.0, 2.0])
        return objective, torch.optim.Adam(objective.parameters(), lr=1e-2)

    whole, broken, resumed = begun(), begun(), begun(seed=2)
    steps(*whole, (10, 11, 12))
    steps(*broken, (10, 11))
    for new, old in zip(resumed, broken, strict=True):
        new.load_state_dict(old.state_dict())
    steps(*resumed, (12,))
    state = resumed[0].state_dict()
    assert all(torch.equal(v, state[k]) for k, v in whole[0].state_dict().items())
    first = begun()[0].state_dict()
    assert not all(torch.equal(v, first[k]) for k, v in state.items())


def test_exported_weights_have_no_heads_and_start_a_network_that_has(tmp_path):
    network, x = headed().eval(), torch.randn(1, 1, 9, 8, 6)
    torch.save({"objects": {"ema": network.state_dict()}}, tmp_path / "checkpoint.pt")
    export_weights(tmp_path / "checkpoint.pt", tmp_path)
    plain = initialized(JointScoreUNet(3, 1, 2, channels=(8, 8, 8)), tmp_path / "model.pt").eval()
    assert torch.equal(plain(x), network(x))
    other = headed(seed=2)
    heads = {k: v.clone() for k, v in other.deep_heads.state_dict().items()}
    assert torch.equal(initialized(other, tmp_path / "model.pt").eval()(x), plain(x))
    assert all(torch.equal(v, heads[k]) for k, v in other.deep_heads.state_dict().items())


@pytest.mark.parametrize("distillation", [False, True])
def test_the_recipe_switches_heads(distillation):
    parser = ConfigParser(ConfigParser.load_config_file(find_bundle("hippocampus_synthesis").config("train")))
    assert parser["distillation"] is False
    parser.update({"network_def#channels": [8, 8, 8], "device": "$torch.device('cpu')", "distillation": distillation})
    generator = Generator().manual_seed(0)
    parser["gaussian"] = Gaussian.fit(torch.randn(4, 4, 8, 8, 8, generator=generator), "fourier")
    objective = parser.get_parsed_content("objective")
    network = objective.denoiser.net
    assert (network.deep_heads is not None) == distillation
    objective(torch.zeros(1, 4, 8, 8, 8)).mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []
