"""Sources: every kind lists the same files, whatever their names, and nothing is left out in silence."""

import io
import json
import os
import pickle
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.listing import manifests, places
from data_prep.listing.sources import list_entries
from vjepa.errors import UserError

pytestmark = pytest.mark.fast
fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def tree(tmp_path):
    """tree("a/b.mp4", ...) makes small files under tmp_path/v and returns that folder."""

    def make(*names, text="x"):
        for name in names:
            path = tmp_path / "v" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "v"

    return make


@pytest.fixture
def bucket():
    """bucket({"a.mp4": b"x"}) fills memory://bucket and returns its address."""
    files = fsspec.filesystem("memory")

    def fill(content):
        for name, data in content.items():
            with files.open(f"/bucket/{name}", "wb") as file:
                file.write(data)
        return "memory://bucket"

    files.store.clear()
    yield fill
    files.store.clear()


def names(*given, **options):
    return [entry.name for entry in list_entries([str(source) for source in given], **options).entries]


def notes(*given, **options):
    return "\n".join(list_entries([str(source) for source in given], **options).notes)


def write(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


def shard(path, members):
    """A tar of (name or TarInfo, bytes), as they are, unsafe ones included."""
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


# folders


def test_a_folder_gives_every_video_and_image_sorted(tree):
    folder = tree(
        "b.mp4", "a/c.JPG", "a/.hidden.mp4", ".git/d.mp4", "notes.txt", "labels.csv", "-x.mp4", "two\nlines.mp4"
    )
    listing = list_entries([str(folder)])
    assert [entry.name for entry in listing.entries] == ["-x.mp4", "a/c.JPG", "b.mp4", "two\nlines.mp4"]
    assert [entry.uri for entry in listing.entries] == [f"{folder}/{entry.name}" for entry in listing.entries]
    assert listing.notes == [f"{folder}: files of other extensions, ignored: 1"]
    assert all(entry.offset is None and entry.start_s is None and entry.columns == {} for entry in listing.entries)
    assert pickle.loads(pickle.dumps(listing)) == listing  # noqa: S301  entries travel to other processes


def test_links_are_followed_once_and_real_folders_keep_their_names(tree, tmp_path):
    folder = tree("real/a.mp4", "real/deep/b.mp4")
    os.symlink(folder / "real", folder / "a_link")  # sorts before the real one
    os.symlink(folder, folder / "real/deep/loop")
    os.symlink(tmp_path / "nowhere", folder / "dangling.mp4")
    os.symlink(tmp_path / "nowhere", folder / "dangling_folder")
    (tmp_path / "far").mkdir()
    (tmp_path / "far/c.mp4").write_text("x")
    os.symlink(tmp_path / "far", folder / "far")
    expected = ["dangling.mp4", "far/c.mp4", "real/a.mp4", "real/deep/b.mp4"]
    assert names(folder) == expected
    assert names(f"{folder}/**/*.mp4") == expected


def test_folders_that_cannot_be_read_are_named(tree, monkeypatch):
    folder = tree("a.mp4", "closed/b.mp4")
    true_scandir = os.scandir

    def scandir(path):
        if str(path).endswith(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return true_scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    closed = "closed"
    assert names(folder) == ["a.mp4"] and "folders that cannot be read: 1" in notes(folder)
    closed = "v"
    with pytest.raises(UserError, match="cannot be read"):
        list_entries([str(folder)])


def test_names_that_are_not_utf8_are_left_out_with_a_note(tree):
    folder = tree("a.mp4")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.mp4")).write_text("x")
    listing = list_entries([str(folder)])
    assert [entry.name for entry in listing.entries] == ["a.mp4"]
    (note,) = listing.notes
    assert "not UTF-8, left out: 1" in note and note.isprintable() and note.encode()
    (folder / "a.mp4").unlink()
    with pytest.raises(UserError, match="rename them"):
        list_entries([str(folder)])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "no such file or folder"),
        ("v/notes.doc", "no video or image"),
        ("v/empty", "holds no video or image; known extensions"),
        ("v/*.mkv", "matches no video or image"),
        ("v/*", "matches no video or image"),
        ("v/a**/**/b**", "can only be an entire path component"),
        ("foo://bucket/x", "Protocol not known"),
        ("memory://nothing", "no such folder"),
        ("memory://nothing/*.mp4", "matches no video or image"),
        ("memory://nothing/a.mp4", "no such file"),
        ("memory://nothing/a.csv", "FileNotFound|No such file|nothing"),
    ],
)
def test_a_source_without_anything_says_so_in_one_line(tree, tmp_path, monkeypatch, source, message):
    tree("notes.doc", "empty/notes.doc")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        list_entries([source])
    assert str(caught.value).isprintable()


