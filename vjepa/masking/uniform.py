"""Random masks: tokens anywhere in space and time, drawn one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vjepa import config
from vjepa.errors import UserError
from vjepa.masking.exact import counts, cut, uniforms
from vjepa.records import TokenGrid, TokenMask


def draw(mask: config.RandomMask, grid: TokenGrid, rngs: Sequence[np.random.Generator]) -> TokenMask:
    """Draw one mask per generator: context_ids and target_ids, neither of them empty.

    Of N tokens ratio * N (rounded) are hidden. The rest is context, and `predicted_ratio` of them are targets.

    Raises UserError for a grid of a single token.
    """
    if grid.num_tokens < 2:
        raise UserError(
            "kind: a grid of one token has nothing to hide; use a larger data.crop_px or a smaller model.patch_px"
        )
    (key,) = uniforms(rngs, grid.num_tokens)
    context, target = cut(key, *counts(mask, grid.num_tokens))
    return TokenMask(torch.from_numpy(context), torch.from_numpy(target))
