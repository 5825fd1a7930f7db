"""What a probe learns from, what it chooses on, and that every clip counts once."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from vjepa.data.plan_rows import Views
from vjepa.errors import UserError
from vjepa.models.pooling import Pooling
from vjepa.probing import linear, sweep
from vjepa.probing.banks import Bank, Extractor
from vjepa.probing.comparison import TRAINED, Looks, compare, measure_chance
from vjepa.probing.datasets import Dataset, Trial
from vjepa.probing.protocol import Examples, ProbeMethod, fit_probe
from vjepa.probing.store import Store
from vjepa.probing.task_classify import Classify
from vjepa.records import ClipBatch, TokenGrid

NUM = 240
IN_PLACE = Pooling.parse("all", TokenGrid(2, 1, 2))
METHODS = {
    "knn": ProbeMethod("knn"),
    "logistic": ProbeMethod("linear"),
    "logistic, no batch norm": ProbeMethod("linear", batch_norm=False),
    "ridge": ProbeMethod("linear", head="ridge"),
    "ridge, tokens in their places": ProbeMethod("linear", head="ridge", pooling=IN_PLACE),
    "ridge, no batch norm": ProbeMethod("linear", head="ridge", batch_norm=False),
    "attentive": ProbeMethod("attentive", grid=sweep.Grid((3e-3, 1e-3), (0.01, 0.1), max_steps=200)),
    "attentive, depth 2": ProbeMethod("attentive", depth=2, grid=sweep.Grid((5e-3,), (0.01,), max_steps=120)),
}


def bank(tokens=4, views=2, noise=0.5, seed=0):
    """A bank of NUM clips of three classes, told by one token, and their labels."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, NUM)
    values = noise * rng.normal(size=(NUM, views, tokens, 12))
    values[:, :, 0] += 2 * rng.normal(size=(3, 12))[classes][:, None]
    return Bank(torch.tensor(values).half(), np.arange(NUM), (), "key"), [f"class {i}" for i in classes]


def thirds(stored, labels):
    return (Examples.of(stored, np.arange(NUM)[part::3], labels, "part") for part in range(3))


def accuracy(found, test, number=0):
    return np.mean(found.names[found.answers[number].argmax(1)] == test.labels)


@pytest.mark.parametrize("name", METHODS)
def test_probes_learn_what_is_there_and_only_chance_from_shuffled_labels(name):
    stored, labels = bank(tokens=4 if "tokens" in name or "attentive" in name else 1)
    train, selection, test = thirds(stored, labels)
    found = fit_probe(METHODS[name], train, selection, [test])
    assert accuracy(found, test) > 0.95
    assert found.answers[0].shape == (80, 3) and found.answers[0].sum(1) == pytest.approx(1, abs=1e-5)
    assert found.chosen in [
        {key: value for key, value in tried.items() if key != "accuracy"} for tried in found.selection
    ]
    if found.head:
        views = [found.head(test.tokens(np.arange(80), view, torch.device("cpu")).float()) for view in range(2)]
        shares = [linear.as_shares(one.numpy()) if "ridge" in name else one.softmax(-1).numpy() for one in views]
        assert np.mean(shares, 0) == pytest.approx(found.answers[0], abs=1e-4) and found.head.classes == tuple(
            found.names
        )
    train, selection, test = thirds(stored, list(np.random.default_rng(1).permutation(labels)))
    assert (
        accuracy(fit_probe(METHODS[name], train, selection, [test]), test) < 1 / 3 + 0.15
    )  # 3 standard deviations of 80 clips


@pytest.mark.parametrize("name", ["knn", "ridge", "attentive"])
def test_classes_of_the_test_clips_change_nothing(name):
    stored, labels = bank(tokens=1, noise=2.0)
    train, selection, test = thirds(stored, labels)
    other = Examples(test.bank, test.places, np.full(80, "class 0"))
    one, two = (fit_probe(METHODS[name], train, selection, [part]) for part in (test, other))
    assert one.chosen == two.chosen and (one.answers[0] == two.answers[0]).all()


def test_views_are_averaged_and_the_better_for_it():
    stored, labels = bank(tokens=1, views=6, noise=3.0)
    train, selection, test = thirds(stored, labels)
    single = Bank(stored.values[:, :1], stored.clip_ids, (), "single")
    many = fit_probe(ProbeMethod("linear"), train, selection, [test])
    one = fit_probe(ProbeMethod("linear"), train, selection, [Examples(single, test.places, test.labels)])
    assert many.answers[0].shape == one.answers[0].shape
    assert accuracy(many, test) > accuracy(one, test) + 0.05


def test_logistic_regression_is_that_of_scikit_learn():
    stored, labels = bank(tokens=1, views=1, noise=2.0)
    train, selection, test = thirds(stored, labels)
    found = fit_probe(ProbeMethod("linear"), train, selection, [test])
    values = [part.pooled() for part in (train, test)]
    scaled = linear.standardise(*values)
    twin = LogisticRegression(C=found.chosen["C"], tol=1e-9, max_iter=10_000).fit(scaled[0], train.labels)
    assert found.answers[0] == pytest.approx(twin.predict_proba(scaled[1]), abs=0.01)


def small_token(num=NUM, tokens=16, width=16, seed=0):
    """Clips whose class one token of many tells, anywhere: the mean hardly shows it."""
    rng = np.random.default_rng(seed)
    classes, values = rng.integers(0, 3, num), rng.normal(size=(num, 1, tokens, width))
    values[np.arange(num), 0, rng.integers(0, tokens, num)] = (
        3 * np.random.default_rng(9).normal(size=(3, width))[classes]
    )
    return Bank(torch.tensor(values).half(), np.arange(num), (), "key"), [f"class {i}" for i in classes]


