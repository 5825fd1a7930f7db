"""Shards: the bytes of the sources, found by index and by WebDataset; the same input gives the same bytes; nothing
changed gets in unseen.
"""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.copying import tar_shard
from data_prep.copying.shard import ShardOptions, make_shards, shard_name
from data_prep.scanning.build import build_index
from vjepa.data.clip_index import ClipIndex, write_index
from vjepa.data.decode import read_frames
from vjepa.data.media import DecodeError
from vjepa.data.order import sample_row
from vjepa.errors import UserError


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A few small videos and a still: name -> bytes."""
    import av

    folder = tmp_path_factory.mktemp("content")
    for i, name in enumerate(("a.mp4", "b.mkv", "c.MP4", "d.avi", "e.mp4")):
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("libx264" if name != "d.avi" else "mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for j in range(12):
                picture = np.full((32, 32, 3), 20 * i + 10 * j, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    Image.effect_noise((20, 10), 80).convert("RGB").save(folder / "f.png")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def source(content, tmp_path):
    """Their clip index, with labels."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    lines = [
        f"{name},{'run' if i % 2 else 'jump'},{'train' if i < 4 else 'val'},g{i // 2},{'park' if i else ''}"
        for i, name in enumerate(content)
    ]
    (folder / "labels.csv").write_text("\n".join(["file,label,split,group,scene", *lines]))
    return build_index(folder, tmp_path / "x.parquet", folder / "labels.csv", workers=1, progress=False)


def shards(source, tmp_path, out="out", progress=False, where=None, address=None, **options):
    return make_shards(source, tmp_path / out, ShardOptions(**options), where, address, progress=progress)


def range_read(row):
    with open(row.uri, "rb") as file:
        file.seek(row.offset)
        return file.read(row.length)


