"""Features of the noise level keep their rank and change smoothly; the trap they avoid is a trap."""

import math

import pytest
import torch
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch.nn.functional import cosine_similarity

from voxscore.networks.noise_level import NoiseEmbedding, noise_features


def karras_grid(n=256, smallest=0.002, largest=80.0, rho=7):
    """Eq. 5 of Karras et al."""
    i = torch.arange(n, dtype=torch.float64) / (n - 1)
    return (largest ** (1 / rho) + i * (smallest ** (1 / rho) - largest ** (1 / rho))) ** rho


def effective_rank(features):
    s = torch.linalg.svdvals(features.double()).square()
    p = s[s > 0] / s.sum()
    return math.exp(-(p * p.log()).sum())


def sinusoid(u):
    """MONAI's embedding of a step number, the one of DDPM."""
    return get_timestep_embedding(u.float(), 64)


def test_features_keep_their_rank_and_change_smoothly():
    grid = karras_grid()
    features = noise_features(grid)
    assert features.shape == (256, 64)
    assert effective_rank(features) == pytest.approx(23.2, abs=0.1)
    assert cosine_similarity(features, noise_features(1.01 * grid)).min() > 0.99
    assert cosine_similarity(features, noise_features(1.1 * grid)).max() < 0.9


def test_the_sinusoid_of_step_numbers_is_a_trap():
    """EDM's ln(sigma) / 4 loses the level; the remedy 250 ln(sigma) keeps it, but roughly."""
    grid = karras_grid()
    assert effective_rank(sinusoid(grid.log() / 4)) < 1.3
    assert effective_rank(sinusoid(250 * grid.log())) > 20
    assert cosine_similarity(sinusoid(250 * grid.log()), sinusoid(250 * (1.01 * grid).log())).max() < 0.9


def test_similarity_depends_on_the_ratio_of_two_levels_alone():
    grid = karras_grid()
    for factor in (1.0, 1.3, 4.0):
        kernel = (noise_features(grid) * noise_features(factor * grid)).mean(-1)
        torch.testing.assert_close(kernel, kernel[:1].expand_as(kernel), rtol=0, atol=1e-12)
    torch.testing.assert_close(noise_features(grid).square().mean(-1), torch.ones(256, dtype=torch.float64))


def test_one_feature_grows_with_the_noise():
    """Otherwise far levels could be told apart from near ones only by chance."""
    grid = torch.logspace(-3, 3, 500, dtype=torch.float64)
    assert (noise_features(grid).diff(dim=0) > 0).all(0).any()


def test_clean_and_pure_noise_are_finite_and_far_from_all_others():
    ratio = torch.tensor([0.0, 1e-3, 0.002, 80.0, 1e3, math.inf], dtype=torch.float64, requires_grad=True)
    features = noise_features(ratio)
    (gradient,) = torch.autograd.grad(features.sum(), ratio)
    assert gradient.isfinite().all()
    torch.testing.assert_close(features[0], features[1])
    torch.testing.assert_close(features[5], features[4])
    kernel = features @ features.T / 64
    assert kernel[0, 2:].max() < 0.5
    assert kernel[5, :4].max() < 0.5


@pytest.mark.parametrize("n_times", [1, 2])
def test_a_fresh_embedding_keeps_the_rank(n_times):
    torch.manual_seed(0)
    t = karras_grid().float()[:, None].expand(-1, n_times)
    e = NoiseEmbedding(n_times, 128)(t, None, 256).detach()
    assert effective_rank(e) > 15
    assert effective_rank(e - e.mean(0)) > 15


def test_the_level_is_read_before_anything_is_rounded():
    """In bfloat16 1.000 and 1.003 are one number."""
    torch.manual_seed(0)
    embedding = NoiseEmbedding(1, 64).bfloat16()
    e = embedding(torch.tensor([1.0, 1.003]), None, 2)
    assert e.dtype == torch.bfloat16
    assert not torch.equal(e[0], e[1])


def test_embedding_is_its_formula():
    torch.manual_seed(0)
    embedding = NoiseEmbedding(2, 16, cond_features=3).double()
    t, cond = torch.rand(4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    f = torch.cat([noise_features(t[:, 0]), noise_features(t[:, 1])], dim=1)
    (w1, b1), (w2, b2) = ((m.weight, m.bias) for m in (embedding.hidden, embedding.output))
    h = f @ w1.T + b1
    h = h * torch.sigmoid(h) @ w2.T + b2 + cond @ embedding.cond.weight.T
    torch.testing.assert_close(embedding(t, cond, 4), h * torch.sigmoid(h), rtol=1e-12, atol=1e-12)


def test_every_way_to_write_a_level():
    torch.manual_seed(0)
    one, two = NoiseEmbedding(1, 8), NoiseEmbedding(2, 8, cond_features=3)
    rows = one(torch.full((3, 1), 0.3), None, 3)
    for t in (torch.tensor(0.3), torch.tensor([0.3]), torch.full((3,), 0.3)):
        torch.testing.assert_close(one(t, None, 3).expand(3, 8), rows)
    rows = two(torch.tensor([[0.3, 7.0]]).expand(3, 2), None, 3)
    torch.testing.assert_close(two(torch.tensor([0.3, 7.0]), None, 3).expand(3, 8), rows)
    assert not torch.allclose(two(torch.tensor([7.0, 0.3]), None, 3), rows, atol=1e-3)
    clean = two(torch.zeros(3, 2), torch.zeros(3, 3), 3)
    torch.testing.assert_close(two(None, None, 3).expand(3, 8), clean)


@pytest.mark.parametrize(
    ("n_times", "shape"), [(1, (2,)), (1, (3, 2)), (1, (3, 1, 1)), (2, ()), (2, (3,)), (2, (2, 3)), (2, (1, 2))]
)
def test_another_shape_of_level_is_refused(n_times, shape):
    with pytest.raises(ValueError, match=r"t has shape .*, expected one of .* a batch of 3 with n_times") as error:
        NoiseEmbedding(n_times, 8)(torch.ones(shape), None, 3)
    assert str(shape) in str(error.value)
    assert str((3, n_times)) in str(error.value)


def test_another_shape_of_cond_is_refused():
    embedding = NoiseEmbedding(1, 8, cond_features=3)
    for shape in ((3,), (1, 3), (2, 4)):
        with pytest.raises(ValueError, match=r"cond has shape .*, expected \(2, 3\)"):
            embedding(None, torch.ones(shape), 2)
    with pytest.raises(ValueError, match="cond_features=0"):
        NoiseEmbedding(1, 8)(None, torch.ones(2, 3), 2)
