"""The encoder's loss in closed form, and that it knows a volume again in another view."""

import math

import pytest
import torch
from torch.nn import functional as F

from voxscore.evaluation import SearchGrid, nt_xent, train_encoder

GRID = SearchGrid(1.0, (12, 12, 12), (20, 20, 20))


def smooth_noise(n, seed):
    noise = torch.randn(n, 1, 10, 10, 10, generator=torch.Generator().manual_seed(seed))
    volumes = F.interpolate(noise, size=GRID.shape, mode="trilinear")[:, 0]
    ranks = volumes.flatten(1).argsort(1).argsort(1) / (volumes[0].numel() - 1)
    return ranks.reshape(n, *GRID.shape)


def test_loss_in_closed_form():
    """Orthogonal pairs: of 2B - 1 others the one view has likeness 1 and the rest 0."""
    views = torch.eye(5)
    for temperature in (0.1, 1.0):
        expected = math.log(math.exp(1 / temperature) + 8) - 1 / temperature
        assert float(nt_xent(views, views, temperature)) == pytest.approx(expected, rel=1e-3)
    # Views that belong to others cost more than no likeness at all.
    assert nt_xent(views, views.roll(1, 0), 0.5) > math.log(9)


@pytest.fixture(scope="module")
def trained():
    volumes = smooth_noise(16, 0)
    return volumes, train_encoder(volumes, GRID, 0, steps=40)


def test_it_knows_mirrored_shifted_noisy_copies_again(trained):
    volumes, encoder = trained
    noise = 0.05 * torch.randn(volumes.shape, generator=torch.Generator().manual_seed(1))
    copies = volumes.roll(1, 2).flip(1) + noise
    references = encoder.features(volumes, GRID)
    torch.testing.assert_close(references.norm(dim=2), torch.ones(16, 8))
    likeness = encoder.likeness(encoder.features(copies, GRID), references)
    strangers = encoder.likeness(encoder.features(smooth_noise(16, 2), GRID), references)
    assert int((likeness.argmax(1) == torch.arange(16)).sum()) >= 12
    # In so few steps the features of all volumes still lie close together.
    assert 1 - likeness.diagonal().median() < 0.8 * (1 - strangers.amax(1).median())
    itself = encoder.likeness(references, references).diagonal()
    torch.testing.assert_close(itself, torch.ones(16))


def test_a_seed_makes_one_encoder_and_leaves_the_global_generator_alone():
    volumes = smooth_noise(6, 3)
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (train_encoder(volumes, GRID, seed, steps=2).features(volumes, GRID) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), before)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.05)
