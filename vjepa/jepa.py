"""The method on one screen: predict the features of hidden tokens from visible ones (V-JEPA, Bardes et al. 2024)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional

from vjepa import config
from vjepa.models.encoder import VisionTransformer
from vjepa.models.layers import gather_tokens
from vjepa.models.predictor import Predictor
from vjepa.objectives import vicreg
from vjepa.objectives.prediction import prediction_loss
from vjepa.records import TokenGrid, TokenMask


class Jepa(nn.Module):
    """Context encoder, target encoder (its moving average) and predictor; the forward pass gives the loss terms."""

    def __init__(self, model: config.Model, objective: config.Objective, num_masks: int) -> None:
        super().__init__()
        self.objective = objective
        self.encoder = VisionTransformer(model)
        self.predictor = Predictor(model, num_masks)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)

    def forward(self, video: Tensor, masks: Sequence[TokenMask]) -> dict[str, Tensor]:
        """video [B, 3, T, H, W], normalised; one TokenMask per mask set -> named fp32 scalars, of which `loss` is the sum by weight."""
        grid = self.encoder.grid(*video.shape[2:])
        targets = self.targets(video)
        terms: dict[str, Tensor] = {}
        pooled = []
        for index, mask in enumerate(masks):
            context = self.encoder(video, mask.context_ids)
            predictions = self.predict(context, mask, grid, index)
            distance = prediction_loss(self.objective.loss, predictions, gather_tokens(targets, mask.target_ids))
            terms["prediction"] = terms.get("prediction", 0) + distance / len(masks)
            pooled.append(context.mean(dim=1))
        loss = terms["prediction"]
        for name, weight, term in (
            ("variance", self.objective.vicreg_variance, vicreg.variance),
            ("covariance", self.objective.vicreg_covariance, vicreg.covariance),
        ):
            if weight:
                terms[name] = torch.stack([term(features) for features in pooled]).mean()
                loss = loss + weight * terms[name]
        return {"loss": loss, **terms}

    def predict(self, context: Tensor, mask: TokenMask, grid: TokenGrid, index: int) -> Tensor:
        """[B, Kc, D] -> [B, (M Kt), D]: each of the M = num_targets blocks in a pass of its own, from the same context."""
        num = mask.num_targets
        seen, ids = repeat(context, "b k d -> (b m) k d", m=num), repeat(mask.context_ids, "b k -> (b m) k", m=num)
        predictions: Tensor = self.predictor(seen, ids, rearrange(mask.target_ids, "b (m k) -> (b m) k", m=num), grid, index)
        return rearrange(predictions, "(b m) k d -> b (m k) d", m=num)

    @torch.no_grad()
    def targets(self, video: Tensor) -> Tensor:
        """[B, 3, T, H, W] -> [B, N, D]: features of every token, each layer-normed without affine (V-JEPA section 3.1)."""
        features = self.target_encoder(video).float()
        return functional.layer_norm(features, features.shape[-1:])


def build(settings: config.Config) -> Jepa:
    """The networks of a run at their initialisation, a pure function of run.seed; other random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.run.seed)
        return Jepa(settings.model, settings.objective, len(settings.masks))


def untrained_encoder(settings: config.Config) -> VisionTransformer:
    """The context encoder as it was before the first step: the baseline that training has to beat."""
    return build(settings).encoder.requires_grad_(False).eval()
