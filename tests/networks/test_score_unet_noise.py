"""A network told its noise levels: what it starts as, what it learns from, what it keeps for backward."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from voxscore.networks import DeepOutputs, ScoreUNet
from voxscore.networks.precision import fast_dtype
from voxscore.networks.score_unet import ResidualBlock

SMALL = (8, 16, 24)
# The coarsest level is 3 long: where a first axis is 2 long, the bfloat16 gradient of a 3-D convolution's weights is
# uninitialised memory in PyTorch 2.13 on CPUs (oneDNN 3.12).
SIZE = (12, 6, 9)
T = torch.tensor([[0.02, 3.0], [0.0, math.inf]])


def awake(network):
    """The network with no weight left at 0, so that everything in it acts."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return network


def noisy(dims=3, **kwargs):
    torch.manual_seed(0)
    return ScoreUNet(dims, 2, 3, SMALL, n_times=2, **kwargs)


def volumes(dims=3, batch=2, **kwargs):
    return torch.randn(batch, 2, *SIZE[:dims], generator=torch.Generator().manual_seed(2), **kwargs)


def tensors(outputs):
    return (outputs.main, *outputs.decoder, *outputs.encoder) if isinstance(outputs, DeepOutputs) else (outputs,)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_fresh_network_is_the_plain_one_at_every_level(dims):
    """FiLM starts as the identity; without noise levels nothing is left of it, not even a name."""
    noise, plain, x = noisy(dims).eval(), ScoreUNet(dims, 2, 3, SMALL).eval(), volumes(dims)
    shared = {k: v for k, v in noise.state_dict().items() if not k.startswith("embed.") and ".film." not in k}
    assert shared.keys() == plain.state_dict().keys()
    last = {k: v for k, v in plain.state_dict().items() if k.startswith("head.2.")}
    noise.load_state_dict(last, strict=False)
    plain.load_state_dict(shared | last)
    for t in (None, T):
        torch.testing.assert_close(noise(x, t), plain(x), rtol=0, atol=0)


def test_a_fresh_network_says_zero_and_its_heads_do_not():
    """An EDM-preconditioned one, c_skip x + c_out F, is then c_skip x, the exact denoiser of N(0, sigma_data^2)."""
    outputs = noisy(deep_heads=True)(volumes(), T)
    torch.testing.assert_close(outputs.main, torch.zeros(2, 3, *SIZE), rtol=0, atol=0)
    assert all(z.std() > 0.01 for z in tensors(outputs)[1:])


@pytest.mark.parametrize("dims", [2, 3])
def test_film_is_its_formula(dims):
    torch.manual_seed(0)
    block = awake(ResidualBlock(dims, 8, 16, None, embedding=5)).double()
    x, e = torch.randn(3, 8, *(6, 4, 5)[:dims]).double(), torch.randn(3, 5).double()
    convolution = F.conv2d if dims == 2 else F.conv3d
    v = (e @ block.film.weight.T + block.film.bias).reshape(3, 32, *[1] * dims)
    h = F.silu(F.group_norm(x, 8, block.norm1.weight, block.norm1.bias))
    h = convolution(h, block.conv1.weight, block.conv1.bias, padding=1)
    h = F.group_norm(h, 8, block.norm2.weight, block.norm2.bias) * (1 + v[:, :16]) + v[:, 16:]
    h = convolution(F.silu(h), block.conv2.weight, block.conv2.bias, padding=1)
    expected = h + convolution(x, block.project.weight, block.project.bias)
    torch.testing.assert_close(block(x, e), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dims", [2, 3])
def test_each_level_and_the_transform_matter_and_batch_members_do_not_mix(dims):
    network, x = awake(noisy(dims, cond_features=3)).eval(), volumes(dims)
    cond = torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.5, 0.0]])
    y = network(x, T, cond)
    for n in range(2):
        torch.testing.assert_close(network(x[n : n + 1], T[n : n + 1], cond[n : n + 1]), y[n : n + 1])
    others = (network(x, T.flip(1), cond), network(x, T * torch.tensor([2.0, 1.0]), cond), network(x, T, 2 * cond))
    assert all((other - y)[0].abs().max() > 0.01 for other in others)
    torch.testing.assert_close(network(x), network(x, torch.zeros(2), torch.zeros(2, 3)))


