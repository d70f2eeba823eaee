"""Any size in, the same size out; gates and heads where they belong, and nowhere else."""

import pytest
import torch

from voxscore.networks import ConcurrentSE, DeepOutputs, ScoreUNet

SMALL = (8, 16, 24)


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 5, 2), (8, 8, 8), (9, 4, 13)])
@pytest.mark.parametrize("gate", ["cse", "sse", "scse", None])
def test_any_size_in_same_size_out_3d(size, gate):
    network = ScoreUNet(3, 2, 3, SMALL, gate).eval()
    assert network(torch.randn(1, 2, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("size", [(7, 10), (16, 16)])
def test_any_size_in_same_size_out_2d(size):
    assert ScoreUNet(2, 1, 2, SMALL).eval()(torch.randn(2, 1, *size)).shape == (2, 2, *size)


def test_padding_equals_padding_outside():
    torch.manual_seed(0)
    network, x = ScoreUNet(3, 1, 2, SMALL).eval(), torch.randn(1, 1, 6, 7, 5)
    padded = torch.nn.functional.pad(x, (0, 3, 0, 1, 0, 2), mode="replicate")
    torch.testing.assert_close(network(x), network(padded)[..., :6, :7, :5])


def test_a_gate_after_every_block():
    network = ScoreUNet(3, 1, 2, SMALL, "scse")
    gates = [m for m in network.modules() if isinstance(m, ConcurrentSE)]
    assert len(gates) == len(SMALL) + len(SMALL) - 1


def test_batch_members_do_not_mix():
    torch.manual_seed(0)
    network, x = ScoreUNet(3, 1, 2, SMALL).eval(), torch.randn(3, 1, 8, 8, 8)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), rtol=1e-4, atol=1e-5)


def test_heads_in_training_only():
    torch.manual_seed(0)
    network, x = ScoreUNet(3, 1, 3, SMALL, deep_heads=True), torch.randn(1, 1, 9, 8, 6)
    outputs = network(x)
    assert isinstance(outputs, DeepOutputs)
    assert len(outputs.decoder) == len(SMALL) - 1
    assert len(outputs.encoder) == len(SMALL) - 1
    assert {z.shape for z in (outputs.main, *outputs.decoder, *outputs.encoder)} == {(1, 3, 9, 8, 6)}
    plain = ScoreUNet(3, 1, 3, SMALL, deep_heads=False)
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("deep_heads.")})
    torch.testing.assert_close(network.eval()(x), plain.eval()(x), rtol=0, atol=0)
    torch.testing.assert_close(outputs.main, plain(x))


def test_every_parameter_learns():
    """Also what DistributedDataParallel asks of a network."""
    network = ScoreUNet(3, 1, 3, SMALL, deep_heads=True)
    outputs = network(torch.randn(1, 1, 8, 8, 8))
    sum(z.square().sum() for z in (outputs.main, *outputs.decoder, *outputs.encoder)).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


def test_bad_arguments_teach():
    with pytest.raises(ValueError, match="two levels"):
        ScoreUNet(3, 1, 2, (8,))
    for n_times in (-1, 3):
        with pytest.raises(ValueError, match=f"n_times is 0, 1 or 2, got {n_times}"):
            ScoreUNet(3, 1, 2, SMALL, n_times=n_times)
    with pytest.raises(ValueError, match="cond_features=3 needs n_times=1 or 2"):
        ScoreUNet(3, 1, 2, SMALL, cond_features=3)
    with pytest.raises(ValueError, match="three levels"):
        ScoreUNet(3, 1, 2, (8, 8), deep_heads=True)
    with pytest.raises(ValueError, match="'cse', 'sse', 'scse', None"):
        ScoreUNet(3, 1, 2, SMALL, "se")
    x = torch.randn(1, 1, 4, 4, 4)
    for extra in ({"t": torch.tensor(0.0)}, {"cond": torch.zeros(1, 3)}):
        with pytest.raises(ValueError, match="n_times=0 takes neither t nor cond"):
            ScoreUNet(3, 1, 2, SMALL)(x, **extra)
