"""What a run leaves to read while it trains: metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import json
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from vjepa import files
from vjepa.errors import UserError
from vjepa.run_folder import RunFolder

try:
    import wandb
except ImportError:  # an extra
    wandb = None


class RunLog:
    """Write metrics.jsonl and TensorBoard events; a resumed run first drops what was logged after its checkpoint.

    rows: what the log has, the oldest first.
    """

    def __init__(
        self, run: RunFolder, first_step: int, wandb_settings: dict[str, Any] | None = None, leads: bool = True
    ) -> None:
        """Open the log of a run of which `first_step` steps are done.

        wandb_settings: what Weights & Biases shows as its config; None: it gets nothing. leads: of several ranks one
        writes, the others remember alone.
        """
        self.rows = [row for row in read_metrics(run) if row["step"] <= first_step] if first_step else []
        self.wandb = self.file = self.board = None
        if not leads:
            return
        self.wandb = None if wandb_settings is None else _begin_wandb(run, wandb_settings)
        files.write_text(run.metrics, "".join(json.dumps(row) + "\n" for row in self.rows))
        self.file = run.metrics.open("a", buffering=1)
        self.board = SummaryWriter(str(run.tensorboard), purge_step=first_step + 1)

    def write(
        self, step: int, values: dict[str, float], source: int = 0, measured: dict[str, float] | None = None
    ) -> None:
        """Append one row, where `step` is the number of steps done.

        The `values` of a step on data.mix[source - 1] have curves of their own in TensorBoard, and its row says
        `source`. measured: of the networks, whatever the source is.
        """
        measured = measured or {}
        self.rows.append({"step": step, **({"source": source} if source else {}), **values, **measured})
        if self.file is None or self.board is None:
            return
        self.file.write(json.dumps(self.rows[-1]) + "\n")
        curves = {f"data.mix.{source - 1}/{name}" if source else name: value for name, value in values.items()}
        for name, value in (curves | measured).items():
            self.board.add_scalar(name, value, step)

    def say(self, step: int, name: str, text: str) -> None:
        """Show a text in TensorBoard."""
        if self.board is not None:
            self.board.add_text(name, text, step)

    def close(self) -> None:
        if self.wandb is not None:
            self.wandb.finish()
        for one in (self.file, self.board):
            if one is not None:
                one.close()


def _begin_wandb(run: RunFolder, settings: dict[str, Any]) -> Any:
    """Have Weights & Biases follow TensorBoard; one run folder is one run there, a resumed one too."""
    name = run.path.resolve().name
    return wandb.init(
        project="vjepa", name=name, id=name, resume="allow", dir=run.path, config=settings, sync_tensorboard=True
    )


def check_wandb() -> None:
    """Raise UserError where Weights & Biases is asked for and not installed."""
    if wandb is None:
        raise UserError("monitor.wandb: wandb is not installed; pip install 'video-jepa[wandb]', or set it to false")


def read_metrics(run: RunFolder) -> list[dict[str, float]]:
    """Read the rows of metrics.jsonl; a last line that a crash cut short is left out."""
    lines = run.metrics.read_text(encoding="utf-8").splitlines() if run.metrics.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]