def test_every_block_hears_the_level():
    network, inputs = noisy(), {}
    for name, module in network.named_modules():
        if name.endswith(".film"):
            module.register_forward_pre_hook(lambda m, a, name=name: inputs.update({name: a[0]}))
    network(volumes(), T)
    assert len(inputs) == len(SMALL) + len(SMALL) - 1
    e = network.embed(T, None, 2)
    for heard in inputs.values():
        torch.testing.assert_close(heard, e)


@pytest.mark.parametrize("cond", [None, torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.5, 0.0]])])
def test_nothing_stays_at_zero(cond):
    """Three steps wake the last convolution, then FiLM, then the embedding; without cond its layer has gradient 0."""
    network, x = noisy(deep_heads=True, cond_features=3), volumes()
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sum((z - 1).square().mean() for z in tensors(network(x, T, cond))).backward()
        assert [n for n, p in network.named_parameters() if p.grad is None] == []
        optimizer.step()
    noise = [n for n in before if ".film." in n or n.startswith(("embed.", "head.2."))]
    still = [n for n in noise if torch.equal(before[n], network.get_parameter(n))]
    assert still == ([] if cond is not None else ["embed.cond.weight"])


# Elsewhere oneDNN computes bfloat16 by a detour, in a layout of its own; voxscore stays in float32 there.
@pytest.mark.skipif(fast_dtype(torch.device("cpu")) is not torch.bfloat16, reason="no native bfloat16 here")
@pytest.mark.parametrize("dims", [2, 3])
def test_bfloat16_maps_stay_bfloat16_and_channels_last(dims):
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    network, x = awake(noisy(dims)).eval().to(memory_format=layout), volumes(dims).to(memory_format=layout)
    exact, maps = network(x, T), []
    for block in (*network.encoder, *network.decoder):
        block.norm2.register_forward_hook(lambda m, a, o: maps.append(o))
        block.conv2.register_forward_hook(lambda m, a, o: maps.extend([*a, o]))
        block.register_forward_hook(lambda m, a, o: maps.append(o))
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x, T)
    assert len(maps) == 4 * 5
    assert {m.dtype for m in (*maps, y)} == {torch.bfloat16}
    assert all(m.is_contiguous(memory_format=layout) for m in maps)
    assert (y - exact).norm() < 0.03 * exact.norm()


def gradients(network, x, t):
    network.zero_grad()
    x = x.clone().requires_grad_()
    loss = sum(z.double().square().mean() for z in tensors(network(x, t)))
    loss.backward()
    return {"x": x.grad, "loss": loss.detach(), **{n: p.grad.clone() for n, p in network.named_parameters()}}


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("n_times", [0, 2])
def test_checkpointing_changes_no_gradient(n_times, bfloat16):
    dtype, found = torch.float32 if bfloat16 else torch.float64, []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = ScoreUNet(3, 2, 3, SMALL, n_times=n_times, deep_heads=True, checkpointing=checkpointing)
        network = awake(network.to(dtype))
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            found.append(gradients(network, volumes(dtype=dtype), T if n_times else None))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5 if bfloat16 else 1e-12, atol=1e-12)


def test_checkpointing_is_for_training_only():
    network, x, calls = noisy(checkpointing=True), volumes(), []
    network.encoder[1].register_forward_pre_hook(lambda *_: calls.append(1))
    for mode, times in ((True, 2), (False, 1)):
        calls.clear()
        network.train(mode)(x, T).sum().backward()
        assert len(calls) == times


