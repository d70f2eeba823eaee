"""What a run will hold, counted, and refused before it begins."""

import pytest
import torch

from voxscore import memory
from voxscore.errors import UserError
from voxscore.memory import check_memory, evaluation_bytes, free_bytes

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("evaluate", "volumes"),
    [
        (lambda x: x + 1, 1),
        (lambda x: (x + 1) + 1, 2),  # the first result is there while the second comes into being
        (lambda x: ((x + 1) + 1) + 1, 2),  # ... and gone when the third does
        (lambda x: torch.cat([x, x]), 2),
        (lambda x: (x + 1)[:, :, :4].view(-1) + 0, 1.125),  # a view is not another copy
    ],
)
def test_storages_are_counted_until_they_are_freed(evaluate, volumes):
    assert evaluation_bytes(evaluate, CPU) == 4 * volumes


def test_what_a_backward_pass_needs_is_counted():
    """Each exponential keeps its result for its derivative."""

    def chain(x):
        for _ in range(10):
            x = x.exp()
        return x

    assert evaluation_bytes(chain, CPU) == 4 * 2
    assert 4 * 10 <= evaluation_bytes(chain, CPU, gradient=True) <= 4 * 13


def test_gradients_are_as_asked_whatever_the_caller_switched_off():
    with torch.no_grad():
        evaluation_bytes(lambda x: x * 2 if x.requires_grad else pytest.fail("no gradient"), CPU, gradient=True)
    evaluation_bytes(lambda x: pytest.fail("gradient") if (x * 2).requires_grad else x + 1, CPU)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """machine(meminfo, limit): what the system says of its memory."""

    def machine(meminfo=None, limit=None):
        for name, text in {"_MEMINFO": meminfo, "_CONTAINER": limit}.items():
            path = tmp_path / name
            path.unlink(missing_ok=True)
            if text is not None:
                path.write_text(text)
            monkeypatch.setattr(memory, name, path)
        return free_bytes(CPU)

    return machine


def test_free_is_what_is_available_here(machine):
    meminfo = "MemTotal:       99999 kB\nMemFree:            1 kB\nMemAvailable:    2000 kB\n"
    assert machine(meminfo) == 2000 * 1024
    assert machine(meminfo, "max\n") == 2000 * 1024
    assert machine(meminfo, "5000\n") == 5000
    physical = machine()
    assert physical > 2**27
    assert machine("nothing of use") == physical


def test_too_much_is_refused_with_the_amount_and_the_way_out(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**30)
    check_memory("case", 2**30 / memory.MARGIN, CPU, "lower it")
    with pytest.raises(UserError) as caught:
        check_memory("case", 10 * 2**30 / memory.MARGIN, CPU, "lower it")
    assert str(caught.value) == "case: needs about 10 GiB of memory, and cpu has 1 GiB free; lower it"
