"""The loop of training, whatever the method: step, evaluate, save."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import closing
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
from vjepa.training.team import Team, watched

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

    def loader(self, steps: range, team: Team) -> Iterable[Any]:
        """Load the micro-batches of this rank for each of `steps`, in order."""
        settings, pin, mine = self.settings, self.device.type == "cuda", (team.ranks.rank, team.ranks.num)
        return train_loader(self.sources, settings.data, settings.run.seed, steps, pin, *mine, team.accumulate)


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
    """Do steps `state.step` to `stop`. Everything random is a function of (seed, step): there is no other state.

    Several ranks all do it, and decide alike. Raises NotFinite where `guard.max_skips` steps in a row could not be
    taken, after a checkpoint of the weights, which are finite.
    """
    every, steps, team = run.settings.run, range(state.step, stop), step.team
    loader = iter(run.loader(steps, team))
    bar = Progress(state.step, run.total_steps, run.progress and team.leads)
    recent = TrainingState()  # what this rank could not read since the last row
    writer = checkpoint.Writer(run.folder, every.keep_checkpoints, team.leads)
    step.guard.resume(state.num_skips_in_row, state.num_skipped, state.losses)
    with interruptible() as interrupted, watched(team, state.step), writer, closing(bar):
        if not log.rows and (untrained := monitor.measure_at(0) if monitor else {}):
            log.write(0, {}, measured=untrained)
        for number, batches in zip(steps, bar.waiting(zip(*[loader] * team.accumulate, strict=True)), strict=True):
            # step
            is_logged = (number + 1) % every.log_every_steps == 0
            terms = step(number, *batches, by_part=is_logged)
            state.step = number + 1
            bar.advance(recent.note(*batches) * team.ranks.num)

            # evaluate
            health = monitor.measure_at(state.step) if monitor else {}
            found = judge.measure_at(state.step) if judge else {}
            merit = judge.merit(found) if judge and found else None
            is_best = merit is not None and (state.best_merit is None or merit > state.best_merit)
            asked, skips = team.most_of_hosts(
                bool(interrupted) or (team.leads and run.folder.stop.exists()), step.guard.look()
            )
            ending = state.step == stop or bool(asked) or skips >= run.settings.guard.max_skips
            is_best, merit, ending = team.steps.agree((is_best, merit, ending)) if found else (is_best, merit, ending)
            state.best_merit = merit if is_best else state.best_merit
            saving = ending or is_best or state.step % every.save_every_steps == 0
            if saving or found or health or is_logged:
                recent = _take_stock(state, recent, step)
                values, facts = read_terms(team.mean(terms)), bar.recent() | state.counts
                log.write(state.step, values | step.scalars(number) | facts, batches[0].source, found | health)
                bar.show(values.get("loss", math.nan), facts["clips_per_s"])
            if monitor:
                if health and monitor.judge(log.rows):
                    bar.say(str(monitor.verdict))
                    log.say(state.step, "verdict", str(monitor.verdict))
                is_best = is_best or monitor.is_best(log.rows, every.save_every_steps)
                is_best, ending = (
                    team.steps.agree((is_best, ending or monitor.ends_run)) if health else (is_best, ending)
                )

            # save
            if saving or ending:
                writer.save(step.method, step.optimizer, state, is_best)
            if ending:
                break
        log.close()
    if step.guard.worst >= run.settings.guard.max_skips:
        team.ranks.end(_not_finite(step.guard.worst, state.step))


def _take_stock(state: TrainingState, recent: TrainingState, step: TrainingStep[Any]) -> TrainingState:
    """Add to `state` what every rank noted, and which steps were skipped; what comes next is noted anew."""
    state.take_in(step.team.steps.gather(recent))
    step.guard.look(wait=True)
    state.num_skips_in_row, state.num_skipped = step.guard.num_in_row, step.guard.num_skipped
    state.losses = step.guard.losses()
    return TrainingState()


def read_terms(terms: dict[str, Tensor]) -> dict[str, float]:
    """Copy the loss terms to the host, those that are finite: of a step that was skipped, some may not be."""
    values = {name: float(term.detach()) for name, term in terms.items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _not_finite(num: int, step: int) -> NotFinite:
    return NotFinite(
        f"the loss or its gradient was not finite in {num} steps in a row, up to step {step}; lower optim.lr or set "
        "optim.clip_grad. They changed no weight: the checkpoint of this step is finite"
    )
