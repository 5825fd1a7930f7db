"""States with rotations in them: difference, composition and inverse, as V-JEPA 2-AC has them (section 3.1).

A state is [..., S] numbers. `rotations` says at which dimension a rotation begins, and of which kind it is; all other
dimensions are plain numbers. The rotation of a difference is R_after R_before^T, in the frame of the base. Kinds:

euler: 3 angles in radians about the fixed axes x, y, z, in this order: R = Rz Ry Rx. quaternion: x, y, z, w.
rotation6d: the first two rows of the matrix (Zhou et al. 2019), which need not be orthonormal when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import normalize

from vjepa.data.tracks import ROTATION_SIZES

_Combine = Callable[[Tensor, Tensor], Tensor]


def difference(before: Tensor, after: Tensor, rotations: Mapping[int, str]) -> Tensor:
    """Give the delta [..., S] that leads from one state [..., S] to another: `composed(before, delta)` is `after`."""
    return _combined(before, after, rotations, lambda a, b: b - a, lambda a, b: b @ a.mT)


def composed(state: Tensor, delta: Tensor, rotations: Mapping[int, str]) -> Tensor:
    """Give the state [..., S] that a delta [..., S] leads to."""
    return _combined(state, delta, rotations, lambda a, b: a + b, lambda a, b: b @ a)


def inverse(delta: Tensor, rotations: Mapping[int, str]) -> Tensor:
    """Give the delta [..., S] that leads back."""
    return difference(delta, identity(delta.shape[-1], rotations, delta), rotations)


def identity(size: int, rotations: Mapping[int, str], like: Tensor) -> Tensor:
    """Give the delta [S] that changes nothing, of the type and on the device of `like`."""
    nothing = like.new_zeros(size)
    for place, kind in _parts(size, rotations):
        if kind:
            nothing[place] = from_matrix(torch.eye(3, dtype=like.dtype, device=like.device), kind)
    return nothing


def to_matrix(numbers: Tensor, kind: str) -> Tensor:
    """Turn the numbers of rotations [..., n] into matrices [..., 3, 3]."""
    return _TO_MATRIX[kind](numbers)


def from_matrix(matrix: Tensor, kind: str) -> Tensor:
    """Turn matrices [..., 3, 3] into the numbers of their rotations [..., n].

    Angles lie in (-pi, pi], the second in [-pi/2, pi/2], and the third is 0 where the second is at an end of that;
    quaternions have w >= 0.
    """
    return _FROM_MATRIX[kind](matrix)


def _combined(one: Tensor, other: Tensor, rotations: Mapping[int, str], plain: _Combine, turn: _Combine) -> Tensor:
    parts = [
        from_matrix(turn(to_matrix(one[..., place], kind), to_matrix(other[..., place], kind)), kind)
        if kind
        else plain(one[..., place], other[..., place])
        for place, kind in _parts(one.shape[-1], rotations)
    ]
    return torch.cat(parts, dim=-1)


def _parts(size: int, rotations: Mapping[int, str]) -> Iterator[tuple[slice, str]]:
    """Yield the dimensions that belong together, in order, with their kind; "": plain."""
    place = 0
    while place < size:
        kind = rotations.get(place, "")
        end = place + ROTATION_SIZES[kind] if kind else min([first for first in rotations if first > place] + [size])
        yield slice(place, end), kind
        place = end


def _euler_to_matrix(angles: Tensor) -> Tensor:
    """Give Rz Ry Rx of angles about x, y, z: [..., 3] -> [..., 3, 3]."""
    (sx, sy, sz), (cx, cy, cz) = angles.sin().unbind(-1), angles.cos().unbind(-1)
    rows = [
        cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx,
        sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx,
        -sy, cy * sx, cy * cx,
    ]  # fmt: skip
    return rearrange(torch.stack(rows, dim=-1), "... (row column) -> ... row column", row=3)


def _euler_of(matrix: Tensor) -> Tensor:
    """Read the angles about x, y, z: [..., 3, 3] -> [..., 3]."""
    cosine = torch.hypot(matrix[..., 0, 0], matrix[..., 1, 0])
    y = torch.atan2(-matrix[..., 2, 0], cosine)
    x, z = torch.atan2(matrix[..., 2, 1], matrix[..., 2, 2]), torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0])
    # where the axes x and z lie in one line only their sum is told: the angle about z is 0 there
    locked = cosine < torch.finfo(matrix.dtype).eps ** 0.5
    x = torch.where(locked, torch.atan2(-matrix[..., 1, 2], matrix[..., 1, 1]), x)
    return torch.stack([x, y, torch.where(locked, 0.0, z)], dim=-1)


def _quaternion_to_matrix(quaternion: Tensor) -> Tensor:
    """Turn x, y, z, w of any length but 0 into a matrix: [..., 4] -> [..., 3, 3]."""
    x, y, z, w = normalize(quaternion, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return rearrange(torch.stack(rows, dim=-1), "... (row column) -> ... row column", row=3)


def _quaternion_of(matrix: Tensor) -> Tensor:
    """Read x, y, z, w, w >= 0: [..., 3, 3] -> [..., 4]. Of four equal answers the one that loses no digits is taken."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in matrix.unbind(-2))
    answers = torch.stack([
        torch.stack([1 + xx - yy - zz, xy + yx, xz + zx, zy - yz], dim=-1),
        torch.stack([xy + yx, 1 - xx + yy - zz, yz + zy, xz - zx], dim=-1),
        torch.stack([xz + zx, yz + zy, 1 - xx - yy + zz, yx - xy], dim=-1),
        torch.stack([zy - yz, xz - zx, yx - xy, 1 + xx + yy + zz], dim=-1),
    ], dim=-2)  # fmt: skip
    best = torch.diagonal(answers, dim1=-2, dim2=-1).argmax(-1)
    chosen = torch.take_along_dim(answers, best[..., None, None], dim=-2).squeeze(-2)
    return normalize(torch.where(chosen[..., 3:] < 0, -chosen, chosen), dim=-1)


def _rows_to_matrix(rows: Tensor) -> Tensor:
    """Make two rows orthonormal, and add the third: [..., 6] -> [..., 3, 3]."""
    first = normalize(rows[..., :3], dim=-1)
    second = rows[..., 3:]
    second = normalize(second - (first * second).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-2)


def _rows_of(matrix: Tensor) -> Tensor:
    """Take the first two rows: [..., 3, 3] -> [..., 6]."""
    return rearrange(matrix[..., :2, :], "... row column -> ... (row column)")


_TO_MATRIX: Final = {"euler": _euler_to_matrix, "quaternion": _quaternion_to_matrix, "rotation6d": _rows_to_matrix}
_FROM_MATRIX: Final = {"euler": _euler_of, "quaternion": _quaternion_of, "rotation6d": _rows_of}
