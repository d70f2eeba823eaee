"""The averages are the power functions they claim to be, and any width between them comes out of the snapshots."""

import copy

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from torch import nn

from voxscore.errors import UserError
from voxscore.training import Checkpoint, PowerEMA, profile_exponent, reconstruct_ema

WIDTHS = (0.05, 0.10)


class Walker(nn.Module):
    """Three parameters on a known path, and a buffer that counts."""

    def __init__(self, size=3, dtype=torch.float64):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(size, dtype=dtype))
        self.register_buffer("count", torch.tensor(0))

    @torch.no_grad()
    def go(self, step, steps):
        u = step / steps
        self.theta.copy_(torch.tensor([u**0.5, np.sin(5 * u), np.exp(-3 * u)]))
        self.count.fill_(step)


def walk(network, handlers, steps, epochs=1):
    """A trainer of `steps` iterations in all, in the way of a real one."""
    engine = Engine(lambda engine, batch: network.go(engine.state.iteration, steps))
    engine.state.device = torch.device("cpu")
    for handler in handlers:
        handler.attach(engine)
    engine.run(range(steps // epochs), max_epochs=epochs)


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_of_the_paper(sigma_rel, gamma):
    assert profile_exponent(sigma_rel) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.075, 0.10, 0.20, 0.28])
def test_exponent_gives_the_width_back(sigma_rel):
    g = profile_exponent(sigma_rel)
    assert ((g + 1) / ((g + 2) ** 2 * (g + 3))) ** 0.5 == pytest.approx(sigma_rel, rel=1e-12)


@pytest.mark.parametrize("sigma_rel", [-0.1, 0.0, 0.29, float("nan")])
def test_widths_beyond_the_uniform_mean_are_refused(sigma_rel):
    with pytest.raises(ValueError, match=r"between 0 and 0\.289"):
        profile_exponent(sigma_rel)


def test_weights_are_a_power_of_the_step(tmp_path):
    steps = 200
    network = Walker(size=steps)
    ema = PowerEMA(network, tmp_path, steps)
    for k in range(steps):  # basis vectors: the average is the list of weights
        with torch.no_grad():
            network.theta.copy_(nn.functional.one_hot(torch.tensor(k), steps))
        ema(None)
    tau = torch.arange(1, steps + 1, dtype=torch.float64)
    for weights, sigma_rel in zip(ema.averages["theta"], WIDTHS, strict=True):
        g = profile_exponent(sigma_rel)
        # the product of the betas telescopes; rounding of 200 float64 steps
        expected = (tau ** (g + 1) - (tau - 1) ** (g + 1)) / steps ** (g + 1)
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-14)
        profile = tau**g / (tau**g).sum()
        # to first order the ratio of the two is 1 - g / (2 tau) + (g + 1) / (2 t), and E[g / tau] = (g + 1) / t
        assert (weights - profile).abs().sum() < (g + 1) / steps


def test_a_tracked_width_comes_back_exactly_and_one_between_closely(tmp_path):
    steps, network = 2048, Walker()
    emas = {n: PowerEMA(network, tmp_path / str(n), steps // n) for n in (16, 32)}
    between = PowerEMA(network, tmp_path / "between", steps, [0.075])
    walk(network, [*emas.values(), between], steps)
    true = between.averages["theta"][0]
    spread = (network.theta.detach() - true).abs().max()
    errors = {}
    for n, ema in emas.items():
        assert len(list(ema.folder.iterdir())) == n
        for average, sigma_rel in zip(ema.averages["theta"], WIDTHS, strict=True):
            torch.testing.assert_close(reconstruct_ema(ema.folder, sigma_rel)["theta"], average, rtol=0, atol=1e-10)
        found = reconstruct_ema(ema.folder, 0.075)
        errors[n] = (found["theta"] - true).abs().max() / spread
    assert errors[32] < 1e-4
    assert torch.log2(errors[16] / errors[32]).item() == pytest.approx(4, abs=0.1)  # order measured on this smooth path
    assert found["count"] == steps
    copy.deepcopy(network).load_state_dict(found)  # names and shapes of the network


def test_half_precision_is_averaged_in_float32(tmp_path):
    network = Walker(dtype=torch.bfloat16)
    ema = PowerEMA(network, tmp_path, 64)
    walk(network, [ema], 64)
    assert ema.averages["theta"].dtype == torch.float32
    found = reconstruct_ema(tmp_path, 0.10)["theta"]
    # rounding of a sum of 64 float32 terms
    torch.testing.assert_close(found, ema.averages["theta"][1], rtol=0, atol=1e-6)


def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(tmp_path):
    unbroken = PowerEMA(network := Walker(dtype=torch.float32), tmp_path / "a", 10)
    walk(network, [unbroken], 40, epochs=4)

    class Killed(BaseException):
        pass

    def run(kill_at=None):
        network = Walker(dtype=torch.float32)
        ema = PowerEMA(network, tmp_path / "b", 10)
        if kill_at is not None:
            go = network.go

            def mortal(step, steps):
                if step == kill_at:
                    raise Killed
                go(step, steps)

            network.go = mortal
        walk(network, [ema, Checkpoint(tmp_path / "checkpoint.pt", {"network": network, "ema": ema})], 40, epochs=4)
        return ema

    with pytest.raises(Killed):
        run(kill_at=27)  # seven steps after the last checkpoint
    resumed = run()
    assert resumed.step == unbroken.step == 40
    assert torch.equal(resumed.averages["theta"], unbroken.averages["theta"])
    found = [reconstruct_ema(tmp_path / folder, 0.075)["theta"] for folder in "ab"]
    assert torch.equal(*found)


def test_it_is_built_from_json(tmp_path):
    config = {"_target_": "voxscore.training.PowerEMA", "network": "@network", "folder": str(tmp_path), "interval": 5}
    parser = ConfigParser({"network": Walker(), "ema": config | {"sigma_rel": [0.1, 0.2]}})
    assert parser.get_parsed_content("ema").sigma_rel == (0.1, 0.2)


@pytest.mark.parametrize("widths", [(), (0.05, 0.05), (0.05, 0.3)])
def test_widths_must_differ_and_be_in_range(widths, tmp_path):
    with pytest.raises(ValueError, match="sigma_rel"):
        PowerEMA(Walker(), tmp_path, 1, widths)


def test_an_interval_is_at_least_one(tmp_path):
    with pytest.raises(ValueError, match="interval"):
        PowerEMA(Walker(), tmp_path, 0)


def test_a_state_of_something_else_is_refused(tmp_path):
    state = PowerEMA(Walker(), tmp_path, 1).state_dict()
    with pytest.raises(ValueError, match="tracks sigma_rel"):
        PowerEMA(Walker(), tmp_path, 1, [0.1]).load_state_dict(state)
    with pytest.raises(ValueError, match="other parameters"):
        PowerEMA(Walker(size=4), tmp_path, 1).load_state_dict(state)


def test_a_folder_holds_the_snapshots_of_one_run(tmp_path):
    with pytest.raises(UserError, match="no snapshot"):
        reconstruct_ema(tmp_path, 0.1)
    PowerEMA(Walker(size=4), tmp_path, 1)(None)
    network = Walker()
    walk(network, [PowerEMA(network, tmp_path, 2)], 2)
    with pytest.raises(UserError, match=r"ema_1\.pt: has other parameters than step 2"):
        reconstruct_ema(tmp_path, 0.1)
