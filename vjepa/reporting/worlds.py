"""What a run of a world model says at its end: how far it sees ahead."""

from __future__ import annotations

from typing import Any


def closing_table(summary: dict[str, Any]) -> str:
    """Write the errors by steps ahead, each over that of copying the first frame."""
    found = summary["foresight"]
    lines = [f"final loss {summary['final_loss']:.4f} after {summary['steps']} steps"]
    if found is None:
        return "\n".join([*lines, "nothing measured: there is no data.val"])
    ahead = range(1, len(found["predicted"]) + 1)
    lines.append("error of latents on data.val, of copying the first frame = 1")
    lines.append(f"{'steps ahead':24s}" + "".join(f"{k:8d}" for k in ahead))
    for name in ("predicted", "shuffled"):
        shares = [mine / max(copied, 1e-12) for mine, copied in zip(found[name], found["copied"], strict=True)]
        told = {"predicted": "predicted", "shuffled": "with actions shuffled"}[name]
        lines.append(f"{told:24s}" + "".join(f"{share:8.3f}" for share in shares))
    return "\n".join(lines)
