"""Everything that waits for a GPU, in one script and one table, within 12 minutes on an H100.

python tests/benchmarks/gpu_day.py [section.key=value ...] [--config vjepa2_vitl16] [--batches 32 48]
[--parts tests guard save attention step] [--minutes 12]

tests: tests/test_training_gpu.py: losses of every objective are those of the CPU, and the host never waits.
guard: a step whose loss is not a number changes no bit of weights and moments, and the host does not wait for that.
save: how long a step is held up by a checkpoint that a thread writes, as a share of what writing takes.
attention: milliseconds and TFLOP/s, forward and backward, of each kernel at the shapes of the config; which is chosen.
step: the training step eager, compiled, and compiled with what `model.encoder.recompute` saves, in turns at growing
batches; utilisation is of the peak of matrix products in the same process, and of the data sheet of an H100.

A part that is not begun in time is said to be left out. Without a GPU the script runs too, to be tried at small sizes;
what only a GPU has is left out then.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Final

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from vjepa import config, device
from vjepa.jepa import Jepa
from vjepa.masking.draw import plan
from vjepa.records import ClipBatch
from vjepa.run_folder import RunFolder
from vjepa.training import flops
from vjepa.training.benchmark import alternating_medians, matmul_peak, peak_memory_bytes, training_step
from vjepa.training.checkpoint import TrainingState, Writer
from vjepa.training.step import TrainingStep

_SAVES: Final = 5
DATA_SHEET: Final = 989e12  # FLOP/s of an H100 SXM in bf16
KERNELS: Final = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Day:
    """What all parts share. settings: of a batch of 2; peak: FLOP/s of matrix products; batches: clips a step."""

    settings: config.Config
    where: torch.device
    dtype: torch.dtype
    peak: float
    batches: list[int]
    steps: int

    @property
    def is_gpu(self) -> bool:
        return self.where.type == "cuda"

    def step(self, **changes: Any) -> TrainingStep[Jepa]:
        """Make the training step, with other settings of `run`, or of `model.encoder`."""
        tree = self.settings.model_dump(mode="json")
        for path, value in changes.items():
            (tree["run"] if path in tree["run"] else tree["model"]["encoder"])[path] = value
        return training_step(config.validate(tree, "gpu_day"), self.where, self.dtype)

    def batch(self, num_clips: int) -> ClipBatch:
        data = self.settings.data
        shape = (num_clips, data.channels.num, *data.clip_size)
        return ClipBatch(torch.randint(256, shape, dtype=torch.uint8, device=self.where), torch.arange(num_clips))

    def wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()


@contextlib.contextmanager
def no_waits(day: Day) -> Iterator[None]:
    """Make it an error that the host waits for the GPU."""
    day.wait()
    if day.is_gpu:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if day.is_gpu:
            torch.cuda.set_sync_debug_mode("default")


def tests(day: Day) -> Iterator[str]:
    file = Path(__file__).parents[1] / "test_training_gpu.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(file)], capture_output=True, text=True, check=False
    )
    yield f"tests: exit {done.returncode}: {done.stdout.strip().splitlines()[-1]}"


def guard(day: Day) -> Iterator[str]:
    """Poison one step of three."""
    step, batch = day.step(), day.batch(day.batches[0])
    terms = step.method.terms
    for number in range(2):
        step(number, batch)

    def poisoned(*given: Any) -> dict[str, torch.Tensor]:
        found = terms(*given)
        return {**found, "loss": found["loss"] * float("nan")}

    before = [value.clone() for value in _state(step)]
    step.method.terms = poisoned  # type: ignore[method-assign]
    with no_waits(day):
        step(2, batch)
    step.method.terms = terms  # type: ignore[method-assign]
    same = all(torch.equal(one, other) for one, other in zip(before, _state(step), strict=True))
    with no_waits(day):
        step(3, batch)
    moved = not all(torch.equal(one, other) for one, other in zip(before, _state(step), strict=True))
    step.guard.look(wait=True)
    good = same and moved and step.guard.num_skipped == 1
    yield (
        f"guard: {'holds' if good else 'FAILS'}: skipped {step.guard.num_skipped} of 4 steps, weights and moments "
        f"{'unchanged' if same else 'CHANGED'} by it, the next step {'learns' if moved else 'DOES NOT LEARN'}; no waits"
    )


def _state(step: TrainingStep[Jepa]) -> list[torch.Tensor]:
    moments = [value for state in step.optimizer.state.values() for value in state.values()]
    return [*step.method.state_dict().values(), *moments]


def save(day: Day) -> Iterator[str]:
    """Compare how long training is held up, by the copy and in the step beside the thread, with what writing takes."""
    step, batch = day.step(), day.batch(day.batches[0])
    alone, held, written = list[float](), list[float](), list[float]()

    def seconds(number: int) -> float:
        started = perf_counter()
        step(number, batch)
        day.wait()
        return perf_counter() - started

    with TemporaryDirectory() as folder, Writer(RunFolder(Path(folder)), 1) as writer:
        for number in range(_SAVES + 1):
            alone.append(seconds(2 * number))
            started = perf_counter()
            writer.save(step.method, step.optimizer, TrainingState(step=number), is_best=False)
            copied = perf_counter() - started
            held.append(copied + seconds(2 * number + 1))
            writer.wait()
            written.append(perf_counter() - started)
    before, beside, whole = (statistics.median(times[1:]) for times in (alone, held, written))
    yield (
        f"save: a step is held up for {1000 * (beside - before):.0f} ms by a checkpoint that is on the disk after "
        f"{1000 * whole:.0f} ms: {100 * (beside - before) / whole:.0f} % (below 10 wanted)"
    )


def attention(day: Day) -> Iterator[str]:
    """Measure the kernels at what the config attends over: all tokens, each context, and the predictor's."""
    settings, model = day.settings, day.settings.model
    masks = plan(settings.masks, settings.grid).draw(1, 0, 0, 0, 1)
    contexts = {mask.context_ids.shape[1] for mask in masks}
    both = max(mask.context_ids.shape[1] + mask.target_ids.shape[1] for mask in masks)
    encoder, predictor = model.encoder, model.predictor
    shapes = [(encoder.heads, num, encoder.width // encoder.heads) for num in {settings.grid.num_tokens, *contexts}]
    for heads, num, width in [*shapes, (predictor.heads, both, predictor.width // predictor.heads)]:
        query = torch.randn(day.batches[0], heads, num, width, device=day.where, dtype=day.dtype, requires_grad=True)
        arithmetic = 3.5 * 4 * query[..., 0].numel() * num * width  # forward 2 products, backward 5

        def run(_: int, query: torch.Tensor = query) -> None:
            scaled_dot_product_attention(query, query, query).sum().backward()

        runs: dict[str, Callable[[int], Any]] = {"chosen": run}
        for name, kernel in KERNELS.items() if day.is_gpu else ():
            runs[name] = partial(_only, kernel, run)
        usable = {name: one for name, one in runs.items() if _works(one)}
        medians = alternating_medians(usable, day.steps, day.where)
        told = ", ".join(f"{name} {1000 * s:.2f} ms ({arithmetic / s / 1e12:.0f})" for name, s in medians.items())
        yield f"attention of {num} tokens, {heads} heads of {width}, {day.batches[0]} clips, ms (TFLOP/s): {told}"


def _only(kernel: SDPBackend, run: Callable[[int], Any], number: int) -> None:
    with sdpa_kernel(kernel):
        run(number)


def _works(run: Callable[[int], Any]) -> bool:
    try:
        run(0)
    except RuntimeError:
        return False  # no such kernel for this shape
    return True


def step(day: Day) -> Iterator[str]:
    """Measure variants of the step in turns, at each batch that fits."""
    clip_flops = flops.step_flops(day.settings) / day.settings.data.global_batch
    variants: dict[str, dict[str, Any]] = {"eager": {}}
    if day.is_gpu:
        variants |= {"compiled": {"compile": True}, "compiled, mlp again": {"compile": True, "recompute": "mlp"}}
    for num in day.batches:
        steps, batch = {name: day.step(**changes) for name, changes in variants.items()}, day.batch(num)
        runs = {name: partial(_step, one, batch) for name, one in steps.items()}
        fits = {name: run for name, run in runs.items() if _fits(run)}
        for name in runs.keys() - fits.keys():
            yield f"step, {name}, {num} clips: does not fit"
        for name, seconds in alternating_medians(fits, day.steps, day.where).items():
            achieved = num * clip_flops / seconds
            yield (
                f"step, {name}, {num} clips: {1000 * seconds:.0f} ms, {num / seconds:.1f} clips/s, "
                f"{achieved / 1e12:.1f} TFLOP/s, {100 * achieved / day.peak:.1f} % of what products reach here, "
                f"{100 * achieved / DATA_SHEET:.1f} % of the data sheet; {peak_memory_bytes(day.where) / 2**30:.1f} GiB"
            )


def _step(one: TrainingStep[Jepa], batch: ClipBatch, number: int) -> None:
    one(number, batch)


def _fits(run: Callable[[int], Any]) -> bool:
    try:
        run(0)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True


PARTS: Final[dict[str, Callable[[Day], Iterator[str]]]] = {
    "tests": tests,
    "guard": guard,
    "save": save,
    "attention": attention,
    "step": step,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="vjepa2_vitl16")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 48], help="clips a step, growing")
    parser.add_argument("--steps", type=int, default=10, help="that the medians are of")
    parser.add_argument("--minutes", type=float, default=12, help="no part is begun after these")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    began = perf_counter()
    settings = config.load(options.config, [*options.overrides, "data.global_batch=2"])
    where, dtype = device.pick(settings.run)
    day = Day(settings, where, dtype, matmul_peak(where, dtype), options.batches, options.steps)
    name = torch.cuda.get_device_name(where) if day.is_gpu else where.type
    rows = [f"{options.config}, {name}, torch {torch.__version__}, {dtype}: {day.peak / 1e12:.2f} TFLOP/s of products"]
    for part in options.parts:
        if perf_counter() - began > 60 * options.minutes:
            rows.append(f"{part}: left out, for the time is over")
            continue
        try:
            for row in PARTS[part](day):
                print(row, flush=True)
                rows.append(row)
        except RuntimeError as error:  # of one part: the others are still wanted
            rows.append(f"{part}: FAILS: {' '.join(str(error).split())[:300]}")
    print(f"\n{(perf_counter() - began) / 60:.1f} minutes")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
