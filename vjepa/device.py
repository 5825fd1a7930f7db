"""Which device a run uses, and in which precision."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from typing import Final

import torch

from vjepa import config
from vjepa.errors import UserError

_M_TRIM_THRESHOLD: Final = -1  # of glibc's malloc.h
_M_MMAP_THRESHOLD: Final = -3


def pick(run: config.Run) -> tuple[torch.device, torch.dtype]:
    """Choose the device, of several GPUs the one of this rank, and the dtype of matrix products.

    A CPU keeps freed memory from here on. Raises UserError for a device that this machine lacks.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = run.device if run.device != "auto" else next(kind for kind, present in available.items() if present)
    if not available[name]:
        raise UserError(f"run.device: no {name} device on this machine; use run.device=auto")
    device = torch.device(name, int(os.environ.get("LOCAL_RANK", 0))) if name == "cuda" else torch.device(name)
    if name == "cpu" and sys.platform == "linux":
        keep_freed_memory()
    fast = run.precision == "bf16" or (run.precision == "auto" and bf16_is_fast(device))
    return device, torch.bfloat16 if fast else torch.float32


def check_compiler(run: config.Run, device: torch.device) -> None:
    """Refuse `run.compile` without the compiler that it calls: of C++ for a CPU, of C for the kernels of a GPU."""
    variable, names = "CXX", ["clang++" if sys.platform == "darwin" else "g++"]
    if device.type == "cuda":
        variable, names = "CC", ["gcc", "clang"]
    names = [os.environ[variable]] if os.environ.get(variable) else names
    if run.compile and not any(shutil.which(name) for name in names):
        raise UserError(
            f"run.compile: torch.compile needs a compiler, and {' or '.join(names)} is not found; install it "
            "or use run.compile=false"
        )


def bf16_is_fast(device: torch.device) -> bool:
    """Tell whether the hardware multiplies bf16 matrices: Ampere and newer GPUs, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def keep_freed_memory() -> None:
    """Have the C library keep freed blocks of up to 1 GiB, 2 GiB in all, for the next tensors, as GPUs do.

    By default it gives large blocks back to the system at once, and each activation costs page faults (RESULTS.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc; musl has none
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
