"""One evaluation where the image fits, MONAI's sliding window where it does not, and float32 out either way."""

import pytest
import torch
from monai.data import MetaTensor

from voxscore.inferers import FastInferer, FittedWindowInferer
from voxscore.networks import DeepOutputs, ScoreUNet
from voxscore.networks.precision import fast_dtype


class Recorded(torch.nn.Module):
    """A network that remembers what it was given."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = ScoreUNet(3, 1, 2, (8, 8, 8)).eval()
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return self.network(x)


@pytest.mark.parametrize("size", [(7, 12, 9), (16, 16, 16), (3, 16, 1)])
def test_an_image_that_fits_is_one_evaluation_at_its_own_size(size):
    network, x = Recorded(), torch.randn(1, 1, *size)
    with torch.no_grad():
        y = FittedWindowInferer((16, 16, 16), full_precision=True)(x, network)
        torch.testing.assert_close(y, network.network(x))
    assert [seen.shape for seen in network.seen] == [x.shape]


def test_a_larger_image_slides_along_the_long_axes_only():
    network, x = Recorded(), torch.randn(1, 1, 30, 10, 20)
    network.network = torch.nn.Conv3d(1, 2, 3, padding=1)
    with torch.no_grad():
        y = FittedWindowInferer((16, 16, 16), overlap=0.25, full_precision=True)(x, network)
    assert {seen.shape[2:] for seen in network.seen} == {(16, 10, 16)}
    # The edges of a window, where the network sees padding, count for next to nothing.
    torch.testing.assert_close(y, network.network(x).detach(), rtol=0, atol=1e-3)


def test_plain_tensors_go_in_and_metadata_comes_out():
    network, affine = Recorded(), torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    x = MetaTensor(torch.randn(1, 1, 8, 8, 8), affine=affine)
    with torch.no_grad():
        y = FastInferer()(x, network)
    assert type(network.seen[0]) is torch.Tensor
    assert network.seen[0].is_contiguous(memory_format=torch.channels_last_3d)
    assert y.dtype is torch.float32
    assert torch.equal(y.affine, x.affine)


def test_fast_is_close_to_full_precision():
    """bfloat16 keeps 8 bits, so a few layers agree to about a percent of the output's spread."""
    network, x = Recorded(), torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        fast, full = (FastInferer(full_precision=p)(x, network) for p in (False, True))
    assert (fast - full).abs().mean() < 0.03 * full.std()


def test_deep_outputs_pass_through_in_training():
    network = ScoreUNet(3, 1, 2, (8, 8, 8), deep_heads=True)
    assert isinstance(FastInferer()(torch.randn(1, 1, 8, 8, 8), network), DeepOutputs)


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_only_where_the_processor_multiplies_it(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert fast_dtype(torch.device("cpu")) is dtype
    assert fast_dtype(torch.device("meta")) is torch.float32
