"""One probe on several kinds of features of the same clips: the encoder's number beside those of its baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from vjepa.data.plan_rows import Passes, Views
from vjepa.probing import metrics
from vjepa.probing.datasets import Dataset, Trial
from vjepa.probing.metrics import Floats
from vjepa.probing.protocol import Answer, Examples, Method, answer
from vjepa.probing.recipes import PLAIN
from vjepa.probing.scores import TOP, Scores, Share, class_mean_recall, score
from vjepa.probing.store import Bank, Recipe, Store

TRAINED: Final = "trained"
REVERSED: Final = "reversed_frames"
ROLLOUT: Final = "rollout"
BASELINES: Final = {
    "random_init": "the same encoder, untrained (seed 0)",
    "pixels": "frames of 32x32 px as they are",
    "motion_energy": "how much each of 32x32 px changes from frame to frame",
    "shuffled_frames": "the encoder on clips shuffled in time, learned and measured so",
    REVERSED: "the encoder's probe, test clips played backwards",
    "untrained_predictor": "the encoder, with the roll-out of an untrained predictor (seed 0)",
}


@dataclass(frozen=True)
class Measured:
    """One kind of features under one probe.

    scores: of all test clips together. recall_at_5: mean over the classes, the measure of action anticipation; None up
    to 5 classes.
    folds: name of a trial -> share of right answers on its test clips. answers: of each trial.
    """

    scores: Scores
    recall_at_5: Share | None
    folds: dict[str, float]
    answers: tuple[Answer, ...]

    @property
    def mean_and_spread(self) -> tuple[float, float]:
        """Mean and standard deviation (of a sample) over the folds."""
        values = np.array(list(self.folds.values()))
        return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Comparison:
    """kinds: `trained` first, then `rollout` if both are measured, then the baselines. chance: of always answering the
    most frequent class of train.

    num_clips: train, selection, val -> clips that were used, of all trials together. failures: clips that could not be
    read, as (clip id, reason).
    """

    kinds: dict[str, Measured]
    chance: metrics.Accuracy
    num_clips: dict[str, int]
    failures: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Looks:
    """How clips are looked at: to learn, and to choose and measure, where the probabilities of all views are
    averaged.
    """

    learn: Views | Passes
    test: Views


def compare(
    dataset: Dataset,
    recipes: Mapping[str, Recipe],
    method: Method,
    looks: Looks,
    store: Store,
    batch: int,
    watch: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Comparison:
    """Measure every kind of `recipes`, of which `trained` is one; `reversed_frames` is measured by the probe of
    `trained`.

    Pixels and motion energy have no tokens, so where the method is attentive they are measured by logistic regression.
    """
    learn, test = features(dataset, recipes, looks, store, batch)
    output = "tokens" if method.mode == "attentive" else "pooled"
    kinds: dict[str, Measured] = {}
    for name in (name for name in recipes if name != REVERSED):
        plain = name in PLAIN
        banks = learn[name]["pooled" if plain else output], test[name]["pooled" if plain else output]
        extra = [test[REVERSED][output]] if name == TRAINED and REVERSED in recipes else []
        found = _measure(
            dataset,
            replace(method, mode="linear") if plain and method.mode == "attentive" else method,
            *banks,
            extra,
            watch,
        )
        kinds |= dict(zip((name, REVERSED), found, strict=False))
    kinds = {name: kinds[name] for name in recipes}
    of_learn, of_test = next(iter(learn[TRAINED].values())), next(iter(test[TRAINED].values()))
    return Comparison(
        kinds,
        _chance(dataset, of_learn, of_test),
        _num_clips(dataset, of_learn, of_test),
        tuple(sorted({*of_learn.failures, *of_test.failures})),
    )


_Banks = dict[str, dict[str, Bank]]


def features(
    dataset: Dataset, recipes: Mapping[str, Recipe], looks: Looks, store: Store, batch: int
) -> tuple[_Banks, _Banks]:
    """The banks to learn from and those to choose and measure on; one pass over the clips where it can serve both. All
    ranks of `store` call it.
    """
    learned_from = _union(trial.train for trial in dataset.trials)
    measured_on = _union(part for trial in dataset.trials for part in (trial.selection, trial.test))
    learnt = {name: one for name, one in recipes.items() if name != REVERSED}
    if looks.learn != looks.test:
        learn = store.banks(dataset.source, learned_from, looks.learn, learnt, batch)
        return learn, store.banks(dataset.source, measured_on, looks.test, recipes, batch)
    if len(measured_on) == len(dataset.clip_ids):
        both = store.banks(dataset.source, measured_on, looks.test, recipes, batch)
        return both, both
    both = store.banks(dataset.source, dataset.clip_ids, looks.test, learnt, batch)
    backwards = {
        name: one for name, one in recipes.items() if name == REVERSED
    }  # of the clips that it is measured on alone
    return both, both | store.banks(dataset.source, measured_on, looks.test, backwards, batch)


def _measure(
    dataset: Dataset,
    method: Method,
    learn: Bank,
    test: Bank,
    extra: Sequence[Bank],
    watch: Callable[[Iterable[Any]], Iterable[Any]],
) -> list[Measured]:
    """Of the test clips in `test`, and of the same clips in each bank of `extra`, by the same probes."""
    answers, parts = [], []
    for trial in dataset.trials:
        train, selection, *tests = _examples(dataset, trial, learn, test, extra)
        answers.append(answer(method, train, selection, tests, watch))
        parts.append(tests)
    return [_score(dataset, [one[number] for one in parts], answers, number) for number in range(1 + len(extra))]


def _examples(dataset: Dataset, trial: Trial, learn: Bank, test: Bank, extra: Sequence[Bank]) -> list[Examples]:
    """Those of train, selection and test; then the test clips in the banks of `extra`."""
    suffix = f" of fold {trial.name}" if trial.name else ""
    parts = [
        ("train", learn, trial.train),
        ("selection", test, trial.selection),
        *(("val", bank, trial.test) for bank in (test, *extra)),
    ]
    return [Examples.of(bank, ids, dataset.labels, f"{name}{suffix}") for name, bank, ids in parts]


def _score(dataset: Dataset, tests: Sequence[Examples], answers: Sequence[Answer], number: int) -> Measured:
    """Of test set `number` of each answer; a class that the training clips of a trial lack has probability 0 there."""
    names = np.unique(np.concatenate([one.names for one in answers]))
    probabilities = np.concatenate([_widen(one.probabilities[number], one.names, names) for one in answers])
    truth, clip_ids = (
        np.concatenate([test.classes for test in tests]),
        np.concatenate([test.clip_ids for test in tests]),
    )
    groups = None if dataset.groups is None else [dataset.groups[clip_id] for clip_id in clip_ids]
    scores = score(probabilities, names.tolist(), truth.tolist(), clip_ids, groups)
    recall = (
        class_mean_recall(probabilities, names.tolist(), truth.tolist(), groups=groups) if len(names) > TOP else None
    )
    right = [
        float(np.mean(one.names[one.probabilities[number].argmax(1)] == test.classes))
        for one, test in zip(answers, tests, strict=True)
    ]
    return Measured(
        scores, recall, {trial.name: share for trial, share in zip(dataset.trials, right, strict=True)}, tuple(answers)
    )


def _widen(probabilities: Floats, names: np.ndarray, all_names: np.ndarray) -> Floats:
    wide = np.zeros((len(probabilities), len(all_names)))
    wide[:, np.searchsorted(all_names, names)] = probabilities
    return wide


def _chance(dataset: Dataset, learn: Bank, test: Bank) -> metrics.Accuracy:
    predicted, truth = [], []
    for trial in dataset.trials:
        train, _, tested = _examples(dataset, trial, learn, test, ())
        names, counts = np.unique(train.classes, return_counts=True)
        predicted.append(np.full(len(tested.classes), names[counts.argmax()]))
        truth.append(tested.classes)
    return metrics.Accuracy.of(np.concatenate(predicted), np.concatenate(truth))


def _num_clips(dataset: Dataset, learn: Bank, test: Bank) -> dict[str, int]:
    counts = np.array(
        [[len(part.places) for part in _examples(dataset, trial, learn, test, ())] for trial in dataset.trials]
    ).sum(0)
    return dict(zip(("train", "selection", "val"), counts.tolist(), strict=True))


def _union(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate(list(parts)))
