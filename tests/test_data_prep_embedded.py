"""Videos inside of Parquet files: read where they lie, with the columns of their rows; and samples of any source."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import index as index_command
from data_prep.listing.entry import Entry
from data_prep.listing.sample import evenly, sample_of_files
from data_prep.listing.sources import list_entries
from data_prep.scanning.build import build_index
from vjepa.data.clip_index import ClipIndex
from vjepa.data.decode import read_frames
from vjepa.errors import UserError

MEDIA = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {"info": {"features": {"label": {"names": ["jump", "run"], "_type": "ClassLabel"}}}}


def table(contents, paths, labels):
    media = [{"bytes": content, "path": path} for content, path in zip(contents, paths, strict=True)]
    columns = {"video": pa.array(media, MEDIA), "label": labels, "caption": [f"c{i}" for i in range(len(labels))]}
    return pa.table(columns).replace_schema_metadata({b"huggingface": json.dumps(FEATURES).encode()})


@pytest.mark.fast
@pytest.mark.parametrize("use_dictionary", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 99])
def test_the_bytes_of_each_file_are_where_the_listing_says(tmp_path, rows, use_dictionary):
    rng = np.random.default_rng(0)
    contents = [rng.bytes(int(size)) for size in rng.integers(1, 3000, 7)]
    contents += [contents[2], contents[2][:5], b"\xff\xd8\xff" + contents[1], b"\x89PNG" + contents[3]]
    place = tmp_path / "data/validation-00000-of-00001.parquet"
    place.parent.mkdir()
    paths = [f"{i}.mp4" for i in range(9)] + [None, None]
    labels = [0, 1, None] * 3 + [1, 0]
    compression = {"video.bytes": "none", "video.path": "snappy", "label": "snappy", "caption": "gzip"}
    how = {"row_group_size": rows, "use_dictionary": use_dictionary, "compression": compression}
    pq.write_table(table(contents, paths, labels), place, **how)
    listing, stored = list_entries([str(place)]), place.read_bytes()
    kept = list(range(11))
    if use_dictionary and rows == 99:  # what lies there once is one file
        kept.remove(7)
        assert any("named more than once, taken once, as named first: 1" in note for note in listing.notes)
    assert [stored[entry.offset : entry.offset + entry.length] for entry in listing.entries] == [
        contents[i] for i in kept
    ]
    names = [path or made for path, made in zip(paths, [*[""] * 9, "000009.jpg", "000010.png"], strict=True)]
    assert [entry.name.split("/")[-1] for entry in listing.entries] == [names[i] for i in kept]
    classes = {0: "jump", 1: "run", None: None}
    said = [(entry.columns["label"], entry.columns["caption"], entry.columns["split"]) for entry in listing.entries]
    assert said == [(classes[labels[i]], f"c{i}", "val") for i in kept]


def test_a_video_inside_is_indexed_as_the_file_itself(make_video, tmp_path):
    files = [make_video(f"{name}.mp4", 9 + i) for i, name in enumerate("ab")]
    content = [file.read_bytes() for file in files]
    pq.write_table(table(content, ["a.mp4", "b.mp4"], [1, 0]), tmp_path / "train-0.parquet", compression="none")
    inside = build_index(tmp_path / "train-0.parquet", tmp_path / "x.parquet", workers=1, progress=False)
    alone = build_index([str(file) for file in files], tmp_path / "y.parquet", workers=1, progress=False)
    assert inside.column("label") == ["run", "jump"] and inside.column("split") == ["train"] * 2
    for i in range(2):
        frames = [read_frames(index.row(i), np.arange(9)) for index in (inside, alone)]
        assert np.array_equal(*frames)
        assert inside.cell(i, "content_hash") == alone.cell(i, "content_hash")


@pytest.mark.fast
def test_videos_that_cannot_be_read_in_place_are_refused(tmp_path):
    place = tmp_path / "x.parquet"
    pq.write_table(table([b"abc" * 99], ["a.mp4"], [0]), place)
    with pytest.raises(UserError, match=r"x\.parquet: its video is compressed \(SNAPPY\); write the files to a folder"):
        list_entries([str(place)])
    pq.write_table(table([None], ["a.mp4"], [0]), place, compression="none")
    with pytest.raises(UserError, match="row 1 has no bytes in video; give the files that it names"):
        list_entries([str(place)])


@pytest.mark.fast
@pytest.mark.parametrize("n", [1, 2, 10, 97])
def test_a_sample_is_even(n):
    for num in (1, 2, 3, 9, 10, 11, 96, 97, 500):
        taken = evenly(range(n), num)
        assert len(taken) == min(num, n) and taken == sorted(set(taken))
        gaps = np.diff([-1 - taken[0], *taken, 2 * n - 1 - taken[-1]])[1:-1]
        assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
        assert abs((taken[0] + taken[-1]) / 2 - (n - 1) / 2) <= 1


@pytest.mark.fast
def test_a_file_of_a_sample_has_all_of_its_parts():
    entries = [Entry(f"/{name}", name, start_s=start) for start in (0.0, 1.0) for name in "abcd"]
    taken, num_files = sample_of_files(entries, 2)
    assert num_files == 4 and [(entry.name, entry.start_s) for entry in taken] == [
        ("b", 0.0), ("d", 0.0), ("b", 1.0), ("d", 1.0)
    ]  # fmt: skip


def test_a_sample_says_so_is_continued_and_replaces_no_full_index(make_video, tmp_path, capsys):
    for i in range(5):
        make_video(f"clips/{i}.mp4", 3 + i)
    clips, out = str(tmp_path / "clips"), str(tmp_path / "x.parquet")
    index_command.main([clips, "--out", out, "--workers", "1", "--sample", "2"])
    said = capsys.readouterr().out
    assert ClipIndex.open(out).column("uri") == ["clips/1.mp4", "clips/3.mp4"]
    assert "a sample: 2 of 5 files, evenly in the order of the list" in said
    assert "this is a sample: 2 of 5 files" in said and "2 files: 2 ok" in said
    index_command.main([clips, "--out", out, "--workers", "1"])
    said = capsys.readouterr().out
    assert len(ClipIndex.open(out)) == 5 and "2 files are as they were, 0 changed, 3 new" in said
    assert "a sample" not in said
    with pytest.raises(UserError, match=r"x\.parquet: is an index of all files; choose another --out for a sample"):
        index_command.main([clips, "--out", out, "--sample", "2"])
    with pytest.raises(UserError, match="--sample 0: at least 1 file"):
        index_command.main([clips, "--out", str(tmp_path / "y.parquet"), "--sample", "0"])
    assert len(ClipIndex.open(out)) == 5


def test_a_sample_of_shards_opens_no_more_than_it_takes(tmp_path, monkeypatch):
    opened = []
    for i in range(6):
        (tmp_path / f"{i}.tar").touch()

    def members(place, name, notes):
        opened.append(name)
        return [Entry(place, f"{name}/{key}.mp4", 512 * key, 9) for key in range(3)]

    monkeypatch.setattr("data_prep.listing.sources.list_members", members)
    listing = list_entries([f"{tmp_path}/*.tar"], sample=2)
    assert opened == ["1.tar", "4.tar"] and len(listing.entries) == 2
    assert any("a sample: 2 of 6 shards, the others are not opened" in note for note in listing.notes)
    assert len(list_entries([f"{tmp_path}/*.tar"]).entries) == len(list_entries([str(tmp_path)]).entries) == 18
    assert len(list_entries([str(tmp_path)], sample=4).entries) == 4


@pytest.mark.fast
def test_a_folder_of_parquet_shards_is_a_source_and_a_manifest_in_it_is_none(tmp_path):
    for split in ("train", "test"):
        shard = tmp_path / f"data/{split}-00000-of-00001.parquet"
        shard.parent.mkdir(exist_ok=True)
        pq.write_table(table([b"abc", b"defg"], ["a.mp4", "b.mp4"], [0, 1]), shard, compression="none")
    pq.write_table(pa.table({"file": ["a.mp4"]}), tmp_path / "list.parquet")
    entries = list_entries([str(tmp_path)]).entries
    assert [(entry.name, entry.columns["split"]) for entry in entries] == [
        (f"data/{split}-00000-of-00001.parquet/{name}.mp4", split) for split in ("test", "train") for name in "ab"
    ]
    (tmp_path / "data/x.mp4").touch()  # of a folder with videos the videos are meant
    assert [entry.name for entry in list_entries([str(tmp_path)]).entries] == ["data/x.mp4"]
