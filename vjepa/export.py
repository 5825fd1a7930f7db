"""Weights of any known format, written as another one and checked.

python -m vjepa.export SOURCE --to safetensors|huggingface|onnx --out PATH
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from vjepa import command
from vjepa.errors import UserError

if TYPE_CHECKING:
    from vjepa.interop.weights import Weights


@dataclass(frozen=True)
class ClipSize:
    """Clips that the exported networks are for: their frames, and the side of their square pictures in pixels."""

    num_frames: int
    crop_px: int

    @property
    def size(self) -> tuple[int, int, int]:
        """T, H, W"""
        return self.num_frames, self.crop_px, self.crop_px


def export(weights: Weights, to: str, out: Path, clip: ClipSize) -> float:
    """Write `out` in the format `to`; returns the largest difference between features of the source and of what was
    written, on one random clip.

    Nothing appears at `out` before it is complete and checked. Raises UserError where `out` exists, or where the format
    cannot express the networks.
    """
    refuse_existing(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as workshop:
            difference = WRITERS[to](weights, Path(workshop, out.name), clip)
            made = sorted(Path(workshop).iterdir())  # an ONNX file may have its weights beside it
            for item in made:
                refuse_existing(out.with_name(item.name))
            for item in made:
                item.rename(out.with_name(item.name))
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    return difference


def _safetensors(weights: Weights, path: Path, clip: ClipSize) -> float:
    from vjepa.interop import own

    own.write(weights, path)
    return _difference(weights, own.read(path), clip)


def _huggingface(weights: Weights, path: Path, clip: ClipSize) -> float:
    from vjepa.interop import huggingface

    huggingface.write(weights, path, clip.crop_px, clip.num_frames)
    return _difference(weights, huggingface.read(path), clip)


def _onnx(weights: Weights, path: Path, clip: ClipSize) -> float:
    from vjepa.interop import onnx

    return onnx.export(weights.build_encoder(), clip.size, path)


WRITERS: dict[str, Callable[[Weights, Path, ClipSize], float]] = {
    "safetensors": _safetensors,
    "huggingface": _huggingface,
    "onnx": _onnx,
}


def _difference(source: Weights, written: Weights, clip: ClipSize) -> float:
    """The largest difference of the encoders' features of one random clip; the predictors have to be equal."""
    import torch

    if source.predictor.keys() != written.predictor.keys() or not all(
        torch.equal(source.predictor[key].float(), written.predictor[key]) for key in source.predictor
    ):
        raise UserError(
            f"{written.origin}: the predictor that was written is not that of {source.origin}; this is a "
            "defect, please report it"
        )
    video = torch.randn(1, 3, *clip.size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return float((source.build_encoder()(video) - written.build_encoder()(video)).abs().max())


def refuse_existing(path: Path) -> None:
    """Raises UserError where something is at `path`."""
    if path.exists() or path.is_symlink():
        raise UserError(f"{path}: exists; nothing is overwritten, name another --out")


def _clip_size(arguments: argparse.Namespace, weights: Weights) -> ClipSize:
    """Those of the command line; a safetensors file is for any size and is checked on a small one."""
    if arguments.num_frames and arguments.crop_px:
        return ClipSize(arguments.num_frames, arguments.crop_px)
    if arguments.to != "safetensors":
        raise UserError(
            f"--to {arguments.to} needs --num-frames and --crop-px: what it writes is for clips of one size"
        )
    return ClipSize(2 * weights.model.tubelet_frames, 4 * weights.model.patch_px)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vjepa.export",
        description="Write weights of any known format as another one, and check the result.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="run folder, safetensors file, V-JEPA or I-JEPA training file, or Hugging Face folder",
    )
    parser.add_argument(
        "--to", required=True, choices=sorted(WRITERS), help="what to write; ONNX holds the encoder alone"
    )
    parser.add_argument(
        "--out", required=True, metavar="PATH", help="file, or folder for huggingface; it must not exist"
    )
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        help="of SOURCE: vjepa, vjepa1, vjepa2, vjepa2.1, ijepa or huggingface (default: recognised)",
    )
    parser.add_argument("--encoder", choices=command.ENCODERS, help=command.ENCODER_HELP)
    parser.add_argument(
        "--heads",
        type=int,
        metavar="N",
        help="attention heads of the encoder, for a training file of no published size",
    )
    parser.add_argument("--predictor-heads", type=int, metavar="N", help="likewise of the predictor")
    parser.add_argument(
        "--position-grid",
        type=int,
        nargs=3,
        metavar=("T", "H", "W"),
        help="time slots, rows, columns of a training file's sin-cos table",
    )
    parser.add_argument("--num-frames", type=int, metavar="T", help="frames of a clip; onnx and huggingface need it")
    parser.add_argument(
        "--crop-px", type=int, metavar="S", help="side of a clip in pixels; onnx and huggingface need it"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    out = Path(given.out)
    refuse_existing(out)  # before minutes of reading
    from vjepa.interop import load, meta

    position_grid = tuple(given.position_grid) if given.position_grid else None
    weights = load.read(
        given.source, given.format, meta.Hints(given.encoder, given.heads, given.predictor_heads, position_grid)
    )
    clip = _clip_size(given, weights)
    difference = export(weights, given.to, out, clip)
    what = "encoder and predictor" if weights.predictor and given.to != "onnx" else "encoder"
    print(
        f"{out}: {what} as {given.to}; features of clips of {'x'.join(map(str, clip.size))} differ from "
        f"those of {given.source} by at most {difference:.2g}"
    )
    return 0


if __name__ == "__main__":
    command.run(main)
