"""The method of pre-training: predict the features of hidden space-time tokens from visible ones (V-JEPA, Bardes et
al. 2024; I-JEPA is the single frame), or make views of a clip agree (LeJEPA).

The loop asks it for `terms` of the loss and tells it when an update is done; everything else of a step is here: masks,
random directions, weights that change, the moving average that the target encoder is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import Final, cast

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from vjepa import config, schedules
from vjepa.counter_rng import generator
from vjepa.data.augment import normalise
from vjepa.masking.draw import plan
from vjepa.models import ema
from vjepa.models.backbone import load_pretrained, make_encoder
from vjepa.models.encoder import Encoder, Patches, patchify
from vjepa.models.layers import Block, gather_tokens, set_share
from vjepa.models.predictor import Predictor, make_predictor
from vjepa.models.projector import make_projector
from vjepa.objectives import sigreg, vicreg
from vjepa.objectives.dense import context_weights
from vjepa.objectives.prediction import prediction_loss
from vjepa.objectives.targets import layer_normed, normalised_pixels
from vjepa.objectives.views import embedding_terms
from vjepa.ranks import ALONE, StepShare
from vjepa.records import ClipBatch, Observed, TokenGrid, TokenMask, sent

_UNIT: Final = "embedding_unit"  # in `Jepa.memory`
_LEAST_STD: Final = 1e-4  # of clips that can be told apart: less is that of equal ones
MONITOR_VIEWS: Final = 3  # masks under which the monitor sees each of its clips; more where there are more sets


class Jepa(nn.Module):
    """Hold context encoder, predictor, projector and, where targets are its features, target encoder."""

    def __init__(self, settings: config.Config, teacher: Encoder | None = None) -> None:
        """Make the networks of a run. teacher: the frozen target encoder of `targets: frozen`."""
        super().__init__()
        model, objective = settings.model, settings.objective
        if (teacher is None) == (objective.targets == "frozen"):
            raise ValueError(f"targets: {objective.targets} {'needs a' if teacher is None else 'has no'} teacher")
        self.settings, self.objective = settings, objective
        self.largest_batch = max(data.global_batch for data in settings.data.sources.values())
        self.dense = objective.context_weight > 0
        self.encoder = make_encoder(model)
        self.predictor = make_predictor(model, len(settings.masks), self.dense) if objective.predicts else nn.Identity()
        widths = [model.levels * self.encoder.width, *objective.projector_widths]
        self.projector, self.embedding_width = make_projector(widths), widths[-1]
        averaged = objective.targets == "ema"
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False) if averaged else teacher
        self.distance = partial(prediction_loss, objective.loss, huber_delta=objective.huber_delta)
        self.memory: dict[str, float] = {}
        self.shadow: ema.Shadow | None = None
        self.dtype, self.total_steps, self.skips = torch.float32, 1, 0

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Name the networks that a checkpoint holds; a frozen teacher is none of them."""
        return {name: getattr(self, name) for name in self.objective.networks}

    @property
    def measured_encoder(self) -> Encoder:
        """Give the encoder that probes measure, `eval.encoder`."""
        return cast(Encoder, getattr(self, self.settings.eval.encoder))

    def load_pretrained(self) -> None:
        """Start both encoders from the weights that timm publishes (`model.pretrained`)."""
        load_pretrained(self.encoder)
        self.start_average()

    def start_average(self) -> None:
        """Start the moving average, where the target encoder is one, from the context encoder as it is."""
        if self.target_encoder is not None and self.objective.targets == "ema":
            self.target_encoder.load_state_dict(self.encoder.state_dict())

    @property
    def rests(self) -> bool:
        """Tell whether some steps leave some weights without a gradient, such as those of images a step on clips."""
        model, objective = self.settings.model, self.objective
        of_some_sources = model.image_mode == "own" or model.modality_embedding
        unread = model.level_norms and model.levels == 1
        spare = (model.predictor.mask_tokens or 0) > len(self.settings.masks)
        hidden = objective.prediction or objective.vicreg_invariance or objective.cycle
        return of_some_sources or unread or spare or (self.dense and not hidden)

    def begin(self, dtype: torch.dtype, total_steps: int) -> None:
        """Get ready to train for `total_steps` with matrix products in `dtype`; weights and the average stay fp32.

        Shards of them are cast where they meet, so that they need no copy in `dtype`.
        """
        self.train()
        self.dtype, self.total_steps = dtype, total_steps
        is_spread = any(ema.local(one) is not one for one in self.parameters())
        if self.target_encoder is not None and self.objective.targets == "ema":
            self.shadow = ema.Shadow(self.target_encoder, torch.float32 if is_spread else dtype)
        elif self.target_encoder is not None and not is_spread:
            ema.cast_matrices(self.target_encoder, dtype)

    def compile_blocks(self) -> None:
        """Compile each transformer block, for fixed shapes where every step has the same ones. Call `begin` first."""
        grids = set(self.settings.grids.values())
        static = len(grids) == 1 and plan(self.settings.masks, *grids).has_constant_counts
        for block in {*self.modules(), *(self.shadow.encoder.modules() if self.shadow else ())}:
            if isinstance(block, Block):
                block.compile(dynamic=False if static else None)

    def terms(self, batch: ClipBatch, step: int, share: StepShare = ALONE) -> dict[str, Tensor]:
        """Compute the terms of the loss at a step, named fp32 scalars on the device of the networks.

        Everything random is a function of (seed, step), so there is nothing to save beside weights and moments.
        share: the part of the clips of this step that `batch` is.
        """
        objective, seed = self.objective, self.settings.run.seed
        video, masks = self._inputs(batch, step, share)
        context_weight = objective.context_weight * schedules.ramp(step, *objective.context_warmup_steps)
        directions = None
        if objective.sigreg:
            directions = sigreg.directions(seed, step, objective.sigreg_slices, self.embedding_width)
            directions = sent(directions, self.device)
        return self.forward(video, masks, context_weight, directions, share)

    def embeddings(self, batch: ClipBatch, step: int, share: StepShare) -> dict[str, Tensor]:
        """Compute the embeddings that `terms` compares over all clips of a step, [V, b, D] by name; {}: none."""
        if not self.objective.embeds:
            return {}
        video, masks = self._inputs(batch, step, share)
        patches = patchify(video, self.encoder.model)
        views = self._embeddings(self.encoder.encode_sets(patches, [mask.context_ids for mask in masks]))
        return {"views": views} | ({"odd": self._time_odd(video, masks, views)} if self._reverses(video) else {})

    def _inputs(self, batch: ClipBatch, step: int, share: StepShare) -> tuple[Tensor, list[TokenMask]]:
        """Give normalised clips [b, C, T, H, W] and their masks, and set what clips skip in the passes to come."""
        settings, seed = self.settings, self.settings.run.seed
        video = normalise(sent(batch.video, self.device), self.dtype, settings.data.channels)
        drawn = plan(settings.masks, self.encoder.grid(*video.shape[2:]))
        masks = drawn.draw(len(video), seed, step * self.largest_batch, step, self.total_steps, share)
        set_share(self, share)
        if self.shadow is not None:
            set_share(self.shadow.encoder, share)
        self.skips = int(generator(seed, "drop_path", step).integers(1 << 63))
        torch.manual_seed(self.skips)
        return video, [mask.to(self.device) for mask in masks]

    @property
    def device(self) -> torch.device:
        """Tell where the networks are."""
        return next(self.parameters()).device

    def after_update(self, step: int, skipped: Tensor | None = None) -> None:
        """Move the target encoder towards the context encoder (V-JEPA section 3.1), unless the step was `skipped`."""
        if self.shadow is not None:
            ema.update(self.shadow.average, self.encoder, self.ema_decay(step), skipped)
            self.shadow.refresh()

    def observe(self, video: Tensor) -> Observed:
        """Run the networks on clips that are not learned from, uint8 [B, 3, T, H, W], under fixed masks.

        Masks are those of the last step, the same at every call and for every clip. Predictions are of the first of
        each mask set.
        """
        video = normalise(sent(video, self.device), self.dtype, self.settings.data.channels)
        patches, encoder, num_sets = patchify(video, self.encoder.model), self.encoder, len(self.settings.masks)
        seed = int(generator(self.settings.run.seed, "monitor", 0).integers(1 << 63))
        drawn = plan(self.settings.masks, patches.grid)
        draws = range(math.ceil(MONITOR_VIEWS / num_sets))
        masks = [mask for i in draws for mask in drawn.draw(1, seed, i, self.total_steps - 1, self.total_steps)]
        masks = [mask.to(video.device).expand(len(video)) for mask in masks[: max(MONITOR_VIEWS, num_sets)]]
        levels = self.settings.model.levels > 1
        depths = encoder.level_depths if levels else sorted({max(0, q * encoder.depth // 4 - 1) for q in (1, 2, 3, 4)})
        seen = [encoder.intermediate(video, depths, mask.context_ids) for mask in masks]
        views = [torch.stack([tokens.float().mean(dim=1) for tokens in at], dim=1) for at in zip(*seen, strict=True)]
        targets, predictions = self.targets(patches), tuple[Tensor, ...]()
        if self.objective.predicts:
            contexts = [torch.cat(features if levels else features[-1:], dim=-1) for features in seen[:num_sets]]
            predictions = tuple(
                self.predict(context, mask, patches.grid, index)
                for index, (context, mask) in enumerate(zip(contexts, masks, strict=False))
            )
        ids = tuple(mask.target_ids[0] for mask in masks[: len(predictions)])
        return Observed(dict(zip(depths, views, strict=True)), targets, predictions, ids)

    def scalars(self, step: int) -> dict[str, float]:
        """Give what a log shows of this method beside its terms."""
        return {"ema_decay": self.ema_decay(step)} if self.shadow else {}

    def ema_decay(self, step: int) -> float:
        """Give the share of the target encoder that stays at a step."""
        optim = self.settings.optim
        laid_out = schedules.laid_out(self.total_steps, optim)
        return schedules.linear(step, laid_out, optim.ema_decay, optim.final_ema_decay)

    def forward(
        self,
        video: Tensor,
        masks: Sequence[TokenMask],
        context_weight: float = 0.0,
        directions: Tensor | None = None,
        share: StepShare = ALONE,
    ) -> dict[str, Tensor]:
        """Compare predictions with targets and views with each other: named fp32 scalars, `loss` their sum.

        video: [B, 3, T, H, W], normalised. masks: one TokenMask for each mask set.

        context_weight: of the loss on visible tokens at this step; see `Objective.context_weight`.
        directions: [S, embedding_width], those of SIGReg at this step; see `sigreg.directions`. None: without that
        term. share: the part of the clips of a step that these are; embeddings are compared over all of them.
        """
        patches = patchify(video, self.encoder.model)
        contexts = self.encoder.encode_sets(patches, [mask.context_ids for mask in masks])
        means = self._prediction_means(patches, contexts, masks) if self.objective.predicts else {}
        if self.objective.embeds:
            own = self._embeddings(contexts)
            views = share.join("views", own)
            unit = self._unit(views)
            means |= embedding_terms(self.objective, unit * views, directions)
            if self._reverses(video):
                odd = share.join("odd", self._time_odd(video, masks, own))
                terms = embedding_terms(self.objective, unit * odd, directions)
                means |= {f"reversal_{name}": term for name, term in terms.items()}
        weights = {"context": context_weight, **self.objective.weights}
        return {"loss": torch.stack([weights[name] * mean for name, mean in means.items()]).sum(), **means}

    def _embeddings(self, contexts: Sequence[Tensor]) -> Tensor:
        """Pool and project the context features of M views, [B C, Kc, levels * D] each -> [M C, B, E].

        C crops of each of B clips are views too.
        """
        pooled = torch.stack([context.mean(dim=1) for context in contexts])
        views = rearrange(pooled, "m (b c) d -> (m c) b d", c=self.settings.data.clips_per_decode)
        embeddings: Tensor = self.projector(views)
        return embeddings

    def _reverses(self, video: Tensor) -> bool:
        """Tell whether clips [B, C, T, H, W] are played backwards too."""
        return self.objective.reversal > 0 and video.shape[2] > 1

    def _unit(self, views: Tensor) -> float:
        """Give the factor of embeddings [M C, B, E]: that which brought those of the first step to `initial_std`.

        How far clips lie apart before any training depends on their contrast alone, by two orders of magnitude from
        data to data, and a covariance goes with its square.
        """
        wanted = self.objective.initial_std
        if not wanted:
            return 1.0
        if _UNIT not in self.memory:
            std = views.detach().float().mean(dim=0).var(dim=0).mean().sqrt().item()
            self.memory[_UNIT] = wanted / max(std, _LEAST_STD)
        return self.memory[_UNIT]

    def _time_odd(self, video: Tensor, masks: Sequence[TokenMask], views: Tensor) -> Tensor:
        """Give the part of embeddings, [M C, B, E], that changes its sign when the clip is played backwards.

        What a single frame shows is not in it; of independent embeddings its variance is that of one.
        """
        torch.manual_seed(self.skips + 1)  # whatever came between: clips skip the same in `embeddings` and in `terms`
        patches = patchify(video.flip(2), self.encoder.model)
        backwards = self._embeddings(self.encoder.encode_sets(patches, [mask.context_ids for mask in masks]))
        return (views - backwards) / math.sqrt(2)

    def _prediction_means(
        self, patches: Patches, contexts: Sequence[Tensor], masks: Sequence[TokenMask]
    ) -> dict[str, Tensor]:
        """Average each term of prediction over the mask sets."""
        targets = self.targets(patches)
        sets = [
            self._prediction_terms(patches.grid, context, targets, mask, index)
            for index, (mask, context) in enumerate(zip(masks, contexts, strict=True))
        ]
        return {name: torch.stack([terms[name] for terms in sets]).mean() for name in sets[0]}

    def _prediction_terms(
        self, grid: TokenGrid, context: Tensor, targets: Tensor, mask: TokenMask, index: int
    ) -> dict[str, Tensor]:
        """Compare one mask set: its context features [B, Kc, levels * D] and all targets [B, N, P] -> terms."""
        objective, wanted, terms = self.objective, gather_tokens(targets, mask.target_ids), {}
        if isinstance(self.predictor, Predictor) and self.dense:
            predictions, seen = self.predictor.dense(context, mask.context_ids, mask.target_ids, grid, index)
            visible = gather_tokens(targets, mask.context_ids)
            terms["context"] = self.distance(seen, visible, context_weights(mask, grid))
        else:
            predictions = self.predict(context, mask, grid, index)
        if objective.prediction:
            terms["prediction"] = self.distance(predictions, wanted)
        if objective.vicreg_invariance:
            terms["invariance"] = vicreg.invariance(predictions, wanted)
        if objective.cycle:  # the features stay put, or the encoder would make them easy to predict back
            back = self.predict(predictions, TokenMask(mask.target_ids, mask.context_ids), grid, index)
            terms["cycle"] = self.distance(back, layer_normed(context.detach(), self.encoder.width))
        return terms

    def predict(self, context: Tensor, mask: TokenMask, grid: TokenGrid, index: int) -> Tensor:
        """Predict each of M = num_targets blocks in a pass of its own: [B, Kc, D] -> [B, (M Kt), P]."""
        num = mask.num_targets
        seen, ids = repeat(context, "b k d -> (b m) k d", m=num), repeat(mask.context_ids, "b k -> (b m) k", m=num)
        hidden = rearrange(mask.target_ids, "b (m k) -> (b m) k", m=num)
        predictions: Tensor = self.predictor(seen, ids, hidden, grid, index)
        return rearrange(predictions, "(b m) k d -> b (m k) d", m=num)

    def targets(self, patches: Patches) -> Tensor:
        """Make the targets of every token, [B, N, P]: normalised pixels, or features, each level layer-normed without
        affine (V-JEPA section 3.1).

        Without a target encoder they are features of the context encoder, and their gradient is not stopped (LeJEPA).
        """
        if self.objective.targets == "pixels":
            model = self.encoder.model
            return normalised_pixels(patches.pixels, model.channels, patches.taps, model.tubelet_frames)
        if self.target_encoder is None:
            return layer_normed(self.encoder.encode(patches), self.encoder.width)
        with torch.no_grad():
            encoder = self.shadow.encoder if self.shadow else self.target_encoder
            return layer_normed(encoder.encode(patches), encoder.width)

    def train(self, mode: bool = True) -> Jepa:
        """Set the mode of the networks, but a frozen teacher never trains: no drop path, no statistics measured."""
        super().train(mode)
        if self.target_encoder is not None and self.objective.targets == "frozen":
            self.target_encoder.eval()
        return self


def build(settings: config.Config, teacher: Encoder | None = None) -> Jepa:
    """Make the networks of a run at their initialisation, a function of run.seed; other random state is left alone.

    The context encoder is drawn first, so that it is the untrained encoder that training has to beat.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.run.seed)
        return Jepa(settings, teacher)
