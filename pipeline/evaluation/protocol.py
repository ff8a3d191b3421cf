"""Measures an image against the clean one: PSNR and SSIM of which channels, of which part, rounded to 8 bits or not."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32

from dgunet.metrics import HIGHEST_PSNR, luma, psnr, quantise_8bit, ssim
from dgunet.tensors import to_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

LUMA_OF_BLACK, LUMA_OF_WHITE = 16 / 255, 235 / 255  # of MATLAB's Y; a gray image has the full range


class Quality(NamedTuple):
    """PSNR in dB (infinite for identical images) and SSIM of one image, or their means over several (finite)."""

    psnr: float
    ssim: float


@dataclass(frozen=True)
class Protocol:
    """How images are measured: the same for degraded, baseline and restored images.

    colour: `rgb` measures all channels together, `luma` the Y of MATLAB's `rgb2ycbcr`. Gray images are measured as
    they are, whichever it is.
    quantise: clip to [0, 1] and round to 8 bits first, as a file would. False where the noise is neither clipped nor
    rounded, as the field does it for Gaussian denoising.
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

    def measure(
        self, image: Float32[np.ndarray, "H W C"], clean: Float32[np.ndarray, "H W C"], *, was_gray: bool = False
    ) -> Quality:
        """Return PSNR and SSIM of `image`; `was_gray`: both images have the channel of a gray file three times."""
        measured, reference = self._view(image, was_gray), self._view(clean, was_gray)
        return Quality(
            float(psnr(measured, reference, crop=self.border)), float(ssim(measured, reference, crop=self.border))
        )

    def __str__(self) -> str:
        """Describe the protocol in a sentence."""
        channels = "the luma channel (Y of MATLAB's rgb2ycbcr)" if self.colour == "luma" else "all channels"
        rounding = "images clipped and rounded to 8 bits" if self.quantise else "restored images clipped, none rounded"
        part = "whole image" if self.crop is None else f"top left {self.crop[0]} × {self.crop[1]} pixels"
        within = f" without {self.border} pixels at each side" if self.border else ""
        ensemble = "; the restored image is the mean over flips and quarter turns" if self.self_ensemble else ""
        return f"PSNR and SSIM of {channels}; {rounding}; {part}{within}{ensemble}."

    def _view(self, image: Float32[np.ndarray, "H W C"], was_gray: bool) -> Tensor:
        if self.crop is not None:
            height, width = self.crop if image.shape[0] <= image.shape[1] else self.crop[::-1]
            image = image[:height, :width]
        tensor = to_tensor(image)
        tensor = quantise_8bit(tensor) if self.quantise else tensor
        if self.colour == "rgb" or tensor.shape[1] != 3:
            return tensor
        return (luma(tensor) - LUMA_OF_BLACK) / (LUMA_OF_WHITE - LUMA_OF_BLACK) if was_gray else luma(tensor)


def mean_quality(qualities: Iterable[Quality]) -> Quality:
    """Return the mean PSNR and the mean SSIM over images; an infinite PSNR counts as HIGHEST_PSNR."""
    many = list(qualities)
    return Quality(fmean(min(quality.psnr, HIGHEST_PSNR) for quality in many), fmean(quality.ssim for quality in many))


def gain(restored: Quality, degraded: Quality) -> float:
    """Return the difference of PSNR in dB; neither counts as more than HIGHEST_PSNR."""
    return min(restored.psnr, HIGHEST_PSNR) - min(degraded.psnr, HIGHEST_PSNR)
