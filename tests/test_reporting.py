"""The closing table and the pictures, from made-up results."""

import json

import numpy as np
import pytest
from made_runs import looked_at, made_run, rows
from matplotlib.image import imread

from vjepa import report
from vjepa.errors import UserError
from vjepa.reporting import pictures, tables


def summary(collapse=(), **changes):
    share = {"value": 0.583, "low": 0.534, "high": 0.63}
    kinds = ("random_init", "pixels", "motion_energy", "shuffled_frames")
    entry = {
        "accuracy": 0.583,
        "low": 0.534,
        "high": 0.63,
        "baselines": {kind: {"top1": share} for kind in kinds},
        "chance": {"accuracy": 0.25, "low": 0.21, "high": 0.3},
        "num_clips": {"train": 1200, "selection": 200, "val": 400},
    }
    return {
        "steps": 600,
        "final_loss": 0.5,
        "measured": {"encoder": "target_encoder", "step": 440},
        "probes": {label: {"knn": entry, "linear": entry} for label in ("label", "steps")},
        "collapse": {"effective_rank": 41.2, "feature_std": 0.71, "num_features": 192, **dict(collapse)},
        "untrained": {"effective_rank": 52.0, "feature_std": 0.4, "num_features": 192},
        "num_unreadable": 0,
        **changes,
    }


@pytest.mark.fast
def test_the_table_names_everything_within_100_columns():
    table = tables.closing_table(summary())
    assert max(map(len, table.splitlines())) <= 100
    assert table.count(".583 [.53, .63]") == 2 * 2 * 5
    assert table.count("chance") == 2
    assert "effective rank 41.2 of 192" in table
    assert "no collapse" in table
    assert "measured: target_encoder, step 440" in table and "final loss 0.500000 after 600 steps" in table
    assert "could not be read" not in table


@pytest.mark.fast
@pytest.mark.parametrize(
    ("changes", "has_collapsed"),
    [
        ({"effective_rank": 1.4, "feature_std": 0.02}, True),
        ({"effective_rank": 0.0}, True),
        ({"effective_rank": 26.0, "feature_std": 0.04}, False),  # a game that is learned, of which 0.05 said otherwise
        ({"effective_rank": 5.0}, False),  # never a rank alone
    ],
)
def test_a_collapse_is_told_beside_the_untrained_encoder(changes, has_collapsed):
    table = tables.closing_table(summary(changes))
    assert ("COLLAPSED" in table) == has_collapsed and ("no collapse" in table) != has_collapsed
    assert "(untrained 52.0)" in table
    alone = tables.closing_table(summary(changes, untrained=None))
    assert "COLLAPSED" not in alone and "no collapse" not in alone


@pytest.mark.fast
def test_the_verdict_of_the_monitor_is_told_with_its_advice():
    verdict = {"state": "no_skill", "rule": "skill 0.01", "advice": "lower optim.lr " * 8, "step": 150}
    table = tables.closing_table(summary(verdict=verdict, ended_early=True))
    assert "verdict, which ended it early: step 150: no skill: skill 0.01; lower optim.lr" in table
    assert max(map(len, table.splitlines())) <= 100


@pytest.mark.fast
def test_left_out_clips_are_told():
    assert "3 clips could not be read" in tables.closing_table(summary(num_unreadable=3))


@pytest.mark.fast
def test_shares_are_short():
    assert [tables._short(value, 2) for value in (0, 0.5, 1)] == [".00", ".50", "1.00"]


@pytest.mark.fast
def test_the_command_prints_the_table_again_and_writes_a_page(tmp_path, capsys):
    with pytest.raises(UserError, match="not a run folder"):
        report.main([str(tmp_path)])
    run = made_run(tmp_path / "run")
    assert report.main([str(run.path)]) == 0
    told = capsys.readouterr().out
    assert told == f"{tables.closing_table(json.loads(run.summary.read_text()))}\n-> {run.page}\n"
    assert run.page.read_text().startswith("<!doctype html>")
    run.summary.write_text(json.dumps({"effective_rank": 3.0, "label": {"knn": {}}, "steps": 3}))
    with pytest.raises(UserError, match=r"summary.json: written by an older version; .* python -m vjepa.train"):
        report.main([str(run.path)])


@pytest.mark.fast
def test_what_is_no_page_is_not_replaced(tmp_path):
    run, other = made_run(tmp_path / "run"), tmp_path / "notes.txt"
    other.write_text("mine")
    for out in (other, tmp_path, tmp_path / "none" / "page.html"):
        with pytest.raises(UserError, match="--out"):
            report.main([str(run.path), "--out", str(out)])
    assert other.read_text() == "mine"
    with pytest.raises(UserError, match="--live: shows one run"):
        report.main(["--live", str(run.path), str(run.path)])


@pytest.mark.fast
def test_upscaled_cells_cover_their_pixels():
    cells = np.arange(12).reshape(2, 2, 3)
    assert (pictures._upscale(cells, (6, 12)) == np.kron(cells, np.ones((1, 3, 4)))).all()


def test_pictures_are_written(tmp_path):
    terms = ["loss", "prediction", "context"]
    pictures.save_run_pictures(tmp_path / "pictures", rows(50), terms, looked_at("a.mp4: kind b"))
    for name in ("loss_curve", "mask", "features_pca"):
        height, width = imread(tmp_path / "pictures" / f"{name}.png").shape[:2]
        assert 100 < height < 2000
        assert 100 < width < 2000


def test_hidden_cells_are_grey_and_seen_ones_are_not_touched(monkeypatch, tmp_path):
    shown = {}
    monkeypatch.setattr(pictures, "_grid_picture", lambda path, title, names, rows: shown.update(rows))
    seen = np.zeros((2, 2, 2), dtype=bool)
    seen[:, 0, 0] = True
    pictures.mask_picture(tmp_path / "mask.png", ["a", "b"], np.full((2, 8, 8, 3), 250, np.uint8), seen)
    assert (shown["context"][:, :4, :4] == 250).all()
    assert (shown["context"][:, 4:] < 150).all()
