"""Fine-tune from settings: check, learn, choose on selection clips, then measure validation clips once."""

from __future__ import annotations

import hashlib
import math
import statistics
import sys
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch

from vjepa import config, device, files
from vjepa.data.plan_rows import Views
from vjepa.finetuning import Finetuning, Head
from vjepa.interop import own
from vjepa.interop.probes import write_probes
from vjepa.interop.weights import Weights
from vjepa.models.encoder import Encoder
from vjepa.probing import classifying
from vjepa.probing.classifying import Network, SelectionJudge
from vjepa.probing.comparison import TRAINED, Comparison, Looks, compare
from vjepa.probing.datasets import Dataset
from vjepa.probing.entries import unreadable
from vjepa.probing.extractors import Readout, encoder_extractor, weights_hash
from vjepa.probing.protocol import ProbeMethod
from vjepa.probing.scores import Scores
from vjepa.ranks import refuse_several
from vjepa.reporting import finetuned, pictures
from vjepa.reporting.writing import write_page
from vjepa.training import checkpoint, run_log
from vjepa.training import finetuning_start as start
from vjepa.training.checkpoint import TrainingState
from vjepa.training.loop import TrainingRun, learn
from vjepa.training.open_run import open_run, sole_writer
from vjepa.training.optim import make_optimizer
from vjepa.training.resuming import check_precision, dtype_name, run_length
from vjepa.training.step import TrainingStep

FinetuningRun = TrainingRun[config.FinetuneConfig]


@dataclass(frozen=True)
class Labelled:
    """Hold what a run works on: its start, the labelled clips, the classes that are learned."""

    weights: Weights
    dataset: Dataset
    classes: tuple[str, ...]


def finetune(
    settings: config.FinetuneConfig, stop_at_step: int | None = None, progress: bool = True
) -> dict[str, Any] | None:
    """Run or resume the fine-tuning of `settings`, then measure it; return the summary, or None if it stopped early.

    `stop_at_step` saves and ends before that step, as SIGTERM does: the same call goes on later, bit for bit.
    Raises UserError for bad input, before anything is written where that can be known.
    """
    run, method, work = prepare(settings, progress)
    with sole_writer(run.folder):
        return _go_on(run, method, work, stop_at_step)


def prepare(settings: config.FinetuneConfig, progress: bool) -> tuple[FinetuningRun, Finetuning, Labelled]:
    """Check everything that can be wrong before the first step, then open the run folder."""
    refuse_several("vjepa.finetune")
    where, dtype = device.pick(settings.run)
    device.check_compiler(settings.run, where)
    dataset = start.open_dataset(settings)
    classes = start.classes_of(dataset)
    weights = start.read_start(settings)
    encoder = start.build_encoder(settings, weights)
    head = start.build_head(settings, encoder.width, classes)
    method = Finetuning(settings, encoder, head, start.class_numbers(dataset, classes)).to(where)
    sources = [start.training_source(settings, dataset)]
    folder = open_run(settings, settings.EVIDENCE)
    start.keep_start(weights, folder)
    total = run_length(settings, sources)
    return (
        FinetuningRun(settings, folder, sources, where, dtype, total, progress),
        method,
        Labelled(weights, dataset, classes),
    )


def _go_on(run: FinetuningRun, method: Finetuning, work: Labelled, stop_at_step: int | None) -> dict[str, Any] | None:
    """Restore or start, learn up to `stop_at_step` or the end, and measure; see `finetune`."""
    settings, wanted = run.settings, run.settings.finetune
    optimizer = make_optimizer(method, settings.optim, method.lr_scales())
    state = checkpoint.restore(run.folder, method, optimizer)
    if run.folder.latest is None and wanted.head_start == "linear" and not wanted.from_scratch:
        network = _network(run, method.encoder.eval(), method.head.eval())
        start.start_head(settings, network, work.dataset, work.classes, run.progress)
        method.average_anew()
    stop = run.total_steps if stop_at_step is None else min(stop_at_step, run.total_steps)
    if run.progress:
        told = f"{len(work.classes)} classes, {run.sources[0].num_rows} clips"
        print(
            f"{run.folder.path}: step {state.step} of {run.total_steps}, {told}, {run.device}, {dtype_name(run.dtype)}",
            flush=True,
        )
    if state.step < stop:
        _learn(run, method, work, optimizer, state, stop)
    if state.step < run.total_steps:
        steps = f"step {state.step} of {run.total_steps}"
        print(f"stopped at {steps}; the same command goes on from there", file=sys.stderr)
        return None
    return conclude(run, method, work, state)


