"""What every method's run asks before it learns: how many steps it has, and whether it goes on in its precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch

from vjepa import config
from vjepa.data.order import total_steps
from vjepa.data.sources import TrainSource
from vjepa.errors import UserError
from vjepa.training.checkpoint import TrainingState
from vjepa.training.loop import TrainingRun

_SHORT: Final = {"float32": "fp32", "bfloat16": "bf16"}


def dtype_name(dtype: torch.dtype) -> str:
    """Give the name by which a checkpoint remembers a precision."""
    return str(dtype).removeprefix("torch.")


def check_precision(run: TrainingRun[Any], state: TrainingState) -> None:
    """Refuse to go on in another precision than the run has had so far, unless run.precision asks for it."""
    used, now = state.dtype, dtype_name(run.dtype)
    if run.settings.run.precision == "auto" and used is not None and used != now:
        raise UserError(
            f"{run.folder.path}: was trained in {used} so far, and on this machine run.precision=auto means {now}; go "
            f"on with run.precision={_SHORT[used]}, or change it with run.precision={_SHORT[now]}"
        )


def run_length(
    settings: config.Config | config.FinetuneConfig | config.WorldConfig, sources: Sequence[TrainSource]
) -> int:
    """Count the steps of a run: `optim.total_steps`, or those in which the rows of data.train, the first of `sources`,
    have their turn `optim.epochs` times.
    """
    data, seed, optim = settings.data, settings.run.seed, settings.optim
    if optim.total_steps is not None:
        return optim.total_steps
    turns = total_steps(seed, math.ceil((optim.epochs or 0) * len(sources[0].parts[0].rows)), data.clip_ratios)
    return total_steps(seed, math.ceil(turns * data.clips_in_turn / data.global_batch), data.mix_ratios)
