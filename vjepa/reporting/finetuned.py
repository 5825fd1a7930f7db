"""What closes a fine-tuning run: its network beside the frozen probes of its start, from summary.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vjepa.errors import UserError
from vjepa.probing.bootstrap import Share
from vjepa.probing.scores import Scores
from vjepa.run_folder import RunFolder

FINETUNED, SCRATCH = "fine-tuned", "from scratch"


def shares(scores: Scores) -> dict[str, Any]:
    """Keep of scores what the table tells: top-1, top-5 (None up to 5 classes) and the mean recall of the classes."""
    named: dict[str, Share | None] = {"top1": scores.top1, "top5": scores.top5, "mean_class": scores.mean_class}
    return {name: asdict(share) if share else None for name, share in named.items()}


def read(run: RunFolder) -> dict[str, Any]:
    """Read the summary of a finished fine-tuning run. Raises UserError for one that is damaged."""
    try:
        summary: dict[str, Any] = json.loads(run.summary.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{run.summary}: cannot be read ({error}); move it away, and the run is measured again"
        ) from None
    return summary


def closing_table(summary: Mapping[str, Any]) -> str:
    """Lay out each kind of network with its 95 % interval, then what was chosen and what could not be read."""
    clips = summary["num_clips"]
    lines = [
        f"{summary['label']}: accuracy on {clips['val']} clips [95 % interval]; {clips['train']} to learn from, "
        f"{clips['selection']} to choose on",
        f"  {'':26}{'top-1':22}{'top-5':8}mean class",
    ]
    for name, kind in summary["kinds"].items():
        top5 = f"{kind['top5']['value']:.3f}" if kind.get("top5") else "-"
        mean = f"{kind['mean_class']['value']:.3f}" if kind.get("mean_class") else "-"
        lines.append(f"  {name:26}{_told(kind['top1']):22}{top5:8}{mean}")
    lines += ["", "measured: {encoder} and head, step {step}".format(**summary["measured"]) + f"; {summary['views']}"]
    if summary["num_unreadable"]:
        lines.append(f"{summary['num_unreadable']} clips could not be read; summary.json names them under `unreadable`")
    if summary["num_replaced"]:
        lines.append(
            f"{summary['num_replaced']} training clips could not be read and were replaced; summary.json "
            "names the files under `replaced`"
        )
    lines.append(f"final loss {summary['final_loss']:.6f} after {summary['steps']} steps")
    return "\n".join(lines)


def _told(share: Mapping[str, float]) -> str:
    value, low, high = (f"{share[name]:.3f}".removeprefix("0") for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
