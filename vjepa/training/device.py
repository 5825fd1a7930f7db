"""Which device a run uses, and in which precision."""

from __future__ import annotations

import torch

from vjepa import config
from vjepa.errors import UserError


def pick(run: config.Run) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype of matrix products. Raises UserError for a device that this machine lacks."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = run.device if run.device != "auto" else next(kind for kind, present in available.items() if present)
    if not available[name]:
        raise UserError(f"run.device: no {name} device on this machine; use run.device=auto")
    device = torch.device(name)
    fast = run.precision == "bf16" or (run.precision == "auto" and bf16_is_fast(device))
    return device, torch.bfloat16 if fast else torch.float32


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 matrices natively: Ampere and newer GPUs, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
