"""The search: trials one after the other, in as many processes as share a storage, until their time is up."""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from vjepa import config
from vjepa.counter_rng import generator
from vjepa.data.sources import open_sources
from vjepa.errors import UserError
from vjepa.ranks import refuse_several
from vjepa.training import first_run
from vjepa.training.open_run import differences
from vjepa.training.resuming import run_length
from vjepa.tuning.held_out import HeldOut
from vjepa.tuning.picture import save_picture
from vjepa.tuning.results import Result, best_of, line, rounded, table, write_config, write_rows
from vjepa.tuning.score import SCORES, ScoreName
from vjepa.tuning.space import Knob, knobs, with_values
from vjepa.tuning.trial import Outcome, run_trial, shortened

try:
    import optuna
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError
except ImportError:  # an extra
    optuna = None

_RANDOM_TRIALS: Final = 6  # before the sampler looks at what was found
_HEARTBEAT_S: Final = 60  # a trial that is silent for twice as long was killed
_FEWEST_TO_EXPLAIN: Final = 4
_OWN: Final = "own"  # marks the trial of the config as it is


@dataclass(frozen=True)
class Budget:
    """Say how long to search, how many steps a trial has (None: a share of the run), how many trials at most."""

    minutes: float
    steps: int | None = None
    trials: int | None = None


@dataclass(frozen=True)
class Search:
    """Hold what every trial needs. settings: those to improve on, of a run of `total_steps`; steps: of a trial."""

    settings: config.Config
    total_steps: int
    steps: int
    score: ScoreName
    held_out: HeldOut
    clips: Tensor
    knobs: list[Knob]

    @classmethod
    def of(cls, settings: config.Config, steps: int | None, without_labels: bool, progress: bool) -> Search:
        """Check what can be wrong before the first trial, and read the clips that all of them are scored on."""
        if settings.data.prepare != "none":
            first_run.write_data(settings.data, progress)
        total = run_length(settings, open_sources(settings.data))
        held_out = HeldOut.of(settings)
        score: ScoreName = "without labels" if without_labels or settings.data.val is None else "k-NN"
        length = min(steps or trial_steps(total), total)
        return cls(settings, total, length, score, held_out, held_out.read(settings), knobs(settings, total))

    def run(self, trial: Any) -> float:
        """Run one trial of the study: draw its values, train, score. Raises TrialPruned where it is ended early."""
        study, is_own = trial.study, _OWN in trial.user_attrs
        # what is drawn is a function of the seed, the number of the trial and the trials that are done
        seed = int(generator(self.settings.run.seed, "tuner", trial.number).integers(1 << 32))
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_RANDOM_TRIALS, constant_liar=True)
        drawn = {knob.name: trial.suggest_float(knob.name, knob.low, knob.high, log=knob.is_log) for knob in self.knobs}

        def report(step: int, score: float) -> bool:
            trial.report(score, step)
            is_beaten = bool(trial.should_prune())  # asked of every trial: the answer is remembered for others
            return is_beaten and step < self.steps and not is_own

        settings = shortened(self.with_drawn(drawn, is_own), self.total_steps, self.steps, self.score == "k-NN")
        outcome = run_trial(settings, self.held_out, self.clips, SCORES[self.score], report)
        return _conclude_trial(trial, outcome)

    def with_drawn(self, drawn: dict[str, float], is_own: bool) -> config.Config:
        """Give the settings of a trial, at full length; values are rounded, so that a config is fit to be read."""
        if is_own:
            return self.settings
        return with_values(self.settings, {name: rounded(value) for name, value in drawn.items()}, self.total_steps)


def tune(
    settings: config.Config,
    folder: Path,
    budget: Budget,
    storage: str | None = None,
    without_labels: bool = False,
    command: str = "python -m vjepa.tune",
    progress: bool = True,
) -> Path | None:
    """Search for better values of the knobs of `settings`, or go on; return the config to use, None where no trial of
    the study came to its end. SIGTERM and Ctrl-C end the trial in hand, which the same call begins again; what was
    found so far is written before KeyboardInterrupt is raised.

    folder: for the study, unless `storage` (a URL of Optuna) has it, and for results; `storage` may be shared by
    several processes and machines. command: what the config says it was written by.
    Raises UserError for bad input, before anything is written where that can be known.
    """
    refuse_several("vjepa.tune")
    if optuna is None:
        raise UserError("vjepa.tune: optuna is not installed; pip install 'video-jepa[tune]'")
    search = Search.of(settings, budget.steps, without_labels, progress)
    study = _open(search, folder, storage)
    if progress:
        told = f"{search.held_out.said}; scored {search.score}; {search.steps} steps a trial"
        print(f"{folder}: {len(gather(study, search))} trials so far; {told}", flush=True)
    began, passed_s, mine = time.monotonic(), 0.0, list[int]()
    try:
        while _goes_on(found := gather(study, search), passed_s, budget):
            study.optimize(search.run, n_trials=1, callbacks=[lambda _, trial: mine.append(trial.number)])
            write_rows(folder, found := gather(study, search))
            if progress:
                print(line(found, mine[-1]), flush=True)
            passed_s = time.monotonic() - began
    except KeyboardInterrupt:
        conclude(search, study, folder, command, progress)
        print("stopped; the same command goes on from there", file=sys.stderr)
        raise
    return conclude(search, study, folder, command, progress)


