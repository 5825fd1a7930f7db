"""What a scan is asked for: how videos are cut into clips, which clips are left out, and how long decoding may take."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import Final

from vjepa.errors import UserError

FIRST_OF_SEVERAL: Final = " (first of several)"  # at the end of `codec`: images with several frames or pages
# without a sign of progress: a second of frames in order, or a clip by a decoder that is tried on random access
DEADLINE_S: Final = 60.0
PAGES: Final = ("first", "channels", "frames")


@dataclass(frozen=True)
class ScanOptions:
    """Say how videos become clips; the defaults cut and leave out nothing.

    Scenes are cut first, then what is longer than `max_s`, then windows.
    """

    window_s: float | None = None  # seconds > 0; a window starts where the one before ends, the last one is shorter
    scenes: bool = False  # cut where the scene changes
    scene_threshold: float = 27.0  # > 0; change of hue, saturation and brightness that makes a new scene, of 255
    max_s: float | None = None  # seconds > 0; what is longer is cut into equal parts
    min_s: float = 0.0  # seconds; shorter clips are left out
    min_motion: float = 0.0  # share of white in [0, 1]; clips of less mean change from frame to frame are left out
    max_black: float = 1.0  # share of frames in [0, 1]; clips with more black ones are left out
    max_frozen: float = 1.0  # share of the time in [0, 1]; clips in which nothing changes for longer are left out
    pages: str = "first"  # what pages of a TIFF are: the first counts, channels of one picture, or frames
    axes: str = ""  # of arrays, a letter each: t, h, w, c; empty: hw, hwc, thwc by their number
    stack_fps: float = 1.0  # frames per second > 0 of arrays and of pages that are frames, which have no clock

    @property
    def measured_with(self) -> list[str | float | None]:
        """List what a scan of a file depends on; the rest says how clips are cut from it, and which are left out."""
        return [self.scene_threshold if self.scenes else None, self.pages, self.axes, self.stack_fps]

    def __post_init__(self) -> None:
        if self.pages not in PAGES:
            raise UserError(f"pages {self.pages}: give {', '.join(PAGES)}")
        if self.axes and not ({"h", "w"} <= set(self.axes) <= set("thwc") and len(set(self.axes)) == len(self.axes)):
            raise UserError(f"axes {self.axes}: a letter for each axis of an array, t h w c, h and w among them")
        for name in ("window_s", "max_s", "scene_threshold", "stack_fps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name} {value:g}: must be more than 0")
        if not 0 <= self.min_s < math.inf:
            raise UserError(f"min_s {self.min_s:g}: must be 0 or more")
        for name in ("min_motion", "max_black", "max_frozen"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name):g}: is a share, from 0 to 1")
        if self.scenes and importlib.util.find_spec("scenedetect") is None:
            raise UserError("scenes: PySceneDetect is not installed; pip install 'video-jepa[scenes]'")
