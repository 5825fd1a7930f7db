"""The closing table of a run, its pictures, and the command that prints the table again.

python -m vjepa.report RUN
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from vjepa import command
from vjepa.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vjepa.records import TokenGrid

NAMES = {
    "trained": "trained",
    "shuffled_frames": "trained, shuffled frames",
    "random_init": "random init",
    "pixels": "pixels",
    "motion_energy": "motion energy",
    "chance": "chance",
}
TERMS = ("loss", "prediction", "variance", "covariance")
MAX_COLUMNS = 8


def closing_table(summary: Mapping[str, Any]) -> str:
    """Plain text, at most 100 columns: every label, probe and kind of features, then whether the features collapsed.

    summary: what `probing.evidence.evaluate_run` gave; other keys are left alone. Accuracies stand with their 95 %
    interval.
    """
    lines: list[str] = []
    for label, report in summary.items():
        if isinstance(report, dict) and "knn" in report:
            lines += [*_label_table(label, report), ""]
    if summary.get("num_unreadable"):
        lines.append(
            f"{summary['num_unreadable']} clips could not be read and are left out; summary.json names them "
            "under `unreadable`"
        )
    if summary.get("num_replaced"):
        lines.append(
            f"{summary['num_replaced']} training clips could not be read and were replaced; summary.json "
            "names the files under `replaced`"
        )
    if "effective_rank" in summary:
        lines.append(_verdict(summary["effective_rank"], summary["feature_std"], summary["num_features"]))
    if "final_loss" in summary:
        lines.append(f"final loss {summary['final_loss']:.6f} after {summary['steps']} steps")
    return "\n".join(lines)


def _label_table(label: str, report: Mapping[str, Any]) -> list[str]:
    clips = report["num_clips"]
    lines = [
        f"{label}: accuracy on {clips['val']} clips [95 % interval]; {clips['train']} to learn from, "
        f"{clips['selection']} to choose k and C"[:100],
        f"  {'':26}{'k-NN':22}linear",
    ]
    for kind, name in NAMES.items():
        if kind in report["knn"]:
            lines.append(f"  {name:26}{_accuracy(report['knn'][kind]):22}{_accuracy(report['linear'][kind])}")
    return lines


def _accuracy(entry: Mapping[str, float]) -> str:
    return f"{_share(entry['accuracy'], 3)} [{_share(entry['low'], 2)}, {_share(entry['high'], 2)}]"


def _share(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0") else text


def _verdict(effective_rank: float, feature_std: float, num_features: int) -> str:
    from vjepa.probing.metrics import COLLAPSED_RANK, COLLAPSED_STD, is_collapsed

    facts = f"effective rank {effective_rank:.1f} of {num_features}, feature std {feature_std:.2f}"
    if is_collapsed(effective_rank, feature_std):
        return f"{facts}: COLLAPSED (rank under {COLLAPSED_RANK:g} or std under {COLLAPSED_STD:g})"
    return f"{facts}: no collapse (rank at least {COLLAPSED_RANK:g}, std at least {COLLAPSED_STD:g})"


def loss_curve(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Loss terms over steps, from the rows of metrics.jsonl: {"step": int, "loss": float, ...}; of sources of a mix the
    loss alone.
    """
    figure = _figure(6.4, 3.6)
    axes = figure.subplots()
    sources = sorted({row.get("source", 0) for row in rows})
    for source, term in [*((0, term) for term in TERMS), *((source, "loss") for source in sources if source)]:
        points = [
            (row["step"], row[term]) for row in rows if row.get(term) is not None and row.get("source", 0) == source
        ]
        if points:
            name = f"{term} of data.mix.{source - 1}" if source else term
            axes.plot(*zip(*points, strict=True), label=name, linewidth=2 if term == "loss" else 1)
    axes.set(title="Loss over training", xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path)


