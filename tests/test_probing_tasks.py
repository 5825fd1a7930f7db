"""Labels that are numbers, or many classes at once: against scikit-learn and scipy, and what probes of them keep."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    mean_absolute_error,
    r2_score,
    root_mean_squared_error,
)
from sklearn.neighbors import KNeighborsRegressor

from vjepa import config
from vjepa.errors import UserError
from vjepa.interop.probes import load_probe, write_probes
from vjepa.probing import bootstrap, knn, linear, scores, scores_multilabel, scores_numbers, sweep, tasks
from vjepa.probing.banks import Bank
from vjepa.probing.comparison import Shots, measure, measure_chance
from vjepa.probing.protocol import Examples, ProbeMethod, fit_probe
from vjepa.probing.task_classify import Classify
from vjepa.probing.task_multilabel import Multilabel, sets
from vjepa.probing.task_regress import Regress, numbers

NUM = 240
QUICK = sweep.Grid((3e-3,), (0.01,), max_steps=60)


def clips(tokens=1, views=1, noise=0.6, seed=0):
    """A bank of NUM clips, a number that its features tell, in the thousands, and which of 4 classes each clip has."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(NUM, 5))
    values = np.einsum("nh,hd->nd", hidden, rng.normal(size=(5, 24)))[:, None, None]
    values = values + noise * rng.normal(size=(NUM, views, tokens, 24))
    has = hidden[:, 1:] > (0.3, 0.8, 1.2, 0.0)
    cells = ["|".join(f"class {c}" for c in np.flatnonzero(row)) or "|" for row in has]
    stored = Bank(torch.tensor(values).half(), np.arange(NUM), (), "key")
    return stored, [f"{5000 + 300 * x:.3f}" for x in hidden[:, 0]], cells


def thirds(stored, labels, groups=None):
    return [Examples.of(stored, np.arange(NUM)[part::3], labels, "part", groups) for part in range(3)]


# ---- numbers


def test_ridge_of_numbers_is_that_of_scikit_learn():
    stored, labels, _ = clips()
    train, selection, test = thirds(stored, labels)
    found = fit_probe(ProbeMethod("linear", Regress()), train, selection, [test])
    learned, chosen_on, measured = linear.standardise(*(part.pooled() for part in (train, selection, test)))
    twins = {alpha: Ridge(alpha=alpha).fit(learned, numbers(train.labels)) for alpha in linear.NUMBER_ALPHA_CHOICES}
    on_selection = {
        alpha: r2_score(numbers(selection.labels), twin.predict(chosen_on)) for alpha, twin in twins.items()
    }
    assert [one["R2"] for one in found.selection] == pytest.approx(list(on_selection.values()), abs=1e-6)
    alpha = max(on_selection, key=on_selection.get)
    assert found.chosen == {"alpha": alpha}
    assert found.answers[0][:, 0] == pytest.approx(twins[alpha].predict(measured), rel=1e-6)
    head = found.head.answers(test.tokens(np.arange(80), 0, torch.device("cpu")).float())
    assert found.head.task == "regress" and head.numpy() == pytest.approx(found.answers[0], rel=1e-4)


def test_neighbours_average_their_numbers_by_weight():
    stored, labels, _ = clips()
    train, selection, test = thirds(stored, labels)
    found = fit_probe(ProbeMethod("knn", Regress()), train, selection, [test])
    twin = KNeighborsRegressor(
        int(found.chosen["k"]), metric="cosine", weights=lambda distances: np.exp(-distances / knn.TEMPERATURE)
    ).fit(train.pooled(), numbers(train.labels))
    assert found.answers[0][:, 0] == pytest.approx(twin.predict(test.pooled()), rel=1e-4)


@pytest.mark.parametrize("depth", [1, 2])
def test_attentive_heads_give_numbers_in_their_unit_and_are_never_below_their_start(depth):
    stored, labels, _ = clips(tokens=4, views=2)
    train, selection, test = thirds(stored, labels)
    found = fit_probe(ProbeMethod("attentive", Regress(), depth=depth, grid=QUICK), train, selection, [selection, test])
    assert r2_score(numbers(selection.labels), found.answers[0][:, 0]) == pytest.approx(
        max(one["R2"] for one in found.selection), abs=1e-4
    )
    assert r2_score(numbers(test.labels), found.answers[1][:, 0]) > 0.8
    views = [found.head.answers(test.tokens(np.arange(80), view, torch.device("cpu")).float()) for view in range(2)]
    assert torch.stack(views).mean(0).numpy() == pytest.approx(found.answers[1], rel=1e-4)


