"""Encoders as ONNX files, checked against onnxruntime."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vjepa.errors import UserError
from vjepa.interop.classifiers import EncoderWithHead
from vjepa.models.encoder import Encoder

TOLERANCE = 1e-4
ONE_FILE_BYTES = 1_800_000_000  # an ONNX file ends at 2 GiB; larger weights go to a file beside it


class _WholeVideo(nn.Module):
    """Run a network on all tokens of a video, with one input."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, video: Tensor) -> Tensor:
        return self.network(video)  # type: ignore[no-any-return]


def export(network: Encoder | EncoderWithHead, example_size: tuple[int, int, int], path: Path) -> float:
    """Write `path`: input `video` [B, C, T, H, W], for any B and one size (T, H, W).

    The output of an encoder is `features` [B, N, D], that of a classifier `logits` [B, C].
    Return the largest difference from onnxruntime's output of random clips. Raises UserError where it is above 1e-4,
    where torch cannot write the network, and where the extra `onnx` is not installed. Weights of more than 1.8 GB are
    in `path`.data beside it.
    """
    onnxruntime = _onnxruntime()
    encoder, output = (network, "features") if isinstance(network, Encoder) else (network.encoder, "logits")
    whole = _WholeVideo(network).eval()
    video = torch.randn(3, encoder.model.channels, *example_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = whole(video)  # this also makes the tables of positions, which the export then takes as constants
    num_bytes = sum(tensor.nbytes for tensor in network.state_dict().values())
    try:
        with torch.no_grad():
            torch.onnx.export(
                whole,
                (video[:2],),
                path,
                input_names=["video"],
                output_names=[output],
                dynamic_shapes={"video": {0: torch.export.Dim("batch")}},
                external_data=num_bytes > ONE_FILE_BYTES,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        what = str(error).partition("\n")[0]
        raise UserError(
            f"{path}: torch cannot write backbone: {encoder.model.backbone} as ONNX ({what}); export it with "
            "--to safetensors"
        ) from None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (answer,) = session.run([output], {"video": video.numpy()})
    difference = float((torch.from_numpy(answer) - wanted).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(wanted.abs().max())):  # logits may be large, features are not
        raise UserError(
            f"{path}: onnxruntime's {output} differ by {difference:.2g} from torch's, more than "
            f"{TOLERANCE:g}; the file is not to be used"
        )
    return difference


def _onnxruntime() -> Any:
    """Import what checks the file. Raises UserError where the extra `onnx` is not installed."""
    missing = [name for name in ("onnxruntime", "onnxscript") if find_spec(name) is None]  # torch writes by the latter
    if missing:
        raise UserError(f"ONNX needs {' and '.join(missing)}: pip install 'video-jepa[onnx]'")
    import onnxruntime  # an optional library, of this function alone

    return onnxruntime
