"""Our training step and encoder on a GPU beside those of the published V-JEPA 2 modules (as `transformers` has them),
at the same shapes and masks.

python tests/benchmarks/gpu_step.py [section.key=value ...] [--config vjepa2_vitl16] [--parts forward eager ...]
[--batches 8 16 32] [--largest-s 60]

forward: the encoder alone and with the predictor, without gradient, on the same weights in bf16, in turns; eager, then
with each block compiled.
eager, compiled: our training step; published, published-compiled: the step of step_speed.py under autocast. Each at
growing batches, then at the largest that fits. Utilisation is model FLOPs (recomputation is none) per second over the
peak of matrix products in the same process.
"""

from __future__ import annotations

import argparse
import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from step_speed import PublishedStep, published_networks
from transformers import VJEPA2Model
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Layer

import vjepa
from vjepa import config, device
from vjepa.data.augment import normalise
from vjepa.masking.draw import plan
from vjepa.models.layers import Block, gather_tokens
from vjepa.records import ClipBatch
from vjepa.training import flops
from vjepa.training.benchmark import alternating_medians, matmul_peak, median_seconds, peak_memory_bytes, training_step

Step = Callable[[int, ClipBatch], Any]
Runs = dict[str, Callable[[int], torch.Tensor]]
USABLE = 0.97  # of the memory of a GPU: what fragments of it leave


@dataclass(frozen=True)
class Bench:
    """What all parts share. settings: of a single clip; peak: FLOP/s; batches: clips a step, growing; multiple: of the
    largest batch.
    """

    settings: config.Config
    where: torch.device
    dtype: torch.dtype
    peak: float
    batches: list[int]
    steps: int
    largest_s: float
    multiple: int

    def clips(self, batch: int) -> torch.Tensor:
        data = self.settings.data
        return torch.randint(
            256, (batch, 3, data.num_frames, data.crop_px, data.crop_px), dtype=torch.uint8, device=self.where
        )

    def batch(self, num_clips: int) -> ClipBatch:
        return ClipBatch(self.clips(num_clips), torch.arange(num_clips))

    def row(self, name: str, batch: int, seconds: float, clip_flops: int, memory: int) -> str:
        achieved = batch * clip_flops / seconds
        return (
            f"{name:42} {batch:4} clips  {1000 * seconds:9.1f} ms  {batch / seconds:8.2f} clips/s  "
            f"{achieved / 1e12:7.1f} TFLOP/s  "
            f"{100 * achieved / self.peak:5.1f} %  {memory / 2**30:6.1f} GiB"
        )


def compile_blocks(*networks: torch.nn.Module) -> None:
    for block in (block for network in networks for block in network.modules()):
        if isinstance(block, Block | VJEPA2Layer):
            block.compile(dynamic=False)


@torch.no_grad()
def forward(bench: Bench) -> Iterator[str]:
    """Encoder, and encoder with predictor, of the same weights: theirs, and ours read from their folder."""
    settings, grid = bench.settings, bench.settings.grid
    theirs = VJEPA2Model(published_networks(settings)).eval()
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        encoder, predictor = vjepa.load_encoder(folder), vjepa.load_predictor(folder)
    networks = [network.to(bench.where) for network in (theirs, encoder, predictor)]
    single = normalise(bench.clips(1), torch.float32)
    apart = difference(encoder(single), theirs(single.transpose(1, 2), skip_predictor=True).last_hidden_state)
    yield f"features of one clip in fp32 differ by {apart:.1e} of their norm"
    one = plan(settings.masks, grid).draw(1, 0, 0, 0, 1)[0].to(bench.where)
    encoder_flops = flops.count(lambda: encoder(single))
    seen = gather_tokens(encoder(single), one.context_ids)
    both_flops = encoder_flops + flops.count(lambda: predictor(seen, one.context_ids, one.target_ids, grid))
    for network in networks:
        network.to(bench.dtype)
    batch = bench.batches[-1]
    mask = plan(settings.masks, grid).draw(batch, 0, 0, 0, 1)[0].to(bench.where)
    video = normalise(bench.clips(batch), bench.dtype)
    frames = video.transpose(1, 2)

    def predict(_: int) -> torch.Tensor:
        context, index = (
            gather_tokens(encoder(video), mask.context_ids),
            1 % len(settings.masks),
        )  # the mask token that theirs reads
        return predictor(context, mask.context_ids, mask.target_ids, grid, index)  # type: ignore[no-any-return]

    encoders: Runs = {
        "transformers": lambda _: theirs(frames, skip_predictor=True).last_hidden_state,
        "ours": lambda _: encoder(video),
    }
    both: Runs = {
        "transformers": lambda _: (
            theirs(
                frames, context_mask=[mask.context_ids], target_mask=[mask.target_ids]
            ).predictor_output.last_hidden_state
        ),
        "ours": predict,
    }
    for how in ("eager", "compiled"):
        if how == "compiled":
            compile_blocks(*networks)
        for what, runs, arithmetic in (("encoder", encoders, encoder_flops), ("encoder, predictor", both, both_flops)):
            medians = alternating_medians(runs, bench.steps, bench.where)
            for whose, run in runs.items():
                yield bench.row(
                    f"{how}, {what}, {whose}", batch, medians[whose], arithmetic, working_bytes(run, bench.where)
                )
            apart = difference(*(run(0) for run in runs.values()))
            yield (
                f"{how}, {what}: ours is {medians['transformers'] / medians['ours']:.2f} times as fast; outputs "
                f"differ by {apart:.1e}"
            )


