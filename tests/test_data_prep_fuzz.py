"""Damaged copies of valid files, the same ones at every run: each gets rows or a reason, and nothing hangs.

`pytest tests/test_data_prep_fuzz.py --fuzz-copies 1000 -s` damages a thousand and prints what became of them.
"""

import json
import os
import subprocess
import sys
import textwrap
from collections import Counter

import av
import numpy as np
from PIL import Image

from data_prep.engines import in_processes
from data_prep.listing.entry import Entry
from data_prep.scanning.options import ScanOptions
from data_prep.scanning.scanner import Scan
from vjepa.counter_rng import generator
from vjepa.data.clip_index import ClipIndex, write_index

SEED = 4
DEADLINE_S = 20.0
READ_DEADLINE_S = 20.0
VIDEOS = {
    "a.mp4": "libx264",
    "b.mkv": "libx264",
    "c.avi": "mpeg4",
    "d.webm": "libvpx",
    "e.ts": "mpeg2video",
    "f.gif": "gif",
    "g.mov": "mjpeg",
    "h.mp4": "libx265",
}


def pictures(num_frames=24):
    """uint8 [96, 128, 3] each: noise that moves."""
    rng = generator(SEED, "demo", 0)
    ground = np.kron(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    return [np.roll(ground, 3 * i, axis=1) for i in range(num_frames)]


def write_valid_files(folder):
    for name, codec in VIDEOS.items():
        if codec not in av.codecs_available:
            continue
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=12, options={"g": "8"})
            stream.height, stream.width = 96, 128
            stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
            for picture in pictures():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    for name in ("i.png", "j.jpg"):
        Image.fromarray(pictures(1)[0]).save(folder / name)
    return sorted(folder.iterdir())


def flip_bytes(content, rng):
    places = rng.integers(0, len(content), rng.integers(1, 40))
    content[places] ^= rng.integers(1, 256, len(places), dtype=np.uint8)
    return content


def flip_in_header(content, rng):
    return np.concatenate([flip_bytes(content[:200], rng), content[200:]])


def truncate(content, rng):
    return content[: rng.integers(1, len(content))]


def swap_blocks(content, rng):
    length = int(rng.integers(1, max(2, len(content) // 8)))
    a, b = sorted(rng.integers(0, len(content) - length, 2))
    first, second = content[a : a + length].copy(), content[b : b + length].copy()
    content[b : b + length], content[a : a + length] = first, second
    return content


def zero_range(content, rng):
    a = rng.integers(0, len(content))
    content[a : a + rng.integers(1, len(content) // 4)] = 0
    return content


def insert_bytes(content, rng):
    a = rng.integers(0, len(content))
    return np.concatenate([content[:a], rng.integers(0, 256, rng.integers(1, 500), dtype=np.uint8), content[a:]])


DAMAGES = [flip_bytes, flip_in_header, truncate, swap_blocks, zero_range, insert_bytes]


def damaged_copies(files, folder, count):
    for i in range(count):
        rng = generator(SEED, "demo", i + 1)
        source, damage = files[i % len(files)], DAMAGES[int(rng.integers(len(DAMAGES)))]
        path = folder / f"{i:04d}-{damage.__name__}{source.suffix}"
        path.write_bytes(damage(np.frombuffer(source.read_bytes(), np.uint8).copy(), rng).tobytes())
        yield Entry(str(path), path.name)


READER = textwrap.dedent(
    """
    import json, sys
    import numpy as np
    from vjepa.data.clip_index import ClipIndex
    from vjepa.data.decode import read_frames
    from vjepa.data.media import DecodeError
    index = ClipIndex.open(sys.argv[1])
    for i in range(int(sys.argv[2]), len(index)):
        print("reads", i, flush=True)
        row = index.row(i)
        for ids in ([0], [row.num_frames - 1], np.linspace(0, row.num_frames - 1, 4).astype(int)):
            try:
                frames = read_frames(row, np.array(ids))
                assert frames.shape == (len(ids), row.height, row.width, 3)
                print("right", i, flush=True)
            except DecodeError as error:
                print("refuses", i, json.dumps(f"{row.uri} {row.decoder}: {error}"), flush=True)
    """
)


def read_all(index):
    """Every row read in a process of its own: what it said, and the rows at which it died or was late."""
    said, lost, first = Counter(), [], 0
    while first < len(index):
        command = [sys.executable, "-c", READER, str(index.path), str(first)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        try:
            out = process.communicate(timeout=READ_DEADLINE_S + len(index))[0]
        except subprocess.TimeoutExpired:
            process.kill()
            out = process.communicate()[0]
        lines = [line.split(" ", 2) for line in out.splitlines()]
        said.update(word for word, *_ in lines)
        last = max(int(line[1]) for line in lines)
        if process.returncode:
            lost.append(index.row(last).uri)
        first = last + 1
    return said, lost


def test_damaged_files_never_stop_a_scan(tmp_path, request):
    count = request.config.getoption("--fuzz-copies")
    (tmp_path / "valid").mkdir()
    (tmp_path / "damaged").mkdir()
    files = write_valid_files(tmp_path / "valid")
    entries = list(damaged_copies(files, tmp_path / "damaged", count))
    options = ScanOptions()
    scans = [
        found.clips(options) for _, found in in_processes(enumerate(entries), Scan(options, DEADLINE_S), workers=1)
    ]
    assert len(scans) == count
    rows = [
        {"uri": entry.uri, "label_id": -1} | row for entry, some in zip(entries, scans, strict=True) for row in some
    ]
    statuses = Counter(row["status"] for row in rows)
    decoders = Counter(row["decoder"] for row in rows if row["status"] == "ok")
    assert all(status and "\n" not in status for status in statuses) and len({row["uri"] for row in rows}) == count
    assert statuses["ok"] > count / 3
    write_index(tmp_path / "x.parquet", [row for row in rows if row["status"] == "ok"])
    said, lost = read_all(ClipIndex.open(tmp_path / "x.parquet"))
    print(
        json.dumps({"copies": count, "statuses": statuses, "decoders": decoders, "reads": said, "lost": lost}, indent=1)
    )
    assert not lost
    assert not [
        status for status in statuses if status.startswith(("the scan failed", "the decoder crashed", "decoding"))
    ]