@pytest.mark.fast
def test_measures_of_numbers_are_those_of_scikit_learn_and_scipy():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 20, 150).astype(float)  # many ties
    predicted = (truth + 5 * rng.normal(size=150)).round()
    found = scores_numbers.score(predicted, truth, np.arange(150))
    assert found.r2.value == pytest.approx(r2_score(truth, predicted))
    assert found.rmse.value == pytest.approx(root_mean_squared_error(truth, predicted))
    assert found.mae.value == pytest.approx(mean_absolute_error(truth, predicted))
    assert found.spearman.value == pytest.approx(spearmanr(truth, predicted).statistic)
    assert all(share.low < share.value < share.high for share in found.measures.values())
    assert found.worst[0].clip_id == np.abs(predicted - truth).argmax()


@pytest.mark.fast
@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_of_numbers_are_those_of_a_plain_bootstrap(grouped):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=120)
    predicted, groups = truth + rng.normal(size=120), np.arange(120) // 6
    found = scores_numbers.score(predicted, truth, np.arange(120), groups.astype(str).tolist() if grouped else None)
    units = [np.flatnonzero(groups == group) for group in range(20)] if grouped else [np.array([i]) for i in range(120)]
    draws = [np.concatenate([units[i] for i in rng.integers(len(units), size=len(units))]) for _ in range(1000)]
    for name, plain in {"r2": r2_score, "spearman": lambda *both: spearmanr(*both).statistic}.items():
        share = getattr(found, name)
        many = [plain(truth[draw], predicted[draw]) for draw in draws]
        assert (share.low, share.high) == pytest.approx(np.quantile(many, (0.025, 0.975)), abs=0.06)
    assert found.num_groups == (20 if grouped else None)


@pytest.mark.fast
def test_chance_of_numbers_is_the_mean_of_train():
    stored, labels, _ = clips()
    parts = thirds(stored, labels)
    found = measure_chance(Regress(), {"": parts})
    truth = numbers(parts[2].labels)
    mean = np.full(80, numbers(parts[0].labels).mean())
    assert found["r2"].value == pytest.approx(r2_score(truth, mean)) and found["r2"].high <= 0
    assert found["rmse"].value == pytest.approx(root_mean_squared_error(truth, mean)) and found["spearman"] is None


@pytest.mark.fast
def test_what_is_not_defined_has_no_value():
    constant = scores_numbers.score(np.arange(4.0), np.ones(4), np.arange(4))
    assert constant.r2 is None and constant.spearman is None and constant.mae.value == 1
    one_group = scores_numbers.score(np.arange(9.0) ** 2 / 9, np.arange(9.0), np.arange(9), ["x"] * 9)
    assert one_group.num_groups is None and one_group.r2.low < one_group.r2.value < one_group.r2.high
    with pytest.raises(UserError, match="NaN or infinity"):
        scores_numbers.score(np.full(3, np.nan), np.arange(3.0), np.arange(3))


# ---- many classes


def test_each_class_against_the_rest_is_that_of_scikit_learn():
    stored, _, cells = clips()
    train, selection, test = thirds(stored, cells)
    learned, measured = linear.standardise(train.pooled(), test.pooled())
    for balanced in (False, True):
        found = fit_probe(ProbeMethod("linear", Multilabel(balanced)), train, selection, [test])
        names, has = scores_multilabel.table(found.names.tolist(), sets(train.labels))
        weight, c = "balanced" if balanced else None, found.chosen["C"]
        for number, name in enumerate(names):
            twin = LogisticRegression(C=c, tol=1e-9, max_iter=10_000, class_weight=weight).fit(learned, has[:, number])
            assert found.answers[0][:, number] == pytest.approx(twin.predict_proba(measured)[:, 1], abs=0.02), name
    answers = found.head.answers(test.tokens(np.arange(80), 0, torch.device("cpu")).float()).numpy()
    assert found.head.task == "multilabel" and answers == pytest.approx(found.answers[0], abs=1e-4)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize(("mode", "head"), [("knn", None), ("linear", "ridge"), ("attentive", None)])
