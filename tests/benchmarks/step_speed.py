"""Our training step beside one made of the published V-JEPA 2 modules (as `transformers` has them), at the same shapes
and masks.

python tests/benchmarks/step_speed.py [--config bench_vits16] [--steps 9] [--only ours|published]

The published step is fp32, as that code runs on a CPU: patch embedding again for each mask set, rotation tables in each
layer, sorted predictor tokens, AdamW and the moving average in PyTorch's plain loops. The steps alternate; medians and
ratios to the first are printed. Memory is told apart with --only.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from transformers import VJEPA2Config, VJEPA2Model
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Encoder, apply_masks

from vjepa import config, device
from vjepa.data.augment import normalise
from vjepa.masking.draw import plan
from vjepa.records import ClipBatch, TokenMask
from vjepa.training.benchmark import alternating_medians, peak_memory_bytes, training_step


def published_networks(settings: config.Config) -> VJEPA2Config:
    """The shapes of `settings` as `transformers` names them."""
    shape, narrow = settings.model.encoder, settings.model.predictor
    return VJEPA2Config(
        patch_size=settings.model.patch_px, crop_size=settings.data.crop_px, frames_per_clip=settings.data.num_frames,
        tubelet_size=settings.model.tubelet_frames, hidden_size=shape.width,
        num_hidden_layers=shape.depth, num_attention_heads=shape.heads,
        mlp_ratio=shape.mlp_ratio, pred_hidden_size=narrow.width,
        pred_num_hidden_layers=narrow.depth, pred_num_attention_heads=narrow.heads,
        pred_num_mask_tokens=len(settings.masks),
    )  # fmt: skip


class PublishedStep:
    """The reference's step from its own modules: encoders, predictor, L1 on layer-normed targets, AdamW, EMA.

    dtype: of matrix products, by autocast, as that code does it on a GPU.
    """

    def __init__(self, settings: config.Config, where: torch.device, dtype: torch.dtype) -> None:
        networks = published_networks(settings)
        self.settings, self.where, self.dtype = settings, where, dtype
        self.context = VJEPA2Model(networks).to(where)
        self.target = VJEPA2Encoder(networks).to(where).requires_grad_(False)
        self.target.load_state_dict(self.context.encoder.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.context.parameters(), lr=settings.optim.lr, weight_decay=settings.optim.weight_decay
        )

    def __call__(self, step: int, batch: ClipBatch) -> float:
        settings = self.settings
        video = normalise(batch.video.to(self.where), torch.float32).transpose(1, 2)
        masks = plan(settings.masks, settings.grid).draw(
            len(video), settings.run.seed, step * len(video), step, settings.optim.total_steps or 1
        )
        with torch.autocast(self.where.type, self.dtype, enabled=self.dtype is not torch.float32):
            loss = self.loss(video, [mask.to(self.where) for mask in masks])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for own, theirs in zip(self.target.parameters(), self.context.encoder.parameters(), strict=True):
                own.mul_(settings.optim.ema_decay).add_((1 - settings.optim.ema_decay) * theirs)
        return float(loss.detach())

    def loss(self, video: torch.Tensor, masks: list[TokenMask]) -> torch.Tensor:
        with torch.no_grad():
            targets = self.encode(self.target, video, None)
            targets = torch.nn.functional.layer_norm(targets, targets.shape[-1:])
        losses = []
        for mask in masks:
            context = self.encode(self.context.encoder, video, mask.context_ids)
            scattered = torch.zeros_like(targets, dtype=context.dtype).scatter(
                1, mask.context_ids.unsqueeze(-1).expand(-1, -1, context.shape[-1]), context
            )
            predictions = self.context.predictor(scattered, [mask.context_ids], [mask.target_ids]).last_hidden_state
            losses.append((predictions - apply_masks(targets, [mask.target_ids])).abs().mean())
        return torch.stack(losses).mean()

    def encode(self, encoder: VJEPA2Encoder, video: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
        """As the published code: all tokens are embedded, then those of `ids` kept, and each layer makes its own
        rotation tables.
        """
        tokens = encoder.embeddings(video)
        tokens = tokens if ids is None else apply_masks(tokens, [ids])
        for layer in encoder.layer:
            tokens = layer(tokens, ids)[0]
        normed: torch.Tensor = encoder.layernorm(tokens)
        return normed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="bench_vits16")
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--only", choices=["ours", "published"], help="one of them, for its peak memory")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    settings = config.load(options.config, [*options.overrides, "run.device=cpu"])
    data, where = settings.data, torch.device("cpu")
    size = (data.global_batch, 3, data.num_frames, data.crop_px, data.crop_px)
    batch = ClipBatch(torch.randint(256, size, dtype=torch.uint8), torch.arange(data.global_batch))
    steps: dict[str, Callable[[int, ClipBatch], object]] = {}
    if options.only != "ours":
        steps["published, float32"] = PublishedStep(settings, where, torch.float32)
    if options.only != "published":
        for dtype in dict.fromkeys([torch.float32, device.pick(settings.run)[1]]):
            steps[f"ours, {str(dtype).removeprefix('torch.')}"] = training_step(settings, where, dtype)
    medians = alternating_medians(
        {name: partial(run, batch=batch) for name, run in steps.items()}, options.steps, where
    )
    print(f"{torch.get_num_threads()} threads, medians of {options.steps} alternating steps")
    for name, median in medians.items():
        print(
            f"{name:20} {1000 * median:8.0f} ms  {data.global_batch / median:6.2f} clips/s  "
            f"x{next(iter(medians.values())) / median:.2f}"
        )
    print(f"most memory resident: {peak_memory_bytes(where) / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
