"""A ball between two paddles on a standing background."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data_prep.first_run.worlds import drawing
from data_prep.first_run.worlds.ball_game import NOTHING, SPEEDS, WAYS, BallGame, Game, box_gap

EAST, WEST = (0, 1, 6, 7), (2, 3, 4, 5)  # sectors


@dataclass(frozen=True)
class Paddles(BallGame):
    """Hold what the world depends on. The paddles stand upright, `rail_px` from the left and the right wall.

    A ball that a paddle misses flies on to the wall behind it.
    """

    name: ClassVar = "paddles"
    things: ClassVar = ("paddle", "ball")
    wanted: ClassVar = {"way": WAYS, "near": ("paddle", "wall"), "meets": ("yes", "no"), "speed": SPEEDS}

    version: int = 3
    side_px: int = 80
    rail_px: float = 13.0
    paddle_half_px: float = 12.0

    def play(self, rng: np.random.Generator, num_frames: int) -> Game:
        """Play: walls mirror the ball's way, a paddle sends it back another way."""
        low, high = self.ball_radius_px, self.side_px - 1 - self.ball_radius_px
        reach = self.ball_radius_px + 1.5
        rails = (self.rail_px, self.side_px - 1 - self.rail_px)
        half = self.paddle_half_px
        bars = np.stack([self.slide(num_frames, half, self.side_px - 1 - half, rng) for _ in rails], axis=1)
        (x, y), (vx, vy) = rng.uniform(low, high, 2), self.serve(rng)
        ball, hits = np.empty((num_frames, 2)), []
        for frame, places in enumerate(bars):
            hit, old = NOTHING, x
            if frame:
                x, y = x + vx, y + vy
            for rail, place in zip(rails, places, strict=True):
                face = rail - reach if vx > 0 else rail + reach
                if frame and (old - face) * (x - face) <= 0 and old != face and abs(y - place) < half + 1:
                    (vx, vy), x, hit = self.serve(rng, WEST if vx > 0 else EAST), face, "paddle"
                    break
            if not low <= x <= high:
                vx, x, hit = -vx, min(max(x, low), high), "wall"
            if not low <= y <= high:
                vy, y, hit = -vy, min(max(y, low), high), "wall"
            ball[frame] = x, y
            hits.append(hit)
        return Game(ball, bars, hits, np.empty((num_frames, 0, 0), bool))

    def labels(self, game: Game) -> dict[str, str]:
        """Label a game as every ball game, and by the cells of the paddles: `left` and `right`."""
        places = dict(zip(("left", "right"), game.bars[len(game.bars) // 2].tolist(), strict=True))
        return super().labels(game) | {side: self.cell(place) for side, place in places.items()}

    def gaps(self, game: Game, frame: int) -> dict[str, float]:
        """Measure how far the ball is from the walls and from the paddles."""
        rails = (self.rail_px, self.side_px - 1 - self.rail_px)
        centres = np.stack([rails, game.bars[frame]], axis=1)
        gap = box_gap(game.ball[frame], centres, np.array([1.5, self.paddle_half_px])).min()
        return {"wall": self.wall_gap(game.ball[frame]), "paddle": float(gap) - self.ball_radius_px}

    def draw(self, game: Game) -> np.ndarray:
        """Draw a game on the background of this world."""
        side = self.side_px
        standing = drawing.background(side, 0.35, 0.1, self.rng(1 << 32))
        frames = np.empty((len(game.ball), side, side, 3), np.uint8)
        for frame, ball, bars in zip(frames, game.ball, game.bars, strict=True):
            picture = standing.copy()
            for cover, colour in zip(self._paddles(bars), ((0.95, 0.35, 0.25), (0.3, 0.9, 0.4)), strict=True):
                drawing.paint(picture, cover, colour)
            drawing.paint(picture, drawing.disc(side, ball, self.ball_radius_px), (1.0, 1.0, 0.85))
            frame[:] = drawing.to_bytes(picture)
        return frames

    def mark(self, game: Game) -> np.ndarray:
        """Mark paddles and ball, as they are drawn."""
        marks = np.zeros((len(game.ball), self.side_px, self.side_px), np.uint8)
        for frame, ball, bars in zip(marks, game.ball, game.bars, strict=True):
            for cover in self._paddles(bars):
                drawing.mark(frame, cover, 1)
            drawing.mark(frame, drawing.disc(self.side_px, ball, self.ball_radius_px), 2)
        return marks

    def _paddles(self, bars: np.ndarray) -> list[np.ndarray]:
        """Cover the left and the right paddle, as `drawing.box`."""
        side, half = self.side_px, (1.5, self.paddle_half_px)
        rails = (self.rail_px, side - 1 - self.rail_px)
        return [drawing.box(side, (rail, float(place)), half) for rail, place in zip(rails, bars, strict=True)]
