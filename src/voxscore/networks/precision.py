"""Which number format and memory layout a device is fastest at.

bfloat16 keeps float32's exponent, so it needs no loss scaling; it pays only where the processor multiplies it
natively (AVX-512 BF16 or AMX on CPUs, Ampere and later on CUDA) and is slower than float32 elsewhere.
"""

from __future__ import annotations

import torch

__all__ = ["channels_last", "fast_dtype"]


def fast_dtype(device: torch.device) -> torch.dtype:
    """torch.bfloat16 where `device` multiplies it natively, else torch.float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # The CPU checks are private in PyTorch and differ between versions: an unknown one counts as "no".
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in checks)
    return torch.bfloat16 if native else torch.float32


def channels_last(spatial_dims: int) -> torch.memory_format:
    """The memory format in which 2-D and 3-D convolutions are fastest."""
    return torch.channels_last_3d if spatial_dims == 3 else torch.channels_last
