"""The denoising objective is the loss it says, at levels and noise that follow from the seed of the epoch."""

import torch
from torch import Generator

from voxscore.diffusion import EDM, EDMWeight, Gaussian, GaussianDenoiser, LogNormalTimes, NetDenoiser, denoising_loss
from voxscore.training import DenoisingObjective

VARIANCE = 0.16


def objective(std=0.5):
    gaussian = Gaussian.fit(torch.randn(50, 1, 4, 4, generator=Generator().manual_seed(0)), "diagonal")
    return DenoisingObjective(GaussianDenoiser(EDM(), gaussian), LogNormalTimes(0.0, std), EDMWeight(0.5))


def volumes(batch=6):
    return torch.randn(batch, 1, 4, 4, generator=Generator().manual_seed(1))


def test_the_loss_of_each_volume_at_its_level_and_noise():
    loss = objective()
    torch.manual_seed(7)
    found = loss(volumes())
    torch.manual_seed(7)
    generator = Generator().manual_seed(int(torch.randint(2**62, ())))
    t = LogNormalTimes(0.0, 0.5)(EDM(), 6, generator)
    noise = torch.randn(volumes().shape, generator=generator)
    expected = denoising_loss(loss.denoiser, volumes(), t, noise, EDMWeight(0.5))
    torch.testing.assert_close(found, expected)
    assert len(set(t.tolist())) == 6  # a level for each volume


def test_the_network_is_told_what_is_known_of_each_volume():
    told = []

    def network(x, t, cond):
        told.append(cond)
        return torch.zeros_like(x)

    loss = DenoisingObjective(NetDenoiser(network, EDM(), "x0"), LogNormalTimes(0.0, 0.5), lambda path, t: 1 + 0 * t)
    cond = torch.arange(12.0).reshape(6, 2)
    torch.testing.assert_close(loss(volumes(), cond=cond), volumes().square().flatten(1).mean(1))
    assert torch.equal(*told, cond)


def test_an_epoch_repeats_itself_by_its_seed_and_no_step_repeats_another():
    loss = objective()
    torch.manual_seed(3)
    first, second = loss(volumes()), loss(volumes())
    torch.manual_seed(3)
    torch.testing.assert_close(loss(volumes()), first)
    assert not torch.allclose(first, second)
