"""The file probe.json: a list of results, of which each measurement replaces its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from vjepa import files
from vjepa.errors import UserError

# a result replaces an older one that agrees in these; older results of other versions lack those that `save` adds
KEY: Final = ("dataset", "eval_mode", "label", "encoder")


def read(path: Path) -> list[dict[str, Any]]:
    """Read the results in the file `path`, none where there is no file. Raises UserError for a file of another kind."""
    if not path.exists():
        return []
    try:
        results: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        if all(set(KEY) <= set(result) for result in results):
            return results
    except (OSError, ValueError, TypeError):
        pass
    raise UserError(f"{path}: not a list of probe results; move it away, or give another --out")


def save(path: Path, result: dict[str, Any]) -> None:
    """Put `result` into the list in the file `path`, in place of one with the same key; all at once or not at all."""
    keys = (*KEY, "task", "pool", "fold", "anticipation_s", "rollout", "model_path")
    unsaid = {"task": "classify", "model_path": result["model_path"], "pool": "mean" if result["pool"] else None}
    others = [old for old in read(path) if any(old.get(key, unsaid.get(key)) != result[key] for key in keys)]
    files.write_json(path, [*others, result])
