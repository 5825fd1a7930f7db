"""Two rooms, a wall with a door, and a dot that goes where it is told: films of random walks, with their actions.

It is the environment that a world model is planned in, too: `move`, `draw`, `way` and `path_length` are what
`vjepa.planning` asks of it. Places and actions are x, y in pixels, y downwards; an action is a displacement per frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final

import numpy as np

from data_prep.first_run.worlds import drawing
from data_prep.first_run.worlds.world import Video, World
from vjepa.data.tracks import TrackInfo, Tracks

_BEND: Final = 9  # places in the door among which the shortest way is looked for
_ASIDE_PX: Final = 0.5  # how far from the corners of the door a way keeps


@dataclass(frozen=True)
class Rooms(World):
    """Hold what the world depends on. A share of the legs of a walk leads through the door."""

    name: ClassVar = "rooms"
    wanted: ClassVar = {"room": ("left", "right")}
    lossless: ClassVar = True  # plans see drawn frames; of those that x264 has blurred a dot is moved by a pixel
    tracks_info: ClassVar = Tracks(
        action=TrackInfo(("right", "down"), ("px", "px")), state=TrackInfo(("x", "y"), ("px", "px"))
    )

    version: int = 2
    num_films: int = 64
    film_frames: int = 400
    clip_frames: int = 41
    train_clips: int = 64
    selection_clips: int = 32
    val_clips: int = 64
    radius_px: float = 3.0
    border_px: float = 2.0
    wall_half_px: float = 2.0
    door_px: float = 20.0  # from the top to its middle
    door_half_px: float = 9.0
    fastest_px: float = 2.4  # per frame, along each axis
    shortest_leg_frames: int = 5
    longest_leg_frames: int = 25
    crossing_share: float = 0.25

    def film(self, number: int, num_frames: int) -> np.ndarray:
        """Draw a walk: uint8 [T, S, S, 3]."""
        return self.draw(self.walk(self.rng(number), num_frames)[0])

    def clip(self, number: int, wanted: Mapping[str, str]) -> tuple[np.ndarray, dict[str, str]]:
        """Draw a walk that is in the wanted room in its middle frame, and label it by where it is then."""
        places, _ = self._walk_of(number, wanted["room"])
        x, y = places[len(places) // 2].tolist()
        return self.draw(places), {"room": self.room(places[len(places) // 2]), "x": f"{x:.3f}", "y": f"{y:.3f}"}

    def tracks(self, video: Video) -> tuple[np.ndarray, np.ndarray]:
        """Give the actions of a video and the places of its dot, fp32 [T, 2] each; the last action leads out of it."""
        if video.kind == "film":
            places, actions = self.walk(self.rng(video.number), self.film_frames)
        else:
            places, actions = self._walk_of(video.number, self.wanted_of(video)["room"])
        return actions.astype(np.float32), places.astype(np.float32)

    def _walk_of(self, number: int, room: str) -> tuple[np.ndarray, np.ndarray]:
        rng = self.rng(number)
        while True:
            places, actions = self.walk(rng, self.clip_frames)
            if self.room(places[len(places) // 2]) == room:
                return places, actions

    def walk(self, rng: np.random.Generator, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
        """Walk at random: places and actions, [T, 2] each; action k leads from place k to the next."""
        places, actions = np.empty((num_frames, 2)), np.empty((num_frames, 2))
        place, left, target = self.place(rng), 0, None
        for frame in range(num_frames):
            if left == 0:
                left = int(rng.integers(self.shortest_leg_frames, self.longest_leg_frames, endpoint=True))
                crosses = rng.random() < self.crossing_share
                target = self.place(rng, "right" if self.room(place) == "left" else "left") if crosses else None
                left = 4 * left if crosses else left
                action = self.fastest_px * rng.uniform(-1, 1, 2)
            if target is not None:
                action = self.way(place, target)
                left = 1 if np.abs(target - place).max() < self.fastest_px else left
            places[frame], actions[frame] = place, action
            place, left = self.move(place, action), left - 1
        return places, actions

    def place(self, rng: np.random.Generator, room: str | None = None) -> np.ndarray:
        """Draw a free place, in a room where that is named: [2]."""
        low, high = self._inner
        while True:
            place: np.ndarray = rng.uniform(low, high, 2)
            if abs(place[0] - self._middle) > self._band and room in (None, self.room(place)):
                return place

    def room(self, place: np.ndarray) -> str:
        """Name the room that a place is in."""
        return "left" if place[0] < self._middle else "right"

    def move(self, places: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Move dots [..., 2] by actions [..., 2], which are cut to the fastest; what is in the way stops an axis."""
        low, high = self._inner
        x, y = places[..., 0], places[..., 1]
        right, down = np.moveaxis(np.clip(actions, -self.fastest_px, self.fastest_px), -1, 0)
        new_x = np.clip(x + right, low, high)
        in_door, (top, bottom) = (abs(y - self.door_px) <= self._gap), self._door
        face = self._middle + np.where(x < self._middle, -self._band, self._band)
        enters = ((new_x - face) * np.where(x < self._middle, 1, -1) > 0) & ~in_door
        new_x = np.where(enters, face, new_x)
        new_y = np.clip(y + down, low, high)
        new_y = np.where(abs(new_x - self._middle) < self._band, np.clip(new_y, top, bottom), new_y)
        return np.stack([new_x, new_y], axis=-1)

    def way(self, place: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Give the action of the shortest way from a place [2] to a goal [2]: as fast as can be, and then there."""
        ahead = next(bend for bend in self._bends(place, goal)[1:] if np.abs(bend - place).max() > 1e-6 or bend is goal)
        step = ahead - place
        cut: np.ndarray = step / max(1.0, np.abs(step).max() / self.fastest_px)
        return cut

    def path_length(self, place: np.ndarray, goal: np.ndarray) -> float:
        """Measure the shortest way from a place [2] to a goal [2] that keeps out of the wall, px."""
        bends = np.stack(self._bends(place, goal))
        return float(np.linalg.norm(np.diff(bends, axis=0), axis=1).sum())

    def _bends(self, place: np.ndarray, goal: np.ndarray) -> list[np.ndarray]:
        """List the ends of the straight parts of the shortest way, `place` first and `goal` last."""
        sides = np.sign([place[0] - self._middle, goal[0] - self._middle])
        faces = [self._middle + side * (self._band + _ASIDE_PX / 4) for side in (sides[0], sides[1])]
        inside = [abs(x - self._middle) < self._band for x in (place[0], goal[0])]
        if sides[0] == sides[1] or all(inside):
            return [place, goal]
        top, bottom = self._door
        at = np.linspace(top + _ASIDE_PX, bottom - _ASIDE_PX, _BEND)
        first = np.stack([np.full(_BEND, faces[0]), at], -1)
        second = np.stack([np.full(_BEND, faces[1]), at], -1)
        if inside[0]:
            lengths = np.linalg.norm(second - place, axis=-1) + np.linalg.norm(second - goal, axis=-1)
            return [place, second[int(lengths.argmin())], goal]
        near, far = np.linalg.norm(first - place, axis=-1), np.linalg.norm(second - goal, axis=-1)
        lengths = near[:, None] + np.linalg.norm(first[:, None] - second[None], axis=-1) + far[None]
        i, j = np.unravel_index(int(lengths.argmin()), lengths.shape)
        return [place, first[i], second[j], goal]

    def draw(self, places: np.ndarray) -> np.ndarray:
        """Draw dots at places [T, 2] in the rooms, one a frame: uint8 [T, S, S, 3]."""
        frames = np.empty((len(places), self.side_px, self.side_px, 3), np.uint8)
        for frame, place in zip(frames, places, strict=True):
            picture = self._empty.copy()
            drawing.paint(picture, drawing.disc(self.side_px, place, self.radius_px), (1.0, 0.45, 0.1))
            frame[:] = drawing.to_bytes(picture)
        return frames

    @cached_property
    def _empty(self) -> np.ndarray:
        """Draw the rooms without a dot: [S, S, 3] of 0 to 1."""
        side, middle = self.side_px, self._middle
        picture = np.full((side, side, 3), 0.15)
        wall = drawing.box(side, (middle, middle), (self.wall_half_px, side))
        wall *= 1 - drawing.box(side, (middle, self.door_px), (side, self.door_half_px))
        inside = drawing.box(side, (middle, middle), (middle - self.border_px, middle - self.border_px))
        drawing.paint(picture, np.maximum(wall, 1 - inside), (0.75, 0.78, 0.85))
        return picture

    @property
    def _middle(self) -> float:
        return (self.side_px - 1) / 2

    @property
    def _band(self) -> float:
        """Give how near to the middle of the wall a dot may be outside of the door, px."""
        return self.wall_half_px + self.radius_px

    @property
    def _gap(self) -> float:
        return self.door_half_px - self.radius_px

    @property
    def _door(self) -> tuple[float, float]:
        return self.door_px - self._gap, self.door_px + self._gap

    @property
    def _inner(self) -> tuple[float, float]:
        """Give the least and the greatest x and y of a dot."""
        edge = self.border_px + self.radius_px
        return edge, self.side_px - 1 - edge
