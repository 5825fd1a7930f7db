"""Weights of networks as files: safetensors in, strict loading; no code is ever unpickled."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vjepa.errors import UserError


def load_strictly(module: nn.Module, stored: Mapping[str, Tensor], origin: Path | str) -> None:
    """Load every tensor of `stored` into `module`, and nothing else.

    Raises UserError that names a key which is missing, surplus or misshapen. A module on the meta device comes to where
    the tensors are, in its own dtype; it shares no memory with them.
    """
    wanted = module.state_dict()
    for problem, keys in (
        ("is missing", wanted.keys() - stored.keys()),
        ("is not part of this network", stored.keys() - wanted.keys()),
    ):
        if keys:
            more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
            raise UserError(f"{origin}: {min(keys)} {problem}{more}; the file was made with other model settings")
    for key, tensor in wanted.items():
        if stored[key].shape != tensor.shape:
            raise UserError(
                f"{origin}: {key} has shape {list(stored[key].shape)}, this network needs {list(tensor.shape)}"
            )
    if any(tensor.is_meta for tensor in wanted.values()):
        copies = {
            key: stored[key].to(tensor.dtype, copy=True, memory_format=torch.contiguous_format)
            for key, tensor in wanted.items()
        }
        module.load_state_dict(copies, assign=True)
    else:
        module.load_state_dict(stored)


def spread_colours(stored: dict[str, Tensor], wanted: Mapping[str, Tensor], origin: str) -> None:
    """Give each channel of a network the mean of the kernels of 3 colours in `stored`, times 3 over their number.

    So equal channels give what a grey picture gave. Kernels are [D, C, ...]; what fits already stays. It is said.
    """
    for key, tensor in wanted.items():
        kernel = stored.get(key)
        if kernel is None or kernel.ndim < 4 or kernel.shape[1] != 3 or kernel.shape[1] == tensor.shape[1]:
            continue
        num = tensor.shape[1]
        if kernel.shape[2:] == tensor.shape[2:]:
            stored[key] = kernel.mean(1, keepdim=True).expand(-1, num, *kernel.shape[2:]) * (3 / num)
            print(f"{origin}: {num} channels start with the mean of the kernels of 3 colours", file=sys.stderr)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read name -> tensor of a safetensors file, on the CPU. Raises UserError where it is none."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as safetensors: {' '.join(str(error).split())}") from None
    return tensors
