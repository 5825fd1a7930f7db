"""The closing table and the pictures, from made-up results."""

import json

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from vjepa import report
from vjepa.errors import UserError
from vjepa.records import TokenGrid
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
def test_the_command_prints_the_table_again(tmp_path, capsys):
    with pytest.raises(UserError, match="no such file"):
        report.main([str(tmp_path)])
    (tmp_path / "summary.json").write_text(json.dumps({"steps": 3}))
    with pytest.raises(UserError, match="no closing report"):
        report.main([str(tmp_path)])
    (tmp_path / "summary.json").write_text(json.dumps({"effective_rank": 3.0, "label": {"knn": {}}, "steps": 3}))
    with pytest.raises(UserError, match=r"summary.json: written by an older version; .* python -m vjepa.train"):
        report.main([str(tmp_path)])
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    assert report.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == tables.closing_table(summary()) + "\n"


@pytest.mark.fast
def test_upscaled_cells_cover_their_pixels():
    cells = np.arange(12).reshape(2, 2, 3)
    assert (pictures._upscale(cells, (6, 12)) == np.kron(cells, np.ones((1, 3, 4)))).all()


def draw(folder, num_frames=16, clips=3):
    grid = TokenGrid(max(1, num_frames // 2), 4, 6)
    videos = torch.randint(0, 256, (clips, 3, num_frames, 64, 96), dtype=torch.uint8)
    rows = [{"step": step, "loss": 1 / step, "prediction": 0.9 / step, "lr": 1.0} for step in range(1, 50)]
    pictures.save_run_pictures(
        folder,
        rows,
        ["loss", "prediction"],
        videos,
        grid,
        torch.arange(0, grid.num_tokens, 3),
        torch.randn(clips, grid.num_tokens, 24),
    )


@pytest.mark.parametrize("num_frames", [1, 16])
def test_pictures_are_written(tmp_path, num_frames):
    draw(tmp_path / "pictures", num_frames, clips=2)
    for name in ("loss_curve", "mask", "features_pca"):
        height, width = imread(tmp_path / "pictures" / f"{name}.png").shape[:2]
        assert 100 < height < 2000
        assert 100 < width < 2000


def test_hidden_cells_are_grey_and_seen_ones_are_not_touched(monkeypatch, tmp_path):
    shown = {}
    monkeypatch.setattr(pictures, "_grid_picture", lambda path, title, rows, step: shown.update(rows))
    video = torch.full((3, 4, 8, 8), 250, dtype=torch.uint8)
    pictures.mask_picture(tmp_path / "mask.png", video, TokenGrid(2, 2, 2), torch.tensor([0, 4]))
    assert (shown["context"][:, :4, :4] == 250).all()
    assert (shown["context"][:, 4:] < 150).all()
