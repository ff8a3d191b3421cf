"""The section `synthesize` of params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from pipeline.config.params import Section
from pipeline.degradations.compose import Degradation


class Synthesize(Section):
    """How pairs are made from photographs; lengths in pixels.

    Tiles of the train split may overlap (`stride`); tiles of val and test, `held_out_tile_size` wide, overlap only if
    the image's side is not a multiple of it.

    online: shards hold only the clean tile, and the loader degrades it anew in each epoch (needed if the degradation
    must not be quantised, such as Gaussian noise). `copies` is then 1.
    real_pairs: the sources whose real pairs this task uses unchanged: those of kind `pairs` by their `clean`,
    those of kind `dataset` as "dataset:NAME" or "dataset:NAME/SPLIT". `degradation` is then `none`. Empty: all clean
    images, degraded by `degradation`.
    """

    degradation: Annotated[Degradation, Field(discriminator="kind")]
    real_pairs: list[str]
    channels: Literal[1, 3]
    tile_size: Annotated[int, Field(ge=16)]
    stride: PositiveInt
    held_out_tile_size: Annotated[int, Field(ge=16)]
    copies: PositiveInt
    online: bool
    tiles_per_shard: PositiveInt

    @model_validator(mode="after")
    def _real_pairs_are_taken_as_they_came(self) -> Synthesize:
        if self.real_pairs and (self.degradation.kind != "none" or self.copies != 1):
            raise ValueError("real_pairs are used unchanged: set degradation to {kind: none} and copies to 1")
        return self

    @model_validator(mode="after")
    def _copies_differ(self) -> Synthesize:
        if self.online and self.copies != 1:
            raise ValueError(
                f"copies must be 1 where online is true, not {self.copies}: the loader degrades anew each epoch, "
                "and shards would hold the same tile so many times"
            )
        return self
