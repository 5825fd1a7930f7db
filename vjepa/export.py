"""Weights of any known format, written as another one and checked.

python -m vjepa.export SOURCE --to safetensors|huggingface|onnx --out PATH
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vjepa import command

FORMATS: Final = ("huggingface", "onnx", "safetensors")


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
    parser.add_argument("--to", required=True, choices=FORMATS, help="what to write; ONNX holds the encoder alone")
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
    parser.add_argument("--predictor-heads", type=int, metavar="N", help="attention heads of the predictor")
    parser.add_argument(
        "--position-grid",
        type=int,
        nargs=3,
        metavar=("T", "H", "W"),
        help="time slots, rows, columns of a training file's sin-cos table",
    )
    parser.add_argument("--num-frames", type=int, metavar="T", help="frames of a clip; onnx and huggingface need it")
    parser.add_argument(
        "--crop-px",
        type=command.numbers(command.number(int, least=1)),
        metavar="S|H,W",
        help="side of a clip in pixels, or height and width; onnx and huggingface need it",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    from vjepa.interop import export, meta  # after --help, which must not wait for torch

    position_grid = tuple(given.position_grid) if given.position_grid else None
    hints = meta.Hints(given.encoder, given.heads, given.predictor_heads, position_grid)
    out = Path(given.out)
    print(export.export_file(given.source, given.to, out, given.format, hints, given.num_frames, given.crop_px))
    return 0


if __name__ == "__main__":
    command.run(main)
