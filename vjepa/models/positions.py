"""Where a token is: fixed sin-cos embeddings that are added, or rotations of queries and keys (RoPE)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from vjepa.records import TokenGrid

_WITHOUT_COMPLEX: Final = frozenset({"mps"})  # types of devices that do not know all of complex numbers


class SinCos(nn.Module):
    """Give fixed sin-cos positions of `kind` sincos, sincos_uniform or sincos_2d: TokenGrid -> fp32 [N, width].

    With `base`, every grid is interpolated from the table of that one: what a network that was trained on it expects of
    another size of video (V-JEPA's and I-JEPA's code). A published file may bring its own `table`.
    """

    table: Tensor

    def __init__(self, kind: str, width: int, base: tuple[int, int, int] | None) -> None:
        super().__init__()
        self.kind, self.width, self.base = kind, width, None if base is None else TokenGrid(*base)
        table = None if self.base is None else _sincos(kind, self.base, width, torch.device("cpu"))
        self.register_buffer("table", table, persistent=False)

    def forward(self, grid: TokenGrid, device: torch.device) -> Tensor:
        if self.base is None:
            return _sincos(self.kind, grid, self.width, device)
        return resize_table(self.table, self.base, grid).to(device)


def resize_table(table: Tensor, base: TokenGrid, grid: TokenGrid) -> Tensor:
    """Interpolate [N0, D] over `base` -> [N, D] over `grid`, trilinear; unchanged where the grids are equal.

    A single slot takes the first.
    """
    if grid == base:
        return table
    volume = rearrange(table, "(t h w) d -> 1 d t h w", t=base.t, h=base.h)
    if grid.t == 1:
        volume = volume[:, :, :1]
    volume = functional.interpolate(volume, size=(grid.t, grid.h, grid.w), mode="trilinear")
    return rearrange(volume, "1 d t h w -> (t h w) d")


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # the table is kept, and training may want what an evaluation has made
def _sincos(kind: str, grid: TokenGrid, width: int, device: torch.device) -> Tensor:
    """Compute the table of (t h w) tokens, fp32 [N, width].

    It is computed in fp64 on the CPU, once, and kept on `device`: a copy in every step would make the host wait for the
    GPU.
    sincos: half of the features for the time slot, a quarter each for row and column. sincos_uniform: a third each,
    rounded up to a whole sine-cosine pair, cut to the width (both V-JEPA section 3.3). sincos_2d: half each for column
    and row (MAE, He et al. 2021, A.1).
    """
    time, row, column = _places(grid).T
    third, quarter = 2 * -(-width // 6), 2 * -(-width // 8)
    axes = {
        "sincos": ((time, 2 * quarter), (row, quarter), (column, quarter)),
        "sincos_uniform": ((time, third), (row, third), (column, third)),
        "sincos_2d": ((column, 2 * quarter), (row, 2 * quarter)),
    }
    table = torch.cat([_waves(places, share) for places, share in axes[kind]], dim=1)
    return table[:, :width].float().to(device)


def _places(grid: TokenGrid, scales: Sequence[float] = (1.0, 1.0, 1.0)) -> Tensor:
    """List time slot, row and column of all tokens, times `scales`: fp64 [N, 3], on the CPU (see `_frequencies`)."""
    sizes = zip((grid.t, grid.h, grid.w), scales, strict=True)
    axes = [torch.arange(size, dtype=torch.float64, device="cpu") * scale for size, scale in sizes]
    return torch.cartesian_prod(*axes).reshape(-1, 3)


def _waves(places: Tensor, width: int) -> Tensor:
    """Embed places [N] -> [N, width]: frequencies fall from 1 to 1/10000 (Vaswani et al. 2017, section 3.5)."""
    angles = places[:, None] * _frequencies(width // 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _frequencies(num: int) -> Tensor:
    """List `num` frequencies, on the CPU even where networks are built on the meta device, for the tables are kept."""
    return 10000.0 ** -(torch.arange(num, dtype=torch.float64, device="cpu") / num)


@dataclass(frozen=True)
class Rotation:
    """Turn each pair of features of each token; made once per forward pass, for all blocks.

    turn: fp32 [1 or B, K, 1, head_width / 2, 2], complex numbers as (real, imaginary): a pair (a, b), read as a + bi,
    is multiplied by them. Features beyond the three axes' share have turn 1, so they stay as they are.
    mirror: the same shape, what the conjugate is multiplied by and added; None for a true rotation.
    """

    turn: Tensor
    mirror: Tensor | None

    def __call__(self, heads: Tensor) -> Tensor:
        """Turn [B, K, h, head_width], in fp32 -> the same shape and dtype.

        Complex products are ten times faster than real ones over shuffled pairs on a CPU (RESULTS.md); compilers
        and exporters, which do not know complex numbers, and devices that do not, get the real ones.
        """
        pairs = rearrange(heads.float(), "b k h (d two) -> b k h d two", two=2)
        if torch.compiler.is_compiling() or heads.device.type in _WITHOUT_COMPLEX:
            turned = self._real(*pairs.unbind(-1))
        else:
            numbers = torch.view_as_complex(pairs)
            product = numbers * torch.view_as_complex(self.turn)
            if self.mirror is not None:
                product = product + numbers.conj() * torch.view_as_complex(self.mirror)
            turned = torch.view_as_real(product)
        return rearrange(turned, "b k h d two -> b k h (d two)").to(heads.dtype)

    def _real(self, a: Tensor, b: Tensor) -> Tensor:
        cos, sin = self.turn.unbind(-1)
        first, second = a * cos - b * sin, b * cos + a * sin
        if self.mirror is not None:
            cos, sin = self.mirror.unbind(-1)
            first, second = first + a * cos + b * sin, second - b * cos + a * sin
        return torch.stack([first, second], dim=-1)


def rotation(
    kind: str, grid: TokenGrid, head_width: int, square: int | None, ids: Tensor | None, device: torch.device
) -> Rotation:
    """Make the Rotation of tokens `ids` [B, K], or of all, in heads of `head_width` features.

    It is that of RoFormer (Su et al. 2021, section 3.2.2), along 3 axes.
    kind: "rotation", or "vjepa2" for the published V-JEPA 2 weights, whose sine and cosine of a pair belong to two
    frequencies.
    square: rows and columns are scaled to the range of a square of so many cells (V-JEPA 2.1), so that other sizes look
    alike.
    """
    turn, mirror = _rotation_tables(kind, grid, head_width, square, device)

    def of_tokens(table: Tensor) -> Tensor:
        return rearrange(table[None] if ids is None else table[ids], "b k d two -> b k 1 d two")

    return Rotation(of_tokens(turn), None if kind == "rotation" else of_tokens(mirror))


def step_rotation(
    kind: str, first: int, grid: TokenGrid, num_conditions: int, head_width: int, square: int | None, dev: torch.device
) -> Rotation:
    """Make the Rotation of the tokens of `grid.t` steps, from number `first` on, each with condition tokens before it.

    A condition token turns by its step alone (V-JEPA 2-AC, section 3.1). square: rows and columns are scaled by it over
    their number, as published.
    """
    turn, mirror = _step_tables(kind, first, grid, num_conditions, head_width, square, dev)
    return Rotation(turn, None if kind == "rotation" else mirror)


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # the table is kept, and training may want what an evaluation has made
def _rotation_tables(
    kind: str, grid: TokenGrid, head_width: int, square: int | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Compute `turn` and `mirror` of all tokens, fp32 [N, head_width / 2, 2] each.

    They are kept on `device`, as `_sincos` is.
    """
    scales = [1.0, *(1.0 if square is None or size == 1 else (square - 1) / (size - 1) for size in (grid.h, grid.w))]
    return _turned(kind, _places(grid, scales), head_width, device)


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _step_tables(
    kind: str, first: int, grid: TokenGrid, num_conditions: int, head_width: int, square: int | None, dev: torch.device
) -> tuple[Tensor, Tensor]:
    """Compute what `step_rotation` says: fp32 [1, t (C + h w), 1, head_width / 2, 2] each; they are kept."""
    scales = [1.0, *(1.0 if square is None else square / size for size in (grid.h, grid.w))]
    patches = rearrange(_places(grid, scales), "(t n) three -> t n three", t=grid.t)
    steps = torch.arange(first, first + grid.t, dtype=torch.float64, device="cpu")
    patches[..., 0] = steps[:, None]
    conditions = functional.pad(steps[:, None, None].expand(-1, num_conditions, 1), (0, 2))
    places = rearrange(torch.cat([conditions, patches], dim=1), "t n three -> (t n) three")
    turn, mirror = _turned(kind, places, head_width, dev)
    return turn[None, :, None], mirror[None, :, None]


def _turned(kind: str, places: Tensor, head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Compute `turn` and `mirror` at places [N, 3], fp32 [N, head_width / 2, 2] each, from angles in fp64.

    A pair whose first feature is turned by the angle u and the second by v has turn (e^iu + e^iv) / 2 and mirror
    (e^-iu - e^-iv) / 2.
    """
    pairs = head_width // 3 // 2  # of each axis
    angles = places[:, :, None] * _frequencies(pairs)  # [N, 3, pairs]
    spread = angles.repeat_interleave(2, dim=-1) if kind == "rotation" else angles.repeat(1, 1, 2)
    spread = functional.pad(rearrange(spread, "n three d -> n (three d)"), (0, head_width - 6 * pairs))
    first, second = rearrange(torch.polar(torch.ones_like(spread), spread), "n (d two) -> two n d", two=2)
    turn, mirror = (first + second) / 2, (first.conj() - second.conj()).resolve_conj() / 2
    return torch.view_as_real(turn).float().to(device), torch.view_as_real(mirror).float().to(device)


def forget_tables() -> None:
    """Drop the tables that are kept: after a pass on tensors without values they have none either."""
    _sincos.cache_clear()
    _rotation_tables.cache_clear()
    _step_tables.cache_clear()