def test_many_classes_are_learned_and_only_chance_from_shuffled_ones(mode, head, balanced):
    stored, _, cells = clips(tokens=3 if mode == "attentive" else 1)
    method = ProbeMethod(mode, Multilabel(balanced), head=head, grid=QUICK)
    trials = {"": thirds(stored, cells)}
    (found,) = measure(method, trials, with_head=True)
    chance = measure_chance(method.task, trials)["map"].value
    assert found.scores.map.value > chance + 0.3
    answers, test = found.fitted[0].answers[0], trials[""][2]
    assert answers.min() >= 0 and answers.max() <= 1
    if head:
        again = found.fitted[0].head.answers(test.tokens(np.arange(80), 0, torch.device("cpu")).float()).numpy()
        assert again == pytest.approx(answers, abs=1e-3)
    shuffled = thirds(stored, np.random.default_rng(1).permutation(cells).tolist())
    assert measure(method, {"": shuffled})[0].scores.map.value < chance + 0.15


@pytest.mark.fast
def test_average_precision_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    has = rng.random((90, 4)) < (0.5, 0.2, 0.05, 0.0)
    answers = (rng.random((90, 4)) + 0.4 * has).round(1)  # many ties
    truth = [frozenset(f"c{i}" for i in np.flatnonzero(row)) for row in has]
    found = scores_multilabel.score(answers, [f"c{i}" for i in range(4)], truth, np.arange(90))
    precisions = [average_precision_score(has[:, c], answers[:, c]) for c in range(3)]
    assert [one.ap for one in found.per_class] == [pytest.approx(ap) for ap in precisions] + [None]
    assert found.map.value == pytest.approx(np.mean(precisions)) and found.map.low < found.map.value < found.map.high
    unknown = scores_multilabel.score(answers[:, :1], ["c0"], truth, np.arange(90))
    assert unknown.per_class[1].ap == pytest.approx(has[:, 1].mean())  # of a class that was never learned


@pytest.mark.fast
def test_the_interval_of_average_precision_is_that_of_a_plain_bootstrap():
    rng = np.random.default_rng(0)
    has = rng.random((100, 2)) < 0.4
    answers = rng.random((100, 2)) + 0.3 * has
    truth = [frozenset(f"c{i}" for i in np.flatnonzero(row)) for row in has]
    share = scores_multilabel.score(answers, ["c0", "c1"], truth, np.arange(100)).map
    draws = rng.integers(100, size=(1000, 100))
    many = [np.mean([average_precision_score(has[draw, c], answers[draw, c]) for c in range(2)]) for draw in draws]
    assert (share.low, share.high) == pytest.approx(np.quantile(many, (0.025, 0.975)), abs=0.02)


# ---- classes: what is new of them