def test_a_missing_backend_names_what_to_install():
    if (
        "s3fs" in sys.modules
        or not subprocess.run([sys.executable, "-c", "import s3fs"], capture_output=True, check=False).returncode
    ):
        pytest.skip("s3fs is installed")
    with pytest.raises(UserError, match=r"pip install 'video-jepa\[remote\]'"):
        list_entries(["s3://bucket/videos"])


# patterns and several sources


def test_patterns(tree, monkeypatch, tmp_path):
    folder = tree("a/1.mp4", "a/2.webm", "b/deep/3.mp4", "b/.hidden/4.mp4", "[best].mp4", "a/notes.txt")
    assert names(f"{folder}/*/*.mp4") == ["a/1.mp4"]
    assert names(f"{folder}/**/*.mp4") == ["[best].mp4", "a/1.mp4", "b/deep/3.mp4"]
    assert names(f"{folder}/[ab]/**") == ["a/1.mp4", "a/2.webm", "b/deep/3.mp4"]
    assert names(f"{folder}/a/?.*") == ["1.mp4", "2.webm"]
    assert names(f"{folder}/[best].mp4") == ["[best].mp4"]  # a file of this very name comes first
    monkeypatch.chdir(tmp_path)
    assert names("v/a/*") == ["1.mp4", "2.webm"] and "ignored: 1" in notes("v/a/*")


def test_several_sources_keep_their_order_and_each_file_once(tree):
    folder = tree("b/1.mp4", "a/2.mp4")
    listing = list_entries([f"{folder}/b", f"{folder}/a/2.mp4", str(folder)])
    assert [entry.name for entry in listing.entries] == ["1.mp4", "2.mp4"]
    assert listing.notes == ["files named more than once, taken once, as named first: 2 (a/2.mp4, b/1.mp4)"]


# manifests

HARD = ["plain.mp4", "a b/c  d.mp4", "x, y.mp4", "it's.mp4", 'say "hi".mp4', "v::1.mp4", "1.mp4 2.mp4"]


def test_path_and_label_lines(tree):
    folder = tree(*HARD)
    lines = "".join(f"{name} {number}\n" for number, name in enumerate(HARD))
    for name, text in {
        "l.csv": lines,
        "l.txt": lines.replace("\n", "\r\n"),
        "m.csv": "\ufeff" + lines + "\n\n",
    }.items():
        listing = list_entries([str(write(folder, name, text))])
        assert [entry.name for entry in listing.entries] == HARD
        assert [entry.uri for entry in listing.entries] == [f"{folder}/{name}" for name in HARD]
        assert [entry.columns for entry in listing.entries] == [{"label": str(number)} for number in range(len(HARD))]


