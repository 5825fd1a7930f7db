from __future__ import annotations

import json
import subprocess
import sys

import pytest

from data_prep.index import build_index
from vjepa import bench, config

SETTINGS = {
    "run": {"device": "cpu", "precision": "fp32"},
    "data": {"train": "missing.parquet", "num_frames": 4, "clip_fps": 4, "crop_px": 16, "global_batch": 2, "workers": 0},
    "model": {"patch_px": 8, "encoder": {"width": 24, "depth": 2, "heads": 2}, "predictor": {"width": 12, "depth": 1, "heads": 2}},
    "optim": {"total_steps": 6},
}


@pytest.fixture(autouse=True)
def _small(monkeypatch) -> None:
    monkeypatch.setattr(bench, "PEAK_SIZES", (64,))


def test_figures_agree_with_each_other() -> None:
    report = bench.bench(config.validate(SETTINGS, "test"), num_steps=4)
    assert report["train_clips_per_s"] == pytest.approx(2 / (report["step_ms"] / 1000))
    assert report["train_tokens_per_s"] == pytest.approx(8 * report["train_clips_per_s"])
    assert report["utilisation"] == pytest.approx(report["achieved_flops_per_s"] / report["peak_flops_per_s"])
    assert report["model_flops_per_step"] > 0 and report["peak_memory_bytes"] > 2**20
    assert report["loader_clips_per_s"] is None and "not measured" in bench.table(report)


def test_the_loader_is_measured_where_there_is_an_index(make_video, tmp_path) -> None:
    for number in range(3):
        make_video(f"clips/{number}.mp4", 8, size=(32, 32))
    build_index(tmp_path / "clips", tmp_path / "clips.parquet", workers=1, progress=False)
    settings = config.validate({**SETTINGS, "data": {**SETTINGS["data"], "train": str(tmp_path / "clips.parquet")}}, "test")
    report = bench.bench(settings, num_steps=3)
    assert report["loader_clips_per_s"] > 0 and report["together_clips_per_s"] > 0
    assert "clips/s with 0 workers" in bench.table(report)


def test_json_is_one_line_that_comes_last(tmp_path) -> None:
    import yaml

    (tmp_path / "x.yaml").write_text(yaml.safe_dump(SETTINGS))
    command = [sys.executable, "-m", "vjepa.bench", str(tmp_path / "x.yaml"), "--steps", "1", "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    report = json.loads(answer.stdout.splitlines()[-1])
    assert {"train_clips_per_s", "loader_clips_per_s", "utilisation", "peak_memory_bytes"} <= report.keys()
