"""The evidence that closes a run: what it reads, what it chooses on, what it reports, and that the probe command says
the same.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_runs import metrics, settings

from vjepa import config, probe
from vjepa.data.clip_index import ClipIndex
from vjepa.errors import UserError
from vjepa.jepa import build
from vjepa.probing import closing, extractors, linear
from vjepa.probing.banks import Bank
from vjepa.probing.online import OnlineProbe
from vjepa.probing.splits import Split
from vjepa.records import ClipBatch
from vjepa.reporting.tables import closing_table
from vjepa.training.pretraining import train


class FakeIndex:
    """A clip index in memory: columns of equal length."""

    path = Path("clips.parquet")

    def __init__(self, **columns):
        self.columns = columns

    def column(self, name):
        return self.columns.get(name, [None] * 1000)

    def row(self, clip_id):
        return SimpleNamespace(uri=f"clip {clip_id}")


def example(seed=0, num=(80, 40, 60), noise=2.0, **columns):
    """Splits of one index, and banks of features of them, as `closing.probe_labels` takes them."""
    rng = np.random.default_rng(seed)
    n = sum(num)
    ids = rng.integers(0, 3, n)
    values = rng.normal(size=(3, 10))[ids] + noise * rng.normal(size=(n, 10))
    kinds = {"trained": values, "random_init": rng.normal(size=(n, 10))}
    banks = {kind: Bank(torch.tensor(x).half()[:, None, None], np.arange(n), ()) for kind, x in kinds.items()}
    labels = {"label": [f"class {i}" for i in ids], **columns}
    parts = dict(zip(("train", "selection", "val"), np.split(np.arange(n), np.cumsum(num)[:2]), strict=True))
    index = FakeIndex(**labels)
    return {name: Split(index, rows, labels) for name, rows in parts.items()}, dict.fromkeys(parts, banks)


def probed(splits, banks, labels=("label",)):
    return closing.probe_labels(splits, banks, config.Eval(labels=list(labels)))


@pytest.mark.fast
def test_every_probe_has_an_entry_with_its_baselines_and_chance():
    entries = probed(*example(noise=0.5))["label"]
    for entry in entries.values():
        baseline = entry["baselines"]["random_init"]["top1"]
        assert 0 <= entry["low"] <= entry["accuracy"] <= entry["high"] <= 1
        assert 0.2 < entry["chance"]["low"] <= entry["chance"]["accuracy"] < 0.6
        assert entry["accuracy"] > baseline["value"] + 0.2 and baseline["low"] <= baseline["value"]
        assert entry["num_clips"] == {"train": 80, "selection": 40, "val": 60}
    assert set(entries["knn"]["chosen"]) == {"k"} and set(entries["linear"]["chosen"]) == {"C"}
    assert all(mistake["uri"].startswith("clip 1") for mistake in entries["knn"]["scores"]["worst"])


@pytest.mark.fast
def test_labels_of_val_change_no_choice():
    splits, banks = example()
    labels = list(splits["val"].labels["label"])
    labels[120:] = np.random.default_rng(5).permutation(labels[120:]).tolist()
    other = {**splits, "val": Split(splits["val"].index, splits["val"].rows, {"label": labels})}
    first, second = (probed(parts, banks)["label"]["linear"] for parts in (splits, other))
    assert first["chosen"] == second["chosen"] and first["accuracy"] != second["accuracy"]


@pytest.mark.fast
def test_rows_without_the_label_are_skipped():
    splits, banks = example()
    labels = splits["val"].labels["label"]
    labels[120:170] = [None] * 50
    assert probed(splits, banks)["label"]["knn"]["num_clips"]["val"] == 10
    labels[120:] = [None] * 60
    with pytest.raises(UserError, match="val, label: no readable clip"):
        probed(splits, banks)


@pytest.mark.fast
def test_features_are_prepared_once_for_labels_of_the_same_clips(monkeypatch):
    splits, banks = example()
    labels = splits["train"].labels
    labels["same"] = [f"other {name}" for name in labels["label"]]
    labels["rare"] = [None if i % 3 == 0 else name for i, name in enumerate(labels["label"])]
    prepared, real = [], linear.prepare
    monkeypatch.setattr(
        linear,
        "prepare",
        lambda *parts, batch_norm: prepared.append(len(parts[0])) or real(*parts, batch_norm=batch_norm),
    )
    found = probed(splits, banks, ("label", "same", "rare"))
    assert sorted(prepared) == [53, 53, 80, 80]  # trained and random_init, with two sets of clips
    assert found["rare"]["linear"]["num_clips"]["train"] == 53
    assert found["label"]["linear"]["accuracy"] == found["same"]["linear"]["accuracy"]


@pytest.mark.fast
def test_intervals_are_over_groups_where_there_are_some():
    splits, banks = example(group=[f"person {i // 20}" for i in range(180)])
    entry = probed(splits, banks)["label"]["knn"]
    assert entry["scores"]["num_groups"] == 3
    assert probed(*example())["label"]["knn"]["scores"]["num_groups"] is None


@pytest.mark.fast
def test_one_class_is_refused():
    splits, banks = example()
    splits["train"].labels["label"][:80] = ["same"] * 80
    with pytest.raises(UserError, match=r"train, label: .* two classes"):
        probed(splits, banks)


@pytest.mark.fast
def test_features_may_come_in_any_order():
    splits, banks = example()
    turned = {kind: Bank(one.values.flip(0), one.clip_ids[::-1], ()) for kind, one in banks["val"].items()}
    first, second = probed(splits, banks), probed(splits, dict.fromkeys(splits, turned))
    assert first["label"]["knn"]["accuracy"] == second["label"]["knn"]["accuracy"]


class Brightness(torch.nn.Module):
    """An encoder of one token per frame that sees the mean and where in time it is."""

    depth, model = 1, config.Model()

    def forward(self, video):
        level = video.mean((1, 3, 4))
        return torch.stack([level, level * torch.arange(video.shape[2]), torch.ones_like(level)], -1)


def test_shuffled_frames_fail_where_the_order_of_time_tells_classes_apart(monkeypatch):
    rng = np.random.default_rng(0)
    labels = {"label": [["up", "down"][i] for i in rng.integers(0, 2, 90)]}

    class Source:
        def __init__(self, index, data):
            pass

        def loader(self, clip_ids, views, batch):
            for start in range(0, len(clip_ids), batch):
                rows = clip_ids[start : start + batch].tolist()
                ids = [row for row in rows if row != 61]
                slope = torch.tensor([60 if labels["label"][row] == "up" else -60 for row in ids])[:, None]
                ramp = torch.arange(4)[None] * slope
                level = ramp - ramp.amin(1, keepdim=True) + torch.tensor(rng.integers(0, 30, (len(ids), 1)))
                video = level[:, None, :, None, None].expand(-1, 3, -1, 16, 16).to(torch.uint8)
                yield ClipBatch(video, torch.tensor(ids), ((61, "broken"),) if 61 in rows else ())

    index = FakeIndex(**labels)
    parts = {"train": np.arange(48), "selection": np.arange(48, 60), "val": np.arange(60, 90)}
    monkeypatch.setattr(closing, "ClipSource", Source)
    monkeypatch.setattr(
        closing,
        "read_splits",
        lambda *_: SimpleNamespace(**{name: Split(index, rows, labels) for name, rows in parts.items()}),
    )
    monkeypatch.setattr(extractors, "untrained", lambda encoder, seed: encoder)
    wanted = config.Config(
        data=config.Data(train="clips.parquet", num_frames=4, crop_px=16),
        objective=config.Objective(view_invariance=0),
        optim=config.Optim(total_steps=1, lr=1e-3),
        eval=config.Eval(batch=16, baselines=["random_init", "pixels", "motion_energy", "shuffled_frames"]),
    )
    found = closing.evaluate_run(wanted.data, wanted.eval, Brightness(), 0, 12, torch.device("cpu"), torch.float32)
    entry = found["probes"]["label"]["linear"]
    assert list(entry["baselines"]) == ["random_init", "pixels", "motion_energy", "shuffled_frames"]
    assert entry["accuracy"] == entry["baselines"]["pixels"]["top1"]["value"] == 1
    assert entry["baselines"]["shuffled_frames"]["top1"]["value"] < 0.85
    assert found["num_unreadable"] == 1 and found["unreadable"] == ["clip 61: broken"]
    assert entry["num_clips"] == {"train": 48, "selection": 12, "val": 29}
    assert found["measured"] == {"encoder": "encoder", "step": 12} and found["collapse"]["num_features"] == 3


@pytest.fixture
def index(make_index):
    """24 short videos, in groups of two, of three hues and in two splits."""
    rows = [
        {
            "label": ("marked", "plain")[i % 2],
            "steps": f"{i % 3}",
            "split": "train" if i < 16 else "val",
            "group": f"g{i // 2}",
        }
        for i in range(24)
    ]
    return make_index(rows, num_frames=6, size=(32, 32))


def test_pictures_are_drawn_of_the_first_clips_that_can_be_read(index, tmp_path):
    """The first four clips, a whole batch of the pictures, are no videos any more."""
    clips = ClipIndex.open(str(index))
    for i in range(16, 20):
        Path(clips.row(i).uri).write_bytes(b"broken")
    val = {"val": {"index": str(index), "where": {"split": "val"}}}
    run = settings(index, "run", data=val, eval={"baselines": ["random_init"], "labels": ["label"]})
    assert train(run, progress=False)["probes"]["label"]
    for name in ("mask", "features_pca"):
        assert (Path(run.run.dir) / "pictures" / f"{name}.png").stat().st_size > 1000


def test_the_closing_table_and_the_probe_command_say_the_same(index, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kinds = ["random_init", "pixels", "motion_energy", "shuffled_frames"]
    val = {"val": {"index": str(index), "where": {"split": "val"}}}
    run = settings(index, "run", data=val, eval={"baselines": kinds, "labels": ["label", "steps"]}, run={"seed": 5})
    summary = train(run, progress=False)
    assert not (tmp_path / "cache").exists()
    assert summary["steps"] == 6 and set(summary["probes"]) == {"label", "steps"}  # a label overwrites no figure
    for label in ("label", "steps"):
        assert f"{label}: accuracy on 8 clips" in closing_table(summary)
        for mode, name in (("knn", "knn"), ("linear", "linear_probe")):
            words = ["--model_path", run.run.dir, "--dataset", str(index), "--eval_mode", name, "--label", label]
            probe.main([*words, "--baselines", ",".join(kinds), "--no-cache"])
            result = json.loads(Path(run.run.dir, "probe.json").read_text())[-1]
            entry = summary["probes"][label][mode]
            assert entry == {key: result[key] for key in entry}
    assert "measured: encoder, step 6" in closing_table(summary)


def test_numbers_and_many_classes_close_a_run_and_guide_it(make_index, tmp_path):
    rows = [
        {"size": f"{i % 2 + 0.01 * i}", "count": f"{i % 5}", "tags": ("a|b", "b", "a")[i % 3],
        "split": "train" if i < 16 else "val"}
        for i in range(24)
    ]  # fmt: skip
    index = make_index(rows, num_frames=6, size=(32, 32))
    val = {"val": {"index": str(index), "where": {"split": "val"}}}
    wanted = {"labels": ["size", "count", "tags"], "targets": {"count": "regression"}, "every_steps": 3}
    run = settings(index, "run", data=val, eval={**wanted, "baselines": ["random_init", "pixels"]})
    summary = train(run, progress=False)
    table, rows = closing_table(summary), metrics(run.run.dir)
    for head in ("size: R2 on 8 clips", "count: R2 on 8 clips", "tags: mAP on 8 clips"):
        assert head in table
    assert "to choose k and alpha" in table and max(map(len, table.splitlines())) <= 100
    probed = [row for row in rows if "knn" in row]
    assert len(probed) == 2 and all(row["knn_half"] > 0 for row in probed)
    assert all(
        row["knn"] == pytest.approx(np.mean([row[f"knn_{name}"] for name in wanted["labels"]])) for row in probed
    )
    for label, more in (("size", []), ("count", ["--task", "regress"]), ("tags", [])):
        words = ["--model_path", str(Path(run.run.dir, "checkpoints", "best")), "--dataset", str(index), *more]
        probe.main([*words, "--label", label, "--eval_mode", "linear_probe", "--baselines", "random_init,pixels",
        "--no-cache"])  # fmt: skip
        result = json.loads(Path(run.run.dir, "probe.json").read_text())[-1]
        entry = summary["probes"][label]["linear"]
        assert entry == {key: result[key] for key in entry}
    bad = settings(index, "bad", data=val, eval={"labels": ["tags"], "targets": "regression"})
    with pytest.raises(UserError, match=r"data\.train \(or data\.labelled\), tags: .* are no finite number"):
        train(bad, progress=False)
    assert not Path(bad.run.dir).exists()


def test_the_untrained_encoder_is_the_start_of_the_run(index):
    run = settings(index, "run", run={"seed": 5})
    start = build(run).encoder
    again = extractors.untrained(build(settings(index, "run", run={"seed": 6})).encoder, 5)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in start.state_dict().items())


def test_the_online_probe_is_a_function_of_the_weights_and_never_reads_val(index, monkeypatch):
    val = {"val": {"index": str(index), "where": {"split": "val"}}}
    wanted = settings(index, "run", data=val, eval={"labels": ["label", "steps"], "every_steps": 2})
    encoder = build(wanted).encoder.train()
    read, real = [], closing.ClipSource.loader
    monkeypatch.setattr(
        closing.ClipSource, "loader", lambda self, ids, *rest: read.extend(ids.tolist()) or real(self, ids, *rest)
    )
    given = wanted.data, wanted.eval, encoder, wanted.run.seed, torch.device("cpu"), torch.float32
    one, two = OnlineProbe(*given), OnlineProbe(*given)
    found = one.measure_at(2)
    assert found == two.measure_at(4) and one.measure_at(3) == {} and encoder.training
    names = {"knn", "knn_label", "knn_steps"}
    assert found.keys() == names | {"knn_half"} | {f"{name}_random_init" for name in names}
    assert all(found[name] == found[f"{name}_random_init"] for name in names)  # nothing was learned yet
    assert set(read) == set(range(16))


def test_splits_of_different_indexes_are_measured(index, tmp_path, make_index):
    rows = [{"label": ("marked", "plain")[i % 2], "split": "test"} for i in range(6)]
    (tmp_path / "first.parquet").write_bytes(index.read_bytes())
    other = make_index(rows, num_frames=6, size=(32, 32))
    run = settings(tmp_path / "first.parquet", "run", data={"val": {"index": str(other)}})
    summary = train(run, progress=False)
    assert summary["probes"]["label"]["knn"]["num_clips"]["val"] == 6
    assert metrics(run.run.dir)