def working_bytes(run: Callable[[int], Any], where: torch.device) -> int:
    """Most memory of a GPU that `run` takes beside what is there: weights and inputs."""
    if where.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(where)
    before = torch.cuda.memory_allocated(where)
    run(0)
    return peak_memory_bytes(where) - before


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Norm of the difference over norm."""
    return float((one.float() - other.float()).norm() / other.float().norm())


def ours(bench: Bench, compiled: bool) -> Step:
    settings = bench.settings.model_copy(update={"run": bench.settings.run.model_copy(update={"compile": compiled})})
    return training_step(settings, bench.where, bench.dtype)


def published(bench: Bench, compiled: bool) -> Step:
    step = PublishedStep(bench.settings, bench.where, bench.dtype)
    if compiled:
        compile_blocks(step.context, step.target)
    return step


def measure(make: Callable[[Bench, bool], Step], name: str, compiled: bool, bench: Bench) -> Iterator[str]:
    """A row for each batch that fits, and for the largest."""
    step = make(bench, compiled)
    clip_flops = flops.step_flops(bench.settings)
    peaks: dict[int, int] = {}
    for batch in bench.batches:
        peaks[batch], seconds = trial(step, bench, batch, bench.steps)
        if seconds is None:
            break
        yield bench.row(name, batch, seconds, clip_flops, peaks[batch])
    if bench.where.type == "cuda" and bench.largest_s:
        limit = USABLE * torch.cuda.get_device_properties(bench.where).total_memory
        fits, fails = largest_batch(
            lambda batch: trial(step, bench, batch, 1)[0], peaks, limit, bench.multiple, bench.largest_s
        )
        yield (
            f"{name}: {fits} clips fit ({peaks.get(fits, 0) / 2**30:.1f} GiB); "
            f"{'more were not tried' if fails is None else f'{fails} do not'}"
        )


def trial(step: Step, bench: Bench, batch: int, steps: int) -> tuple[int, float | None]:
    """Peak memory and median seconds of a step; (0, None) where memory runs out."""
    torch._dynamo.reset()  # shapes are compiled in, and old ones count against a limit
    if bench.where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.where)
    try:
        seconds = median_seconds(partial(step, batch=bench.batch(batch)), steps, bench.where)
        return peak_memory_bytes(bench.where), seconds
    except torch.OutOfMemoryError:
        pass
    step.optimizer.zero_grad()  # type: ignore[attr-defined]
    gc.collect()  # what the failed step still held
    torch.cuda.empty_cache()
    return 0, None


def largest_batch(
    peak_of: Callable[[int], int], peaks: dict[int, int], limit: float, multiple: int, seconds: float
) -> tuple[int, int | None]:
    """The largest batch that fits and the smallest that does not, `multiple` apart unless the time runs out.

    peaks: batch -> most bytes, 0 where it did not fit; trials are added. Memory is linear in the batch, which tells
    where to try next.
    """
    deadline = perf_counter() + seconds
    while True:
        fitting = sorted(batch for batch, peak in peaks.items() if peak)
        fails = min((batch for batch, peak in peaks.items() if not peak), default=None)
        fits = fitting[-1] if fitting else 0
        if (fails is not None and fails - fits <= multiple) or perf_counter() > deadline:
            return fits, fails
        guess = 2 * fits
        if len(fitting) > 1:
            slope = (peaks[fits] - peaks[fitting[0]]) / (fits - fitting[0])
            guess = fits + math.floor((limit - peaks[fits]) / slope)
        guess = max(guess // multiple * multiple, fits // multiple * multiple + multiple)
        guess = guess if fails is None else min(guess, math.ceil(fails / multiple) * multiple - multiple)
        peaks[guess] = peak_of(guess)


PARTS: dict[str, Callable[[Bench], Iterator[str]]] = {
    "forward": forward,
    "eager": partial(measure, ours, "ours, eager", False),
    "published": partial(measure, published, "published, eager", False),
    "compiled": partial(measure, ours, "ours, compiled", True),
    "published-compiled": partial(measure, published, "published, compiled", True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="vjepa2_vitl16")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[8, 16, 32], help="clips a step, growing; `forward` takes the last"
    )
    parser.add_argument("--steps", type=int, default=10, help="that the medians are of")
    parser.add_argument(
        "--largest-s", type=float, default=60, help="seconds to look for the largest batch, of each step; 0: do not"
    )
    parser.add_argument("--multiple", type=int, default=4, help="of which the largest batch is one")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    settings = config.load(options.config, [*options.overrides, "data.global_batch=1"])
    where, dtype = device.pick(settings.run)
    bench = Bench(
        settings,
        where,
        dtype,
        matmul_peak(where, dtype),
        options.batches,
        options.steps,
        options.largest_s,
        options.multiple,
    )
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
    rows = [
        f"{Path(options.config).stem}, {name}, torch {torch.__version__}, {dtype}: {bench.peak / 1e12:.2f} "
        "TFLOP/s of matrix products"
    ]
    for part in options.parts:
        for row in PARTS[part](bench):
            print(row, flush=True)
            rows.append(row)
        gc.collect()
        if where.type == "cuda":
            torch.cuda.empty_cache()
    print("\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