def kept_bytes(network, size, bfloat16):
    """Bytes of all storages kept for backward, each once, without the parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    x = torch.randn(1, 4, *size).to(memory_format=torch.channels_last_3d)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        network(x, torch.ones(2))
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(("row", "bfloat16"), [("float32", False), ("bfloat16 autocast", True)])
def test_memory_kept_is_what_the_docstring_says(row, bfloat16):
    """The slope between two sizes, which leaves out what does not grow: weights in bfloat16, the embedding."""
    stated = re.search(rf"^ *{row} +(\S+) +(\S+)$", ScoreUNet.__doc__, re.M).groups()
    for text, checkpointing in zip(stated, (False, True), strict=True):
        measured = []
        for deep_heads in (False, True):
            network = ScoreUNet(3, 4, 4, n_times=2, deep_heads=deep_heads, checkpointing=checkpointing)
            network.to(memory_format=torch.channels_last_3d)
            small, large = (kept_bytes(network, (n, 8, 8), bfloat16) for n in (16, 32))
            measured.append((large - small) / (16 * 8 * 8) / 1000)
        assert measured[0] == pytest.approx(float(text), rel=0.02)
        assert 0 < measured[1] - measured[0] < 0.015


@pytest.mark.parametrize(("gate", "g"), [("scse", 0.5), ("cse", 0.5), (None, 1.0)])
@pytest.mark.parametrize("n_times", [0, 2])
def test_magnitudes_at_the_start_follow_from_the_variance_of_the_weights(n_times, gate, g):
    """A default weight has variance 1 / (3 fan_in), E[silu(z)^2] = 0.356, and a fresh gate is near 1/2.

    A transposed convolution's fan_in counts 8 output channels per voxel for the 2 input channels it sums. 25 % leaves
    room for zero padding at the borders, for biases, and for gates that are not quite 1/2.
    """
    z = torch.linspace(-9, 9, 10001, dtype=torch.float64)
    branch = torch.trapezoid(F.silu(z) ** 2 * torch.exp(-(z**2) / 2), z).item() / math.sqrt(2 * math.pi) / 3
    encoder = [g**2 * (1 / 3 + branch)]
    for _ in range(3):
        encoder.append(g**2 * (encoder[-1] / 3 + branch))
    decoder = [encoder[-1]]
    for skip in reversed(encoder[:-1]):
        decoder.append(g**2 * ((decoder[-1] / 12 + skip) / 2 / 3 + branch))
    torch.manual_seed(0)
    network, measured = ScoreUNet(3, 2, 2, squeeze_excitation=gate, n_times=n_times), []
    for block in (*network.encoder, *network.decoder):
        block.register_forward_hook(lambda m, a, o: measured.append(o.square().mean().sqrt().item()))
    with torch.no_grad():
        network(torch.randn(1, 2, 32, 32, 32))
    assert measured == pytest.approx([math.sqrt(v) for v in encoder + decoder[1:]], rel=0.25)
    assert max(measured) < 0.7
    assert min(measured) > 0.12


def test_both_directions_of_differentiation_agree():
    """<v, J w> by torch.func.jvp is <J^T v, w> by torch.func.vjp."""
    network, x = awake(noisy()).double().eval(), volumes().double()
    y, vjp = torch.func.vjp(lambda x: network(x, T), x)
    v, w = torch.randn_like(y), torch.randn_like(x)
    _, jw = torch.func.jvp(lambda x: network(x, T), (x,), (w,))
    torch.testing.assert_close((v * jw).sum(), (vjp(v)[0] * w).sum(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_second_derivatives(checkpointing):
    """The slope of |J^T v|^2 along w is that of a central difference."""
    network = awake(noisy(checkpointing=checkpointing)).double()
    x = volumes().double().requires_grad_()
    v, w = torch.randn(2, 3, *SIZE).double(), torch.randn_like(x)

    def penalty(x):
        (g,) = torch.autograd.grad((network(x, T) * v).sum(), x, create_graph=True)
        return g.square().sum()

    (slope,) = torch.autograd.grad(penalty(x), x)
    step = 1e-6
    difference = (penalty(x + step * w) - penalty(x - step * w)) / (2 * step)
    torch.testing.assert_close((slope * w).sum(), difference.detach(), rtol=1e-5, atol=0)


# MONAI's exporters trace too; PyTorch warns that tracing is old and that the padding is decided while it traces.
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_trace_with_one_argument():
    network, x = awake(noisy(cond_features=3)).eval(), volumes()
    traced = torch.jit.trace(network, x)
    other = x.flip(2, 3)
    torch.testing.assert_close(traced(other), network(other, torch.zeros(2, 2)))
    torch.testing.assert_close(traced(x[:1]), network(x[:1]))
