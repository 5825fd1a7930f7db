"""Pictures of a probe's answers: which classes are taken for which, and the clips that it is most confidently wrong
about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vjepa.probing.scores import Mistake, Scores, Share
from vjepa.records import ClipBatch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

_MAX_CLASSES_WITH_COUNTS: Final = 20
_MAX_LABELS: Final = 50
_MAX_LABEL_CHARS: Final = 28
_COLUMNS: Final = 5
_INK: Final = "#222222"


def confusion_picture(path: Path, scores: Scores, what: str = "") -> None:
    """The share of each true class (row) that was taken for each class (column), as colour; with the counts where they
    fit.

    A row without clips is grey. Of many classes every n-th is named. `what` was measured is said in the title.
    """
    num = len(scores.names)
    clips = scores.confusion.sum(1, keepdims=True)
    shares = np.divide(scores.confusion, clips, out=np.full(scores.confusion.shape, np.nan), where=clips > 0)
    shown = list(range(0, num, -(-num // _MAX_LABELS)))
    labels = [_short(scores.names[i], _MAX_LABEL_CHARS) for i in shown]
    side_in = min(10.0, max(2.6, 0.42 * num if num <= _MAX_CLASSES_WITH_COUNTS else 5.0 + 0.1 * len(shown)))
    margin_in = 0.075 * max(map(len, labels)) + 0.6
    figure = _figure(side_in + margin_in + 1.0, side_in + margin_in + 0.7)
    axes = figure.subplots()
    axes.set_facecolor("#dddddd")
    image = axes.imshow(shares, cmap="Blues", norm=_colours(), interpolation="nearest")
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


def worst_picture(path: Path, worst: Sequence[Mistake], frames: Mapping[int, np.ndarray], what: str = "") -> None:
    """A frame of each clip, uint8 [S, S, 3] by clip id, over its true class and the answer, each with its probability.

    A clip without a frame is left out. `what` was measured is said in the title.
    """
    shown = [mistake for mistake in worst if mistake.clip_id in frames]
    rows = max(1, -(-len(shown) // _COLUMNS))
    figure = _figure(1.95 * _COLUMNS, 2.5 * rows + 0.6)
    cells = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes in cells:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, mistake in zip(cells, shown, strict=False):
        axes.imshow(frames[mistake.clip_id], interpolation="nearest")
        axes.set_title(f"clip {mistake.clip_id}", fontsize=8, color="#777777", pad=2)
        answers = {"true": (mistake.truth, mistake.probability), "said": (mistake.predicted, mistake.confidence)}
        lines = [f"{word}: {_short(name, 18)} ({probability:.2f})" for word, (name, probability) in answers.items()]
        axes.set_xlabel("\n".join(lines), fontsize=7.5, color=_INK)
    said = "Most confident mistakes" if shown else "No mistakes to show"
    figure.suptitle(f"{said}\n{what}".strip(), fontsize=9)
    figure.savefig(path, facecolor="white")


def middle_frames(batches: Iterable[ClipBatch]) -> dict[int, np.ndarray]:
    """Clip id -> uint8 [S, S, 3]: the middle frame of the middle view of every clip of `batches`."""
    frames = {}
    for batch in batches:
        ids = batch.clip_ids.numpy()
        for clip_id in np.unique(ids):
            views = np.flatnonzero(ids == clip_id)
            video = batch.video[views[len(views) // 2]]
            frames[int(clip_id)] = video[:, video.shape[1] // 2].permute(1, 2, 0).numpy().copy()
    return frames


def _write_counts(axes: Axes, confusion: np.ndarray, shares: np.ndarray) -> None:
    for (true, predicted), count in np.ndenumerate(confusion):
        if count:
            colour = "white" if shares[true, predicted] > 0.45 else _INK
            axes.text(predicted, true, str(count), ha="center", va="center", fontsize=7, color=colour)


def _colours() -> Normalize:
    """Colours follow the square root of a share: one of a few percent must still be seen."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, 0, 1)


def _told(share: Share) -> str:
    return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"


def _short(name: str, num_chars: int) -> str:
    return name if len(name) <= num_chars else f"{name[: num_chars - 1]}…"


def _figure(width_in: float, height_in: float) -> Figure:
    """A figure of its own: no window, no state shared with the caller's plots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
