"""What a probe learns from and is measured on: labelled samples, cut into trials, and how they are read.

A clip index, or an image data set of `datasets_images`. Whatever it is, the probe sees a `Dataset`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vjepa.config import Channels, Data
from vjepa.config import Source as IndexSource
from vjepa.config.row_filter import parse_where
from vjepa.data.channels import require_channels
from vjepa.data.clip_index import ClipIndex
from vjepa.data.images import ReadImages
from vjepa.data.loader import plan_loader
from vjepa.data.plan_rows import Passes, RowPlan, Views
from vjepa.errors import UserError
from vjepa.probing.banks import SampleSource
from vjepa.probing.datasets_images import IMAGE_SETS, ImageSet, open_images
from vjepa.probing.metrics import Texts
from vjepa.probing.splits import Split, hold_out, read_splits
from vjepa.records import ClipBatch

# What a clip depends on beside its file.
_READING: Final = ("num_frames", "clip_fps", "frame_step", "duration_s", "padding", "crop_px")
_AUGMENTING: Final = ("crop_scale", "crop_aspect", "flip")
_FRAMES: Final = ("offset", "length", "first_frame", "start_s", "end_s", "num_frames", "rotation", "decoder")
_CONTENT: Final = ("content_hash", *_FRAMES)


@dataclass(frozen=True)
class Trial:
    """Hold clip ids, int64 [n] each, disjoint.

    Probes learn from `train`, choose on `selection`, and are measured once, on `test`.
    name: the value of the fold column that `test` has; empty where there are no folds.
    """

    name: str
    train: np.ndarray
    selection: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """Hold labelled samples, cut into trials.

    labels: column -> one value, or None, for every clip id; groups: the same, None where no sample has one.
    where: the rows of each part, in words.
    """

    source: SampleSource
    labels: Mapping[str, Sequence[str | None]]
    groups: Sequence[str | None] | None
    trials: tuple[Trial, ...]
    where: dict[str, Any]

    @property
    def clip_ids(self) -> np.ndarray:
        """List every sample that some trial uses: int64 [n], ascending."""
        return np.unique(
            np.concatenate([part for trial in self.trials for part in (trial.train, trial.selection, trial.test)])
        )

    def labels_of(self, label: str, clip_ids: np.ndarray) -> Texts:
        """Take the values of the samples that have one: [n]."""
        labels = self.labels[label]
        return np.array([str(text) for i in clip_ids if (text := labels[i]) is not None], dtype=str)

    def data_hash(self, label: str) -> str:
        """Hash the samples in use that have `label`, how they are read once each, and their labels: sha256."""
        labels = self.labels[label]
        ids = np.array([i for i in self.clip_ids if labels[i] is not None], dtype=np.int64)
        facts = [self.source.facts(ids, Views()), [labels[i] for i in ids]]
        return hashlib.sha256(repr(facts).encode()).hexdigest()


@dataclass(frozen=True)
class Request:
    """Ask for rows and labels of a data set.

    labels: columns; rows with at least one of them are used.
    train, selection, val: rows as COLUMN=VALUE1,VALUE2; None: those whose split has this name, and for selection else a
    part of train.
    group: column whose equal rows stay together. fold: column of cross-validation, in place of train, selection and
    val.
    data_root: folder of an image data set that is known by name.
    """

    labels: tuple[str, ...] = ("label",)
    group: str = "group"
    fold: str | None = None
    where: dict[str, str | None] = field(default_factory=dict)
    data_root: str | None = None


def open_dataset(name: str, data: Data, request: Request) -> Dataset:
    """Open the clip index, image data set or folder of images `name`, read as `data` says. Raises UserError."""
    if name not in IMAGE_SETS and not Path(name).is_dir():
        return _clips(name, data, request)
    rows = [f"--{part}" for part, value in request.where.items() if value is not None]
    if request.fold or rows or request.labels != ("label",):
        given = next(iter([*(["--fold"] if request.fold else []), *rows, "--label"]))
        raise UserError(f"{given}: is for clip indexes; {name} has its own labels and splits")
    return _images(open_images(name, request.data_root), data)


@dataclass(frozen=True)
class ClipSource:
    """Read rows of a clip index.

    anticipation_s: None; or the rows end where an action starts, and are seen up to so long before.
    """

    index: ClipIndex
    data: Data
    anticipation_s: float | None = None

    def loader(self, clip_ids: np.ndarray, views: Views | Passes, batch: int) -> Iterable[ClipBatch]:
        if self.anticipation_s is not None and isinstance(views, Views) and views.num_clips > 1:
            raise UserError(
                f"--num_clips {views.num_clips}: of an action there is one clip, the last before it; leave it "
                "out with --anticipation_s"
            )
        return plan_loader(RowPlan(self.index, clip_ids, self.data, batch, views, self.anticipation_s), self.data)

    def facts(self, clip_ids: np.ndarray, views: Views | Passes) -> dict[str, Any]:
        names = _READING if isinstance(views, Views) else (*_READING, *_AUGMENTING)
        facts = {"rows": _rows_hash(self.index, clip_ids), "views": _words(views)}
        ahead = {} if self.anticipation_s is None else {"anticipation_s": self.anticipation_s}
        return {**facts, **{name: getattr(self.data, name) for name in names}, **_shown(self.data), **ahead}

    def uri(self, clip_id: int) -> str:
        return self.index.uri(clip_id)


@dataclass(frozen=True)
class ImageSource:
    """Read images of a data set, as clips of one frame."""

    images: ImageSet
    data: Data

    def loader(self, clip_ids: np.ndarray, views: Views | Passes, batch: int) -> Iterable[ClipBatch]:
        if isinstance(views, Passes):
            raise UserError("--train_passes: augmented passes are for clips; leave it out for images")
        data = self.data.model_copy(update={"num_frames": 1})
        looks, images = replace(views, num_clips=1), self.images.images
        return plan_loader(RowPlan(images, clip_ids, data, batch, looks), data, ReadImages(images))

    def facts(self, clip_ids: np.ndarray, views: Views | Passes) -> dict[str, Any]:
        rows = hashlib.sha256(np.ascontiguousarray(clip_ids).tobytes()).hexdigest()
        facts = {"images": self.images.data_hash, "rows": rows, "views": _words(views), "crop_px": self.data.crop_px}
        return {**facts, **_shown(self.data)}

    def uri(self, clip_id: int) -> str:
        return self.images.images.uri(clip_id)


def _images(images: ImageSet, data: Data) -> Dataset:
    trial = Trial("", images.splits["train"], images.splits["selection"], images.splits["val"])
    return Dataset(
        ImageSource(images, data), {"label": images.labels}, None, (trial,), {part: part for part in images.splits}
    )


def _clips(path: str, data: Data, request: Request) -> Dataset:
    index = ClipIndex.open(path)
    if request.fold is not None:
        where: dict[str, Any] = {"folds": request.fold}
        splits = _folds(index, request)
        require_channels(index, index.select({}), data.channels)
    else:
        sources = _sources(index, request.where)
        found = read_splits(data.model_copy(update=sources), request.labels, request.group)
        splits = {"": (found.train, found.selection, found.val)}
        where = {name: source.where if source else "a fifth of train" for name, source in sources.items()}
    trials = tuple(Trial(name, *(split.rows for split in parts)) for name, parts in splits.items())
    groups = index.column(request.group)
    return Dataset(
        ClipSource(index, data),
        {label: index.column(label) for label in request.labels},
        groups if any(group is not None for group in groups) else None,
        trials,
        where,
    )


def _folds(index: ClipIndex, request: Request) -> dict[str, tuple[Split, Split, Split]]:
    """Cut the rows by the fold column: its value -> train, selection and test.

    Selection keeps groups whole, or where there are none folds.
    """
    given = [f"--{part}" for part, value in request.where.items() if value is not None]
    if given:
        raise UserError(f"{given[0]}: --fold {request.fold} takes all rows in turn; give one or the other")
    labels, folds = {label: index.column(label) for label in request.labels}, index.column(str(request.fold))
    labelled = [row for row in index.select({}) if any(values[row] is not None for values in labels.values())]
    usable = [row for row in labelled if folds[row] is not None]
    values = sorted({str(folds[row]) for row in usable})
    if len(values) < 3:
        found = ", ".join(values) or "none"
        raise UserError(
            f"{index.path}: cross-validation needs 3 or more values in {request.fold}, to learn, choose and "
            f"measure on; found {found}"
        )
    grouped = any(group is not None for group in index.column(request.group))
    parts = {}
    for value in values:
        inside, outside = (
            np.array([row for row in usable if (folds[row] == value) is same], dtype=np.int64) for same in (True, False)
        )
        rest = Split(index, outside, labels)
        parts[value] = (
            *hold_out(rest, request.group if grouped else str(request.fold)),
            Split(index, inside, labels),
        )
    return parts


def _sources(index: ClipIndex, given: dict[str, str | None]) -> dict[str, IndexSource | None]:
    """Name the rows of `data.train`, `data.selection` and `data.val` by the options."""
    splits = {value for value in index.column("split") if value is not None}
    sources: dict[str, IndexSource | None] = {}
    for name in ("train", "selection", "val"):
        wanted = given.get(name)
        if wanted is None and name not in splits:
            if name != "selection":
                found = f"its splits are {', '.join(sorted(splits))}" if splits else "it has no splits"
                raise UserError(
                    f"{index.path}: no rows with split={name} ({found}); say which with --{name} COLUMN=VALUE"
                )
            sources[name] = None
        else:
            sources[name] = IndexSource(index=str(index.path), where=parse_where([wanted or f"split={name}"], name))
    return sources


def _rows_hash(index: ClipIndex, clip_ids: np.ndarray) -> str:
    """Hash the numbers of the rows and what they hold; a file without a content hash goes by its address: sha256."""
    digest = hashlib.sha256(np.ascontiguousarray(clip_ids, dtype=np.int64).tobytes())
    rows = {
        name: index.arrow(name).take(pa.array(clip_ids)) for name in (*_CONTENT, "uri", "file_bytes", "modified_ns")
    }
    texts = {name: pc.fill_null(pc.cast(values, pa.large_string()), "None") for name, values in rows.items()}
    between = pa.scalar("\0", pa.large_string())
    by_content, by_address = (
        pc.binary_join_element_wise(*(texts[name] for name in names), between) for names in (_CONTENT, texts)
    )
    for chunk in pc.if_else(pc.is_valid(rows["content_hash"]), by_content, by_address).chunks:
        _, offsets, text = chunk.buffers()
        first, last = np.frombuffer(offsets, np.int64)[[chunk.offset, chunk.offset + len(chunk)]]
        digest.update(memoryview(text)[first:last])
    times_s = index.arrow("track_times_s").take(pa.array(clip_ids))
    if times_s.null_count < len(times_s):  # frames are chosen by them
        digest.update(pc.list_flatten(times_s).to_numpy())
    return digest.hexdigest()


def _shown(data: Data) -> dict[str, Any]:
    """Name how frames fill a clip, and its channels; features of crops of colours, the defaults, go without it."""
    fit = {} if data.fit == "crop" else {"fit": data.fit}
    return fit if data.channels == Channels() else fit | {"channels": data.channels.model_dump()}


def _words(views: Views | Passes) -> dict[str, Any]:
    order = {"time": "forward"} if isinstance(views, Views) else {}  # features that are stored were named with it
    return {"kind": type(views).__name__, **asdict(views), **order}
