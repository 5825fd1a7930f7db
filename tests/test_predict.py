"""`vjepa.predict`, and classifiers as files: the same answers from a run, a probe head and a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from small_runs import settings
from test_training_finetuning import tuned

from vjepa import config, export, predict, probe
from vjepa.data.clip_index import ClipIndex
from vjepa.errors import UserError
from vjepa.interop import classifiers
from vjepa.interop.probes import load_probe
from vjepa.jepa import build
from vjepa.predicting.model import read_model
from vjepa.training import checkpoint, finetuning
from vjepa.training.optim import make_optimizer

HEAD = ["finetune.head=attentive", "finetune.head_heads=2", "test.probes=[]"]


@pytest.fixture
def start(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of pre-training with the positions of published weights, at its first step."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shape = {"width": 24, "depth": 2, "heads": 2}
    run = settings(clips, "start", model={"patch_px": 8, "rope": "vjepa2", "encoder": shape, "predictor": shape})
    method = build(run)
    run.run.folder.path.mkdir()
    run.run.folder.config.write_text(config.dump(run))
    checkpoint.save(run.run.folder, method, make_optimizer(method, run.optim), checkpoint.TrainingState(1), keep=1)
    return Path(run.run.dir or "")


def answers(model: Path, *videos: object, out: Path, code: int = 0) -> dict:
    words = [
        str(model),
        *map(str, videos),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--workers",
        "0",
    ]
    assert predict.main(words) == code
    report: dict = json.loads(out.read_text())
    return report


def test_a_fine_tuned_run_answers_videos_and_names_those_it_cannot_read(
    start: Path, clips: Path, tmp_path: Path, capsys
) -> None:
    run = tuned(start, clips, "tuned", "test.probes=[]")
    summary = finetuning.finetune(run, progress=False)
    (tmp_path / "clips" / "broken.mp4").write_bytes(b"no video")
    first = answers(Path(run.run.dir or ""), tmp_path / "clips", tmp_path / "none.mp4", out=tmp_path / "a.json", code=1)
    assert len(first["answers"]) == 12
    assert {Path(one["uri"]).name for one in first["unreadable"]} == {"broken.mp4", "none.mp4"}
    assert all(one["reason"] for one in first["unreadable"])
    for one in first["answers"]:
        shares = [top["probability"] for top in one["top"]]
        assert [top["class"] for top in one["top"]] and shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert Path(first["picture"]) == tmp_path / "a.png" and (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    told = capsys.readouterr().out
    assert "unreadable: " in told and f"-> {tmp_path / 'a.png'}" in told
    # of an index, the answers are those that the closing table counted
    index = ClipIndex.open(clips)
    by_index = answers(Path(run.run.dir or ""), clips, out=tmp_path / "b.json")
    top = {Path(one["uri"]).name: one["top"][0]["class"] for one in by_index["answers"]}
    val = index.select({"split": "val"})
    right = np.mean([top[Path(index.uri(i)).name] == index.column("label")[i] for i in val])
    assert summary is not None and right == summary["kinds"]["fine-tuned"]["top1"]["value"]
    with pytest.raises(UserError, match="exists; nothing is overwritten"):
        predict.main([str(run.run.dir), str(clips), "--out", str(tmp_path / "b.json")])


def test_the_head_of_a_probe_answers_as_the_probe_did(start: Path, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no head"):
        predict.main([str(start), str(clips)])
    words = ["--model_path", str(start), "--dataset", str(clips), "--eval_mode", "linear_probe", "--workers", "0"]
    probe.main([*words, "--baselines", "none", "--device", "cpu", "--precision", "fp32"])
    (entry,) = json.loads((start / "probe.json").read_text())
    found = answers(start, clips, out=tmp_path / "a.json")
    index = ClipIndex.open(clips)
    top = {Path(one["uri"]).name: one["top"][0]["class"] for one in found["answers"]}
    val = index.select({"split": "val"})
    assert np.mean([top[Path(index.uri(i)).name] == index.column("label")[i] for i in val]) == entry["accuracy"]


def test_transformers_answers_as_the_fine_tuned_run(start: Path, clips: Path, tmp_path: Path) -> None:
    run = tuned(start, clips, "tuned", *HEAD)
    finetuning.finetune(run, progress=False)
    folder = tmp_path / "hf"
    assert export.main([str(run.run.dir), "--to", "huggingface", "--out", str(folder)]) == 0
    theirs, report = transformers.VJEPA2ForVideoClassification.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert theirs.config.id2label == {0: "marked", 1: "plain"} and theirs.config.label2id == {"marked": 0, "plain": 1}
    ours, video = classifiers.find(Path(run.run.dir or "")), torch.randn(2, 3, 4, 16, 16)
    assert ours is not None
    with torch.no_grad():
        logits = theirs.eval()(pixel_values_videos=video.transpose(1, 2)).logits
        np.testing.assert_allclose(logits, ours.build()(video), rtol=3e-5, atol=1e-4)
    again = read_model(folder)
    assert again.classes == ("marked", "plain") and (again.data.num_frames, again.data.crop_px) == (4, 16)
    with torch.no_grad():
        np.testing.assert_allclose(again.build()(video), ours.build()(video), rtol=3e-5, atol=1e-4)


def test_other_formats_hold_the_head_too_or_say_what_cannot_be(
    start: Path, clips: Path, tmp_path: Path, capsys
) -> None:
    run = tuned(start, clips, "tuned", "test.probes=[]")
    finetuning.finetune(run, progress=False)
    onnxruntime = pytest.importorskip("onnxruntime")
    export.main([str(run.run.dir), "--to", "onnx", "--out", str(tmp_path / "c.onnx")])
    assert "classifier of 2 classes as onnx; logits of clips of 4x16x16" in capsys.readouterr().out
    ours, video = classifiers.find(Path(run.run.dir or "")), torch.randn(3, 3, 4, 16, 16)
    assert ours is not None
    (logits,) = onnxruntime.InferenceSession(tmp_path / "c.onnx").run(["logits"], {"video": video.numpy()})
    np.testing.assert_allclose(logits, ours.build()(video).detach(), rtol=3e-5, atol=1e-4)
    export.main([str(run.run.dir), "--to", "safetensors", "--out", str(tmp_path / "c.safetensors")])
    assert load_probe(tmp_path / "c_head.safetensors").classes == ("marked", "plain")
    with pytest.raises(UserError, match=r"has an attentive head, this one reads means; .*finetune.head=attentive"):
        export.main([str(run.run.dir), "--to", "huggingface", "--out", str(tmp_path / "hf")])
    assert not (tmp_path / "hf").exists()
