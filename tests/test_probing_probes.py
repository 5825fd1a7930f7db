"""k-NN and linear probe: against naive twins, and what they may look at."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from vjepa.probing import knn, linear
from vjepa.probing.banks import Bank
from vjepa.probing.protocol import Examples, ProbeMethod, fit_probe
from vjepa.probing.sweep import choose


def clusters(num, width, noise, seed, classes=4):
    """Features [num, width] around one point per class, and the classes."""
    centres = np.random.default_rng(99).normal(size=(classes, width))
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, classes, num)
    return (centres[ids] + noise * rng.normal(size=(num, width))).astype(np.float32), np.array(
        [f"class {i}" for i in ids]
    )


def one_hot(names):
    known, ids = np.unique(names, return_inverse=True)
    return np.eye(len(known))[ids]


def naive_knn(bank, classes, queries, k):
    answers = []
    for query in queries.astype(np.float64):
        similarity = [
            float(query @ row / np.linalg.norm(query) / np.linalg.norm(row)) for row in bank.astype(np.float64)
        ]
        votes = dict.fromkeys(sorted(set(classes)), 0.0)
        for i in sorted(range(len(bank)), key=lambda i: -similarity[i])[:k]:
            votes[classes[i]] += float(np.exp(similarity[i] / 0.07))
        answers.append(max(votes, key=votes.get))
    return np.array(answers)


def probe(mode, train, names, selection, wanted, val):
    """The answers for `val`, and the setting that was chosen, of a probe that sees nothing but arrays."""
    parts = [(train, names), (selection, wanted), (val, np.full(len(val), "unknown"))]
    examples = [
        Examples(Bank(torch.from_numpy(x)[:, None, None], np.arange(len(x)), ()), np.arange(len(x)), classes)
        for x, classes in parts
    ]
    found = fit_probe(ProbeMethod(mode), *examples[:2], examples[2:])
    return found.names[found.answers[0].argmax(1)], found.chosen


@pytest.mark.fast
def test_knn_agrees_with_a_naive_twin():
    (train, names), (selection, wanted), (val, _) = (
        clusters(60, 8, 1.5, 0),
        clusters(30, 8, 1.5, 1),
        clusters(40, 8, 1.5, 2),
    )
    predicted, chosen = probe("knn", train, names, selection, wanted, val)
    best = choose({k: (np.mean(naive_knn(train, names, selection, k) == wanted), 0.0) for k in knn.K_CHOICES})
    assert chosen == {"k": best}
    assert (predicted == naive_knn(train, names, val, int(best))).all()


@pytest.mark.fast
def test_knn_works_on_fewer_clips_than_the_largest_k():
    (train, names), (val, wanted) = clusters(7, 8, 0.01, 0), clusters(20, 8, 0.01, 1)
    assert probe("knn", train, names, val, wanted, val)[1]["k"] in (1, 5)


@pytest.mark.fast
def test_choose_takes_the_first_of_equals():
    assert choose({1: (0.5, 2.0), 5: (1.0, 0.0), 10: (1.0, 1.0)}) == 5


@pytest.mark.fast
@pytest.mark.parametrize("mode", ["knn", "linear"])
def test_probes_learn_what_is_there_and_only_chance_from_shuffled_labels(mode):
    (train, names), (selection, wanted), (val, truth) = (
        clusters(200, 16, 0.3, 0),
        clusters(60, 16, 0.3, 1),
        clusters(400, 16, 0.3, 2),
    )
    assert np.mean(probe(mode, train, names, selection, wanted, val)[0] == truth) > 0.95
    shuffled = np.random.default_rng(0).permutation(names)
    # the truth is shuffled too: clusters that got one majority class by luck would otherwise be all right or all wrong
    accuracy = np.mean(
        probe(mode, train, shuffled, selection, wanted, val)[0] == np.random.default_rng(1).permutation(truth)
    )
    assert accuracy == pytest.approx(0.25, abs=0.1)


@pytest.mark.fast
def test_rotation_leaves_the_predictions_of_logistic_regression_as_they_were():
    (train, names), (val, _) = clusters(40, 300, 4, 0), clusters(80, 300, 4, 1)
    wide = linear.standardise(train, val)
    narrow = linear.rotate(*wide)
    assert narrow[0].shape[1] < 40  # standardised rows sum to zero
    assert narrow[0] @ narrow[0].T == pytest.approx(wide[0] @ wide[0].T)
    for c in (1.0, 100.0):
        both = [
            LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(a, names).predict_proba(b) for a, b in (wide, narrow)
        ]
        assert both[0] == pytest.approx(both[1], abs=1e-4)


def loss_of(model, features, classes, c):
    """The loss of a fitted scikit-learn model, as it defines it."""
    log_p = model.predict_log_proba(features)
    cross_entropy = -log_p[np.arange(len(classes)), np.searchsorted(model.classes_, classes)].sum()
    return cross_entropy + (model.coef_**2).sum() / (2 * c)


@pytest.mark.parametrize(("num_classes", "width"), [(2, 12), (5, 12), (5, 300)])
@pytest.mark.parametrize("noise", [0.3, 1.5])
def test_fits_agree_with_scikit_learn(num_classes, width, noise):
    # directions of very unequal strength, as features have them
    strength = np.geomspace(1, 0.01, width) * 10
    (train, names), (val, _) = (clusters(150, width, noise * width**0.5 / 4, seed, num_classes) for seed in (0, 1))
    train, val = linear.prepare(
        train + strength * clusters(150, width, 1, 2)[0], val + strength * clusters(150, width, 1, 3)[0]
    )
    for c, model in zip(linear.C_CHOICES, linear.fit(train, one_hot(names), linear.C_CHOICES), strict=True):
        reference = LogisticRegression(C=c, tol=1e-9, max_iter=100_000).fit(train, names)
        assert model.loss == pytest.approx(loss_of(reference, train, names, c), rel=1e-4)
        assert np.mean(np.unique(names)[model.scores(val).argmax(1)] == reference.predict(val)) >= 0.99


@pytest.mark.fast
def test_linear_probe_is_silent_and_ignores_constant_dimensions():
    (train, names), (val, truth) = clusters(100, 12, 0.3, 0), clusters(100, 12, 0.3, 1)
    train[:, 3], val[:, 3] = 7.1, 1e6  # constant where it learns, wild where it is measured
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predicted, _ = probe("linear", train, names, val, truth, val)
    assert np.mean(predicted == truth) > 0.95


@pytest.mark.fast
@pytest.mark.parametrize("mode", ["knn", "linear"])
def test_a_class_that_train_lacks_counts_as_wrong(mode):
    (train, names), (val, truth) = clusters(80, 8, 0.2, 0), clusters(50, 8, 0.2, 1)
    known = names != "class 3"
    predicted, _ = probe(mode, train[known], names[known], val, truth, val)
    assert "class 3" not in predicted
    assert np.mean(predicted == truth) == pytest.approx(np.mean(truth != "class 3"), abs=0.05)


@pytest.mark.fast
@pytest.mark.parametrize("mode", ["knn", "linear"])
def test_features_that_say_nothing_give_an_answer_all_the_same(mode):
    equal = np.full((20, 50), 0.3, dtype=np.float32)
    predicted, _ = probe(mode, equal, np.array(["a", "b"] * 10), equal, np.array(["a"] * 20), equal)
    assert set(predicted) <= {"a", "b"}


@pytest.mark.fast
@pytest.mark.parametrize("width", [12, 90])
def test_ridge_agrees_with_scikit_learn(width):
    (train, names), (val, _) = clusters(60, width, 2.0, 0), clusters(40, width, 2.0, 1)
    targets = one_hot(names)
    for alpha, model in zip(linear.ALPHA_CHOICES, linear.fit_ridge(train, targets, linear.ALPHA_CHOICES), strict=True):
        twin = Ridge(alpha=alpha).fit(train.astype(np.float64), targets)
        assert model.scores(val) == pytest.approx(twin.predict(val), abs=1e-3)
        assert model.scores(val).sum(1) == pytest.approx(1)
        shares = linear.as_shares(model.scores(val))
        assert (shares.argmax(1) == model.scores(val).argmax(1)).all() and shares.min() >= 0


@pytest.mark.fast
def test_without_batch_norm_features_are_scaled_by_one_number():
    train, val = clusters(60, 8, 2.0, 0)[0], clusters(40, 8, 2.0, 1)[0]
    scaled = linear.scale(train, val)
    assert np.mean((scaled[0] ** 2).sum(1)) == pytest.approx(1)
    assert scaled[1] / val == pytest.approx(scaled[0][0, 0] / train[0, 0])
