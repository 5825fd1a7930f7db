"""`python -m vjepa.train [CONFIG.yaml] [section.key=value ...]`: pre-train, resume, and close with evidence."""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import TYPE_CHECKING, Any

from vjepa import command, config
from vjepa.errors import UserError

if TYPE_CHECKING:
    import torch

    from vjepa.data.sources import Part, TrainSource
    from vjepa.jepa import Jepa
    from vjepa.models.encoder import Encoder
    from vjepa.probing.evidence import Split
    from vjepa.probing.online import OnlineProbe
    from vjepa.training.checkpoint import TrainingState

STOPPED_EARLY = 75  # exit code (EX_TEMPFAIL): the same command goes on


@dataclass(frozen=True)
class Job:
    """What one call of `train` has to do: settings, their run folder, the clips of each source, a frozen teacher, and
    where to compute.
    """

    settings: config.Config
    folder: Path
    sources: list[TrainSource]
    teacher: Encoder | None
    device: torch.device
    dtype: torch.dtype
    total_steps: int
    progress: bool


def train(settings: config.Config, stop_at_step: int | None = None, progress: bool = True) -> dict[str, Any] | None:
    """Run or resume the training of `settings`, then measure it; returns the summary, or None if it stopped early.

    `stop_at_step` saves and ends before that step, as SIGTERM does: the same call goes on later, bit for bit.
    Raises UserError for bad input, before anything is written where that can be known.
    """
    from vjepa.jepa import build
    from vjepa.training import checkpoint, optim

    job = prepare(settings, progress)
    model = build(settings, job.teacher).to(job.device)
    optimizer = optim.make_optimizer(model, settings.optim)
    state = checkpoint.restore(job.folder, model, optimizer)
    if state.step == 0:
        checkpoint.initialise(model, settings)
    stop = job.total_steps if stop_at_step is None else min(stop_at_step, job.total_steps)
    if progress:
        dtype = str(job.dtype).removeprefix("torch.")
        print(
            f"{job.folder}: step {state.step} of {job.total_steps}, {clips_to_learn_from(job)}, {job.device}, {dtype}",
            flush=True,
        )
    if state.step < stop:
        learn(job, model, optimizer, state, stop)
    if state.step < job.total_steps:
        print(
            f"stopped at step {state.step} of {job.total_steps}; the same command goes on from there", file=sys.stderr
        )
        return None
    return conclude(job, model, state)


def prepare(settings: config.Config, progress: bool) -> Job:
    """Check everything that can be wrong before the first step, then open the run folder."""
    from vjepa import device
    from vjepa.data.sources import open_sources
    from vjepa.interop.teacher import keep_teacher, read_teacher
    from vjepa.jepa import build
    from vjepa.masking.draw import plan
    from vjepa.models.backbone import encoder_width
    from vjepa.probing.evidence import read_splits
    from vjepa.training import checkpoint, run_log

    where, dtype = device.pick(settings.run)
    device.check_compiler(settings.run, where)
    if settings.data.prepare != "none":
        write_data(settings.data, progress)
    sources = open_sources(settings.data)
    if settings.data.val is not None:
        val = read_splits(settings.data, settings.eval.labels, settings.eval.group).val
        for part in [part for source in sources for part in source.parts][1:]:
            refuse_shared(part, val)
    for grid in settings.grids.values():
        plan(settings.masks, grid)
    weights = read_teacher(settings)
    teacher = weights.build_encoder() if weights else None
    started = Path(settings.run.dir or "", "checkpoints", "latest").exists()
    encoder_width(settings.model)  # is an error where timm has no such network
    if (
        settings.run.init_from or settings.model.pretrained
    ) and not started:  # a run that goes on needs its own checkpoint alone
        checkpoint.initialise(build(settings, teacher), settings)
    total = settings.optim.total_steps or steps_of_epochs(settings, len(sources[0].parts[0].rows))
    folder = run_log.open_run(settings)
    if weights:
        keep_teacher(weights, folder)
    return Job(settings, folder, sources, teacher, where, dtype, total, progress)


def write_data(data: config.Data, progress: bool) -> None:
    """The data set that `data.prepare` names, beside its index, unless it is there. Images have the splits that the
    probe knows.
    """
    from data_prep.first_run import demo, pictures
    from vjepa.probing.datasets_images import open_images

    path = Path(data.train.index)
    if data.prepare == "demo":
        demo.prepare(path, progress)
    else:
        found = open_images(data.prepare)
        split = {int(i): name for name, rows in found.splits.items() for i in rows}
        columns = {"label": found.labels, "split": [split[i] for i in range(len(found.images))]}
        pictures.prepare(path, map(found.images.read, range(len(found.images))), columns, progress)


