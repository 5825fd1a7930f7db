"""What probing costs beside the encoder: a sweep of 20 attentive heads on stored tokens against one encoder pass over
the same clips.

python tests/benchmarks/probe_sweep.py [--clips 256] [--rounds 3]

ViT-S/16, 16 frames of 112 px; random clips and classes, for neither changes the cost. Both use the precision that this
machine is fast at. Of random classes nothing can be learned, so the sweep ends as early as it may; --whole lets every
round bring something, which is the most that a sweep can cost.
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
from vjepa.probing.banks import Bank
from vjepa.probing.extractors import Readout, encoder_extractor, weights_hash
from vjepa.probing.protocol import Examples, ProbeMethod, fit_probe

ENCODER_BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=256, help="of the data set")
    parser.add_argument("--whole", action="store_true", help="go on to the end of the budget")
    parser.add_argument("--rounds", type=int, default=3, help="encoder and sweep in turn; medians are printed")
    parser.add_argument("--classes", type=int, default=174)
    options = parser.parse_args()
    where, dtype = device.pick(config.Run())
    encoder = (
        VisionTransformer(config.Model(encoder=config.EncoderSettings(preset="small"))).requires_grad_(False).eval()
    )
    extractor = encoder_extractor(encoder, weights_hash(encoder), Readout((11,), ("tokens",), where, dtype))
    clips = torch.randint(0, 256, (ENCODER_BATCH, 3, 16, 112, 112), dtype=torch.uint8)
    tokens = extractor.run(clips, torch.arange(ENCODER_BATCH))["tokens"]
    stored = tokens.half().repeat(-(-options.clips // ENCODER_BATCH), 1, 1)[: options.clips, None].cpu()
    labels = [f"{i % options.classes}" for i in range(options.clips)]
    train = Examples.of(Bank(stored, np.arange(options.clips), ()), np.arange(options.clips), labels, "train")
    one = Examples(train.bank, train.places[:1], train.classes[:1])

    if options.whole:
        sweep._LEAST_STEPS = 1 << 30

    encoder_s, sweep_s = [], []
    for _ in range(options.rounds):
        started = perf_counter()
        extractor.run(clips, torch.arange(ENCODER_BATCH))
        encoder_s.append((perf_counter() - started) / ENCODER_BATCH * options.clips)
        grid = sweep.Grid()
        started = perf_counter()
        fit_probe(ProbeMethod("attentive", grid=grid, device=where, dtype=dtype), train, one, [one])
        sweep_s.append(perf_counter() - started)
    one_pass, whole = statistics.median(encoder_s), statistics.median(sweep_s)
    print(
        f"{torch.get_num_threads()} threads, {where.type}, {dtype}, {options.clips} clips, "
        f"{len(grid.settings)} heads, batch {grid.batch_for(options.clips)}"
    )
    print(f"one encoder pass {one_pass:8.1f} s   sweep {whole:8.1f} s   ratio {whole / one_pass:.2f}")


if __name__ == "__main__":
    main()
