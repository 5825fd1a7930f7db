"""The processes that share a job, as torchrun starts them, and the clips of a step that they share."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, NoReturn, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from vjepa.errors import UserError

_BETWEEN_LOOKS_S: Final = 0.05
_PATIENCE = timedelta(days=7)  # for the slowest of them; torchrun ends all of them where one dies
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Ranks:
    """Tell which of `num` processes this is: number `rank`, from 0. One alone unless `join` says otherwise.

    group: that they talk through, and which says how long they wait; None: that of `join`, which waits for days.
    """

    rank: int = 0
    num: int = 1
    group: dist.ProcessGroup | None = None

    def wait(self) -> None:
        """Wait for all of them to come here."""
        if self.num > 1:
            dist.barrier(group=self.group)

    def agree(self, value: Any) -> Any:
        """Give every process the value of number 0; any that can be pickled."""
        values = [value]
        if self.num > 1:
            dist.broadcast_object_list(values, group=self.group)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Give every process the values of all, by rank; any that can be pickled."""
        values = [value] * self.num
        if self.num > 1:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def together(self, work: Callable[[], ResultT]) -> ResultT:
        """Do `work` on every process; bad input of any ends all of them, with the one line of the first that met it."""
        if self.num == 1:
            return work()
        told, result = None, None
        try:
            result = work()
        except UserError as error:
            told = error
        lines = self.gather(told and str(told))
        first = next((rank for rank, line in enumerate(lines) if line is not None), None)
        if first is None:
            return result  # type: ignore[return-value]
        if told is not None and self.rank == first:
            raise told if first == 0 else UserError(f"rank {first}: {told}")
        raise SystemExit(2)

    def end(self, error: UserError) -> NoReturn:
        """End all processes by an error that all of them met; one tells it."""
        raise error if self.rank == 0 else SystemExit(2)


ONE_RANK: Final = Ranks()


def refuse_several(command: str) -> None:
    """Raise UserError where torchrun started several processes of a command that does its work in one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{command}: runs in one process; start it without torchrun")


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
        store, rank, num = next(dist.rendezvous("env://", timeout=_PATIENCE))  # type: ignore[attr-defined]
        store = dist.PrefixStore(_meet(store, rank, num), store)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=rank, world_size=num, timeout=_PATIENCE)
    except (ValueError, dist.DistError) as error:
        raise UserError(
            f"WORLD_SIZE={num}: the processes do not find each other ({' '.join(str(error).split())}); start "
            "them with torchrun"
        ) from None
    try:
        yield Ranks(dist.get_rank(), num)
    finally:
        dist.destroy_process_group()


def _meet(store: Any, rank: int, num: int) -> str:
    """Agree on a name that these processes alone have.

    torchrun starts workers again on the store of those before, which still tells where these listened, and gloo goes
    there (PyTorch 2.14). A name is agreed on as soon as all have joined it, and all that are alive know only names with
    their own part; those before never joined it.
    """
    joined: set[str] = set()
    store.set(f"rank/{rank}", uuid4().hex)
    while True:
        parts = [store.get(f"rank/{other}") for other in range(num)]
        name = hashlib.sha256(b"".join(parts)).hexdigest()
        if store.add(name, int(name not in joined)) == num:
            return name
        joined.add(name)
        time.sleep(_BETWEEN_LOOKS_S)


@dataclass(frozen=True)
class StepShare:
    """Say which of `num` equal parts of the clips of a step a batch is: number `place`, in the order of samples.

    A step of R ranks and A micro-batches has R * A parts. What couples clips sees those of all parts (`join`).

    exchange: gives the values of all ranks, [V, b, D] -> [V, R b, D], without gradient; None: there is one rank.
    known: name -> the embeddings of all parts, [V, B, D], where they were computed before.
    finite: of each call of `join`, whether the embeddings of this part are finite, and whether all are: bool scalars.
    """

    place: int = 0
    num: int = 1
    exchange: Callable[[Tensor], Tensor] | None = None
    known: Mapping[str, Tensor] | None = None
    finite: list[tuple[Tensor, Tensor]] = field(default_factory=list, compare=False)

    def join(self, name: str, own: Tensor) -> Tensor:
        """Put embeddings of this part, [V, b, D], among those of all parts: [V, num b, D].

        The gradient of this part is `num` times its own, for the gradients of all parts are averaged; that of the
        others is theirs. So the step learns as if all clips were one batch (GradCache, Gao et al. 2021, section 3.2).
        """
        if self.num == 1:
            return own
        if self.known is not None:
            everyone = self.known[name]
        elif self.exchange is not None:
            everyone = self.exchange(own.detach())
        else:
            raise ValueError("micro-batches need the embeddings of all of them, `known`")
        self.finite.append((own.detach().isfinite().all(), everyone.isfinite().all()))
        joined: Tensor = _Joined.apply(own, everyone, self.place, self.num)
        return joined


ALONE: Final = StepShare()  # all clips of a step in one batch


class _Joined(torch.autograd.Function):
    """Give `everyone`, [V, num b, D], of which part `place` is `own`, [V, b, D], with a gradient times `num`."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, everyone: Tensor, place: int, num: int) -> Tensor:
        ctx.place, ctx.num, ctx.size = place, num, own.shape[1]
        joined = everyone.clone()
        joined[:, place * ctx.size : (place + 1) * ctx.size] = own
        return joined

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        own = gradient[:, ctx.place * ctx.size : (ctx.place + 1) * ctx.size]
        return own * ctx.num, None, None, None
