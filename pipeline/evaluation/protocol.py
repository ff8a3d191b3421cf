"""How images are measured: PSNR and SSIM of which channels, of which part, rounded to 8 bits or not.

It imports no torch, so that params.yaml is checked quickly; `pipeline.evaluation.quality` measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True)
class Protocol:
    """How images are measured: the same for degraded, baseline and restored images.

    colour: `rgb` measures all channels together, `luma` the Y of MATLAB's `rgb2ycbcr`. It does not matter for gray
    images.
    quantise: clip to [0, 1] and round to 8 bits first, as in a file. False if the noise is neither clipped nor rounded,
    as in published results of Gaussian denoising.
    crop: (height, width) in pixels of the top left part that is measured, for landscape images; a portrait image is
    cropped to (width, height). null: the whole image.
    border: pixels that are left out at each side. Super-resolution leaves out as many as its scale.
    self_ensemble: the mean over the 8 flips and quarter turns of an image is measured, as published for SIDD and DND.
    It takes eight times as long, and only the last estimate is known.
    """

    colour: Literal["rgb", "luma"]
    quantise: bool
    crop: tuple[int, int] | None
    border: int
    self_ensemble: bool

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.crop is not None and min(self.crop) < 1:
            raise ValueError(f"crop must be [height, width], both at least 1, not {list(self.crop)}")
        if self.border < 0:
            raise ValueError(f"border must be at least 0, not {self.border}")

    def __str__(self) -> str:
        """Describe the protocol in a sentence."""
        channels = "the luma channel (Y of MATLAB's rgb2ycbcr)" if self.colour == "luma" else "all channels"
        rounding = "images clipped and rounded to 8 bits" if self.quantise else "restored images clipped, none rounded"
        part = "whole image" if self.crop is None else f"top left {self.crop[0]} × {self.crop[1]} pixels"
        within = f" without {self.border} pixels at each side" if self.border else ""
        ensemble = "; the restored image is the mean over flips and quarter turns" if self.self_ensemble else ""
        return f"PSNR and SSIM of {channels}; {rounding}; {part}{within}{ensemble}."
