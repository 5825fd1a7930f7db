"""The processes that share a job, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from vjepa.errors import UserError

_PATIENCE = timedelta(days=7)  # for the slowest of them; torchrun ends all of them where one dies


@dataclass(frozen=True)
class Ranks:
    """Tell which of `num` processes this is: number `rank`, from 0. One alone unless `join` says otherwise."""

    rank: int = 0
    num: int = 1

    def wait(self) -> None:
        """Wait for all of them to come here."""
        if self.num > 1:
            dist.barrier()

    def agree(self, value: Any) -> Any:
        """Give every process the value of number 0; any that can be pickled."""
        values = [value]
        if self.num > 1:
            dist.broadcast_object_list(values)
        return values[0]


@contextmanager
def join() -> Iterator[Ranks]:
    """Join the processes that torchrun started; without it this one is alone.

    RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT tell them; they talk through gloo. Raises UserError where they do not
    find each other.
    """
    num = int(os.environ.get("WORLD_SIZE", 1))
    if num == 1:
        yield Ranks()
        return
    try:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    except (ValueError, dist.DistError) as error:
        raise UserError(
            f"WORLD_SIZE={num}: the processes do not find each other ({' '.join(str(error).split())}); start "
            "them with torchrun"
        ) from None
    try:
        yield Ranks(dist.get_rank(), num)
    finally:
        dist.destroy_process_group()
