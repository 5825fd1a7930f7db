"""One probe on several kinds of features of the same clips: the encoder's number beside those of its baselines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy import stats

from vjepa.counter_rng import generator
from vjepa.data.plan_rows import Passes, Views
from vjepa.probing.banks import Bank, BankMaker, Banks, Extractor, SampleViews
from vjepa.probing.bootstrap import Share
from vjepa.probing.datasets import Dataset, Trial
from vjepa.probing.extractors import PLAIN
from vjepa.probing.metrics import Floats, Texts
from vjepa.probing.protocol import Examples, FittedProbe, Inputs, ProbeMethod, fit_probe
from vjepa.probing.sweep import Watch
from vjepa.probing.task import Scored, Task

TRAINED: Final = "trained"
REVERSED: Final = "reversed_frames"
ROLLOUT: Final = "rollout"

# name of a trial -> clips of train, selection and test; then the test clips in further banks
Trials = Mapping[str, Sequence[Examples]]


@dataclass(frozen=True)
class FewLabels:
    """Hold what a probe measures that learned from few clips, the measure of its task for each draw of them.

    num_clips: of train, in the largest draw. short: classes of train that have fewer clips than were asked for; of
    numbers 1 where there are fewer.
    """

    draws: tuple[float, ...]
    num_clips: int
    short: int

    @property
    def mean_and_spread(self) -> tuple[float, float]:
        """Give mean and standard deviation (of a sample) over the draws."""
        return _mean_and_spread(self.draws)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Give the 95 % interval of the mean over draws, by Student's t; None of a single one."""
        mean, spread = self.mean_and_spread
        num = len(self.draws)
        half = float(stats.t.ppf(0.975, num - 1)) * spread / num**0.5 if num > 1 else 0.0
        return (mean - half, mean + half) if num > 1 else None


@dataclass(frozen=True)
class ProbeResult:
    """Score one kind of features under one probe.

    scores: of all test clips together.
    folds: name of a trial -> the measure of the task on its test clips; NaN where it is not defined on them.
    fitted: the probe of each trial. few: clips that were asked for, of each class or of all -> what came of them.
    """

    scores: Scored
    folds: dict[str, float]
    fitted: tuple[FittedProbe, ...]
    few: dict[int, FewLabels]

    @property
    def mean_and_spread(self) -> tuple[float, float]:
        """Give mean and standard deviation (of a sample) over the folds on which the measure is defined."""
        return _mean_and_spread([value for value in self.folds.values() if np.isfinite(value)])


@dataclass(frozen=True)
class Comparison:
    """Put the kinds of features side by side: `trained` first, then `rollout` if both are measured, then the baselines.

    chance: of the best constant answer by train, by the names of the measures; for classes always the most frequent.
    num_clips: train, selection, val -> clips that were used, of all trials together.
    failures: clips that could not be read, as (clip id, reason).
    """

    kinds: dict[str, ProbeResult]
    chance: dict[str, Share | None]
    num_clips: dict[str, int]
    failures: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Shots:
    """Ask for probes that learn from few clips, drawn so many times, by a function of `seed`.

    nums: so many clips of each class, or over the range of numbers.
    """

    nums: tuple[int, ...] = ()
    draws: int = 5
    seed: int = 0


@dataclass(frozen=True)
class Looks:
    """Say how clips are looked at: to learn; and to choose and measure, where all views of a clip are averaged."""

    learn: Views | Passes
    test: Views