@pytest.mark.fast
@pytest.mark.parametrize("grouped", [False, True])
def test_macro_f1_and_balanced_accuracy_are_those_of_scikit_learn(grouped):
    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(6)]
    truth, said = rng.integers(0, 5, 200), rng.integers(0, 6, 200)
    said = np.where(rng.random(200) < 0.5, truth, said)
    groups = [str(i // 4) for i in range(200)] if grouped else None
    found = scores.score(np.eye(6)[said], names, [names[i] for i in truth], np.arange(200), groups)
    assert found.macro_f1.value == pytest.approx(f1_score(truth, said, average="macro"))
    known = np.where(said == 5, (truth + 1) % 5, said)  # scikit-learn warns of a class that is answered alone
    assert found.mean_class.value == pytest.approx(balanced_accuracy_score(truth, known))
    units = np.arange(200).reshape(-1, 4) if grouped else np.arange(200)[:, None]
    draws = [units[rng.integers(len(units), size=len(units))].ravel() for _ in range(1000)]
    many = [f1_score(truth[draw], said[draw], average="macro", zero_division=0) for draw in draws]
    assert (found.macro_f1.low, found.macro_f1.high) == pytest.approx(np.quantile(many, (0.025, 0.975)), abs=0.02)


def test_balanced_classes_are_weighed_as_by_scikit_learn_and_help_rare_ones():
    rng = np.random.default_rng(0)
    ids = (rng.random(NUM) < 0.1).astype(int)
    values = ids[:, None] * 0.9 + rng.normal(size=(NUM, 8))
    stored = Bank(torch.tensor(values).half()[:, None, None], np.arange(NUM), (), "key")
    train, selection, test = thirds(stored, [f"class {i}" for i in ids])
    plain, balanced = (
        fit_probe(ProbeMethod("linear", Classify(weigh)), train, selection, [test]) for weigh in (False, True)
    )
    learned, measured = linear.standardise(train.pooled(), test.pooled())
    twin = LogisticRegression(C=balanced.chosen["C"], class_weight="balanced", tol=1e-9, max_iter=10_000)
    assert balanced.answers[0] == pytest.approx(twin.fit(learned, train.labels).predict_proba(measured), abs=0.01)
    means = [balanced_accuracy_score(test.labels, one.names[one.answers[0].argmax(1)]) for one in (plain, balanced)]
    assert means[1] > means[0] + 0.05
    assert "mean_class" in balanced.selection[0] and "accuracy" in plain.selection[0]
    ridge = Classify(True).fit("ridge", learned, Classify(True).targets(train.labels))[1.0]
    weights = Classify(True).weights(Classify(True).targets(train.labels))[:, 0]
    twin = Ridge(alpha=1.0).fit(learned, np.eye(2)[ids[::3]], sample_weight=weights)
    assert ridge.scores(measured) == pytest.approx(twin.predict(measured), abs=1e-6)
    votes = Classify(True).of_votes(np.array([[3.0, 1.0]]), None, Classify(True).targets(train.labels))
    assert votes[0, 1] > 0.25 and votes.sum() == pytest.approx(1)


# ---- few labels


@pytest.mark.parametrize(("task", "mode"), [(Classify(), "knn"), (Classify(), "linear"), (Multilabel(), "linear")])
def test_few_labels_are_drawn_by_the_seed_and_more_of_them_help(task, mode):
    stored, _, cells = clips()
    labels = cells if task.kind == "multilabel" else [cell.split("|")[0] or "none" for cell in cells]
    trials = {"": thirds(stored, labels)}
    shots = Shots((1, 10, 1000), draws=4, seed=3)
    found, again = (measure(ProbeMethod(mode, task), trials, shots=shots)[0] for _ in range(2))
    assert found.few == again.few and len(found.few[1].draws) == 4
    assert len(set(found.few[1].draws)) > 1
    assert found.few[10].mean_and_spread[0] > found.few[1].mean_and_spread[0]
    whole = next(iter(found.scores.measures.values())).value
    num_classes = len(task.targets(trials[""][0].labels).names)
    if task.kind == "classify":  # of more clips than there are, all are taken
        assert found.few[1000].draws == (whole,) * 4
        assert found.few[1].num_clips == num_classes
    assert found.few[1000].short == num_classes and found.few[1].short == 0
    assert measure(ProbeMethod(mode, task), trials)[0].few == {}


@pytest.mark.fast
def test_each_class_has_so_many_clips_and_a_larger_draw_holds_the_smaller():
    stored, _, cells = clips()
    train = thirds(stored, [cell.split("|")[0] or "none" for cell in cells])[0]
    targets = Classify().targets(train.labels)
    few, more = (train.few(Classify().draw(targets, num, np.random.default_rng(0))) for num in (2, 5))
    assert set(np.unique(few.labels, return_counts=True)[1]) == {2} and set(few.places) <= set(more.places)
    assert (few.labels == train.labels[np.searchsorted(train.places, few.places)]).all()


@pytest.mark.fast
@pytest.mark.parametrize("ties", [False, True])
def test_numbers_are_drawn_evenly_over_their_order_and_a_larger_draw_holds_the_smaller(ties):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 3, 100) if ties else rng.standard_normal(100) ** 3  # 0 is a number like any other
    targets, held = Regress().targets(np.array([str(value) for value in values])), set()
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    for num in (2, 5, 10, 40, 100, 1000):
        drawn = Regress().draw(targets, num, np.random.default_rng(7))
        assert len(set(drawn.tolist())) == len(drawn) == min(num, 100) and held <= set(drawn.tolist())
        held = set(drawn.tolist())
        share = np.sort(ranks[drawn]) / 100  # as many below each place in the order as belong there, to a clip or two
        assert np.abs(share - (np.arange(len(drawn)) + 0.5) / len(drawn)).max() <= 2 / len(drawn)
    others = {tuple(Regress().draw(targets, 5, np.random.default_rng(seed))) for seed in range(5)}
    assert len(others) > 1


# ---- which task


@pytest.mark.fast
@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([f"{i / 7:.3f}" for i in range(30)], "regress"),
        ([*(f"{i / 7:.3f}" for i in range(30)), "nan"], "regress"),  # which `check` then names
        ([*(f"{i / 7:.3f}" for i in range(30)), "fast"], "classify"),
        ([str(i) for i in range(100)], "classify"),
        (["0.5", "1.5", "2.5"] * 10, "classify"),
        (["a", "b", "a|b"], "multilabel"),
    ],
)
def test_a_column_tells_what_it_is(labels, kind):
    texts = np.array(labels)
    task = tasks.choose("auto", texts)
    assert task.kind == kind and tasks.choose(kind, texts) == task
    line = tasks.describe(task, "x", texts)
    assert line.startswith("x: read as ") and f"--task {kind}" in line and "\n" not in line