def _network(run: FinetuningRun, encoder: Encoder, head: Head) -> Network:
    return Network(encoder, head, run.device, run.dtype, channels=run.settings.data.channels)


def _learn(
    run: FinetuningRun,
    method: Finetuning,
    work: Labelled,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    stop: int,
) -> None:
    settings = run.settings
    check_precision(run, state)
    state.dtype = dtype_name(run.dtype)
    step = TrainingStep(
        method, optimizer, settings.optim, run.dtype, run.total_steps, settings.run.compile, guard=settings.guard
    )
    network = _network(run, *method.measured)
    an_epoch = math.ceil(run.sources[0].num_rows / settings.data.global_batch)
    every = settings.finetune.eval_every_steps or an_epoch
    judge = SelectionJudge(network, work.dataset, work.classes, every, run.total_steps, settings.test.batch)
    learn(run, step, run_log.RunLog(run.folder, state.step), judge, None, state, stop)


def conclude(run: FinetuningRun, method: Finetuning, work: Labelled, state: TrainingState) -> dict[str, Any] | None:
    """Measure the best checkpoint on validation clips, beside the frozen probes; a finished run is only shown again.

    None where the baseline from scratch was stopped.
    """
    evidence, path = _evidence(run.settings, work.dataset), run.folder.summary
    summary = finetuned.read(run.folder) if path.is_file() else {}
    if summary and (summary["steps"] != state.step or summary["evidence"] != evidence):
        print(f"{path}: is of other clips, labels or test settings; measured again", file=sys.stderr)
        summary = {}
    if not summary:
        scratch = _from_scratch(run) if run.settings.test.scratch else None
        if run.settings.test.scratch and scratch is None:
            return None
        summary = _facts(run, state) | _measure(run, method, work, scratch) | {"evidence": evidence}
        files.write_json(path, summary)
        write_page(run.folder)
    if run.progress:
        print("\n" + finetuned.closing_table(summary))
        print(f"{run.folder.path}: report.html, summary.json, metrics.jsonl, tensorboard/, pictures/, head.safetensors")
    return summary


def _from_scratch(run: FinetuningRun) -> dict[str, Any] | None:
    """Train the same from random weights, in a folder inside the run; None where that was stopped."""
    settings = run.settings
    changes = {
        "run": settings.run.model_copy(update={"dir": str(run.folder.scratch)}),
        "finetune": settings.finetune.model_copy(update={"from_scratch": True}),
        "test": settings.test.model_copy(update={"scratch": False, "probes": []}),
    }
    if run.progress:
        print("from scratch:", flush=True)
    return finetune(settings.model_copy(update=changes), progress=run.progress)