def steps_of_epochs(settings: config.Config, num_rows: int) -> int:
    """The steps in which the `num_rows` rows of data.train have their turn `optim.epochs` times."""
    from vjepa.data.order import total_steps

    data, seed = settings.data, settings.run.seed
    turns = total_steps(seed, math.ceil((settings.optim.epochs or 0) * num_rows), data.clip_ratios)
    return total_steps(seed, math.ceil(turns * data.clips_in_turn / data.global_batch), data.mix_ratios)


def refuse_shared(part: Part, val: Split) -> None:
    """Raises UserError where the encoder would learn from clips that it is measured on."""
    import numpy as np

    shared = len(np.intersect1d(part.rows, val.rows)) if part.index.path == val.index.path else 0
    if shared:
        raise UserError(
            f"{part.name}: {shared} of its {len(part.rows)} clips are in data.val too; give other rows, e.g. "
            f"where: {{split: train}}"
        )


def clips_to_learn_from(job: Job) -> str:
    """`2394 clips`, or for a mix the clips and the steps of each source."""
    if len(job.sources) == 1:
        return f"{job.sources[0].num_rows} clips"
    return ", ".join(
        f"{steps} steps on {source.num_rows} clips of {source.name}"
        for source, steps in zip(job.sources, steps_by_source(job), strict=True)
    )


def steps_by_source(job: Job) -> list[int]:
    """How many steps of the whole run each source has."""
    from vjepa.data.order import num_steps

    return num_steps(job.settings.run.seed, job.total_steps, job.settings.data.mix_ratios)


def learn(job: Job, model: Jepa, optimizer: torch.optim.Optimizer, state: TrainingState, stop: int) -> None:
    """Steps `state.step` to `stop`. Everything random is a function of (seed, step), so there is no other state to
    keep.
    """
    from vjepa.data.loader import train_loader
    from vjepa.training import checkpoint, run_log
    from vjepa.training.step import TrainingStep

    run = job.settings.run
    loader = train_loader(
        job.sources, job.settings.data, run.seed, range(state.step, stop), pin_memory=job.device.type == "cuda"
    )
    log, bar = run_log.RunLog(job.folder, state.step), Progress(job, state.step)
    training_step = TrainingStep(job.settings, model, optimizer, job.dtype, job.total_steps)
    probe = online_probe(job)
    with interruptible() as interrupted:
        for step, batch in zip(range(state.step, stop), loader, strict=True):
            terms = training_step(step, batch.video)
            state.step = step + 1
            state.note(batch)
            ending = state.step == stop or bool(interrupted)
            found = probe.measure_at(state.step, model) if probe else {}
            is_best = bool(found) and (state.best_knn is None or found["knn"] > state.best_knn)
            state.best_knn = found["knn"] if is_best else state.best_knn
            saving = ending or is_best or state.step % run.save_every_steps == 0
            bar.advance(len(batch.clip_ids))
            if saving or found or state.step % run.log_every_steps == 0:
                values = read_terms(terms, state.step)
                facts = {
                    "lr": optimizer.param_groups[0]["lr"],
                    **({"ema_decay": training_step.ema_decay(step)} if training_step.shadow else {}),
                    "clips_per_s": bar.clips_per_s,
                    "num_replaced": state.num_replaced,
                }
                log.write(state.step, {**values, **facts, **found}, batch.source)
                bar.show(values["loss"])
            if saving:
                checkpoint.save(job.folder, model, optimizer, state, run.keep_checkpoints, is_best)
            if is_best:
                write_best(job)
            if ending:
                break
    bar.close()
    log.close()


def online_probe(job: Job) -> OnlineProbe | None:
    """The probe that is read during training, where the settings ask for one."""
    from vjepa.jepa import untrained_encoder
    from vjepa.probing.online import OnlineProbe

    if job.settings.eval.every_steps is None:
        return None
    return OnlineProbe(job.settings, untrained_encoder(job.settings), job.device, job.dtype)


def write_best(job: Job) -> None:
    """checkpoints/best.pth: the networks of the best checkpoint, or of the newest where none was measured,
    in one file.
    """
    from vjepa.interop import own

    checkpoints = job.folder / "checkpoints"
    best = checkpoints / "best"
    own.write(
        own.read((best if best.exists() else checkpoints / "latest").resolve(), job.settings.eval.encoder),
        checkpoints / "best.pth",
    )


def read_terms(terms: dict[str, torch.Tensor], step: int) -> dict[str, float]:
    """Copy the loss terms to the host. Raises UserError where the loss is not finite: nothing is saved after that."""
    values = {name: float(term.detach()) for name, term in terms.items()}
    if not math.isfinite(values["loss"]):
        raise UserError(
            f"the loss is {values['loss']} at step {step}; lower optim.lr or set optim.clip_grad. The last "
            "checkpoint is untouched"
        )
    return values


