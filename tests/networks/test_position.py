"""With position features a network knows where a voxel lies, from the centre of the volume it was given."""

import math

import pytest
import torch

from voxscore.networks import ScoreUNet


def features(network, *size):
    """What the position layer is shown of a volume of this size, cut to it: (features, *size)."""
    seen = []
    with network.position.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])):
        network(torch.zeros(2, 1, *size))
    assert len(seen[0]) == 1  # shared by the batch
    return seen[0][(0, slice(None), *map(slice, size))]


@pytest.mark.parametrize("size", [(8, 16), (7, 13), (9, 8, 11)])
def test_they_are_the_formula_whatever_the_padding(size):
    dims = len(size)
    found = features(ScoreUNet(dims, 1, 1, (8, 8, 8), position=True), *size)
    expected = []
    for axis, n in enumerate(size):
        u = torch.arange(n) - (n - 1) / 2
        shape = [n if k == axis else 1 for k in range(dims)]
        for wavelength in (8, 16, 32, 64, 128):
            expected += [f(2 * math.pi * u / wavelength).reshape(shape).expand(size) for f in (torch.cos, torch.sin)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_only_with_them_a_constant_volume_gets_a_picture():
    """Away from the border, which a convolution's padding gives away."""
    inner = (0, 0, slice(12, 20), slice(12, 20))
    for position, uniform in ((False, True), (True, False)):
        torch.manual_seed(0)
        network = ScoreUNet(2, 1, 1, (4, 4), squeeze_excitation=None, position=position).eval()
        with torch.no_grad():
            picture = network(torch.ones(1, 1, 32, 32))[inner]
        # A transposed convolution repeats with a period of 2.
        assert torch.allclose(picture[:-2, :-2], picture[2:, 2:], atol=1e-5) == uniform


def test_they_learn():
    network = ScoreUNet(2, 1, 1, (8, 8), position=True)
    network(torch.randn(1, 1, 8, 8)).square().sum().backward()
    assert network.position.weight.grad.abs().min() > 0