@pytest.mark.fast
@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        (Classify(), ["a", "a"], "every clip is 'a'; a probe needs two classes"),
        (Regress(), ["1.5", "nan"], "1 of 2 values are no finite number, such as 'nan'"),
        (Regress(), ["1.5", "inf"], "no finite number"),
        (Regress(), ["fast", "2"], "such as 'fast'"),
        (Regress(), ["2", "2.0"], "every value is 2"),
        (Multilabel(), ["a|b", "b|a"], r"every clip has 'a\|b'"),
        (Multilabel(), ["|", "|"], "no clip has a class"),
    ],
)
def test_labels_that_teach_nothing_are_one_line(task, labels, message):
    with pytest.raises(UserError, match=message) as error:
        task.check(np.array(labels), "train, x", learned=True)
    assert str(error.value).startswith("train, x: ") and "\n" not in str(error.value)


@pytest.mark.fast
def test_numbers_have_no_classes_to_balance():
    with pytest.raises(UserError, match="--class_weights balanced: numbers"):
        tasks.choose("regress", np.array(["1"]), balanced=True)


@pytest.mark.fast
def test_the_config_names_tasks_of_all_labels_or_of_some():
    every = config.Eval(labels=["a", "b"], targets="regression")
    some = config.Eval(labels=["a", "b"], targets={"b": "multilabel"})
    assert [every.targets_of(label) for label in "ab"] == ["regression"] * 2
    assert [some.targets_of(label) for label in "ab"] == ["auto", "multilabel"]
    with pytest.raises(ValueError, match=r"'c' is none of eval\.labels"):
        config.Eval(labels=["a"], targets={"c": "regression"})


def test_a_head_on_disk_says_what_its_outputs_are(tmp_path):
    stored, labels, cells = clips()
    heads = []
    for task, texts in ((Regress(), labels), (Multilabel(), cells)):
        heads.append(fit_probe(ProbeMethod("linear", task), *thirds(stored, texts)[:2], []).head)
    write_probes(tmp_path / "heads.safetensors", heads, {})
    tokens = torch.randn(3, 4, 24)
    for number, head in enumerate(heads):
        loaded = load_probe(tmp_path / "heads.safetensors", number)
        assert (loaded.task, loaded.link, loaded.classes) == (head.task, head.link, head.classes)
        assert torch.equal(loaded.answers(tokens), head.answers(tokens))


@pytest.mark.fast
def test_a_statistic_that_is_the_mean_has_the_interval_of_the_mean():
    values = np.random.default_rng(0).normal(size=400)
    found = bootstrap.measure(lambda weights: {"mean": weights @ values / weights.sum(1)}, 400, None, 0)["mean"]
    half = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)
