"""One trial: a short run with its own settings, scored on clips that it does not learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

from torch import Tensor

from vjepa import config
from vjepa.errors import NotFinite
from vjepa.health.verdict import Row
from vjepa.models.encoder import Encoder
from vjepa.training.checkpoint import TrainingState
from vjepa.training.loop import TrainingRun, learn
from vjepa.training.monitor import HealthMonitor
from vjepa.training.optim import make_optimizer
from vjepa.training.pretraining import online_probe, prepare
from vjepa.training.run_log import RunLog
from vjepa.training.step import ObservedMethod, TrainingStep
from vjepa.tuning.held_out import HeldOut
from vjepa.tuning.score import crop, label_free

SCORES: Final = 8  # times that a trial is scored, the last time at its end
Score = Callable[[Row], float]
Report = Callable[[int, float], bool]  # step, score -> whether to give the trial up: others were better by then
Ending = Literal["complete", "beaten", "collapsing", "not finite", "interrupted"]


@dataclass(frozen=True)
class Outcome:
    """Say how a trial ended, at which step, and what the monitor said last. score: the last one, None without any."""

    ending: Ending
    step: int
    verdict: str
    score: float | None


def shortened(settings: config.Config, total_steps: int, steps: int, with_labels: bool) -> config.Config:
    """Give the settings of a run of `total_steps` in `steps`: what counts steps shrinks alike, as does the half-life of
    the EMA.

    with_labels: with the online probe wherever health is measured; without, data.val is not read.
    """
    tree: dict[str, Any] = settings.model_dump(mode="json")
    factor, every = steps / total_steps, max(1, steps // SCORES)
    optim, objective = tree["optim"], tree["objective"]
    optim |= {"total_steps": steps, "epochs": None, "warmup_steps": round(optim["warmup_steps"] * factor)}
    for decay in ("ema_decay", "final_ema_decay"):
        optim[decay] **= 1 / factor
    objective["context_warmup_steps"] = [round(step * factor) for step in objective["context_warmup_steps"]]
    tree["run"] |= {"save_every_steps": steps, "keep_checkpoints": 1}
    tree["monitor"] |= {"every_steps": every, "stop_on": ["collapsing"], "wandb": False}
    tree["eval"]["every_steps"] = every if with_labels else None
    if not with_labels:
        tree["data"]["val"] = None
    return config.validate(tree, "trial")


def run_trial(settings: config.Config, held_out: HeldOut, clips: Tensor, score: Score, report: Report) -> Outcome:
    """Train once with `settings`, as `shortened` gives them, in a folder that is gone afterwards.

    clips: uint8 [B, 3, T, H, W], those of `held_out` that are measured.
    """
    with TemporaryDirectory(prefix="vjepa-tune-") as folder:
        placed = settings.model_copy(update={"run": settings.run.model_copy(update={"dir": folder})})
        run, method = prepare(placed, progress=False)
        run = replace(run, sources=[held_out.left_of(source) for source in run.sources])
        optimizer = make_optimizer(method.to(run.device), settings.optim)
        step = TrainingStep(
            method, optimizer, settings.optim, run.dtype, run.total_steps, settings.run.compile, guard=settings.guard
        )
        log, probe = RunLog(run.folder, 0), online_probe(run, method)
        monitor = TrialMonitor(run, method.measured_encoder, clips, step, score, report)
        state = TrainingState()
        try:
            learn(run, step, log, probe, monitor, state, run.total_steps)
        except NotFinite as error:
            return Outcome("not finite", state.step, str(error), monitor.score)
        except KeyboardInterrupt:  # a second signal, which does not wait for the step to end
            return Outcome("interrupted", state.step, str(monitor.verdict), monitor.score)
        finally:
            log.close()
    return Outcome(monitor.ending(state.step), state.step, str(monitor.verdict), monitor.score)


class TrialMonitor(HealthMonitor):
    """Score a run where its health is measured, and end it where it collapses or others were better by then."""

    def __init__(
        self,
        run: TrainingRun[config.Config],
        encoder: Encoder,
        clips: Tensor,
        step: TrainingStep[ObservedMethod],
        score: Score,
        report: Report,
    ) -> None:
        super().__init__(run.settings, clips, step, [], run.total_steps)
        self.encoder, self.score_of, self.report = encoder, score, report
        self.crops = None if run.settings.eval.every_steps else crop(clips, run.settings.run.seed)
        self.score: float | None = None
        self.is_beaten = False

    def measure_at(self, step: int) -> dict[str, float]:
        """Measure what a score without labels looks at too, unless the online probe scores."""
        found = super().measure_at(step)
        if self.crops is None or not found or step == 0:
            return found
        batch = self.settings.data.global_batch
        channels = self.settings.data.channels
        return found | label_free(self.encoder, self.clips, self.crops, batch, self.step.dtype, channels)

    def judge(self, rows: Sequence[Row]) -> bool:
        """Judge and score what was logged last."""
        self.score = self.score_of(rows[-1])
        self.is_beaten = self.report(int(rows[-1]["step"]), self.score)
        return super().judge(rows)

    @property
    def ends_run(self) -> bool:
        return self.is_beaten or super().ends_run

    def ending(self, step: int) -> Ending:
        """Tell how a run ended that stopped at `step`."""
        if super().ends_run:
            return "collapsing"
        if self.is_beaten:
            return "beaten"
        return "complete" if step == self.total_steps else "interrupted"
