"""The right frames, upright, from every decoder, from wherever the bytes are; every failure a DecodeError."""

import dataclasses
import io
import struct
import sys
import tarfile
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest
import torch
from conftest import brightest_quarter, level
from PIL import Image, ImageOps
from torch.nn import functional

from vjepa.data import decode
from vjepa.data.clip_index import IndexRow
from vjepa.data.decode import READERS, read_frames, torchcodec_library, upright
from vjepa.data.media import DecodeError, open_media, plain
from vjepa.data.pyav import open_video
from vjepa.data.stills import image_size, read_image

SHARED = Path(__file__).parents[2] / "shared" / "data" / "odd_videos"
VIDEO_DECODERS = [name for name in READERS if name not in ("image", "stack")]
RANDOM_ACCESS = [name for name in VIDEO_DECODERS if name != "pyav"]
MAX_DIFFERENCE = 2.5  # mean levels of 255 by which two libraries may differ in colour conversion


@pytest.fixture(params=VIDEO_DECODERS)
def decoder(request):
    if request.param == "torchcodec" and torchcodec_library() is None:
        pytest.skip("torchcodec is not installed, or FFmpeg's libraries are not")
    return request.param


def in_order(path):
    """The plain twin: every frame in the order in which PyAV yields it, and the row of an index that is made
    from them.
    """
    with open_video(path) as (container, stream):
        aspect, frames = float(stream.sample_aspect_ratio or 1), list(container.decode(stream))
        rotation, reformatter = frames[0].rotation % 360, av.video.reformatter.VideoReformatter()
        pictures = [upright(reformatter, frame, rotation, aspect) for frame in frames]
    times = np.array([frame.time for frame in frames], np.float64)
    times_s = np.sort(times) if np.isfinite(times).all() else np.arange(len(times)) / 25
    height, width, _ = pictures[0].shape
    fps = (len(times) - 1) / (times_s[-1] - times_s[0]) if len(times) > 1 else 25.0
    row = IndexRow(
        0,
        str(path),
        None,
        None,
        0,
        times_s[0],
        times_s[-1] + 1 / fps,
        len(times),
        fps,
        times_s,
        width,
        height,
        rotation,
        aspect,
        "pyav",
    )
    return pictures, row


def row_of(path, **changes):
    return dataclasses.replace(in_order(path)[1], **changes)


def still_of(path, height, width, **changes):
    return dataclasses.replace(
        IndexRow(0, str(path), None, None, 0, 0.0, 1.0, 1, 1.0, None, width, height, 0, 1.0, "image"), **changes
    )


def texture(i, height, width):
    """A picture that moves and has detail of all sizes: uint8 [height, width, 3], another one for each i."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin((x + 3 * i) / a) * np.cos((y - 2 * i) / b) for a, b in ((2.5, 3.1), (7.0, 5.0), (21.0, 34.0))]
    grey = 128 + 40 * waves[0] + 40 * waves[1]  # fine detail without colour: chroma has half the resolution
    return np.stack([grey + 30 * waves[2], grey - 10 * waves[2], grey - 30 * waves[2]], -1).astype(np.uint8)


@pytest.fixture
def make_film(tmp_path):
    """make_film("a.mkv", ...) writes a film into the folder of the test; see `write_film`."""
    return lambda name, **options: write_film(tmp_path / name, **options)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """films(name) -> what `in_order` says of that one of FILMS, which is written once."""
    folder = tmp_path_factory.mktemp("films")
    return cache(lambda name: in_order(write_film(folder / name, **FILMS[name])))


def write_film(
    path, codec="libx264", num_frames=90, rate=30, size=(96, 64), first_ms=0, pix_fmt="yuv420p", rotation=0, **options
):
    """Textured frames, each another one; `options` are those of the encoder. Returns the path."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={key: str(value) for key, value in options.items()})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(num_frames):
            frame = av.VideoFrame.from_ndarray(texture(i, size[1], size[0]), format="rgb24")
            frame.pts, frame.time_base = i + first_ms * rate // 1000, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def tar_of(paths, tar):
    """Name -> (offset, length) of each file in the shard."""
    with tarfile.open(tar, "w") as shard:
        for path in paths:
            shard.add(path, path.name)
    with tarfile.open(tar) as shard:
        return {member.name: (member.offset_data, member.size) for member in shard}