@pytest.mark.parametrize(
    ("line", "path", "label"),
    [
        ('"a b.mp4" 3', "a b.mp4", "3"),
        ('"a ""b"".mp4" 3', 'a "b".mp4', "3"),
        ("a b.mp4::run", "a b.mp4", "run"),
        ("a b.MP4", "a b.MP4", None),
        ("a.mp4\t-1", "a.mp4", "-1"),
        ("/data/a.mp4 3", "/data/a.mp4", "3"),
        ("s3://b/a c.mp4 3", "s3://b/a c.mp4", "3"),
        ("simplecache::s3://b/a.mp4 3", "simplecache::s3://b/a.mp4", "3"),
        ("-x.mp4 3", "-x.mp4", "3"),
    ],
)
def test_one_line(line, path, label):
    assert manifests._path_and_label(line) == (path, label)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4,3\nb.mp4,4\n", "cannot tell what its first line is, 'a.mp4,3'; write"),
        ("a.mp4, 3\n", "cannot tell"),
        ("a.mp4,b.mp4\n", "cannot tell"),
        ("clips/0001 3\n", "cannot tell"),
        ("0001,3\n0002,4\n", "line 2 starts with no file"),
        ("a.mp4 3\nb.mp4,4\n", "line 2 is not a path and a label"),
        ("a.mp4 3\nb.mp4\n", "line 2 has no label, unlike"),
        ("b.mp4\na.mp4 3\n", "line 2 has a label, unlike"),
        ("file,label\na.mp4\n", "line 2 has 1 cells, the header has 2"),
        ("file,label\nx, y.mp4,3\n", "put a path with commas in quotes"),
        ("file,label,label\na.mp4,3,4\n", "must be unique"),
        ("file,label\n,3\n", "line 2 names no file"),
        ("file,start_s\na.mp4,abc\n", "start_s 'abc' is not a number"),
        ("file,start_s\na.mp4,nan\n", "not a number"),
        ("file,start_s,end_s\na.mp4,2,1\n", "end_s 1 is not after start_s 2"),
        ("file,offset\na.mp4,2\n", "only one of offset and length"),
        ("file,label\na\0.mp4,2\n", "names no file"),
        ("", "names no file"),
        ("\n\n", "names no file"),
        ("file,label\n", "names no file"),
        ("z.mp4 3\ny.mp4 3\n", "no file that it names exists: z.mp4, y.mp4; looked for in"),
    ],
)
def test_a_manifest_that_is_not_sure_is_refused(tree, text, message):
    folder = tree("a.mp4", "b.mp4")
    with pytest.raises(UserError, match=message) as caught:
        list_entries([str(write(folder, "l.csv", text))])
    assert "l.csv" in str(caught.value) and str(caught.value).isprintable()


def test_a_csv_with_a_header(tree):
    folder = tree("a.mp4", "x, y.mp4", "c.mp4")
    text = (
        'label,path,split,group,note,start_s,end_s,fps\nrun,a.mp4,train,g1,,1.5,3,25\n"a, b","x, y.mp4",val,,nice,,,\n'
    )
    listing = list_entries([str(write(folder, "l.csv", text))])
    a, b = listing.entries
    assert (a.name, a.start_s, a.end_s, b.start_s) == ("a.mp4", 1.5, 3.0, None)
    assert a.columns == {"label": "run", "split": "train", "group": "g1", "note": None}
    assert b.columns == {"label": "a, b", "split": "val", "group": None, "note": "nice"}
    assert listing.notes == [
        f"{folder}/l.csv: columns that the index measures itself or that hold no text, ignored: fps"
    ]
    assert names(write(folder, "first.csv", "clip,label\na.mp4,1\nc.mp4,2\n")) == ["a.mp4", "c.mp4"]
    assert names(write(folder, "only.txt", "video\na.mp4\n")) == ["a.mp4"]


