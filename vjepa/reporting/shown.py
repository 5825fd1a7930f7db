"""What the page of a run shows and cannot be made from its log: kept as one small file at the end of the run.

facts: plain values. arrays: by name
  clip/I            the frames of clip I side by side, bytes of a WebP
  context/S/I, target/S/I   bool [t, h, w] as bits (`numpy.packbits`): the mask of set S that is shown on clip I
  parts/KIND/I, clips/KIND/I    uint8 [t, h', w', 3]: features of clip I, KIND trained or untrained, as colours: along
                    the axes by which parts of these clips differ most, and those by which many clips differ most
  spectrum/KIND     float32 [D]: variance of the features of clips along their principal axes, the largest first
  small/I           a frame of clip id I, bytes of a WebP
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vjepa.files import whole_file

VERSION: Final = 1


@dataclass(frozen=True)
class Shown:
    """Hold what the page shows; see above."""

    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def bits(self, name: str) -> np.ndarray:
        """Unpack a mask: bool [t, h, w]."""
        grid = self.facts["grid"]
        return np.unpackbits(self.arrays[name], count=int(np.prod(grid))).astype(bool).reshape(grid)

    def content(self, name: str) -> bytes:
        """Give the bytes of a picture."""
        return self.arrays[name].tobytes()


def pack(seen: np.ndarray) -> np.ndarray:
    """Pack a mask, bool [t, h, w], as `Shown.bits` reads it."""
    return np.packbits(seen.reshape(-1))


def picture(content: bytes) -> np.ndarray:
    """Hold the bytes of a picture as an array."""
    return np.frombuffer(content, np.uint8)


def write(path: Path, shown: Shown) -> None:
    """Write the file, whole."""
    facts = json.dumps({"version": VERSION, **shown.facts})
    with whole_file(path) as partial:
        save_file(
            {name: np.ascontiguousarray(array) for name, array in shown.arrays.items()}, partial, {"facts": facts}
        )


def read(path: Path) -> Shown | None:
    """Read the file; None where there is none, a damaged one, or one of another version."""
    try:
        with safe_open(path, "numpy") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError, ValueError):
        return None
    return Shown(facts, arrays) if facts.get("version") == VERSION else None