def mask_picture(path: Path, video: torch.Tensor, grid: TokenGrid, context_ids: torch.Tensor) -> None:
    """Frames of one clip, uint8 [3, T, S, S], above the same frames with every token that is not in `context_ids` [Kc]
    grey.
    """
    import numpy as np

    seen = np.zeros(grid.num_tokens, dtype=bool)
    seen[context_ids.cpu().numpy()] = True
    frames = _token_frames(video, grid)
    hidden = ~_upscale(seen.reshape(grid.t, grid.h, grid.w), frames.shape[1])
    masked = np.where(hidden[..., None], 0.15 * frames + 0.85 * 128, frames).astype(np.uint8)
    title = f"Token mask: the context encoder sees {seen.mean():.0%} of {grid.t} x {grid.h} x {grid.w} tokens"
    _grid_picture(path, title, [("frames", frames), ("context", masked)], video.shape[1] // grid.t)


def features_picture(path: Path, videos: torch.Tensor, tokens: torch.Tensor, grid: TokenGrid) -> None:
    """Frames of clips, uint8 [B, 3, T, S, S], above their token features [B, N, D]: three principal components as RGB.

    The components are fitted over all shown clips together, so one colour means one thing in all of them.
    """
    import numpy as np

    features = tokens.float().cpu().numpy().reshape(-1, tokens.shape[-1])
    centred = features - features.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    components = centred @ axes[:, : -min(3, tokens.shape[-1]) - 1 : -1]
    low, high = np.percentile(components, (2, 98), axis=0)
    colours = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1).reshape(
        len(videos), grid.t, grid.h, grid.w, -1
    )
    rows: list[tuple[str, np.ndarray]] = []
    for number, (video, colour) in enumerate(zip(videos, colours, strict=True), 1):
        frames = _token_frames(video, grid)
        rows += [(f"clip {number}", frames), ("features", _upscale(colour, frames.shape[1]))]
    _grid_picture(
        path, "Token features: first three principal components as red, green, blue", rows, videos.shape[2] // grid.t
    )


def save_pictures(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    videos: torch.Tensor,
    grid: TokenGrid,
    context_ids: torch.Tensor,
    tokens: torch.Tensor,
) -> None:
    """Write loss_curve.png, mask.png and features_pca.png into `folder`.

    rows: those of metrics.jsonl. videos: uint8 [B, 3, T, S, S], a few validation clips. context_ids: [Kc], visible
    tokens of the first clip. tokens: features of every token, [B, N, D].
    """
    folder.mkdir(parents=True, exist_ok=True)
    loss_curve(folder / "loss_curve.png", rows)
    mask_picture(folder / "mask.png", videos[0], grid, context_ids)
    features_picture(folder / "features_pca.png", videos, tokens, grid)


def _token_frames(video: torch.Tensor, grid: TokenGrid) -> np.ndarray:
    """uint8 [3, T, S, S] -> [t, S, S, 3]: the first frame of every time slot."""
    frames: np.ndarray = video.cpu().permute(1, 2, 3, 0).numpy()[:: video.shape[1] // grid.t]
    return frames


def _upscale(cells: np.ndarray, side: int) -> np.ndarray:
    """[t, h, w, ...] -> [t, S, S, ...], S = `side`: nearest neighbour."""
    import numpy as np

    return cells[:, np.arange(side) * cells.shape[1] // side][:, :, np.arange(side) * cells.shape[2] // side]


def _grid_picture(path: Path, title: str, rows: Sequence[tuple[str, np.ndarray]], frames_per_slot: int) -> None:
    """One named row of images [t, S, S, 3] under another; of many time slots, MAX_COLUMNS spread evenly are shown."""
    import numpy as np

    slots = len(rows[0][1])
    shown = np.unique(np.linspace(0, slots - 1, min(slots, MAX_COLUMNS)).round().astype(int))
    side_in = 1.3 if len(shown) > 3 else 1.9
    width_in = max(side_in * len(shown) + 0.6, 3.6)
    figure = _figure(width_in, side_in * len(rows) + 0.8)
    figure.suptitle(fill(title, int(11 * width_in)), fontsize=11)
    axes = figure.subplots(len(rows), len(shown), squeeze=False)
    for (name, images), line in zip(rows, axes, strict=True):
        line[0].set_ylabel(name)
        for slot, cell in zip(shown, line, strict=True):
            cell.imshow(images[slot], interpolation="nearest")
            _bare(cell)
    for slot, cell in zip(shown, axes[0], strict=True):
        cell.set_title(f"frame {slot * frames_per_slot}", fontsize=9)
    figure.savefig(path)


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _figure(width_in: float, height_in: float) -> Figure:
    """A figure of its own: no window, no state shared with the caller's plots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vjepa.report", description="Print the closing table of a finished run again."
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    path = Path(parser.parse_args(arguments).run, "summary.json")
    if not path.is_file():
        raise UserError(f"{path}: no such file; a run writes it when it ends")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if "effective_rank" not in summary:
        raise UserError(f"{path}: holds no closing report; the run had no data.val to measure on")
    print(closing_table(summary))
    return 0


if __name__ == "__main__":
    command.run(main)
