"""What the worlds with a ball share: where it flies, what it meets, and the labels of a clip.

Balls fly near one of 8 half-winds, which a bounce off an upright or level wall turns into another of them; whatever
else moves pays no heed to the ball, so no single frame tells where it flies.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from data_prep.first_run.worlds.world import CELLS, World

WAYS: Final = (
    "east-north-east",
    "north-north-east",
    "north-north-west",
    "west-north-west",
    "west-south-west",
    "south-south-west",
    "south-south-east",
    "east-south-east",
)
SPEEDS: Final = ("slow", "fast")
SPREAD: Final = 1.6  # the fastest of slow balls by the slowest
NOTHING: Final = "none"
GAME_FRAMES: Final = 240  # of a game in which a clip is looked for


@dataclass(frozen=True)
class Game:
    """Hold what happened. ball: centre x, y in pixels, [T, 2]. bars: place of each bar along its rail, [T, bars].

    hits: what the ball met on its way to each frame. bricks: bool [T, rows, columns], those that stand.
    """

    ball: np.ndarray
    bars: np.ndarray
    hits: list[str]
    bricks: np.ndarray

    def stretch(self, first: int, num_frames: int) -> Game:
        """Cut out frames."""
        part = slice(first, first + num_frames)
        return Game(self.ball[part], self.bars[part], self.hits[part], self.bricks[part])


@dataclass(frozen=True)
class BallGame(World):
    """Hold what a game with a ball depends on."""

    ball_radius_px: float = 3.5
    slow_px: float = 1.5  # per frame: the slowest of slow balls; up to SPREAD times as fast
    fast_px: float = 3.5
    wobble_deg: float = 14.0  # how far a ball may fly from its half-wind
    bar_px: float = 2.0  # per frame, the fastest bar
    turn_chance: float = 0.05  # per frame, of a bar
    near_px: float = 7.0  # at most so far, in the middle of a clip, is the ball from what it meets, or does not

    def film(self, number: int, num_frames: int) -> np.ndarray:
        """Draw a game: uint8 [T, S, S, 3]."""
        return self.draw(self.play(self.rng(number), num_frames))

    def clip(self, number: int, wanted: Mapping[str, str]) -> tuple[np.ndarray, dict[str, str]]:
        """Draw the stretch of a game in which happens what is wanted."""
        stretch, labels = self._stretch(number, wanted)
        return self.draw(stretch), labels

    def marks(self, number: int, wanted: Mapping[str, str]) -> np.ndarray:
        """Mark ball, bars and bricks: uint8 [T, S, S]."""
        return self.mark(self._stretch(number, wanted)[0])

    def _stretch(self, number: int, wanted: Mapping[str, str]) -> tuple[Game, dict[str, str]]:
        """Play games until a stretch of one is as wanted and plain to see; give it, and all of its labels."""
        rng = self.rng(number)
        event = wanted["near"] if wanted["meets"] == "yes" else NOTHING
        while True:
            game = self.play(rng, GAME_FRAMES)
            for first in range(GAME_FRAMES - self.clip_frames + 1):
                stretch = game.stretch(first, self.clip_frames)
                if _plain_event(stretch.hits) != event or self._flight(stretch).items() - wanted.items():
                    continue
                labels = self.labels(stretch)
                if labels["near"] == wanted["near"]:
                    return stretch, labels

    def labels(self, game: Game) -> dict[str, str]:
        """Label a game by what it is in its middle: `way`, `speed`, `near`, `ball_x`, `ball_y`; and by its `event`.

        near: the kind of thing that is nearest, within `near_px`. Cells are counted from the left and from the top.
        """
        middle = len(game.ball) // 2
        gaps, (x, y) = self.gaps(game, middle), game.ball[middle]
        near = min(gaps, key=lambda thing: gaps[thing])
        return {
            **self._flight(game),
            "near": near if gaps[near] < self.near_px else NOTHING,
            "event": next((hit for hit in game.hits[1:] if hit != NOTHING), NOTHING),
            "ball_x": self.cell(x),
            "ball_y": self.cell(y),
        }

    def _flight(self, game: Game) -> dict[str, str]:
        """Label the step of the ball to the middle frame: `way` and `speed`."""
        middle = len(game.ball) // 2
        right, down = (game.ball[middle] - game.ball[middle - 1]).tolist()
        sector = int(math.degrees(math.atan2(-down, right)) % 360 // 45)
        is_fast = math.hypot(right, down) > (SPREAD * self.slow_px + self.fast_px) / 2
        return {"way": WAYS[sector], "speed": SPEEDS[is_fast]}

    def cell(self, place: float) -> str:
        """Name the cell of a place in pixels."""
        return str(min(max(int(place * CELLS / self.side_px), 0), CELLS - 1))

    def serve(self, rng: np.random.Generator, sectors: tuple[int, ...] = tuple(range(8))) -> tuple[float, float]:
        """Draw a velocity x, y in pixels per frame near one of the half-winds `sectors`."""
        angle = math.radians(45 * sectors[rng.integers(len(sectors))] + 22.5 + self.wobble_deg * rng.uniform(-1, 1))
        speed = (self.slow_px, self.fast_px)[rng.integers(2)] * rng.uniform(1, SPREAD)
        return speed * math.cos(angle), -speed * math.sin(angle)

    def slide(self, num_frames: int, low: float, high: float, rng: np.random.Generator) -> np.ndarray:
        """Move a bar to and fro between `low` and `high`: its places, [num_frames]."""
        place, step, places = rng.uniform(low, high), self.bar_px * rng.uniform(-1, 1), np.empty(num_frames)
        for frame in range(num_frames):
            places[frame] = place
            if rng.random() < self.turn_chance:
                step = self.bar_px * rng.uniform(-1, 1)
            if not low <= place + step <= high:
                step = -step
            place += step
        return places

    def wall_gap(self, ball: np.ndarray) -> float:
        """Measure from the edge of the ball to the nearest wall, in pixels."""
        return float(min(ball.min(), self.side_px - 1 - ball.max()) - self.ball_radius_px)

    @abstractmethod
    def gaps(self, game: Game, frame: int) -> dict[str, float]:
        """Measure how far the ball is from each kind of thing in a frame, in pixels."""

    @abstractmethod
    def play(self, rng: np.random.Generator, num_frames: int) -> Game:
        """Play a game."""

    @abstractmethod
    def draw(self, game: Game) -> np.ndarray:
        """Draw a game: uint8 [T, S, S, 3]."""

    @abstractmethod
    def mark(self, game: Game) -> np.ndarray:
        """Mark the things of a game, as `draw` draws them: uint8 [T, S, S], 0 for the ground."""


def box_gap(ball: np.ndarray, centre: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Measure from a point to boxes around `centre` [..., 2]: pixels, [...]."""
    gap: np.ndarray = np.linalg.norm(np.maximum(abs(ball - centre) - half, 0), axis=-1)
    return gap


def _plain_event(hits: list[str]) -> str | None:
    """Name what the ball meets; None where that is more than one thing, or not plain to see.

    There are frames to see it come and go, and to the middle frame it flies free.
    """
    met = [frame for frame, hit in enumerate(hits) if hit != NOTHING and frame]
    if not met:
        return NOTHING
    seen = len(met) == 1 and 2 <= met[0] < len(hits) - 1 and met[0] != len(hits) // 2
    return hits[met[0]] if seen else None
