"""What the small worlds have in common: long films without a label to learn from, short labelled clips to be measured.

Each video is a function of its world and its number alone. Clips of a split run through all combinations of the labels
of what happens in turn, so that each is as frequent as any other and none tells of another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final

import numpy as np

from vjepa.counter_rng import generator
from vjepa.data.tracks import Tracks

CELLS: Final = 5  # of a label of a place, in each direction


@dataclass(frozen=True)
class Video:
    """Name one video. kind: film or clip. place: its number among the clips of its split."""

    number: int
    kind: str
    split: str
    place: int


@dataclass(frozen=True)
class World(ABC):
    """Hold everything that the files of a world depend on; `version` is raised where the code draws otherwise.

    name: of the world and its random stream. wanted: label -> its values, for the labels that clips are balanced by.
    things: kinds of things that `marks` tells apart; none where there is only ground. lossless: whether films keep
    what is drawn.
    """

    name: ClassVar[str]
    wanted: ClassVar[Mapping[str, Sequence[str]]]
    things: ClassVar[Sequence[str]] = ()
    tracks_info: ClassVar[Tracks | None] = None
    lossless: ClassVar[bool] = False

    version: int = 1
    seed: int = 1
    side_px: int = 64
    fps: int = 8
    num_films: int = 64
    film_frames: int = 400
    keyframe_frames: int = 24  # at most so many from one to the next, which a random window waits for
    clip_frames: int = 8
    train_clips: int = 960
    selection_clips: int = 320
    val_clips: int = 512

    def videos(self) -> list[Video]:
        """List the videos: films, then the clips of each split."""
        parts = [("film", "train", self.num_films), ("clip", "train", self.train_clips)]
        parts += [("clip", "selection", self.selection_clips), ("clip", "val", self.val_clips)]
        videos: list[Video] = []
        for kind, split, num in parts:
            videos += [Video(len(videos) + place, kind, split, place) for place in range(num)]
        return videos

    def render(self, video: Video) -> tuple[np.ndarray, dict[str, str]]:
        """Draw a video: its frames, uint8 [T, S, S, 3], and its labels, of which a film has none."""
        if video.kind == "film":
            return self.film(video.number, self.film_frames), {}
        return self.clip(video.number, self.wanted_of(video))

    def wanted_of(self, clip: Video) -> dict[str, str]:
        """Give the combination of labels whose turn it is."""
        values, place = {}, clip.place
        for label, names in self.wanted.items():
            place, choice = divmod(place, len(names))
            values[label] = names[choice]
        return values

    @property
    def recipe(self) -> dict[str, Any]:
        return asdict(self)

    def draw_row(self, video: Video) -> tuple[np.ndarray, dict[str, str]]:
        """Draw a video, uint8 [T, S, S, 3], beside its columns of the clip index."""
        frames, labels = self.render(video)
        return frames, {"kind": video.kind, "split": video.split, **labels}

    def tracks(self, video: Video) -> tuple[np.ndarray, np.ndarray]:
        """Give action and state of each frame, fp32 [T, A] and [T, S], in a world that `tracks_info` says has them."""
        raise NotImplementedError

    def rng(self, number: int) -> np.random.Generator:
        """Make the generator of video `number`."""
        return generator(self.seed, self.name, number)

    def draw_marks(self, video: Video) -> np.ndarray | None:
        """Say which thing is where in a clip: uint8 [T, S, S], 0 for the ground, k for things[k - 1]; None for a film,
        and where there are no things.
        """
        if video.kind == "film" or not self.things:
            return None
        return self.marks(video.number, self.wanted_of(video))

    def marks(self, number: int, wanted: Mapping[str, str]) -> np.ndarray:
        """Mark the things of `clip(number, wanted)`: uint8 [T, S, S]. What is drawn over another hides it."""
        raise NotImplementedError

    @abstractmethod
    def film(self, number: int, num_frames: int) -> np.ndarray:
        """Draw a film: uint8 [T, S, S, 3]."""

    @abstractmethod
    def clip(self, number: int, wanted: Mapping[str, str]) -> tuple[np.ndarray, dict[str, str]]:
        """Draw a clip in which happens what is `wanted`: uint8 [T, S, S, 3], and all of its labels."""
