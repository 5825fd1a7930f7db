"""One probe on several kinds of features of the same clips: the encoder's number beside those of its baselines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from vjepa.data.plan_rows import Passes, Views
from vjepa.probing.banks import Bank, BankMaker, Banks, Extractor, SampleViews
from vjepa.probing.datasets import Dataset, Trial
from vjepa.probing.extractors import PLAIN
from vjepa.probing.metrics import Floats
from vjepa.probing.protocol import Examples, FittedProbe, Inputs, ProbeMethod, fit_probe
from vjepa.probing.scores import TOP, Scores, Share, class_mean_recall, score, share_right
from vjepa.probing.sweep import Watch

TRAINED: Final = "trained"
REVERSED: Final = "reversed_frames"
ROLLOUT: Final = "rollout"

# name of a trial -> clips of train, selection and test; then the test clips in further banks
Trials = Mapping[str, Sequence[Examples]]


@dataclass(frozen=True)
class ProbeResult:
    """Score one kind of features under one probe.

    scores: of all test clips together. recall_at_5: mean over the classes, the measure of action anticipation; None up
    to 5 classes.
    folds: name of a trial -> share of right answers on its test clips. fitted: the probe of each trial.
    """

    scores: Scores
    recall_at_5: Share | None
    folds: dict[str, float]
    fitted: tuple[FittedProbe, ...]

    @property
    def mean_and_spread(self) -> tuple[float, float]:
        """Give mean and standard deviation (of a sample) over the folds."""
        values = np.array(list(self.folds.values()))
        return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Comparison:
    """Put the kinds of features side by side: `trained` first, then `rollout` if both are measured, then the baselines.

    chance: of always answering the most frequent class of train.
    num_clips: train, selection, val -> clips that were used, of all trials together.
    failures: clips that could not be read, as (clip id, reason).
    """

    kinds: dict[str, ProbeResult]
    chance: Share
    num_clips: dict[str, int]
    failures: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Looks:
    """Say how clips are looked at: to learn; and to choose and measure, where all views of a clip are averaged."""

    learn: Views | Passes
    test: Views


def compare(
    dataset: Dataset,
    extractors: Mapping[str, Extractor],
    method: ProbeMethod,
    looks: Looks,
    maker: BankMaker,
    batch: int,
    watch: Watch = iter,
) -> Comparison:
    """Measure every kind of features, of which `trained` is one; `reversed_frames` by the probe of `trained`.

    Pixels and motion energy have no tokens, so where the method is attentive they are measured by logistic regression.
    """
    learn, test = features(dataset, extractors, looks, maker, batch)
    output = "tokens" if method.mode == "attentive" else "pooled"
    kinds: dict[str, ProbeResult] = {}
    for name in (name for name in extractors if name != REVERSED):
        plain = name in PLAIN
        banks = [made[name]["pooled" if plain else output] for made in (learn, test)]
        if name == TRAINED and REVERSED in extractors:
            banks.append(test[REVERSED][output])
        trials = {trial.name: _examples(dataset, trial, *banks) for trial in dataset.trials}
        of_kind = replace(method, mode="linear") if plain and method.mode == "attentive" else method
        found = measure(of_kind, trials, watch, with_head=name == TRAINED)
        kinds |= dict(zip((name, REVERSED), found, strict=False))
        if name == TRAINED:
            chance, num_clips = measure_chance(trials), count_clips(trials)
    of_learn, of_test = (next(iter(made[TRAINED].values())) for made in (learn, test))
    failures = tuple(sorted({*of_learn.failures, *of_test.failures}))
    return Comparison({name: kinds[name] for name in extractors}, chance, num_clips, failures)


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
    method: ProbeMethod, trials: Trials, watch: Watch = iter, inputs: Inputs | None = None, with_head: bool = False
) -> list[ProbeResult]:
    """Score the test clips of all trials, then the same clips in each further bank, by the same probes."""
    fitted = [
        fit_probe(method, train, selection, tests, watch, inputs, with_head)
        for train, selection, *tests in trials.values()
    ]
    num_tests = min(len(parts) - 2 for parts in trials.values())
    return [
        _score(trials, [parts[2 + number] for parts in trials.values()], fitted, number) for number in range(num_tests)
    ]


def measure_chance(trials: Trials) -> Share:
    """Score always answering the most frequent class of train, the first by name where several are."""
    right, tests = [], []
    for train, _, test, *_ in trials.values():
        names, counts = np.unique(train.classes, return_counts=True)
        right.append(test.classes == names[counts.argmax()])
        tests.append(test)
    return share_right(np.concatenate(right), _groups(tests))


def count_clips(trials: Trials) -> dict[str, int]:
    """Count the clips of train, selection and val, of all trials together."""
    names = ("train", "selection", "val")
    return {name: sum(len(parts[i].places) for parts in trials.values()) for i, name in enumerate(names)}


def _examples(dataset: Dataset, trial: Trial, learn: Bank, *tests: Bank) -> list[Examples]:
    """Take the clips of train, selection and test; then the test clips in the further banks."""
    suffix = f" of fold {trial.name}" if trial.name else ""
    parts = [("train", learn, trial.train), ("selection", tests[0], trial.selection)]
    parts += [("val", bank, trial.test) for bank in tests]
    return [Examples.of(bank, ids, dataset.labels, f"{name}{suffix}", dataset.groups) for name, bank, ids in parts]


def _score(trials: Trials, tests: Sequence[Examples], fitted: Sequence[FittedProbe], number: int) -> ProbeResult:
    """Score test set `number`; a class that the training clips of a trial lack has probability 0 there."""
    names = np.unique(np.concatenate([one.names for one in fitted]))
    probabilities = np.concatenate([_widen(one.probabilities[number], one.names, names) for one in fitted])
    truth = np.concatenate([test.classes for test in tests]).tolist()
    clip_ids, groups = np.concatenate([test.clip_ids for test in tests]), _groups(tests)
    scores = score(probabilities, names.tolist(), truth, clip_ids, groups)
    recall = class_mean_recall(probabilities, names.tolist(), truth, groups=groups) if len(names) > TOP else None
    right = [
        float(np.mean(one.names[one.probabilities[number].argmax(1)] == test.classes))
        for one, test in zip(fitted, tests, strict=True)
    ]
    return ProbeResult(scores, recall, dict(zip(trials, right, strict=True)), tuple(fitted))


def _groups(tests: Sequence[Examples]) -> list[str | None] | None:
    """Join the groups of test clips; None where there are none."""
    groups = [group for test in tests for group in test.groups or ()]
    return groups if any(group is not None for group in groups) else None


def _widen(probabilities: Floats, names: np.ndarray, all_names: np.ndarray) -> Floats:
    wide = np.zeros((len(probabilities), len(all_names)))
    wide[:, np.searchsorted(all_names, names)] = probabilities
    return wide


def _union(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate(list(parts)))
