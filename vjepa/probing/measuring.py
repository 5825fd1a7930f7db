"""Measure a frozen encoder by a probe beside its baselines, as the options of `vjepa.probe` say."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from tqdm import tqdm

from vjepa import command, ranks
from vjepa.config import Data
from vjepa.data.plan_rows import Passes, Views
from vjepa.errors import UserError
from vjepa.interop import load
from vjepa.interop.meta import Hints
from vjepa.models.pooling import Pooling
from vjepa.probing import anticipation, baselines, comparison, datasets, entries, extractors, knn, store, sweep, tasks
from vjepa.probing.anticipation import RollOut
from vjepa.probing.banks import Extractor
from vjepa.probing.comparison import Comparison, Looks, Shots
from vjepa.probing.datasets import Dataset
from vjepa.probing.datasets_images import IMAGE_SETS
from vjepa.probing.extractors import Readout
from vjepa.probing.protocol import Mode, ProbeMethod
from vjepa.probing.settings import ProbeSettings
from vjepa.probing.subject import Subject, blocks
from vjepa.probing.task import Task
from vjepa.ranks import Ranks

# the name on the command line -> the name in the code
_MODES: Final[dict[str, Mode]] = {"knn": "knn", "linear_probe": "linear", "attentive": "attentive"}
_READ: Final = (
    "num_frames",
    "clip_fps",
    "frame_step",
    "duration_s",
    "crop_px",
    "fit",
)  # what a result says of the clips


def measure(settings: ProbeSettings) -> tuple[ProbeTask, dict[str, Comparison]] | None:
    """Learn and measure; give what was worked on, and what was found for each label. Raises UserError.

    Under torchrun the processes share the passes over the clips, then number 0 alone learns and measures; the others
    give None.
    """
    work = ProbeTask.of(settings)
    with ranks.join() as mine, _folder(settings.cache, settings.no_cache, mine) as folder:
        first = mine.rank == 0
        say = _say if first else lambda line: None
        for line in work.notes:
            say(line)
        features = store.Store(folder, settings.feature_dtype, say, _bar("features", shown=first), mine)
        what = (work.dataset, work.kinds)
        if not first:
            comparison.features(*what, work.looks, features, settings.batch)
            return None
        shots = Shots(settings.shots or (), settings.shot_draws, settings.seed)
        bar = _bar("heads")
        return work, comparison.compare(*what, work.methods, work.looks, features, settings.batch, bar, shots)


@dataclass(frozen=True)
class ProbeTask:
    """Hold what a measurement works on: an encoder, samples, the features that are compared, and a probe of each label.

    sha256: `extractors.weights_hash` of the encoder. notes: lines to tell, of labels whose task was found.
    """

    subject: Subject
    sha256: str
    dataset: Dataset
    roll_out: RollOut | None
    kinds: dict[str, Extractor]
    looks: Looks
    methods: dict[str, ProbeMethod]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, settings: ProbeSettings) -> ProbeTask:
        """Read the encoder and open the data set. Raises UserError for whatever does not fit together."""
        subject = Subject.read(settings)
        if settings.num_crops > 1 and subject.data.fit != "crop":
            raise UserError(
                f"--num_crops {settings.num_crops}: with fit: {subject.data.fit} every view shows the whole frame; "
                "leave it out, or give --fit crop"
            )
        dataset = _dataset(settings, subject.data)
        if isinstance(dataset.source, datasets.ImageSource):
            subject = subject.of_images()
        chosen = _tasks(settings, dataset)
        readout = _readout(subject, settings.levels, settings.pool, settings.eval_mode, settings.rollout)
        methods = {label: _method(settings, readout, task) for label, task in chosen.items()}
        roll_out = None
        if settings.rollout != "none":
            roll_out = _roll_out(subject, settings, settings.rollout)
        names = baselines.choose(settings.baselines, of_images=subject.data.num_frames == 1)
        sha256 = extractors.weights_hash(subject.encoder)
        kinds = baselines.kinds_of_features(
            subject.encoder, sha256, readout, names, subject.seed, roll_out, settings.rollout
        )
        learn = Passes(settings.train_passes, settings.seed) if settings.train_passes else Views()
        looks = Looks(learn, Views(settings.num_clips, settings.num_crops))
        notes: tuple[str, ...] = ()
        if settings.task == "auto":
            columns = {label: dataset.labels_of(label, dataset.clip_ids) for label in chosen}
            notes = tuple(tasks.describe(task, label, columns[label]) for label, task in chosen.items())
        return cls(subject, sha256, dataset, roll_out, kinds, looks, methods, notes)


def _tasks(settings: ProbeSettings, dataset: Dataset) -> dict[str, Task]:
    """Say what each label is. Raises UserError, before anything is computed, for labels that teach nothing."""
    found = {}
    for label in settings.label:
        labels = dataset.labels_of(label, dataset.clip_ids)
        task = tasks.choose(settings.task, labels, settings.class_weights == "balanced")
        if settings.shots and task.kind == "regress" and min(settings.shots) < 2:
            raise UserError(f"--shots {min(settings.shots)}: {label} is a number; give 2 clips or more")
        for trial in dataset.trials:
            of_fold = f" of fold {trial.name}" if trial.name else ""
            for part, ids in (("train", trial.train), ("selection", trial.selection)):
                _check(task, label, dataset, f"{part}{of_fold}", ids, learned=part == "train")
        _check(task, label, dataset, "val", np.concatenate([trial.test for trial in dataset.trials]), learned=False)
        found[label] = task
    return found


def _check(task: Task, label: str, dataset: Dataset, part: str, clip_ids: np.ndarray, learned: bool) -> None:
    labels = dataset.labels_of(label, clip_ids)
    if not len(labels):
        raise UserError(f"{part}: none of its clips has a value in {label}; give other rows, or another --label")
    task.check(labels, f"{part}, {label}", learned)


def _dataset(settings: ProbeSettings, data: Data) -> Dataset:
    rows = {"train": settings.train, "selection": settings.selection, "val": settings.val}
    request = datasets.Request(settings.label, settings.group, settings.fold, rows, settings.data_root)
    dataset = datasets.open_dataset(settings.dataset, data, request)
    return dataset if settings.anticipation_s is None else anticipation.ahead(dataset, settings.anticipation_s)


def _readout(subject: Subject, levels: str, pool: str, eval_mode: str, rollout: str) -> Readout:
    """Say what is read of the encoder. Raises UserError for blocks or a pooling that it or the probe lacks."""
    pooling = Pooling.parse(pool, subject.grid)
    attentive = eval_mode == "attentive"
    if attentive and pooling.kind != "mean":
        raise UserError(f"--pool {pool}: attentive heads read all tokens in their places; leave it out")
    if rollout != "none" and pooling.kind != "mean":
        raise UserError(
            f"--pool {pool}: a roll-out has time slots of its own, so only means are read beside each other; "
            "leave --pool or --rollout out"
        )
    outputs = ("tokens", "pooled") if attentive else ("pooled",)
    depths = blocks("--levels", levels, subject.encoder.depth)
    return Readout(depths, outputs, subject.device, subject.dtype, pooling, subject.data.channels)


def _method(settings: ProbeSettings, readout: Readout, task: Task) -> ProbeMethod:
    """Say which probe learns, from features that are read so. Raises UserError for a loss that the task has not."""
    if settings.head and settings.head not in task.heads:
        raise UserError(f"--head {settings.head}: numbers are learned by ridge regression; leave it out")
    grid = sweep.Grid(settings.lr, settings.weight_decay, settings.max_steps, settings.probe_batch, settings.seed)
    return ProbeMethod(
        mode=_MODES[settings.eval_mode],
        task=task,
        choices=settings.k or knn.K_CHOICES,
        head=settings.head,
        batch_norm=settings.batch_norm == "yes",
        pooling=readout.pooling,
        depth=settings.depth,
        attention_heads=settings.probe_heads,
        grid=grid,
        device=readout.device,
        dtype=readout.dtype,
    )


def _roll_out(subject: Subject, settings: ProbeSettings, rollout: Literal["predictor", "both"]) -> RollOut:
    """Read the predictor beside the encoder. Raises UserError where there is none, or it cannot reach so far."""
    if settings.anticipation_s is None:
        raise UserError(f"--rollout {rollout}: says what follows until an action; give --anticipation_s too")
    try:
        predictor = load.read(settings.model_path, hints=Hints(settings.encoder)).build_predictor()
    except UserError as error:
        raise UserError(
            f"{error}; --rollout {rollout} needs one: name a run, checkpoint or training file, or give --rollout none"
        ) from None
    predictor = predictor.to(subject.device)
    return RollOut.of(subject.encoder, predictor, subject.data, settings.anticipation_s, subject.trained_frames)


def result(settings: ProbeSettings, work: ProbeTask, label: str, found: Comparison) -> dict[str, Any]:
    """Gather what probe.json keeps of a measurement of one label."""
    subject, ahead, method = work.subject, settings.anticipation_s, work.methods[label]
    return {
        "dataset": ", ".join(name if name in IMAGE_SETS else str(Path(name).absolute()) for name in settings.dataset),
        "eval_mode": settings.eval_mode,
        "label": label,
        "encoder": subject.which,
        "fold": settings.fold,
        "anticipation_s": ahead,
        "rollout": settings.rollout if ahead is not None else None,
        "time_slots": work.roll_out.time_slots(subject.data) if work.roll_out else None,
        "model_path": str(settings.model_path.absolute()),
        "step": subject.step,
        **entries.to_dict(found, method, work.dataset.source.uri),
        **entries.unreadable(f"{work.dataset.source.uri(clip_id)}: {reason}" for clip_id, reason in found.failures),
        "views": {"learn": str(work.looks.learn), "test": str(work.looks.test)},
        "data": {name: getattr(subject.data, name) for name in _READ},
        "levels": settings.levels,
        "pool": None if method.mode == "attentive" else str(method.pooling),
        "data_hash": work.dataset.data_hash(label),
        "weights_hash": work.sha256,
        "where": work.dataset.where,
    }


@contextmanager
def _folder(cache: Path | None, no_cache: bool, mine: Ranks) -> Iterator[Path]:
    """Give the folder that keeps features, made; one that goes away again with `no_cache`."""
    if no_cache:
        if mine.num > 1:
            raise UserError("--no-cache: processes that share the work share a folder; name it with --cache")
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    path = cache or store.default_folder()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: features cannot be kept there ({error.strerror}); name another folder with --cache, "
            "or give --no-cache"
        ) from None
    yield path


def _say(line: str) -> None:
    """Write a line above a bar, not into it."""
    tqdm.write(line, file=sys.stderr)


def _bar(what: str, shown: bool = True) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """Make what shows the progress of some batches."""
    return partial(command.progress_bar, shown=shown, desc=what, leave=False)