def conclude(job: Job, model: Jepa, state: TrainingState) -> dict[str, Any]:
    """Measure the frozen encoder, write summary.json and the pictures, print the closing table. A finished run is only
    shown again.
    """
    from vjepa import report
    from vjepa.jepa import untrained_encoder
    from vjepa.probing.evidence import evaluate_run
    from vjepa.training import run_log

    path, settings = job.folder / "summary.json", job.settings
    if path.is_file():
        summary: dict[str, Any] = json.loads(path.read_text())
    else:
        model.requires_grad_(False)
        encoder = getattr(model, settings.eval.encoder)
        rows = run_log.read_metrics(job.folder)
        losses = {int(row.get("source", 0)): row["loss"] for row in rows}  # the last of each source
        summary = {
            "steps": state.step,
            "final_loss": losses.get(0, rows[-1]["loss"]),
            "clips_per_s": rows[-1]["clips_per_s"],
            "num_replaced": state.num_replaced,
        }
        summary["replaced"] = {job.sources[source].uri(clip_id): reason for source, clip_id, reason in state.replaced()}
        if settings.data.mix:
            parts = enumerate(zip(job.sources, steps_by_source(job), strict=True))
            summary["sources"] = [
                {"name": part.name, "clips": part.num_rows, "steps": steps, "final_loss": losses.get(k)}
                for k, (part, steps) in parts
            ]
        if settings.data.val is not None:
            summary |= evaluate_run(settings, encoder, untrained_encoder(settings), job.device, job.dtype)
        draw(job, encoder, rows)
        write_best(job)
        run_log.write_atomically(path, json.dumps(summary, indent=1))
    if job.progress:
        print("\n" + report.closing_table(summary))
        print(f"{job.folder}: summary.json, metrics.jsonl, tensorboard/, pictures/, checkpoints/latest/")
    return summary


def draw(job: Job, encoder: torch.nn.Module, rows: list[dict[str, float]]) -> None:
    """The pictures of a run: loss curve, a clip with its mask, features of a few validation clips."""
    import torch

    from vjepa import report
    from vjepa.data.augment import normalise
    from vjepa.data.clip_index import ClipIndex
    from vjepa.data.loader import eval_loader
    from vjepa.masking.draw import plan

    settings = job.settings
    source = settings.data.val or settings.data.train
    index = ClipIndex.open(source.index)
    shown = index.select(source.where)[:4]
    videos = next(iter(eval_loader(index, shown, settings.data, len(shown), workers=0))).video
    mask = plan(settings.masks, settings.grid).draw(1, settings.run.seed, 0, 0, job.total_steps)[0]
    with torch.inference_mode():
        tokens = encoder(normalise(videos.to(job.device), torch.float32))
    report.save_pictures(job.folder / "pictures", rows, videos, settings.grid, mask.context_ids[0], tokens)


class Progress:
    """Progress bar with clips/s, loss and time left; where nobody watches, a line now and then."""

    def __init__(self, job: Job, done: int) -> None:
        self.clips, self.started = 0, perf_counter()
        layout = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}, {remaining} left{postfix}]"
        self.bar = command.progress_bar(
            shown=job.progress, total=job.total_steps, initial=done, desc="train", bar_format=layout
        )

    @property
    def clips_per_s(self) -> float:
        return round(self.clips / max(perf_counter() - self.started, 1e-9), 2)

    def advance(self, num_clips: int) -> None:
        """One step is done, of `num_clips` clips."""
        self.clips += num_clips
        self.bar.update()

    def show(self, loss: float) -> None:
        self.bar.set_postfix_str(f"loss {loss:.4f}, {self.clips_per_s:.1f} clips/s", refresh=False)

    def close(self) -> None:
        self.bar.close()


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """SIGTERM and Ctrl-C end the loop after the step in hand, with a checkpoint; a second one ends it at once."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str]) -> int:
    parser = command.config_parser(
        "train", "Pre-train a video encoder, or go on with a run, and measure what it learned."
    )
    parser.add_argument(
        "--stop-at-step", type=int, metavar="N", help="save and stop after N steps; the same command without it goes on"
    )
    options = parser.parse_args(arguments)
    settings = command.read_config(options)
    if options.print_config:
        print(config.dump(settings), end="")
        return 0
    finished = train(settings, options.stop_at_step) is not None
    return 0 if finished or options.stop_at_step is not None else STOPPED_EARLY


if __name__ == "__main__":
    command.run(main)
