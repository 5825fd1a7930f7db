"""`python -m vjepa.train [CONFIG.yaml] [section.key=value ...]`: pre-train, resume, and close with evidence."""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from vjepa import command, config
from vjepa.errors import UserError

if TYPE_CHECKING:
    import torch

    from vjepa.data.clip_index import ClipIndex
    from vjepa.jepa import Jepa
    from vjepa.training.checkpoint import TrainingState


def train(settings: config.Config, stop_at_step: int | None = None, progress: bool = True) -> dict[str, Any] | None:
    """Run or resume the training of `settings`, then measure it; returns the summary, or None if it stopped early.

    `stop_at_step` saves and ends before that step, as SIGTERM does: the same call goes on later, bit for bit.
    Raises UserError for bad input, before anything is written where that can be known.
    """
    from vjepa.data.clip_index import ClipIndex
    from vjepa.jepa import build
    from vjepa.training import checkpoint, device, optim, run_log

    where, dtype = device.pick(settings.run)
    prepare_data(settings, progress)
    index = ClipIndex.open(settings.data.train.index)
    rows = index.select(settings.data.train.where)
    if settings.data.val is not None:
        from vjepa.probing.evidence import read_splits

        read_splits(settings.data, settings.eval.labels)  # a wrong label or split shows now, not after the training
    total = num_steps(settings, len(rows))
    model = build(settings).to(where)
    check_masks(settings, model)
    folder = run_log.open_run(settings)
    optimizer = optim.make_optimizer(model, settings.optim)
    state = checkpoint.restore(folder, model, optimizer)
    if progress:
        print(f"{folder}: step {state.step} of {total}, {len(rows)} clips, {where}, {str(dtype).removeprefix('torch.')}")
    stop = total if stop_at_step is None else min(stop_at_step, total)
    if state.step < stop:
        learn(settings, model, optimizer, state, folder, index, rows, stop, total, where, dtype, progress)
    if state.step < total:
        print(f"stopped at step {state.step} of {total}; the same command goes on from there", file=sys.stderr)
        return None
    return conclude(settings, folder, state, model, index, where, dtype, progress)


