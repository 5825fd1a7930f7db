"""The demo data set: real H.264 files in which what is shared across space can be learned.

In each video, copies of one handwritten digit (scikit-learn's `load_digits`) move together over a textured background
that stands still. Two labels: `motion`, one of 8 directions that no single frame tells apart, and `digit`. The splits
`train`, `selection` and `val` share no digit image; each of `train` makes two videos, each of the others one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import Any, ClassVar, Final

import numpy as np

from data_prep.first_run.digit_world import DigitVideo, DigitWorld, marks, render
from vjepa.counter_rng import generator
from vjepa.data.images import handwritten_digits

MOTIONS: Final = ("east", "north-east", "north", "north-west", "west", "south-west", "south", "south-east")
NUM_IMAGES: Final = 1797  # all of `load_digits`
SPLITS: Final = {"selection": 200, "val": 400}  # images; the rest is `train`
VIDEOS_PER_TRAIN_IMAGE: Final = 2


@dataclass(frozen=True)
class Demo:
    """Name the videos of the demo, each with its columns of the clip index."""

    name: ClassVar = "demo"
    fps: ClassVar = DigitWorld().fps
    keyframe_frames: ClassVar = None
    lossless: ClassVar = False
    things: ClassVar = tuple("0123456789")
    tracks_info: ClassVar = None

    @property
    def recipe(self) -> dict[str, Any]:
        return asdict(DigitWorld())

    def videos(self) -> list[tuple[DigitVideo, dict[str, str]]]:
        """List the videos, those of `train` last."""
        images, digits = handwritten_digits()
        order = generator(DigitWorld().seed, "demo", 1 << 32).permutation(len(images))[:NUM_IMAGES]
        train = order[sum(SPLITS.values()) :]
        places = np.concatenate([order, *[train] * (VIDEOS_PER_TRAIN_IMAGE - 1)]).tolist()
        found = []
        for number, (place, split) in enumerate(zip(places, _splits(len(places)), strict=True)):
            video = DigitVideo(number, images[place] / 16, number % len(MOTIONS))
            labels = {"motion": MOTIONS[video.motion], "digit": str(digits[place])}
            found.append((video, {**labels, "image": str(place), "split": split}))
        return found

    def tracks(self, video: Any) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    def draw_row(self, video: tuple[DigitVideo, dict[str, str]]) -> tuple[np.ndarray, dict[str, str]]:
        """Draw a video, uint8 [T, S, S, 3], beside its columns."""
        return render(DigitWorld(), video[0]), video[1]

    def draw_marks(self, video: tuple[DigitVideo, dict[str, str]]) -> np.ndarray:
        """Say where the digits are: uint8 [T, S, S], k for things[k - 1]."""
        return marks(DigitWorld(), video[0], int(video[1]["digit"]))


def _splits(num_videos: int) -> Iterator[str]:
    for name, num in SPLITS.items():
        yield from repeat(name, num)
    yield from repeat("train", num_videos - sum(SPLITS.values()))