def _measure(run: FinetuningRun, method: Finetuning, work: Labelled, scratch: dict[str, Any] | None) -> dict[str, Any]:
    """Answer validation clips by the best checkpoint and by the probes of the frozen start; keep the head."""
    settings, dataset, test = run.settings, work.dataset, run.settings.test
    measured = run.folder.best or run.folder.require()
    checkpoint.load_networks(measured, method)
    method.requires_grad_(False).eval()
    encoder, head = method.measured
    views, trial = Views(test.num_clips, test.num_crops), dataset.trials[0]
    network = _network(run, encoder, head)
    answers = classifying.answer(network, dataset.source, trial.test, views, test.batch)
    scores = classifying.score_answers(answers, work.classes, dataset)
    own.write(own.read(measured.path), run.folder.best_file)
    about = {"label": settings.finetune.label, "step": measured.step, "weights_hash": weights_hash(encoder)}
    write_probes(run.folder.head, [head], about)
    kinds = {finetuned.SCRATCH if settings.finetune.from_scratch else finetuned.FINETUNED: finetuned.shares(scores)}
    kinds |= {finetuned.SCRATCH: scratch["kinds"][finetuned.SCRATCH]} if scratch else {}
    frozen = {mode: cast(Scores, found.kinds[TRAINED].scores) for mode, found in _probe(run, work, views).items()}
    kinds |= {f"frozen, {mode}": finetuned.shares(found) for mode, found in frozen.items()}
    return {
        "label": settings.finetune.label,
        "measured": {"encoder": settings.measured[0], "step": measured.step},
        "views": f"{views.num_clips} clips x {views.num_crops} crops of each video",
        "kinds": kinds | {"chance": {"top1": asdict(classifying.chance(answers.clip_ids, dataset))}},
        "num_clips": {"train": len(trial.train), "selection": len(trial.selection), "val": scores.num_clips},
        "scores": _with_uris(scores.to_dict(), dataset),
        "pictures": _draw(run, scores, dataset),
        **unreadable(f"{dataset.source.uri(clip_id)}: {reason}" for clip_id, reason in answers.failures),
    }


def _probe(run: FinetuningRun, work: Labelled, views: Views) -> dict[str, Comparison]:
    """Measure the frozen start by the probes that are asked for: mode -> comparison."""
    test, found = run.settings.test, dict[str, Comparison]()
    if not test.probes:
        return {}
    encoder = work.weights.build_encoder().to(run.device)
    outputs = ("tokens", "pooled") if "attentive" in test.probes else ("pooled",)
    channels = run.settings.data.channels
    readout = Readout((encoder.depth - 1,), outputs, run.device, run.dtype, channels=channels)
    extractor = encoder_extractor(encoder, weights_hash(encoder), readout)
    for mode in test.probes:
        methods = {run.settings.finetune.label: ProbeMethod(mode, device=run.device, dtype=run.dtype)}
        store, looks = start.frozen_features(run.progress), Looks(Views(), views)
        (found[mode],) = compare(work.dataset, {TRAINED: extractor}, methods, looks, store, test.batch).values()
    return found


def _with_uris(scores: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
    """Say of the worst mistakes where their clips are."""
    for mistake in scores["worst"]:
        mistake["uri"] = dataset.source.uri(mistake["clip_id"])
    return scores


def _draw(run: FinetuningRun, scores: Scores, dataset: Dataset) -> list[str]:
    """Draw the loss, which classes are taken for which, and the worst mistakes; give the paths."""
    folder = run.folder.pictures
    stem = folder / run.settings.finetune.label
    drawn = pictures.save_probe_pictures(stem, scores, dataset.source, run.settings.test.batch)
    curve = folder / "loss_curve.png"
    pictures.loss_curve(curve, run_log.read_metrics(run.folder), ["loss", "selection_loss"])
    return [*drawn, str(curve)]


def _facts(run: FinetuningRun, state: TrainingState) -> dict[str, Any]:
    """Sum up the training itself."""
    rows = run_log.read_metrics(run.folder)
    chosen = [row for row in rows if row.get("selection_accuracy") is not None]
    best = max(chosen, key=lambda row: (row["selection_accuracy"], -row["selection_loss"]))
    return {
        "steps": state.step,
        "final_loss": next(row["loss"] for row in reversed(rows) if "loss" in row),
        "selection": {name: best[name] for name in ("step", "selection_accuracy", "selection_loss")},
        "clips_per_s": statistics.median(row["clips_per_s"] for row in rows),
        "num_replaced": state.num_replaced,
        "replaced": {run.sources[source].uri(clip_id): reason for source, clip_id, reason in state.replaced()},
    }


def _evidence(settings: config.FinetuneConfig, dataset: Dataset) -> str:
    """Name by a hash what a run is measured by: clips, labels and settings."""
    wanted = settings.test.model_dump_json(exclude={"batch"})
    return hashlib.sha256(f"{wanted} {dataset.data_hash(settings.finetune.label)}".encode()).hexdigest()
