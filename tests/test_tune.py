"""The tuner, on runs of a few steps: what it tries, how it goes on, what it leaves."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from small_runs import settings

from vjepa import config, tune
from vjepa.data.sources import open_sources
from vjepa.errors import UserError
from vjepa.health.verdict import Verdict
from vjepa.training import monitor
from vjepa.tuning import study
from vjepa.tuning.held_out import HeldOut
from vjepa.tuning.study import Budget

PLAIN = {"lr": 1e-3, "betas": [0.9, 0.999]}  # with which no second trial is beaten after its first step


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def small(clips: Path, **tree: dict | list) -> config.Config:
    data = {"selection": {"index": str(clips), "where": {"split": "val"}}, **tree.pop("data", {})}
    fixed = {"objective": {"reversal": 0, **tree.pop("objective", {})}, "optim": {**PLAIN, **tree.pop("optim", {})}}
    given = {"masks": [{"kind": "random", "ratio": 0.75}], "monitor": {"clips": 4}, "data": data, **fixed, **tree}
    return settings(clips, "small", **given)


def search(run: config.Config, name: str, trials: int) -> list[dict]:
    """Search on until there are so many trials; what is in trials.jsonl then."""
    study.tune(run, Path(name), Budget(60, trials=trials), progress=False)
    return found_in(name)


def found_in(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(name, "trials.jsonl").read_text().splitlines()]


def known(found: list[dict]) -> list[tuple]:
    """All of trials but how long they took."""
    return [(one["number"], one["values"], one["ending"], one["curve"], one["verdict"]) for one in found]


def test_the_config_as_it_is_comes_first_and_the_same_command_goes_on(clips, capsys) -> None:
    """A trial is a function of the config, the seed and the trials before it, in however many calls."""
    run = small(clips)
    Path("small.yaml").write_text(config.dump(run))
    assert tune.main(["small.yaml", "--out", "first", "--trials", "2"]) == 0
    assert tune.main(["small.yaml", "--out", "first", "--trials", "3"]) == 0
    said, found = capsys.readouterr().out, found_in("first")
    assert "2 trials so far; 4 clips held out (of data.selection)" in said and "scored without labels" in said
    assert [one["number"] for one in found] == [0, 1, 2] and [one["is_own"] for one in found] == [True, False, False]
    own = {"optim.lr": 1e-3, "objective.vicreg_variance": 0.1, "masks.ratio": 0.75}
    assert own.items() <= found[0]["values"].items() and found[0]["ending"] == "complete"
    assert len({tuple(one["values"].values()) for one in found}) == 3
    assert known(search(run, "second", 3)) == known(found)


def test_what_it_writes_is_a_whole_config_for_a_run_of_its_own(clips) -> None:
    run = small(clips)
    Path("small.yaml").write_text(config.dump(run))
    words = ["small.yaml", "--out", "found", "--trials", "3", "--minutes", "5"]
    assert tune.main(words) == 0
    found, tuned = found_in("found"), config.load("found/config.yaml")
    best = max((one for one in found if one["ending"] == "complete"), key=lambda one: one["score"])
    assert best["score"] >= found[0]["score"] and tuned.optim.lr == best["values"]["optim.lr"]
    assert tuned.optim.total_steps == 6 and tuned.run.dir == f"{run.run.dir}-tuned"
    assert tuned.masks[0].ratio == best["values"]["masks.ratio"]
    head = Path("found/config.yaml").read_text().splitlines()
    assert head[0] == "# python -m vjepa.train found/config.yaml"
    assert head[1] == "# Written by python -m vjepa.tune " + " ".join(words)
    assert f"trial {best['number']}" in head[2] and "3 trials" in head[2]
    assert Path("found/picture.png").read_bytes()[1:4] == b"PNG"


def test_a_trial_that_collapses_is_ended_and_without_another_there_is_no_config(clips, monkeypatch, capsys) -> None:
    def judge(rows: list[dict], total_steps: int) -> Verdict:
        last = max((int(row["step"]) for row in rows if "health/spread" in row), default=0)
        return Verdict("collapsing" if last >= 2 else "healthy", "made up", "lower optim.lr", last)

    monkeypatch.setattr(monitor, "judge", judge)
    Path("small.yaml").write_text(config.dump(small(clips)))
    assert tune.main(["small.yaml", "--out", "found", "--trials", "2"]) == tune.NOTHING_FOUND
    found = found_in("found")
    assert [one["ending"] for one in found] == ["collapsing"] * 2
    assert all(list(one["curve"]) == ["1", "2"] for one in found)
    assert not Path("found/config.yaml").exists() and "no trial came to its end" in capsys.readouterr().err


def test_a_trial_that_others_have_beaten_by_then_is_ended_but_never_the_config_as_it_is(clips, monkeypatch) -> None:
    monkeypatch.setitem(study.SCORES, "without labels", lambda row: -row["lr"])
    found = search(small(clips), "found", 4)
    own, others = found[0], found[1:]
    assert own["ending"] == "complete"
    assert any(one["ending"] == "beaten" for one in others)
    for one in others:
        assert one["ending"] == ("beaten" if len(one["curve"]) < 6 else "complete")
        if one["values"]["optim.lr"] > 1e-3:
            assert one["ending"] == "beaten"


def test_a_loss_that_is_not_finite_ends_a_trial_and_not_the_search(clips) -> None:
    wild = {"lr": 1e30, "warmup_steps": 0, "clip_grad": None}
    found = search(small(clips, optim=wild), "found", 2)
    assert {one["ending"] for one in found} == {"not finite"} and "not finite" in found[0]["verdict"]


def test_with_labels_the_online_probe_scores(clips) -> None:
    val = {"data": {"val": {"index": str(clips), "where": {"split": "selection"}}}}
    path = study.tune(small(clips, **val), Path("found"), Budget(60, trials=1), progress=False)
    curve = found_in("found")[0]["curve"]
    assert path is not None and "Score (k-NN)" in path.read_text()
    assert set(curve.values()) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    path = study.tune(small(clips, **val), Path("free"), Budget(60, trials=1), without_labels=True, progress=False)
    assert path is not None and "Score (without labels)" in path.read_text()


@pytest.mark.parametrize("signals", [1, 2])
def test_what_is_stopped_in_a_trial_begins_it_again(clips, monkeypatch, signals) -> None:
    """The first signal lets the step end, the second does not."""
    run, score = small(clips), study.SCORES["without labels"]
    search(run, "found", 1)

    def stopping(row: dict) -> float:
        if row["step"] <= signals:
            os.kill(os.getpid(), signal.SIGINT)
        return score(row)

    monkeypatch.setitem(study.SCORES, "without labels", stopping)
    with pytest.raises(KeyboardInterrupt):
        search(run, "found", 2)
    monkeypatch.setitem(study.SCORES, "without labels", score)
    stopped, again = search(run, "found", 3)[1:]
    assert stopped["ending"] == "interrupted" and again["ending"] in ("complete", "beaten")
    assert stopped["values"] == again["values"] and again["number"] == 2


def test_without_selection_a_fifth_of_the_clips_is_held_out_by_hash_and_learned_from_by_none(make_index) -> None:
    index = make_index([{"split": "train"} for _ in range(20)], num_frames=8, size=(32, 32))
    run = small(index, data={"selection": None})
    held = HeldOut.of(run)
    assert len(held.rows) == 4 and "a fifth of data.train" in held.said and "data.selection" in held.said
    (source,) = open_sources(run.data)
    left = held.left_of(source).parts[0].rows
    assert sorted([*left, *held.rows]) == list(range(20))
    np.testing.assert_array_equal(held.rows, HeldOut.of(run).rows)
    assert held.read(run).shape == (4, 3, 4, 16, 16)


def test_bad_input_is_one_line_and_nothing_is_written(clips, monkeypatch, capsys) -> None:
    run = small(clips)
    Path("small.yaml").write_text(config.dump(run))

    def fails(run: config.Config = run, name: str = "new", storage: str | None = None, **budget: float) -> str:
        with pytest.raises(UserError) as error:
            study.tune(run, Path(name), Budget(60, **budget), storage, progress=False)
        assert "\n" not in str(error.value) and not Path("new", "trials.jsonl").exists()
        return str(error.value)

    for words in (["--minutes", "0"], ["--steps", "0"]):
        with pytest.raises(SystemExit) as ended:
            tune.main(["small.yaml", *words])
        assert ended.value.code == 2 and f"{words[0]}: 0: not a" in capsys.readouterr().err
    assert "too few to score a trial on" in fails(small(clips, data={"selection": None}))
    same = {"selection": {"index": str(clips), "where": {"split": "train"}}}
    assert "data.train: all of its clips are in data.selection" in fails(small(clips, data=same))
    assert "--storage nonsense: cannot be opened" in fails(storage="nonsense")
    search(run, "made", 1)
    assert "optim.lr was 0.001, now 0.01" in fails(small(clips, optim={"lr": 1e-2}), "made")
    assert "steps was 6, now 3" in fails(name="made", steps=3)
    monkeypatch.setattr(study, "optuna", None)
    assert "optuna is not installed; pip install 'video-jepa[tune]'" in fails()
