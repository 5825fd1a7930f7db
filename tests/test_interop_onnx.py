from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from vjepa import config
from vjepa.errors import UserError
from vjepa.interop import onnx as interop_onnx
from vjepa.models.backbone import make_encoder
from vjepa.models.encoder import VisionTransformer


def encoder(**settings: object) -> VisionTransformer:
    torch.manual_seed(0)
    depth = 4 if "level_norms" in settings else 2
    network = VisionTransformer(
        config.Model(patch_px=4, encoder=config.EncoderSettings(width=48, depth=depth, heads=4), **settings)
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (4, 8, 12)),
        ({"rope": "vjepa2", "input": "changes"}, (5, 16, 9)),
        ({"positions": "sincos", "sincos_grid": (2, 2, 2)}, (1, 8, 8)),
        ({"positions": "sincos", "sincos_grid": (2, 2, 2), "image_mode": "repeat", "image_repeats": 4}, (1, 8, 12)),
        ({"image_mode": "own", "modality_embedding": True, "level_norms": True, "rope_grid": 4}, (4, 8, 12)),
    ],
)
def test_onnxruntime_agrees_for_every_batch(
    tmp_path: Path, settings: dict[str, object], size: tuple[int, int, int]
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network, path = encoder(**settings), tmp_path / "encoder.onnx"
    assert interop_onnx.export(network, size, path) < 1e-5
    assert [item.name for item in tmp_path.iterdir()] == ["encoder.onnx"]
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        video = torch.randn(batch, 3, *size)
        (features,) = session.run(["features"], {"video": video.numpy()})
        torch.testing.assert_close(torch.from_numpy(features), network(video), atol=1e-4, rtol=0)
    again = encoder(**settings)  # the tables of positions that networks share are still real ones
    torch.testing.assert_close(again(video), network(video))


def test_a_network_of_timm_agrees_too(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = make_encoder(config.Model(backbone="test_vit")).requires_grad_(False).eval()
    assert (
        interop_onnx.export(network, (2, 32, 16), tmp_path / "encoder.onnx") < 1e-5
    )  # of a batch of another size than the one that was exported


def test_what_torch_cannot_write_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    def fail(*_: object, **__: object) -> None:
        raise torch.onnx.OnnxExporterError("no such operator\nand much more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(
        UserError,
        match=r"encoder.onnx: torch cannot write backbone: vit as ONNX \(no such operator\); export it with --to "
        r"safetensors$",
    ):
        interop_onnx.export(encoder(), (2, 8, 8), tmp_path / "encoder.onnx")


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX ends at 2 GiB; the pair may move to another folder."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(interop_onnx, "ONE_FILE_BYTES", 0)
    network = encoder()
    interop_onnx.export(network, (2, 8, 8), tmp_path / "encoder.onnx")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["encoder.onnx", "encoder.onnx.data"]
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("encoder.onnx", "encoder.onnx.data"):
        (tmp_path / name).rename(moved / name)
    video = torch.randn(2, 3, 2, 8, 8)
    (features,) = runtime.InferenceSession(moved / "encoder.onnx", providers=["CPUExecutionProvider"]).run(
        None, {"video": video.numpy()}
    )
    torch.testing.assert_close(torch.from_numpy(features), network(video), atol=1e-4, rtol=0)


def test_a_file_that_differs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(interop_onnx, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match=r"encoder\.onnx: onnxruntime's features differ by .* is not to be used"):
        interop_onnx.export(encoder(), (2, 8, 8), tmp_path / "encoder.onnx")


@pytest.mark.fast
def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'video-jepa\[onnx\]'"):
        interop_onnx.export(encoder(), (2, 8, 8), tmp_path / "encoder.onnx")
