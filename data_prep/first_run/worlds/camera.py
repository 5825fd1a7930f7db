"""A camera that moves over textured ground much larger than the frame."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from data_prep.first_run.worlds import drawing
from data_prep.first_run.worlds.world import World

PANS: Final = ("east", "north-east", "north", "north-west", "west", "south-west", "south", "south-east", "still")
ZOOMS: Final = {"in": 1, "out": -1, "none": 0}
TEXTURES: Final = ("noise", "stripes", "checks", "blobs")


@dataclass(frozen=True)
class Camera(World):
    """Hold what the world depends on. The ground is a torus of `ground_px`."""

    name: ClassVar = "camera"
    wanted: ClassVar = {"pan": PANS, "zoom": tuple(ZOOMS), "texture": TEXTURES}

    num_films: int = 96
    film_frames: int = 300
    train_clips: int = 972
    selection_clips: int = 324
    val_clips: int = 540
    ground_px: int = 256
    slowest_px: float = 1.5  # of panning, per frame
    fastest_px: float = 2.8
    wobble_deg: float = 12.0  # how far a direction may be from that of its label
    least_zoom: float = 0.04  # of the logarithm of the scale, per frame
    most_zoom: float = 0.07
    widest: float = 1.3  # pixels of ground in a pixel of the frame, in the middle of a clip; nearest: its inverse
    leg_frames: int = 24  # of a film, in which the camera goes on as it does

    def clip(self, number: int, wanted: Mapping[str, str]) -> tuple[np.ndarray, dict[str, str]]:
        """Draw a way of the camera with the pan and zoom that are wanted."""
        rng = self.rng(number)
        ground = self._ground(wanted["texture"], rng)
        way = self._fly([(PANS.index(wanted["pan"]), ZOOMS[wanted["zoom"]])], self.clip_frames, rng)
        return self._look(ground, way), dict(wanted)

    def film(self, number: int, num_frames: int) -> np.ndarray:
        """Draw a camera that goes on in another way after every leg."""
        rng = self.rng(number)
        ground, legs = self._ground(TEXTURES[rng.integers(len(TEXTURES))], rng), -(-num_frames // self.leg_frames)
        doings = list(zip(rng.integers(len(PANS), size=legs), rng.integers(-1, 2, legs), strict=True))
        return self._look(ground, self._fly(doings, num_frames, rng))

    def _fly(self, doings: list[tuple[int, int]], num_frames: int, rng: np.random.Generator) -> np.ndarray:
        """Move the camera through legs of (pan, zoom): its x, y on the ground, and scale, [T, 3]."""
        leg, limit = (num_frames if len(doings) == 1 else self.leg_frames), math.log(self.widest)
        pans, zooms = np.array(doings).T
        angle = np.radians(45 * pans + self.wobble_deg * rng.uniform(-1, 1, len(doings)))
        speed = np.where(pans == PANS.index("still"), 0, rng.uniform(self.slowest_px, self.fastest_px, len(doings)))
        widening = -zooms * rng.uniform(self.least_zoom, self.most_zoom, len(doings))
        steps = np.stack([speed * np.cos(angle), -speed * np.sin(angle), widening])
        steps = np.repeat(steps, leg, axis=1)[:, :num_frames]
        width = np.cumsum(steps[2])
        width += rng.uniform(-limit, limit) - width[num_frames // 2]
        scale = np.exp(drawing.to_and_fro(width, -limit, limit) if len(doings) > 1 else width)
        # pixels of the frame become pixels of the ground
        place = rng.uniform(0, self.ground_px, (2, 1)) + np.cumsum(steps[:2] * scale, axis=1)
        return np.concatenate([place, scale[None]]).T

    def _look(self, ground: np.ndarray, way: np.ndarray) -> np.ndarray:
        """Draw what the camera sees, bilinear: uint8 [T, S, S, 3]."""
        offsets = np.arange(self.side_px) - (self.side_px - 1) / 2
        frames = np.empty((len(way), self.side_px, self.side_px, 3), np.uint8)
        for frame, (x, y, scale) in zip(frames, way, strict=True):
            picture = ground
            for axis, centre in enumerate((y, x)):
                at = centre + scale * offsets
                low = np.floor(at).astype(int)
                weight = (at - low).reshape([-1 if i == axis else 1 for i in range(3)])
                first, second = (picture.take((low + k) % self.ground_px, axis=axis) for k in (0, 1))
                picture = first * (1 - weight) + second * weight
            frame[:] = drawing.to_bytes(picture)
        return frames

    def _ground(self, texture: str, rng: np.random.Generator) -> np.ndarray:
        """Draw ground of two colours in a pattern, with smooth shade and grain: [G, G, 3]. It wraps around."""
        pattern = self._pattern(texture, rng)[..., None]
        dark, light = rng.uniform(0.05, 0.4, 3), rng.uniform(0.6, 0.95, 3)
        shade = 0.06 * self._smooth(6, rng) + 0.05 * self._smooth(64, rng)
        return np.clip(dark + pattern * (light - dark) + shade[..., None], 0, 1)

    def _pattern(self, texture: str, rng: np.random.Generator) -> np.ndarray:
        """Draw a pattern of 0 to 1: [G, G]."""
        if texture == "noise":
            return _levels(0.3 * (self._smooth(16, rng) + self._smooth(32, rng) + 0.7 * self._smooth(64, rng)))
        if texture == "blobs":
            return _levels(2.5 * (self._smooth(int(rng.integers(28, 40)), rng) - 0.7))
        along = np.arange(self.ground_px) * math.tau / self.ground_px
        bend, waves = self._smooth(8, rng), int(rng.integers(12, 20))
        if texture == "stripes":
            right, down = ((0, waves), (waves, 0), (waves * 2 // 3, waves * 2 // 3), (waves * 2 // 3, -waves * 2 // 3))[
                rng.integers(4)
            ]
            return _levels(2 * np.sin(right * along[None] + down * along[:, None] + bend))
        across, upright = (
            np.sin(waves // 2 * at + 0.7 * bent) for at, bent in ((along[None], bend), (along[:, None], bend.T))
        )
        return _levels(4 * across * upright)

    def _smooth(self, cells: int, rng: np.random.Generator) -> np.ndarray:
        """Draw smooth brightness of cells x cells that wraps around: [G, G], mean 0, standard deviation 1."""
        coarse, at = rng.random((cells, cells)), np.arange(self.ground_px) * cells / self.ground_px
        low = at.astype(int)
        weight = (at - low) ** 2 * (3 - 2 * (at - low))
        rows = coarse[low] * (1 - weight)[:, None] + coarse[(low + 1) % cells] * weight[:, None]
        smooth = rows[:, low] * (1 - weight) + rows[:, (low + 1) % cells] * weight
        normal: np.ndarray = (smooth - smooth.mean()) / smooth.std()
        return normal


def _levels(pattern: np.ndarray) -> np.ndarray:
    """Cut a pattern around 0 to 0..1."""
    levels: np.ndarray = np.clip(0.5 + pattern, 0, 1)
    return levels
