"""Settings of the channels of a clip: colours, bands, depth, stains."""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import Field, model_validator

from vjepa.config.section import Section

MOST_CHANNELS: Final = 64
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
_MEASURE: Final = "python -m data_prep.describe x.parquet --channels measures them"


class Channels(Section):
    """Name the channels of a clip, and what is subtracted and divided by before networks see them."""

    names: tuple[str, ...] = Field(
        ("red", "green", "blue"), description="one for each channel of a clip, 1 to 64, in the order of the files"
    )
    mean: tuple[float, ...] = Field(
        IMAGENET_MEAN, description=f"of each channel, as a share of full scale (255 or 65535); {_MEASURE}"
    )
    std: tuple[float, ...] = Field(IMAGENET_STD, description="standard deviation of each channel, in the same unit")
    bits: Literal[8, 16] = Field(
        8, description="of a value in a batch; 16: uint16, in which 8-bit files are scaled to full scale"
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if not 1 <= len(self.names) <= MOST_CHANNELS or len(set(self.names)) < len(self.names):
            raise ValueError(f"names: 1 to {MOST_CHANNELS} different names, got {len(self.names)}: {list(self.names)}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.num:
                raise ValueError(f"{name}: {len(values)} numbers for {self.num} channels; {_MEASURE}")
        if not (all(0 <= mean <= 1 for mean in self.mean) and all(0 < std <= 1 for std in self.std)):
            raise ValueError(f"mean: means from 0 to 1 and deviations above 0 are shares of full scale; {_MEASURE}")
        return self

    @property
    def num(self) -> int:
        return len(self.names)

    @property
    def full_scale(self) -> int:
        """Give the largest value: 255 or 65535."""
        return (1 << self.bits) - 1

    @property
    def num_bytes(self) -> int:
        """Give the bytes of a value."""
        return self.bits // 8
