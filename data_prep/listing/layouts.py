"""Labels, splits and groups of well-known data sets, out of their annotation files as these are published.

Each layout is a function of a `Tree`. Numbers of classes that a data set publishes are kept in the column `class_id`.
"""

from __future__ import annotations

import csv
import json
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from data_prep.listing.manifests import read_manifest
from data_prep.listing.places import base_name, composed, first, join, read_text, shown
from vjepa.errors import UserError

Columns = dict[str, str | None]

_SPLITS: Final = {
    "train": "train", "training": "train", "val": "val", "valid": "val",
    "validate": "val", "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip
_SSV2_LIST: Final = r"(something-something-v2-)?(train|validation|test)\.json"
_SYNSET: Final = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Tree:
    """Hold the files of a source.

    media: names of videos and images. others: names of the other files, annotations among them.
    """

    root: str
    media: Sequence[str]
    others: Sequence[str]

    def find(self, pattern: str) -> list[str]:
        """Find the other files whose name in lower case, without its folder, is `pattern` as a whole."""
        wanted = re.compile(pattern)
        return [name for name in self.others if wanted.fullmatch(posixpath.basename(name).lower())]

    def read_text(self, name: str) -> str:
        return composed(read_text(join(self.root, name)))

    def read_json(self, name: str, kind: type) -> Any:
        """Read a file that holds `kind`, list or dict. Raises UserError where it holds anything else."""
        try:
            value = json.loads(self.read_text(name))
        except (ValueError, RecursionError) as error:
            raise self.error(name, f"is not JSON: {error}") from None
        if not isinstance(value, kind):
            raise self.error(name, f"holds no JSON {'list' if kind is list else 'object'}")
        return value

    def read_table(self, name: str, columns: set[str]) -> list[dict[str, str]]:
        """Read the rows of a CSV with a header; none where it lacks one of `columns`, so is a CSV of something else."""
        try:
            header, *lines = list(csv.reader(self.read_text(name).splitlines())) or [[]]
        except csv.Error as error:
            raise self.error(name, f"is not CSV: {error}") from None
        if not columns <= set(header):
            return []
        if short := next((line for line in lines if line and len(line) != len(header)), None):
            raise self.error(name, f"a line of {len(short)} cells ({short[0]}, ...), the header has {len(header)}")
        return [dict(zip(header, line, strict=True)) for line in lines if line]

    def error(self, name: str, what: str) -> UserError:
        remedy = "give the file as the data set publishes it, or --layout flat"
        return UserError(f"{shown(join(self.root, name))}: {shown(what)}; {remedy}")


@dataclass(frozen=True)
class Annotated:
    """Hold the columns of each file that has an annotation, by its name, and notes on what did not match."""

    columns: Mapping[str, Columns]
    notes: list[str]


@dataclass(frozen=True)
class Layout:
    """Describe a published data set.

    read: gives None where the annotation files are not there. files: what they are called, for messages. sign: a file
    that gives the data set away to `auto`, as a pattern of its name in lower case.
    """

    read: Callable[[Tree], Annotated | None]
    files: str
    sign: str


def annotate(layout: str, tree: Tree) -> Annotated:
    """Ask `layout` ("auto" or one of LAYOUTS) about the files of `tree`.

    "auto" knows a data set by its annotation files; folders alone mean no label, as nothing tells classes from cameras
    or dates. Raises UserError for a layout without its annotation files, and for annotations that match no file.
    """
    if layout == "auto":
        return _recognise(tree)
    annotated = LAYOUTS[layout].read(tree)
    if annotated is None:
        wanted, remedy = LAYOUTS[layout].files, "give the folder that holds them and the videos"
        raise UserError(f"{shown(tree.root)}: layout {layout} found no {wanted} in it; {remedy}")
    return annotated


def _recognise(tree: Tree) -> Annotated:
    notes = []
    for name, layout in LAYOUTS.items():
        if not layout.sign or not tree.find(layout.sign):
            continue
        try:
            annotated = layout.read(tree)
        except UserError as error:
            notes.append(f"looks like layout {name}, read without: {error}")
            continue
        if annotated:
            return Annotated(annotated.columns, [f"{shown(tree.root)}: read as layout {name}", *annotated.notes])
    return Annotated({}, notes)


def _flat(tree: Tree) -> Annotated:
    return Annotated({}, [])


def _imagefolder(tree: Tree) -> Annotated:
    """Take labels and splits from folders.

    Label: the folder that a file is in. Split: a folder above that is called train, val or test, the source included.
    """
    columns = {name: _of_folders(tree, name) for name in tree.media}
    unlabelled = [name for name, of_file in columns.items() if of_file["label"] is None]
    if len(unlabelled) == len(columns):
        lost = f"layout imagefolder found no class folder above {first(unlabelled)}"
        raise UserError(f"{shown(tree.root)}: {lost}; use layout flat")
    return Annotated(columns, _notes(tree, unlabelled, []))


def _of_folders(tree: Tree, name: str) -> Columns:
    *folders, _ = name.split("/")
    split = split_of([base_name(tree.root), *folders])
    return {"label": folders[-1] if folders and folders[-1].lower() not in _SPLITS else None, "split": split}


def split_of(folders: Sequence[str]) -> str | None:
    """Name the split that the first of some names means, however it is spelt; None where none means one."""
    return next((_SPLITS[folder.lower()] for folder in folders if folder.lower() in _SPLITS), None)


def _videofolder(tree: Tree) -> Annotated | None:
    """Read metadata.csv, .jsonl or .parquet with a column `file_name`, relative to the folder that it lies in.

    Split: the column, else a folder above that is called train, val or test.
    """
    tables = tree.find(_METADATA)
    rows: dict[str, Columns] = {}
    for name in tables:
        folder = posixpath.dirname(name)
        for row in read_manifest(join(tree.root, name), ignored=set()):
            file = posixpath.normpath(posixpath.join(folder, composed(row.path)))
            if file in rows or (row.start_s, row.end_s, row.offset) != (None, None, None):
                wrong = f"{row.where} names {row.path} a second time, or a part of it"
                raise UserError(f"{shown(join(tree.root, name))}: {shown(wrong)}; give this table as the source")
            rows[file] = {name: value for name, value in row.columns.items() if value is not None}
    found = _match(tree, rows, lambda name: name)
    if found is None:
        return None
    splits = {name: split_of([base_name(tree.root), *name.split("/")[:-1]]) for name in tree.media}
    return replace(found, columns={name: {"split": splits[name]} | found.columns.get(name, {}) for name in tree.media})


def _kinetics(tree: Tree) -> Annotated | None:
    """Read CSV files of label,youtube_id,time_start,time_end,split.

    Files are {youtube_id}_{start:06d}_{end:06d}.mp4. Group: the video on YouTube.
    """
    rows: dict[str, Columns] = {}
    for name in tree.find(_KINETICS_CSV):
        for line in tree.read_table(name, {"youtube_id", "time_start", "time_end"}):
            try:
                start, end = round(float(line["time_start"])), round(float(line["time_end"]))
            except (ValueError, OverflowError):
                wrong = f"time_start and time_end of {line['youtube_id']} are not both numbers"
                raise tree.error(name, wrong) from None
            split = line.get("split") or posixpath.basename(name)
            rows[f"{line['youtube_id']}_{start:06d}_{end:06d}"] = {
                "label": line.get("label") or None,
                "split": split_of(re.split(r"[^A-Za-z]+", split)), "group": line["youtube_id"],
            }  # fmt: skip
    return _match(tree, rows)


def _ssv2(tree: Tree) -> Annotated | None:
    """Read lists of {id, template}; files are {id}.webm.

    A label is the template without its brackets, as in labels.json.
    """
    lists = tree.find(_SSV2_LIST)
    if not any('"template"' in tree.read_text(name) for name in lists):
        return None  # many data sets have a train.json
    rows: dict[str, Columns] = {}
    class_ids = {
        label: str(number)
        for name in tree.find(r"(something-something-v2-)?labels\.json")
        for label, number in tree.read_json(name, dict).items()
    }
    answers = dict(
        line.split(";", 1)
        for name in tree.find(r".*test-answers\.csv")
        for line in tree.read_text(name).splitlines()
        if ";" in line
    )
    for name in lists:
        split = split_of(re.split("[^a-z]+", posixpath.basename(name).lower()))
        for item in _items(tree, name, "id"):
            label = re.sub(r"[\[\]]", "", str(item.get("template") or "")) or answers.get(str(item["id"]))
            if label and class_ids and label not in class_ids:
                raise tree.error(name, f"template {label!r} of {item['id']} is not in labels.json")
            rows[str(item["id"])] = {"label": label, "split": split, "class_id": class_ids.get(label or "")}
    return _match(tree, rows)


def _ucf101(tree: Tree) -> Annotated | None:
    """Read lists of `Class/v_Class_g01_c01.avi [number]`.

    Split: list 01; the others are split_02, split_03. Group: class and g01.
    """
    class_ids = dict(
        line.split()[::-1][:2]
        for name in tree.find(r"classind\.txt")
        for line in tree.read_text(name).splitlines()
        if len(line.split()) == 2
    )
    rows: dict[str, Columns] = {}
    for name in tree.find(_UCF101_LIST):
        kind, number = posixpath.basename(name).lower()[:-6].removesuffix("list"), name[-6:-4]
        for line in filter(str.strip, tree.read_text(name).splitlines()):
            label, _, file = line.split()[0].rpartition("/")
            group = re.fullmatch(r"v_(.+_g\d+)_c\d+", _stem(file))
            row = rows.setdefault(
                _stem(file), {"label": label, "class_id": class_ids.get(label), "group": group[1] if group else None}
            )
            row[_split_column(number)] = kind
    return _match(tree, rows)


def _hmdb51(tree: Tree) -> Annotated | None:
    """Read `class_test_split1.txt` of `file.avi 0|1|2`: unused, train, test.

    Group: the film, which is what the file name has before the class.
    """
    kinds = {"0": "unused", "1": "train", "2": "test"}
    rows: dict[str, Columns] = {}
    for name in tree.find(_HMDB51_LIST):
        label, _, number = posixpath.basename(name)[:-4].rpartition("_test_split")
        for line in filter(str.strip, tree.read_text(name).splitlines()):
            file, _, kind = line.strip().rpartition(" ")
            if kind not in kinds:
                raise tree.error(name, f"line {line.strip()!r} does not end in 0, 1 or 2")
            film, found, _ = file.partition(f"_{label}_")
            row = rows.setdefault(f"{label}/{_stem(file)}", {"label": label, "group": film if found else None})
            row[_split_column(number.zfill(2))] = kinds[kind]
    return _match(tree, rows, lambda name: f"{posixpath.basename(posixpath.dirname(name))}/{_stem(name)}")


def _diving48(tree: Tree) -> Annotated | None:
    """Read lists of {vid_name, label}; the vocabulary names the four parts of dive number `label`.

    Group: the video of the competition.
    """
    lists = tree.find(r"diving48_v2_(train|test)\.json") or tree.find(r"diving48_(train|test)\.json")
    dives = [dive for name in tree.find(r"diving48_(v2_)?vocab\.json")[:1] for dive in tree.read_json(name, list)]
    vocabulary = [" ".join(map(str, dive)) if isinstance(dive, list) else str(dive) for dive in dives]
    rows: dict[str, Columns] = {}
    for name in lists:
        split = split_of(re.split("[^a-z]+", posixpath.basename(name).lower()))
        for item in _items(tree, name, "vid_name"):
            number = item.get("label")
            if not isinstance(number, int) or not 0 <= number < (len(vocabulary) or number + 1):
                wrong = f"label {number!r} of {item['vid_name']} is no number of a dive of the vocabulary"
                raise tree.error(name, wrong)
            label = vocabulary[number] if vocabulary else str(number)
            video = str(item["vid_name"])
            group = video.rpartition("_")[0] or None
            rows[video] = {"label": label, "class_id": str(number), "split": split, "group": group}
    return _match(tree, rows)


def _imagenet(tree: Tree) -> Annotated | None:
    """Take the synset for the label, of the folder or of LOC_val_solution.csv.

    Names of classes are not unique: two are `crane`.
    """
    mapping = [
        line.split(" ", 1)
        for name in tree.find(r"loc_synset_mapping\.txt")[:1]
        for line in tree.read_text(name).splitlines()
        if " " in line
    ]
    classes: dict[str, Columns] = {
        synset: {"class_name": words, "class_id": str(number)} for number, (synset, words) in enumerate(mapping)
    }
    solution = {
        line["ImageId"]: line["PredictionString"].split(" ")[0]
        for name in tree.find(r"loc_val_solution\.csv")
        for line in tree.read_table(name, {"ImageId", "PredictionString"})
    }
    columns: dict[str, Columns] = {}
    for name in tree.media:
        folders = name.split("/")[:-1]
        synset = next(filter(_SYNSET.fullmatch, reversed(folders)), None) or solution.get(_stem(name))
        if synset:
            split = split_of([base_name(tree.root), *folders])
            columns[name] = {"label": synset, "split": split} | classes.get(synset, {})
    absent = sorted(solution.keys() - set(map(_stem, columns)))
    unannotated = [name for name in tree.media if name not in columns]
    return Annotated(columns, _notes(tree, unannotated, absent)) if columns else None


def _items(tree: Tree, name: str, key: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = tree.read_json(name, list)
    if not all(isinstance(item, dict) and key in item for item in items):
        raise tree.error(name, f"is not a list of objects with {key!r}")
    return items


def _match(tree: Tree, rows: Mapping[str, Columns], key: Callable[[str], str] | None = None) -> Annotated | None:
    """Bring annotations to files; None where there are none.

    key: what the annotation of a file goes by, from the name of the file (default: that without folder and extension).
    """
    if not rows:
        return None
    keys = {name: (key or _stem)(name) for name in tree.media}
    columns = {name: rows[place] for name, place in keys.items() if place in rows}
    absent = sorted(rows.keys() - set(keys.values()))
    if not columns:
        lost = f"files {first(list(tree.media))}; annotations {first(absent)}"
        raise UserError(f"{shown(tree.root)}: no annotation is about a file in it: {lost}; use layout flat")
    return Annotated(columns, _notes(tree, [name for name in tree.media if name not in columns], absent))


def _notes(tree: Tree, unannotated: Sequence[str], absent: Sequence[str]) -> list[str]:
    counts = {"files without an annotation": unannotated, "annotations without a file": absent}
    return [f"{shown(tree.root)}: {what}: {len(names)} ({first(names)})" for what, names in counts.items() if names]


def _stem(name: str) -> str:
    return posixpath.splitext(posixpath.basename(name))[0]


def _split_column(number: str) -> str:
    return "split" if number == "01" else f"split_{number}"


_METADATA: Final = r"metadata\.(csv|jsonl|parquet)"
_KINETICS_CSV: Final = r"(kinetics.*)?(train|val|valid|validate|validation|test)\w*\.csv"
_UCF101_LIST: Final = r"(train|test)list0[123]\.txt"
_HMDB51_LIST: Final = r".+_test_split[123]\.txt"

LAYOUTS: Final[Mapping[str, Layout]] = {
    "flat": Layout(_flat, "", ""),
    "imagefolder": Layout(_imagefolder, "", ""),
    "kinetics": Layout(
        _kinetics, "train.csv, val.csv or test.csv with columns label, youtube_id, time_start, time_end", _KINETICS_CSV
    ),
    "ssv2": Layout(
        _ssv2,
        "labels/train.json, validation.json or something-something-v2-*.json",
        _SSV2_LIST,
    ),
    "ucf101": Layout(_ucf101, "ucfTrainTestlist/trainlist01.txt, testlist01.txt", _UCF101_LIST),
    "hmdb51": Layout(_hmdb51, "testTrainMulti_7030_splits/*_test_split1.txt", _HMDB51_LIST),
    "diving48": Layout(
        _diving48, "Diving48_V2_train.json, Diving48_V2_test.json", r"diving48_(v2_)?(train|test)\.json"
    ),
    "imagenet": Layout(
        _imagenet,
        "folders of synsets (n01440764), LOC_val_solution.csv",
        r"loc_(val_solution\.csv|synset_mapping\.txt)",
    ),
    "videofolder": Layout(_videofolder, "metadata.csv, metadata.jsonl or metadata.parquet", _METADATA),
}
