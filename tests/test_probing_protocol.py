"""What a probe learns from, what it chooses on, and that every clip counts once."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from vjepa.data.plan_rows import Views
from vjepa.errors import UserError
from vjepa.models.pooling import Pooling
from vjepa.probing import heads, sweep
from vjepa.probing.comparison import BASELINES, TRAINED, Looks, compare
from vjepa.probing.datasets import Dataset, Trial
from vjepa.probing.protocol import Examples, Method, answer
from vjepa.probing.store import Bank, Recipe, Store
from vjepa.records import ClipBatch, TokenGrid

NUM = 240
METHODS = {
    "knn": Method("knn"),
    "logistic": Method("linear"),
    "logistic, no batch norm": Method("linear", batch_norm=False),
    "ridge": Method("linear", head="ridge"),
    "ridge, tokens in their places": Method("linear", head="ridge", pooling=Pooling.parse("all", TokenGrid(2, 1, 2))),
    "ridge, no batch norm": Method("linear", head="ridge", batch_norm=False),
    "attentive": Method("attentive", grid=sweep.Grid((3e-3, 1e-3), (0.01, 0.1), epochs=12)),
    "attentive, depth 2": Method("attentive", depth=2, grid=sweep.Grid((5e-3,), (0.01,), epochs=16)),
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
    return np.mean(found.names[found.probabilities[number].argmax(1)] == test.classes)


@pytest.mark.parametrize("name", METHODS)
def test_probes_learn_what_is_there_and_only_chance_from_shuffled_labels(name):
    stored, labels = bank(tokens=4 if "tokens" in name or "attentive" in name else 1)
    train, selection, test = thirds(stored, labels)
    found = answer(METHODS[name], train, selection, [test])
    assert accuracy(found, test) > 0.95
    assert found.probabilities[0].shape == (80, 3) and found.probabilities[0].sum(1) == pytest.approx(1, abs=1e-5)
    assert found.chosen in [
        {key: value for key, value in tried.items() if key != "accuracy"} for tried in found.selection
    ]
    if found.head:
        views = [found.head(test.tokens(np.arange(80), view, torch.device("cpu")).float()) for view in range(2)]
        shares = [heads.as_shares(one.numpy()) if "ridge" in name else one.softmax(-1).numpy() for one in views]
        assert np.mean(shares, 0) == pytest.approx(found.probabilities[0], abs=1e-4) and found.head.classes == tuple(
            found.names
        )
    train, selection, test = thirds(stored, list(np.random.default_rng(1).permutation(labels)))
    assert (
        accuracy(answer(METHODS[name], train, selection, [test]), test) < 1 / 3 + 0.15
    )  # 3 standard deviations of 80 clips


@pytest.mark.parametrize("name", ["knn", "ridge", "attentive"])
def test_classes_of_the_test_clips_change_nothing(name):
    stored, labels = bank(tokens=1, noise=2.0)
    train, selection, test = thirds(stored, labels)
    other = Examples(test.bank, test.places, np.full(80, "class 0"))
    one, two = (answer(METHODS[name], train, selection, [part]) for part in (test, other))
    assert one.chosen == two.chosen and (one.probabilities[0] == two.probabilities[0]).all()


def test_views_are_averaged_and_the_better_for_it():
    stored, labels = bank(tokens=1, views=6, noise=3.0)
    train, selection, test = thirds(stored, labels)
    single = Bank(stored.values[:, :1], stored.clip_ids, (), "single")
    many = answer(Method("linear"), train, selection, [test])
    one = answer(Method("linear"), train, selection, [Examples(single, test.places, test.classes)])
    assert many.probabilities[0].shape == one.probabilities[0].shape
    assert accuracy(many, test) > accuracy(one, test) + 0.05


def test_logistic_regression_is_that_of_scikit_learn():
    stored, labels = bank(tokens=1, views=1, noise=2.0)
    train, selection, test = thirds(stored, labels)
    found = answer(Method("linear"), train, selection, [test])
    values = [part.pooled()[:, 0] for part in (train, test)]
    scaled = heads.standardise(*values)
    twin = LogisticRegression(C=found.chosen["C"], tol=1e-9, max_iter=10_000).fit(scaled[0], train.classes)
    assert found.probabilities[0] == pytest.approx(twin.predict_proba(scaled[1]), abs=0.01)


def test_of_heads_that_are_right_equally_often_the_surer_wins():
    stored, labels = bank(noise=0.05)
    train, selection, test = thirds(stored, labels)
    found = answer(Method("attentive", grid=sweep.Grid((3e-3, 5e-3), (0.01,), epochs=12)), train, selection, [test])
    assert [tried["accuracy"] for tried in found.selection] == [1, 1] and found.chosen["lr"] == 5e-3


def test_one_class_and_wrong_heads_are_refused():
    stored, labels = bank()
    train, selection, test = thirds(stored, labels)
    with pytest.raises(UserError, match="two classes"):
        answer(Method("knn"), Examples(stored, train.places, np.full(80, "same")), selection, [test])
    with pytest.raises(UserError, match="--probe_heads 5: does not divide the 12 features"):
        answer(Method("attentive", attention_heads=5), train, selection, [test])
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

    return Recipe({"reverse": reverse}, ("pooled",), run)


def test_folds_measure_every_clip_once_and_reversed_clips_fool_the_same_probe(tmp_path):
    ids = np.arange(60)
    trials = tuple(
        Trial(f"{fold}", ids[ids % 3 == (fold + 1) % 3], ids[ids % 3 == (fold + 2) % 3], ids[ids % 3 == fold])
        for fold in range(3)
    )
    dataset = Dataset(Frames(), Frames.labels, [f"person {i % 10}" for i in ids], trials, {})
    recipes = {TRAINED: brightness(), "reversed_frames": brightness(reverse=True)}
    found = compare(dataset, recipes, Method("knn"), Looks(Views(), Views()), Store(tmp_path, say=lambda line: None), 8)
    scores = found.kinds[TRAINED].scores
    assert scores.top1.value == 1 and found.kinds["reversed_frames"].scores.top1.value == 0
    assert scores.num_clips == 59 and scores.num_groups == 10 and found.failures == ((3, "broken"),)
    assert found.kinds[TRAINED].folds == {"0": 1, "1": 1, "2": 1} and found.kinds[TRAINED].mean_and_spread == (1, 0)
    assert found.num_clips == {"train": 59, "selection": 59, "val": 59} and 0.3 < found.chance.accuracy < 0.7
    assert set(BASELINES) >= {"reversed_frames", "random_init"} and len(dataset.data_hash) == 64
