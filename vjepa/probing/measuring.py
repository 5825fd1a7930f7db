"""Measure a frozen encoder by a probe beside its baselines, and keep what was found: the work of `vjepa.probe`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tqdm import tqdm

from vjepa import command, ranks
from vjepa.config import Data
from vjepa.data.plan_rows import Passes, Views
from vjepa.errors import UserError
from vjepa.interop import load
from vjepa.interop.meta import Hints
from vjepa.interop.probes import write_probes
from vjepa.models.pooling import Pooling
from vjepa.probing import anticipation, baselines, comparison, datasets, knn, recipes, results, store, summary, sweep
from vjepa.probing.anticipation import RollOut
from vjepa.probing.comparison import TRAINED, Comparison, Looks
from vjepa.probing.datasets import Dataset
from vjepa.probing.datasets_images import IMAGE_SETS
from vjepa.probing.protocol import Method, Mode
from vjepa.probing.recipes import Reading
from vjepa.probing.settings import ProbeSettings
from vjepa.probing.store import Recipe
from vjepa.probing.subject import Subject, blocks
from vjepa.ranks import Ranks
from vjepa.run_folder import RunFolder

# the name on the command line -> the name in the code
_MODES: Final[dict[str, Mode]] = {"knn": "knn", "linear_probe": "linear", "attentive": "attentive"}
_READ: Final = ("num_frames", "clip_fps", "frame_step", "duration_s", "crop_px")  # what a result says of the clips
# what a head needs to be used again: the features that it reads, and what its answers mean
_OF_HEADS: Final = (
    *results.KEY, "fold", "model_path", "weights_hash", "levels", "data", "anticipation_s", "rollout"
)  # fmt: skip


def measure(settings: ProbeSettings) -> str | None:
    """Measure and write into probe.json what was found; give the table to print. Raises UserError.

    Under torchrun the processes share the passes over the clips, then number 0 alone learns and measures; the others
    give None.
    """
    run = RunFolder.above(settings.model_path)
    path = settings.out or Path(run.path if run else ".", "probe.json")
    results.read(path)  # a file that cannot take the result should show before the work
    work = Measurement.of(settings)
    with ranks.join() as mine, _folder(settings.cache, settings.no_cache, mine) as folder:
        first = mine.rank == 0
        say, watch = _say if first else lambda line: None, _watch("features", first)
        features = store.Store(folder, settings.feature_dtype, say, watch, mine)
        what = (work.dataset, work.recipes)
        if not first:
            comparison.features(*what, work.looks, features, settings.batch)
            return None
        found = comparison.compare(*what, work.method, work.looks, features, settings.batch, _watch("heads"))
    result = _result(settings, work, found)
    stem = path.with_name(_stem(path, settings, result["pool"]))
    result["pictures"] = summary.write_pictures(stem, work.dataset, found, settings.batch)
    result["chosen_heads"] = _write_heads(stem.with_name(f"{stem.name}.safetensors"), found, result)
    results.save(path, result)
    return f"{summary.table(found, work.dataset, result)}\n-> {path}"


@dataclass(frozen=True)
class Measurement:
    """Hold what a measurement works on: an encoder, samples, the features that are compared, and a probe.

    sha256: `recipes.weights_hash` of the encoder.
    """

    subject: Subject
    sha256: str
    dataset: Dataset
    roll_out: RollOut | None
    recipes: dict[str, Recipe]
    looks: Looks
    method: Method

    @classmethod
    def of(cls, settings: ProbeSettings) -> Measurement:
        """Read the encoder and open the data set. Raises UserError for whatever does not fit together."""
        subject = Subject.read(settings)
        dataset = _dataset(settings, subject.data)
        if isinstance(dataset.source, datasets.ImageSource):
            subject = subject.of_images()
        reading = _reading(subject, settings.levels, settings.pool, settings.eval_mode, settings.rollout)
        method = _method(settings, reading)
        roll_out = None
        if settings.rollout != "none":
            roll_out = _roll_out(subject, settings, settings.rollout)
        names = baselines.choose(settings.baselines, of_images=subject.data.num_frames == 1)
        sha256 = recipes.weights_hash(subject.encoder)
        kinds = baselines.feature_recipes(subject.encoder, sha256, reading, names, roll_out, settings.rollout)
        learn = Passes(settings.train_passes, settings.seed) if settings.train_passes else Views()
        looks = Looks(learn, Views(settings.num_clips, settings.num_crops))
        return cls(subject, sha256, dataset, roll_out, kinds, looks, method)


def _dataset(settings: ProbeSettings, data: Data) -> Dataset:
    rows = {"train": settings.train, "selection": settings.selection, "val": settings.val}
    request = datasets.Request(settings.label, settings.group, settings.fold, rows, settings.data_root)
    dataset = datasets.open_dataset(settings.dataset, data, request)
    return dataset if settings.anticipation_s is None else anticipation.ahead(dataset, settings.anticipation_s)


def _reading(subject: Subject, levels: str, pool: str, eval_mode: str, rollout: str) -> Reading:
    """Say what is read of the encoder. Raises UserError for blocks that it does not have, and for a pooling that its
    tokens or the probe do not have.
    """
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
    return Reading(blocks("--levels", levels, subject.encoder.depth), outputs, subject.device, subject.dtype, pooling)


def _method(settings: ProbeSettings, reading: Reading) -> Method:
    """Say which probe learns, from features that are read so."""
    grid = sweep.Grid(
        settings.lr or sweep.LEARNING_RATES,
        settings.weight_decay or sweep.WEIGHT_DECAYS,
        settings.epochs,
        settings.probe_batch,
        settings.seed,
    )
    return Method(
        mode=_MODES[settings.eval_mode],
        choices=settings.k or knn.K_CHOICES,
        head=settings.head,
        batch_norm=settings.batch_norm == "yes",
        pooling=reading.pooling,
        depth=settings.depth,
        attention_heads=settings.probe_heads,
        grid=grid,
        device=reading.device,
        dtype=reading.dtype,
    )


def _roll_out(subject: Subject, settings: ProbeSettings, rollout: Literal["predictor", "both"]) -> RollOut:
    """Read the predictor beside the encoder. Raises UserError for a model without one, or one that cannot reach so
    far.
    """
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


def _result(settings: ProbeSettings, work: Measurement, found: Comparison) -> dict[str, Any]:
    """Gather what probe.json keeps of a measurement."""
    subject, ahead = work.subject, settings.anticipation_s
    return {
        "dataset": settings.dataset if settings.dataset in IMAGE_SETS else str(Path(settings.dataset).absolute()),
        "eval_mode": settings.eval_mode,
        "label": settings.label,
        "encoder": subject.which,
        "fold": settings.fold,
        "anticipation_s": ahead,
        "rollout": settings.rollout if ahead is not None else None,
        "time_slots": work.roll_out.time_slots(subject.data) if work.roll_out else None,
        "model_path": str(settings.model_path.absolute()),
        "step": subject.step,
        **summary.to_dict(found, work.dataset, work.method),
        "views": {"learn": str(work.looks.learn), "test": str(work.looks.test)},
        "data": {name: getattr(subject.data, name) for name in _READ},
        "levels": settings.levels,
        "pool": None if work.method.mode == "attentive" else str(work.method.pooling),
        "data_hash": work.dataset.data_hash,
        "weights_hash": work.sha256,
        "where": work.dataset.where,
    }


def _stem(path: Path, settings: ProbeSettings, pool: str | None) -> str:
    """Name what lies beside probe.json of one measurement."""
    ahead = "" if settings.anticipation_s is None else f"_{settings.anticipation_s:g}s_ahead_{settings.rollout}"
    pooled = "" if pool in (None, "mean") else f"_{pool.replace(':', '')}"
    return f"{path.stem}_{settings.eval_mode}_{settings.label}{pooled}{ahead}"


def _write_heads(path: Path, found: Comparison, result: dict[str, Any]) -> str | None:
    """Write the chosen heads of the encoder, one for each trial; give the path, or None where the probe has none."""
    heads = [answer.head for answer in found.kinds[TRAINED].answers if answer.head]
    if not heads:
        return None
    write_probes(path, heads, {name: result[name] for name in _OF_HEADS})
    return str(path)


@contextmanager
def _folder(cache: Path | None, no_cache: bool, mine: Ranks) -> Iterator[Path]:
    """Give the folder that keeps features, made; one that goes away again with `no_cache`."""
    if no_cache:
        if mine.num > 1:
            raise UserError(
                "--no-cache: processes that share the work share a folder of features; name it with --cache"
            )
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


def _watch(what: str, shown: bool = True) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """Make what shows the progress of some batches."""

    def watch(batches: Iterable[Any]) -> Iterable[Any]:
        bar: Iterable[Any] = command.progress_bar(batches, shown=shown, desc=what, leave=False)
        return bar

    return watch
