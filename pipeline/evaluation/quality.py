"""Measures an image against the clean one, as a protocol says."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from torch import Tensor

from dgunet.metrics import HIGHEST_PSNR, luma, psnr, quantise_8bit, ssim
from dgunet.tensors import to_tensor
from pipeline.evaluation.protocol import Protocol

LUMA_OF_BLACK, LUMA_OF_WHITE = 16 / 255, 235 / 255  # of MATLAB's Y; a gray image has the full range


class Quality(NamedTuple):
    """PSNR in dB (infinite for identical images) and SSIM of one image, or their means over several (finite)."""

    psnr: float
    ssim: float


def measure(
    protocol: Protocol,
    image: Float32[np.ndarray, "H W C"],
    clean: Float32[np.ndarray, "H W C"],
    *,
    was_gray: bool = False,
) -> Quality:
    """Return PSNR and SSIM of an image.

    Args:
        protocol: which channels and which part are measured, and whether they are rounded.
        image: the image to measure.
        clean: the clean image, of the same shape.
        was_gray: both images have the channel of a gray file three times.

    Raises:
        ValueError: the shapes differ, or the protocol leaves no pixel of the image.
    """
    measured, reference = _view(protocol, image, was_gray), _view(protocol, clean, was_gray)
    border = protocol.border
    return Quality(float(psnr(measured, reference, crop=border)), float(ssim(measured, reference, crop=border)))


def mean_quality(qualities: Iterable[Quality]) -> Quality:
    """Return the mean PSNR and the mean SSIM over images; an infinite PSNR counts as HIGHEST_PSNR."""
    many = list(qualities)
    return Quality(fmean(min(quality.psnr, HIGHEST_PSNR) for quality in many), fmean(quality.ssim for quality in many))


def gain(restored: Quality, degraded: Quality) -> float:
    """Return the difference of PSNR in dB; neither counts as more than HIGHEST_PSNR."""
    return min(restored.psnr, HIGHEST_PSNR) - min(degraded.psnr, HIGHEST_PSNR)


def _view(protocol: Protocol, image: Float32[np.ndarray, "H W C"], was_gray: bool) -> Tensor:
    if protocol.crop is not None:
        height, width = protocol.crop if image.shape[0] <= image.shape[1] else protocol.crop[::-1]
        image = image[:height, :width]
    tensor = to_tensor(image)
    tensor = quantise_8bit(tensor) if protocol.quantise else tensor
    if protocol.colour == "rgb" or tensor.shape[1] != 3:
        return tensor
    return (luma(tensor) - LUMA_OF_BLACK) / (LUMA_OF_WHITE - LUMA_OF_BLACK) if was_gray else luma(tensor)
