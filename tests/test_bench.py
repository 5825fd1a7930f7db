from __future__ import annotations

import json

import pytest
import yaml

from data_prep.index import build_index
from vjepa import bench, config
from vjepa.data import decode, plan_training, speed
from vjepa.errors import UserError
from vjepa.training import benchmark

SETTINGS = {
    "run": {"device": "cpu", "precision": "fp32"},
    "data": {
        "train": "missing.parquet",
        "num_frames": 4,
        "clip_fps": 4,
        "crop_px": 16,
        "global_batch": 2,
        "workers": 0,
    },
    "model": {
        "patch_px": 8,
        "encoder": {"width": 24, "depth": 2, "heads": 2},
        "predictor": {"width": 12, "depth": 1, "heads": 2},
    },
    "optim": {"total_steps": 6},
}


@pytest.fixture(autouse=True)
def _small(monkeypatch) -> None:
    monkeypatch.setattr(benchmark, "PEAK_SIZES", {"cpu": (64,)})


def test_figures_agree_with_each_other() -> None:
    report = benchmark.bench(config.validate(SETTINGS, "test"), num_steps=4)
    assert report["train_clips_per_s"] == pytest.approx(2 / (report["step_ms"] / 1000))
    assert report["train_tokens_per_s"] == pytest.approx(8 * report["train_clips_per_s"])
    assert report["utilisation"] == pytest.approx(report["achieved_flops_per_s"] / report["peak_flops_per_s"])
    assert report["model_flops_per_step"] > 0 and report["peak_memory_bytes"] > 2**20
    assert report["loader_clips_per_s"] is None and "not measured" in benchmark.table(report)


def test_the_loader_is_measured_where_there_is_an_index(make_video, tmp_path) -> None:
    for number in range(3):
        make_video(f"clips/{number}.mp4", 8, size=(32, 32))
    build_index(tmp_path / "clips", tmp_path / "clips.parquet", workers=1, progress=False)
    settings = config.validate(
        {**SETTINGS, "data": {**SETTINGS["data"], "train": str(tmp_path / "clips.parquet")}}, "test"
    )
    report = benchmark.bench(settings, num_steps=3)
    assert report["loader_clips_per_s"] > 0 and report["together_clips_per_s"] > 0
    assert "clips/s with 0 workers" in benchmark.table(report)


def test_json_is_one_line_that_comes_last(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(benchmark.PEAK_SIZES, "cpu", (64, 128))  # the peak of large products takes seconds
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(SETTINGS))
    assert bench.main([str(tmp_path / "x.yaml"), "--steps", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"train_clips_per_s", "loader_clips_per_s", "utilisation", "peak_memory_bytes"} <= report.keys()


class Clock:
    """Time that passes only where a test says so."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def costs(self, monkeypatch, place, name, seconds) -> None:
        """Calling `name` takes seconds(*arguments), and does what it did."""
        of = place[name] if isinstance(place, dict) else getattr(place, name)

        def call(*arguments):
            self.now_s += seconds(*arguments)
            return of(*arguments)

        if isinstance(place, dict):
            monkeypatch.setitem(place, name, call)
        else:
            monkeypatch.setattr(place, name, call)


def loader_settings(path, **data):
    return config.validate({**SETTINGS, "data": {**SETTINGS["data"], "train": str(path), **data}}, "test")


@pytest.fixture
def indices(make_video, tmp_path):
    for name in ("long", "copies"):
        for number in range(3):
            make_video(f"{name}/{number}.mp4", 40, size=(32, 32), gop=20)
        build_index(tmp_path / name, tmp_path / f"{name}.parquet", workers=1, progress=False)
    return tmp_path / "long.parquet", tmp_path / "copies.parquet"


def test_loader_figures_are_those_of_the_clock(indices, monkeypatch) -> None:
    clock = Clock()
    monkeypatch.setattr(speed, "perf_counter", clock)
    for reader in ("decord", "pyav_seek"):  # the second reads clips that start at a keyframe
        clock.costs(monkeypatch, decode.READERS, reader, lambda row, *_: 1.0 if "/long/" in row.uri else 0.2)
    clock.costs(monkeypatch, speed, "crop_resize", lambda *_: 0.1)
    clock.costs(monkeypatch, plan_training, "frame_ids", lambda *_: 0.05)
    found = speed.loader_speed(loader_settings(indices[0]).data, 0, 3, str(indices[1]))
    assert found["loader_clips_per_s"] == pytest.approx(1 / 1.15) and found["bare_clips_per_s"] == pytest.approx(1)
    assert found["loader_ratio"] == pytest.approx(1 / 1.15) and found["keyframe_ratio"] == pytest.approx(1)
    assert found["against_ratio"] == pytest.approx(1.15 / 0.35)
    assert [found[name] for name in ("clip_ms", "decode_ms", "crop_ms")] == pytest.approx([1150, 1000, 100])


def test_keyframe_starts_are_measured_against_uniform_ones(indices, monkeypatch) -> None:
    clock = Clock()
    monkeypatch.setattr(speed, "perf_counter", clock)
    # as a decoder does: from the keyframe before the first frame to the last frame
    for reader in ("decord", "pyav_seek"):
        clock.costs(
            monkeypatch, decode.READERS, reader, lambda row, ids, size: float(ids.max() + 1 - ids.min() // 20 * 20)
        )
    settings = loader_settings(indices[0], clip_fps=8)
    uniform = speed.loader_speed(settings.data, 0, 4)
    assert (
        uniform["keyframe_ratio"] > 1.5
        and uniform["against_ratio"] is None
        and uniform["loader_ratio"] == pytest.approx(1)
    )
    keyframe = speed.loader_speed(settings.data.model_copy(update={"start": "keyframe"}), 0, 4)
    assert keyframe["keyframe_ratio"] == uniform["keyframe_ratio"]  # whatever the config has
    assert keyframe["loader_clips_per_s"] == pytest.approx(uniform["keyframe_ratio"] * uniform["loader_clips_per_s"])
    assert (
        speed.loader_speed(settings.data.model_copy(update={"clip_fps": None}), 0, 1)["keyframe_ratio"] is None
    )  # the whole video has no start


def test_bare_decoding_reads_what_the_loader_reads(indices, monkeypatch) -> None:
    reads = []
    right = decode.READERS["decord"]

    def remember(row, ids, size):
        reads.append((row.uri, ids.tolist(), size))
        return right(row, ids, size)

    monkeypatch.setitem(decode.READERS, "decord", remember)
    speed.loader_speed(loader_settings(indices[0], clip_fps=None, global_batch=3).data, 0, 1)
    loader, bare, loader_again, bare_again = (reads[k * 3 : k * 3 + 3] for k in range(4))
    assert len(reads) == 12 and loader == bare == loader_again == bare_again


def test_loader_json_and_table(indices, capsys, tmp_path) -> None:
    import yaml

    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, "data": {**SETTINGS["data"], "train": str(indices[0])}}))
    command = [str(path), "--loader", "--steps", "2", "--against", str(indices[1])]
    assert bench.main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(
        report[name] > 0
        for name in ("loader_clips_per_s", "bare_clips_per_s", "loader_ratio", "keyframe_ratio", "against_ratio")
    )
    assert bench.main(command) == 0
    table = capsys.readouterr().out
    assert "of the decoder alone" in table and "copies.parquet gives" in table and "data.start=keyframe" in table
    with pytest.raises(UserError, match="--loader"):
        bench.main([str(path), "--against", str(indices[1])])
