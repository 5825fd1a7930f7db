"""Answer videos by a classifier: the most probable classes of each, as lines, as JSON and as a picture."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import numpy as np

from vjepa import command, config, device, files
from vjepa.data.plan_rows import Views
from vjepa.errors import UserError
from vjepa.interop.classifiers import VideoClassifier
from vjepa.predicting.model import read_model
from vjepa.predicting.videos import Videos, find_videos
from vjepa.probing.classifying import Answered, Network, answer
from vjepa.probing.datasets import ClipSource
from vjepa.reporting.answers import Strip, draw_answers
from vjepa.reporting.pictures import as_colours

DRAWN: Final = 16  # clips of a picture, at most


@dataclass(frozen=True)
class Question:
    """Say what is asked: of which model, about which videos; where answers go; how clips are looked at.

    out, picture: files that must not exist; None: no JSON; a picture beside `out`, else answers.png, or the next name
    that is free.
    """

    model: Path
    videos: list[str]
    top: int = 5
    out: Path | None = None
    picture: Path | None = None
    num_clips: int = 1
    num_crops: int = 1
    batch: int = 16
    workers: int | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"


def predict(question: Question, progress: bool = True) -> dict[str, Any]:
    """Answer every video that can be read. Raises UserError.

    Returns what --out holds: `model`, `answers`, `unreadable` and `picture`.
    """
    for path in (question.out, question.picture):
        if path is not None and path.exists():
            raise UserError(f"{path}: exists; nothing is overwritten, name another file")
    classifier = read_model(question.model)
    with TemporaryDirectory() as folder:
        videos = find_videos(question.videos, Path(folder), progress)
        found, strips = _answer(question, classifier, videos, progress)
        failures = {videos.index.uri(clip_id): reason for clip_id, reason in found.failures}
        report: dict[str, Any] = {
            "model": str(question.model),
            "answers": [_told(found, place, classifier, videos, question.top) for place in range(len(found.clip_ids))],
            "unreadable": [{"uri": _short(uri), "reason": why} for uri, why in (videos.unreadable | failures).items()],
        }
    picture = question.picture or _free(question.out.with_suffix(".png") if question.out else Path("answers.png"))
    drawn = zip(strips, report["answers"], strict=False)
    draw_answers(picture, [Strip(strip, one["uri"] if one["top"] else _line(one), one["top"]) for strip, one in drawn])
    report["picture"] = str(picture)
    if question.out is not None:
        files.write_json(question.out, report)
    return report


def _answer(
    question: Question, classifier: VideoClassifier, videos: Videos, progress: bool
) -> tuple[Answered, list[np.ndarray]]:
    """Run the network over all clips, then read the first of them again to be drawn: uint8 [T, H, W, 3] each."""
    where, dtype = device.pick(config.Run(device=question.device, precision=question.precision))
    network = classifier.build().to(where)
    changes = {} if question.workers is None else {"workers": question.workers}
    source = ClipSource(videos.index, classifier.data.model_copy(update=changes))
    channels = classifier.data.channels
    runs = Network(network.encoder, network.head, where, dtype, classifier.blocks, channels)
    bar = partial(command.progress_bar, shown=progress, desc="videos", leave=False)
    found = answer(runs, source, videos.rows, Views(question.num_clips, question.num_crops), question.batch, bar)
    return found, list(_frames(source, found.clip_ids[:DRAWN], question.batch))


def _frames(source: ClipSource, clip_ids: np.ndarray, batch: int) -> Iterable[np.ndarray]:
    for clips in source.loader(clip_ids, Views(), batch):
        yield from map(as_colours, clips.video)


def _told(found: Answered, place: int, classifier: VideoClassifier, videos: Videos, top: int) -> dict[str, Any]:
    """Say of one clip where it is, and its number, or its most probable classes, the first first."""
    shares, row = found.values[place], videos.index.row(int(found.clip_ids[place]))
    about = {"uri": _short(row.uri), "start_s": row.start_s, "end_s": row.end_s}
    if classifier.head.task == "regress":
        return {**about, "number": float(shares[0]), "top": []}
    order = np.argsort(-shares, kind="stable")[:top]
    answers = [{"class": classifier.classes[i], "probability": float(shares[i])} for i in order]
    return {**about, "top": answers}


def _short(uri: str) -> str:
    """Write a path inside the working directory from there; others as they are."""
    inside = Path(uri).is_relative_to(Path.cwd()) if "://" not in uri else False
    return os.path.relpath(uri) if inside else uri


def _free(path: Path) -> Path:
    """Give `path`, or the first of PATH-2, PATH-3, ... that is free."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in range(2, 1 << 20))
    return path if not path.exists() else next(other for other in numbered if not other.exists())


def lines(report: dict[str, Any]) -> list[str]:
    """Write a line for each answer, then what could not be read and why, then where the picture is."""
    unread = [f"unreadable: {one['uri']}: {one['reason']}" for one in report["unreadable"]]
    return [*map(_line, report["answers"]), *unread, f"-> {report['picture']}"]


def _line(one: dict[str, Any]) -> str:
    classes = [f"{answer['class']} {answer['probability']:.3f}" for answer in one["top"]]
    return f"{one['uri']}: " + ", ".join(classes or [f"{one['number']:.4g}"])
