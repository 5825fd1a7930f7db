"""The method on one screen: predict the features of hidden tokens from visible ones (V-JEPA, Bardes et al. 2024)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional

from vjepa import config
from vjepa.models.backbone import make_encoder
from vjepa.models.encoder import Encoder, Patches, patchify
from vjepa.models.layers import gather_tokens
from vjepa.models.predictor import Predictor, make_predictor
from vjepa.objectives import vicreg
from vjepa.objectives.dense import context_weights
from vjepa.objectives.prediction import prediction_loss
from vjepa.records import TokenGrid, TokenMask


class Jepa(nn.Module):
    """Context encoder, target encoder (its moving average) and predictor; the forward pass gives the loss terms."""

    def __init__(self, model: config.Model, objective: config.Objective, num_masks: int) -> None:
        super().__init__()
        self.objective = objective
        self.dense = objective.context_weight > 0
        self.encoder = make_encoder(model)
        self.predictor = make_predictor(model, num_masks, self.dense)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)

    def forward(self, video: Tensor, masks: Sequence[TokenMask], context_weight: float = 0.0, target_encoder: Encoder | None = None) -> dict[str, Tensor]:
        """video [B, 3, T, H, W], normalised; one TokenMask per mask set -> named fp32 scalars, of which `loss` is the sum by weight.

        context_weight: of the loss on visible tokens at this step; see `Objective.context_weight`.
        target_encoder: a copy of the target encoder in another precision to use in its place.
        """
        patches = patchify(video, self.encoder.model)
        targets = self.targets(patches, target_encoder or self.target_encoder)
        terms: dict[str, list[Tensor]] = {}
        for index, mask in enumerate(masks):
            context = self.encoder.encode(patches, mask.context_ids)
            for name, term in self._terms(patches.grid, context, targets, mask, index).items():
                terms.setdefault(name, []).append(term)
        means = {name: torch.stack(values).mean() for name, values in terms.items()}
        weights = {
            "prediction": 1.0,
            "context": context_weight,
            "variance": self.objective.vicreg_variance,
            "covariance": self.objective.vicreg_covariance,
        }
        return {"loss": torch.stack([weights[name] * mean for name, mean in means.items()]).sum(), **means}

    def _terms(self, grid: TokenGrid, context: Tensor, targets: Tensor, mask: TokenMask, index: int) -> dict[str, Tensor]:
        """The terms of one mask set from its context features [B, Kc, levels * D] and all targets [B, N, levels * D]."""
        loss, terms = self.objective.loss, {}
        if isinstance(self.predictor, Predictor) and self.dense:
            predictions, seen = self.predictor.dense(context, mask.context_ids, mask.target_ids, grid, index)
            terms["context"] = prediction_loss(loss, seen, gather_tokens(targets, mask.context_ids), context_weights(mask, grid))
        else:
            predictions = self.predict(context, mask, grid, index)
        terms["prediction"] = prediction_loss(loss, predictions, gather_tokens(targets, mask.target_ids))
        pooled = context.mean(dim=1)
        if self.objective.vicreg_variance:
            terms["variance"] = vicreg.variance(pooled)
        if self.objective.vicreg_covariance:
            terms["covariance"] = vicreg.covariance(pooled)
        return terms

    def predict(self, context: Tensor, mask: TokenMask, grid: TokenGrid, index: int) -> Tensor:
        """[B, Kc, D] -> [B, (M Kt), D]: each of the M = num_targets blocks in a pass of its own, from the same context."""
        num = mask.num_targets
        seen, ids = repeat(context, "b k d -> (b m) k d", m=num), repeat(mask.context_ids, "b k -> (b m) k", m=num)
        predictions: Tensor = self.predictor(seen, ids, rearrange(mask.target_ids, "b (m k) -> (b m) k", m=num), grid, index)
        return rearrange(predictions, "(b m) k d -> b (m k) d", m=num)

    @torch.no_grad()
    def targets(self, patches: Patches, target_encoder: Encoder) -> Tensor:
        """-> [B, N, levels * D]: features of every token, each level layer-normed without affine (V-JEPA section 3.1)."""
        features = target_encoder.encode(patches).float()
        levels = rearrange(features, "b n (l d) -> b n l d", d=self.encoder.width)
        return rearrange(functional.layer_norm(levels, levels.shape[-1:]), "b n l d -> b n (l d)")


def build(settings: config.Config) -> Jepa:
    """The networks of a run at their initialisation, a pure function of run.seed; other random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.run.seed)
        return Jepa(settings.model, settings.objective, len(settings.masks))


def untrained_encoder(settings: config.Config) -> Encoder:
    """The context encoder as it was before the first step: the baseline that training has to beat."""
    return build(settings).encoder.requires_grad_(False).eval()
