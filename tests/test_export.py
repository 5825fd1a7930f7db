from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vjepa import config, export
from vjepa.errors import UserError
from vjepa.interop import huggingface
from vjepa.interop.weights import Weights
from vjepa.models.encoder import VisionTransformer
from vjepa.models.predictor import Predictor

CLIPS = ["--num-frames", "4", "--crop-px", "16"]


def weights(**settings: object) -> Weights:
    torch.manual_seed(0)
    shapes = {"encoder": config.Encoder(width=48, depth=2, heads=4), "predictor": config.Predictor(width=24, depth=2, heads=2)}
    model = config.Model(patch_px=4, **{"rope": "vjepa2", **shapes, **settings})
    return Weights("source", model, VisionTransformer(model).state_dict(), Predictor(model, 1).state_dict())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `load` was asked for; it gives the weights above."""
    calls: list[Any] = []

    def load(path: str, format: str | None = None, **options: Any) -> Weights:
        calls.append((path, format, options))
        return weights()

    monkeypatch.setitem(sys.modules, "vjepa.interop.load", SimpleNamespace(load=load))
    return calls


def test_a_hugging_face_folder(tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "folder"
    assert export.main(["source.pt", "--to", "huggingface", "--out", str(out), "--format", "vjepa2", "--which", "encoder", *CLIPS]) == 0
    assert asked == [("source.pt", "vjepa2", {"which": "encoder"})]
    assert sorted(item.name for item in out.iterdir()) == ["config.json", "model.safetensors"]
    assert [item.name for item in out.parent.iterdir()] == ["folder"]
    printed = capsys.readouterr().out
    assert printed == f"{out}: encoder and predictor as huggingface; features of clips of 4x16x16 differ from those of source.pt by at most 0\n"
    assert huggingface.read(out).predictor.keys() == weights().predictor.keys()


def test_an_onnx_file(tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = tmp_path / "encoder.onnx"
    assert export.main(["run", "--to", "onnx", "--out", str(out), *CLIPS]) == 0
    assert asked == [("run", None, {})]
    assert [item.name for item in tmp_path.iterdir()] == ["encoder.onnx"]
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed.startswith(f"{out}: encoder as onnx; features of clips of 4x16x16 differ from those of run by at most ")
    assert float(printed.rsplit(" ", 1)[1]) < 1e-5


def test_a_safetensors_file(tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    own = pytest.importorskip("vjepa.interop.own")
    out = tmp_path / "new.safetensors"
    assert export.main(["run", "--to", "safetensors", "--out", str(out)]) == 0
    assert "features of clips of 4x16x16 differ from those of run by at most 0\n" in capsys.readouterr().out
    assert own.read(out).model == weights().model


def test_nothing_is_overwritten(tmp_path: Path, asked: list[Any]) -> None:
    out = tmp_path / "there"
    out.write_text("precious")
    with pytest.raises(UserError, match="there: exists; nothing is overwritten"):
        export.main(["run", "--to", "onnx", "--out", str(out), *CLIPS])
    with pytest.raises(UserError, match="exists"):
        export.export(weights(), "onnx", out, export.Clips(4, 16))
    assert out.read_text() == "precious" and not asked  # refused before anything was read


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot express positions"):
        export.export(weights(positions="sincos"), "huggingface", tmp_path / "new", export.Clips(4, 16))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export.export(weights(), "huggingface", tmp_path / "file" / "new", export.Clips(4, 16))


def test_formats_for_one_size_want_to_know_it(tmp_path: Path, asked: list[Any]) -> None:
    for to in ("onnx", "huggingface"):
        with pytest.raises(UserError, match=f"--to {to} needs --num-frames and --crop-px"):
            export.main(["run", "--to", to, "--out", str(tmp_path / "new"), "--crop-px", "16"])


def test_a_predictor_that_changed_on_the_way_is_an_error() -> None:
    source = weights()
    changed = dataclasses.replace(source, predictor={**source.predictor, "predictor_norm.bias": torch.ones(24)})
    with pytest.raises(UserError, match="the predictor that was written is not that of source"):
        export._difference(source, changed, export.Clips(4, 16))
