"""Scan one file: measure by decoding what a header may lie about, in one pass in order.

A decoder may spin for ever in native code, or crash, so `scan` belongs into a process that can be killed:
`python -m data_prep.scanning.scan` is the program that `data_prep.scanning.scanner` asks.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, BinaryIO, Final

import numpy as np

from data_prep.child import Message, Say, serve
from data_prep.listing.entry import IMAGE_EXTENSIONS, STACK_EXTENSIONS, Entry
from data_prep.listing.places import file_facts, file_system, files_of_store, is_address, suffix
from data_prep.scanning.measure import Measurement, measure
from data_prep.scanning.options import FIRST_OF_SEVERAL, ScanOptions
from data_prep.scanning.random_access import TURNING, exact_decoder, keyframe_decoder
from data_prep.scanning.scenes import BLACK_BELOW, cut
from data_prep.scanning.stacks import axes_of, scan_stack
from data_prep.scanning.track import FileScan
from vjepa.data.clip_index import IndexRow
from vjepa.data.decode import MIRRORED
from vjepa.data.media import DecodeError, is_zarr, open_media, plain
from vjepa.data.stills import holds_several, read_image

_REASONS: Final = {  # part of the message of FFmpeg or Pillow: what it means
    "Invalid data": "not a video or image",
    "cannot identify": "not a video or image",
    "truncated": "damaged: it is cut short",
    "End of file": "damaged: it is cut short",
    "broken PNG": "damaged image",
    "data stream": "damaged image",
    "cannot load this image": "damaged image",
    "Not yet implemented": "of a kind that FFmpeg cannot decode",
    "decompression bomb": "an image of too many pixels",
}


def _nobody(**message: Any) -> None:
    """Drop the news that nobody waits for."""


def scan(
    entry: Entry, options: ScanOptions, excluded: Collection[str] = (), announce: Say = _nobody
) -> list[dict[str, Any]]:
    """Give the rows of one entry, as `FileScan.clips` cuts them. excluded, announce: see `look_into`."""
    return look_into(entry, options, excluded, announce).clips(options, entry.start_s, entry.end_s)


def look_into(
    entry: Entry,
    options: ScanOptions,
    excluded: Collection[str] = (),
    announce: Say = _nobody,
    most: int | None = None,
) -> FileScan:
    """Find out what there is to know of the file of an entry, all of it, whichever part the entry means.

    options: whether scenes are looked for. excluded: decoders that are not to be tried. announce: is told how far the
    scan has come: `facts` of the file, `num_frames` decoded in order, and before each clip that it reads `trying`, the
    name of a decoder. most: frames of a video to decode at most, where what follows is known to hang.
    """
    row: dict[str, Any] = {"first_frame": 0, "num_frames": 0, "rotation": 0, "sample_aspect": 1.0, "content_hash": None}
    try:
        facts = file_facts(entry.uri)
        row |= asdict(facts)
        announce(facts=asdict(facts))
        if facts.file_bytes == 0 or entry.length == 0:
            raise DecodeError("empty file")
        with _at_hand(entry) as media:
            row["content_hash"] = media.sha256()
            extension = suffix(entry.uri if entry.offset is None else entry.name)
            still = extension in IMAGE_EXTENSIONS | STACK_EXTENSIONS
            if still and (axes := axes_of(media.open(), extension, options)):
                return scan_stack(media.open(), row, extension[1:], axes, options.stack_fps)
            if still:
                return FileScan(row, clip=_scan_image(media, extension))
            return _scan_video(media, row, options, excluded, announce, most)
    except DecodeError as error:
        return FileScan(row, _reason(error))
    except OSError as error:
        return FileScan(row, plain(error))


@dataclass(frozen=True)
class _Bytes:
    """Say where the bytes of one file are, as `open_media` takes it."""

    uri: str
    offset: int | None
    length: int | None

    def open(self) -> str | BinaryIO:
        return open_media(self.uri, self.offset, self.length)

    def sha256(self) -> str:
        """Hash the bytes, into hex digits; of a Zarr store those of its files, each with its name."""
        digest = hashlib.sha256()
        if is_zarr(self.uri):
            files, path = file_system(self.uri)
            for name in sorted(files_of_store(self.uri)):
                digest.update(name.removeprefix(path).encode())
                with files.open(name, "rb") as file:
                    _feed(digest, file)
        else:
            media = self.open()
            with open(media, "rb") if isinstance(media, str) else media as file:
                _feed(digest, file)
        return digest.hexdigest()


def _feed(digest: Any, file: BinaryIO) -> None:
    while block := file.read(1 << 20):
        digest.update(block)


@contextmanager
def _at_hand(entry: Entry) -> Iterator[_Bytes]:
    """Bring the bytes of the entry to this machine, as every decoder that is tried reads them anew.

    The copy has no name, so that it does not outlive a kill.
    """
    if not is_address(entry.uri) or is_zarr(entry.uri):
        yield _Bytes(entry.uri, entry.offset, entry.length)
        return
    media = open_media(entry.uri, entry.offset, entry.length)
    with tempfile.TemporaryFile() as copy:
        copy.write(b"" if isinstance(media, str) else media.read())
        copy.flush()
        del media
        yield _Bytes(f"/dev/fd/{copy.fileno()}", 0, copy.tell())


def _scan_image(media: _Bytes, extension: str) -> dict[str, Any]:
    """Take a still for a video of one frame that lasts one second."""
    picture, several = read_image(media.open()), FIRST_OF_SEVERAL if holds_several(media.open()) else ""
    height, width, _ = picture.shape
    return {
        "start_s": 0.0, "end_s": 1.0, "num_frames": 1, "fps": 1.0,
        "keyframes_s": [0.0], "width": width, "height": height,
        "codec": extension[1:] + several, "bit_depth": 8, "decoder": "image",
        "motion_ratio": None, "black_ratio": float(picture.mean() / 255 < BLACK_BELOW), "frozen_ratio": None,
    }  # fmt: skip


def _scan_video(
    media: _Bytes,
    row: dict[str, Any],
    options: ScanOptions,
    excluded: Collection[str],
    announce: Say,
    most: int | None,
) -> FileScan:
    scene_threshold = options.scene_threshold if options.scenes else None
    measured = measure(media.open(), scene_threshold, lambda num_frames: announce(num_frames=num_frames), most)
    decoders: dict[str, Any] = {"decoder": "pyav", "keyframe_decoder": None}
    # random access goes by timestamps, and wants one size
    if measured.track.in_order and len(measured.track.sizes) == 1:
        whole, say = _whole(media, measured), lambda name: announce(trying=name)
        excluded = {*excluded, *(TURNING if whole.rotation >= MIRRORED else ())}
        whole = replace(whole, decoder=exact_decoder(whole, measured.samples, excluded, say))
        seeking = keyframe_decoder(whole, measured.samples, excluded, say)
        decoders = {"decoder": whole.decoder, "keyframe_decoder": seeking}
    return FileScan(row, clip=measured.columns | decoders, track=measured.track)


def _whole(media: _Bytes, measured: Measurement) -> IndexRow:
    """Describe the file as one clip."""
    frames = replace(measured.track.frames(), clock_starts=[], scene_starts=[])
    columns = cut(frames, ScanOptions())[0] | measured.columns | {"clip_id": -1, "decoder": "pyav"}
    columns |= {"keyframe_decoder": None, "uri": media.uri, "offset": media.offset, "length": media.length}
    times_s = columns["times_s"]
    columns["times_s"] = None if times_s is None else np.array(times_s)
    return IndexRow(**{field.name: columns[field.name] for field in fields(IndexRow) if field.name in columns})


def _reason(error: DecodeError) -> str:
    """Give one reason for what libraries say in many ways, so that reasons can be counted."""
    return next((reason for words, reason in _REASONS.items() if words.lower() in str(error).lower()), str(error))


def main() -> None:
    """Look into what `scan_file` of data_prep.scanning.scanner asks for."""

    def answer(request: Message, say: Say) -> None:
        entry, options = Entry(**request["entry"]), ScanOptions(**request["options"])
        say(found=look_into(entry, options, request["excluded"], say, request["most"]).to_json())

    serve(answer)


if __name__ == "__main__":
    main()
