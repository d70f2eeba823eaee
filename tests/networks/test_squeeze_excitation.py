"""The gates equal their published formulas, and cost what the papers say."""

import pytest
import torch
from monai.networks.blocks import ChannelSELayer
from monai.networks.nets import DynUNet

from voxscore.networks import ChannelSE, ConcurrentSE, SpatialSE

SIZES = {2: (5, 7), 3: (4, 3, 5)}


def count(module):
    return sum(p.numel() for p in module.parameters())


def channel_factors(se, x):
    """Eq. 2-3 of Roy et al., written out with the module's weights."""
    w1, w2 = se.fc[0], se.fc[2]
    z = x.flatten(2).mean(-1)
    s = torch.sigmoid(torch.relu(z @ w1.weight.T + w1.bias) @ w2.weight.T + w2.bias)
    return s.reshape(*s.shape, *[1] * (x.ndim - 2))


def spatial_factors(se, x):
    """Eq. 4-5: one inner product over channels per voxel."""
    q = se.conv.weight.reshape(1, -1, *[1] * (x.ndim - 2))
    return torch.sigmoid((x * q).sum(1, keepdim=True) + se.conv.bias)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("r", [1, 2, 4])
def test_channel_se_is_its_formula(dims, r):
    torch.manual_seed(0)
    x, se = torch.randn(2, 8, *SIZES[dims]).double(), ChannelSE(dims, 8, r).double()
    torch.testing.assert_close(se(x), x * channel_factors(se, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
def test_channel_se_agrees_with_monai(dims):
    torch.manual_seed(0)
    x, ours, theirs = torch.randn(2, 8, *SIZES[dims]), ChannelSE(dims, 8), ChannelSELayer(dims, 8)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("dims", [2, 3])
def test_spatial_se_is_its_formula(dims):
    torch.manual_seed(0)
    x, se = torch.randn(2, 8, *SIZES[dims]).double(), SpatialSE(dims, 8).double()
    torch.testing.assert_close(se(x), x * spatial_factors(se, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("aggregation", "combine"), [("max", torch.maximum), ("add", torch.add)])
def test_concurrent_se_combines_both(dims, aggregation, combine):
    torch.manual_seed(0)
    x, se = torch.randn(2, 8, *SIZES[dims]).double(), ConcurrentSE(dims, 8, aggregation=aggregation).double()
    expected = combine(x * channel_factors(se.channel, x), x * spatial_factors(se.spatial, x))
    torch.testing.assert_close(se(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("c", "r"), [(8, 2), (32, 4), (64, 16)])
def test_parameter_count(c, r):
    assert count(ChannelSE(3, c, r)) == 2 * c * (c // r) + c // r + c
    assert count(SpatialSE(3, c)) == c + 1
    assert count(ConcurrentSE(3, c, r)) == count(ChannelSE(3, c, r)) + count(SpatialSE(3, c))


@pytest.mark.parametrize(("r", "thousands"), [(2, 280), (8, 72), (16, 37)])
def test_overhead_on_a_dynunet(r, thousands):
    """A gate after each of 5 encoder and 4 decoder blocks of nnU-Net's widths: 1.7 % of it at r = 2."""
    widths = [32, 64, 128, 256, 320]
    gates = sum(count(ConcurrentSE(3, c, r)) for c in (*widths, *widths[:-1]))
    assert round(gates / 1000) == thousands
    if r == 2:
        strides = [1, 2, 2, 2, 2]
        host = DynUNet(3, 1, 3, [3] * 5, strides, strides[1:], filters=widths)
        assert gates / count(host) == pytest.approx(0.017, abs=0.005)


def test_bad_arguments_teach():
    with pytest.raises(ValueError, match=r"1 \.\. in_channels = 4, got 8"):
        ChannelSE(3, 4, r=8)
    with pytest.raises(ValueError, match="'max' or 'add', got 'mul'"):
        ConcurrentSE(3, 4, aggregation="mul")
