"""Say what is in a clip index, and what to mend before training.

Columns are reduced one at a time where they lie in the mapped index, so that a million rows never become a million
objects.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.looking.description import Description, Table, shorten
from data_prep.looking.tracks import track_tables
from data_prep.rows import matching, written
from vjepa.config.row_filter import Where
from vjepa.data.clip_index import SCHEMA, ClipIndex
from vjepa.errors import UserError

_QUANTILES: Final = {"least": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "most": 1.0}
_NUM_NAMED: Final = 3  # files given as examples
_NUM_LOOKED_AT: Final = 64  # rows among which they are sought: many may be clips of one file
_NUM_COMMON: Final = 8  # values of a column, or kinds of failures, that are listed
_FEW: Final = 2  # a class with fewer clips cannot be learnt from one and measured on another
_MANY_FAILURES: Final = 0.05  # share of the rows
_REASONS: Final = ("reason", "rows", "such as")
_SLOW_DECODER: Final = "pyav"
_DECODERS: Final = {
    "decord": "random access",
    "torchcodec": "random access",
    "pyav_seek": "from the keyframe before",
    "pyav": "in order from the start of the file, slow",
    "image": "stills",
}


def describe(index: ClipIndex, where: Where | None = None) -> Description:
    """Describe the rows whose columns have the wanted values, of several values of one column any.

    Raises UserError for an unknown column, or where no row matches.
    """
    where = where or {}
    rows = _Rows(index, where)
    parts = [_overview(rows), _failures(rows), _filtered(rows)]
    if rows.num_usable:
        parts += [
            _decoders(rows),
            _quantiles(rows),
            *_common(rows),
            _duplicates(rows),
            _splits(rows),
            _classes(rows),
            _other_columns(rows),
            *_tracks(rows),
        ]
    title = f"{index.path}: {_count(rows.num, 'row')}" + (f" with {written(where)}" if where else "")
    warnings = tuple(warning for _, found in parts for warning in found)
    return Description(title, warnings, tuple(table for table, _ in parts if table.rows))


def usable_rows(index: ClipIndex, where: Where | None = None) -> np.ndarray:
    """Give the numbers of the usable rows that `describe` describes: int64 [n]."""
    return np.flatnonzero(_Rows(index, where or {}).usable)


_Part = tuple[Table, list[str]]  # and its warnings


class _Rows:
    """Choose the rows that are described, by masks over the index.

    A column is taken out of the file when it is asked for.
    """

    def __init__(self, index: ClipIndex, where: Where) -> None:
        self.index = index
        kept = matching(index, where)
        status = index.arrow("status")
        ok, filtered = pc.equal(status, "ok"), pc.starts_with(status, "filtered")
        self.kept = kept
        self.usable = _and(kept, ok)
        self.filtered = _and(kept, filtered)
        self.failed = kept & ~self.usable & ~self.filtered
        self.num, self.num_usable = int(kept.sum()), int(self.usable.sum())
        if not self.num:
            raise UserError(
                f"{index.path}: none of its {len(index)} rows matches {written(where) or 'any clip: it is empty'}"
            )

    def column(self, name: str, mask: np.ndarray | None = None) -> Any:
        """Take column `name` of the rows of a mask over the index, of the usable ones where none is given."""
        return self.index.arrow(name).filter(pa.array(self.usable if mask is None else mask))

    def table(self, *names: str, mask: np.ndarray | None = None) -> Any:
        return pa.table({name: self.column(name, mask) for name in names})

    @cached_property
    def moving(self) -> np.ndarray:
        """Choose the usable rows that are no stills."""
        return _and(self.usable, pc.not_equal(self.index.arrow("decoder"), "image"))

    @cached_property
    def duration_s(self) -> np.ndarray:
        """Measure how long each row of `moving` lasts: float64."""
        return _numbers(pc.subtract(self.column("end_s", self.moving), self.column("start_s", self.moving)))


def _and(mask: np.ndarray, condition: Any) -> np.ndarray:
    both: np.ndarray = mask & np.asarray(pc.fill_null(condition, False))
    return both


def _numbers(column: Any) -> np.ndarray:
    """Turn a column into float64 without the missing values."""
    return np.asarray(pc.cast(column.drop_null(), pa.float64()))


def _overview(rows: _Rows) -> _Part:
    files = rows.table("uri", "offset", "length", "file_bytes", mask=rows.kept).group_by(["uri", "offset"])
    sizes = files.aggregate([("length", "max"), ("file_bytes", "max")])
    num_bytes = pc.sum(pc.coalesce(sizes["length_max"], sizes["file_bytes_max"])).as_py()
    shown = [
        ("usable clips", rows.num_usable, f"{rows.num_usable / rows.num:.1%}"),
        ("left out by a filter", int(rows.filtered.sum()), f"{rows.filtered.sum() / rows.num:.1%}"),
        ("not usable", int(rows.failed.sum()), f"{rows.failed.sum() / rows.num:.1%}"),
        ("files", sizes.num_rows, _bytes(num_bytes) if num_bytes else ""),
    ]
    if rows.num_usable:
        num_stills = rows.num_usable - len(rows.duration_s)
        shown.append(("video in usable clips", len(rows.duration_s), _duration(float(rows.duration_s.sum()))))
        shown += [("stills", num_stills, "")] if num_stills else []
    warnings = [] if rows.num_usable else ["no clip is usable: training would stop at once"]
    return Table("Overview", ("", "number", ""), tuple((name, f"{num:,}", more) for name, num, more in shown)), warnings


def _failures(rows: _Rows) -> _Part:
    share = rows.failed.sum() / rows.num
    warning = f"{share:.0%} of the rows are not usable; the reasons are below"
    is_much = share > _MANY_FAILURES and rows.num_usable
    return Table("Not usable, by reason", _REASONS, _reasons(rows, rows.failed)), [warning] if is_much else []


def _filtered(rows: _Rows) -> _Part:
    return Table("Left out by a filter, by reason", _REASONS, _reasons(rows, rows.filtered)), []


def _reasons(rows: _Rows, mask: np.ndarray) -> tuple[tuple[str, ...], ...]:
    """Count reasons; those that differ only in numbers are one, shown with the numbers of its first row."""
    numbers, statuses = np.flatnonzero(mask), rows.column("status", mask)
    without_numbers = pc.replace_substring_regex(statuses, r"[0-9]+(\.[0-9]+)?", "#")
    kinds = without_numbers.combine_chunks().dictionary_encode().indices.to_numpy()
    counts = Counter(kinds.tolist())
    shown = []
    for kind, count in counts.most_common(_NUM_COMMON):
        places = np.flatnonzero(kinds == kind)
        reason = statuses[int(places[0])].as_py().removeprefix("filtered: ")
        more = " (and other numbers)" if pc.count_distinct(statuses.take(pa.array(places))).as_py() > 1 else ""
        shown.append((reason + more, f"{count:,}", _names(rows, numbers[places])))
    rest = len(numbers) - sum(count for _, count in counts.most_common(_NUM_COMMON))
    return (*shown, (f"{len(counts) - len(shown):,} other reasons", f"{rest:,}", "")) if rest else tuple(shown)


def _names(rows: _Rows, numbers: np.ndarray) -> str:
    """Name the files of the first few of these rows, each once."""
    places = pa.array(numbers[:_NUM_LOOKED_AT])
    uris, offsets = (rows.index.arrow(name).take(places).to_pylist() for name in ("uri", "offset"))
    files = dict.fromkeys(zip(uris, offsets, strict=True))
    names = [
        shorten(uri.rpartition("/")[2], 40) + ("" if offset is None else f" at byte {offset}") for uri, offset in files
    ]
    more = len(names) > _NUM_NAMED or len(numbers) > _NUM_LOOKED_AT
    return ", ".join(names[:_NUM_NAMED]) + (", ..." if more else "")


def _quantiles(rows: _Rows) -> _Part:
    frames = _numbers(rows.column("num_frames", rows.moving))
    short_side = _numbers(pc.min_element_wise(rows.column("width"), rows.column("height")))
    num_keys = _numbers(pc.list_value_length(rows.column("keyframes_s", rows.moving)).fill_null(0))
    gop = frames[num_keys > 0] / num_keys[num_keys > 0]
    measured = {
        "duration, s": rows.duration_s,
        "frames": frames,
        "rate, fps": _numbers(rows.column("fps", rows.moving)),
        "short side, px": short_side,
        "frames per keyframe": gop,
        "motion, share of white": _numbers(rows.column("motion_ratio")),
        "black frames, share": _numbers(rows.column("black_ratio")),
        "frozen, share of the time": _numbers(rows.column("frozen_ratio")),
    }
    shown = tuple(
        (name, *(f"{value:.4g}" for value in np.quantile(values, list(_QUANTILES.values()))))
        for name, values in measured.items()
        if len(values)
    )
    return Table("Usable clips, quantiles", ("", *_QUANTILES), shown), []


def _common(rows: _Rows) -> list[_Part]:
    """Count rates, sizes, codecs, and what is odd about how clips are stored."""
    not_square = pc.abs(pc.subtract(rows.column("sample_aspect"), 1.0))
    odd = {
        "variable frame rate": rows.column("times_s").is_valid(),
        "rotated by the player": pc.greater(rows.column("rotation"), 0),
        "pixels not square": pc.greater(not_square, 1e-3),
        "more than 8 bits a sample": pc.greater(rows.column("bit_depth"), 8),
        "clips that begin inside of their file": pc.greater(rows.column("first_frame"), 0),
        "clips behind a jump of the timestamps": pc.equal(rows.column("cut_at"), "clock"),
        "in shards": rows.column("offset").is_valid(),
    }
    counts = {name: pc.sum(is_odd).as_py() or 0 for name, is_odd in odd.items()}
    shown = tuple((name, f"{num:,}", f"{num / rows.num_usable:.1%}") for name, num in counts.items() if num)
    stored = Table("Handled while reading", ("", "clips", ""), shown)
    rates = pc.round(rows.column("fps", rows.moving), 2)
    sides = (pc.cast(rows.column(name), pa.string()) for name in ("width", "height"))
    sizes = pc.binary_join_element_wise(*sides, "x")
    tables = [
        _most_common("Rates, fps", rates),
        _most_common("Sizes, px (upright, square pixels)", sizes),
        _most_common("Codecs", rows.column("codec")),
        _most_common("Bits a sample", rows.column("bit_depth")),
        stored,
    ]
    return [(table, []) for table in tables]


def _most_common(title: str, column: Any, header: tuple[str, ...] = ("", "clips", "")) -> Table:
    """Count the values of a column, with their shares where the header has a place for them."""
    counts = _counts(column.drop_null())
    common = counts.most_common(_NUM_COMMON)
    shown = [(f"{value:g}" if isinstance(value, float) else str(value), count) for value, count in common]
    rest = counts.total() - sum(count for _, count in common)
    if rest:
        shown.append((f"{len(counts) - len(common):,} others", rest))
    cells = ((name, f"{count:,}", f"{count / len(column):.1%}") for name, count in shown)
    return Table(title, header, tuple(row[: len(header)] for row in cells))


def _counts(column: Any) -> Counter[Any]:
    """Count values, ties in the order of the values, so that the same index always reads the same."""
    found = pc.value_counts(column)
    pairs = zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True)
    return Counter(dict(sorted(pairs, key=lambda pair: pair[0])))


def _decoders(rows: _Rows) -> _Part:
    counts = _counts(rows.column("decoder").drop_null())
    shown = tuple(
        (f"{name}: {_DECODERS.get(name, 'unknown')}", f"{count:,}", f"{count / rows.num_usable:.1%}")
        for name, count in counts.most_common()
    )
    slow = np.flatnonzero(_and(rows.usable, pc.equal(rows.index.arrow("decoder"), _SLOW_DECODER)))
    warning = (
        f"{_count(len(slow), 'usable clip')} ({len(slow) / rows.num_usable:.0%}) can only be decoded in order "
        "from the start of the file, which is slow: "
        f"make copies that read fast with `python -m data_prep.transcode` ({_names(rows, slow)})"
    )
    return Table("Decoders", ("", "clips", ""), shown), [warning] if len(slow) else []


def _duplicates(rows: _Rows) -> _Part:
    copies = _and(rows.usable, rows.index.arrow("duplicate_of").is_valid())
    title, header = "Duplicates: files with the same content", ("first file", "copies")
    num = int(copies.sum())
    are = f"{_count(num, 'usable clip')} {'is of a file' if num == 1 else 'are of files'}"
    warning = f"{are} with the same content as another file, so it counts more than once"
    return _most_common(title, rows.column("duplicate_of", copies), header), [warning] if num else []


def _splits(rows: _Rows) -> _Part:
    table = rows.table("split", "label", "start_s", "end_s", "decoder")
    if table["split"].null_count == table.num_rows:
        return Table("Splits", (), ()), []
    table = table.set_column(0, "split", table["split"].fill_null("(none)"))
    learned = pc.unique(table.filter(pc.equal(table["split"], "train"))["label"].drop_null())
    shown = []
    for split, count in sorted(_counts(table["split"]).items()):
        part = table.filter(pc.equal(table["split"], split))
        video = part.filter(pc.not_equal(part["decoder"], "image"))
        labels = pc.unique(part["label"].drop_null())
        num_unseen = pc.sum(pc.invert(pc.is_in(labels, value_set=learned))).as_py() or 0
        duration = _duration(pc.sum(pc.subtract(video["end_s"], video["start_s"])).as_py() or 0.0)
        unseen = f"{num_unseen:,}" if len(learned) and split != "train" else ""
        shown.append((split, f"{count:,}", duration, f"{len(labels):,}", unseen))
    header = ("split", "clips", "duration", "classes", "not in train")
    leaks = _leaks(rows, "group", "group") + _leaks(rows, "content_hash", "file content")
    return Table("Splits", header, tuple(shown)), leaks


def _leaks(rows: _Rows, name: str, noun: str) -> list[str]:
    """Warn where one value of column `name` has usable clips in more than one split."""
    table = rows.table("split", name).filter(pc.and_(rows.column("split").is_valid(), rows.column(name).is_valid()))
    splits = table.group_by(name).aggregate([("split", "count_distinct")])
    found = splits.filter(pc.greater(splits["split_count_distinct"], 1))[name]
    if not len(found):
        return []
    lying = np.flatnonzero(_and(rows.usable, pc.is_in(rows.index.arrow(name), value_set=found.combine_chunks())))
    same = f"{len(found):,} {noun}s lie" if len(found) > 1 else f"1 {noun} lies"
    what = "in more than one split, so a split holds what another one has seen; clips of them:"
    return [f"{same} {what} {_names(rows, lying)}"]


def _classes(rows: _Rows) -> _Part:
    """Count the clips of all labels that the rows have.

    Labels of unusable rows are among them: they may have lost all of their clips.
    """
    counts = Counter(dict.fromkeys(pc.unique(rows.column("label", rows.kept).drop_null()).sort().to_pylist(), 0))
    counts.update(_counts(rows.column("label").drop_null()))
    if not counts:
        return Table("Classes", (), ()), []
    order = counts.most_common()
    ends = [*order[:_NUM_COMMON], *order[_NUM_COMMON:][-_NUM_COMMON:]]
    shown = [(label, f"{count:,}", f"{count / rows.num_usable:.1%}") for label, count in ends]
    if len(order) > len(ends):
        shown.insert(_NUM_COMMON, (f"... {len(order) - len(ends):,} others ...", "", ""))
    num_without = rows.column("label").null_count
    notes = [f"{_count(len(counts), 'class', 'classes')}; {counts.total() / len(counts):.4g} clips in each on average"]
    notes += [f"{_count(num_without, 'usable clip')} without a label"] if num_without else []
    few = [label for label, count in reversed(order) if count < _FEW]
    named = ", ".join(shorten(label, 40) for label in few[:_NUM_NAMED]) + (", ..." if len(few) > _NUM_NAMED else "")
    classes = f"{_count(len(few), 'class', 'classes')} with fewer than {_FEW} usable clips"
    warning = f"{classes}, too few to learn from some and measure on others: {named}"
    table = Table("Classes, by number of usable clips", ("label", "clips", ""), tuple(shown), tuple(notes))
    return table, [warning] if few else []


def _other_columns(rows: _Rows) -> _Part:
    """Sum up groups and the user's own columns."""
    shown = []
    for name in ("group", *(name for name in rows.index.names if name not in SCHEMA.names)):
        column = rows.column(name)
        if column.null_count < len(column):
            found = _counts(column.drop_null()).most_common(_NUM_NAMED)
            common = ", ".join(f"{shorten(value, 24)} ({count:,})" for value, count in found)
            shown.append((name, f"{pc.count_distinct(column).as_py():,}", f"{column.null_count:,}", common))
    return Table("Other columns", ("", "values", "empty", "most common"), tuple(shown)), []


def _tracks(rows: _Rows) -> list[_Part]:
    tables, warnings = track_tables(rows.index, rows.usable)
    return [*((table, []) for table in tables), (Table("Tracks", (), ()), warnings)]


def _count(num: int, noun: str, plural: str | None = None) -> str:
    return f"{num:,} {noun if num == 1 else plural or noun + 's'}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def _bytes(num: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num < 1024:
            return f"{num:.4g} {unit}"
        num /= 1024
    return f"{num:,.1f} TiB"
