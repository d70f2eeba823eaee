r"""Does it fit? Answered before a run begins, because a machine that runs out of memory often says nothing at all.

A run holds at once

    one evaluation of the network      in proportion to the voxels that the network is given: of the whole volume, or
                                       of a window; `evaluation_bytes` measures it on a small cube
    the solver's copies                of the volume and of the measurement, about a dozen of each
    the samples

What an evaluation needs is counted rather than known: while the network runs on a small cube, every storage that comes
into being counts until it is freed. That finds what a method that differentiates through the network holds for its
backward pass, too. It does not see the work space of a convolution; `MARGIN` is for that. Of 96 x 96 x 48 voxels and
four coils a run grew by 0.22 GiB where 0.25 were counted (`Decomposed`), and by 0.70 where 0.57 were (`PiGDM`, which
goes backward through the network). The command line keeps what it frees, and not every gap is filled again: of
348 x 384 x 44 voxels and eight coils it held 7.0 GiB, PyTorch and all, where 5.6 were counted and 7.3 asked for.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from voxscore.errors import UserError

__all__ = ["check_memory", "evaluation_bytes", "free_bytes"]

PROBE = 32  # edge of the cube that is evaluated: a multiple of what networks halve, and less than a second of work
MARGIN = 1.3
_MEMINFO = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup/memory.max")


class _Live(TorchDispatchMode):
    """Counts the bytes of storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage not in self._known:
                    self._known.add(storage)
                    size = storage.nbytes()
                    self.now += size
                    weakref.finalize(storage, self._freed, size)
        self.peak = max(self.peak, self.now)
        return out

    def _freed(self, size: int) -> None:
        self.now -= size


def evaluation_bytes(evaluate: Callable[[Tensor], Tensor], device: torch.device, gradient: bool = False) -> float:
    """Bytes that one evaluation holds at its peak, for each voxel that it is given.

    Args:
        evaluate: a volume (1, 1, X, Y, Z) to what the network makes of it.
        device: where the network is.
        gradient: whether it is differentiated through.
    """
    cube = torch.zeros(1, 1, PROBE, PROBE, PROBE, device=device)
    with torch.set_grad_enabled(gradient), _Live() as live:
        out = evaluate(cube.requires_grad_(gradient))
        if gradient:
            torch.autograd.grad(out.sum(), cube)
    return live.peak / cube.numel()


def free_bytes(device: torch.device) -> int:
    """Memory that a new run may take: of a GPU what is free, of this machine what is available."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file, read in ((_MEMINFO, _available), (_CONTAINER, _limit)):
        try:
            free = min(free, read(file.read_text()))
        except (OSError, ValueError, StopIteration):  # not Linux, or no limit
            continue
    return free


def _available(text: str) -> int:
    """Free memory and what caches would give back; /proc/meminfo counts in kB."""
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith("MemAvailable")))


def _limit(text: str) -> int:
    return int(text)


def check_memory(subject: str | os.PathLike[str], needed: float, device: torch.device, remedy: str) -> None:
    """Refuse what would not fit.

    Args:
        subject: what is to be computed, for the message.
        needed: bytes.
        device: where.
        remedy: which option lowers it.

    Raises:
        UserError: more is needed than is free.
    """
    needed, free = MARGIN * needed, free_bytes(device)
    if needed > free:
        fault = f"needs about {needed / 2**30:.3g} GiB of memory, and {device} has {free / 2**30:.3g} GiB free"
        raise UserError(subject, fault, remedy)
