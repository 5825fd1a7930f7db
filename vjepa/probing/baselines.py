"""The kinds of features that a probe compares: of the encoder, with and without a roll-out, and of its baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal

from vjepa.data.time_order import Time
from vjepa.errors import UserError
from vjepa.models.encoder import Encoder
from vjepa.probing import extractors
from vjepa.probing.anticipation import RollOut
from vjepa.probing.banks import Extractor
from vjepa.probing.comparison import ROLLOUT, TRAINED
from vjepa.probing.extractors import Readout
from vjepa.probing.settings import BASELINES

_OF_IMAGES: Final = ("random_init", "pixels")  # single images have no order of time, and no motion
# of the baselines that show clips to the trained encoder in another order
_ORDERS: Final[dict[str, Time]] = {"shuffled_frames": "shuffled", "reversed_frames": "reversed"}


def choose(wish: str, *, of_images: bool) -> tuple[str, ...]:
    """List the baselines that `all`, `none` or names of --baselines ask for. Raises UserError for other names."""
    names = {"all": BASELINES, "none": ()}.get(wish, tuple(wish.split(",")))
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        known = ",".join(BASELINES)
        raise UserError(f"--baselines {wish}: no baseline {unknown[0]!r}; give all, none, or some of {known}")
    return tuple(name for name in names if not of_images or name in _OF_IMAGES)


def kinds_of_features(
    encoder: Encoder,
    weights: str,
    readout: Readout,
    baselines: Sequence[str],
    seed: int,
    roll_out: RollOut | None = None,
    rollout: Literal["none", "predictor", "both"] = "none",
) -> dict[str, Extractor]:
    """Map each kind of features to its extractor; `trained` comes first.

    weights: `extractors.weights_hash(encoder)`; empty where nothing is stored. seed: of the untrained encoder, that of
    its run. rollout: with `predictor` whatever uses the encoder has the roll-out too; with `both` one kind of its own
    has it. Without a roll-out there is no `untrained_predictor`.
    """
    everywhere = roll_out if rollout == "predictor" else None

    def trained(time: Time = "forward") -> Extractor:
        if everywhere:
            return everywhere.extractor(readout, time)
        return extractors.encoder_extractor(encoder, weights, readout, time)

    def baseline(name: str) -> Extractor:
        if name in extractors.PLAIN:
            return extractors.plain_extractor(name)
        if name in _ORDERS:
            return trained(_ORDERS[name])
        if name == "untrained_predictor" and roll_out:
            return roll_out.with_untrained_predictor().extractor(readout)
        if everywhere:
            fresh = extractors.untrained(encoder, seed).to(readout.device)
            return replace(everywhere.with_untrained_predictor(), encoder=fresh).extractor(readout)
        return extractors.untrained_extractor(encoder, readout, seed)

    found = {TRAINED: trained()}
    if rollout == "both" and roll_out:
        found[ROLLOUT] = roll_out.extractor(readout)
    names = (name for name in baselines if roll_out or name != "untrained_predictor")
    return found | {name: baseline(name) for name in names}
