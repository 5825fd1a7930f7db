"""The interface of every encoder, and the Vision Transformer over 3D patches.

Context encoder and target encoder are two of a kind. A grid is a `TokenGrid`: the time slots, rows and columns of the
tokens of a video, (t, h, w), in raster order; `encoder.grid(T, H, W)` gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional

from vjepa import config
from vjepa.models.layers import LayerNorm, Sets, gather_tokens, initialise, make_blocks, small_normal
from vjepa.models.positions import Rotation, SinCos, rotation
from vjepa.records import TokenGrid

# of normalised pixels, where a grey level is .017: a clip that is all but frozen does not become noise
LEAST_CHANGE: Final = 5e-3


@dataclass(frozen=True)
class Patches:
    """Hold a video cut into the pieces that tokens are made of.

    One cutting serves every encoder and mask of a step. pixels: [B, N, C * taps * p * p], in raster order. taps: frames
    of a piece, 1 for a single frame that is not repeated.
    """

    pixels: Tensor
    grid: TokenGrid
    taps: int


def changes(video: Tensor) -> Tensor:
    """Subtract each frame of [B, 3, T, H, W] from the next, and divide by the root mean square over its clip.

    The last frame becomes 0. What stands still, and the contrast of a clip, leave no trace. A token sees of what
    follows it in time no more than that one frame. In fp32.
    """
    differences = video.float().diff(dim=2)
    size = differences.square().mean(dim=(1, 2, 3, 4), keepdim=True).sqrt().clamp(min=LEAST_CHANGE)
    return functional.pad(differences / size, (0, 0, 0, 0, 0, 1)).to(video.dtype)


def patchify(video: Tensor, model: config.Model) -> Patches:
    """Cut b c (t p) (h p1) (w p2) -> b (t h w) (c p p1 p2): the video or, with `input: changes`, its `changes`.

    What does not fill a patch at the far end is left out. Raises ConfigError for a video smaller than a patch, and for
    the changes of a single frame.
    """
    grid = model.grid(*video.shape[2:])
    taps = model.tubelet_frames
    if model.input == "changes":
        video = changes(video)
    if video.shape[2] == 1 and model.image_mode == "repeat":
        video = repeat(video, "b c 1 h w -> b c t h w", t=model.image_repeats)
    elif video.shape[2] == 1:
        taps = 1
    p = model.patch_px
    video = video[:, :, : grid.t * taps, : grid.h * p, : grid.w * p]
    return Patches(rearrange(video, "b c (t p) (h p1) (w p2) -> b (t h w) (c p p1 p2)", p=taps, p1=p, p2=p), grid, taps)


def unpatchify(patches: Patches, patch_px: int) -> Tensor:
    """Join b (t h w) (c p p1 p2) -> (b t p) c (h p1) (w p2): the frames of all clips, one after the other."""
    sizes = {"h": patches.grid.h, "w": patches.grid.w, "p": patches.taps, "p1": patch_px, "p2": patch_px}
    return rearrange(patches.pixels, "b (t h w) (c p p1 p2) -> (b t p) c (h p1) (w p2)", **sizes)


class PatchEmbed(nn.Module):
    """Embed each patch by one linear map (the kernel of a strided 3D convolution)."""

    def __init__(self, channels: int, patch_px: int, tubelet_frames: int, width: int) -> None:
        super().__init__()
        kernel = (tubelet_frames, patch_px, patch_px)
        self.proj = nn.Conv3d(channels, width, kernel, stride=kernel)
        small_normal(self.proj.weight)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, pixels: Tensor, taps: int) -> Tensor:
        """Embed [B, K, C * taps * p * p] -> [B, K, D].

        For one tap the kernel is summed over time, which equals repeating the frame.
        """
        kernel = self.proj.weight if taps == self.proj.weight.shape[2] else self.proj.weight.sum(2, keepdim=True)
        return functional.linear(pixels, kernel.flatten(1), self.proj.bias)


class Encoder(nn.Module):
    """Encode videos as features, of all tokens or of the visible ones only.

    A token that is not asked for has no influence on the others. model: its settings. width: features per token, D.
    depth: places after which features can be read, such as blocks. positions: those that are added to tokens, where
    there are any.
    """

    model: config.Model
    width: int
    depth: int
    positions: SinCos

    def grid(self, num_frames: int, height: int, width: int) -> TokenGrid:
        """Give the token grid (t, h, w) of a video of so many frames, and of this height and width in pixels."""
        return self.model.grid(num_frames, height, width)

    def forward(self, video: Tensor, context_ids: Tensor | None = None) -> Tensor:
        """Encode [B, 3, T, H, W], normalised -> features [B, N, D] in raster order.

        Of `context_ids` [B, K] alone: [B, K, D].
        """
        return self.encode(patchify(video, self.model), context_ids)[..., -self.width :]

    def encode(self, patches: Patches, ids: Tensor | None = None) -> Tensor:
        """Give the features that prediction uses, of all tokens or of `ids` [B, K]: [B, K, levels * D].

        The last level stands last.
        """
        return torch.cat(self._run(patches, ids, self._prediction_depths), dim=-1)

    def encode_sets(self, patches: Patches, sets: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run `encode` on each of several sets of ids, [B, K_i] -> [B, K_i, levels * D], none of which sees another."""
        return [self.encode(patches, ids) for ids in sets]

    def intermediate(self, video: Tensor, depths: Sequence[int], context_ids: Tensor | None = None) -> list[Tensor]:
        """Encode [B, 3, T, H, W] -> features [B, N, D] after each of the blocks `depths`, normed as at the end.

        Of `context_ids` [B, K] alone: [B, K, D]. 0 is the first block, -1 the last. Raises ValueError for a block that
        does not exist.
        """
        if any(not -self.depth <= depth < self.depth for depth in depths):
            raise ValueError(f"blocks {list(depths)}: this encoder has blocks 0 to {self.depth - 1}")
        return self._run(patchify(video, self.model), context_ids, [depth % self.depth for depth in depths])

    @property
    def level_depths(self) -> list[int]:
        """List the blocks after which a level is read: the last alone."""
        return [self.depth - 1]

    @property
    def _prediction_depths(self) -> list[int]:
        return self.level_depths if self.model.levels > 1 else self.level_depths[-1:]

    def _run(self, patches: Patches, ids: Tensor | None, depths: Sequence[int]) -> list[Tensor]:
        """Give the features of tokens `ids` [B, K], or of all, after each of the blocks `depths`: [B, K, D] each."""
        raise NotImplementedError