def test_jsonl_and_parquet_say_the_same_as_csv(tree):
    folder = tree("a.mp4", "two\nlines.mp4")
    records = [
        {"video": "a.mp4", "label": 3, "end_s": 2.5, "tags": ["x", "y"], "width": 5},
        {"video": "two\nlines.mp4", "label": 4, "end_s": None, "tags": None, "width": 5},
    ]
    lines = write(folder, "l.jsonl", "\n".join(map(json.dumps, records)))
    pq.write_table(pa.Table.from_pylist([record | {"bytes": b"\xff"} for record in records]), folder / "l.parquet")
    listings = [list_entries([str(lines)]), list_entries([f"{folder}/l.parquet"])]
    assert listings[0].entries == listings[1].entries
    a, b = listings[0].entries
    assert (
        a.columns == {"label": "3", "tags": '["x", "y"]'}
        and a.end_s == 2.5
        and b.name == "two\nlines.mp4"
        and b.columns["tags"] is None
    )
    assert "ignored: width" in listings[0].notes[0] and "ignored: bytes, width" in listings[1].notes[0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.jsonl", '{"file": "a.mp4"}\n{"file": ', "line 2 is not JSON"),
        ("l.jsonl", '{"name": "a.mp4"}', "its key is one of path, file"),
        ("l.jsonl", '"a.mp4"', "no object that names a file"),
        ("l.jsonl", '{"file": 3}', "names no file: '3'"),
        ("l.jsonl", "[" * 99999, "not JSON"),
        ("l.parquet", "text", "cannot be read as Parquet"),
    ],
)
def test_jsonl_and_parquet_that_cannot_be_used(tree, name, text, message):
    with pytest.raises(UserError, match=message) as caught:
        list_entries([str(write(tree("a.mp4"), name, text))])
    assert str(caught.value).isprintable()


def test_paths_of_a_manifest(tree, tmp_path, monkeypatch):
    tree("lists/l.csv", "a.mp4", "lists/b.mp4")
    other = tmp_path / "o.mp4"
    other.write_text("x")
    lines = [
        "./b.mp4 1",
        "../a.mp4 2",
        f"{other} 3",
        f"file://{other} 3",
        "b.mp4 7",
        "gone.mp4 4",
        "memory://bucket/x.mp4 5",
    ]
    manifest = write(tmp_path / "v/lists", "l.csv", "\n".join(lines))
    monkeypatch.chdir(tmp_path)
    listing = list_entries(["v/lists/l.csv"])
    folder = manifest.parent
    assert [entry.uri for entry in listing.entries] == [
        f"{folder}/b.mp4", f"{tmp_path}/v/a.mp4", str(other), f"{folder}/gone.mp4", "memory://bucket/x.mp4",
    ]  # fmt: skip
    assert listing.entries[0].name == "b.mp4"
    assert listing.notes == [f"files named more than once, taken once, as named first: 2 ({other}, b.mp4)"]


def test_parts_of_one_video_are_not_the_same_and_a_manifest_does_not_name_itself(tree):
    folder = tree("a.mp4")
    text = "file,start_s,end_s\na.mp4,0,1\na.mp4,1,2\na.mp4,0,1\nl.csv,,\n"
    listing = list_entries([str(write(folder, "l.csv", text))])
    assert [(entry.start_s, entry.end_s) for entry in listing.entries] == [(0, 1), (1, 2)]
    assert "names itself, left out: line 5" in listing.notes[0] and "taken once" in listing.notes[1]


def test_paths_of_other_bytes_in_a_manifest(tree):
    folder = tree("a.mp4")
    (folder / "l.csv").write_bytes(b"a.mp4 1\ncaf\xe9.mp4 2\n")
    listing = list_entries([f"{folder}/l.csv"])
    assert [entry.name for entry in listing.entries] == ["a.mp4"] and "not UTF-8, left out: 1" in listing.notes[0]
    (folder / "l.csv").write_bytes(b"a.mp4 caf\xe9\n")
    with pytest.raises(UserError, match="its label is not UTF-8"):
        list_entries([f"{folder}/l.csv"])


# tar shards


