"""Networks of timm by name. No hidden pixel reaches one: a plain ViT gets the visible patches alone, any other sees
frames whose hidden patches are empty.

They read frames one by one. A token of several frames has the mean of their features.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import timm
import torch
from einops import rearrange, reduce, repeat
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models import vision_transformer
from torch import Tensor
from torch.nn import functional

from vjepa import config
from vjepa.errors import UserError
from vjepa.models.encoder import Encoder, Patches, unpatchify
from vjepa.models.layers import gather_tokens
from vjepa.models.state import spread_colours
from vjepa.records import TokenGrid


@dataclass(frozen=True)
class Shape:
    """Describe what a network of timm makes of frames.

    width: features per token. stage: the number of the map that is read; None: a plain ViT, which has tokens.
    unread: names of its parameters that only later maps need.
    """

    width: int
    stage: int | None = None
    unread: tuple[str, ...] = ()


@lru_cache(maxsize=16)
@torch.random.fork_rng(devices=[])
def look_up(name: str, patch_px: int) -> Shape:
    """Find the shape of a network on patches of this size.

    Raises UserError where timm has none of this name, or that one has no such patches.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, ["vit", "energy", *timm.list_models()])
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"model.backbone: timm {timm.__version__} has no {name!r}{hint}")
    try:
        with torch.device("meta"):
            network = timm.create_model(name, num_classes=0)
    except RuntimeError as error:  # a tag, after the dot, that is none
        raise UserError(f"model.backbone: {_one_line(error)}") from None
    return _vit_shape(name, patch_px, network) if _is_plain_vit(network) else _map_shape(name, patch_px, network)


def _vit_shape(name: str, patch_px: int, network: Any) -> Shape:
    own_px = network.patch_embed.patch_size[0]
    if patch_px != own_px:
        raise UserError(
            f"model.patch_px: {name} has patches of {own_px} px, not {patch_px}; set model.patch_px: {own_px}"
        )
    return Shape(network.embed_dim)


def _map_shape(name: str, patch_px: int, network: Any) -> Shape:
    strides = [stage["reduction"] for stage in getattr(network, "feature_info", ())]
    if patch_px not in strides:
        known = ", ".join(map(str, sorted(set(strides)))) or "none"
        raise UserError(
            f"model.patch_px: maps of {name} have strides of {known} px, not {patch_px}; set model.patch_px "
            "to one of them"
        )
    return _try_map(name, patch_px, max(number for number, stride in enumerate(strides) if stride == patch_px))


def _try_map(name: str, patch_px: int, stage: int) -> Shape:
    """Run forward and backward on the meta device, over 4x4 patches.

    Raises UserError where no map of 4x4 cells comes out.
    """
    try:
        with torch.device("meta"), torch.inference_mode(mode=False), torch.enable_grad():
            network = timm.create_model(name, features_only=True, out_indices=(stage,)).eval()
            features = _channels_first(network, torch.empty(1, 3, 4 * patch_px, 4 * patch_px))
            features.sum().backward()  # type: ignore[no-untyped-call]
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"model.backbone: {name} does not map frames of any size ({_one_line(error)}); take a CNN, or a plain ViT"
        ) from None
    if features.shape[2:] != (4, 4):
        cells = "x".join(map(str, features.shape[2:]))
        raise UserError(
            f"model.backbone: {name} makes {cells} cells of 4x4 patches of {patch_px} px, which cannot be "
            "tokens; take another network"
        )
    unread = tuple(key for key, parameter in network.named_parameters() if parameter.grad is None)
    return Shape(features.shape[1], stage, unread)


def _is_plain_vit(network: Any) -> bool:
    """Tell whether patches are embedded one by one. Variants of timm's ViT are subclasses, or embed otherwise."""
    is_vit = type(network) is vision_transformer.VisionTransformer
    return is_vit and type(network.patch_embed) is PatchEmbed and network.pos_embed is not None


def _channels_first(network: Any, frames: Tensor) -> Tensor:
    """Run a network that timm made with features_only: [F, 3, H, W] -> its map [F, D, h, w]."""
    features: Tensor
    (features,) = network(frames)
    return rearrange(features, "f h w d -> f d h w") if getattr(network, "output_fmt", None) == "NHWC" else features


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def make_encoder(model: config.Model) -> TimmEncoder:
    """Make the network that `model.backbone` names, at random weights. Raises UserError as `look_up` does."""
    return (TimmVit if look_up(model.backbone, model.patch_px).stage is None else TimmMap)(model)


