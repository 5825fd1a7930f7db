"""What the worlds with a ball share: where it flies, what it meets, and the labels of a clip.

Balls fly near one of 8 half-winds, which a bounce off an upright or level wall turns into another of them; whatever
else moves pays no heed to the ball, so no single frame tells where it flies.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

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
NOTHING: Final = "none"


@dataclass(frozen=True)
class Game:
    """Hold what happened. ball: centre x, y in pixels, [T, 2]. bars: place of each bar along its rail, [T, bars].

    hits: what the ball met on its way to each frame. bricks: bool [T, rows, columns], those that stand.
    """

    ball: np.ndarray
    bars: np.ndarray
    hits: list[str]
    bricks: np.ndarray


@dataclass(frozen=True)
class BallGame(World):
    """Hold what a game with a ball depends on."""

    ball_radius_px: float = 2.5
    slow_px: float = 1.5  # per frame: the slowest of slow balls; they are up to 1.6 times as fast
    fast_px: float = 3.5
    wobble_deg: float = 14.0  # how far a ball may fly from its half-wind
    bar_px: float = 2.0  # per frame, the fastest bar
    turn_chance: float = 0.05  # per frame, of a bar

    speeds: ClassVar = ("slow", "fast")

    def film(self, number: int, num_frames: int) -> np.ndarray:
        """Draw a game: uint8 [T, S, S, 3]."""
        return self.draw(self.play(self.rng(number), num_frames))

    def clip(self, number: int, wanted: Mapping[str, str]) -> tuple[np.ndarray, dict[str, str]]:
        """Play short games until one is as wanted and plain to see, and draw it."""
        rng = self.rng(number)
        while True:
            game = self.play(rng, self.clip_frames)
            if _is_plain(game):
                labels = self.labels(game)
                if all(labels[label] == value for label, value in wanted.items()):
                    return self.draw(game), labels

    def labels(self, game: Game) -> dict[str, str]:
        """Label a game by what it is in its middle: `way`, `speed`, `ball_x`, `ball_y`; and by what it meets: `event`.

        Cells are counted from the left and from the top.
        """
        middle = len(game.ball) // 2
        x, y = game.ball[middle]
        right, down = game.ball[middle] - game.ball[middle - 1]
        sector = int(math.degrees(math.atan2(-down, right)) % 360 // 45)
        return {
            "way": WAYS[sector],
            "event": next((hit for hit in game.hits if hit != NOTHING), NOTHING),
            "speed": self.speeds[int(math.hypot(right, down) > (1.6 * self.slow_px + self.fast_px) / 2)],
            "ball_x": self.cell(x),
            "ball_y": self.cell(y),
        }

    def cell(self, place: float) -> str:
        """Name the cell of a place in pixels."""
        return str(min(max(int(place * CELLS / self.side_px), 0), CELLS - 1))

    def serve(self, rng: np.random.Generator, sectors: tuple[int, ...] = tuple(range(8))) -> tuple[float, float]:
        """Draw a velocity x, y in pixels per frame near one of the half-winds `sectors`."""
        angle = math.radians(45 * sectors[rng.integers(len(sectors))] + 22.5 + self.wobble_deg * rng.uniform(-1, 1))
        speed = (self.slow_px, self.fast_px)[rng.integers(2)] * rng.uniform(1, 1.6)
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

    @abstractmethod
    def play(self, rng: np.random.Generator, num_frames: int) -> Game:
        """Play a game."""

    @abstractmethod
    def draw(self, game: Game) -> np.ndarray:
        """Draw a game: uint8 [T, S, S, 3]."""


def _is_plain(game: Game) -> bool:
    """Say whether the ball meets at most one thing, with frames to see it come and go, and flies free in the middle."""
    met = [frame for frame, hit in enumerate(game.hits) if hit != NOTHING]
    return len(met) <= 1 and all(frame in range(2, len(game.hits) - 1) and frame != len(game.hits) // 2 for frame in met)
