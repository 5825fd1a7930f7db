"""Features on disk: parts, each written whole, that any number of processes fill in, and the single file that they
become.

FOLDER/extract.json                        what is extracted, and how: the same for every process, or they are refused
FOLDER/part-00007-of-00012.safetensors     rows in order; a part that is there is whole
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vjepa import files
from vjepa.errors import UserError

Tensors = dict[str, torch.Tensor]
_PLAN_FILE: Final = "extract.json"
_PLACES: Final = ("model_path", "dataset")  # where things lie, which plays no part
_NAMING: Final = ("row", "clip", "start_s", "end_s", "uri", "label")
_DTYPES: Final = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
}


def fingerprint(plan: Mapping[str, Any]) -> str:
    """Hash what features depend on: hex, equal for plans that give equal features."""
    facts = {key: value for key, value in plan.items() if key not in _PLACES}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Parts:
    """Keep the parts of one extraction in a folder."""

    def __init__(self, folder: Path, plan: Mapping[str, Any], num_parts: int) -> None:
        """Make the folder, or go on in it. Raises UserError where it holds something else."""
        self.folder, self.plan, self.num_parts = folder, plan, num_parts
        self._fingerprint = fingerprint(plan)
        found = self._start()
        refuse_other_plan(folder, plan, found)

    def _start(self) -> dict[str, Any]:
        """Read the plan that the folder is for; the first process writes its own."""
        file = self.folder / _PLAN_FILE
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            holds_other = not file.exists() and any(not path.name.startswith(".") for path in self.folder.iterdir())
            if not holds_other and not file.exists():
                files.write_json(file, self.plan)
            found = None if holds_other else json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder}: {error}; name another --out") from None
        if not isinstance(found, dict):
            raise UserError(f"{self.folder}: holds something else than features; name a new or an empty folder")
        return found

    def path(self, part: int) -> Path:
        return self.folder / f"part-{part:05}-of-{self.num_parts:05}.safetensors"

    def missing(self) -> list[int]:
        """List the parts that are not there yet."""
        return [part for part in range(self.num_parts) if not self.path(part).exists()]

    def write(self, part: int, tensors: Tensors, unreadable: Mapping[int, str]) -> None:
        """Write one part. unreadable: row -> why it has no features."""
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with files.whole_file(self.path(part)) as partial:
            save_file(whole, partial, metadata_of(self.plan, unreadable))

    def rows(self) -> torch.Tensor:
        """Give the row of the index of each row of all parts, int64 [R]; they must be there."""
        return torch.cat([tensors["row"] for tensors in self.read(["row"])])

    def unreadable(self) -> dict[int, str]:
        """Map each row of all parts that has no features to the reason."""
        found: dict[int, str] = {}
        for part in range(self.num_parts):
            with self._open(part) as file:
                found |= {int(row): reason for row, reason in json.loads(file.metadata()["unreadable"]).items()}
        return found

    def read(self, names: Sequence[str] | None = None) -> Iterator[Tensors]:
        """Read every part in order, all of its tensors or those called `names`."""
        for part in range(self.num_parts):
            with self._open(part) as file:
                yield {name: file.get_tensor(name) for name in names or file.keys()}

    @contextmanager
    def _open(self, part: int) -> Iterator[Any]:
        """Open a part. Raises UserError for one of another extraction, or that a crash of the machine cut short."""
        try:
            with safe_open(self.path(part), framework="pt") as file:
                if (file.metadata() or {}).get("fingerprint") == self._fingerprint:
                    yield file
                    return
                problem = "of another extraction"
        except SafetensorError as error:
            problem = f"damaged ({error})"
        raise UserError(f"{self.path(part)}: {problem}; remove it and run the same command again")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold a lock that one process has at a time; one that dies lets go.

        The folder may be gone, for another process has finished.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def tidy(self) -> None:
        """Remove what killed processes left half written; all parts must be there."""
        for path in self.folder.glob(".partial-*"):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # another process may be removing it too


def refuse_other_plan(path: Path, plan: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise UserError that names what differs where `path` holds what was extracted by another plan."""
    here, there = _as_text(plan), _as_text(found)
    differs = [key for key in plan if key not in _PLACES and here[key] != there.get(key)]
    if differs:
        raise UserError(
            f"{path}: holds features of another extraction (another {', '.join(differs)}); name another "
            "--out, or remove it"
        )