def conclude(search: Search, study: Any, folder: Path, command: str, progress: bool) -> Path | None:
    """Write what was found: trials, picture, table, the config to use; return that, None without one."""
    found = gather(study, search)
    write_rows(folder, found)
    save_picture(folder / "picture.png", found, search.knobs, importance(study))
    best = best_of(found)
    if progress:
        print("\n" + table(found))
    if best is None:
        print("no trial came to its end, so there is no config to use; begin with a lower optim.lr", file=sys.stderr)
        return None
    path = folder / "config.yaml"
    tuned = search.with_drawn(best.values, best.is_own)
    write_config(path, tuned, best, found, search.score, command)
    if progress:
        print(f"{folder}: config.yaml, trials.jsonl, picture.png; use it: python -m vjepa.train {path}")
    return path


def trial_steps(total_steps: int) -> int:
    """Choose how long a trial is: a third of the run, from 100 to 400 steps."""
    return min(max(total_steps // 3, 100), 400)


def gather(study: Any, search: Search) -> list[Result]:
    """List what the study knows of each trial that was begun."""
    own = {knob.name: knob.own for knob in search.knobs}
    return [
        Result(
            trial.number,
            trial.user_attrs.get("ending", "running" if not trial.state.is_finished() else "killed"),
            trial.duration.total_seconds() if trial.duration else None,
            own if _OWN in trial.user_attrs else {name: rounded(value) for name, value in trial.params.items()},
            _OWN in trial.user_attrs,
            trial.user_attrs.get("verdict", ""),
            dict(sorted(trial.intermediate_values.items())),
        )
        for trial in study.get_trials(deepcopy=False)
        if trial.state.name != "WAITING"
    ]


def importance(study: Any) -> dict[str, float]:
    """Compute which share of the variance of the score each knob explains (fANOVA, Hutter et al. 2014), the largest
    first; nothing of too few trials.
    """
    done = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    if len({trial.value for trial in done}) < _FEWEST_TO_EXPLAIN:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _conclude_trial(trial: Any, outcome: Outcome) -> float:
    """Tell the study how a trial ended. Raises TrialPruned where that was early, KeyboardInterrupt where asked to."""
    trial.set_user_attr("ending", outcome.ending)
    trial.set_user_attr("verdict", outcome.verdict)
    if outcome.ending == "interrupted":
        _try_again(trial.study, trial)
        raise KeyboardInterrupt
    if outcome.ending != "complete" or outcome.score is None:
        raise optuna.TrialPruned(outcome.ending)
    return outcome.score


def _try_again(study: Any, trial: Any) -> None:
    """Have a trial that was killed run again, under another number."""
    attrs = {_OWN: True} if _OWN in trial.user_attrs else {}
    study.enqueue_trial(trial.params, user_attrs=attrs)


def _open(search: Search, folder: Path, storage: str | None) -> Any:
    """Open the study, or begin it with the config as it is. Raises UserError for one of another config."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    folder.mkdir(parents=True, exist_ok=True)
    made = {"settings": config.dump(search.settings), "steps": search.steps, "score": search.score}
    pruner = optuna.pruners.SuccessiveHalvingPruner(max(1, search.steps // 4), reduction_factor=2)
    kept = _open_storage(storage or f"sqlite:///{folder.resolve() / 'study.db'}")
    study = optuna.create_study(
        study_name=folder.name, storage=kept, pruner=pruner, direction="maximize", load_if_exists=True
    )
    before = study.user_attrs.get("made")
    if before is None:
        study.set_user_attr("made", made)
        study.enqueue_trial({knob.name: knob.clamp(knob.own) for knob in search.knobs}, user_attrs={_OWN: True})
    elif different := _differences(before, made):
        raise UserError(f"{folder}: a study of another config ({'; '.join(different)}); give this one its own --out")
    return study


def _open_storage(url: str, attempts: int = 5) -> Any:
    """Open a storage or make it, which of several processes that begin at once all but one find half done at first."""
    try:
        return optuna.storages.RDBStorage(
            url, heartbeat_interval=_HEARTBEAT_S, heartbeat_stale_trial_callback=_try_again
        )
    except (ImportError, ValueError, SQLAlchemyError) as error:
        if attempts > 1 and isinstance(error, DBAPIError):
            time.sleep(1)
            return _open_storage(url, attempts - 1)
        raise UserError(f"--storage {url}: cannot be opened ({' '.join(str(error).split())[:200]})") from None


def _differences(before: dict[str, Any], made: dict[str, Any]) -> list[str]:
    keys = [key for key in ("steps", "score") if before[key] != made[key]]
    of_settings = differences(before["settings"], made["settings"])
    return [*(f"{key} was {before[key]}, now {made[key]}" for key in keys), *of_settings]


def _goes_on(found: list[Result], passed_s: float, budget: Budget) -> bool:
    """Tell whether another trial is wanted, and would fit if it took as long as the longest that came to its end. The
    first of a call is never too long.
    """
    longest_s = max((one.seconds or 0 for one in found if one.ending == "complete"), default=0.0)
    is_wanted = budget.trials is None or len(found) < budget.trials
    return is_wanted and (passed_s == 0 or passed_s + longest_s <= 60 * budget.minutes)
