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
    """`num` processes, of which this is number `rank`, from 0; one alone unless `join` says otherwise."""

    rank: int = 0
    num: int = 1

    def wait(self) -> None:
        """For all of them to come here."""
        if self.num > 1:
            dist.barrier()

    def agree(self, value: Any) -> Any:
        """The value of number 0."""
        values = [value]
        if self.num > 1:
            dist.broadcast_object_list(values)
        return values[0]


@contextmanager
def join() -> Iterator[Ranks]:
    """The processes that torchrun started, by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; without these one alone.
    They talk through gloo.
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
