"""What probing costs beside the encoder: a sweep of 20 attentive heads on stored tokens against one encoder pass over
the same clips.

python tests/benchmarks/probe_sweep.py [--clips 256] [--epochs 20] [--timed_epochs 2] [--rounds 3]

ViT-S/16, 16 frames of 112 px; random clips and classes, for neither changes the cost. Both use the precision that this
machine is fast at. A few epochs of the sweep are timed, in turns with encoder batches, and scaled to --epochs, their
set-up included, so the ratio errs upwards.
"""

from __future__ import annotations

import argparse
import statistics
from time import perf_counter

import numpy as np
import torch

from vjepa import config, device
from vjepa.models.encoder import VisionTransformer
from vjepa.probing import sweep
from vjepa.probing.protocol import Examples, Method, answer
from vjepa.probing.recipes import Reading, encoder_recipe, weights_hash
from vjepa.probing.store import Bank

ENCODER_BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=256, help="of the data set")
    parser.add_argument("--epochs", type=int, default=20, help="of the sweep")
    parser.add_argument("--timed_epochs", type=int, default=2, help="of them that are run; the rest cost the same")
    parser.add_argument("--rounds", type=int, default=3, help="encoder and sweep in turn; medians are printed")
    parser.add_argument("--probe_batch", type=int, default=256, help="clips per step")
    parser.add_argument("--classes", type=int, default=174)
    options = parser.parse_args()
    where, dtype = device.pick(config.Run())
    encoder = (
        VisionTransformer(config.Model(encoder=config.EncoderSettings(preset="small"))).requires_grad_(False).eval()
    )
    recipe = encoder_recipe(encoder, weights_hash(encoder), Reading((11,), ("tokens",), where, dtype))
    clips = torch.randint(0, 256, (ENCODER_BATCH, 3, 16, 112, 112), dtype=torch.uint8)
    tokens = recipe.run(clips, torch.arange(ENCODER_BATCH))["tokens"]
    stored = tokens.half().repeat(-(-options.clips // ENCODER_BATCH), 1, 1)[: options.clips, None].cpu()
    labels = [f"{i % options.classes}" for i in range(options.clips)]
    train = Examples.of(Bank(stored, np.arange(options.clips), (), ""), np.arange(options.clips), labels, "train")
    one = Examples(train.bank, train.places[:1], train.classes[:1])

    encoder_s, sweep_s = [], []
    for _ in range(options.rounds):
        started = perf_counter()
        recipe.run(clips, torch.arange(ENCODER_BATCH))
        encoder_s.append((perf_counter() - started) / ENCODER_BATCH * options.clips)
        grid = sweep.Grid(epochs=options.timed_epochs, batch=min(options.probe_batch, options.clips))
        started = perf_counter()
        answer(Method("attentive", grid=grid, device=where, dtype=dtype), train, one, [one])
        sweep_s.append((perf_counter() - started) / options.timed_epochs * options.epochs)
    one_pass, whole = statistics.median(encoder_s), statistics.median(sweep_s)
    print(
        f"{torch.get_num_threads()} threads, {where.type}, {dtype}, {options.clips} clips, "
        f"{len(grid.settings)} heads, batch {grid.batch}"
    )
    print(
        f"one encoder pass {one_pass:8.1f} s   sweep of {options.epochs} epochs {whole:8.1f} s   ratio "
        f"{whole / one_pass:.2f}"
    )


if __name__ == "__main__":
    main()
