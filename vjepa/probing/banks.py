"""Clips to frozen features: one pass over the clips serves several kinds of features, and makes a bank of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vjepa.data.plan_rows import Passes, Views
from vjepa.errors import UserError
from vjepa.ranks import ONE_RANK, Ranks
from vjepa.records import ClipBatch

# kind of features -> output of its extractor -> [n, V, K, D]
Values = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Extractor:
    """Turn clips into features.

    facts: all that the features depend on beside the clips, as plain values.
    outputs: names of what `run` gives: uint8 [B, 3, T, H, W] and clip ids int64 [B] -> output -> float [B, K, D].
    """

    facts: Mapping[str, Any]
    outputs: tuple[str, ...]
    run: Callable[[Tensor, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Bank:
    """Hold the features of the clips that could be read.

    values: fp16 or bf16 [N, V, K, D]: N clips, V views, K tokens or places, D features.
    clip_ids: int64 [N]. failures: what could not be read, as (clip id, reason).
    key: sha256 of all that the values depend on; empty in memory.
    """

    values: Tensor
    clip_ids: np.ndarray
    failures: tuple[tuple[int, str], ...]
    key: str = ""


class SampleSource(Protocol):
    """Read samples, which are named by their clip ids."""

    def loader(self, clip_ids: np.ndarray, views: Views | Passes, batch: int) -> Iterable[ClipBatch]:
        """Read every sample once, in order, its views side by side; `failures` name those that cannot be read."""
        ...

    def facts(self, clip_ids: np.ndarray, views: Views | Passes) -> dict[str, Any]:
        """Give all that the clips of `loader` depend on, as plain values: equal facts mean equal clips."""
        ...

    def uri(self, clip_id: int) -> str:
        """Say where a reader of the report finds the sample."""
        ...


@dataclass(frozen=True)
class SampleViews:
    """Name some samples of a source, int64 [n], and how they are looked at."""

    source: SampleSource
    clip_ids: np.ndarray
    views: Views | Passes

    def facts(self) -> dict[str, Any]:
        """Give all that their clips depend on."""
        return self.source.facts(self.clip_ids, self.views)


Banks = dict[str, dict[str, Bank]]


class BankMaker(Protocol):
    """Make banks: in memory, or kept on disk by a `store.Store`."""

    def banks(self, samples: SampleViews, extractors: Mapping[str, Extractor], batch: int) -> Banks:
        """Read each clip once, `batch` views at a time: kind of features -> output -> bank."""
        ...


class InMemory:
    """Make banks for one use; nothing is written. The values are those that a store would keep."""

    def __init__(self, ranks: Ranks = ONE_RANK) -> None:
        """Share the passes among `ranks`: each reads its part of the clips, and has the banks of all."""
        self.ranks = ranks

    def banks(self, samples: SampleViews, extractors: Mapping[str, Extractor], batch: int) -> Banks:
        """Make every bank in one pass. Raises UserError where no clip can be read, or features are not finite."""
        parts: dict[tuple[str, str], list[Tensor]] = {}

        def add(found: Values) -> None:
            for name, outputs in found.items():
                for output, values in outputs.items():
                    parts.setdefault((name, output), []).append(_halved(values, name).cpu())

        mine = replace(samples, clip_ids=np.array_split(samples.clip_ids, self.ranks.num)[self.ranks.rank])
        found = self.ranks.together(lambda: extract(mine, extractors, batch, add))
        every = self.ranks.gather((*found, parts))
        ids = np.concatenate([one for one, _, _ in every])
        failures = [failure for _, failed, _ in every for failure in failed]
        keys = dict.fromkeys(key for _, _, made in every for key in made)
        if not keys:
            raise nothing_readable(failures)
        banks: Banks = {name: {} for name in extractors}
        for name, output in keys:
            # fp32 where the parts differ
            joined = torch.cat([values for _, _, made in every for values in made.get((name, output), ())])
            stored = joined.bfloat16() if joined.dtype is torch.float32 else joined
            banks[name][output] = Bank(stored, ids, tuple(failures))
        return banks


def extract(
    samples: SampleViews,
    extractors: Mapping[str, Extractor],
    batch: int,
    add: Callable[[Values], None],
    watch: Callable[[Iterable[ClipBatch]], Iterable[ClipBatch]] = iter,
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Pass over the clips once and hand the features of each batch to `add`.

    Returns the ids of the clips that were read, int64 [N] in the order of their features, and (clip id, reason) of
    the others. watch: wraps the batches.
    """
    num_views = samples.views.num_views
    ids, failures = [np.empty(0, np.int64)], list[tuple[int, str]]()
    loader = samples.source.loader(samples.clip_ids, samples.views, max(1, batch // num_views))
    for clips in watch(loader):
        failures += clips.failures
        if not len(clips.clip_ids):
            continue
        ids.append(rearrange(clips.clip_ids, "(n v) -> n v", v=num_views)[:, 0].numpy())
        found = {name: one.run(clips.video, clips.clip_ids) for name, one in extractors.items()}
        add(
            {
                name: {output: rearrange(x, "(n v) k d -> n v k d", v=num_views) for output, x in outputs.items()}
                for name, outputs in found.items()
            }
        )
    return np.concatenate(ids), failures


def check_finite(values: Tensor, name: str) -> None:
    """Raise UserError for features that are not finite; `name` says whose they are."""
    if not bool(torch.isfinite(values).all()):
        raise UserError(
            f"{name}: features hold NaN or infinity; the encoder has diverged, measure an earlier checkpoint"
        )


def nothing_readable(failures: Sequence[tuple[int, str]]) -> UserError:
    """Make the error for clips of which none could be read."""
    first = f"; row {failures[0][0]}: {failures[0][1]}" if failures else ""
    return UserError(f"no clip to measure could be read{first}")


def _halved(values: Tensor, name: str) -> Tensor:
    """Round to fp16, the default of a store; to bf16 where a feature is too large for it."""
    check_finite(values, name)
    half = values.half()
    return half if bool(torch.isfinite(half).all()) else values.bfloat16()
