"""The 3D-patch Vision Transformer that is both context encoder and target encoder."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from vjepa import config
from vjepa.models.layers import Block, gather_tokens, initialise
from vjepa.models.positions import sincos_3d
from vjepa.records import TokenGrid


class PatchEmbed(nn.Module):
    """Cuts a video into space-time patches and embeds each by one linear map (the kernel of a strided 3D convolution)."""

    def __init__(self, patch_px: int, tubelet_frames: int, width: int) -> None:
        super().__init__()
        self.patch_px = patch_px
        self.tubelet_frames = tubelet_frames
        self.proj = nn.Conv3d(3, width, (tubelet_frames, patch_px, patch_px), stride=(tubelet_frames, patch_px, patch_px))
        nn.init.trunc_normal_(self.proj.weight, std=0.02, a=-0.04, b=0.04)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def grid(self, num_frames: int, height: int, width: int) -> TokenGrid:
        """The token grid of a video; a single frame is one time slot."""
        return TokenGrid(max(1, num_frames // self.tubelet_frames), height // self.patch_px, width // self.patch_px)

    def forward(self, video: Tensor, ids: Tensor | None) -> Tensor:
        """b c (t p) (h p1) (w p2) -> b (t h w) d, only the tokens `ids` [B, K] where given.

        For one frame the kernel is summed over its temporal taps, which equals repeating the frame. Tokens that are
        not asked for are never embedded.
        """
        taps = min(self.tubelet_frames, video.shape[2])
        kernel = self.proj.weight if taps == self.tubelet_frames else self.proj.weight.sum(2, keepdim=True)
        patches = rearrange(video, "b c (t p) (h p1) (w p2) -> b (t h w) (c p p1 p2)", p=kernel.shape[2], p1=self.patch_px, p2=self.patch_px)
        if ids is not None:
            patches = gather_tokens(patches, ids)
        return functional.linear(patches, kernel.flatten(1), self.proj.bias)


class VisionTransformer(nn.Module):
    """Video to features, of all tokens or of the visible ones only."""

    def __init__(self, model: config.Model) -> None:
        super().__init__()
        shape = model.encoder
        self.width = shape.width
        self.patch_embed = PatchEmbed(model.patch_px, model.tubelet_frames, shape.width)
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads, shape.mlp_ratio) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        initialise(self)

    def grid(self, num_frames: int, height: int, width: int) -> TokenGrid:
        """The token grid of a video of this size."""
        return self.patch_embed.grid(num_frames, height, width)

    def forward(self, video: Tensor, context_ids: Tensor | None = None) -> Tensor:
        """[B, 3, T, H, W], normalised -> features [B, N, D] in raster order, or of `context_ids` [B, K] alone: [B, K, D]."""
        positions = sincos_3d(self.grid(*video.shape[2:]), self.width).to(video.device)
        tokens = self.patch_embed(video, context_ids)
        tokens = tokens + (positions if context_ids is None else positions[context_ids])
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)  # type: ignore[no-any-return]
