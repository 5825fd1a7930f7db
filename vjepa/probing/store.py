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
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import torch
from torch import Tensor

from vjepa.errors import UserError
from vjepa.files import cache_folder, remove_folder, sync, whole_folder
from vjepa.probing.banks import Bank, Banks, Extractor, SampleViews, Values, check_finite, extract, nothing_readable
from vjepa.ranks import ONE_RANK, Ranks
from vjepa.records import ClipBatch

FORMAT_VERSION: Final = 1
DTYPES: Final = {"fp16": torch.float16, "bf16": torch.bfloat16}
_ABANDONED_S: Final = 24 * 3600.0  # a folder that is being written grows all the time; one so old was left by a crash


class Store:
    """Keep banks in a folder.

    dtype: of what is written, a name of DTYPES. say: is given a line before something is written. watch: wraps the pass
    over the clips. ranks: the processes that share the passes and the folder; each reads its share of the clips.
    """

    def __init__(
        self,
        folder: Path,
        dtype: str = "fp16",
        say: Callable[[str], None] = print,
        watch: Callable[[Iterable[ClipBatch]], Iterable[ClipBatch]] = iter,
        ranks: Ranks = ONE_RANK,
    ) -> None:
        self.folder, self.dtype, self.say, self.watch, self.ranks = folder, dtype, say, watch, ranks

    def banks(self, samples: SampleViews, extractors: Mapping[str, Extractor], batch: int) -> Banks:
        """Find every bank on disk, or make it: extractor -> output -> bank.

        Those that are missing are made by one pass over the clips, `batch` views at a time. What a bank lacks because
        it could not be read is tried again; where something of it can be read by now, the bank is made anew. Raises
        UserError where they do not fit on the disk, no clip can be read, or features are not finite.
        """
        clips = samples.facts()
        facts = {
            name: {output: {"clips": clips, "recipe": dict(one.facts), "output": output} for output in one.outputs}
            for name, one in extractors.items()
        }
        keys = {name: {output: self._key(one) for output, one in outputs.items()} for name, outputs in facts.items()}
        found = self._missing(samples, keys) if self.ranks.rank == 0 else []
        missing, job = self.ranks.agree((found, os.getpid()))
        if missing:
            writers = {
                name: {output: _Writer(self, key, job, facts[name][output]) for output, key in keys[name].items()}
                for name in missing
            }
            made = {name: extractors[name] for name in missing}
            self._make(samples, made, batch, writers)
        else:
            self.say(f"{len(samples.clip_ids)} clips: features found in {self.folder}")
        return {name: {output: self._open(key) for output, key in outputs.items()} for name, outputs in keys.items()}

    def _missing(self, samples: SampleViews, keys: Mapping[str, Mapping[str, str]]) -> list[str]:
        """Name the extractors whose banks have to be made."""
        self._forget_stale(samples, {key for outputs in keys.values() for key in outputs.values()})
        missing: dict[str, Mapping[str, str]] = {}
        for name, outputs in keys.items():
            # an encoder at step 0 and the untrained one may be the same features
            if not all(map(self._is_whole, outputs.values())) and outputs not in missing.values():
                missing[name] = outputs
        return list(missing)

    def _forget_stale(self, samples: SampleViews, keys: set[str]) -> None:
        """Remove the banks that lack a clip which can be read by now, from a repaired file or a disk that is back."""
        lacking = {key: {clip_id for clip_id, _ in self._open(key).failures} for key in keys if self._is_whole(key)}
        failed = np.array(sorted(set().union(*lacking.values())), dtype=np.int64)
        batches = samples.source.loader(failed, samples.views, 1) if len(failed) else ()
        readable = {clip_id for batch in batches for clip_id in batch.clip_ids.tolist()}
        if readable:
            self.say(f"{len(readable)} clips that could not be read can be read now: features are made anew")
        for key in (key for key, ids in lacking.items() if ids & readable):
            remove_folder(self._place(key))

    def _make(
        self,
        samples: SampleViews,
        extractors: Mapping[str, Extractor],
        batch: int,
        writers: Mapping[str, Mapping[str, _Writer]],
    ) -> None:
        """Fill the writers with this rank's share of the clips; the first rank then publishes what all have made."""
        every = [writer for outputs in writers.values() for writer in outputs.values()]
        share = replace(samples, clip_ids=np.array_split(samples.clip_ids, self.ranks.num)[self.ranks.rank])

        def add(found: Values) -> None:
            if not any(writer.shape for writer in every):
                first = [values for outputs in found.values() for values in outputs.values()]
                self._announce(len(samples.clip_ids), first)
            for name, outputs in found.items():
                for output, values in outputs.items():
                    writers[name][output].add(values, name)

        try:
            ids, failures = extract(share, extractors, batch, add, self.watch)
            for writer in every:
                writer.finish(ids, failures)
            self.ranks.wait()
            for writer in every if self.ranks.rank == 0 else []:
                writer.publish()
            self.ranks.wait()
        finally:
            for writer in every:
                writer.close()

    def _announce(self, num_clips: int, values: Sequence[Tensor]) -> None:
        """Say how much will be written, from the first batch [n, V, K, D] of each bank; refuse what does not fit."""
        num_views = values[0].shape[1]
        size = sum(num_clips * value[0].numel() * DTYPES[self.dtype].itemsize for value in values)
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise UserError(
                f"{self.folder}: features of {num_clips} clips x {num_views} views take {_size(size)}, and "
                f"{_size(free)} are free; name another folder with --cache, or take fewer views or levels"
            )
        self.say(
            f"features of {num_clips} clips x {num_views} views: {_size(size)} of {_size(free)} free in {self.folder}"
        )

    def _key(self, facts: Mapping[str, Any]) -> str:
        told = {"format": FORMAT_VERSION, "dtype": self.dtype, **facts}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def _place(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _is_whole(self, key: str) -> bool:
        """Tell whether a bank is there. Its size tells one that a full disk or a copy cut short."""
        place = self._place(key)
        try:
            about = json.loads((place / "about.json").read_text(encoding="utf-8"))
            size = int(np.prod(about["shape"])) * DTYPES[about["dtype"]].itemsize
            return (place / "values.bin").stat().st_size == size and (place / "clip_ids.npy").is_file()
        except (OSError, ValueError, KeyError):
            return False

    def _open(self, key: str) -> Bank:
        """Map a bank into memory: what is not read costs nothing."""
        place = self._place(key)
        about = json.loads((place / "about.json").read_text(encoding="utf-8"))
        shape, dtype = about["shape"], DTYPES[about["dtype"]]
        values = torch.from_file(str(place / "values.bin"), shared=False, size=int(np.prod(shape)), dtype=dtype)
        failures = tuple((int(i), reason) for i, reason in about["failures"])
        return Bank(values.view(shape), np.load(place / "clip_ids.npy"), failures, key)


class _Writer:
    """Write the share that one rank has of a bank, under another name until the bank is whole.

    job: names the processes that make it together.
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
        """Append the next clips, [n, V, K, D], of the features `name`. Raises UserError where not finite."""
        stored = values.to("cpu", DTYPES[self.store.dtype]).contiguous()
        if not bool(torch.isfinite(stored).all()):
            check_finite(values, name)
            raise UserError(
                f"{name}: features are too large for {self.store.dtype}; store them with --feature_dtype bf16"
            )
        self.file = self.file or (self.partial / "values.bin").open("wb")
        self.file.write(stored.view(torch.uint8).numpy().data)
        self.shape = [self.shape[0] + len(stored) if self.shape else len(stored), *stored.shape[1:]]

    def finish(self, clip_ids: np.ndarray, failures: Sequence[tuple[int, str]]) -> None:
        """Complete the share."""
        np.save(self.partial / "clip_ids.npy", clip_ids)
        about = {"shape": self.shape, "dtype": self.store.dtype, "failures": failures, **self.about}
        (self.partial / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        if self.file is not None:
            self.file.flush()

    def publish(self) -> None:
        """Join the shares of all ranks, which are complete, to the bank. Raises UserError where none has a clip."""
        abouts = [json.loads((share / "about.json").read_text(encoding="utf-8")) for share in self.shares]
        failures = [failure for about in abouts for failure in about["failures"]]
        shapes = [about["shape"] for about in abouts if about["shape"]]
        if not shapes:
            raise nothing_readable(failures)
        if self.store._is_whole(self.key):  # another process was quicker
            return
        shape = [sum(shape[0] for shape in shapes), *shapes[0][1:]]
        about = {**abouts[0], "shape": shape, "failures": failures}
        ids = np.concatenate([np.load(share / "clip_ids.npy") for share in self.shares])
        first, *others = [share / "values.bin" for share in self.shares if (share / "values.bin").exists()]
        with whole_folder(self.final) as folder:
            (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            np.save(folder / "clip_ids.npy", ids)
            first.rename(folder / "values.bin")
            with (folder / "values.bin").open("ab") as file:
                for other in others:
                    with other.open("rb") as part:
                        shutil.copyfileobj(part, file)
            sync(folder / "values.bin")

    def close(self) -> None:
        """Leave nothing behind that is not whole."""
        if self.file is not None:
            self.file.close()
        shutil.rmtree(self.partial, ignore_errors=True)


def default_folder() -> Path:
    """Name the folder of banks for users who name none."""
    return cache_folder() / "features"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:.2f} MB"
