"""Inferers of one evaluation: a network over a whole volume, or over a window that fits it.

Both run the network in the device's fast number format (`networks.precision`) on channels-last memory, on plain
tensors (MONAI's MetaTensor costs time in every operation), and return float32 with the input's metadata. An image
that fits the window is one evaluation of the network at the image's own size; MONAI's sliding window would first pad
it up to the window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, sliding_window_inference
from torch import Tensor

from voxscore.networks.precision import channels_last, fast_dtype

__all__ = ["FastInferer", "FittedWindowInferer"]


def like_input(outputs: Any, inputs: Tensor) -> Any:
    """Float32 with the metadata of `inputs`; several outputs (deep heads, in training) pass as they are."""
    if not isinstance(outputs, Tensor):
        return outputs
    outputs = outputs.float()
    return MetaTensor(outputs).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else outputs


class FastInferer(Inferer):
    """One evaluation of the network on the whole input.

    Args:
        full_precision: stay in float32, for a comparison.
    """

    def __init__(self, full_precision: bool = False) -> None:
        self.full_precision = full_precision

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The network's output for inputs (B, C, *spatial); float32 if it is one tensor."""
        dtype = torch.float32 if self.full_precision else fast_dtype(inputs.device)
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        plain = plain.contiguous(memory_format=channels_last(inputs.ndim - 2))
        with torch.autocast(inputs.device.type, dtype, enabled=dtype is not torch.float32):
            return like_input(network(plain, *args, **kwargs), inputs)


class FittedWindowInferer(Inferer):
    """Sliding window whose window shrinks to the image where the image is smaller.

    Args:
        roi_size: largest window, in voxels per axis.
        overlap: share of the window that neighbours have in common, in [0, 1).
        sw_batch_size: windows per evaluation.
        full_precision: stay in float32, for a comparison.
    """

    def __init__(
        self,
        roi_size: tuple[int, ...],
        overlap: float = 0.5,
        sw_batch_size: int = 1,
        full_precision: bool = False,
    ) -> None:
        self.roi_size, self.overlap, self.sw_batch_size = tuple(roi_size), overlap, sw_batch_size
        self.single = FastInferer(full_precision)

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Logits (B, K, *spatial), float32, of inputs (B, C, *spatial); windows blend with Gaussian weights."""
        size = inputs.shape[2:]
        if all(n <= r for n, r in zip(size, self.roi_size, strict=True)):
            return self.single(inputs, network, *args, **kwargs)
        window = [min(n, r) for n, r in zip(size, self.roi_size, strict=True)]
        logits = sliding_window_inference(
            inputs,
            window,
            self.sw_batch_size,
            lambda window: self.single(window, network, *args, **kwargs),
            overlap=self.overlap,
            roi_weight_map=_weights(window).to(inputs.device),
        )
        return cast(Tensor, logits)


def _weights(window: Sequence[int]) -> Tensor:
    """A Gaussian over the window, of a standard deviation of a twelfth of it along each axis.

    In the middle of an overlap neighbours count alike, at its ends, which the edge of a window has spoiled, one of them
    counts for nothing. MONAI's own weights are cut off at a thousandth from below, which in the corners of a 3-D window
    is most of them: there spoiled edges would count like the rest.
    """
    weights = torch.ones(())
    for n in window:
        offset = (torch.arange(n) - (n - 1) / 2) / (n / 12)
        weights = weights[..., None] * torch.exp(-offset.square() / 2)
    return weights