def metadata_of(plan: Mapping[str, Any], unreadable: Mapping[int, str]) -> dict[str, str]:
    """Gather what a file says of itself; values other than text are JSON."""
    return _as_text({**plan, "unreadable": dict(unreadable), "fingerprint": fingerprint(plan)})


def _as_text(values: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else json.dumps(value, sort_keys=True) for key, value in values.items()
    }


def read_metadata(path: Path) -> dict[str, str]:
    """Read what a finished file says of itself. Raises UserError where it is no file of features."""
    try:
        if path.suffix == ".parquet":
            stored = pq.read_schema(path).metadata or {}
            found = {key.decode(): value.decode() for key, value in stored.items() if key != b"ARROW:schema"}
        else:
            with safe_open(path, framework="pt") as file:
                found = file.metadata() or {}
    except (OSError, SafetensorError, pa.ArrowException):
        found = {}
    if "fingerprint" not in found:
        raise UserError(f"{path}: exists, and holds no features of this command; name another --out, or remove it")
    return found


def text_tensor(values: Sequence[str | None], width: int) -> torch.Tensor:
    """Store text as uint8 [n, width], UTF-8 filled up with zeros, for safetensors knows none.

    Back: bytes(row).rstrip(b"\\0").decode().
    """
    table = np.zeros((len(values), width), dtype=np.uint8)
    for row, value in zip(table, values, strict=True):
        encoded = (value or "").encode()
        row[: len(encoded)] = np.frombuffer(encoded, dtype=np.uint8)
    return torch.from_numpy(table)


def write_safetensors(path: Path, parts: Parts, texts: Mapping[str, Sequence[str | None]]) -> None:
    """Write all parts as one file; one part is in memory at a time."""
    shapes: dict[str, tuple[torch.dtype, list[int]]] = {}
    for tensors in parts.read():
        for name, tensor in tensors.items():
            dtype, shape = shapes.setdefault(name, (tensor.dtype, [0, *tensor.shape[1:]]))
            shape[0] += len(tensor)
    # wide numbers first, so that every tensor starts at a multiple of the size of its own
    names = sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name))
    header: dict[str, Any] = {"__metadata__": metadata_of(parts.plan, parts.unreadable())}
    end = 0
    for name in names:
        dtype, shape = shapes[name]
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with files.whole_file(path) as partial, partial.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            for tensors in parts.read([name]):
                file.write(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)


def write_parquet(path: Path, parts: Parts, texts: Mapping[str, Sequence[str | None]]) -> None:
    """Write all parts as one file: features as lists of fixed length, and `texts` as text.

    texts: column -> one value per row of the index.
    """
    metadata = metadata_of(parts.plan, parts.unreadable())
    with files.whole_file(path) as partial, ExitStack() as stack:
        writer = None
        for tensors in parts.read():
            table = _table(tensors, texts).replace_schema_metadata(metadata)
            writer = writer or stack.enter_context(pq.ParquetWriter(partial, table.schema))
            writer.write_table(table)


def _table(tensors: Tensors, texts: Mapping[str, Sequence[str | None]]) -> pa.Table:
    """Lay out a part as Parquet has it."""
    rows = tensors["row"].tolist()
    columns: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if name in texts:
            columns[name] = pa.array([texts[name][row] for row in rows], pa.string())
        elif tensor.ndim == 1:
            columns[name] = pa.array(tensor.numpy())
        else:
            flat = pa.array(tensor.flatten().numpy())
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, math.prod(tensor.shape[1:]))
    return pa.table({name: columns[name] for name in sorted(columns, key=_place_in_table)})


def _place_in_table(name: str) -> tuple[int, int, str]:
    """Order columns: those that name a clip, then its labels, then its features."""
    return name.startswith("features"), _NAMING.index(name) if name in _NAMING else len(_NAMING), name


WRITERS: Final[dict[str, Callable[[Path, Parts, Mapping[str, Sequence[str | None]]], None]]] = {
    ".safetensors": write_safetensors,
    ".parquet": write_parquet,
}
