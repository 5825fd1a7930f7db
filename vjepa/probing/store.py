"""Features on disk: computed once by one pass over the clips, found again by all that they depend on.

CACHE/ab/abcdef.../values.bin      [N, V, K, D], fp16 or bf16: N clips that could be read, V views, K tokens, D features
                   clip_ids.npy    int64 [N]
                   about.json      shape, dtype, what could not be read, and the facts whose hash names the folder
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vjepa.data.plan_rows import Passes, Views
from vjepa.errors import UserError
from vjepa.ranks import Ranks
from vjepa.records import ClipBatch

FORMAT_VERSION: Final = 1
DTYPES: Final = {"fp16": torch.float16, "bf16": torch.bfloat16}
_ABANDONED_S: Final = 24 * 3600.0  # a folder that is being written grows all the time; one so old was left by a crash


@dataclass(frozen=True)
class Recipe:
    """How clips become features.

    facts: all that the features depend on beside the clips, as plain values.
    outputs: names of what `run` gives: uint8 [B, 3, T, S, S] and clip ids int64 [B] -> output -> float [B, K, D].
    """

    facts: Mapping[str, Any]
    outputs: tuple[str, ...]
    run: Callable[[Tensor, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Bank:
    """Stored features of the clips that could be read.

    values: fp16 or bf16 [N, V, K, D], mapped into memory: what is not read costs nothing.
    clip_ids: int64 [N]. failures: what could not be read, as (clip id, reason).
    key: sha256 of all that the values depend on.
    """

    values: Tensor
    clip_ids: np.ndarray
    failures: tuple[tuple[int, str], ...]
    key: str


class Readable(Protocol):
    """See `datasets.SampleSource`."""

    def loader(self, clip_ids: np.ndarray, views: Views | Passes, batch: int) -> Iterable[ClipBatch]: ...

    def facts(self, clip_ids: np.ndarray, views: Views | Passes) -> dict[str, Any]: ...


class Store:
    """A folder of banks.

    dtype: of what is written, a name of DTYPES. say: is given a line before something is written. watch: wraps the pass
    over the clips.
    ranks: the processes that share the passes over the clips, and the folder: each reads its share, and the first joins
    what they made.
    """

    def __init__(
        self,
        folder: Path,
        dtype: str = "fp16",
        say: Callable[[str], None] = print,
        watch: Callable[[Iterable[ClipBatch]], Iterable[ClipBatch]] = iter,
        ranks: Ranks = Ranks(),  # noqa: B008 - it is frozen
    ) -> None:
        self.folder, self.dtype, self.say, self.watch, self.ranks = folder, dtype, say, watch, ranks

    def banks(
        self, source: Readable, clip_ids: np.ndarray, views: Views | Passes, recipes: Mapping[str, Recipe], batch: int
    ) -> dict[str, dict[str, Bank]]:
        """Recipe -> output -> bank. Those that are not on disk are made by one pass over the clips, `batch` views at a
        time.

        What a bank lacks because it could not be read is tried again; where something of it can be read by now, the
        bank is made anew. Raises UserError where they do not fit on the disk, no clip can be read, or features are not
        finite.
        """
        clips = source.facts(clip_ids, views)
        keys = {
            name: {output: self._key(clips, recipe, output) for output in recipe.outputs}
            for name, recipe in recipes.items()
        }
        missing, job = self.ranks.agree(
            (self._missing(source, views, keys) if self.ranks.rank == 0 else [], os.getpid())
        )
        if not missing:
            self.say(f"{len(clip_ids)} clips: features found in {self.folder}")
        else:
            num_views = views.num if isinstance(views, Passes) else views.num_clips * views.num_crops
            share = np.array_split(clip_ids, self.ranks.num)[self.ranks.rank]
            facts = {name: {"clips": clips, "recipe": dict(recipes[name].facts)} for name in missing}
            writers = {
                name: {
                    output: _Writer(self, key, job, {**facts[name], "output": output})
                    for output, key in keys[name].items()
                }
                for name in missing
            }
            every = [writer for outputs in writers.values() for writer in outputs.values()]
            try:
                made = {name: recipes[name] for name in missing}
                self._fill(
                    source.loader(share, views, max(1, batch // num_views)), len(clip_ids), num_views, made, writers
                )
                self.ranks.wait()
                for writer in every if self.ranks.rank == 0 else []:
                    writer.publish()
                self.ranks.wait()
            finally:
                for writer in every:
                    writer.close()
        return {name: {output: self._open(key) for output, key in outputs.items()} for name, outputs in keys.items()}

    def _missing(self, source: Readable, views: Views | Passes, keys: Mapping[str, Mapping[str, str]]) -> list[str]:
        """Names of the recipes whose banks have to be made."""
        self._forget_stale(source, views, {key for outputs in keys.values() for key in outputs.values()})
        missing: list[str] = []
        for name, outputs in keys.items():  # an encoder at step 0 and the untrained one may be the same features
            if not all(self._is_whole(key) for key in outputs.values()) and outputs not in [
                keys[other] for other in missing
            ]:
                missing.append(name)
        return missing

    def _forget_stale(self, source: Readable, views: Views | Passes, keys: set[str]) -> None:
        """Remove the banks that lack a clip which can be read by now: its file was repaired, or its disk is there
        again.
        """
        lacking = {key: {clip_id for clip_id, _ in self._open(key).failures} for key in keys if self._is_whole(key)}
        failed = np.array(sorted(set().union(*lacking.values())), dtype=np.int64)
        readable = (
            {clip_id for batch in source.loader(failed, views, 1) for clip_id in batch.clip_ids.tolist()}
            if len(failed)
            else set()
        )
        if readable:
            self.say(f"{len(readable)} clips that could not be read can be read now: features are made anew")
        for key in (key for key, ids in lacking.items() if ids & readable):
            shutil.rmtree(self._place(key))

    def _fill(
        self,
        loader: Iterable[ClipBatch],
        num_clips: int,
        num_views: int,
        recipes: Mapping[str, Recipe],
        writers: Mapping[str, Mapping[str, _Writer]],
    ) -> None:
        failures: list[tuple[int, str]] = []
        ids: list[np.ndarray] = []
        for batch in self.watch(loader):
            failures += batch.failures
            if not len(batch.clip_ids):
                continue
            found = {name: recipe.run(batch.video, batch.clip_ids) for name, recipe in recipes.items()}
            if not ids:
                self._announce(
                    num_clips, num_views, [value for outputs in found.values() for value in outputs.values()]
                )
            ids.append(rearrange(batch.clip_ids, "(n v) -> n v", v=num_views)[:, 0].numpy())
            for name, outputs in found.items():
                for output, values in outputs.items():
                    writers[name][output].add(rearrange(values, "(n v) k d -> n v k d", v=num_views), name)
        for writer in (writer for outputs in writers.values() for writer in outputs.values()):
            writer.finish(np.concatenate([np.empty(0, np.int64), *ids]), failures)

    def _announce(self, num_clips: int, num_views: int, values: Sequence[Tensor]) -> None:
        """Say how much will be written; refuse what does not fit."""
        size = sum(num_clips * num_views * value[0].numel() * DTYPES[self.dtype].itemsize for value in values)
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise UserError(
                f"{self.folder}: features of {num_clips} clips x {num_views} views take {_size(size)}, and "
                f"{_size(free)} are free; "
                "name another folder with --cache, or take fewer views or levels"
            )
        self.say(
            f"features of {num_clips} clips x {num_views} views: {_size(size)} of {_size(free)} free in {self.folder}"
        )

    def _key(self, clips: Mapping[str, Any], recipe: Recipe, output: str) -> str:
        facts = {
            "format": FORMAT_VERSION,
            "clips": clips,
            "recipe": recipe.facts,
            "output": output,
            "dtype": self.dtype,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _place(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _is_whole(self, key: str) -> bool:
        """A folder gets its name when it is complete; the size tells one that a full disk or a copy cut short."""
        try:
            about = json.loads((self._place(key) / "about.json").read_text(encoding="utf-8"))
            size = int(np.prod(about["shape"])) * DTYPES[about["dtype"]].itemsize
            return (self._place(key) / "values.bin").stat().st_size == size and (
                self._place(key) / "clip_ids.npy"
            ).is_file()
        except (OSError, ValueError, KeyError):
            return False

    def _open(self, key: str) -> Bank:
        place = self._place(key)
        about = json.loads((place / "about.json").read_text(encoding="utf-8"))
        shape = about["shape"]
        values = torch.from_file(
            str(place / "values.bin"), shared=False, size=int(np.prod(shape)), dtype=DTYPES[about["dtype"]]
        )
        return Bank(
            values.view(shape),
            np.load(place / "clip_ids.npy"),
            tuple((int(i), reason) for i, reason in about["failures"]),
            key,
        )


class _Writer:
    """The share that one rank has of a bank in the making, under another name until the bank is whole. job: names the
    processes that make it.
    """

    def __init__(self, store: Store, key: str, job: int, about: Mapping[str, Any]) -> None:
        self.store, self.key, self.about = store, key, about
        self.final = store._place(key)
        self.shares = [self.final.parent / f".partial-{key}-{job}-{rank}" for rank in range(store.ranks.num)]
        self.partial = self.shares[store.ranks.rank]
        self.shape: list[int] = []
        self.file: IO[bytes] | None = None
        self.final.parent.mkdir(parents=True, exist_ok=True)
        for old in self.final.parent.glob(".partial-*"):
            if time.time() - old.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir()

    def add(self, values: Tensor, name: str) -> None:
        """[n, V, K, D]: the next clips. Raises UserError for features that are not finite; `name` says whose
        they are.
        """
        stored = values.to("cpu", DTYPES[self.store.dtype]).contiguous()
        if not bool(torch.isfinite(stored).all()):
            if bool(torch.isfinite(values).all()):
                raise UserError(
                    f"{name}: features are too large for {self.store.dtype}; store them with --feature_dtype bf16"
                )
            raise UserError(
                f"{name}: features hold NaN or infinity; the encoder has diverged, measure an earlier checkpoint"
            )
        self.file = self.file or (self.partial / "values.bin").open("wb")
        self.file.write(stored.view(torch.uint8).numpy().data)
        self.shape = [self.shape[0] + len(stored) if self.shape else len(stored), *stored.shape[1:]]

    def finish(self, clip_ids: np.ndarray, failures: Sequence[tuple[int, str]]) -> None:
        """The share is complete."""
        np.save(self.partial / "clip_ids.npy", clip_ids)
        about = {"shape": self.shape, "dtype": self.store.dtype, "failures": failures, **self.about}
        (self.partial / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())

    def publish(self) -> None:
        """All shares, which are complete, become one bank in this one's place. Raises UserError where none has a
        clip.
        """
        abouts = [json.loads((share / "about.json").read_text(encoding="utf-8")) for share in self.shares]
        failures = [failure for about in abouts for failure in about["failures"]]
        shapes = [about["shape"] for about in abouts if about["shape"]]
        if not shapes:
            raise UserError(
                "no clip to measure could be read" + (f"; row {failures[0][0]}: {failures[0][1]}" if failures else "")
            )
        if len(self.shares) > 1:
            self._join(
                {**abouts[0], "shape": [sum(shape[0] for shape in shapes), *shapes[0][1:]], "failures": failures}
            )
        if self.final.exists():
            if self.store._is_whole(self.key):  # another process was quicker
                return
            shutil.rmtree(self.final, ignore_errors=True)
        os.replace(self.partial, self.final)

    def _join(self, about: Mapping[str, Any]) -> None:
        """All shares in order, in this one."""
        np.save(
            self.partial / "clip_ids.npy", np.concatenate([np.load(share / "clip_ids.npy") for share in self.shares])
        )
        (self.partial / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        with (self.partial / "values.bin").open("ab") as file:
            for values in (share / "values.bin" for share in self.shares[1:]):
                if values.exists():  # none of its clips could be read, or it has none
                    with values.open("rb") as part:
                        shutil.copyfileobj(part, file)
            os.fsync(file.fileno())

    def close(self) -> None:
        """Leave nothing behind that is not whole."""
        if self.file is not None:
            self.file.close()
        shutil.rmtree(self.partial, ignore_errors=True)


def default_folder() -> Path:
    """Where banks lie unless the user says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "vjepa", "features")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:.2f} MB"
