"""The tuner, on runs of a few steps: what it tries, how it goes on, what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

from small_runs import settings

from vjepa import config, tune


def written(clips: Path, **tree: dict | list) -> Path:
    """Write the config of a small run whose name is `small`."""
    data = {"selection": {"index": str(clips), "where": {"split": "val"}}, **tree.pop("data", {})}
    given = {"masks": [{"kind": "random", "ratio": 0.75}], "monitor": {"clips": 4}, "data": data, **tree}
    path = clips.parent / "small.yaml"
    path.write_text(config.dump(settings(clips, "small", **given)))
    return path


def trials(clips: Path) -> list[dict]:
    return [json.loads(line) for line in (clips.parent / "small-tune/trials.jsonl").read_text().splitlines()]


def test_the_config_as_it_is_comes_first_and_the_same_command_goes_on(clips, monkeypatch, capsys) -> None:
    monkeypatch.chdir(clips.parent)
    words = [str(written(clips)), "--steps", "8", "--out", "small-tune"]
    assert tune.main([*words, "--trials", "2"]) == 0
    assert tune.main([*words, "--trials", "3"]) == 0
    found, said = trials(clips), capsys.readouterr().out
    assert [one["number"] for one in found] == [0, 1, 2] and [one["is_own"] for one in found] == [True, False, False]
    own = {"optim.lr": 1e-3, "objective.vicreg_variance": 0.1, "masks.ratio": 0.75}
    assert own.items() <= found[0]["values"].items() and found[0]["ending"] == "complete"
    assert len({tuple(one["values"].values()) for one in found}) == 3
    assert "a fifth of data.train" not in said and "2 trials so far" in said
    tuned = config.load("small-tune/config.yaml")
    best = max((one for one in found if one["ending"] == "complete"), key=lambda one: one["score"])
    assert best["score"] >= found[0]["score"] and tuned.optim.lr == best["values"]["optim.lr"]
    assert tuned.optim.total_steps == 6 and tuned.run.dir == str(clips.parent / "small-tuned")
    head = Path("small-tune/config.yaml").read_text().splitlines()
    assert head[0] == "# python -m vjepa.train small-tune/config.yaml" and "python -m vjepa.tune" in head[1]
    assert Path("small-tune/picture.png").stat().st_size > 10_000
