"""The loop of training, whatever the method: step, evaluate, save."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from vjepa import config
from vjepa.data.loader import train_loader
from vjepa.data.sources import TrainSource
from vjepa.errors import NotFinite
from vjepa.run_folder import RunFolder
from vjepa.training import checkpoint
from vjepa.training.checkpoint import TrainingState
from vjepa.training.monitor import HealthMonitor
from vjepa.training.progress import Progress
from vjepa.training.run_log import RunLog
from vjepa.training.step import TrainingStep
from vjepa.training.stopping import interruptible

SettingsT = TypeVar("SettingsT", config.Config, config.FinetuneConfig, config.WorldConfig)


@dataclass(frozen=True)
class TrainingRun(Generic[SettingsT]):
    """Hold what one call of the loop has to do: settings, their folder, the clips of each source, where to compute."""

    settings: SettingsT
    folder: RunFolder
    sources: list[TrainSource]
    device: torch.device
    dtype: torch.dtype
    total_steps: int
    progress: bool

    def loader(self, steps: range) -> Iterable[Any]:
        """Load a batch for each of `steps`, in order."""
        settings, pin = self.settings, self.device.type == "cuda"
        return train_loader(self.sources, settings.data, settings.run.seed, steps, pin_memory=pin)


class Judge(Protocol):
    """Tell by labelled clips how good the networks are: the online probe of pre-training, the answers of fine-tuning.

    It draws nothing and changes nothing.
    """

    def measure_at(self, step: int) -> dict[str, float]:
        """Measure at the steps that are to be measured at; nothing at others."""

    def merit(self, found: dict[str, float]) -> float:
        """Tell by what was measured how good a checkpoint is; the best one has the most."""


def learn(
    run: TrainingRun[Any],
    step: TrainingStep[Any],
    log: RunLog,
    judge: Judge | None,
    monitor: HealthMonitor | None,
    state: TrainingState,
    stop: int,
) -> None:
    """Do steps `state.step` to `stop`. Everything random is a function of (seed, step): there is no other state."""
    every, steps = run.settings.run, range(state.step, stop)
    loader = run.loader(steps)
    bar = Progress(state.step, run.total_steps, run.progress)
    with interruptible() as interrupted:
        if not log.rows and (untrained := monitor.measure_at(0) if monitor else {}):
            log.write(0, {}, measured=untrained)
        for number, batch in zip(steps, bar.waiting(loader), strict=True):
            # step
            is_logged = (number + 1) % every.log_every_steps == 0
            terms = step(number, batch, by_part=is_logged)
            state.step = number + 1
            state.note(batch)
            bar.advance(len(batch.clip_ids))

            # evaluate
            health = monitor.measure_at(state.step) if monitor else {}
            found = judge.measure_at(state.step) if judge else {}
            merit = judge.merit(found) if judge and found else None
            is_best = merit is not None and (state.best_merit is None or merit > state.best_merit)
            state.best_merit = merit if is_best else state.best_merit
            ending = state.step == stop or bool(interrupted)
            saving = ending or is_best or state.step % every.save_every_steps == 0
            if saving or found or health or is_logged:
                values, facts = read_terms(terms, state.step), bar.recent() | {"num_replaced": state.num_replaced}
                log.write(state.step, {**values, **step.scalars(number), **facts}, batch.source, {**found, **health})
                bar.show(values["loss"], facts["clips_per_s"])
            if monitor:
                if health and monitor.judge(log.rows):
                    bar.say(str(monitor.verdict))
                    log.say(state.step, "verdict", str(monitor.verdict))
                ending = ending or monitor.ends_run
                is_best = is_best or monitor.is_best(log.rows, every.save_every_steps)

            # save
            if saving or ending:
                checkpoint.save(run.folder, step.method, step.optimizer, state, every.keep_checkpoints, is_best)
            if ending:
                break
    bar.close()
    log.close()


def read_terms(terms: dict[str, Tensor], step: int) -> dict[str, float]:
    """Copy the loss terms to the host. Raises NotFinite where the loss is not finite: nothing is saved after that."""
    values = {name: float(term.detach()) for name, term in terms.items()}
    if not math.isfinite(values["loss"]):
        raise NotFinite(
            f"the loss is {values['loss']} at step {step}; lower optim.lr or set optim.clip_grad. The last checkpoint "
            "is untouched"
        )
    return values