def test_members_of_a_shard_lie_where_the_entry_says(tmp_path):
    members = [
        ("k1.json", b'{"split": "val", "label": "old", "fps": 5}'), ("k1.mp4", b"first"), ("k1.cls", b"run\n"),
        ("./d/k2.mp4", b"second"), ("d/k2.txt", b"a man"), ("k3.seg.mp4", b"third"),
        ("notes.doc", b"x"), ("k4.json", b"{"), ("._k1.mp4", b"x"),
    ]  # fmt: skip
    path = shard(tmp_path / "s-0.tar", members)
    listing = list_entries([str(path)])
    data = path.read_bytes()
    assert [entry.name for entry in listing.entries] == ["s-0.tar/k1.mp4", "s-0.tar/d/k2.mp4", "s-0.tar/k3.seg.mp4"]
    assert [data[entry.offset : entry.offset + entry.length] for entry in listing.entries] == [
        b"first",
        b"second",
        b"third",
    ]
    assert [dict(entry.columns) for entry in listing.entries] == [
        {"split": "val", "label": "run"},
        {"text": "a man"},
        {},
    ]
    text = "\n".join(listing.notes)
    assert (
        "other extensions: 1 (notes.doc)" in text
        and "cannot be read as what they say of a video: 1 (k4.json)" in text
        and "ignored: fps" in text
    )


def test_hostile_members_are_left_out_and_named(tmp_path):
    link, device = tarfile.TarInfo("link.mp4"), tarfile.TarInfo("device.mp4")
    link.type, link.linkname, device.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.FIFOTYPE
    path = shard(
        tmp_path / "s.tar",
        [("a.mp4", b"1"), ("/abs.mp4", b"2"), ("x/../../up.mp4", b"3"), (link, b""), (device, b""), ("a.mp4", b"4")],
    )
    before = sorted(tmp_path.rglob("*"))
    listing = list_entries([str(path)])
    assert [entry.name for entry in listing.entries] == ["s.tar/a.mp4"]
    text = "\n".join(listing.notes)
    assert (
        "pointing outside of the shard: 2 (/abs.mp4, x/../../up.mp4)" in text
        and "links and devices: 2" in text
        and "named a second time: 1" in text
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_shards(tmp_path):
    whole = shard(tmp_path / "a.tar", [("1.mp4", b"x" * 2000), ("2.mp4", b"y" * 2000)]).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:4000])
    (tmp_path / "b.tar").write_bytes(b"text " * 400)
    shard(tmp_path / "c.tar", [("3.mp4", b"z")])
    listing = list_entries([f"{tmp_path}/*.tar"])
    assert [entry.name for entry in listing.entries] == ["a.tar/1.mp4", "a.tar/2.mp4", "c.tar/3.mp4"]
    assert len([note for note in listing.notes if "not a whole tar file" in note]) == 2
    with pytest.raises(UserError, match=r"holds no video or image; .*not a whole tar file"):
        list_entries([f"{tmp_path}/b.tar"])
    assert list_entries([str(tmp_path)]).entries == listing.entries  # a folder of shards
    for cut in range(0, len(whole), 397):  # wherever it is cut or damaged, it is no crash
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        list_entries([f"{tmp_path}/*.tar"])
    for place in range(0, 600, 31):
        (tmp_path / "a.tar").write_bytes(whole[:place] + b"\xff\x80-9" + whole[place + 4 :])
        list_entries([f"{tmp_path}/*.tar"])


