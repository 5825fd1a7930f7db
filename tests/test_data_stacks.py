"""Stacks as satellites, microscopes and cameras write them: deep PNGs, TIFFs of many samples, Zarr."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.listing.entry import Entry
from data_prep.listing.sources import list_entries
from data_prep.scanning.build import build_index
from data_prep.scanning.options import ScanOptions
from data_prep.scanning.scan import scan
from vjepa.data.media import DecodeError
from vjepa.data.stacks import open_stack, read_array
from vjepa.errors import UserError

_FILTERS = 5  # of the rows of a PNG


def png(values: np.ndarray, filtered: bool = False) -> bytes:
    """Write uint16 [h, w, c] by the standard: each row as it is, or as differences to its left (filter 1)."""
    height, width, num = values.shape
    rows = values.astype(">u2").view(np.uint8).reshape(height, -1)
    if filtered:
        left = np.pad(rows, ((0, 0), (2 * num, 0)))[:, : rows.shape[1]]
        rows = rows - left
    raw = b"".join(bytes([filtered]) + row.tobytes() for row in rows)
    header = struct.pack(">2I5B", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[num], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def tiff(
    pages: list[np.ndarray],
    planar: bool = False,
    order: str = "<",
    alpha: int = 0,
    kinds: dict[int, int] | None = None,
) -> bytes:
    """Write [h, w, c] pages by the standard, not compressed, a strip for all rows.

    planar: a strip for each sample. alpha: so many of the last samples are transparency. kinds: NewSubfileType of the
    page of a number.
    """
    file = io.BytesIO()
    file.write((b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 0))
    link = 4
    for number, page in enumerate(pages):
        height, width, num = page.shape
        planes = [page[..., i] for i in range(num)] if planar else [page]
        strips, sizes = [], []
        for plane in planes:
            strips.append(file.tell())
            data = plane.astype(page.dtype.newbyteorder(order)).tobytes()
            sizes.append(len(data))
            file.write(data + b"\0" * (len(data) % 2))
        bits, colours = 8 * page.dtype.itemsize, 3 if num - alpha == 3 else 1
        extra = [0] * (num - colours - alpha) + [2] * alpha
        tags = {
            254: ("I", [(kinds or {}).get(number, 0)]), 256: ("I", [width]), 257: ("I", [height]),
            258: ("H", [bits] * num), 259: ("H", [1]), 262: ("H", [2 if colours == 3 else 1]),
            273: ("I", strips), 277: ("H", [num]), 278: ("I", [height]), 279: ("I", sizes),
            284: ("H", [2 if planar else 1]), **({338: ("H", extra)} if extra else {}),
        }  # fmt: skip
        fields = []
        for tag, (kind, values) in sorted(tags.items()):
            data = struct.pack(f"{order}{len(values)}{kind}", *values)
            if len(data) > 4:
                place = file.tell()
                file.write(data)
                data = struct.pack(order + "I", place)
            fields.append(struct.pack(order + "HHI", tag, 3 if kind == "H" else 4, len(values)) + data.ljust(4, b"\0"))
        place = file.tell()
        file.write(struct.pack(order + "H", len(fields)) + b"".join(fields))
        end = file.tell()
        file.seek(link)
        file.write(struct.pack(order + "I", place))
        link = end
        file.seek(end)
        file.write(bytes(4))
    return file.getvalue()


def noise(*shape: int, bits: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**bits, shape).astype(f"u{bits // 8}")


def facts(path: Path, **options: str) -> tuple[object, ...]:
    (row,) = scan(Entry(str(path), path.name), ScanOptions(**options))  # type: ignore[arg-type]
    return tuple(row.get(name) for name in ("status", "decoder", "channels", "bits", "axes", "width", "height"))


@pytest.mark.fast
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("num", [1, 2, 3, 4])
def test_a_png_of_16_bits_keeps_them(tmp_path: Path, num: int, filtered: bool) -> None:
    """And leaves transparency out, as 8 bits do. Its name is no pattern to FFmpeg."""
    values, path = noise(7, 5, num), tmp_path / "deep%03d.png"
    path.write_bytes(png(values, filtered))
    channels = 1 if num < 3 else 3
    assert facts(path) == ("ok", "stack", channels, 16, "hw" if channels == 1 else "hwc", 5, 7)
    for media in (path, io.BytesIO(path.read_bytes())):
        found = open_stack(media, "hw" if channels == 1 else "hwc")
        assert found.bits == 16 and np.array_equal(found.frames([0])[0], values[..., :channels])


@pytest.mark.fast
def test_a_png_of_8_bits_is_a_still_as_ever(tmp_path: Path) -> None:
    Image.fromarray(noise(7, 5, 4, bits=8), "RGBA").save(tmp_path / "a.png")
    assert facts(tmp_path / "a.png")[:3] == ("ok", "image", None)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize(("num", "bits"), [(12, 16), (3, 16), (4, 8), (13, 8), (2, 16)])
def test_a_tiff_has_all_of_its_samples(tmp_path: Path, num: int, bits: int, planar: bool, order: str) -> None:
    pytest.importorskip("tifffile")
    values, path = noise(6, 9, num, bits=bits), tmp_path / "a.tif"
    path.write_bytes(tiff([values], planar, order))
    assert facts(path) == ("ok", "stack", num, bits, "hwc", 9, 6)
    for media in (str(path), io.BytesIO(path.read_bytes())):
        assert np.array_equal(open_stack(media, "hwc").frames([0])[0], values)


def test_pages_of_many_samples_are_frames(tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    values, path = noise(4, 6, 9, 5), tmp_path / "a.tif"
    path.write_bytes(tiff(list(values)))
    assert "several pages" in str(facts(path)[0])
    assert facts(path, pages="frames")[:5] == ("ok", "stack", 5, 16, "thwc")
    assert np.array_equal(open_stack(path, "thwc").frames([1, 3]), values[[1, 3]])


@pytest.mark.parametrize("num", [3, 12])
def test_smaller_copies_and_masks_of_a_map_are_no_pages_of_it(tmp_path: Path, num: int) -> None:
    pytest.importorskip("tifffile")
    values, path = noise(8, 8, num), tmp_path / "map.tif"
    path.write_bytes(tiff([values, values[::2, ::2], values[..., :1]], kinds={1: 1, 2: 4}))
    assert facts(path) == ("ok", "stack", num, 16, "hwc", 8, 8)
    assert np.array_equal(open_stack(path, "hwc").frames([0])[0], values)


@pytest.mark.fast
def test_transparency_of_a_tiff_is_no_channel(tmp_path: Path) -> None:
    values = noise(8, 6, 4, bits=8)
    (tmp_path / "a.tif").write_bytes(tiff([values], alpha=1))
    assert facts(tmp_path / "a.tif")[:2] == ("ok", "image")
    (tmp_path / "pages.tif").write_bytes(tiff([values, values], alpha=1))
    assert facts(tmp_path / "pages.tif", pages="frames")[:4] == ("ok", "stack", 3, 8)


def test_compressed_and_tiled_tiffs_are_read(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    values = noise(64, 48, 12)
    for kind in ("lzw", "deflate", "zstd"):
        for how in ({"planarconfig": "separate"}, {"planarconfig": "contig", "tile": (16, 16)}):
            data = np.moveaxis(values, -1, 0) if how["planarconfig"] == "separate" else values
            path = tmp_path / f"{kind}.tif"
            tifffile.imwrite(path, data, compression=kind, predictor=True, photometric="minisblack", **how)
            assert facts(path)[:4] == ("ok", "stack", 12, 16)
            assert np.array_equal(open_stack(path, "hwc").frames([0])[0], values)


@pytest.mark.fast
def test_a_tiff_without_its_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tif").write_bytes(tiff([noise(6, 9, 12)]))
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(DecodeError, match=r"needs the library tifffile: pip install 'video-jepa\[tiff\]'"):
        read_array(tmp_path / "a.tif")


@pytest.mark.fast
def test_a_damaged_tiff_has_a_reason(tmp_path: Path) -> None:
    whole, path = tiff([noise(6, 9, 12)]), tmp_path / "a.tif"
    for length in range(8, len(whole), 37):
        path.write_bytes(whole[:length])
        try:
            found = read_array(path)
        except DecodeError as error:
            assert str(error)
        else:
            assert found.shape == (6, 9, 12)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(("axes", "chunks"), [("thwc", (2, 4, 5, 3)), ("tchw", (3, 1, 6, 5))])
def test_a_zarr_store_is_a_stack(tmp_path: Path, version: int, axes: str, chunks: tuple[int, ...]) -> None:
    zarr = pytest.importorskip("zarr")
    values = noise(7, 6, 5, 3)
    stored = values if axes == "thwc" else np.moveaxis(values, -1, 1)
    array = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=stored.shape, chunks=chunks, dtype="u2", zarr_format=version
    )
    array[:] = stored
    (row,) = scan(Entry(str(tmp_path / "a.zarr"), "a.zarr"), ScanOptions(axes=axes, stack_fps=2))
    assert (row["status"], row["num_frames"], row["channels"], row["bits"]) == ("ok", 7, 3, 16)
    assert row["file_bytes"] > 0 and row["content_hash"]
    stack = open_stack(str(tmp_path / "a.zarr"), axes)
    assert stack.shape == (7, 6, 5, 3) and stack.num_at_once == chunks[0]
    assert np.array_equal(stack.frames([1, 2, 5]), values[[1, 2, 5]])
    np.save(tmp_path / "a.npy", stored)
    (plain,) = scan(Entry(str(tmp_path / "a.npy"), "a.npy"), ScanOptions(axes=axes, stack_fps=2))
    for name in ("motion_ratio", "black_ratio", "frozen_ratio", "end_s", "fps"):
        assert row[name] == plain[name], name


def test_stores_are_listed_as_files_are_wherever_they_lie(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    values = noise(6, 5, 3)
    places = [f"{tmp_path}/folder/a.zarr", f"{tmp_path}/folder/deeper/b.zarr", "memory://stores/c.zarr"]
    for place in places:
        zarr.create_array(place, data=values, chunks=(3, 5, 3))
    for source in (f"{tmp_path}/folder", f"{tmp_path}/folder/**/*.zarr"):
        assert [entry.uri for entry in list_entries([source]).entries] == places[:2], source
    assert [entry.uri for entry in list_entries([f"{tmp_path}/folder/*.zarr", places[1]]).entries] == places[:2]
    for source in ("memory://stores", "memory://stores/*.zarr", places[2]):
        assert [entry.uri for entry in list_entries([source]).entries] == places[2:], source
    for place in places[1:]:
        (row,) = scan(Entry(place, "b.zarr"), ScanOptions())
        assert row["status"] == "ok" and row["file_bytes"] > 0 and row["channels"] == 3
        assert np.array_equal(open_stack(place, "hwc").frames([0])[0], values)
    (row,) = scan(Entry(f"{tmp_path}/none.zarr", "none.zarr"), ScanOptions())
    assert "no such store" in row["status"]


def test_a_group_is_read_where_it_holds_one_array(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    group, values = zarr.create_group(str(tmp_path / "a.zarr")), noise(6, 5, 3)
    group.create_array("bands", data=values)
    assert np.array_equal(open_stack(str(tmp_path / "a.zarr"), "hwc").frames([0])[0], values)
    group.create_array("more", data=values)
    with pytest.raises(DecodeError, match=r"2 arrays \((bands, more|more, bands)\); save one in each"):
        read_array(str(tmp_path / "a.zarr"))


def test_a_store_that_changed_is_scanned_again_and_others_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zarr = pytest.importorskip("zarr")
    arrays = [zarr.create_array(f"{tmp_path}/in/{name}.zarr", data=noise(6, 5, 3)) for name in "ab"]
    before = build_index(tmp_path / "in", tmp_path / "x.parquet", workers=1, progress=False).column("content_hash")
    assert len(set(before)) == 1
    arrays[1][0, 0, 0] = 7
    index = build_index(tmp_path / "in", tmp_path / "x.parquet", workers=1)
    assert "1 files are as they were, 1 changed" in capsys.readouterr().out
    assert index.column("content_hash")[0] == before[0] != index.column("content_hash")[1]


@pytest.mark.fast
def test_stores_without_their_library_are_refused_before_the_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.zarr").mkdir()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "zarr" else True)
    with pytest.raises(UserError, match=r"a\.zarr: needs the library zarr: pip install 'video-jepa\[zarr\]'"):
        build_index(tmp_path / "a.zarr", tmp_path / "x.parquet", progress=False)
    assert not (tmp_path / "x.parquet").exists()
