"""How a restored image is measured: which channels, which part, rounded to 8 bits or not."""

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

LUMA_OF_BLACK, LUMA_OF_WHITE = 16 / 255, 235 / 255  # a gray image's own range is that of its pixels


class Quality(NamedTuple):
    """PSNR in dB (infinite for identical images) and SSIM of one image, or their means over several (finite)."""

    psnr: float
    ssim: float


@dataclass(frozen=True)
class Protocol:
    """One convention of measuring, the same for the degraded, the baseline and the restored image.

    colour: `rgb` measures all channels together, `luma` the Y of MATLAB's `rgb2ycbcr`; gray images are measured as
    they are under either.
    quantise: clip to [0, 1] and round to 8 bits first, as results saved to files are. Where noise is neither clipped
    nor quantised (Gaussian denoising, as the field does it), so must the degraded image not be.
    crop: (height, width) in pixels of the top left part that is measured, given for landscape images: a portrait one
    is cropped to (width, height). null measures all of it.
    border: pixels at every side that are left out, as super-resolution leaves out as many as its scale.
    self_ensemble: the network restores the 8 flips and quarter turns of an image, and their mean is measured, as is
    published for SIDD and DND; eight times the work, and only the last estimate is known.
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
        """Return the quality of `image` against `clean`; with `was_gray`, clean is a gray file's, three times."""
        ours, theirs = self._view(image, was_gray), self._view(clean, was_gray)
        return Quality(float(psnr(ours, theirs, crop=self.border)), float(ssim(ours, theirs, crop=self.border)))

    def __str__(self) -> str:
        """Say it in a sentence."""
        channels = "the luma (Y of MATLAB's rgb2ycbcr)" if self.colour == "luma" else "all channels"
        rounding = (
            "clipped and rounded to 8 bits"
            if self.quantise
            else "degraded images as the network saw them, restored ones clipped, none rounded"
        )
        part = "the whole image" if self.crop is None else f"the top left {self.crop[0]} × {self.crop[1]} pixels"
        within = f", but for {self.border} at every side" if self.border else ""
        ensemble = "; restored is the mean over flips and quarter turns" if self.self_ensemble else ""
        return f"PSNR and SSIM of {channels}, {rounding}, over {part}{within}{ensemble}."

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
    """Return the mean PSNR and the mean SSIM over images; one restored to the last bit counts as HIGHEST_PSNR."""
    many = list(qualities)
    return Quality(fmean(min(quality.psnr, HIGHEST_PSNR) for quality in many), fmean(quality.ssim for quality in many))


def gain(ours: Quality, theirs: Quality) -> float:
    """Return the difference of PSNR in dB, neither counted as more than HIGHEST_PSNR."""
    return min(ours.psnr, HIGHEST_PSNR) - min(theirs.psnr, HIGHEST_PSNR)
