"""What a step of V-JEPA 2's recipe costs on many GPUs, on paper: arithmetic, bytes, memory, and the time they bound.

python tests/benchmarks/scale_on_paper.py [--presets large giant gigantic] [--gpus 8 64 512] [--utilisation .35]

Nothing is measured here but the arithmetic, which is counted (`vjepa.training.flops`). Estimated from the data sheet
of an H100 SXM: 989 TFLOP/s of dense bf16, 450 GB/s to each GPU of the same machine of 8, 50 GB/s (400 Gbit/s) to other
machines. In a ring over n GPUs each sends all bytes (n - 1) / n times to gather or to scatter, and twice that to
reduce; over several machines there is a ring through each of the 8 network cards, so that an eighth of what a GPU sends
leaves its machine. DDP reduces fp32 gradients. FSDP2 gathers bf16 weights of encoder and predictor before the forward
and again before the backward pass, and those of the target encoder once, and scatters fp32 gradients.

Held are weights, gradients, moments, the average and copies in bf16, not activations. What is recomputed in the
backward pass to save memory is no work here, and takes its share of the utilisation. Efficiency lies between two
bounds: nothing overlaps with arithmetic; all but the longer of the two is hidden.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch

from vjepa import config
from vjepa.jepa import build
from vjepa.training.flops import step_flops

PEAK: Final = 989e12  # FLOP/s
INSIDE, BETWEEN, NODE = 450e9, 50e9, 8  # bytes/s, bytes/s, GPUs of a machine
BATCH: Final = 3072


@dataclass(frozen=True)
class Work:
    """Count what a recipe has: operations of a clip, parameters that are trained, those of the target encoder."""

    clip_flops: int
    trained: int
    target: int

    @classmethod
    def of(cls, preset: str) -> Work:
        """Count for `vjepa2_vitg16` with another encoder."""
        settings = config.load("vjepa2_vitg16", [f"model.encoder.preset={preset}", "data.global_batch=1"])
        with torch.device("meta"):
            method = build(settings)
        sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in method.networks.items()}
        target = sizes.pop("target_encoder")
        return cls(step_flops(settings), sum(sizes.values()), target)


@dataclass(frozen=True)
class Layout:
    """Give bytes that a GPU sends in a step, inside its machine and between machines, and those that it holds.

    Held are master weights, gradients and two moments in fp32, the average in fp32, bf16 copies of weights and average.
    """

    inside: float
    between: float
    held: float

    @property
    def seconds(self) -> float:
        return self.inside / INSIDE + self.between / BETWEEN


def layouts(work: Work, gpus: int) -> Iterator[tuple[str, Layout]]:
    """Yield DDP, and FSDP2 over all."""
    held = work.trained * (4 + 4 + 8 + 2) + work.target * (4 + 2)
    reduced, gathered = 4 * work.trained, 2 * (2 * work.trained + work.target)
    leaving = 1 / NODE if gpus > NODE else 0.0
    for name, sent, kept in (("DDP", 2 * reduced, held), ("FSDP2", gathered + reduced, held / gpus)):
        num_bytes = sent * (gpus - 1) / gpus
        yield name, Layout(num_bytes * (1 - leaving), num_bytes * leaving, kept)


def rows(presets: list[str], counts: list[int], utilisation: float) -> Iterator[str]:
    """Yield lines of Markdown."""
    names = "encoder", "GPUs", "clips a GPU", "PFLOP a GPU", "layout", "GB sent in, out", "ms", "GB held", "s a step"
    yield f"| {' | '.join(names)} | efficiency |"
    yield "|---|--:|--:|--:|---|---|--:|--:|---|---|"
    for preset in presets:
        work = Work.of(preset)
        for gpus in counts:
            clips = BATCH / gpus
            seconds = clips * work.clip_flops / (utilisation * PEAK)
            for name, layout in layouts(work, gpus):
                both = seconds + layout.seconds, max(seconds, layout.seconds)
                yield (
                    f"| {preset} | {gpus} | {clips:g} | {clips * work.clip_flops / 1e15:.2f} | {name} | "
                    f"{layout.inside / 1e9:.1f}, {layout.between / 1e9:.1f} | {1000 * layout.seconds:.0f} | "
                    f"{layout.held / 1e9:.1f} | {both[1]:.2f} to {both[0]:.2f} | "
                    f"{seconds / both[0]:.2f} to {seconds / both[1]:.2f} |"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["large", "giant", "gigantic"])
    parser.add_argument("--gpus", nargs="+", type=int, default=[8, 64, 512])
    parser.add_argument("--utilisation", type=float, default=0.35, help="of the peak, by one GPU alone")
    options = parser.parse_args()
    print("\n".join(rows(options.presets, options.gpus, options.utilisation)))


if __name__ == "__main__":
    main()
