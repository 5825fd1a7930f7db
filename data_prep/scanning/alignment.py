"""Hold the tracks of films against the frames that a scan found, and lay them into the rows of the index.

Sample k belongs to frame k. What does not fit keeps its row, with a status.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import numpy as np

from data_prep.listing.entry import Entry
from data_prep.listing.tracks import FileTracks
from vjepa.data.media import DecodeError
from vjepa.data.tracks import RowTracks, TrackInfo, Tracks

MISFIT: Final = "track: "  # a status that begins so is of a film that is well in itself
_SAME_RATE: Final = 0.05  # a track whose rate is as near to that of the film has its clock, up to its drift
_SAME_S: Final = 1e-3  # times that differ by less are those of the film

Rows = list[dict[str, Any]]


class TrackColumns:
    """Give the rows of entries their tracks. tracks: what they are, as the first that can be read says."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        """Read the first tracks of `entries`. Raises UserError where a chosen rotation is not in them."""
        self.tracks = Tracks()
        for read in (entry.tracks for entry in entries if entry.tracks):
            with suppress(DecodeError):  # of that film, whose status it will be
                self.tracks = read().tracks
                return

    def of(self, entry: Entry, rows: Rows) -> Rows:
        """Lay the tracks of an entry into its rows, in order, the clips of one file or part of it.

        Rows whose film is not usable stay as they are; others get the reason where the tracks do not fit.
        """
        if entry.tracks is None or not any("end_s" in row for row in rows):
            return rows
        try:
            found = entry.tracks()
            self._check_kind(found.tracks)
            tracks = fitted(found, frame_times(rows))
        except DecodeError as error:
            return [row | ({"status": f"{MISFIT}{error}"} if row["status"] == "ok" else {}) for row in rows]
        first = rows[0]["first_frame"]
        return [row | _columns(tracks, row["first_frame"] - first, row["num_frames"]) for row in rows]

    def _check_kind(self, found: Tracks) -> None:
        for name in ("action", "state"):
            one, usual = getattr(found, name), getattr(self.tracks, name)
            if (one and one.kind) != (usual and usual.kind):
                raise DecodeError(f"its {name} is {_named(one)}, unlike the first of the sources, {_named(usual)}")


def frame_times(rows: Rows) -> np.ndarray:
    """Collect when the frames of clips that follow each other come on screen: float64 [n]."""
    times = [
        row["start_s"] + np.arange(row["num_frames"]) / row["fps"] if times_s is None else np.array(times_s)
        for row in rows
        for times_s in [row.get("times_s")]
    ]
    return np.concatenate(times)


def fitted(found: FileTracks, film_s: np.ndarray) -> RowTracks:
    """Fit tracks to the n frames of a film, float64 [n] seconds: as many samples, and times that go with the frames.

    An action that is missing for the last frame is nan there. Times are kept where they are not those of the film. A
    track of a clock of its own, whose rate is another than that of the film (a container that says 60 fps of what was
    taken at 15 Hz), goes by the numbers of the frames alone. Raises DecodeError where they do not fit.
    """
    tracks, num = found.row, len(film_s)
    action = tracks.action
    if action is not None and len(action) == num - 1:
        action = np.concatenate([action, np.full((1, action.shape[1]), np.nan, np.float32)])
    for name, samples in (("state", tracks.state), ("action", action), ("times", tracks.times_s)):
        if samples is not None and len(samples) != num:
            raise DecodeError(f"{len(samples)} samples of {name} for {num} frames")
    if tracks.times_s is None or num < 2:
        return replace(tracks, action=action, times_s=None)
    apart_s, is_same = _apart(tracks.times_s, film_s, found.clock)
    off = np.flatnonzero(apart_s > np.median(np.diff(tracks.times_s)) / 2)
    if len(off):
        far_s = f"{apart_s[off[0]]:.3g} s"
        raise DecodeError(f"its time of frame {off[0]} is {far_s} from that of the film, more than half a frame")
    return replace(tracks, action=action, times_s=None if is_same else tracks.times_s)


def _apart(track_s: np.ndarray, film_s: np.ndarray, clock: str) -> tuple[np.ndarray, bool]:
    """Measure how far times of samples are from those of frames, float64 [n], and tell whether they are the same."""
    if clock == "film":
        return np.abs(track_s - film_s), True
    track_s, film_s = track_s - track_s[0], film_s - film_s[0]
    if clock == "start":
        return np.abs(track_s - film_s), True
    rate = float(track_s[-1] / film_s[-1]) if film_s[-1] > 0 else 0.0
    if abs(rate - 1) > _SAME_RATE:
        return np.zeros(len(track_s)), False
    return np.abs(track_s - rate * film_s), bool(np.abs(track_s - film_s).max() < _SAME_S)


def _columns(tracks: RowTracks, first: int, num: int) -> dict[str, Any]:
    """Cut the samples of a clip out of those of its film, flat as the index has them."""
    found = {"action": tracks.action, "state": tracks.state, "track_times_s": tracks.times_s}
    return {name: samples[first : first + num].ravel() for name, samples in found.items() if samples is not None}


def _named(info: TrackInfo | None) -> str:
    return ", ".join(info.names) if info else "none"