@pytest.mark.parametrize("kind", ["l.csv", "h.csv", "l.jsonl", "l.parquet", "s.tar"])
def test_damaged_lists_are_read_or_refused_in_one_line(tmp_path, kind):
    draw = random.Random(0)
    (tmp_path / "a.mp4").write_text("x")
    pq.write_table(pa.table({"file": ["a.mp4", "b.mp4"], "label": ["x", "y"]}), tmp_path / "l.parquet")
    shard(tmp_path / "s.tar", [("k.json", b'{"label": "x"}'), ("k.mp4", b"video"), ("d/k.mp4", b"video")])
    write(tmp_path, "l.csv", "a.mp4 1\nb c.mp4 2\n")
    write(tmp_path, "h.csv", 'file,label,start_s\na.mp4,run,0\n"x, y.mp4",b,\n')
    write(tmp_path, "l.jsonl", '{"file": "a.mp4", "label": 3}\n{"file": "b.mp4"}\n')
    whole = (tmp_path / kind).read_bytes()
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(data))
            data[place : place + draw.randint(0, 4)] = bytes(
                draw.choices([*b' ,"\n\t{}[]:0', *range(256)], k=draw.randint(0, 4))
            )
        (tmp_path / kind).write_bytes(data)
        try:
            said = list_entries([f"{tmp_path}/{kind}"]).notes
        except UserError as error:
            said = [str(error)]
        assert all(line.isprintable() for line in said)


# addresses


def test_an_address_lists_as_a_folder_does(bucket, tree):
    content = {"a.mp4": b"1", "d/b c.mp4": b"2", "d/.hidden.mp4": b"3", "d/notes.doc": b"4", ".git/x.mp4": b"5"}
    root = bucket(content)
    folder = tree(*content)
    for remote, local in [
        (root, folder),
        (f"{root}/", folder),
        (f"{root}/**/*.mp4", f"{folder}/**/*.mp4"),
        (f"{root}/d/*", f"{folder}/d/*"),
    ]:
        assert names(remote) == names(local)
        for entry in list_entries([remote]).entries:
            with fsspec.open(entry.uri, "rb") as file:
                assert file.read() in (b"1", b"2")
    assert names(f"{root}/d/b c.mp4") == ["b c.mp4"]
    assert [entry.uri for entry in list_entries([f"file://{folder}"]).entries] == [
        entry.uri for entry in list_entries([str(folder)]).entries
    ]


def test_manifests_shards_and_labels_at_an_address(bucket, tmp_path):
    data = shard(tmp_path / "s.tar", [("k.mp4", b"video"), ("k.cls", b"run")]).read_bytes()
    root = bucket(
        {
            "lists/l.csv": b"../a b.mp4 1\nc.mp4 2\nmemory://bucket/d.mp4 3\n",
            "a b.mp4": b"1",
            "lists/c.mp4": b"2",
            "s.tar": data,
            "lists/none.csv": b"z.mp4 1\n",
            "labels.csv": b"file,label\na b.mp4,jump\n",
        }
    )
    listing = list_entries([f"{root}/lists/l.csv"])
    assert [entry.uri for entry in listing.entries] == [
        "memory://bucket/a b.mp4",
        "memory://bucket/lists/c.mp4",
        "memory://bucket/d.mp4",
    ]
    (entry,) = list_entries([f"{root}/*.tar"]).entries
    assert (
        entry.columns == {"label": "run"}
        and data[entry.offset : entry.offset + entry.length] == b"video"
        and entry.uri == "memory://bucket/s.tar"
    )
    with pytest.raises(UserError, match=r"no file that it names exists: z\.mp4; looked for in memory://bucket/lists"):
        list_entries([f"{root}/lists/none.csv"])
    labelled = list_entries([root], labels=f"{root}/labels.csv")
    assert [entry.columns.get("label") for entry in labelled.entries] == ["jump", None]


def test_a_chained_address_keeps_its_chain(tmp_path, tree):
    folder = tree("d/a.mp4", "d/e/b.mp4")
    subprocess.run([sys.executable, "-m", "zipfile", "-c", str(tmp_path / "x.zip"), "d"], cwd=folder, check=True)
    for source in (f"zip://d::file://{tmp_path}/x.zip", f"zip://d/**/*.mp4::file://{tmp_path}/x.zip"):
        listing = list_entries([source])
        assert [entry.name for entry in listing.entries] == ["a.mp4", "e/b.mp4"]
        for entry in listing.entries:
            with fsspec.open(entry.uri, "rb") as file:
                assert file.read() == b"x"


