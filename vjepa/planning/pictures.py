"""Pictures and films of plans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from data_prep.first_run.video_file import write_video
from vjepa.planning.episodes import Episode
from vjepa.reporting.pictures import new_figure

_FPS: Final = 10
_SHOWN: Final = 8  # frames of an episode in its picture
_LEAST_PX: Final = 256  # of the height of a film
_GREEN: Final = (60, 200, 90)


def save_episodes(folder: Path, episodes: Sequence[Episode]) -> list[Path]:
    """Draw each episode as a row of frames, its goal last, and film it beside its goal; give the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for number, episode in enumerate(episodes):
        paths = folder / f"episode_{number}.png", folder / f"episode_{number}.mp4"
        _picture(paths[0], episode)
        write_video(film(episode), _FPS, paths[1])
        written += paths
    return written


def film(episode: Episode) -> np.ndarray:
    """Lay each frame beside the goal, framed in green where that is reached: uint8 [T, H, W, 3], sides even."""
    frames = np.stack(episode.pictures)
    goal = np.broadcast_to(episode.task.goal, frames.shape)
    pairs = np.concatenate([frames, goal], axis=2)
    times = max(1, -(-_LEAST_PX // pairs.shape[1]))
    large = pairs.repeat(times, axis=1).repeat(times, axis=2)
    for frame, reached in zip(large, episode.reached, strict=True):
        if reached:
            frame[:times] = frame[-times:] = _GREEN
            frame[:, :times] = frame[:, -times:] = _GREEN
    return large[:, : large.shape[1] // 2 * 2, : large.shape[2] // 2 * 2]


def _picture(path: Path, episode: Episode) -> None:
    places = np.linspace(0, len(episode.pictures) - 1, _SHOWN).round().astype(int)
    figure = new_figure(1.3 * (_SHOWN + 1), 1.6)
    for column, place in enumerate([*places.tolist(), None]):
        axes = figure.add_subplot(1, _SHOWN + 1, column + 1)
        axes.imshow(episode.task.goal if place is None else episode.pictures[place])
        axes.set_axis_off()
        reached = place is not None and episode.reached[place]
        axes.set_title("goal" if place is None else f"{place}{' reached' if reached else ''}", fontsize=8)
    figure.savefig(path, dpi=100)


def energy_map(
    path: Path, energies: np.ndarray, axes: Sequence[np.ndarray], names: Sequence[str], true: np.ndarray
) -> None:
    """Draw energies [n, n] over two dimensions of an action, with the least one and the true action marked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = new_figure(4.0, 3.4)
    plot = figure.add_subplot(1, 1, 1)
    mesh = plot.pcolormesh(axes[0], axes[1], energies.T, shading="nearest", cmap="viridis")
    least = np.unravel_index(int(energies.argmin()), energies.shape)
    plot.plot(axes[0][least[0]], axes[1][least[1]], "wx", label="least energy")
    plot.plot(*true, "r+", markersize=10, label="true action")
    plot.set_xlabel(names[0])
    plot.set_ylabel(names[1])
    plot.legend(fontsize=7)
    figure.colorbar(mesh, label="energy")
    figure.savefig(path, dpi=100)
