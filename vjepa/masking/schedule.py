"""Mask ratios that change over training, in stages, so that shapes are static within each."""

from __future__ import annotations

from vjepa import config


def at_step(mask: config.Mask, step: int, total_steps: int) -> config.Mask:
    """Give `mask` the ratio that holds at `step`: linear from `ratio` in the first stage to `final_ratio` in the last.

    Other kinds, and sets without a `final_ratio`, stay as they are.
    """
    if not isinstance(mask, config.RatioMask) or mask.final_ratio is None:
        return mask
    stage = min(step * mask.ratio_stages // total_steps, mask.ratio_stages - 1)
    ratio = mask.ratio + (mask.final_ratio - mask.ratio) * stage / (mask.ratio_stages - 1)
    return mask.model_copy(update={"ratio": ratio, "final_ratio": None})