def numbers(frames):
    """Frame numbers below 43, read off the brightness."""
    levels = np.array([level(i) for i in range(43)])
    return np.abs(levels - frames.mean((1, 2, 3))[:, None]).argmin(1).tolist()


def reduced(frames, size):
    """Full decoding, then PyTorch's antialiased reduction."""
    frames = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    return functional.interpolate(frames, size=size, mode="bilinear", antialias=True).permute(0, 2, 3, 1).numpy()


def difference(a, b):
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).mean()


@pytest.mark.parametrize("ids", [[0, 4, 8, 39], [39, 0, 17], [7], [5, 5, 6, 6, 6], list(range(40))])
@pytest.mark.fast
def test_delivers_the_wanted_frames_in_the_wanted_order(make_video, decoder, ids):
    row = row_of(make_video("a.mp4", 40), decoder=decoder)
    frames = read_frames(row, np.array(ids))
    assert frames.dtype == np.uint8 and frames.shape == (len(ids), 64, 64, 3)
    assert numbers(frames) == ids


@pytest.mark.parametrize("rate", ["constant", "rounded to ms", "variable"])
@pytest.mark.fast
def test_frames_are_counted_from_the_first_of_the_clip(make_video, decoder, rate):
    row = row_of(
        make_video("a.mp4", 40, times_ms=[10_000 + 40 * i + 90 * (i > 20) * (rate == "variable") for i in range(40)])
    )
    times_s = row.times()[15:35]
    if rate != "variable":
        assert row.fps == pytest.approx(25)
    clip = dataclasses.replace(
        row,
        decoder=decoder,
        first_frame=15,
        num_frames=20,
        start_s=times_s[0] + (9e-4 if rate == "rounded to ms" else 0),  # what an index may be off by
        end_s=times_s[-1] + 0.04,
        times_s=times_s if rate == "variable" else None,
    )
    assert numbers(read_frames(clip, np.array([0, 3, 19, 7]))) == [15, 18, 34, 22]


FILMS = {
    "B-frames, edit list.mp4": {"g": 30, "bf": 3},
    "from 10 s.mp4": {"g": 30, "bf": 2, "first_ms": 10_000},
    "open groups.mkv": {"g": 15, "x264-params": "open-gop=1:bframes=3:b-adapt=0"},
    "from 10 s.mkv": {"g": 12, "first_ms": 10_000},
    "one group.mp4": {"g": 250},
    "MPEG-4.mp4": {"codec": "mpeg4", "g": 12, "bf": 2},
    "MPEG-2.mkv": {"codec": "mpeg2video", "g": 12, "bf": 2},
    "every frame a key.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "no B-frames.avi": {"g": 20, "bf": 0},
    "stream.ts": {"g": 15, "bf": 2},
    "VP9.webm": {"codec": "libvpx-vp9", "g": 20, "cpu-used": 8, "deadline": "realtime", "num_frames": 45},
}


# On these a library may give another frame or none; the scan finds out and takes another decoder.
INEXACT = {
    "decord": {"open groups.mkv", "MPEG-4.mp4", "MPEG-2.mkv", "no B-frames.avi", "stream.ts"},
    "torchcodec": {"no B-frames.avi", "stream.ts"},
    "pyav_seek": set(),
    "pyav": set(),
}


