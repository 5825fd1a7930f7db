"""The kinds of features that a probe compares: those of the trained encoder, with and without a roll-out, and of its
baselines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal

from vjepa.data.time_order import Time
from vjepa.errors import UserError
from vjepa.models.encoder import Encoder
from vjepa.probing import recipes
from vjepa.probing.anticipation import RollOut
from vjepa.probing.comparison import ROLLOUT, TRAINED
from vjepa.probing.recipes import Reading
from vjepa.probing.settings import BASELINES
from vjepa.probing.store import Recipe

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


def feature_recipes(
    encoder: Encoder,
    sha256: str,
    reading: Reading,
    baselines: Sequence[str],
    roll_out: RollOut | None,
    rollout: Literal["none", "predictor", "both"],
) -> dict[str, Recipe]:
    """Map each kind of features to how clips become them; `trained` comes first.

    sha256: `recipes.weights_hash(encoder)`. rollout: with `predictor` whatever uses the encoder has the roll-out too;
    with `both` one kind of its own has it. Without a roll-out there is no `untrained_predictor`.
    """
    everywhere = roll_out if rollout == "predictor" else None

    def trained(time: Time = "forward") -> Recipe:
        if everywhere:
            return everywhere.recipe(reading, time)
        return recipes.encoder_recipe(encoder, sha256, reading, time)

    def baseline(name: str) -> Recipe:
        if name in recipes.PLAIN:
            return recipes.plain_recipe(name)
        if name in _ORDERS:
            return trained(_ORDERS[name])
        if name == "untrained_predictor" and roll_out:
            return roll_out.with_untrained_predictor().recipe(reading)
        if everywhere:
            fresh = recipes.untrained(encoder).to(reading.device)
            return replace(everywhere.with_untrained_predictor(), encoder=fresh).recipe(reading)
        return recipes.untrained_recipe(encoder, reading)

    found = {TRAINED: trained()}
    if rollout == "both" and roll_out:
        found[ROLLOUT] = roll_out.recipe(reading)
    names = (name for name in baselines if roll_out or name != "untrained_predictor")
    return found | {name: baseline(name) for name in names}