def test_errors_of_a_service_are_one_line(bucket, monkeypatch):
    bucket({"a.mp4": b"x"})

    class Denied(Exception):
        pass

    def find(*_, **__):
        raise Denied("no\ncredentials")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", find)
    with pytest.raises(UserError, match="memory://bucket: no credentials; check the address and your access"):
        list_entries(["memory://bucket"])


# labels


def test_labels_by_relative_or_absolute_path(tree, tmp_path):
    folder = tree("a.mp4", "d/b.mp4", "c.mp4", "e.mp4")
    text = f'file,label,split,scene\n./a.mp4,run,train,park\n{folder}/d/b.mp4,"jump, high",,\nz.mp4,x,,\n'
    labels = write(tmp_path, "l.csv", text)
    for source in (str(folder), f"{folder}/**/*.mp4"):
        listing = list_entries([source], labels=str(labels))
        columns = {entry.name: entry.columns for entry in listing.entries}
        assert columns["a.mp4"] == {"label": "run", "split": "train", "scene": "park"}
        assert columns["d/b.mp4"] == {"label": "jump, high", "split": None, "scene": None} and columns["c.mp4"] == {}
        assert listing.notes == [
            f"{labels}: rows without a file: 1 (z.mp4)",
            f"{labels}: files without a row: 2 (c.mp4, e.mp4)",
        ]


def test_spaces_around_the_cells_of_a_table_are_no_part_of_them(tree):
    folder = tree("a.mp4", "b.mp4", "c.mp4")
    table = write(folder, "labels.csv", 'file, label, take\na.mp4, cat,1\nb.mp4,cat , 2\nc.mp4, "a cat, sitting", 3\n')
    manifest = write(folder, "m.csv", table.read_text())
    for found in (list_entries([str(folder)], labels=str(table)), list_entries([str(manifest)])):
        said = [(entry.columns["label"], entry.columns["take"]) for entry in found.entries]
        assert said == [("cat", "1"), ("cat", "2"), ("a cat, sitting", "3")]


def test_accents_may_be_joined_in_the_list_and_apart_on_disk_and_the_other_way_round(tree):
    apart, joined = "caf\u0065\u0301.mp4", "ma\u00f1ana.mp4"
    folder = tree(apart, joined)
    text = "file,label\ncaf\u00e9.mp4,a\nman\u0303ana.mp4,b\n"
    for found in (
        list_entries([str(folder)], labels=str(write(folder, "labels.csv", text))),
        list_entries([str(write(folder, "m.csv", text))]),
    ):
        assert {entry.uri: entry.columns["label"] for entry in found.entries} == {
            str(folder / apart): "a",
            str(folder / joined): "b",
        }


def test_labels_that_look_like_none_are_classes_and_it_is_said(tree):
    folder = tree("a.mp4", "b.mp4", "c.mp4")
    table = write(folder, "labels.csv", "file,label\na.mp4,NaN\nb.mp4,nan\nc.mp4,cat\n")
    found = list_entries([str(folder)], labels=str(table))
    assert [entry.columns["label"] for entry in found.entries] == ["NaN", "nan", "cat"]
    assert "labels that are taken for classes: NaN x1, nan x1; leave the cell empty" in "\n".join(found.notes)
    assert "taken for classes" not in notes(folder)


