"""The method of fine-tuning: an encoder and a head learn the classes of clips together.

As in VideoMAE and V-JEPA 2: lower layers learn more slowly, clips are changed (RandAugment, where they are read) and
mixed (mixup, cutmix), blocks are skipped, labels are smoothed. Everything random is a function of (seed, step) or
(seed, sample).
"""

from __future__ import annotations

import copy

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torchvision import tv_tensors
from torchvision.transforms import v2

from vjepa import config, schedules
from vjepa.counter_rng import generator
from vjepa.data.augment import normalise
from vjepa.data.rand_augment import drawn
from vjepa.models import ema
from vjepa.models.attentive_pool import AttentiveClassifier, LinearClassifier
from vjepa.models.encoder import Encoder
from vjepa.models.layer_order import freeze, layer_numbers, set_drop_path
from vjepa.models.layers import Block
from vjepa.ranks import ALONE, StepShare
from vjepa.records import ClipBatch, sent

Head = AttentiveClassifier | LinearClassifier


class Finetuning(nn.Module):
    """Hold the encoder and the head that learn and, with `finetune.ema`, the moving averages of both."""

    def __init__(self, settings: config.FinetuneConfig, encoder: Encoder, head: Head, classes: Tensor) -> None:
        """Take the networks where they start.

        head: tokens [B, N, D] -> logits [B, C]. classes: int64 [R], of every clip id; -1 where it has none.
        """
        super().__init__()
        wanted = settings.finetune
        self.settings, self.wanted, self.memory = settings, wanted, dict[str, float]()
        self.encoder, self.head = encoder.requires_grad_(True), head.requires_grad_(True)
        self.num_classes = int(classes.max()) + 1
        self.register_buffer("classes", classes, persistent=False)
        set_drop_path(encoder, wanted.drop_path or 0.0)
        if not wanted.from_scratch:
            freeze(encoder, wanted.freeze_layers)
        self.averages = nn.ModuleDict()
        if wanted.ema:
            for name in ("encoder", "head"):
                self.averages[f"target_{name}"] = copy.deepcopy(getattr(self, name)).requires_grad_(False).eval()
        self.dtype, self.total_steps = torch.float32, 1

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Name the networks that a checkpoint holds."""
        return {"encoder": self.encoder, "head": self.head, **self.averages}

    @property
    def measured(self) -> tuple[Encoder, Head]:
        """Give the encoder and the head that are measured: the averages where there are some."""
        encoder, head = (self.networks[name] for name in self.settings.measured)
        return encoder, head  # type: ignore[return-value]

    def lr_scales(self) -> dict[str, float]:
        """Give the learning rate of every parameter that learns, by name, over that of the last layer."""
        numbers = layer_numbers(self.encoder)
        last, decay = max(numbers.values()), 1.0 if self.wanted.from_scratch else self.wanted.layer_decay
        scales = {f"encoder.{name}": decay ** (last - number) for name, number in numbers.items()}
        return scales | {f"head.{name}": self.wanted.head_lr for name, _ in self.head.named_parameters()}

    def average_anew(self) -> None:
        """Set the averages to what the networks are now."""
        for name, average in self.averages.items():
            average.load_state_dict(getattr(self, name.removeprefix("target_")).state_dict())

    def begin(self, dtype: torch.dtype, total_steps: int) -> None:
        """Get ready to train for `total_steps` with matrix products in `dtype`; weights and averages stay fp32."""
        self.train()
        self.dtype, self.total_steps = dtype, total_steps

    def train(self, mode: bool = True) -> Finetuning:
        """Set the mode of the networks that learn; averages never train."""
        super().train(mode)
        self.averages.eval()
        return self

    def compile_blocks(self) -> None:
        """Compile each transformer block, for the one shape that every step has."""
        for block in self.modules():
            if isinstance(block, Block):
                block.compile(dynamic=False)

    def embeddings(self, batch: ClipBatch, step: int, share: StepShare) -> dict[str, Tensor]:
        """Give nothing: the loss of a clip is its own."""
        return {}

    def terms(self, batch: ClipBatch, step: int, share: StepShare = ALONE) -> dict[str, Tensor]:
        """Compute the cross-entropy of a batch at a step, `loss`, and the share of clips whose answer is right.

        Of mixed clips the answer counts as right by the class that has the larger share. Clips of a batch are mixed
        with each other, so it is the batch of a whole step: `share` is ALONE.
        """
        device, seed = next(self.parameters()).device, self.settings.run.seed
        video, labels = sent(batch.video, device), self.classes[batch.clip_ids.to(device)]  # type: ignore[index]
        normalised = normalise(video, torch.float32, self.settings.data.channels)
        clips, shares = mix(normalised, labels, self.num_classes, self.wanted, seed, step)
        torch.manual_seed(int(generator(seed, "drop_path", step).integers(1 << 63)))
        logits = self(clips.to(self.dtype)).float()
        loss = functional.cross_entropy(logits, shares, label_smoothing=self.wanted.label_smoothing)
        right = (logits.argmax(1) == shares.argmax(1)).float().mean()
        return {"loss": loss, "accuracy": right}

    def forward(self, video: Tensor) -> Tensor:
        """Answer normalised clips: [B, C, T, H, W] -> logits [B, C]."""
        logits: Tensor = self.head(self.encoder(video))
        return logits

    def after_update(self, step: int, skipped: Tensor | None = None) -> None:
        """Move the averages towards the networks, unless the step was `skipped`."""
        for name, average in self.averages.items():
            ema.update(average, getattr(self, name.removeprefix("target_")), self._ema_decay(step), skipped)

    def scalars(self, step: int) -> dict[str, float]:
        """Give what a log shows beside the terms."""
        return {"ema_decay": self._ema_decay(step)} if self.averages else {}

    def _ema_decay(self, step: int) -> float:
        optim = self.settings.optim
        laid_out = schedules.laid_out(self.total_steps, optim)
        return schedules.linear(step, laid_out, optim.ema_decay, optim.final_ema_decay)


def mix(
    video: Tensor, labels: Tensor, num_classes: int, wanted: config.Finetune, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Mix each clip with the one before it in the batch, by mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019).

    video: float [B, C, T, H, W]. labels: int64 [B]. Which of the two it is, and the shares, are those of the step.
    Returns clips, and the share of each class in each of them, fp32 [B, C].
    """
    plain = functional.one_hot(labels, num_classes).float()
    kinds = [(v2.MixUp, wanted.mixup), (v2.CutMix, wanted.cutmix)]
    offered = [(kind, alpha) for kind, alpha in kinds if alpha]
    rng = generator(seed, "mix", step)
    if not offered or rng.random() >= wanted.mix_share:
        return video, plain
    kind, alpha = offered[int(rng.integers(len(offered)))]
    with drawn(seed, "mix", step):
        frames = tv_tensors.Video(rearrange(video, "b c t h w -> b t c h w"))
        mixed, shares = kind(alpha=alpha, num_classes=num_classes)(frames, labels)
    return rearrange(mixed.as_subclass(Tensor), "b t c h w -> b c t h w"), shares
