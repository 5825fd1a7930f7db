"""Dense probes: which thing is where. `dense` learns one linear map from the features of a cell to the kind of thing in
it; `propagate` carries the first frame's masks on. Both beside the same encoder untrained, pixels, and what needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from vjepa.counter_rng import generator
from vjepa.data.augment import normalise
from vjepa.data.plan_rows import Views
from vjepa.errors import UserError
from vjepa.models.encoder import patchify
from vjepa.probing import bootstrap, datasets, extractors, linear, propagation, scores_masks, things
from vjepa.probing.banks import Extractor
from vjepa.probing.baselines import kinds_of_features
from vjepa.probing.datasets import ClipSource, Dataset
from vjepa.probing.dense_features import cell_features
from vjepa.probing.extractors import Readout
from vjepa.probing.settings import ProbeSettings, SubjectSettings
from vjepa.probing.subject import Subject

COLUMN: Final = "things"
_CELLS_OF_A_CLIP: Final = 128  # of those that are learned from, drawn anew for each clip
# options that mean something here, beside those of every encoder; others keep their defaults
_USED: Final = (
    *("dataset", "eval_mode", "label", "group", "train", "selection", "val"),
    *("seed", "batch", "out", "cells", "most_clips"),
)
Read = Callable[[Tensor], Tensor]  # uint8 [B, C, T, H, W] -> tokens [B, N, D]


@dataclass(frozen=True)
class DenseTask:
    """Hold what a measurement works on. reads: tokens by the kind of features. names: of the kinds, ground first."""

    settings: ProbeSettings
    subject: Subject
    dataset: Dataset
    source: ClipSource
    column: str
    reads: dict[str, Read]
    names: tuple[str, ...]
    sha256: str

    @classmethod
    def of(cls, settings: ProbeSettings) -> DenseTask:
        """Read the encoder and open the index. Raises UserError for whatever does not fit together."""
        _refuse_others(settings)
        subject = Subject.read(settings)
        column = COLUMN if settings.label == ("label",) else settings.label[0]
        patch = subject.data.crop_size[0] // subject.grid.h
        if patch % settings.cells:
            raise UserError(f"--cells {settings.cells}: a token of {patch} px has no such cells; give a divisor of it")
        rows = {"train": settings.train, "selection": settings.selection, "val": settings.val}
        dataset = datasets.open_dataset(
            settings.dataset, subject.data, datasets.Request((column,), settings.group, None, rows)
        )
        if not isinstance(dataset.source, ClipSource):
            raise UserError(f"--eval_mode {settings.eval_mode}: needs a clip index with a column that names masks")
        first = things.mask_path(dataset.source.index, int(dataset.trials[0].test[0]), column)
        found = things.read_names(first)
        reads = _reads(subject, settings)
        sha256 = extractors.weights_hash(subject.encoder)
        return cls(settings, subject, dataset, dataset.source, column, reads, ("ground", *found), sha256)

    def some(self, part: str) -> np.ndarray:
        """Choose at most `--most_clips` clips of a part of the data, evenly: int64 [n]."""
        rows: np.ndarray = getattr(self.dataset.trials[0], part)
        places = np.linspace(0, len(rows) - 1, min(len(rows), self.settings.most_clips)).round().astype(int)
        chosen: np.ndarray = rows[np.unique(places)]
        return chosen

    def clips(self, rows: np.ndarray) -> Iterator[tuple[int, Tensor, np.ndarray]]:
        """Yield id, video [1, C, T, H, W] and marks [T, H, W] of each clip that can be read."""
        for batch in self.source.loader(rows, Views(), self.settings.batch):
            for clip_id, video in zip(batch.clip_ids.tolist(), batch.video, strict=True):
                yield clip_id, video[None], things.of_clip(self.source.index, clip_id, self.subject.data, self.column)

    def cells(self, kind: str, video: Tensor) -> Tensor:
        """Read the features of every cell of one clip: [t, h, w, D]."""
        return cell_features(self.reads[kind], video, self.subject.grid, self.settings.cells)[0]

    def units(self, clip_ids: Sequence[int]) -> np.ndarray | None:
        """Number the groups of clips, over which intervals are drawn."""
        groups = self.dataset.groups
        return bootstrap.several_units(None if groups is None else [groups[i] for i in clip_ids], len(clip_ids))


def measure(settings: ProbeSettings) -> dict[str, Any]:
    """Measure by a dense probe; give the entry of probe.json. Raises UserError."""
    work = DenseTask.of(settings)
    found = _segment(work) if settings.eval_mode == "dense" else _follow(work)
    subject = work.subject
    return {
        "dataset": str(work.source.index.path.absolute()),
        "eval_mode": settings.eval_mode,
        "label": work.column,
        "encoder": subject.which,
        "task": "masks",
        "pool": None,
        "fold": None,
        "anticipation_s": None,
        "rollout": None,
        "model_path": str(settings.model_path.absolute()),
        "step": subject.step,
        "names": list(work.names),
        "cells": settings.cells,
        **found,
        "data_hash": work.dataset.data_hash(work.column),
        "weights_hash": work.sha256,
        "where": work.dataset.where,
    }


def _segment(work: DenseTask) -> dict[str, Any]:
    """Learn which kind of thing a cell holds, choose C on selection, and measure every cell of the test clips."""
    train: dict[str, list[np.ndarray]] = {kind: [] for kind in work.reads}
    selection: dict[str, list[np.ndarray]] = {kind: [] for kind in work.reads}
    truths: dict[str, list[np.ndarray]] = {"train": [], "selection": []}
    num = len(work.names)
    for part, bank in (("train", train), ("selection", selection)):
        for clip_id, video, marks in work.clips(work.some(part)):
            num = max(num, 1 + int(marks[marks != things.UNKNOWN].max(initial=0)))
            truth = things.labels(things.shares(marks, work.subject.grid, work.settings.cells, num)).reshape(-1)
            known = np.flatnonzero(truth >= 0)
            rng = generator(work.settings.seed, "dense_probe", clip_id)
            drawn = np.sort(rng.permutation(known)[:_CELLS_OF_A_CLIP])
            truths[part].append(truth[drawn])
            for kind in work.reads:
                bank[kind].append(work.cells(kind, video).flatten(0, 2)[drawn].numpy())
    learned, chosen_on = (np.concatenate(truths[part]) for part in ("train", "selection"))
    if len(np.unique(learned)) < 2:
        raise UserError(f"{work.source.index.path}: in {work.column} of train there is one kind of thing alone")
    maps = {
        kind: _fit(np.concatenate(train[kind]), learned, np.concatenate(selection[kind]), chosen_on, num)
        for kind in work.reads
    }
    counts: dict[str, list[np.ndarray]] = {kind: [] for kind in (*work.reads, "chance")}
    ids = []
    for clip_id, video, marks in work.clips(work.some("test")):
        ids.append(clip_id)
        truth = things.labels(things.shares(marks, work.subject.grid, work.settings.cells, num)).reshape(-1)
        for kind, (answer, _) in maps.items():
            predicted = answer(work.cells(kind, video).flatten(0, 2).numpy())
            counts[kind].append(scores_masks.confusion(truth, predicted, num))
        most = np.full(truth.shape, np.bincount(learned).argmax())
        counts["chance"].append(scores_masks.confusion(truth, most, num))
    units = work.units(ids)
    kinds = {}
    for kind, found in counts.items():
        share = scores_masks.share_of_confusions(np.stack(found), units)
        total = np.sum(found, axis=0)
        each = [None if np.isnan(iou) else float(iou) for iou in scores_masks.ious(total)]
        kinds[kind] = {"mIoU": share and asdict(share), "each": each}
    return {
        "measure": "mIoU",
        "kinds": kinds,
        "chosen": {kind: {"C": c} for kind, (_, c) in maps.items()},
        "num_clips": {part: len(work.some(part)) for part in ("train", "selection", "test")},
    }


def _fit(
    train: np.ndarray, learned: np.ndarray, selection: np.ndarray, chosen_on: np.ndarray, num: int
) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """Fit logistic regression to cells [N, D] for each C; give the map that is best on selection, and its C."""
    present = np.unique(learned)
    truth = (learned[:, None] == present).astype(np.float64)
    prepared, others = linear.prepare(train.astype(np.float64), selection.astype(np.float64))
    models = linear.fit(prepared, truth, linear.C_CHOICES)
    guesses = [present[model.scores(others).argmax(1)] for model in models]
    quality = [float(scores_masks.mean_iou(scores_masks.confusion(chosen_on, guess, num))) for guess in guesses]
    best = int(np.argmax(quality))
    model = linear.of_raw(models[best], prepared, train.astype(np.float64))
    return lambda features: present[model.scores(features).argmax(1)], linear.C_CHOICES[best]


def _follow(work: DenseTask) -> dict[str, Any]:
    """Carry the masks of the first frame of each test clip on, by each kind of features, and by standing still."""
    sums: dict[str, list[tuple[float, float]]] = {kind: [] for kind in (*work.reads, "standing still")}
    nums, ids = [], []
    for clip_id, video, marks in work.clips(work.some("test")):
        kinds = [kind for kind in np.unique(marks[0]).tolist() if kind not in (0, things.UNKNOWN)]
        if not kinds or work.subject.grid.t < 2:
            continue
        ids.append(clip_id)
        nums.append(len(kinds))
        for name in sums:
            sums[name].append(
                _score(marks, _carried(work, name, video, marks, [0, *kinds]), kinds, work.subject.grid.t)
            )
    if not ids:
        raise UserError(f"{work.source.index.path}: no test clip has a thing in its first frame, and two time slots")
    units, counted = work.units(ids), np.array(nums, float)
    found = {}
    for name, pairs in sums.items():
        j, f = np.array(pairs).T
        shares = {"J&F": (j + f) / 2, "J": j, "F": f}
        measured = {key: scores_masks.share_of_means(values, counted, units) for key, values in shares.items()}
        found[name] = {key: share and asdict(share) for key, share in measured.items()}
    return {"measure": "J&F", "kinds": found, "num_clips": {"test": len(ids)}, "num_things": int(counted.sum())}


def _carried(work: DenseTask, name: str, video: Tensor, marks: np.ndarray, kinds: Sequence[int]) -> np.ndarray:
    """Predict the marks of every frame from those of the first: [T, H, W]."""
    if name not in work.reads:
        return np.repeat(marks[:1], len(marks), axis=0)
    grid, fine = work.subject.grid, work.settings.cells
    still = np.repeat(marks[:1], len(marks), axis=0)
    first = things.shares(still, grid, fine, 1 + max(kinds))[0][..., list(kinds)]
    labels = propagation.propagate(work.cells(name, video), torch.from_numpy(first))
    predicted: np.ndarray = np.array(kinds)[propagation.to_pixels(labels, *marks.shape).numpy()]
    return predicted


def _score(marks: np.ndarray, predicted: np.ndarray, kinds: Sequence[int], slots: int) -> tuple[float, float]:
    """Sum J and F over the things of a clip, each the mean over the frames after the first slot."""
    frames = range(len(marks) // slots, len(marks))
    pairs = [[(marks[t] == kind, predicted[t] == kind) for t in frames] for kind in kinds]
    j = sum(float(np.mean([scores_masks.jaccard(*pair) for pair in of_kind])) for of_kind in pairs)
    return j, sum(float(np.mean([scores_masks.boundary(*pair) for pair in of_kind])) for of_kind in pairs)


def _reads(subject: Subject, settings: ProbeSettings) -> dict[str, Read]:
    """Make what reads tokens of each kind: the encoder, the same untrained, and the pixels of its patches."""
    readout = Readout(
        (subject.encoder.depth - 1,), ("tokens",), subject.device, subject.dtype, channels=subject.data.channels
    )
    kinds = kinds_of_features(subject.encoder, "", readout, ("random_init",), subject.seed)

    def tokens(one: Extractor, video: Tensor) -> Tensor:
        return one.run(video, torch.arange(len(video)))["tokens"]

    def pixels(video: Tensor) -> Tensor:
        model = subject.encoder.model.model_copy(update={"input": "frames"})
        return patchify(normalise(video, torch.float32, subject.data.channels), model).pixels

    return {**{kind: partial(tokens, one) for kind, one in kinds.items()}, "pixels": pixels}


def _refuse_others(settings: ProbeSettings) -> None:
    """Raise UserError for an option that does nothing here."""
    known = {*_USED, *(field.name for field in fields(SubjectSettings))}
    for field in fields(ProbeSettings):
        if field.name not in known and getattr(settings, field.name) != field.default:
            raise UserError(f"--{field.name}: is not for --eval_mode {settings.eval_mode}; leave it out")
    if len(settings.label) > 1:
        raise UserError(f"--label {','.join(settings.label)}: one column names the masks; give one")
