"""The comparison that closes a run: what it reads, what it chooses on, and what it reports."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vjepa import config
from vjepa.errors import UserError
from vjepa.probing import evidence
from vjepa.probing.features import Features
from vjepa.records import ClipBatch


class FakeIndex:
    """A clip index in memory: columns of equal length."""

    def __init__(self, path="clips.parquet", **columns):
        self.path, self.columns = path, {"group": [None] * len(columns["label"]), **columns}

    def column(self, name):
        return self.columns[name]

    def select(self, where):
        wanted = {name: value if isinstance(value, list) else [value] for name, value in where.items()}
        return np.array(
            [
                i
                for i in range(len(self.columns["label"]))
                if all(self.columns[name][i] in values for name, values in wanted.items())
            ]
        )


def use(monkeypatch, index):
    monkeypatch.setattr(evidence, "ClipIndex", SimpleNamespace(open=lambda path: index))


def data(**sources):
    return config.Data(
        **{name: config.Source(index="clips.parquet", where={"split": split}) for name, split in sources.items()}
    )


def example(seed=0, num=(80, 40, 60), noise=2.0):
    """Features and labels of three splits, as `evidence` takes them."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, 10))
    features, labels = {}, {}
    for split, n in zip(("train", "selection", "val"), num, strict=True):
        ids = rng.integers(0, 3, n)
        values = (centres[ids] + noise * rng.normal(size=(n, 10))).astype(np.float32)
        random = rng.normal(size=(n, 10)).astype(np.float32)
        features[split] = {"trained": Features(values, np.arange(n)), "random_init": Features(random, np.arange(n))}
        labels[split] = {"label": [f"class {i}" for i in ids]}
    return features, labels


@pytest.mark.fast
def test_the_report_holds_every_probe_and_kind():
    report = evidence.evidence(*example(noise=0.5))
    for probe in ("knn", "linear"):
        assert list(report["label"][probe]) == ["trained", "random_init", "chance"]
        for entry in report["label"][probe].values():
            assert 0 <= entry["low"] <= entry["accuracy"] <= entry["high"] <= 1
        assert report["label"][probe]["trained"]["accuracy"] > report["label"][probe]["random_init"]["accuracy"] + 0.2
    assert report["label"]["num_clips"] == {"train": 80, "selection": 40, "val": 60}
    assert report["num_features"] == 10
    assert 3 < report["effective_rank"] <= 10


@pytest.mark.fast
def test_labels_of_val_change_no_choice():
    features, labels = example()
    other = {**labels, "val": {"label": list(np.random.default_rng(5).permutation(labels["val"]["label"]))}}
    first, second = evidence.evidence(features, labels), evidence.evidence(features, other)
    assert first["label"]["chosen"] == second["label"]["chosen"]
    assert first["label"]["linear"]["trained"] != second["label"]["linear"]["trained"]


@pytest.mark.fast
def test_rows_without_the_label_are_skipped():
    features, labels = example()
    labels["val"]["label"][:50] = [None] * 50
    assert evidence.evidence(features, labels)["label"]["num_clips"]["val"] == 10
    labels["val"]["label"][:] = [None] * 60
    with pytest.raises(UserError, match="val, label"):
        evidence.evidence(features, labels)


@pytest.mark.fast
def test_features_are_prepared_once_for_all_labels(monkeypatch):
    features, labels = example()
    prepared = []
    real = evidence.heads.prepare
    monkeypatch.setattr(
        evidence.heads, "prepare", lambda train, *others: prepared.append(len(train)) or real(train, *others)
    )
    # a second label that two thirds of the clips have: standardised by all of them nevertheless
    two = {
        split: {**columns, "rare": [None if i % 3 == 0 else name for i, name in enumerate(columns["label"])]}
        for split, columns in labels.items()
    }
    report = evidence.evidence(features, two)
    assert prepared == [80, 80]  # trained, random_init
    assert report["rare"]["num_clips"]["train"] == 53
    assert report["label"] == evidence.evidence(features, labels)["label"]


@pytest.mark.fast
def test_one_class_is_refused():
    features, labels = example()
    labels["train"]["label"][:] = ["same"] * 80
    with pytest.raises(UserError, match="two classes"):
        evidence.evidence(features, labels)


@pytest.mark.fast
def test_without_selection_whole_groups_are_held_out(monkeypatch):
    groups = [f"person {i // 5}" for i in range(100)] + ["person x"] * 10
    use(monkeypatch, FakeIndex(label=["a", "b"] * 55, split=["train"] * 100 + ["val"] * 10, group=groups))
    splits, again = (evidence.read_splits(data(train="train", val="val"), ["label"]) for _ in range(2))
    assert len(splits.selection.rows) == 20
    assert sorted([*splits.train.rows, *splits.selection.rows]) == list(range(100))
    assert not {groups[row] for row in splits.train.rows} & {groups[row] for row in splits.selection.rows}
    assert (splits.selection.rows == again.selection.rows).all()