def learn(
    settings: config.Config,
    model: Jepa,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    folder: Path,
    index: ClipIndex,
    rows: Any,
    stop: int,
    total: int,
    where: torch.device,
    dtype: torch.dtype,
    progress: bool,
) -> None:
    """The training loop: steps `state.step` to `stop`. Everything random is a function of (seed, step), so no state is kept for it."""
    import torch

    from vjepa.data.augment import normalise
    from vjepa.data.loader import train_loader
    from vjepa.masking.tube import tube_mask
    from vjepa.training import checkpoint, optim, schedules
    from vjepa.training.run_log import RunLog

    data, batch_size = settings.data, settings.data.global_batch
    grid = model.encoder.grid(data.num_frames, data.crop_px, data.crop_px)
    loader = train_loader(index, rows, data, settings.run.seed, range(state.step, stop), pin_memory=where.type == "cuda")
    log, bar = RunLog(folder, state.step), Progress(state.step, total, batch_size, progress)
    model.train()
    with interruptible() as interrupted:
        for step, batch in zip(range(state.step, stop), loader, strict=True):
            lr = optim.set_schedules(optimizer, settings.optim, step, total)
            video = normalise(batch.video.to(where, non_blocking=True), dtype)
            masks = [tube_mask(mask, grid, batch_size, settings.run.seed, step * batch_size, i).to(where) for i, mask in enumerate(settings.masks)]
            with torch.autocast(where.type, dtype, enabled=dtype is not torch.float32):
                terms = model(video, masks)
            terms["loss"].backward()
            if settings.optim.clip_grad is not None:
                terms["grad_norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.optim.clip_grad)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            decay = schedules.linear(step, total, settings.optim.ema_decay, settings.optim.final_ema_decay)
            optim.update_ema(model.target_encoder, model.encoder, decay)

            state.step = step + 1
            state.note(batch)
            ending = state.step == stop or bool(interrupted)
            saving = ending or state.step % settings.run.save_every_steps == 0
            bar.advance()
            if saving or state.step % settings.run.log_every_steps == 0:
                values = read_terms(terms, step)
                log.write(state.step, {**values, "lr": lr, "ema_decay": decay, "clips_per_s": bar.clips_per_s, "num_replaced": state.num_replaced})
                bar.show(values["loss"])
            if saving:
                checkpoint.save(folder, model, optimizer, state, settings.run.keep_checkpoints)
            if ending:
                break
    bar.close()
    log.close()


def conclude(
    settings: config.Config, folder: Path, state: TrainingState, model: Jepa, index: ClipIndex, where: torch.device, dtype: torch.dtype, progress: bool
) -> dict[str, Any]:
    """Measure the frozen encoder, write summary.json and the pictures, print the closing table. A finished run is only shown again."""
    from vjepa import report
    from vjepa.jepa import untrained_encoder
    from vjepa.probing.evidence import evaluate_run
    from vjepa.training import run_log

    path = folder / "summary.json"
    if path.is_file():
        summary: dict[str, Any] = json.loads(path.read_text())
    else:
        model.requires_grad_(False)
        rows = run_log.read_metrics(folder)
        summary = {"config": str(folder / "config.yaml"), "steps": state.step, "final_loss": rows[-1]["loss"], "clips_per_s": rows[-1]["clips_per_s"]}
        summary |= {"num_replaced": state.num_replaced, "replaced": {str(index.row(int(clip)).path): reason for clip, reason in state.unreadable.items()}}
        if settings.data.val is not None:
            summary |= evaluate_run(settings, getattr(model, settings.eval.encoder), untrained_encoder(settings), where, dtype)
        draw(settings, folder, model, where, rows)
        run_log.write_atomically(path, json.dumps(summary, indent=1))
    if progress:
        if settings.data.val is not None:
            print(report.closing_table(summary))
        if summary["num_replaced"]:
            print(f"{summary['num_replaced']} clips could not be read and were replaced; summary.json names the files under `replaced`")
        print(f"final loss {summary['final_loss']:.6f} after {summary['steps']} steps")
        print(f"{folder}: summary.json, metrics.jsonl, pictures/, checkpoints/latest")
    return summary


def draw(settings: config.Config, folder: Path, model: Jepa, where: torch.device, rows: list[dict[str, float]]) -> None:
    """The pictures of a run: loss curve, a clip with its mask, features of a few validation clips."""
    import torch

    from vjepa import report
    from vjepa.data.augment import normalise
    from vjepa.data.clip_index import ClipIndex
    from vjepa.data.loader import eval_loader
    from vjepa.masking.tube import tube_mask

    source = settings.data.val or settings.data.train
    index = ClipIndex.open(source.index)
    shown = index.select(source.where)[:4]
    videos = next(iter(eval_loader(index, shown, settings.data, len(shown), workers=0))).video
    encoder = getattr(model, settings.eval.encoder)
    grid = encoder.grid(*videos.shape[2:])
    mask = tube_mask(settings.masks[0], grid, 1, settings.run.seed, 0, 0)
    with torch.inference_mode():
        tokens = encoder(normalise(videos.to(where), torch.float32)).cpu()
    report.save_pictures(folder / "pictures", rows, videos, grid, mask.context_ids[0], tokens)


def prepare_data(settings: config.Config, progress: bool) -> None:
    """Make the demo data set where the config asks for it; anything else must be there already."""
    if settings.data.prepare == "demo":
        from data_prep.demo import prepare

        prepare(Path(settings.data.train.index), progress)


def num_steps(settings: config.Config, num_rows: int) -> int:
    """Length of the run, from optim.total_steps or optim.epochs."""
    if settings.optim.total_steps is not None:
        return settings.optim.total_steps
    return math.ceil((settings.optim.epochs or 0) * num_rows / settings.data.global_batch)


def check_masks(settings: config.Config, model: Jepa) -> None:
    """Raises UserError for mask settings that cannot work on the token grid of this run."""
    from vjepa.masking.tube import num_hidden_cells

    grid = model.encoder.grid(settings.data.num_frames, settings.data.crop_px, settings.data.crop_px)
    for mask in settings.masks:
        num_hidden_cells(mask, grid)


def read_terms(terms: dict[str, torch.Tensor], step: int) -> dict[str, float]:
    """Copy the loss terms to the host. Raises UserError where the loss is not finite: nothing is saved after that."""
    values = {name: float(term.detach()) for name, term in terms.items()}
    if not math.isfinite(values["loss"]):
        raise UserError(f"the loss is {values['loss']} at step {step + 1}; lower optim.lr or set optim.clip_grad. The last checkpoint is untouched")
    return values


class Progress:
    """Progress bar with clips/s, loss and time left; the clock starts when the first batch is done."""

    def __init__(self, done: int, total: int, batch_size: int, shown: bool) -> None:
        from time import perf_counter

        from tqdm import tqdm

        self.clock, self.batch_size, self.steps, self.started = perf_counter, batch_size, 0, perf_counter()
        interval = 0.5 if sys.stderr.isatty() else 10.0
        layout = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}, {remaining} left{postfix}]"
        self.bar = tqdm(total=total, initial=done, desc="train", mininterval=interval, disable=not shown, bar_format=layout, dynamic_ncols=True)

    @property
    def clips_per_s(self) -> float:
        return round(self.steps * self.batch_size / max(self.clock() - self.started, 1e-9), 2)

    def advance(self) -> None:
        self.steps += 1
        self.bar.update()

    def show(self, loss: float) -> None:
        self.bar.set_postfix_str(f"loss {loss:.4f}, {self.clips_per_s:.1f} clips/s", refresh=False)

    def close(self) -> None:
        self.bar.close()


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """SIGTERM and Ctrl-C end the loop after the step in hand, with a checkpoint; a second Ctrl-C ends it at once."""
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
    parser = command.config_parser("train", __doc__ or "")
    parser.add_argument("--stop-at-step", type=int, metavar="N", help="save and stop before step N; the same command without it goes on")
    options = parser.parse_args(arguments)
    settings = command.read_config(options)
    if options.print_config:
        print(config.dump(settings), end="")
        return 0
    return 0 if train(settings, options.stop_at_step) is not None or options.stop_at_step is not None else 75


if __name__ == "__main__":
    command.run(main)
