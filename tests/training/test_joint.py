"""The joint objective is the sum it says, at levels and noise that follow from the seed of the epoch."""

import pytest
import torch
from monai.losses import DiceLoss
from torch import Generator

from voxscore.diffusion import EDM, Flip, Group, GroupTimes, JointNetDenoiser, ScoreAug, joint_loss
from voxscore.networks import ScoreUNet
from voxscore.training import JointObjective

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