@pytest.mark.fast
@pytest.mark.parametrize(("sizes", "held"), [((50, 30, 40), 30), ((50,), None)])
def test_large_groups_are_not_torn_apart(monkeypatch, sizes, held):
    groups = [f"group {number}" for number, size in enumerate(sizes) for _ in range(size)]
    n = len(groups)
    use(monkeypatch, FakeIndex(label=["a"] * (n + 1), split=["train"] * n + ["val"], group=[*groups, None]))
    if held is None:
        with pytest.raises(UserError, match=r"data\.selection"):
            evidence.read_splits(data(train="train", val="val"), ["label"])
    else:
        assert len(evidence.read_splits(data(train="train", val="val"), ["label"]).selection.rows) == held


@pytest.mark.fast
def test_a_clip_in_two_splits_is_refused(monkeypatch):
    use(monkeypatch, FakeIndex(label=["a"] * 20, split=["train"] * 10 + ["val"] * 10))
    with pytest.raises(UserError, match=r"data\.val: 10 of its 10 clips are in data\.selection"):
        evidence.read_splits(data(train="train", selection="val", val="val"), ["label"])


@pytest.mark.fast
def test_rows_that_have_none_of_the_labels_are_not_decoded(monkeypatch):
    use(
        monkeypatch,
        FakeIndex(
            label=["a", None, None, "b"] * 5, speed=["x", None, "y", None] * 5, split=["train"] * 12 + ["val"] * 8
        ),
    )
    splits = evidence.read_splits(data(train="train", val="val"), ["label", "speed"])
    assert splits.val.rows.tolist() == [12, 14, 15, 16, 18, 19]


class Brightness(torch.nn.Module):
    """An encoder of one token per frame that sees the mean and where in time it is."""

    def forward(self, video):
        level = video.mean((1, 3, 4))
        return torch.stack([level, level * torch.arange(video.shape[2]), torch.ones_like(level)], -1)


def test_evaluate_run_from_config_to_report(monkeypatch):
    rng = np.random.default_rng(0)
    n = 90
    labels = [["up", "down"][i] for i in rng.integers(0, 2, n)]
    use(monkeypatch, FakeIndex(label=labels, split=["train"] * 60 + ["val"] * 30))

    def loader(index, rows, data, batch, workers, shuffle_frames=False):
        for start in range(0, len(rows), batch):
            ids = [row for row in rows[start : start + batch] if row != 61]
            ramp = torch.arange(4)[None] * torch.tensor([60 if labels[row] == "up" else -60 for row in ids])[:, None]
            ramp = (ramp - ramp.amin(1, keepdim=True) + torch.tensor(rng.integers(0, 30, (len(ids), 1))))[
                :, None, :, None, None
            ]
            if shuffle_frames:
                ramp = torch.stack([clip[:, torch.randperm(4)] for clip in ramp])
            failures = ((61, "broken"),) if 61 in rows[start : start + batch] else ()
            yield ClipBatch(ramp.expand(-1, 3, -1, 16, 16).to(torch.uint8), torch.tensor(ids), failures)

    monkeypatch.setattr(evidence, "eval_loader", loader)
    settings = config.Config(
        data=data(train="train", val="val").model_copy(update={"num_frames": 4, "crop_px": 16}),
        optim=config.Optim(total_steps=1),
        eval=config.Eval(batch=16, baselines=["random_init", "pixels", "motion_energy", "shuffled_frames"]),
    )
    report = evidence.evaluate_run(settings, Brightness(), Brightness(), torch.device("cpu"), torch.float32)
    linear = report["label"]["linear"]
    assert list(linear) == ["trained", "random_init", "pixels", "motion_energy", "shuffled_frames", "chance"]
    assert linear["trained"]["accuracy"] == linear["pixels"]["accuracy"] == 1
    assert linear["shuffled_frames"]["accuracy"] < 0.85  # the order of time is what tells them apart
    assert report["num_unreadable"] == 1
    assert report["unreadable"] == ["val row 61: broken"]
    assert report["label"]["num_clips"] == {"train": 48, "selection": 12, "val": 29}


@pytest.mark.fast
def test_no_val_is_an_error_that_names_the_key():
    with pytest.raises(UserError, match=r"data\.val"):
        evidence.read_splits(data(train="train"), ["label"])


@pytest.mark.fast
def test_features_may_come_in_any_order():
    features, labels = example()
    turned = {
        split: {kind: replace(f, values=f.values[::-1], clip_ids=f.clip_ids[::-1]) for kind, f in kinds.items()}
        for split, kinds in features.items()
    }
    first, second = evidence.evidence(features, labels), evidence.evidence(turned, labels)
    assert first["label"]["knn"] == second["label"]["knn"]
