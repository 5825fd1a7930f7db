"""Answer videos by a classifier: the most probable classes of each.

python -m vjepa.predict runs/demo_motion videos/a.mp4 videos/b.mp4 --top 3 --out answers.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vjepa import command

SOME_UNREADABLE: Final = 1  # exit code: the other videos are answered


def _parser() -> argparse.ArgumentParser:
    whole = command.number(int, least=1)
    parser = argparse.ArgumentParser(
        prog="python -m vjepa.predict",
        description="Print the most probable classes of videos and images, and draw them. Exit code 1: some could not "
        "be read, and are named.",
    )
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        type=Path,
        help="run of vjepa.finetune; head of vjepa.probe, or its run where there is one; or a Hugging Face folder of "
        "VJEPA2ForVideoClassification",
    )
    add("videos", nargs="+", metavar="VIDEO", help="videos, images, folders, patterns; or one clip index")
    add("--top", type=whole, default=5, metavar="N", help="classes that are told (default: 5)")
    add("--out", type=Path, metavar="answers.json", help="the same as JSON; it must not exist")
    add(
        "--picture",
        type=Path,
        metavar="FILE.png",
        help="default: beside --out, else answers.png, or the next free name",
    )
    add(
        "--num_clips",
        "--num-clips",
        type=whole,
        default=1,
        metavar="N",
        help="clips of a video that are averaged (default: 1)",
    )
    add("--num_crops", "--num-crops", type=whole, default=1, metavar="N", help="crops of each (default: 1)")
    add("--batch", type=whole, default=16, metavar="N", help="views per forward pass (default: 16)")
    add(
        "--workers",
        type=command.number(int, least=0),
        metavar="N",
        help="processes that decode (default: as in training)",
    )
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: auto")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="default: auto")
    return parser


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    from vjepa.predicting import answering  # imports torch, which --help must not wait for

    report = answering.predict(answering.Question(**vars(given)))
    print("\n".join(answering.lines(report)))
    return SOME_UNREADABLE if report["unreadable"] else 0


if __name__ == "__main__":
    command.run(main)
