from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
import torch
import yaml
from made_runs import made_run

from vjepa import config
from vjepa import export as command
from vjepa.errors import UserError
from vjepa.interop import export, huggingface, own
from vjepa.interop.card import model_card
from vjepa.interop.weights import Weights
from vjepa.models.encoder import VisionTransformer
from vjepa.models.predictor import Predictor

HEADS = ["--heads", "4", "--predictor-heads", "2"]
CLIPS = ["--num-frames", "4", "--crop-px", "16"]


def weights(**settings: object) -> Weights:
    torch.manual_seed(0)
    shapes = {
        "encoder": config.EncoderSettings(width=48, depth=2, heads=4),
        "predictor": config.PredictorSettings(width=24, depth=2, heads=2),
    }
    model = config.Model(patch_px=4, **{"rope": "vjepa2", **shapes, **settings})
    return Weights("source", model, VisionTransformer(model).state_dict(), Predictor(model, 1).state_dict())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The weights above, as our own file."""
    path = tmp_path / "source" / "weights.safetensors"
    own.write(weights(), path)
    return path


def run(source: Path, to: str, out: Path, *options: str) -> None:
    assert command.main([str(source), "--to", to, "--out", str(out), *options]) == 0


def test_from_format_to_format(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours -> Hugging Face -> ours: every tensor as it was, nothing else left behind."""
    folder, back = tmp_path / "out" / "folder", tmp_path / "out" / "back.safetensors"
    run(source, "huggingface", folder, *CLIPS)
    run(folder, "safetensors", back, "--format", "huggingface")
    assert sorted(item.name for item in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "video_preprocessor_config.json",
    ]
    assert sorted(item.name for item in folder.parent.iterdir()) == [
        "back.safetensors",
        "back.safetensors.md",
        "folder",
    ]
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}: encoder and predictor as huggingface; features of clips of 4x16x16 differ from those of "
        f"{source} by at most 0; its card is {folder / 'README.md'}",
        f"{back}: encoder and predictor as safetensors; features of clips of 4x16x16 differ from those of "
        f"{folder} by at most 0; its card is {back}.md",
    ]
    before, after = own.read(source), own.read(back)
    for network in ("encoder", "predictor"):
        stored, again = getattr(before, network), getattr(after, network)
        assert stored.keys() == again.keys() and all(torch.equal(stored[key], again[key]) for key in stored)


def test_an_onnx_file(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = tmp_path / "out" / "encoder.onnx"
    run(source, "onnx", out, *CLIPS)
    assert sorted(item.name for item in out.parent.iterdir()) == ["encoder.onnx", "encoder.onnx.md"]
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed.startswith(
        f"{out}: encoder as onnx; features of clips of 4x16x16 differ from those of {source} by at most "
    )
    assert float(printed.partition(" by at most ")[2].partition(";")[0]) < 1e-5


def test_a_training_file_of_vjepa2_becomes_what_transformers_loads(tmp_path: Path) -> None:
    """Either encoder; heads that no published size has are given."""
    transformers = pytest.importorskip("transformers")
    made, trained = weights(), {key: tensor + 1 for key, tensor in weights().encoder.items()}
    wrapped = {"encoder": trained, "target_encoder": made.encoder, "predictor": made.predictor}
    path = tmp_path / "latest.pt"
    torch.save(
        {name: {f"module.backbone.{key}": tensor for key, tensor in state.items()} for name, state in wrapped.items()},
        path,
    )
    run(path, "huggingface", tmp_path / "average", "--format", "vjepa2", *HEADS, *CLIPS)
    run(path, "huggingface", tmp_path / "trained", "--format", "vjepa2", "--encoder", "encoder", *HEADS, *CLIPS)
    network = transformers.VJEPA2Model.from_pretrained(tmp_path / "average").eval()
    video = torch.randn(2, 3, 4, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            made.build_encoder()(video), network(video.transpose(1, 2)).last_hidden_state, atol=1e-5, rtol=0
        )
    assert torch.equal(huggingface.read(tmp_path / "trained").encoder["norm.bias"], trained["norm.bias"])


def test_the_command_knows_every_format_that_can_be_written() -> None:
    assert set(command.FORMATS) == set(export.WRITERS)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "there"
    out.write_text("precious")
    with pytest.raises(UserError, match="there: exists; nothing is overwritten"):
        run(tmp_path / "absent", "onnx", out, *CLIPS)  # refused before anything is read
    with pytest.raises(UserError, match="exists"):
        export.export(weights(), "onnx", out, export.ClipSize(4, 16, 16))
    assert out.read_text() == "precious"


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot express positions"):
        export.export(weights(positions="sincos"), "huggingface", tmp_path / "new", export.ClipSize(4, 16, 16))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export.export(weights(), "huggingface", tmp_path / "file" / "new", export.ClipSize(4, 16, 16))


def test_formats_for_one_size_want_to_know_it(tmp_path: Path, source: Path) -> None:
    for to in ("onnx", "huggingface"):
        with pytest.raises(UserError, match=f"--to {to} needs --num-frames and --crop-px"):
            run(source, to, tmp_path / "new", "--crop-px", "16")


def test_a_predictor_that_changed_on_the_way_is_an_error() -> None:
    source = weights()
    changed = dataclasses.replace(source, predictor={**source.predictor, "predictor_norm.bias": torch.ones(24)})
    with pytest.raises(UserError, match="the predictor that was written is not that of source"):
        export._difference(source, changed, export.ClipSize(4, 16, 16))


def test_a_card_goes_with_every_export(tmp_path: Path, source: Path) -> None:
    """Of a file of no run it says what is not known; of a run what its files say, and no word of it is Markdown."""
    run(source, "safetensors", tmp_path / "new.safetensors")
    card = (tmp_path / "new.safetensors.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["pipeline_tag"] == "feature-extraction" and "Not known: " in card and "differs from its source" in card
    with pytest.raises(UserError, match="exists"):
        run(source, "safetensors", tmp_path / "new.safetensors")
    words = "a|b <script>\n# c"
    folder = made_run(tmp_path / "run", words=words)
    folder.checkpoints.mkdir()
    (tmp_path / "x.parquet").write_bytes(b"an index")
    folder.config.write_text(f"data: {{train: {{index: {tmp_path / 'x.parquet'}}}}}\noptim: {{total_steps: 100}}\n")
    card = model_card(folder.path, tmp_path / "x", "huggingface", "8x64x64", "An encoder.", 1e-7)
    assert hashlib.sha256(b"an index").hexdigest() in card and "0.900 [0.850, 0.950]" in card
    table = card.partition("## Measured")[2]
    assert "<script>" not in table and "a\\|b &lt;script&gt; # c, knn, accuracy" in table
    assert "optim:" in card and "could not be read and were replaced" in card
