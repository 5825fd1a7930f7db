"""The method on one screen: predict the features of hidden tokens from visible ones (V-JEPA, Bardes et al. 2024), or
make views of a clip agree.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from vjepa import config
from vjepa.models.backbone import make_encoder
from vjepa.models.encoder import Encoder, Patches, patchify
from vjepa.models.layers import gather_tokens
from vjepa.models.predictor import Predictor, make_predictor
from vjepa.models.projector import make_projector
from vjepa.objectives import vicreg
from vjepa.objectives.dense import context_weights
from vjepa.objectives.prediction import prediction_loss
from vjepa.objectives.targets import layer_normed, normalised_pixels
from vjepa.objectives.views import embedding_terms
from vjepa.records import TokenGrid, TokenMask


class Jepa(nn.Module):
    """Context encoder, predictor, projector and, where targets are its features, target encoder; the forward pass gives
    the loss terms.
    """

    def __init__(
        self,
        model: config.Model,
        objective: config.Objective,
        num_masks: int,
        num_crops: int = 1,
        teacher: Encoder | None = None,
    ) -> None:
        """num_crops: clips that lie side by side in a batch and are crops of one. teacher: the frozen target encoder of
        `targets: frozen`.
        """
        super().__init__()
        if (teacher is None) == (objective.targets == "frozen"):
            raise ValueError(f"targets: {objective.targets} {'needs a' if teacher is None else 'has no'} teacher")
        self.objective, self.num_crops = objective, num_crops
        self.dense = objective.context_weight > 0
        self.encoder = make_encoder(model)
        self.predictor = make_predictor(model, num_masks, self.dense) if objective.predicts else nn.Identity()
        widths = [model.levels * self.encoder.width, *objective.projector_widths]
        self.projector, self.embedding_width = make_projector(widths), widths[-1]
        self.target_encoder = (
            copy.deepcopy(self.encoder).requires_grad_(False) if objective.targets == "ema" else teacher
        )
        self.distance = partial(prediction_loss, objective.loss, huber_delta=objective.huber_delta)

    def forward(
        self,
        video: Tensor,
        masks: Sequence[TokenMask],
        context_weight: float = 0.0,
        directions: Tensor | None = None,
        target_encoder: Encoder | None = None,
    ) -> dict[str, Tensor]:
        """video [B, 3, T, H, W], normalised; one TokenMask per mask set -> named fp32 scalars, of which `loss` is the
        sum by weight.

        context_weight: of the loss on visible tokens at this step; see `Objective.context_weight`.
        directions: [S, embedding_width], those of SIGReg at this step; see `sigreg.directions`. None: without that
        term.
        target_encoder: a copy of the target encoder in another precision to use in its place.
        """
        patches = patchify(video, self.encoder.model)
        targets = self.targets(patches, target_encoder) if self.objective.predicts else None
        terms: dict[str, list[Tensor]] = {}
        pooled = []
        contexts = self.encoder.encode_sets(patches, [mask.context_ids for mask in masks])
        for index, (mask, context) in enumerate(zip(masks, contexts, strict=True)):
            pooled.append(context.mean(dim=1))
            if targets is not None:
                for name, term in self._prediction_terms(patches.grid, context, targets, mask, index).items():
                    terms.setdefault(name, []).append(term)
        means = {name: torch.stack(values).mean() for name, values in terms.items()}
        if self.objective.embeds:
            views = rearrange(torch.stack(pooled), "m (b c) d -> (m c) b d", c=self.num_crops)
            means |= embedding_terms(self.objective, self.projector(views), directions)
        weights = {"context": context_weight, **self.objective.weights}
        return {"loss": torch.stack([weights[name] * mean for name, mean in means.items()]).sum(), **means}

    def _prediction_terms(
        self, grid: TokenGrid, context: Tensor, targets: Tensor, mask: TokenMask, index: int
    ) -> dict[str, Tensor]:
        """The terms of one mask set from its context features [B, Kc, levels * D] and all targets [B, N, P]."""
        objective, wanted, terms = self.objective, gather_tokens(targets, mask.target_ids), {}
        if isinstance(self.predictor, Predictor) and self.dense:
            predictions, seen = self.predictor.dense(context, mask.context_ids, mask.target_ids, grid, index)
            terms["context"] = self.distance(
                seen, gather_tokens(targets, mask.context_ids), context_weights(mask, grid)
            )
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
        """[B, Kc, D] -> [B, (M Kt), P]: each of the M = num_targets blocks in a pass of its own, from the same
        context.
        """
        num = mask.num_targets
        seen, ids = repeat(context, "b k d -> (b m) k d", m=num), repeat(mask.context_ids, "b k -> (b m) k", m=num)
        predictions: Tensor = self.predictor(
            seen, ids, rearrange(mask.target_ids, "b (m k) -> (b m) k", m=num), grid, index
        )
        return rearrange(predictions, "(b m) k d -> b (m k) d", m=num)

    def targets(self, patches: Patches, target_encoder: Encoder | None = None) -> Tensor:
        """-> [B, N, P], for every token: features, each level layer-normed without affine (V-JEPA section 3.1), or
        pixels, each colour likewise.

        Without a target encoder they are features of the context encoder, and their gradient is not stopped (LeJEPA).
        """
        if self.objective.targets == "pixels":
            return normalised_pixels(patches.pixels, patches.taps, self.encoder.model.tubelet_frames)
        if self.target_encoder is None:
            return layer_normed(self.encoder.encode(patches), self.encoder.width)
        with torch.no_grad():
            encoder = target_encoder or self.target_encoder
            return layer_normed(encoder.encode(patches), encoder.width)

    def train(self, mode: bool = True) -> Jepa:
        """As that of any module, save that a frozen teacher is never in training: no drop path, and no statistics are
        measured.
        """
        super().train(mode)
        if self.target_encoder is not None and self.objective.targets == "frozen":
            self.target_encoder.eval()
        return self


def build(settings: config.Config, teacher: Encoder | None = None) -> Jepa:
    """The networks of a run at their initialisation, a pure function of run.seed; other random state is left alone."""
    with _seeded(settings):
        return Jepa(settings.model, settings.objective, len(settings.masks), settings.data.clips_per_decode, teacher)


def untrained_encoder(settings: config.Config) -> Encoder:
    """The context encoder as it was before the first step: the baseline that training has to beat."""
    with _seeded(settings):  # it is what `build` draws first
        return make_encoder(settings.model).requires_grad_(False).eval()


@contextmanager
def _seeded(settings: config.Config) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.run.seed)
        yield
