"""Clips of another shape than their films: what lies at the sides of a wide film is seen, or is not, as `fit` says."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import settings

from data_prep.scanning.build import build_index
from vjepa import export, extract, load_encoder, probe
from vjepa.errors import UserError
from vjepa.training.pretraining import train

HEIGHT, WIDTH = 32, 64  # twice as wide as high: the middle square ends 16 px before either side


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Index 96 films of noise with a bright bar at the far left or the far right, which is their label."""
    root, rng = tmp_path_factory.mktemp("films"), np.random.default_rng(0)
    (root / "films").mkdir()
    lines = ["file,label,split"]
    for number in range(96):
        side = ("left", "right")[number % 2]
        with av.open(str(root / "films" / f"{number:02}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=4, options={"preset": "ultrafast", "crf": "10"})
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for _ in range(8):
                picture = np.repeat(rng.integers(60, 120, (HEIGHT, WIDTH, 1), dtype=np.uint8), 3, axis=2)
                picture[:, : 10 if side == "left" else WIDTH][:, -10:] = 220
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        lines.append(f"{number:02}.mp4,{side},{'train' if number < 32 else 'val'}")
    (root / "labels.csv").write_text("\n".join(lines))
    build_index(root / "films", root / "films.parquet", labels=root / "labels.csv", workers=1, progress=False)
    return root / "films.parquet"


@pytest.fixture(scope="module")
def run(films: Path) -> Path:
    """Train on the films in their own shape."""
    wide = settings(films, "wide", data={"crop_px": [16, 32], "val": {"index": str(films), "where": {"split": "val"}}})
    summary = train(wide, progress=False)
    assert summary and summary["probes"]["label"]["knn"]["num_clips"]["val"] == 64
    return Path(str(wide.run.dir))


def accuracy(run: Path, films: Path, *words: str) -> float:
    out = run / "found.json"
    given = ["--model_path", str(run), "--dataset", str(films), "--eval_mode", "linear_probe", "--out", str(out)]
    assert probe.main([*given, "--no-cache", "--baselines", "none", "--pool", "all", *words]) == 0
    return float(json.loads(out.read_text())[-1]["accuracy"])


def test_a_label_at_the_sides_is_read_from_whole_frames_alone(run: Path, films: Path) -> None:
    found = {fit: accuracy(run, films, "--crop_px", "16", "--fit", fit) for fit in ("crop", "squash", "pad")}
    assert found["squash"] >= 0.9 and found["pad"] >= 0.9 and found["crop"] <= 0.75, found
    assert accuracy(run, films) >= 0.9  # in the shape that the run was trained on, which is that of the films
    result = json.loads((run / "found.json").read_text())[-1]
    assert result["data"]["crop_px"] == [16, 32] and result["data"]["fit"] == "crop"


def test_pictures_features_and_exports_have_the_shape_of_the_clips(run: Path, films: Path, tmp_path: Path) -> None:
    assert {path.name for path in (run / "pictures").iterdir()} >= {"mask.png", "features_pca.png"}
    out = tmp_path / "features.safetensors"
    assert extract.main(["--model_path", str(run), "--dataset", str(films), "--out", str(out), "--pool", "all"]) == 0
    encoder = load_encoder(run)
    assert load_file(out)["features"].shape == (96, encoder.grid(4, 16, 32).num_tokens, encoder.width)

    size = ["--num-frames", "4", "--crop-px", "16,32"]
    assert export.main([str(run), "--to", "onnx", "--out", str(tmp_path / "wide.onnx"), *size]) == 0


def test_whole_frames_have_one_view(run: Path, films: Path) -> None:
    with pytest.raises(UserError, match=r"--num_crops 2: with fit: pad every view shows the whole frame"):
        accuracy(run, films, "--fit", "pad", "--num_crops", "2")


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_training_on_whole_frames_shows_them_and_resumes(films: Path, fit: str) -> None:
    whole = settings(films, f"whole_{fit}", data={"fit": fit, "flip": True}, monitor={"every_steps": 3})
    assert train(whole, stop_at_step=3, progress=False) is None
    again = settings(films, f"again_{fit}", data={"fit": fit, "flip": True}, monitor={"every_steps": 3})
    stopped, through = train(whole, progress=False), train(again, progress=False)
    assert stopped and through and stopped["final_loss"] == through["final_loss"]
    encoder = load_encoder(Path(str(whole.run.dir)))
    assert encoder.grid(4, 16, 16).cells == 4 and torch.isfinite(torch.tensor(through["final_loss"]))