def test_heads_find_what_the_mean_hides_and_are_never_below_the_linear_start():
    stored, labels = small_token(600, 64, 32)
    train, selection, test = (Examples.of(stored, np.arange(600)[part::3], labels, "part") for part in range(3))
    grid = sweep.Grid((5e-3, 1e-3), (0.01,), max_steps=600)
    found = fit_probe(ProbeMethod("attentive", grid=grid), train, selection, [test])
    means = Bank(stored.values.float().mean(2, keepdim=True), stored.clip_ids, (), "mean")
    linear_parts = [Examples(means, part.places, part.labels) for part in (train, selection, test)]
    below = fit_probe(ProbeMethod("linear", head="ridge"), *linear_parts[:2], linear_parts[2:])
    assert accuracy(found, test) > accuracy(below, test) + 0.1
    again = fit_probe(ProbeMethod("attentive", grid=grid), train, selection, [test])
    assert (again.answers[0] == found.answers[0]).all() and again.selection == found.selection


@pytest.mark.parametrize("seed", range(3))
def test_noise_leaves_heads_at_least_where_they_start_on_selection(seed):
    stored, labels = small_token(seed=seed)
    labels = list(np.random.default_rng(seed).permutation(labels))
    train, selection, _ = thirds(stored, labels)
    found = fit_probe(ProbeMethod("attentive", grid=sweep.Grid((5e-3,), (0.01,), 100)), train, selection, [selection])
    start = found.selection[0]
    assert start["steps"] == 0 and accuracy(found, selection) >= start["accuracy"]
    assert accuracy(found, selection) == pytest.approx(max(one["accuracy"] for one in found.selection))


def test_chance_answers_the_most_frequent_class_of_train():
    stored, _ = bank(tokens=1, views=1)
    parts = [["a", "b", "b"], ["a"], ["a", "a", "a", "b"]]
    examples = [Examples(stored, np.arange(len(part)), np.array(part)) for part in parts]
    assert measure_chance(Classify(), {"": examples})["top1"].value == 0.25
    trials = {"one": examples, "other": [examples[2], *examples[1:]]}
    assert measure_chance(Classify(), trials)["top1"].value == 0.5


def test_one_class_and_wrong_heads_are_refused():
    stored, labels = bank()
    train, selection, test = thirds(stored, labels)
    with pytest.raises(UserError, match="two classes"):
        fit_probe(ProbeMethod("knn"), Examples(stored, train.places, np.full(80, "same")), selection, [test])
    with pytest.raises(UserError, match="--probe_heads 5: does not divide the 12 features"):
        fit_probe(ProbeMethod("attentive", attention_heads=5), train, selection, [test])
    with pytest.raises(UserError, match="val: no readable clip"):
        Examples.of(stored, np.array([NUM + 1]), [None] * (NUM + 2), "val")


class Frames:
    """Clips of two frames: `up` brightens, `down` darkens; number 3 cannot be read."""

    labels = tuple("up" if i % 2 else "down" for i in range(60))

    def facts(self, clip_ids, views):
        return {"ids": clip_ids.tolist(), "views": str(views)}

    def loader(self, clip_ids, views, batch):
        ids = [i for i in clip_ids.tolist() if i != 3]
        first = torch.tensor([50 + i for i in ids])
        second = first + torch.tensor([40 if self.labels[i] == "up" else -40 for i in ids])
        video = torch.stack([first, second], 1)[:, None, :, None, None].expand(-1, 3, -1, 8, 8).to(torch.uint8)
        yield ClipBatch(video, torch.tensor(ids), ((3, "broken"),) if 3 in clip_ids else ())

    def uri(self, clip_id):
        return f"clip {clip_id}"


def brightness(reverse=False):
    def run(video, clip_ids):
        level = video.float().mean((1, 3, 4)).flip(1) if reverse else video.float().mean((1, 3, 4))
        return {"pooled": torch.stack([level[:, 1] - level[:, 0], torch.ones(len(level))], 1)[:, None] / 100}

    return Extractor({"reverse": reverse}, ("pooled",), run)


def test_folds_measure_every_clip_once_and_reversed_clips_fool_the_same_probe(tmp_path):
    ids = np.arange(60)
    trials = tuple(
        Trial(f"{fold}", ids[ids % 3 == (fold + 1) % 3], ids[ids % 3 == (fold + 2) % 3], ids[ids % 3 == fold])
        for fold in range(3)
    )
    dataset = Dataset(Frames(), {"label": Frames.labels}, [f"person {i % 10}" for i in ids], trials, {})
    extractors = {TRAINED: brightness(), "reversed_frames": brightness(reverse=True)}
    found = compare(
        dataset,
        extractors,
        {"label": ProbeMethod("knn")},
        Looks(Views(), Views()),
        Store(tmp_path, say=lambda line: None),
        8,
    )["label"]
    scores = found.kinds[TRAINED].scores
    assert scores.top1.value == 1 and found.kinds["reversed_frames"].scores.top1.value == 0
    assert scores.num_clips == 59 and scores.num_groups == 10 and found.failures == ((3, "broken"),)
    assert found.kinds[TRAINED].folds == {"0": 1, "1": 1, "2": 1} and found.kinds[TRAINED].mean_and_spread == (1, 0)
    assert found.num_clips == {"train": 59, "selection": 59, "val": 59} and 0.3 < found.chance["top1"].value < 0.7
    assert len(dataset.data_hash("label")) == 64
