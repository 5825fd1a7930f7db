"""Pictures of a run: its loss, a clip with its mask, its features. Pictures of a probe: which classes are taken for
which, numbers against those that were true, or precision by class; and the clips that it is most wrong about.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, Final

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from PIL import Image

from vjepa.data.plan_rows import Views
from vjepa.probing.banks import SampleSource
from vjepa.probing.bootstrap import Share
from vjepa.probing.scores import Mistake, Scores
from vjepa.probing.scores_multilabel import MultilabelScores
from vjepa.probing.scores_numbers import Miss, NumberScores
from vjepa.records import ClipBatch
from vjepa.reporting.shown import Shown

_MAX_SLOTS: Final = 8
_MAX_CLASSES_WITH_COUNTS: Final = 20
_MAX_LABELS: Final = 50
_MAX_LABEL_CHARS: Final = 28
_COLUMNS: Final = 5
_INK: Final = "#222222"
_COLOURS: Final = {"clips": "what tells clips apart", "parts": "what tells parts apart"}
_FEATURES_TITLE: Final = (
    "Features along three principal axes as red, green, blue, fitted without labels:\nwithin a column one colour means "
    "one thing"
)


def save_run_pictures(folder: Path, rows: Sequence[Mapping[str, Any]], terms: Sequence[str], shown: Shown) -> None:
    """Write loss_curve.png, mask.png and features_pca.png into `folder`.

    rows: those of metrics.jsonl. terms: names of the loss and its terms. shown: what was kept of a few clips.
    """
    folder.mkdir(parents=True, exist_ok=True)
    loss_curve(folder / "loss_curve.png", rows, terms)
    mask_picture(folder / "mask.png", *_slot_frames(shown, 0), shown.bits("context/0/0"))
    features_picture(folder / "features_pca.png", shown)


def loss_curve(path: Path, rows: Sequence[Mapping[str, Any]], terms: Sequence[str]) -> None:
    """Draw loss terms over steps, from the rows of metrics.jsonl: {"step": int, "loss": float, ...}.

    Of the sources of a mix, `loss` alone.
    """
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    sources = sorted({row.get("source", 0) for row in rows})
    for source, term in [*((0, term) for term in terms), *((source, "loss") for source in sources if source)]:
        of_source = [row for row in rows if row.get("source", 0) == source]
        points = [(row["step"], row[term]) for row in of_source if row.get(term) is not None]
        if points:
            name = f"{term} of data.mix.{source - 1}" if source else term
            axes.plot(*zip(*points, strict=True), label=name, linewidth=2 if term == "loss" else 1)
    axes.set(title="Loss over training", xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path)


def mask_picture(path: Path, names: Sequence[str], frames: np.ndarray, seen: np.ndarray) -> None:
    """Draw frames of one clip, uint8 [t, H, W, 3], above the same frames with every hidden token grey.

    names: of the frames. seen: bool [t, h, w], the tokens that are.
    """
    t, h, w = seen.shape
    hidden = ~_upscale(seen, frames.shape[1:3])
    masked = np.where(hidden[..., None], 0.15 * frames + 0.85 * 128, frames).astype(np.uint8)
    title = f"The context encoder sees {seen.mean():.0%} of {t}x{h}x{w} tokens"
    _grid_picture(path, title, names, [("frames", frames), ("context", masked)])


def features_picture(path: Path, shown: Shown) -> None:
    """Draw a frame of each clip beside the colours of its features at that time, trained and untrained.

    Red, green and blue are three principal axes, fitted over many clips, or all parts of the shown ones, of each
    encoder, so that within a column one colour means one thing.
    """
    clips, slot = shown.facts["clips"], shown.facts["grid"][0] // 2
    figure = new_figure(1.62 * 5, 1.72 * len(clips) + 0.7)
    figure.suptitle(_FEATURES_TITLE, fontsize=10)
    grid = figure.subplots(len(clips), 5, squeeze=False)
    columns = [(name, kind) for name in _COLOURS for kind in ("trained", "untrained")]
    for place, (clip, line) in enumerate(zip(clips, grid, strict=True)):
        names, frames = _slot_frames(shown, place)
        images = [frames[slot], *(shown.arrays[f"{name}/{kind}/{place}"][slot] for name, kind in columns)]
        titles = [names[slot], *(f"{_COLOURS[name]}\n{kind}" for name, kind in columns)]
        for axes, image, title in zip(line, images, titles, strict=True):
            axes.imshow(image, interpolation="nearest")
            _bare(axes)
            axes.set_title("" if place else title, fontsize=9)
        words = shown.facts["words"].get(str(clip["clip_id"]), "")
        line[0].set_xlabel(_short(words.partition(": ")[2] or words, 60), fontsize=8, loc="left")
    figure.savefig(path)


def _slot_frames(shown: Shown, place: int) -> tuple[list[str], np.ndarray]:
    """Take the first frame that is shown of every time slot: their names, and uint8 [t, H, W, 3]."""
    width, _ = shown.facts["clips"][place]["size"]
    with io.BytesIO(shown.content(f"clip/{place}")) as content:
        strip = np.asarray(Image.open(content).convert("RGB"))
    slots, numbers = shown.facts["slots"], shown.facts["frames"]
    nearest = [min(range(len(slots)), key=lambda i: (abs(slots[i] - t), i)) for t in range(shown.facts["grid"][0])]
    frames = np.stack([strip[:, width * i : width * (i + 1)] for i in nearest])
    return [f"frame {numbers[i]}" for i in nearest], frames


def as_colours(video: torch.Tensor) -> np.ndarray:
    """Show [C, T, H, W] as uint8 [T, H, W, 3]: colours as they are; of other channels the first three, else the first.

    Those of 16 bits, or that are no colours, are stretched from the least value of the clip to the largest.
    """
    frames: np.ndarray = video.cpu().numpy().transpose(1, 2, 3, 0)
    if frames.dtype == np.uint8 and frames.shape[-1] == 3:
        return frames
    shown = frames[..., :3] if frames.shape[-1] >= 3 else frames[..., :1].repeat(3, axis=-1)
    low, high = shown.min(axis=(0, 1, 2)).astype(np.float32), shown.max(axis=(0, 1, 2)).astype(np.float32)
    stretched: np.ndarray = (shown - low) * (255 / np.maximum(high - low, 1))
    return stretched.round().astype(np.uint8)


def _upscale(cells: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Enlarge by nearest neighbour: [t, h, w, ...] -> [t, H, W, ...], H and W = `size`."""
    rows, columns = (np.arange(side) * num // side for side, num in zip(size, cells.shape[1:3], strict=True))
    return cells[:, rows][:, :, columns]


def _grid_picture(path: Path, title: str, names: Sequence[str], rows: Sequence[tuple[str, np.ndarray]]) -> None:
    """Draw named rows of images [t, H, W, 3], of slots `names`; of many, _MAX_SLOTS spread evenly are shown."""
    slots = len(rows[0][1])
    shown = np.unique(np.linspace(0, slots - 1, min(slots, _MAX_SLOTS)).round().astype(int))
    side_in = 1.3 if len(shown) > 3 else 1.9
    height, width = rows[0][1].shape[1:3]
    width_in = max(side_in * min(4, max(1.0, width / height)) * len(shown) + 0.6, 3.6)
    figure = new_figure(width_in, side_in * min(4, max(1.0, height / width)) * len(rows) + 0.8)
    figure.suptitle(fill(title, int(11 * width_in)), fontsize=11)
    axes = figure.subplots(len(rows), len(shown), squeeze=False)
    for (name, images), line in zip(rows, axes, strict=True):
        line[0].set_ylabel(name)
        for slot, cell in zip(shown, line, strict=True):
            cell.imshow(images[slot], interpolation="nearest")
            _bare(cell)
    for slot, cell in zip(shown, axes[0], strict=True):
        cell.set_title(names[slot], fontsize=9)
    figure.savefig(path)


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def save_probe_pictures(
    stem: Path, scores: Scores | NumberScores | MultilabelScores, source: SampleSource, batch: int
) -> list[str]:
    """Write STEM_confusion.png, STEM_numbers.png or STEM_classes.png; where there are mistakes, STEM_worst.png.

    source: gives the clips, `batch` at a time. Returns the paths.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    kind = {Scores: "confusion", NumberScores: "numbers", MultilabelScores: "classes"}[type(scores)]
    answers, worst = (stem.with_name(f"{stem.name}_{name}.png") for name in (kind, "worst"))
    if isinstance(scores, Scores):
        confusion_picture(answers, scores, stem.name)
    elif isinstance(scores, NumberScores):
        numbers_picture(answers, scores, stem.name)
    else:
        classes_picture(answers, scores, stem.name)
    if not scores.worst:
        worst.unlink(missing_ok=True)
        return [str(answers)]
    ids = np.array(sorted(mistake.clip_id for mistake in scores.worst))
    worst_picture(worst, scores.worst, middle_frames(source.loader(ids, Views(), batch)), stem.name)
    return [str(answers), str(worst)]


def numbers_picture(path: Path, scores: NumberScores, what: str = "") -> None:
    """Draw the answer to each clip over its true number; on the line it is right. `what` is said in the title."""
    figure = new_figure(4.4, 4.4)
    axes = figure.subplots()
    ends = [float(f(np.concatenate([scores.truth, scores.predicted]))) for f in (np.min, np.max)]
    axes.plot(ends, ends, color="#999999", linewidth=1)
    axes.scatter(scores.truth, scores.predicted, s=9, alpha=0.6, color="#2b6cb0", linewidths=0)
    axes.set(xlabel="true", ylabel="predicted")
    r2 = _told(scores.r2) if scores.r2 else "-"
    figure.suptitle(f"{what}\nR2 {r2}, {scores.num_clips} clips".strip(), fontsize=9)
    figure.savefig(path, facecolor="white")


def classes_picture(path: Path, scores: MultilabelScores, what: str = "") -> None:
    """Draw the average precision of the classes, the best and the worst of many. `what` is said in the title."""
    known = [one for one in scores.per_class if one.ap is not None]
    ordered = sorted(known, key=lambda one: one.ap or 0.0)
    half = _MAX_LABELS // 2
    shown = ordered if len(ordered) <= _MAX_LABELS else [*ordered[:half], *ordered[-half:]]
    figure = new_figure(6.0, 1.2 + 0.2 * len(shown))
    axes = figure.subplots()
    axes.barh(range(len(shown)), [one.ap or 0.0 for one in shown], color="#2b6cb0")
    labels = [f"{_short(one.name, _MAX_LABEL_CHARS)} ({one.num})" for one in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=7)
    axes.set(xlim=(0, 1), xlabel="average precision (clips with the class)")
    figure.suptitle(f"{what}\nmAP {_told(scores.map)}, {scores.num_clips} clips".strip(), fontsize=9)
    figure.savefig(path, facecolor="white")


def confusion_picture(path: Path, scores: Scores, what: str = "") -> None:
    """Draw the share of each true class (row) that was taken for each class (column), with counts where they fit.

    A row without clips is grey. Of many classes every n-th is named. `what` was measured is said in the title.
    """
    num = len(scores.names)
    clips = scores.confusion.sum(1, keepdims=True)
    shares = np.divide(scores.confusion, clips, out=np.full(scores.confusion.shape, np.nan), where=clips > 0)
    shown = list(range(0, num, -(-num // _MAX_LABELS)))
    labels = [_short(scores.names[i], _MAX_LABEL_CHARS) for i in shown]
    side_in = min(10.0, max(2.6, 0.42 * num if num <= _MAX_CLASSES_WITH_COUNTS else 5.0 + 0.1 * len(shown)))
    margin_in = 0.075 * max(map(len, labels)) + 0.6
    figure = new_figure(side_in + margin_in + 1.0, side_in + margin_in + 0.7)
    axes = figure.subplots()
    axes.set_facecolor("#dddddd")
    # the square root of a share: one of a few percent must still be seen
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    font_size = 8 if len(shown) <= 30 else 6
    axes.set_xticks(shown, labels, rotation=90, fontsize=font_size)
    axes.set_yticks(shown, labels, fontsize=font_size)
    axes.set(xlabel="predicted", ylabel="true")
    if num <= _MAX_CLASSES_WITH_COUNTS:
        _write_counts(axes, scores.confusion, shares)
    figure.colorbar(
        image, ax=axes, shrink=0.6, ticks=[0, 0.05, 0.25, 0.5, 0.75, 1], label="share of the true class"
    ).ax.tick_params(labelsize=8)
    told = f"accuracy {_told(scores.top1)}, mean class {_told(scores.mean_class)}, {scores.num_clips} clips"
    figure.suptitle(f"{what}\n{told}".strip(), fontsize=9)
    figure.savefig(path, facecolor="white")


def worst_picture(
    path: Path, worst: Sequence[Mistake | Miss], frames: Mapping[int, np.ndarray], what: str = ""
) -> None:
    """Draw a frame of each clip over what is true and the answer, of classes each with its probability.

    frames: uint8 [H, W, 3] by clip id. A clip without a frame is left out. `what` was measured is said in the title.
    """
    shown = [mistake for mistake in worst if mistake.clip_id in frames]
    rows = max(1, -(-len(shown) // _COLUMNS))
    figure = new_figure(1.95 * _COLUMNS, 2.5 * rows + 0.6)
    cells = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes in cells:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, mistake in zip(cells, shown, strict=False):
        axes.imshow(frames[mistake.clip_id], interpolation="nearest")
        axes.set_title(f"clip {mistake.clip_id}", fontsize=8, color="#777777", pad=2)
        lines = [
            f"{word}: {_short(name, 18)}" + ("" if probability is None else f" ({probability:.2f})")
            for word, name, probability in mistake.words
        ]
        axes.set_xlabel("\n".join(lines), fontsize=7.5, color=_INK)
    said = "Most confident mistakes" if shown else "No mistakes to show"
    said = "Largest errors" if any(isinstance(one, Miss) for one in shown) else said
    figure.suptitle(f"{said}\n{what}".strip(), fontsize=9)
    figure.savefig(path, facecolor="white")


def middle_frames(batches: Iterable[ClipBatch]) -> dict[int, np.ndarray]:
    """Take the middle frame of the middle view of every clip of `batches`: clip id -> uint8 [H, W, 3]."""
    frames = {}
    for batch in batches:
        ids = batch.clip_ids.numpy()
        for clip_id in np.unique(ids):
            views = np.flatnonzero(ids == clip_id)
            video = batch.video[views[len(views) // 2]]
            middle = video.shape[1] // 2
            frames[int(clip_id)] = as_colours(video[:, middle : middle + 1])[0].copy()
    return frames


def _write_counts(axes: Axes, confusion: np.ndarray, shares: np.ndarray) -> None:
    for (true, predicted), count in np.ndenumerate(confusion):
        if count:
            colour = "white" if shares[true, predicted] > 0.45 else _INK
            axes.text(predicted, true, str(count), ha="center", va="center", fontsize=7, color=colour)


def _told(share: Share) -> str:
    return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"


def _short(name: str, num_chars: int) -> str:
    return name if len(name) <= num_chars else f"{name[: num_chars - 1]}…"


def new_figure(width_in: float, height_in: float) -> Figure:
    """Make a figure of its own: no window, no state shared with the caller's plots."""
    figure = Figure(figsize=(width_in, height_in), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
