"""What a run leaves to read while it trains: metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import json

from torch.utils.tensorboard import SummaryWriter

from vjepa import files
from vjepa.run_folder import RunFolder


class RunLog:
    """Write metrics.jsonl and TensorBoard events; a resumed run first drops what was logged after its checkpoint."""

    def __init__(self, run: RunFolder, first_step: int) -> None:
        kept = [row for row in read_metrics(run) if row["step"] <= first_step]
        files.write_text(run.metrics, "".join(json.dumps(row) + "\n" for row in kept))
        self.file = run.metrics.open("a", buffering=1)
        self.board = SummaryWriter(str(run.tensorboard), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, float], source: int = 0) -> None:
        """Append one row, where `step` is the number of steps done.

        The row of a step on data.mix[source - 1] says `source`, and has curves of its own in TensorBoard.
        """
        self.file.write(json.dumps({"step": step, **({"source": source} if source else {}), **values}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(f"data.mix.{source - 1}/{name}" if source else name, value, step)

    def close(self) -> None:
        self.file.close()
        self.board.close()


def read_metrics(run: RunFolder) -> list[dict[str, float]]:
    """Read the rows of metrics.jsonl; a last line that a crash cut short is left out."""
    lines = run.metrics.read_text(encoding="utf-8").splitlines() if run.metrics.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]
