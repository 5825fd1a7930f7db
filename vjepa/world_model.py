"""The method of a world model: predict the latents of the next frame from frames and actions so far (V-JEPA 2-AC,
Assran et al. 2025, section 3), on any encoder.

A frame is encoded alone. Its features are [h, w, D], tokens or means of cells; its latents are these, normed, or one
vector that is learned, [1, 1, V].
"""

from __future__ import annotations

from typing import Final

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from vjepa import config
from vjepa.counter_rng import generator
from vjepa.data.augment import normalise
from vjepa.data.tracks import TrackInfo
from vjepa.models.action_predictor import ActionPredictor, Past, normed
from vjepa.models.encoder import Encoder
from vjepa.models.layers import Block, Mlp, initialise
from vjepa.objectives import sigreg
from vjepa.ranks import ALONE, StepShare
from vjepa.records import ClipBatch, LatentBatch, sent

_KNOTS: Final = 17  # of the integral of SIGReg, as in the objective of pre-training
_LEAST_SPREAD: Final = 1e-8
_MOST_DIRECTIONS: Final = 1024  # that the head of vectors reads
_LEAST_VARIANCE: Final = 1e-5  # of a direction, to the mean of all: what varies less is not told from rounding
_GOAL_SIDE: Final = 4  # cells along a side that the inverse model reads at most