def test_dots_in_the_names_of_members_tell_samples_apart(tmp_path):
    members = {"a.1.mp4": b"x", "a.1.cls": b"one", "a.2.mp4": b"x", "a.2.json": b'{"label": "two"}'}
    members |= {"b.left.mp4": b"x", "b.cls": b"three"}
    shard(tmp_path / "x.v1.0.tar", members.items())
    found = list_entries([str(tmp_path / "x.v1.0.tar")])
    assert {entry.name: entry.columns["label"] for entry in found.entries} == {
        "x.v1.0.tar/a.1.mp4": "one",
        "x.v1.0.tar/a.2.mp4": "two",
        "x.v1.0.tar/b.left.mp4": "three",
    }


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-8-sig"])
def test_tables_of_spreadsheets_are_read_whatever_their_encoding(tree, encoding):
    folder = tree("é.mp4", "b.mp4")
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    for name in ("labels.csv", "m.csv"):
        (folder / name).write_bytes(f"{mark}file,label\né.mp4,naïve\nb.mp4,b\n".encode(encoding))
    for found in (
        list_entries([str(folder)], labels=str(folder / "labels.csv")),
        list_entries([str(folder / "m.csv")]),
    ):
        assert {entry.name: entry.columns["label"] for entry in found.entries} == {"é.mp4": "naïve", "b.mp4": "b"}


def test_labels_of_members_and_of_manifests(tree, tmp_path):
    path = shard(tmp_path / "s.tar", [("k.mp4", b"video"), ("k.cls", b"old"), ("k.json", b'{"scene": "park"}')])
    (entry,) = list_entries([str(path)], labels=str(write(tmp_path, "l.csv", "file,label\ns.tar/k.mp4,new\n"))).entries
    assert entry.columns == {"label": "new", "scene": "park"}
    manifest = write(tree("a.mp4"), "m.txt", "a.mp4 1\n")
    (entry,) = list_entries([str(manifest)], labels=str(write(tmp_path, "l.csv", "file,split\na.mp4,val\n"))).entries
    assert entry.columns == {"label": "1", "split": "val"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\nz.mp4,x\n", "none of its files is in the sources: z.mp4"),
        ("file,fps\na.mp4,3\n", "column names .*fps"),
        ("file,label,\na.mp4,3,4\n", "column 3 of its first line has no name"),
        ("file,label\na.mp4\n", "line 2 has 1 cells"),
        ("file,label\na.mp4,x\n./a.mp4,y\n", "line 3 names ./a.mp4 a second time; --labels has one line for each file"),
        ("file,,label\na.mp4,0,x\n", "column 2 of its first line has no name"),
        ("", "needs a header"),
        ("file,label\n", "needs a header"),
        ("file,label\na.mp4,x\n", "a.mp4 is in two sources"),
    ],
)
def test_labels_that_cannot_be_used(tree, text, message):
    folder = tree("one/a.mp4", "two/a.mp4")
    labels = write(folder, "l.csv", text)
    with pytest.raises(UserError, match=rf"l\.csv: .*{message}"):
        list_entries([f"{folder}/one", f"{folder}/two"], labels=str(labels))


def test_a_missing_labels_file_or_a_wrong_layout_is_named(tree):
    folder = tree("a.mp4")
    with pytest.raises(UserError, match=r"l\.csv: No such file"):
        list_entries([str(folder)], labels=f"{folder}/l.csv")
    with pytest.raises(UserError, match="choose from auto, flat, imagefolder, kinetics"):
        list_entries([str(folder)], layout="kinetic")
    with pytest.raises(UserError, match="no source is given"):
        list_entries([])


@pytest.mark.parametrize(
    ("folder", "name", "place"),
    [
        ("/a", "b.mp4", "/a/b.mp4"),
        ("/a", "../b.mp4", "/b.mp4"),
        ("/a", "s3://b/c.mp4", "s3://b/c.mp4"),
        ("s3://b/l", "../../c.mp4", "s3://c.mp4"),
        ("s3://b/l/", "c d.mp4", "s3://b/l/c d.mp4"),
        ("memory://", "c.mp4", "memory://c.mp4"),
        ("zip://l::s3://b/x.zip", "c.mp4", "zip://l/c.mp4::s3://b/x.zip"),
        ("simplecache::s3://b", "c.mp4", "simplecache::s3://b/c.mp4"),
        ("s3://b", "/data/c.mp4", "/data/c.mp4"),
    ],
)
def test_where_a_name_lies(folder, name, place):
    assert places.join(folder, name) == place
