"""A ball, a player's bar and a wall of bricks, of which each that is hit vanishes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from data_prep.first_run.worlds import drawing
from data_prep.first_run.worlds.ball_game import NOTHING, SPEEDS, WAYS, BallGame, Game, box_gap

NORTH: Final = (0, 1, 2, 3)  # sectors
ROWS: Final = ((0.85, 0.25, 0.25), (0.85, 0.6, 0.2), (0.35, 0.75, 0.3), (0.3, 0.45, 0.9))  # colours


@dataclass(frozen=True)
class Bricks(BallGame):
    """Hold what the world depends on. The bar slides along the floor and pays no heed to the ball."""

    name: ClassVar = "bricks"
    things: ClassVar = ("brick", "bar", "ball")
    wanted: ClassVar = {"way": WAYS, "near": ("brick", "bounce"), "meets": ("yes", "no"), "speed": SPEEDS}

    version: int = 2
    ball_radius_px: float = 3.0
    near_px: float = 5.0
    slow_px: float = 1.2
    fast_px: float = 2.8
    num_columns: int = 8
    brick_height_px: float = 4.0
    top_px: float = 8.0  # of the bricks
    bar_half_px: float = 7.0
    bar_y_px: float = 59.0
    fewest: float = 0.3  # share of bricks below which new ones are put up

    def play(self, rng: np.random.Generator, num_frames: int) -> Game:
        """Play: walls and bricks mirror the ball's way, the bar and the floor send it up another way."""
        low, high = self.ball_radius_px, self.side_px - 1 - self.ball_radius_px
        bar = self.slide(num_frames, self.bar_half_px, self.side_px - 1 - self.bar_half_px, rng)
        standing = self._put_up(rng)
        (x, y), (vx, vy) = rng.uniform(low, high, 2), self.serve(rng)
        while self._brick(x, y, standing):
            x, y = rng.uniform(low, high, 2)
        ball, hits, bricks = np.empty((num_frames, 2)), [], np.empty((num_frames, *standing.shape), bool)
        for frame in range(num_frames):
            hit, old_y = NOTHING, y
            if frame:
                x, y = x + vx, y + vy
            brick = self._brick(x, y, standing)
            if frame and brick:
                standing[brick], hit = False, "brick"
                vx, vy = (vx, -vy) if self._brick(x, old_y, standing) != brick else (-vx, vy)
            floor = self.bar_y_px - 2 - low if abs(x - bar[frame]) < self.bar_half_px + 1 else high
            if y > floor and vy > 0 and old_y <= floor:
                (vx, vy), y, hit = self.serve(rng, NORTH), floor, "bounce"
            if not low <= x <= high:
                vx, x, hit = -vx, min(max(x, low), high), "bounce"
            if not low <= y <= high:
                vy, y, hit = -vy, min(max(y, low), high), "bounce"
            if standing.mean() < self.fewest:
                standing = self._put_up(rng)
            ball[frame], bricks[frame] = (x, y), standing
            hits.append(hit)
        return Game(ball, bar[:, None], hits, bricks)

    def labels(self, game: Game) -> dict[str, str]:
        """Label a game as every ball game, and by the cell of the bar: `player`."""
        return {**super().labels(game), "player": self.cell(float(game.bars[len(game.bars) // 2, 0]))}

    def gaps(self, game: Game, frame: int) -> dict[str, float]:
        """Measure how far the ball is from the bricks, and from what it may bounce off: walls, floor and bar."""
        ball, radius, size = (
            game.ball[frame],
            self.ball_radius_px,
            np.array([self.side_px / self.num_columns, self.brick_height_px]),
        )
        standing = np.argwhere(game.bricks[frame - 1])[:, ::-1]  # those that the ball may have hit on its way here
        bricks = box_gap(ball, (standing + 0.5) * size + (-0.5, self.top_px - 0.5), size / 2).min()
        bar = box_gap(ball, np.array([game.bars[frame, 0], self.bar_y_px]), np.array([self.bar_half_px, 1.5]))
        return {"brick": float(bricks) - radius, "bounce": min(self.wall_gap(ball), float(bar) - radius)}

    def draw(self, game: Game) -> np.ndarray:
        """Draw a game on the dark background of this world."""
        side, width = self.side_px, self.side_px / self.num_columns
        dark = drawing.background(side, 0.15, 0.04, self.rng(1 << 32))
        walls = [[self._box(column, row, width) for column in range(self.num_columns)] for row in range(len(ROWS))]
        frames = np.empty((len(game.ball), side, side, 3), np.uint8)
        drawn, picture = None, dark
        for frame, ball, bar, bricks in zip(frames, game.ball, game.bars[:, 0], game.bricks, strict=True):
            if drawn is None or (bricks != drawn).any():
                picture, drawn = dark.copy(), bricks
                for row, column in np.argwhere(bricks):
                    drawing.paint(picture, walls[row][column], ROWS[row])
            shown = picture.copy()
            drawing.paint(shown, drawing.box(side, (bar, self.bar_y_px), (self.bar_half_px, 1.5)), (0.4, 0.8, 1.0))
            drawing.paint(shown, drawing.disc(side, ball, self.ball_radius_px), (1.0, 1.0, 0.9))
            frame[:] = drawing.to_bytes(shown)
        return frames

    def mark(self, game: Game) -> np.ndarray:
        """Mark bricks, bar and ball, as they are drawn."""
        side, width = self.side_px, self.side_px / self.num_columns
        marks = np.zeros((len(game.ball), side, side), np.uint8)
        for frame, ball, bar, bricks in zip(marks, game.ball, game.bars[:, 0], game.bricks, strict=True):
            for row, column in np.argwhere(bricks):
                drawing.mark(frame, self._box(column, row, width), 1)
            drawing.mark(frame, drawing.box(side, (bar, self.bar_y_px), (self.bar_half_px, 1.5)), 2)
            drawing.mark(frame, drawing.disc(side, ball, self.ball_radius_px), 3)
        return marks

    def _put_up(self, rng: np.random.Generator) -> np.ndarray:
        return rng.random((len(ROWS), self.num_columns)) < rng.uniform(0.7, 1)

    def _box(self, column: int, row: int, width: float) -> np.ndarray:
        centre = ((column + 0.5) * width - 0.5, self.top_px + (row + 0.5) * self.brick_height_px - 0.5)
        return drawing.box(self.side_px, centre, (width / 2 - 0.75, self.brick_height_px / 2 - 0.75))

    def _brick(self, x: float, y: float, standing: np.ndarray) -> tuple[int, int] | None:
        """Find the standing brick at a place."""
        row, column = int((y - self.top_px) // self.brick_height_px), int(x * self.num_columns / self.side_px)
        inside = 0 <= row < len(ROWS) and 0 <= column < self.num_columns
        return (row, column) if inside and standing[row, column] else None