class WorldModel(nn.Module):
    """Hold encoder, predictor and, where they are asked for, the head of vectors and the inverse model."""

    action_mean: Tensor
    action_std: Tensor
    state_mean: Tensor
    state_std: Tensor

    def __init__(
        self, settings: config.WorldConfig, encoder: Encoder, actions: TrackInfo, states: TrackInfo | None
    ) -> None:
        """Make the networks of a run on `encoder`, which stays as it is unless `targets: none`.

        actions, states: what they are and what their numbers are like; states are asked for by `world.state` alone.
        """
        super().__init__()
        world = settings.world
        self.settings, self.world = settings, world
        self.encoder = encoder.requires_grad_(world.targets == "none")
        self.actions, self.states = actions, states if world.state else None
        num_action, num_state = actions.size, self.states.size if self.states else 0
        is_vector = world.latents == "vector"
        self.head = VectorHead(self.feature_shape, world.vector_width, num_action) if is_vector else None
        width = self.latent_shape[-1]
        self.predictor = ActionPredictor(world.predictor, width, num_action, num_state, norms=not is_vector)
        self.goal_model = GoalModel(self.latent_shape, world.goal_width, num_action) if world.goal_width else None
        for name, info in (("action", actions), ("state", self.states)):
            mean, std = _moments(info) if info and world.normalise else (torch.zeros(1), torch.ones(1))
            self.register_buffer(f"{name}_mean", mean, persistent=False)
            self.register_buffer(f"{name}_std", std, persistent=False)
        self.memory: dict[str, float] = {}
        self.dtype = torch.float32

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Give h, w, D of the features of a frame."""
        grid, side = self.encoder.grid(1, *self.settings.data.crop_size), self.world.grid_side
        cells = (grid.h, grid.w) if self.world.latents == "tokens" else (side, side)
        return *cells, self.encoder.width

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Give h, w, D of the latents of a frame."""
        return (1, 1, self.world.vector_width) if self.head is not None else self.feature_shape

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Name the networks that a checkpoint holds; a frozen encoder is none of them."""
        return {name: getattr(self, name) for name in self.settings.networks}

    def begin(self, dtype: torch.dtype, total_steps: int) -> None:
        """Get ready to train with matrix products in `dtype`; nothing here depends on the number of steps."""
        self.train()
        self.dtype = dtype

    def train(self, mode: bool = True) -> WorldModel:
        """Set the mode of the networks that learn; a frozen encoder never trains."""
        super().train(mode)
        self.encoder.train(mode and self.world.targets == "none")
        return self

    def compile_blocks(self) -> None:
        """Compile each transformer block of the encoder; those of the predictor see sequences of many lengths."""
        for block in self.encoder.modules():
            if isinstance(block, Block):
                block.compile(dynamic=False)

    def embeddings(self, batch: ClipBatch | LatentBatch, step: int, share: StepShare) -> dict[str, Tensor]:
        """Give nothing: a world model learns from the batch of a whole step."""
        return {}

    def after_update(self, step: int, skipped: Tensor | None = None) -> None:
        """Do nothing: there is no average."""

    def scalars(self, step: int) -> dict[str, float]:
        """Give nothing beside the terms."""
        return {}

    def terms(self, batch: ClipBatch | LatentBatch, step: int, share: StepShare = ALONE) -> dict[str, Tensor]:
        """Compute the terms of the loss at a step, named fp32 scalars; what is random is a function of (seed, step).

        It is the batch of a whole step: `share` is ALONE.
        """
        seed, world = self.settings.run.seed, self.world
        torch.manual_seed(int(generator(seed, "drop_path", step).integers(1 << 63)))
        features, actions, states = self.read(batch)
        most = features.shape[1] - world.rollout_steps
        shown = 1 + int(generator(seed, "roll_out", step).integers(most)) if world.rollout_start == "random" else 1
        terms = self.losses(self.latents_of(features), actions, states, shown)
        if world.sigreg:
            latents = rearrange(self.latents_of(features), "b t h w d -> (b t) (h w d)")
            directions = sigreg.directions(seed, step, world.sigreg_slices, latents.shape[1])
            terms["sigreg"] = sigreg.sigreg(latents[None], sent(directions, latents.device), _KNOTS)
        weights = {"roll_out": world.rollout_weight, "inverse": world.inverse_weight, "sigreg": world.sigreg}
        loss = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
        return {"loss": loss, **terms}

    def read(self, batch: ClipBatch | LatentBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Give features [B, T, h, w, D], actions [B, T - 1, A] and states [B, T, S] or None, normalised, on the device.

        Raises ValueError for a batch without actions.
        """
        device = self.action_mean.device
        if batch.actions is None:
            raise ValueError("a world model learns from batches with actions; see data.actions")
        if isinstance(batch, LatentBatch):
            features = sent(batch.features, device).float()
        else:
            features = self.features(sent(batch.video, device))
        states = batch.states if self.world.state else None
        placed = None if states is None else self.placed(sent(states, device))
        return features, self.scaled(sent(batch.actions, device)), placed

    def scaled(self, actions: Tensor) -> Tensor:
        """Normalise actions [..., A]."""
        return (actions - self.action_mean) / self.action_std

    def placed(self, states: Tensor) -> Tensor:
        """Normalise states [..., S]."""
        return (states - self.state_mean) / self.state_std

    def features(self, video: Tensor) -> Tensor:
        """Encode each frame of uint8 clips alone: b c t height width -> b t h w d.

        What is measured, kept or planned with is encoded in fp32: the same, wherever it comes from.
        """
        frames = rearrange(video, "b c t y x -> (b t) c 1 y x")
        dtype = self.dtype if self.training else torch.float32
        clips = normalise(frames, dtype, self.settings.data.channels)
        learns, mixed = torch.is_grad_enabled() and self.world.targets == "none", dtype is not torch.float32
        with torch.set_grad_enabled(learns), torch.autocast(video.device.type, dtype, enabled=mixed):
            tokens = self.encoder(clips).float()
        grid = self.encoder.grid(1, *video.shape[-2:])
        cells: Tensor = rearrange(tokens, "n (h w) d -> n d h w", h=grid.h)
        if self.world.latents != "tokens":
            cells = functional.adaptive_avg_pool2d(cells, self.world.grid_side)
        features: Tensor = rearrange(cells, "(b t) d h w -> b t h w d", b=len(video))
        return features

    def latents_of(self, features: Tensor) -> Tensor:
        """Turn features [B, T, h, w, D] into what is predicted: the same, normed, or vectors [B, T, 1, 1, V]."""
        latents = normed(features)
        if self.head is not None:
            latents = self.head(latents)
        return latents

    def losses(self, latents: Tensor, actions: Tensor, states: Tensor | None, shown: int) -> dict[str, Tensor]:
        """Compare predictions with latents [B, T, h, w, D]: teacher forcing, and a roll-out after `shown` true frames.

        actions: [B, T - 1, A]. states: [B, T, S], true ones in the roll-out too.
        """
        world = self.world
        before = None if states is None else states[:, :-1]
        predicted, past = self.predictor.go_on(latents[:, :-1], actions, before)
        targets = latents if self.world.learns_latents else latents.detach()
        terms = {"prediction": self.distance(predicted, targets[:, 1:])}
        if world.rollout_steps > 1:
            past = past.first(shown)
            rolled = self.roll_out(predicted[:, shown - 1], past, actions[:, shown:], before, world.rollout_steps)
            terms["roll_out"] = self.distance(rolled, targets[:, shown : shown + world.rollout_steps])
        if self.head is not None and world.inverse_weight:
            terms["inverse"] = functional.mse_loss(self.head.actions(latents), actions)
        if self.goal_model is not None:
            terms["goal"] = self._goal_loss(latents.detach(), actions)
        return terms

    def roll_out(self, latents: Tensor, past: Past, actions: Tensor, states: Tensor | None, num: int) -> Tensor:
        """Predict on from a predicted frame [B, h, w, D] that follows `past`: it and the next, [B, num, h, w, D].

        actions: [B, num - 1 or more, A], those that lead on from it. states: [B, T, S] of all steps.
        """
        rolled = [latents]
        for k in range(num - 1):
            fed = rolled[-1].detach() if self.world.rollout_detach else rolled[-1]
            at = past.num_steps
            state = None if states is None else states[:, at : at + 1]
            found, past = self.predictor.go_on(fed[:, None], actions[:, k : k + 1], state, past=past)
            rolled.append(found[:, 0])
        return torch.stack(rolled, dim=1)

    def distance(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Compare latents: the mean over all of them; of learned ones over the spread of `wanted`.

        The gradient goes through the spread too, so that nothing is gained by latents that shrink.
        """
        distance = functional.l1_loss if self.world.loss == "l1" else functional.mse_loss
        if not self.world.learns_latents:
            return distance(found, wanted)
        mean = wanted.mean(dim=(0, 1), keepdim=True).expand_as(wanted)
        return distance(found, wanted) / distance(mean, wanted).clamp(min=_LEAST_SPREAD)

    def _goal_loss(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Compare the actions of the inverse model with those taken, for all pairs of a frame and a later one."""
        if self.goal_model is None:
            raise ValueError("without an inverse model it has no loss")
        first, later = torch.triu_indices(latents.shape[1], latents.shape[1], 1, device=latents.device)
        return functional.mse_loss(self.goal_model(latents[:, first], latents[:, later]), actions[:, first])


class VectorHead(nn.Module):
    """Make one vector of the features of a frame, by a linear map; b t h w d -> b t 1 1 v.

    Features are whitened first: what differs from frame to frame, such as the place of a small thing, is a small part
    of most of them, and nearly the same in many.
    """

    def __init__(self, features: tuple[int, int, int], width: int, num_action: int) -> None:
        """Make it at random weights, with the linear map from a difference of two vectors to the action between."""
        super().__init__()
        rows, columns, channels = features
        self.whitening = Whitening(rows * columns * channels)
        self.embed = nn.Linear(self.whitening.num_directions, width)
        self.inverse = nn.Linear(width, num_action)

    def forward(self, features: Tensor) -> Tensor:
        rows = rearrange(features, "b t h w d -> (b t) (h w d)")
        vectors: Tensor = self.whitening(rows, self.embed.weight) + self.embed.bias
        return rearrange(vectors, "(b t) v -> b t 1 1 v", b=len(features))

    @torch.no_grad()
    def begin(self, features: Tensor) -> None:
        """Get ready for features like these, [N, h, w, D]: whiten them, and first see most of what varies most."""
        self.embed.weight.mul_(self.whitening.fit(rearrange(features, "n h w d -> n (h w d)")))

    def actions(self, latents: Tensor) -> Tensor:
        """Read off vectors [B, T, 1, 1, V] the actions between them: [B, T - 1, A]."""
        found: Tensor = self.inverse(latents.diff(dim=1).flatten(2))
        return found


class Whitening(nn.Module):
    """Turn features [N, F] into their K principal directions, of one variance each as far as they have any."""

    mean: Tensor
    directions: Tensor

    def __init__(self, width: int) -> None:
        """Begin with the first K features as they are, until `fit`."""
        super().__init__()
        self.num_directions = min(width, _MOST_DIRECTIONS)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("directions", torch.eye(width, self.num_directions))

    def forward(self, features: Tensor, weight: Tensor) -> Tensor:
        """Apply a linear map, [V, K], to what features [N, F] are when whitened: [N, V].

        Both maps are joined first, for V is much less than K. In fp32 whatever autocast says: what varies least is
        enlarged most, and with it the rounding.
        """
        with torch.autocast(features.device.type, enabled=False):
            white: Tensor = (features.float() - self.mean) @ (self.directions @ weight.T)
        return white

    @torch.no_grad()
    def fit(self, features: Tensor) -> Tensor:
        """Take mean and covariance of features [N, F]; give the deviation of each direction, that of the first is 1."""
        self.mean.copy_(features.mean(dim=0))
        apart = (features - self.mean).double()
        variances, directions = torch.linalg.eigh(apart.T @ apart / len(features))
        scales = (variances.clamp(min=0) + _LEAST_VARIANCE * variances.mean()).rsqrt()
        self.directions.copy_((directions * scales).flip(1)[:, : self.num_directions])
        stds = scales.reciprocal().flip(0)[: self.num_directions]
        shares: Tensor = (stds / stds[0]).to(features)
        return shares


class GoalModel(nn.Module):
    """Answer a frame and a goal with the action to take: [..., h, w, D] each -> [..., A], by a network of 2 layers."""

    def __init__(self, latents: tuple[int, int, int], hidden: int, num_action: int) -> None:
        """Make it at random weights. latents: h, w, D of a frame, of which 4 x 4 cells at most are read."""
        super().__init__()
        rows, columns, width = latents
        self.cells = min(rows, _GOAL_SIDE), min(columns, _GOAL_SIDE)
        self.embed = nn.Linear(2 * self.cells[0] * self.cells[1] * width, hidden)
        self.mlp = Mlp(hidden, 2 * hidden)
        self.answer = nn.Linear(hidden, num_action)
        initialise(self)

    def forward(self, latents: Tensor, goals: Tensor) -> Tensor:
        """Join both [..., h, w, D], as cells, and answer [..., A]."""
        shape = latents.shape[:-3]
        pairs = torch.stack([latents, goals.expand_as(latents)], dim=-4).reshape(-1, *latents.shape[-3:])
        cells = functional.adaptive_avg_pool2d(rearrange(pairs, "n h w d -> n d h w"), self.cells)
        hidden = functional.gelu(self.embed(rearrange(cells, "(n two) d h w -> n (two h w d)", two=2)))
        answers: Tensor = self.answer(functional.gelu(hidden + self.mlp(hidden)))
        return answers.reshape(*shape, -1)


def _moments(info: TrackInfo) -> tuple[Tensor, Tensor]:
    """Give mean and deviation of each dimension, fp32; what never changes counts as of deviation 1."""
    std = torch.tensor(info.std, dtype=torch.float32)
    return torch.tensor(info.mean, dtype=torch.float32), torch.where(std > 0, std, 1.0)