class PatchEncoder(Encoder):
    """Embed patches one by one. Parameter names are those of the published files."""

    def __init__(self, model: config.Model) -> None:
        super().__init__()
        self.model, self.width, self.depth = model, model.encoder.width, model.encoder.depth
        self.patch_embed = PatchEmbed(model.channels, model.patch_px, model.tubelet_frames, self.width)
        if model.image_mode == "own":
            self.patch_embed_img = PatchEmbed(model.channels, model.patch_px, 1, self.width)
        if model.modality_embedding:
            self.img_mod_embed, self.video_mod_embed = (nn.Parameter(torch.zeros(1, 1, self.width)) for _ in range(2))
        if model.positions != "rope":
            self.positions = SinCos(model.positions, self.width, model.sincos_grid)

    def _embed(self, patches: Patches, ids: Tensor | None) -> Tensor:
        """Embed tokens with their additive positions [B, K, D]; a token that is not asked for is never embedded."""
        pixels = patches.pixels if ids is None else gather_tokens(patches.pixels, ids)
        is_image = patches.taps == 1
        embed = self.patch_embed_img if is_image and self.model.image_mode == "own" else self.patch_embed
        tokens: Tensor = embed(pixels, patches.taps)
        if self.model.modality_embedding:
            tokens = tokens + (self.img_mod_embed if is_image else self.video_mod_embed)
        if self.model.positions != "rope":
            positions = self.positions(patches.grid, tokens.device)
            tokens = tokens + (positions if ids is None else positions[ids])
        return tokens


class VisionTransformer(PatchEncoder):
    """Encode by the ViT of V-JEPA (sections 3.1, 3.3), V-JEPA 2 and 2.1."""

    def __init__(self, model: config.Model) -> None:
        super().__init__(model)
        self.blocks = make_blocks(model.encoder)
        if model.level_norms:
            self.norms_block = nn.ModuleList(LayerNorm(self.width) for _ in range(4))
        else:
            self.norm = LayerNorm(self.width)
        initialise(self)

    @property
    def level_depths(self) -> list[int]:
        """List the blocks after which a level is read: quarters of the depth, or the last alone.

        V-JEPA 2.1 reads block 37 of 48, not 35.
        """
        if not self.model.level_norms:
            return super().level_depths
        return [11, 23, 37, 47] if self.depth == 48 else [(quarter * self.depth) // 4 - 1 for quarter in (1, 2, 3, 4)]

    def encode_sets(self, patches: Patches, sets: Sequence[Tensor]) -> Sequence[Tensor]:
        """Encode all sets in one pass.

        All but attention treats each token by itself, and larger products run nearer to the peak (RESULTS.md).
        """
        sizes = tuple(ids.shape[1] for ids in sets)
        features = self._run(patches, torch.cat(list(sets), dim=1), self._prediction_depths, sizes)
        return torch.split_with_sizes(torch.cat(features, dim=-1), sizes, dim=1)

    def _run(self, patches: Patches, ids: Tensor | None, depths: Sequence[int], sizes: Sets = None) -> list[Tensor]:
        tokens, rotate = self._embed(patches, ids), self._rotation(patches, ids)
        features = {}
        for depth, block in enumerate(self.blocks):
            tokens = block(tokens, rotate, sizes)
            if depth in depths:
                features[depth] = self._norm(depth)(tokens)
        return [features[depth] for depth in depths]

    def _norm(self, depth: int) -> nn.Module:
        if not self.model.level_norms:
            return self.norm
        places = self.level_depths
        return self.norms_block[places.index(depth) if depth in places else -1]

    def _rotation(self, patches: Patches, ids: Tensor | None) -> Rotation | None:
        if self.model.positions != "rope":
            return None
        head_width = self.width // self.model.encoder.heads
        return rotation(self.model.rope, patches.grid, head_width, self.model.rope_grid, ids, patches.pixels.device)
