"""The section `prepare` of params.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from dgunet.images.photo import MAX_PIXELS
from pipeline.config.params import Fraction, Section
from pipeline.sources.listing import Source


class Split(Section):
    """Shares of the scenes that are held out for model selection (val) and for evaluation (test)."""

    val: Fraction
    test: Fraction

    @model_validator(mode="after")
    def _something_is_left(self) -> Split:
        if self.val + self.test >= 1:
            raise ValueError(f"val ({self.val}) and test ({self.test}) leave nothing for train")
        return self


class Prepare(Section):
    """The section `prepare` of params.yaml: the sources of clean photographs, and limits on their size.

    Attributes:
        sources: where the photographs are.
        min_side: smallest height and width, in pixels.
        max_megapixels: images with more pixels are not decoded.
        split: shares of the val and test splits.
    """

    sources: Annotated[list[Annotated[Source, Field(discriminator="kind")]], Field(min_length=1)]
    min_side: PositiveInt
    max_megapixels: PositiveFloat
    split: Split

    @field_validator("max_megapixels")
    @classmethod
    def _pillow_reads_them(cls, megapixels: float) -> float:
        if megapixels * 1e6 > MAX_PIXELS:
            raise ValueError(f"must be at most {MAX_PIXELS // 10**6}, the largest that Pillow reads, not {megapixels}")
        return megapixels
