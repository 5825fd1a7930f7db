"""The ranks that train a run together: which clips each has, how their numbers meet, what they agree on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from vjepa import config, device, ranks
from vjepa.errors import UserError
from vjepa.ranks import ONE_RANK, Ranks, StepShare

_SHARE_OF_TIMEOUT: Final = 0.8  # for a collective; the rest is for finding out who is missing
_ROLL_CALL_S: Final = 5.0  # that others have to say that they are here, at most


@dataclass(frozen=True)
class Team:
    """Know the ranks of a run, and talk to them.

    ranks: they wait for each other with all patience. steps: the same, within `timeout_s`, as while they train.
    accumulate: micro-batches of a rank in a step. devices: group that tensors on a `device` meet in, NCCL for `cuda`;
    None: there is one rank.
    """

    ranks: Ranks = ONE_RANK
    steps: Ranks = ONE_RANK
    accumulate: int = 1
    timeout_s: float = 0.0
    devices: dist.ProcessGroup | None = None
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Tell whether this is the rank that opens the run folder, logs and saves."""
        return self.ranks.rank == 0

    def shares(self, num_batches: int) -> list[StepShare]:
        """Name the parts of a step that the `num_batches` batches of this rank are."""
        first, num = self.ranks.rank * num_batches, self.ranks.num * num_batches
        return [StepShare(first + place, num, self.exchange) for place in range(num_batches)]

    def exchange(self, own: Tensor) -> Tensor:
        """Give every rank the values of all, in order: [V, b, ...] -> [V, R b, ...], without gradient."""
        if self.ranks.num == 1:
            return own
        found = [torch.empty_like(own) for _ in range(self.ranks.num)]
        dist.all_gather(found, own.contiguous(), group=self.devices)
        return torch.cat(found, dim=1)

    def most(self, value: Tensor) -> Tensor:
        """Give every rank the largest value of all, element by element, on the device; the host does not wait."""
        if self.ranks.num > 1:
            dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.devices)
        return value

    def most_of_hosts(self, *numbers: int) -> list[int]:
        """Give every rank the largest of each number; all meet here once a step, so one that hangs is noticed."""
        if self.ranks.num == 1:
            return list(numbers)
        values = torch.tensor(numbers)
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.steps.group)
        return [int(value) for value in values]

    def mean(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Average scalars over the ranks. Each name is on all of them."""
        if self.ranks.num == 1:
            return dict(terms)
        values = torch.stack([term.detach().float() for term in terms.values()])
        dist.all_reduce(values, group=self.devices)  # and divide: gloo's AVG gives the sum (pytorch/pytorch#162338)
        return dict(zip(terms, (values / self.ranks.num).unbind(), strict=True))

    def check_alike(self, facts: Mapping[str, Any]) -> None:
        """Compare what has to be the same on all ranks; a difference ends them all by a UserError that names it."""
        every = self.ranks.gather(dict(facts))
        for name, value in every[0].items():
            for rank, others in enumerate(every):
                if others[name] != value:
                    told = f"{name}: {value} on rank 0, {others[name]} on rank {rank}"
                    self.ranks.end(UserError(f"{told}; start all of them with the same code, settings and files"))


@contextmanager
def assemble(settings: config.Config) -> Iterator[Team]:
    """Gather the processes that torchrun started into a team; one that is alone is a team, too.

    Raises UserError where they do not find each other.
    """
    wanted = settings.parallel
    with ranks.join() as mine:
        team = Team(mine, mine, wanted.accumulate, wanted.timeout_s)
        if mine.num == 1:
            yield team
            return
        where, _ = mine.together(lambda: device.pick(settings.run))
        if where.type == "cuda":
            torch.cuda.set_device(where)
        patience = timedelta(seconds=wanted.timeout_s * _SHARE_OF_TIMEOUT)
        hosts: Any = dist.new_group(backend="gloo", timeout=patience)
        devices: Any = dist.new_group(backend="nccl", timeout=patience) if where.type == "cuda" else hosts
        yield replace(team, steps=replace(mine, group=hosts), devices=devices, device=where.type)


@contextmanager
def watched(team: Team, step: int) -> Iterator[None]:
    """Name the rank that does not answer, where a step waits for it longer than `parallel.timeout_s`.

    Raises UserError then. step: the one that the run began at, by which calls of the roll differ.
    """
    try:
        yield
    except RuntimeError as error:
        if team.ranks.num == 1 or not _is_of_ranks(error):
            raise
        raise UserError(_roll_call(team, f"roll/{step}", error)) from None


def _is_of_ranks(error: RuntimeError) -> bool:
    """Tell whether an error is one of processes that no longer hear each other."""
    if isinstance(error, dist.DistError):
        return True
    told = str(error).lower()
    return any(word in told for word in ("timed out", "connection closed", "connection reset", "gloo", "broken pipe"))


def _roll_call(team: Team, key: str, error: RuntimeError) -> str:
    """Ask who is here, by the store that torchrun keeps; say who is not."""
    store, mine, num = dist.distributed_c10d._get_default_store(), team.ranks.rank, team.ranks.num
    patience_s = min(_ROLL_CALL_S, team.timeout_s * (1 - _SHARE_OF_TIMEOUT) / 2)
    store.set_timeout(timedelta(seconds=patience_s))
    until, missing = time.monotonic() + patience_s, [rank for rank in range(num) if rank != mine]
    try:
        store.set(f"{key}/{mine}", "here")
        while missing and time.monotonic() < until:
            missing = [rank for rank in missing if not store.check([f"{key}/{rank}"])]
            time.sleep(0.1)
    except RuntimeError:  # without torchrun, number 0 keeps the store
        missing = [0]
    if not missing:
        return f"the ranks lost each other within a step ({' '.join(str(error).split())[:200]}); start them again"
    named = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
    return (
        f"{named} of {num} ended, or did not answer within parallel.timeout_s={team.timeout_s:g}; the same command "
        "goes on from the last checkpoint"
    )


def digest(paths: list[str]) -> str:
    """Hash files by sha256, one after the other; of those that are not there, the name."""
    hashed = hashlib.sha256()
    for path in paths:
        hashed.update(path.encode())
        if Path(path).is_file():
            with Path(path).open("rb") as file:
                hashed.update(hashlib.file_digest(file, "sha256").digest())
    return hashed.hexdigest()