def load_pretrained(encoder: TimmEncoder) -> None:
    """Load the weights that timm publishes, from its cache or the network. Raises UserError where there are none.

    Of other channels than colours each starts with the mean of the kernels of these.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            published = encoder.of_channels(3).make_network(pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        what = f"model.pretrained: the weights of {encoder.model.backbone} cannot be fetched ({_one_line(error)})"
        raise UserError(f"{what}; set model.pretrained: false for random ones") from None
    tensors = published.state_dict()
    spread_colours(tensors, encoder.network.state_dict(), f"model.pretrained: {encoder.model.backbone}")
    encoder.network.load_state_dict(tensors)


class TimmEncoder(Encoder):
    """Hold a network of timm, and the colours that its published weights were trained on, which need not be ours."""

    network: Any
    scale: Tensor
    shift: Tensor

    def __init__(self, model: config.Model) -> None:
        super().__init__()
        self.model, self.shape, self.depth = model, look_up(model.backbone, model.patch_px), 1
        self.width = self.shape.width
        published = timm.get_pretrained_cfg(model.backbone)
        colours = (published.mean, published.std, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        if model.channels != len(published.mean):  # channels that it was not published for are normalised as they are
            colours = ((0.0,), (1.0,), (0.0,), (1.0,))
        # on the CPU even where networks are built on the meta device: some have buffers that are in no file
        with torch.device("cpu"):
            self.network = self.make_network()
            mean, std, our_mean, our_std = (torch.tensor(each).view(-1, 1, 1) for each in colours)
            self.register_buffer("scale", our_std / std, persistent=False)
            self.register_buffer("shift", (our_mean - mean) / std, persistent=False)

    def of_channels(self, num: int) -> TimmEncoder:
        """Give this kind of encoder for `num` channels, itself where these are its own."""
        model = self.model.model_copy(update={"channels": num})
        return self if num == self.model.channels else type(self)(model)

    def make_network(self, **options: Any) -> Any:
        """Make the network of timm, with more options of timm.create_model."""
        raise NotImplementedError

    def _recolour(self, pixels: Tensor) -> Tensor:
        """Map [..., C, height, width], normalised as ours are, to what the network expects."""
        return pixels * self.scale + self.shift


class TimmVit(TimmEncoder):
    """Run a plain ViT of timm on the visible patches of each frame.

    Its class and register tokens attend too, and are dropped at the end.
    """

    def __init__(self, model: config.Model) -> None:
        super().__init__(model)
        self.depth = len(self.network.blocks)

    def make_network(self, **options: Any) -> Any:
        options |= {"num_classes": 0, "in_chans": self.model.channels}
        network = timm.create_model(self.model.backbone, **options)
        network.reset_classifier(0, "")  # drops a pooling of its own, too
        return network

    def _run(self, patches: Patches, ids: Tensor | None, depths: Sequence[int]) -> list[Tensor]:
        """Attend within each time slot: whole slots go through one by one, visible tokens of all slots under a mask."""
        slots = patches.grid.t
        if ids is None and slots > 1:
            pixels = rearrange(patches.pixels, "b (t n) x -> (b t) n x", t=slots)
            apart = replace(patches, pixels=pixels, grid=replace(patches.grid, t=1))
            return [rearrange(level, "(b t) n d -> b (t n) d", t=slots) for level in self._run(apart, None, depths)]
        tokens = self._embed(patches, ids)
        mask = None if ids is None or slots == 1 else self._within_slots(patches, ids)
        features = {}
        for depth, block in enumerate(self.network.blocks):
            tokens = block(tokens, attn_mask=mask)
            if depth in depths:
                normed = self.network.fc_norm(self.network.norm(tokens))  # no network has both
                seen = normed[:, slots * self.network.num_prefix_tokens :]
                features[depth] = reduce(seen, "(b p) k d -> b k d", "mean", p=patches.taps)
        return [features[depth] for depth in depths]

    def _embed(self, patches: Patches, ids: Tensor | None) -> Tensor:
        """Embed b k (c p x y) -> (b p) (t s + k) d.

        Of each frame the S class and register tokens of every slot come first, then the visible tokens.
        """
        embed, grid = self.network.patch_embed, patches.grid
        pixels = patches.pixels if ids is None else gather_tokens(patches.pixels, ids)
        sizes = {"p": patches.taps, "x": self.model.patch_px, "y": self.model.patch_px}
        pixels = self._recolour(rearrange(pixels, "b k (c p x y) -> b p k c x y", **sizes))
        tokens = embed.norm(functional.linear(pixels.flatten(3), embed.proj.weight.flatten(1), embed.proj.bias))
        prefix, positions = self._tables(grid)
        tokens = tokens + (positions if ids is None else positions[ids % grid.cells].unsqueeze(1))
        tokens = rearrange(tokens, "b p k d -> (b p) k d")
        prefix = repeat(prefix.to(tokens.dtype), "1 s d -> 1 (t s) d", t=grid.t).expand(tokens.shape[0], -1, -1)
        return self.network.norm_pre(torch.cat([prefix, tokens], dim=1))  # type: ignore[no-any-return]

    def _tables(self, grid: TokenGrid) -> tuple[Tensor, Tensor]:
        """Give the class and register tokens with their positions [1, S, D], and the positions of the cells [h * w, D].

        The latter are interpolated from the network's own grid.
        """
        network = self.network
        prefix = [token for token in (network.cls_token, network.reg_token) if token is not None]
        placed = 0 if network.no_embed_class else network.num_prefix_tokens
        table = resample_abs_pos_embed(network.pos_embed, [grid.h, grid.w], network.patch_embed.grid_size, placed)
        tokens = torch.cat(prefix, dim=1) if prefix else table[:, :0]
        return (tokens + table[:, :placed] if placed else tokens), table[0, placed:]

    def _within_slots(self, patches: Patches, ids: Tensor) -> Tensor:
        """Give what is added to scores, [(B p), 1, t S + K, t S + K]: 0 within a time slot, -infinity elsewhere."""
        own = torch.arange(patches.grid.t, device=ids.device).repeat_interleave(self.network.num_prefix_tokens)
        slots = torch.cat([own.expand(len(ids), -1), ids // patches.grid.cells], dim=1)
        apart = slots[:, :, None] != slots[:, None, :]
        mask = torch.zeros(apart.shape, device=ids.device).masked_fill_(apart, float("-inf"))
        return repeat(mask, "b q k -> (b p) 1 q k", p=patches.taps)


class TimmMap(TimmEncoder):
    """Run a network whose map of a frame has a cell for each patch.

    Features of hidden patches are those of the mean colour, and nobody reads them. BatchNorm normalises by the batch
    in training, in the target encoder too, and its running statistics are no moving averages of weights: each encoder
    measures its own, the target encoder on whole frames, the context encoder on what is visible. Evaluation uses them
    (BYOL, MoCo alike).
    """

    def make_network(self, **options: Any) -> Any:
        options |= {"features_only": True, "out_indices": (self.shape.stage,), "in_chans": self.model.channels}
        network = timm.create_model(self.model.backbone, **options)
        for name in self.shape.unread:
            network.get_parameter(name).requires_grad_(False)
        return network

    def _run(self, patches: Patches, ids: Tensor | None, depths: Sequence[int]) -> list[Tensor]:
        shown = patches if ids is None else _emptied(patches, ids)
        features = _channels_first(self.network, self._recolour(unpatchify(shown, self.model.patch_px)))
        tokens = reduce(features, "(b t p) d h w -> b (t h w) d", "mean", t=patches.grid.t, p=patches.taps)
        return [tokens if ids is None else gather_tokens(tokens, ids) for _ in depths]


def _emptied(patches: Patches, ids: Tensor) -> Patches:
    """Set all patches but `ids` [B, K] to 0, the mean colour."""
    seen = gather_tokens(patches.pixels, ids)
    empty = seen.new_zeros(len(seen), patches.grid.num_tokens, seen.shape[-1])
    return replace(patches, pixels=empty.scatter(1, ids.unsqueeze(-1).expand_as(seen), seen))