def compare(
    dataset: Dataset,
    extractors: Mapping[str, Extractor],
    methods: Mapping[str, ProbeMethod],
    looks: Looks,
    maker: BankMaker,
    batch: int,
    watch: Watch = iter,
    shots: Shots = Shots(),
) -> dict[str, Comparison]:
    """Measure every label by its method, on features that are read once: label -> what was found.

    Each has every kind of features, of which `trained` is one; `reversed_frames` by the probe of `trained`. Pixels and
    motion energy have no tokens, so where the method is attentive they are measured by a linear probe.
    """
    learn, test = features(dataset, extractors, looks, maker, batch)
    of_learn, of_test = (next(iter(made[TRAINED].values())) for made in (learn, test))
    failures = tuple(sorted({*of_learn.failures, *of_test.failures}))
    kinds: dict[str, dict[str, ProbeResult]] = {label: {} for label in methods}
    for name in (name for name in extractors if name != REVERSED):
        inputs = Inputs()
        for label, method in methods.items():
            plain = name in PLAIN
            of_kind = replace(method, mode="linear") if plain and method.mode == "attentive" else method
            output = "tokens" if of_kind.mode == "attentive" else "pooled"
            banks = [made[name][output] for made in (learn, test)]
            if name == TRAINED and REVERSED in extractors:
                banks.append(test[REVERSED][output])
            trials = trials_of(dataset, label, *banks)
            found = measure(of_kind, trials, watch, inputs, name == TRAINED, shots)
            kinds[label] |= dict(zip((name, REVERSED), found, strict=False))
    compared = {}
    for label, method in methods.items():
        trials = trials_of(dataset, label, of_learn, of_test)
        ordered = {name: kinds[label][name] for name in extractors}
        compared[label] = Comparison(ordered, measure_chance(method.task, trials), count_clips(trials), failures)
    return compared


def features(
    dataset: Dataset, extractors: Mapping[str, Extractor], looks: Looks, maker: BankMaker, batch: int
) -> tuple[Banks, Banks]:
    """Make the banks to learn from and those to choose and measure on; one pass over the clips where it serves both.

    All ranks of a store call it.
    """
    learned_from = _union(trial.train for trial in dataset.trials)
    measured_on = _union(part for trial in dataset.trials for part in (trial.selection, trial.test))
    learnt = {name: one for name, one in extractors.items() if name != REVERSED}
    if looks.learn != looks.test:
        learn = maker.banks(SampleViews(dataset.source, learned_from, looks.learn), learnt, batch)
        return learn, maker.banks(SampleViews(dataset.source, measured_on, looks.test), extractors, batch)
    if len(measured_on) == len(dataset.clip_ids):
        both = maker.banks(SampleViews(dataset.source, measured_on, looks.test), extractors, batch)
        return both, both
    both = maker.banks(SampleViews(dataset.source, dataset.clip_ids, looks.test), learnt, batch)
    # of the clips that it is measured on alone
    backwards = {name: one for name, one in extractors.items() if name == REVERSED}
    return both, both | maker.banks(SampleViews(dataset.source, measured_on, looks.test), backwards, batch)


def measure(
    method: ProbeMethod,
    trials: Trials,
    watch: Watch = iter,
    inputs: Inputs | None = None,
    with_head: bool = False,
    shots: Shots = Shots(),
) -> list[ProbeResult]:
    """Score the test clips of all trials, then the same clips in each further bank, by the same probes."""
    fitted = [
        fit_probe(method, train, selection, tests, watch, inputs, with_head)
        for train, selection, *tests in trials.values()
    ]
    few = {num: _few(method, trials, num, shots, watch) for num in shots.nums}
    num_tests = min(len(parts) - 2 for parts in trials.values())
    return [
        _score(
            method.task,
            trials,
            [parts[2 + number] for parts in trials.values()],
            fitted,
            number,
            {num: found[number] for num, found in few.items()},
        )
        for number in range(num_tests)
    ]


