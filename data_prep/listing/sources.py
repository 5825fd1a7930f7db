"""What there is to scan: folders, patterns, files, manifests and tar shards, on disk or at fsspec addresses, with their
labels.

Nothing is decoded and nothing is written here. What cannot be used is left out with a note, or is a UserError where
nothing is left.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Final

from data_prep.listing import places
from data_prep.listing.beside import with_tracks_beside
from data_prep.listing.embedded import has_embedded, list_embedded
from data_prep.listing.entry import MEDIA_EXTENSIONS, Entry
from data_prep.listing.layouts import LAYOUTS, Tree, annotate
from data_prep.listing.lerobot import LEROBOT_FILE, list_lerobot
from data_prep.listing.manifests import plain_path, read_labels, read_manifest
from data_prep.listing.places import composed, first, shown
from data_prep.listing.robot_files import DROID_FILE, HDF5_EXTENSIONS, list_droid
from data_prep.listing.sample import evenly, sample_of_files
from data_prep.listing.tar_members import list_members
from data_prep.listing.tracks import TrackChoice
from vjepa.errors import UserError

MANIFEST_EXTENSIONS: Final = (".csv", ".txt", ".jsonl", ".parquet")
RECORDINGS: Final = ("lerobot", "droid")  # layouts whose tracks belong to the frames of their films
LAYOUT_NAMES: Final = ("auto", *LAYOUTS, *RECORDINGS)

_TAR: Final = ".tar"
_PARQUET: Final = ".parquet"
_LABELS_NAME: Final = "labels.csv"
_NOTHING: Final = frozenset(("nan", "none", "null", "na", "n/a", "<na>", "-", "?"))
_NUM_ASKED: Final = 100  # of the files that a manifest names at a remote place: each question is a request


@dataclass(frozen=True)
class Listing:
    """Hold what was found; notes: one line each about files left out, labels without a file, and the like.

    sample: what the entries are a sample of, in words; empty where they are all.
    """

    entries: list[Entry]
    notes: list[str]
    sample: str = ""


def list_entries(
    sources: Sequence[str],
    layout: str = "auto",
    labels: str | None = None,
    sample: int | None = None,
    tracks: TrackChoice | None = None,
) -> Listing:
    """List every video and image of `sources`, in their order, and what they are labelled.

    A source is a folder of videos, images or shards, a pattern (videos/**/*.mp4), one video or image, a manifest (.csv,
    .txt, .jsonl, .parquet) or shards (train-*.tar, .parquet with videos in it), on disk or at an fsspec address. Files
    are sorted within a source; manifests and shards keep their own order. layout: one of LAYOUT_NAMES; "auto" knows the
    data sets with annotation files, and takes no label from folders. labels: CSV whose first column is a name relative
    to the source (or an absolute path); its columns stand above those of layouts and manifests. sample: files to take,
    evenly among all; of more shards than that, as many are opened. tracks: which numbers of recordings, and of files
    beside films, are state and action. Raises UserError where nothing can be listed.
    """
    if layout not in LAYOUT_NAMES:
        raise UserError(f"--layout {layout}: no such layout; choose from {', '.join(LAYOUT_NAMES)}")
    if not sources:
        raise UserError("no source is given; name a folder, a pattern, a manifest or tar shards")
    if sample is not None and sample < 1:
        raise UserError(f"--sample {sample}: at least 1 file is needed")
    labels = places.absolute(labels) if labels else None
    table = read_labels(labels) if labels else {}
    of_recordings, choice = layout, tracks or TrackChoice()
    if layout in RECORDINGS or (layout == "auto" and labels):
        layout = "flat"
    entries: list[Entry] = []
    notes: list[str] = []
    for source in map(places.absolute, sources):
        found = _with_tracks(_find(source, sample, partial(_recorded, layout=of_recordings, choice=choice)), choice)
        if not found.entries:
            raise UserError(f"{shown(source)}: {'; '.join([found.empty, *found.notes[:1]])}")
        names = [composed(entry.name) for entry in found.entries]
        annotated = annotate(layout, Tree(found.root, names, found.others))
        notes += [*found.notes, *annotated.notes, *_ignored(found, labels)]
        entries += _with_layout(found.entries, annotated.columns)
    if tracks and tracks != TrackChoice() and not any(entry.tracks for entry in entries):
        raise UserError(
            f"{first(sources)}: no film has a state or an action, of which --state, --action, --rotation tell"
        )
    entries = _once(_storable(entries, notes), notes)
    if labels:
        entries = _with_labels(entries, table, labels, notes)
    _check_text(entries)
    notes += _doubtful_labels(entries)
    if sample is None:
        return Listing(entries, notes)
    taken, num_files = sample_of_files(entries, sample)
    words = f"{min(sample, num_files)} of {num_files} files, evenly in the order of the list"
    return Listing(taken, [*notes, f"a sample: {words}"], words)


@dataclass(frozen=True)
class _Found:
    """Hold what one source has.

    others: files that are neither video nor image. empty: what to say where there is no entry.
    """

    root: str
    entries: list[Entry]
    others: list[str]
    notes: list[str]
    empty: str


def _find(source: str, sample: int | None, recorded: Callable[[places.Files], _Found | None]) -> _Found:
    if not places.is_address(source):
        if os.path.isdir(source):
            return _in_folder(source, sample, recorded)
        if places.has_pattern(source) and not os.path.lexists(source):
            return _in_pattern(source, sample)
        if not os.path.lexists(source):
            raise UserError(f"{shown(source)}: no such file or folder; give the folder that holds the videos")
    elif places.has_pattern(source):
        return _in_pattern(source, sample)
    kind = places.suffix(source)
    if kind in MEDIA_EXTENSIONS:
        if not places.exists(source):
            raise UserError(
                f"{shown(source)}: no such file"
                + (", or its server cannot be reached" if places.is_address(source) else "")
            )
        return _Found(places.parent(source), [Entry(source, places.base_name(source))], [], [], "")
    if kind == _TAR or kind in MANIFEST_EXTENSIONS:
        return _inside(places.parent(source), [places.base_name(source)], kind)
    if kind in HDF5_EXTENSIONS:
        raise UserError(_of_hdf5(source))
    if places.is_address(source):
        return _in_folder(source, sample, recorded)
    known = " ".join(sorted(MEDIA_EXTENSIONS))
    raise UserError(
        f"{shown(source)}: no video or image ({known}), no manifest ({' '.join(MANIFEST_EXTENSIONS)}) and no "
        f"{_TAR} shard"
    )


def _recorded(files: places.Files, layout: str, choice: TrackChoice) -> _Found | None:
    """Take the files of a folder for recordings of a robot, where they are or `layout` says so; else None."""
    names = files.names
    if layout in ("auto", "lerobot") and LEROBOT_FILE in names:
        entries, note = list_lerobot(files.root, choice)
        return _Found(files.root, entries, [], [note], "holds no episode")
    if layout in ("auto", "droid") and any(places.base_name(name) == DROID_FILE for name in names):
        entries, notes = list_droid(files.root, names, choice)
        return _Found(files.root, entries, [], notes, f"holds no film beside {DROID_FILE}")
    if layout in RECORDINGS:
        wanted = {"lerobot": LEROBOT_FILE, "droid": DROID_FILE}[layout]
        raise UserError(f"{shown(files.root)}: layout {layout} found no {wanted} in it; give the folder that holds it")
    return None


def _with_tracks(found: _Found, choice: TrackChoice) -> _Found:
    """Give the films of a source the tracks that lie beside them."""
    if any(entry.tracks for entry in found.entries):
        return found
    entries, others, num = with_tracks_beside(found.root, found.entries, found.others, choice)
    note = f"{shown(found.root)}: films with a track beside them: {num}"
    return replace(found, entries=entries, others=others, notes=[*found.notes, *([note] if num else [])])


def _of_hdf5(place: str) -> str:
    make = f"python -m data_prep.transcode {shown(place)} --out FOLDER"
    return f"{shown(place)}: its pictures are arrays; `{make}` makes films of them, with their tracks and an index"


def _in_folder(folder: str, sample: int | None, recorded: Callable[[places.Files], _Found | None]) -> _Found:
    files = places.folder_files(folder)
    if found := recorded(files):
        return found
    found = _media(files, f"holds no video or image; known extensions: {' '.join(sorted(MEDIA_EXTENSIONS))}")
    if found.entries:
        return found
    arrays = [name for name in files.names if places.suffix(name) in HDF5_EXTENSIONS]
    if arrays and len(arrays) == len(files.names):
        raise UserError(_of_hdf5(places.join(folder, arrays[0])))
    return _in_shards(files, _TAR, sample) or _in_shards(files, _PARQUET, sample) or found


def _in_pattern(pattern: str, sample: int | None) -> _Found:
    files = places.matching_files(pattern)
    kind = places.suffix(pattern)
    if kind == _TAR and (shards := _in_shards(files, kind, sample)):
        return shards
    if files.names and kind in MANIFEST_EXTENSIONS:
        return _inside(files.root, files.names, kind)
    return _media(files, "matches no video or image; a folder is given by its name alone, or its files as FOLDER/**")


def _in_shards(files: places.Files, kind: str, sample: int | None) -> _Found | None:
    """Take what is in the shards among some files; None where there are none. sample: shards to open, evenly."""
    names = [name for name in files.names if places.suffix(name) == kind]
    if kind == _PARQUET:  # a manifest or an index is no shard
        names = [name for name in names if has_embedded(places.join(files.root, name))]
    if not names:
        return None
    opened = evenly(names, sample or len(names))
    found = _inside(files.root, opened, kind)
    note = f"{shown(files.root)}: a sample: {len(opened)} of {len(names)} shards, the others are not opened"
    return replace(found, notes=[*found.notes, *([note] if len(opened) < len(names) else [])])


def _media(files: places.Files, empty: str) -> _Found:
    entries, others, root = [], [], files.root
    for name in files.names:
        if places.suffix(name) in MEDIA_EXTENSIONS:
            uri = places.join(root, name) if places.is_address(root) else f"{root.rstrip('/')}/{name}"
            entries.append(Entry(uri, name))
        else:
            others.append(name)
    notes, closed = [], files.unreadable
    if closed:
        notes.append(f"{shown(root)}: folders that cannot be read: {len(closed)} ({first(closed)})")
    if entries and any(name.endswith(_TAR) for name in others):
        notes.append(f"{shown(root)}: has {_TAR} files; to take what is in them, give {shown(root)}/**/*{_TAR}")
    return _Found(root, entries, others, notes, empty)


def _inside(root: str, names: Sequence[str], kind: str) -> _Found:
    """List what manifests name and shards hold."""
    entries: list[Entry] = []
    notes: list[str] = []
    for name in names:
        place = places.join(root, name)
        if kind == _TAR:
            entries += list_members(place, name, notes)
        else:
            embedded = list_embedded(place, name, notes) if kind == _PARQUET else None
            entries += _named(place, notes) if embedded is None else embedded
    return _Found(root, entries, [], notes, "holds no video or image" if kind == _TAR else "names no file")


def _named(manifest: str, notes: list[str]) -> list[Entry]:
    folder = places.parent(manifest)
    inside = folder.rstrip("/") + "/"
    ignored: set[str] = set()
    entries, own_rows = [], []
    for row in read_manifest(manifest, ignored):
        uri = places.on_disk(places.join(folder, plain_path(row.path)))
        if uri == manifest:
            own_rows.append(row.where)
        else:
            entries.append(
                Entry(uri, uri.removeprefix(inside), row.offset, row.length, row.start_s, row.end_s, row.columns)
            )
    if own_rows:
        notes.append(f"{shown(manifest)}: names itself, left out: {first(own_rows)}")
    if ignored:
        notes.append(
            f"{shown(manifest)}: columns that the index measures itself or that hold no text, ignored: "
            f"{shown(', '.join(sorted(ignored)))}"
        )
    if entries:
        _check_exists(manifest, folder, entries)
    return entries


def _check_exists(manifest: str, folder: str, entries: Sequence[Entry]) -> None:
    """Raise UserError where all files are missing: their paths are meant from somewhere else.

    A single file that is missing gets its reason when it is scanned.
    """
    near = (entry.uri for entry in entries if not places.is_address(entry.uri))
    far = islice((entry.uri for entry in entries if places.is_address(entry.uri)), _NUM_ASKED)
    if not any(map(places.exists, chain(near, far))):
        missing = first([entry.name for entry in entries])
        raise UserError(
            f"{shown(manifest)}: no file that it names exists: {missing}; looked for in {shown(folder)}; "
            "write paths from there, or absolute ones"
        )


def _ignored(found: _Found, labels: str | None) -> list[str]:
    names = [
        name
        for name in found.others
        if places.base_name(name) != _LABELS_NAME and places.join(found.root, name) != labels
    ]
    return [f"{shown(found.root)}: files of other extensions, ignored: {len(names)}"] if names else []


def _with_layout(entries: list[Entry], columns: Mapping[str, Mapping[str, str | None]]) -> list[Entry]:
    """Add the columns of a layout; what a manifest or a shard says of a file itself stands above them."""
    if not columns:
        return entries
    said = ({name: value for name, value in entry.columns.items() if value is not None} for entry in entries)
    return [
        replace(entry, columns={**columns.get(composed(entry.name), {}), **own})
        for entry, own in zip(entries, said, strict=True)
    ]


def _storable(entries: list[Entry], notes: list[str]) -> list[Entry]:
    """Leave out names that are not UTF-8: Parquet holds nothing else, so they could not be found again."""
    kept = [entry for entry in entries if _is_utf8(entry.uri) and _is_utf8(entry.name)]
    if len(kept) < len(entries):
        names = [entry.name for entry in entries if not (_is_utf8(entry.uri) and _is_utf8(entry.name))]
        note = f"files whose names are not UTF-8, left out: {len(names)} ({first(names)}); rename them to have them"
        if not kept:
            raise UserError(note)
        notes.append(note)
    return kept


def _once(entries: list[Entry], notes: list[str]) -> list[Entry]:
    kept = {(entry.uri, entry.offset, entry.start_s, entry.end_s): entry for entry in reversed(entries)}
    if len(kept) == len(entries):
        return entries
    firsts = set(map(id, kept.values()))
    again = [entry.name for entry in entries if id(entry) not in firsts]
    notes.append(f"files named more than once, taken once, as named first: {len(again)} ({first(again)})")
    return [entry for entry in entries if id(entry) in firsts]


def _with_labels(
    entries: list[Entry], table: Mapping[str, Mapping[str, str | None]], labels: str, notes: list[str]
) -> list[Entry]:
    """Add the columns of a CSV of labels.

    Raises UserError where labels and files share none, and where one row is about files of two sources.
    """
    used: dict[str, str] = {}
    labelled, without = [], []
    for entry in entries:
        key = next((key for key in map(composed, (entry.uri, entry.name)) if key in table), None)
        if key is None:
            without.append(entry.name)
        elif used.setdefault(key, entry.uri) != entry.uri:
            raise UserError(
                f"{shown(labels)}: {shown(key)} is in two sources; write absolute paths in the first column"
            )
        labelled.append(entry if key is None else replace(entry, columns={**entry.columns, **table[key]}))
    absent = sorted(table.keys() - used.keys())
    if not used:
        raise UserError(
            f"{shown(labels)}: none of its files is in the sources: {first(absent)}; its first column holds "
            "paths relative to the source"
        )
    if absent:
        notes.append(f"{shown(labels)}: rows without a file: {len(absent)} ({first(absent)})")
    if without:
        notes.append(f"{shown(labels)}: files without a row: {len(without)} ({first(without)})")
    return labelled


def _doubtful_labels(entries: Sequence[Entry]) -> list[str]:
    """Note labels that may be meant as none: they are classes all the same, for a class may be called so."""
    counts = Counter(str(entry.columns.get("label")) for entry in entries if entry.columns.get("label"))
    doubtful = {label: count for label, count in counts.items() if label.lower() in _NOTHING}
    named = ", ".join(f"{shown(label)} x{count}" for label, count in sorted(doubtful.items()))
    return [f"labels that are taken for classes: {named}; leave the cell empty where there is no label"] * bool(named)


def _check_text(entries: Sequence[Entry]) -> None:
    for entry in entries:
        for name, value in entry.columns.items():
            if not _is_utf8(name) or (value is not None and not _is_utf8(value)):
                raise UserError(
                    f"{shown(entry.name)}: its {shown(name)} is not UTF-8: {shown(value or '')}; store the "
                    "labels as UTF-8"
                )


def _is_utf8(text: str) -> bool:
    """Tell whether text can be stored; what Python puts in place of other bytes cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
