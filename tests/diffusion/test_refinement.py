"""The last evaluation of one group: exact posterior means of a mixture, its two limits, and nothing else touched."""

import pytest
import torch
from test_groups import DenseMixture, f64, normal, volumes

from voxscore.diffusion import EDM, Euler, Flow, Group, RefineGroup, condition, karras_times, sample

PATHS = [EDM(), Flow()]


def setting(path):
    joint = DenseMixture(path)
    return joint, karras_times(path, 8, clean=True)


def start(joint, times, batch=3):
    return float(joint.path.sigma(times[0])) * volumes(batch, 5, seed=3)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("ratio", [0.3, 1.0, 3.0])
def test_it_ends_in_the_posterior_mean_given_the_others(path, ratio):
    joint, times = setting(path)
    x = start(joint, times)
    before = sample(joint, x, times, Euler(), torch.Generator().manual_seed(1))
    noise = normal(3, 3, x.shape[-1], seed=8)
    rule = RefineGroup(Euler(), joint.groups, "label", ratio)
    last, _ = rule.step(joint, *last_step(joint, x, times), lambda y: noise, None)
    t = path.time(f64(ratio))
    noisy = path.alpha(t) * before[:, 2:] + path.sigma(t) * noise
    torch.testing.assert_close(last[:, :2], before[:, :2], rtol=0, atol=0)
    torch.testing.assert_close(last[:, 2:], condition(joint, "image", before[:, :2])(noisy, t), rtol=1e-10, atol=1e-10)


def last_step(joint, x, times):
    """The state before the step into clean data, and the step's two times."""
    return sample(joint, x, times[:-1], Euler()), times[-2], times[-1]


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_little_noise_changes_nothing_and_much_forgets_the_group(path):
    joint, times = setting(path)
    x = start(joint, times)
    plain = sample(joint, x, times, Euler())
    little, much = (
        sample(joint, x, times, RefineGroup(Euler(), joint.groups, "label", ratio), torch.Generator().manual_seed(1))
        for ratio in (1e-2, 1e5)
    )
    torch.testing.assert_close(little, plain, rtol=0, atol=1e-6)
    for volume, image in zip(much[:, 2:], plain[:, :2], strict=True):
        forgotten = torch.einsum("k,kcv->cv", joint.posterior(image), joint.maps)
        torch.testing.assert_close(volume, forgotten, rtol=0, atol=1e-3)


def test_one_evaluation_more_and_a_seed_means_the_same():
    joint, times = setting(EDM())
    x, calls = start(joint, times), []
    joint.register_forward_hook(lambda *_: calls.append(1))
    rule = RefineGroup(Euler(), joint.groups, "label", 1.0)
    runs = [sample(joint, x, times, rule, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert len(calls) == 3 * (len(times) - 1 + 1)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert rule.order == 1
    assert rule.stochastic


def test_nothing_happens_before_clean_data():
    joint, times = setting(EDM())
    x = start(joint, times)
    rule = RefineGroup(Euler(), joint.groups, "label", 1.0)
    assert torch.equal(sample(joint, x, times[:-1], rule), sample(joint, x, times[:-1], Euler()))


def test_bad_arguments():
    groups = [Group("image", 1), Group("label", 2, categorical=True)]
    with pytest.raises(ValueError, match="no group 'mask'"):
        RefineGroup(Euler(), groups, "mask", 1.0)
    with pytest.raises(ValueError, match="positive"):
        RefineGroup(Euler(), groups, "label", 0.0)