def _few(method: ProbeMethod, trials: Trials, num: int, shots: Shots, watch: Watch) -> list[FewLabels]:
    """Measure each test set by probes that learned from `num` clips, of each class where there are some.

    Settings are chosen as ever.
    """
    values: list[list[float]] = []
    num_clips = 0
    all_targets = [method.task.targets(train.labels) for train, *_ in trials.values()]
    for draw in range(shots.draws):
        rng = generator(shots.seed, "shots", draw)
        drawn = [
            (train.few(method.task.draw(targets, num, rng)), *others)
            for (train, *others), targets in zip(trials.values(), all_targets, strict=True)
        ]
        num_clips = max(num_clips, sum(len(train.places) for train, *_ in drawn))
        fitted = [
            fit_probe(method, train, selection, tests, watch, with_head=False) for train, selection, *tests in drawn
        ]
        num_tests = min(len(tests) for _, _, *tests in drawn)
        joined = [_join([parts[2 + i] for parts in trials.values()], fitted, i) for i in range(num_tests)]
        values.append([method.task.value(*answers) for answers in joined])
    short = sum(int((method.task.sizes(targets) < num).sum()) for targets in all_targets)
    return [FewLabels(tuple(draws), num_clips, short) for draws in zip(*values, strict=True)]


def measure_chance(task: Task, trials: Trials) -> dict[str, Share | None]:
    """Measure the best constant answer, by the labels of train."""
    labels = [(train.labels, test.labels) for train, _, test, *_ in trials.values()]
    return task.chance(labels, _groups([test for _, _, test, *_ in trials.values()]))


def count_clips(trials: Trials) -> dict[str, int]:
    """Count the clips of train, selection and val, of all trials together."""
    names = ("train", "selection", "val")
    return {name: sum(len(parts[i].places) for parts in trials.values()) for i, name in enumerate(names)}


def trials_of(dataset: Dataset, label: str, learn: Bank, *tests: Bank) -> Trials:
    """Take the clips that have `label`: train, selection and test; then the test clips in the further banks."""
    return {trial.name: _examples(dataset, label, trial, learn, *tests) for trial in dataset.trials}


def _examples(dataset: Dataset, label: str, trial: Trial, learn: Bank, *tests: Bank) -> list[Examples]:
    suffix = f" of fold {trial.name}" if trial.name else ""
    parts = [("train", learn, trial.train), ("selection", tests[0], trial.selection)]
    parts += [("val", bank, trial.test) for bank in tests]
    labels = dataset.labels[label]
    return [Examples.of(bank, ids, labels, f"{name}{suffix}, {label}", dataset.groups) for name, bank, ids in parts]


def _score(
    task: Task,
    trials: Trials,
    tests: Sequence[Examples],
    fitted: Sequence[FittedProbe],
    number: int,
    few: dict[int, FewLabels],
) -> ProbeResult:
    """Score test set `number`."""
    clip_ids, (answers, names, labels) = np.concatenate([test.clip_ids for test in tests]), _join(tests, fitted, number)
    of_folds = [
        task.value(one.answers[number], one.names, test.labels) for one, test in zip(fitted, tests, strict=True)
    ]
    scores = task.score(answers, names, labels, clip_ids, _groups(tests))
    return ProbeResult(scores, dict(zip(trials, of_folds, strict=True)), tuple(fitted), few)


def _join(tests: Sequence[Examples], fitted: Sequence[FittedProbe], number: int) -> tuple[Floats, Texts, Texts]:
    """Join the answers to test set `number` of all trials, their names, and the true labels.

    A class that the training clips of a trial lack has probability 0 there.
    """
    names = np.unique(np.concatenate([one.names for one in fitted]))
    answers = np.concatenate([_widen(one.answers[number], one.names, names) for one in fitted])
    return answers, names, np.concatenate([test.labels for test in tests])


def _groups(tests: Sequence[Examples]) -> list[str | None] | None:
    """Join the groups of test clips; None where there are none."""
    groups = [group for test in tests for group in test.groups or ()]
    return groups if any(group is not None for group in groups) else None


def _widen(answers: Floats, names: np.ndarray, all_names: np.ndarray) -> Floats:
    wide = np.zeros((len(answers), len(all_names)))
    wide[:, np.searchsorted(all_names, names)] = answers
    return wide


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    found = np.array(values)
    return float(found.mean()) if len(found) else float("nan"), float(found.std(ddof=1)) if len(found) > 1 else 0.0


def _union(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate(list(parts)))