@pytest.mark.parametrize("name", FILMS)
def test_random_access_equals_reading_in_order(films, decoder, name):
    pictures, row = films(name)
    n, rng = len(pictures), np.random.default_rng(0)
    for ids in (
        [0],
        [n - 1],
        range(n),
        range(n - 9, n),
        range(13, 20),
        [1, 2, n // 2, n // 2 + 1, n - 2],
        *(rng.integers(0, n, 4) for _ in range(6)),
    ):
        try:
            frames = read_frames(dataclasses.replace(row, decoder=decoder), np.array(ids))
        except DecodeError:
            assert name in INEXACT[decoder]
            continue
        for i, frame in zip(ids, frames, strict=True):
            away = [difference(frame, pictures[k]) for k in range(max(0, i - 1), min(n, i + 2))]
            away_from_it = difference(frame, pictures[i])
            right = away_from_it == min(away) <= (0 if decoder.startswith("pyav") else MAX_DIFFERENCE)
            assert right or name in INEXACT[decoder], (i, away)


class Counting:
    """A PyAV container that counts what is decoded."""

    def __init__(self, container):
        self._container, self.num_frames, self.num_seeks = container, 0, 0

    def seek(self, *args, **kwargs):
        self.num_seeks += 1
        self._container.seek(*args, **kwargs)

    def decode(self, stream):
        for frame in self._container.decode(stream):
            self.num_frames += 1
            yield frame


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts"])
@pytest.mark.parametrize(
    ("ids", "most"),
    [
        ([299], 30),
        ([0, 1, 2], 3),
        ([5, 299], 36),
        ([31, 33, 36, 39], 10),
        ([100, 110, 118], 29),
        (range(0, 300, 20), 300),
    ],
    ids=str,
)
def test_seeking_decodes_no_more_than_it_must(make_video, name, ids, most):
    path = make_video(name, 300, fps=10, gop=30)
    row = row_of(path)
    with open_video(path) as (container, stream):
        counting = Counting(container)
        seeker = decode._Seeker(counting, stream)
        times_s, tolerances_s = decode._times(row, np.array(ids))
        found = [seeker.frame_at(*pair).time for pair in zip(times_s, tolerances_s, strict=True)]
    assert found == pytest.approx(times_s)
    if name in (
        "a.mkv",
        "a.ts",
    ):  # before a first seek they have no index of keyframes: up to 4 s are read from the start
        most += 40 if ids[0] else 0
    assert counting.num_frames <= most, counting.num_seeks


@pytest.mark.parametrize(
    ("rotation", "corner"), [(90, "bottom left"), (-90, "top right"), (180, "bottom right"), (0, "top left")]
)
@pytest.mark.parametrize("size", [None, (48, 32), (120, 140)])
@pytest.mark.fast
def test_frames_are_upright(make_video, decoder, rotation, corner, size):
    row = row_of(make_video("a.mp4", 4, size=(96, 64), rotation=rotation, mark=True), decoder=decoder)
    assert (row.height, row.width) == ((96, 64) if rotation % 180 else (64, 96))
    frame = read_frames(row, np.array([0]), size)[0, ..., 0].astype(int)
    assert frame.shape == (size or (row.height, row.width))
    assert brightest_quarter(frame) == corner


@pytest.mark.parametrize(("aspect", "size"), [(Fraction(3, 2), (96, 48)), (Fraction(1, 2), (64, 96))])
@pytest.mark.fast
def test_pixels_are_made_square(make_video, decoder, aspect, size):
    row = row_of(make_video("a.mp4", 4, size=(64, 48), aspect=aspect), decoder=decoder)
    assert (row.width, row.height) == size
    assert read_frames(row, np.array([0, 1])).shape == (2, size[1], size[0], 3)
    assert read_frames(row, np.array([0, 1]), (24, 40)).shape == (2, 24, 40, 3)


@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize("size", [(36, 64), (64, 64), (71, 33), (200, 300)])
def test_frames_of_a_wanted_size_are_those_of_full_size_reduced(make_film, decoder, rotation, size):
    path = make_film("a.mp4", size=(384, 216), num_frames=4, rotation=rotation, qp=4)
    pictures, row = in_order(path)
    frames = read_frames(dataclasses.replace(row, decoder=decoder), np.array([0, 3]), size)
    assert frames.shape == (2, *size, 3)
    assert difference(frames, reduced(np.stack([pictures[0], pictures[3]]), size)) < 3


@pytest.mark.parametrize("where", ["shard", "remote", "remote shard"])
@pytest.mark.fast
def test_bytes_may_be_in_a_shard_or_behind_an_address(make_video, tmp_path, decoder, where):
    path = make_video("b.mp4", 20)
    Image.fromarray(texture(0, 48, 64)).save(tmp_path / "c.png")
    places = tar_of([make_video("a.mp4", 3), path, tmp_path / "c.png"], tmp_path / "x.tar")
    row, still = row_of(path, decoder=decoder), still_of(tmp_path / "c.png", 48, 64)
    memory = fsspec.filesystem("memory")
    for name in ("b.mp4", "c.png", "x.tar"):
        memory.pipe_file(f"/decode/{name}", (tmp_path / name).read_bytes())
    for whole, ids in ((row, np.array([0, 13, 19])), (still, np.array([0]))):
        name = Path(whole.uri).name
        offset, length = places[name]
        changes = {
            "shard": {"uri": str(tmp_path / "x.tar"), "offset": offset, "length": length},
            "remote": {"uri": f"memory://decode/{name}"},
            "remote shard": {"uri": "memory://decode/x.tar", "offset": offset, "length": length},
        }
        assert (read_frames(dataclasses.replace(whole, **changes[where]), ids) == read_frames(whole, ids)).all()


@pytest.mark.fast
def test_a_shard_is_read_by_one_range(tmp_path, monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/decode/x", bytes(range(100)))
    ranges, whole = [], type(memory).cat_file
    monkeypatch.setattr(
        type(memory),
        "cat_file",
        lambda self, path, start=None, end=None, **kw: ranges.append((start, end)) or whole(self, path, start, end),
    )
    assert open_media("memory://decode/x", 10, 5).read() == bytes(range(10, 15))
    assert ranges == [(10, 15)]
    assert open_media(str(tmp_path)) == str(tmp_path)  # a local file is left to the decoder, which reads what it needs


@pytest.mark.parametrize("prefix", ["memory://decode/", "local"])
@pytest.mark.fast
def test_a_slice_that_cannot_be_read_says_why(tmp_path, prefix):
    (tmp_path / "x.tar").write_bytes(bytes(100))
    fsspec.filesystem("memory").pipe_file("/decode/x.tar", bytes(100))
    prefix = f"{tmp_path}/" if prefix == "local" else prefix
    assert len(open_media(f"{prefix}x.tar", 90, 10).read()) == 10
    for offset, length in ((90, 11), (100, 1), (1000, 10), (0, 1 << 60)):
        with pytest.raises(
            DecodeError, match=rf"bytes {offset} to {offset + length} reach beyond the end of the shard x\.tar"
        ):
            open_media(f"{prefix}x.tar", offset, length)
    for half in ((5, None), (None, 5)):
        with pytest.raises(DecodeError, match="a slice of a shard has both"):
            open_media(f"{prefix}x.tar", *half)
    with pytest.raises(DecodeError, match=r"[Nn]o such file"):
        open_media(f"{prefix}y.tar", 0, 5)


@pytest.mark.fast
def test_an_address_needs_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DecodeError, match=r"^[Ii]nstall s3fs .*video-jepa\[remote\]"):
        open_media("s3://bucket/a.mp4")
    with pytest.raises(DecodeError, match="Protocol not known: nosuch"):
        open_media("nosuch://a.mp4")
    with pytest.raises(DecodeError, match="no such file"):
        open_media("memory://decode/missing.mp4")


@pytest.mark.parametrize("decoder", ["decord", "torchcodec"])
@pytest.mark.parametrize("name", FILMS)
def test_a_decoder_that_is_not_installed_is_replaced_by_one_that_gives_the_same_frames(
    films, monkeypatch, decoder, name
):
    pictures, row = films(name)
    monkeypatch.setattr(decode, "decord", None)
    monkeypatch.setattr(decode, "torchcodec_library", lambda: None)
    assert not decode.is_installed(decoder) and decode.is_installed("pyav") and decode.is_installed("image")
    n = len(pictures)
    for ids in ([0], [n - 1], range(n - 9, n), [1, n // 3, n // 2, n // 2 + 1]):
        frames = read_frames(dataclasses.replace(row, decoder=decoder), np.array(ids))
        assert all((frame == pictures[i]).all() for i, frame in zip(ids, frames, strict=True)), ids


@pytest.mark.fast
def test_where_the_replacement_cannot_seek_the_file_is_read_in_order(make_video, monkeypatch):
    row = row_of(make_video("a.mp4", 20), decoder="decord")
    monkeypatch.setattr(decode, "decord", None)
    wrong = dataclasses.replace(row, times_s=row.times() + 0.06)  # at which there is no frame
    with pytest.raises(DecodeError, match="no frame at"):
        read_frames(dataclasses.replace(wrong, decoder="pyav_seek"), np.array([3]))
    assert numbers(read_frames(wrong, np.array([3, 17]))) == [3, 17]


@pytest.mark.parametrize(("start", "most"), [(0, 35), (25, 60), (29, 65), (30, 35)])
def test_reading_on_over_a_keyframe_decodes_no_frame_twice(films, start, most):
    """Although the keyframe is decoded before frames that are shown before it."""
    _, row = films("B-frames, edit list.mp4")  # a keyframe every 30 frames
    with open_video(row.uri) as (container, stream):
        counting = Counting(container)
        seeker = decode._Seeker(counting, stream)
        for pair in zip(*decode._times(row, np.arange(start, start + 35)), strict=True):
            seeker.frame_at(*pair)
    assert counting.num_frames <= most, counting.num_seeks


@pytest.mark.parametrize("decoder", ["pyav_seek", "torchcodec"])
@pytest.mark.fast
def test_a_frame_at_another_time_is_refused(make_video, decoder):
    if decoder == "torchcodec" and torchcodec_library() is None:
        pytest.skip("torchcodec is not installed, or FFmpeg's libraries are not")
    row = row_of(make_video("a.mp4", 20), decoder=decoder)
    for times_s in (
        row.times() + 0.06,
        row.times() - 0.06,
        row.times() * 1.05,
        np.append(row.times()[:-1], 99.0),
        np.repeat(row.times()[::2], 2),
    ):
        with pytest.raises(DecodeError, match=r"no frame at \d+\.\d{3} s, the index says one"):
            read_frames(dataclasses.replace(row, times_s=times_s), np.array([3, 19]))


@pytest.mark.fast
def test_seeking_refuses_timestamps_that_run_backwards():
    class Frame:
        def __init__(self, pts):
            self.pts, self.time, self.key_frame = pts, pts / 10, True

    class Stream:
        start_time, time_base, average_rate, index_entries = 0, Fraction(1, 10), 10, ()

    class Container:
        def decode(self, stream):
            return iter(map(Frame, [0, 2, 1, 3]))

    seeker = decode._Seeker(Container(), Stream())
    assert seeker.frame_at(0.0, 0.03).pts == 0
    with pytest.raises(DecodeError, match=r"run backwards, at 0\.100 s"):
        seeker.frame_at(0.3, 0.03)


@pytest.mark.fast
def test_a_still_is_one_frame_turned_by_its_exif(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    frames = read_frames(still_of(tmp_path / "a.png", 9, 6), np.array([0, 0]))
    assert (frames == np.rot90(picture, -1)).all() and frames.shape == (2, 9, 6, 3)
    assert (read_image(io.BytesIO((tmp_path / "a.png").read_bytes())) == frames[0]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_what_pillow_makes_of_it(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(texture(0, 12, 20)).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)
    assert image_size(tmp_path / "a.png") == expected.shape[:2]


def test_a_tag_of_a_wrong_type_does_not_keep_a_picture_from_being_turned(tmp_path):
    """The resolution as text, not a fraction: writing EXIF anew, as Pillow's own turning does, ends in an error."""
    pixels = texture(0, 16, 24)
    entries = [struct.pack("<HHI4s", 0x0112, 3, 1, b"\6\0\0\0"), struct.pack("<HHI4s", 0x011A, 2, 4, b"abc\0")]
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + b"\0" * 4
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=b"Exif\0\0" + tiff)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(pixels, -1))


def test_damaged_exif_ends_nothing(tmp_path):
    """200 pictures with 1 to 8 damaged bytes of their EXIF: a picture, or a reason on one line."""
    exif, rng, path = Image.Exif(), np.random.default_rng(0), tmp_path / "a.jpg"
    exif.update({0x0112: 6, 0x010E: "words", 0x011A: 72.0, 0x0132: "2024:01:01 00:00:00"})
    Image.fromarray(texture(0, 16, 24)).save(path, exif=exif)
    whole = path.read_bytes()
    begin = whole.index(b"Exif\0\0") + 6
    end = begin + len(exif.tobytes()) - 6
    seen = set()
    for _ in range(200):
        damaged = bytearray(whole)
        for at in rng.integers(begin, end, rng.integers(1, 9)):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            seen.add((read_image(path).shape, image_size(path)))
        except DecodeError as error:
            assert "\n" not in str(error)
    assert {((24, 16, 3), (24, 16)), ((16, 24, 3), (16, 24))} >= seen and len(seen) == 2


@pytest.mark.parametrize("extension", ["jpg", "png"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(128, 128), (100, 250), (700, 900)])
def test_a_still_of_a_wanted_size(tmp_path, extension, orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{extension}"
    Image.fromarray(texture(0, 480, 640)).save(path, exif=exif)
    full = read_image(path)
    assert full.shape == ((480, 640, 3) if orientation == 1 else (640, 480, 3))
    small = read_frames(still_of(path, *full.shape[:2]), np.array([0]), size)
    assert small.shape == (1, *size, 3) and difference(small, reduced(full[None], size)) < 3


@pytest.mark.fast
def test_an_image_of_16_bits_is_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DecodeError, match="mode I;16, not of 8 bits"):
        read_image(tmp_path / "a.png")


@pytest.mark.fast
def test_an_animated_gif_is_a_video(tmp_path):
    pages = [Image.fromarray(np.full((32, 48, 3), level(i), np.uint8)) for i in range(12)]
    pages[0].save(tmp_path / "a.gif", save_all=True, append_images=pages[1:], duration=100)
    for decoder in ("pyav", "pyav_seek"):
        assert numbers(read_frames(row_of(tmp_path / "a.gif", decoder=decoder), np.array([0, 5, 11]))) == [0, 5, 11]


@pytest.mark.parametrize("name", ["-a.mp4", "--help.mp4", "a\nb.mp4", "%03d.mp4", "a: b.mp4", "ä 'b' \"c\".mp4"])
@pytest.mark.fast
def test_names_of_files_mean_nothing(make_video, decoder, name):
    row = row_of(make_video(name, 4), decoder=decoder)
    assert numbers(read_frames(row, np.array([0, 3]))) == [0, 3]


@pytest.mark.fast
def test_metadata_that_is_not_utf8(make_film, decoder):
    path = make_film("a.avi", codec="mpeg4", num_frames=6, bf=0)
    data = path.read_bytes()
    at = data.index(b"ISFT") + 8
    path.write_bytes(data[:at] + b"\xff\xfe\xe9" + data[at + 3 :])
    pictures, row = in_order(path)
    assert (
        difference(read_frames(dataclasses.replace(row, decoder=decoder), np.array([5]))[0], pictures[5])
        < MAX_DIFFERENCE
    )


@pytest.mark.fast
def test_every_failure_is_a_decode_error(make_video, tmp_path):
    row = row_of(make_video("a.mp4", 8))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    still = still_of(tmp_path / "a.png", 8, 8)
    (tmp_path / "garbage.mp4").write_bytes(b"no video " * 100)
    (tmp_path / "short.mp4").write_bytes(Path(row.uri).read_bytes()[:600])
    (tmp_path / "empty.mp4").touch()
    for decoder in READERS:
        for path in ("garbage.mp4", "short.mp4", "missing.mp4", ".", "empty.mp4"):
            for offset, length in ((None, None), (0, 600), (0, 0)):
                with pytest.raises(DecodeError, match=r"\A.+\Z"):
                    read_frames(
                        dataclasses.replace(
                            row, uri=str(tmp_path / path), decoder=decoder, offset=offset, length=length
                        ),
                        np.array([0]),
                    )
    for wrong in ([8], [-1, 0]):
        with pytest.raises(DecodeError, match="wanted, it has 8"):
            read_frames(row, np.array(wrong))
    for decoder in VIDEO_DECODERS:  # the file became shorter, or smaller, since its scan: no hang, no wrong frame
        with pytest.raises(DecodeError, match=r"8|9|no frame|less than|changed"):
            read_frames(dataclasses.replace(row, num_frames=99, times_s=None, decoder=decoder), np.array([9]))
        with pytest.raises(DecodeError, match=r"8|9|no frame|less than|changed"):
            read_frames(
                dataclasses.replace(row, first_frame=5, times_s=row.times()[:8] + 5 / row.fps, decoder=decoder),
                np.array([7]),
            )
        with pytest.raises(DecodeError, match="changed"):
            read_frames(dataclasses.replace(row, width=32, decoder=decoder), np.array([0]))
    with pytest.raises(DecodeError, match="changed"):
        read_frames(dataclasses.replace(row, width=32), np.array([0]), (16, 16))
    with pytest.raises(DecodeError, match="changed"):
        read_frames(dataclasses.replace(still, width=32), np.array([0]))
    with pytest.raises(DecodeError, match="decoder 'guess' is none of decord, torchcodec"):
        read_frames(dataclasses.replace(row, decoder="guess"), np.array([0]))


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("[Errno 2] No such file or directory: '/a/b.mp4'", "No such file or directory"),
        (
            "[12:59:59] /src/video/video_reader.cc:270: [/a/b.mp4] Failed to measure duration.\nStack trace:\n[bt] (0)",
            "Failed to measure duration.",
        ),
        ("Decoder, /src/Decoder.cpp:41, Could not open input file", "Could not open input file"),
        ("", "ValueError"),
        ("\n  why  \n", "why"),
    ],
)
@pytest.mark.fast
def test_messages_are_one_plain_line(message, said):
    assert plain(ValueError(message)) == said


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"real input {SHARED} is absent")
def test_random_access_in_odd_videos_is_right_or_refused():
    exact, refused = set(), set()
    for path in sorted(SHARED.iterdir()):
        try:
            pictures, row = in_order(path)
        except (DecodeError, IndexError):  # no video
            continue
        n = len(pictures)
        for ids in ([0, 1, n - 1], range(n // 2, n // 2 + 3), [n // 3, 2 * n // 3]):
            ids = np.unique(np.clip(ids, 0, n - 1))
            try:
                frames = read_frames(dataclasses.replace(row, decoder="pyav_seek"), ids)
                exact.add(path.name)
                assert all((frame == pictures[i]).all() for i, frame in zip(ids, frames, strict=True)), (path.name, ids)
            except DecodeError:
                refused.add(path.name)
    assert {
        "decord__video_90.mov",
        "moviepy__no_duration.webm",
        "torchcodec__av1_video.mkv",
        "streamio-ffmpeg__awesome movie.mov",
    } <= exact - refused
    assert len(exact - refused) >= 17 and {"mmaction2__test.avi", "opencv-doc__Megamind.avi"} <= refused
