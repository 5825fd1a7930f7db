"""What every section of a config is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from vjepa.errors import UserError


class ConfigError(UserError):
    """Tell of a setting that cannot be used, in one line that names the key."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def check_ranges(section: Section, **most: float | None) -> None:
    """Raise ValueError unless every named field is a range 0 < low <= high, and high is at most the number given."""
    for key, limit in most.items():
        low, high = getattr(section, key)
        if not 0 < low <= high:
            raise ValueError(f"{key}: needs 0 < low <= high, got [{low:g}, {high:g}]")
        if limit is not None and high > limit:
            raise ValueError(f"{key}: a share is at most {limit:g}, got {high:g}")
