"""The monitor measures losses that are known, ends a training that no longer learns, and remembers that it did."""

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset, MetaTensor

from voxscore.diffusion import EDM, Denoiser, EmpiricalDenoiser, Group, JointNetDenoiser
from voxscore.training import Checkpoint, HeldOutMonitor

CPU = torch.device("cpu")
TIMES = [0.2, 1.0, 5.0, 20.0]


class Constant(Denoiser):
    """Says the same number of every voxel."""

    def __init__(self, value=0.0):
        super().__init__(EDM())
        self.value = value

    def forward(self, x, t):
        return torch.full_like(x, self.value)


def items(*volumes):
    return Dataset([{"image": volume, "name": str(k)} for k, volume in enumerate(volumes)])


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ONES = items(torch.ones(2, 3, 4, 2))


def training(monitor, evaluator, denoiser, said=(), epochs=1, checkpoint=None):
    """A trainer that learns nothing: in epoch k the denoiser says `said[k - 1]`. Returns the epochs, the validations
    and their metrics."""
    trained, noted = [], []

    def step(engine, batch):
        trained.append(engine.state.epoch)
        if said:
            denoiser.value = said[engine.state.epoch - 1]

    trainer = Engine(step)
    trainer.state.device = CPU
    monitor.attach(trainer)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate():
        evaluator.run([0])
        noted.append(dict(evaluator.state.metrics))

    if checkpoint is not None:
        Checkpoint(checkpoint, {"monitor": monitor}).attach(trainer)
    trainer.run([0], max_epochs=epochs)
    return trained, noted


def measured(denoiser, held_out, training_set):
    evaluator = Engine(lambda engine, batch: None)
    monitor = HeldOutMonitor(evaluator, denoiser, held_out, training_set, TIMES, 1, CPU)
    _, (metrics,) = training(monitor, evaluator, denoiser)
    assert metrics.keys() == {"held_out_loss", "training_loss"}
    return metrics


def test_zeros_have_the_loss_1():
    """Whatever the volumes and their sizes; these are exact in binary."""
    held_out = items(torch.full((2, 3, 4, 2), 3.0), MetaTensor(torch.full((2, 2, 2, 2), -0.5)))
    assert measured(Constant(), held_out, ONES) == {"held_out_loss": 1.0, "training_loss": 1.0}


def test_the_exact_denoiser_of_a_gaussian_has_the_variance_it_cannot_explain():
    s, sets = 1.5, [items(*(1.5 * gaussian(4, 2, 32, 32, 16, seed=seed))) for seed in (1, 2)]
    # A network that says 0 is, preconditioned, that denoiser.
    groups = [Group("image", 1, sigma_data=s), Group("map", 1, sigma_data=s)]
    exact = JointNetDenoiser(lambda x, t: torch.zeros_like(x), EDM(), groups)
    metrics = measured(exact, *sets)
    expected = sum(t**2 / (t**2 + s**2) for t in TIMES) / len(TIMES)
    # Two means of squares over n voxels, of relative variance 2 / n each; five standard deviations.
    assert list(metrics.values()) == pytest.approx([expected] * 2, rel=5 * 2 / (4 * 2 * 32 * 32 * 16) ** 0.5)
    assert measured(exact, *sets) == metrics


def test_a_copy_is_found_out():
    """The denoiser of a single volume says that volume: nothing wrong in training, all wrong elsewhere."""
    # Numbers of bfloat16, which a device may compute in.
    own, other = (gaussian(1, 4, 4, 4, seed=seed).bfloat16().float() for seed in (1, 2))
    metrics = measured(EmpiricalDenoiser(EDM(), own[None]), items(other), items(own))
    assert metrics["training_loss"] == 0
    wrong = (own - other).square().mean() / other.square().mean()
    assert metrics["held_out_loss"] == pytest.approx(float(wrong), rel=1e-5)


# Of ones, a denoiser that says c has the loss (1 - c)^2: least in the third epoch.
SAID = (0.0, 0.25, 0.75, 0.5, 0.5, 0.5, 1.0)
LOSSES = [1.0, 0.5625, 0.0625, 0.25, 0.25, 0.25, 0.0]


def watched(patience):
    denoiser, evaluator = Constant(), Engine(lambda engine, batch: None)
    return HeldOutMonitor(evaluator, denoiser, ONES, ONES, TIMES, patience, CPU), evaluator, denoiser


@pytest.mark.parametrize(("patience", "last"), [(1, 4), (3, 6), (4, 7)])
def test_training_ends_after_patience(patience, last):
    monitor, *rest = watched(patience)
    trained, noted = training(monitor, *rest, SAID, epochs=len(SAID))
    assert trained == list(range(1, last + 1))
    assert [metrics["held_out_loss"] for metrics in noted] == LOSSES[:last]
    best, step, waited = (0.0, 7, 0) if last == 7 else (0.0625, 3, patience)
    assert monitor.state_dict() == {"best": best, "best_step": step, "waited": waited}


def test_a_resumed_training_ends_where_the_unbroken_one_does(tmp_path):
    def resumed(epochs):
        return training(*watched(3), SAID, epochs, tmp_path / "checkpoint.pt")[0]

    assert resumed(5) == [1, 2, 3, 4, 5]
    assert resumed(7) == [6]
    # It has ended: started again it does nothing.
    assert resumed(7) == []