def tree(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def names(folder):
    return {name: [entry.name for entry in entries] for name, entries in members(folder).items()}


def members(folder):
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found[path.name] = tar.getmembers()
    return found


def rewrite(index, records):
    write_index(index.path, records)
    return ClipIndex.open(index.path)


def frames(index, i):
    return read_frames(index.row(i), np.arange(index.row(i).num_frames))


def test_every_clip_is_one_range_read_and_frames_are_those_of_the_source(source, content, tmp_path):
    index = shards(source, tmp_path, num_shards=2)
    assert len(index) == len(content) and names(tmp_path / "out").keys() == {"shard-000000.tar", "shard-000001.tar"}
    for i, data in enumerate(content.values()):
        assert range_read(index.row(i)) == data
        assert (frames(index, i) == frames(source, i)).all()
    assert index.column("uri") == ["shard-000000.tar"] * 3 + ["shard-000001.tar"] * 3
    for name in ("label", "label_id", "split", "group", "scene", "num_frames", "decoder", "content_hash"):
        assert index.column(name) == source.column(name)
    assert index.column("source") == [str(tmp_path / "clips" / name) for name in content]


def test_tarfile_reads_the_members(source, content, tmp_path):
    shards(source, tmp_path)
    with tarfile.open(tmp_path / "out/shard-000000.tar") as tar:
        entries = tar.getmembers()
        extensions = [name.rsplit(".", 1)[1].lower() for name in content]
        assert [entry.name for entry in entries] == [
            f"{i:09d}.{end}" for i, extension in enumerate(extensions) for end in (extension, "json")
        ]
        assert {(entry.mtime, entry.uid, entry.gid, entry.uname, entry.mode) for entry in entries} == {
            (0, 0, 0, "", 0o644)
        }
        assert tar.extractfile("000000002.mp4").read() == content["c.MP4"]
        facts = json.load(tar.extractfile("000000002.json"))
    assert (facts["label"], facts["label_id"], facts["split"], facts["group"], facts["scene"]) == (
        "jump",
        0,
        "train",
        "g1",
        "park",
    )
    assert (
        facts["start_s"] == 0 and facts["end_s"] == pytest.approx(1.2) and "uri" not in facts and "clips" not in facts
    )


def test_webdataset_reads_the_shards(source, content, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    shards(source, tmp_path, num_shards=3)
    urls = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(6)]
    assert [json.loads(sample["json"])["label"] for sample in samples] == source.column("label")
    for sample, (name, data) in zip(samples, content.items(), strict=True):
        assert sample[name.rsplit(".", 1)[1].lower()] == data


def test_clips_of_one_file_share_one_member(source, content, tmp_path):
    first, second, *_ = source.records()
    part = {"first_frame": 6, "num_frames": 6, "start_s": 0.6}
    parts = [first | {"num_frames": 6, "end_s": 0.6}, second, first | part | {"scene": "sea"}]
    index = shards(rewrite(source, parts), tmp_path)
    assert names(tmp_path / "out") == {
        "shard-000000.tar": ["000000000.mp4", "000000000.json", "000000001.mkv", "000000001.json"]
    }
    assert index.column("scene") == [None, "sea", "park"] and index.row(0).offset == index.row(1).offset
    assert [range_read(index.row(i)) == content[name] for i, name in enumerate(("a.mp4", "a.mp4", "b.mkv"))] == [
        True
    ] * 3
    both = np.concatenate([frames(index, 0), frames(index, 1)])
    path = tmp_path / "whole.mp4"
    path.write_bytes(content["a.mp4"])
    assert (
        both
        == read_frames(
            build_index(tmp_path / "clips", tmp_path / "y.parquet", workers=1, progress=False).row(0), np.arange(12)
        )
    ).all()
    with tarfile.open(tmp_path / "out/shard-000000.tar") as tar:
        facts = json.load(tar.extractfile("000000000.json"))
    assert facts["label"] == "jump" and [(clip["first_frame"], clip["scene"]) for clip in facts["clips"]] == [
        (0, None),
        (6, "sea"),
    ]


def test_the_same_input_gives_the_same_bytes_and_a_second_run_copies_nothing(source, tmp_path, monkeypatch):
    shards(source, tmp_path, num_shards=3)
    shards(source, tmp_path, "again", num_shards=3)
    assert tree(tmp_path / "out") == tree(tmp_path / "again")
    assert (tmp_path / "out/index.parquet").read_bytes() == (tmp_path / "again/index.parquet").read_bytes()
    wanted = tree(tmp_path / "out"), (tmp_path / "out/index.parquet").read_bytes()
    (tmp_path / "out/shard-000001.tar").unlink()
    copied = []
    right = tar_shard._append_whole
    monkeypatch.setattr(tar_shard, "_append_whole", lambda tar, member: copied.append(member.key) or right(tar, member))
    shards(source, tmp_path, num_shards=3)
    assert (
        copied == ["000000002", "000000003"]
        and (tree(tmp_path / "out"), (tmp_path / "out/index.parquet").read_bytes()) == wanted
    )
    with pytest.raises(UserError, match=r"was made otherwise \(num_shards 3, now 2\)"):
        shards(source, tmp_path, num_shards=2)


def test_an_interrupted_shard_is_not_there(source, tmp_path, monkeypatch):
    right = tar_shard._append_whole

    def interrupted(tar, member):
        if member.key == "000000003":
            raise KeyboardInterrupt
        return right(tar, member)

    monkeypatch.setattr(tar_shard, "_append_whole", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shards(source, tmp_path, num_shards=3)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert "shard-000000.tar" in left and left <= {".shard.json", "shard-000000.tar", "shard-000002.tar"}
    monkeypatch.undo()
    assert len(shards(source, tmp_path, num_shards=3)) == 6


def test_shuffling_is_the_arithmetic_order(source, content, tmp_path):
    index = shards(source, tmp_path, shuffle_seed=7, num_shards=2)
    order = [sample_row(7, i, 6) for i in range(6)]
    assert order != sorted(order) and [Path(uri).name for uri in index.column("source")] == [
        list(content)[i] for i in order
    ]
    assert [range_read(index.row(i)) for i in range(6)] == [list(content.values())[i] for i in order]


@pytest.mark.parametrize("max_mb", [0.001, 0.003, 0.006, 1000])
def test_no_shard_holds_more_than_asked_save_a_larger_file(source, content, tmp_path, max_mb):
    shards(source, tmp_path, max_mb=max_mb)
    sizes = [
        [entry.size for entry in entries if not entry.name.endswith("json")]
        for entries in members(tmp_path / "out").values()
    ]
    assert [size for shard in sizes for size in shard] == [len(data) for data in content.values()]
    for shard, following in zip(sizes, [*sizes[1:], [10**9]], strict=True):
        assert (len(shard) == 1 or sum(shard) <= max_mb * 1e6) and sum(shard) + following[0] > max_mb * 1e6


def test_a_file_that_changed_since_its_scan_is_left_out_and_named(source, content, tmp_path, capsys):
    same_size = bytearray(content["b.mkv"])
    same_size[-1] ^= 1
    (tmp_path / "clips/b.mkv").write_bytes(same_size)
    (tmp_path / "clips/a.mp4").write_bytes(content["a.mp4"] + b"more")
    (tmp_path / "clips/c.MP4").write_bytes(content["c.MP4"][:-1])
    (tmp_path / "clips/d.avi").unlink()
    index = shards(source, tmp_path, progress=True)
    assert [range_read(index.row(i)) for i in range(len(index))] == [content["e.mp4"], content["f.png"]]
    assert names(tmp_path / "out")["shard-000000.tar"] == [
        "000000004.mp4",
        "000000004.json",
        "000000005.png",
        "000000005.json",
    ]
    out = capsys.readouterr().out
    assert "2 files in 1 shards" in out and "left out: 4: changed since its scan x3, " in out and "No such file" in out
    assert str(tmp_path / "clips/a.mp4") in out
    (tmp_path / "clips/b.mkv").write_bytes(content["b.mkv"])
    assert len(shards(source, tmp_path)) == 3  # tried again
    for path in (tmp_path / "clips").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="none of its 6 files could be copied: No such file or directory x6"):
        shards(source, tmp_path, "other")
    assert not (tmp_path / "other/index.parquet").exists()


def test_sources_that_lie_in_shards_already(source, content, tmp_path):
    first = shards(source, tmp_path, num_shards=2)
    second = shards(first, tmp_path, "second", num_shards=3)
    assert [range_read(second.row(i)) for i in range(6)] == list(content.values())
    assert second.column("source") == first.column("source")
    assert [name for shard in names(tmp_path / "second").values() for name in shard[::2]] == [
        f"00000000{i}.{extension}" for i, extension in enumerate(("mp4", "mkv", "mp4", "avi", "mp4", "png"))
    ]


def test_a_place_outside_of_the_shard_is_a_clear_error(source, tmp_path, capsys):
    index = shards(source, tmp_path)
    size = (tmp_path / "out/shard-000000.tar").stat().st_size
    bad = [(size - 10, 100), (size + 10**12, 100), (0, 10**15)]
    records = list(index.records())
    for record, (offset, length) in zip(records, bad, strict=False):
        record |= {"offset": offset, "length": length}
    index = rewrite(index, records)
    for i in range(len(bad)):
        with pytest.raises(DecodeError, match=r"reach beyond the end of the shard shard-000000\.tar"):
            frames(index, i)
    again = shards(index, tmp_path, "again", progress=True)
    assert len(again) == 3 and "left out: 3: reaches beyond the end of its shard x3" in capsys.readouterr().out


def test_shards_behind_an_address(source, content, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    index = shards(source, tmp_path, num_shards=2, address="memory://bucket/shards/")
    assert index.row(0).uri == "memory://bucket/shards/shard-000000.tar"
    for name, data in tree(tmp_path / "out").items():
        memory.pipe_file(f"/bucket/shards/{name}", data)
    for i in range(6):
        assert (frames(index, i) == frames(source, i)).all()
    moved = shards(index, tmp_path, "local")
    assert [range_read(moved.row(i)) for i in range(6)] == list(content.values())
    assert moved.column("source") == index.column("source")


def test_hostile_names_and_labels(source, content, tmp_path):
    for number, name in enumerate(("-rf\n.mp4", "..mp4", "a b;$(x).tar.mp4", "x.json")):
        (tmp_path / "clips" / name).write_bytes(content["a.mp4"])
        records = [record | {"uri": f"clips/{name}", "label": "../../../etc\n\0"} for record in source.records()][:1]
        index = shards(rewrite(source, records), tmp_path, f"out{number}")
        (found,) = names(tmp_path / f"out{number}").values()
        assert found == ["000000000.mp4", "000000000.json"]
        assert range_read(index.row(0)) == content["a.mp4"]
    assert not list(tmp_path.glob("etc*"))


def test_where_and_rows_that_are_not_usable(source, tmp_path, capsys):
    records = list(source.records())
    records[4] |= {"status": "filtered: too short"}
    index = shards(rewrite(source, records), tmp_path, progress=True, where={"split": ["val"]})
    assert [Path(uri).name for uri in index.column("source")] == ["f.png"]
    out = capsys.readouterr().out
    assert "1 files in 1 shards" in out and "1: filtered: too short x1" in out


def test_refusals(source, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/precious.txt").write_text("text")
    with pytest.raises(UserError, match=r"full: holds other things already \(precious.txt\)"):
        shards(source, tmp_path, "full")
    for options, message in [
        ({"num_shards": 7}, "--num-shards 7: give a number from 1 to that of the files, 6"),
        ({"num_shards": 0}, "--num-shards 0"),
        ({"max_mb": 0.0}, "--max-mb 0.0"),
        ({"address": "folder"}, "--address folder"),
    ]:
        with pytest.raises(UserError, match=message):
            shards(source, tmp_path, **options)
    assert not (tmp_path / "out").exists()


def test_the_command(source, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    line = [
        sys.executable,
        "-m",
        "data_prep.shard",
        "x.parquet",
        "--out",
        "out",
        "--num-shards",
        "2",
        "--where",
        "split=train",
        "split=val",
    ]
    good = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert good.returncode == 0 and "6 files in 2 shards" in good.stdout
    bad = subprocess.run([*line, "--where", "split"], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert bad.returncode == 2 and bad.stderr.startswith("error: --where split") and bad.stderr.count("\n") == 1
    assert shard_name(12) == "shard-000012.tar"
