"""PSNR and SSIM as the restoration literature computes them, per image and in float64.

PSNR = -10 log10 mean (x - y)²                                             over all pixels and channels, peak 1
SSIM = mean (2 μx μy + C1)(2 σxy + C2) / ((μx² + μy² + C1)(σx² + σy² + C2)),   C1 = 0.01², C2 = 0.03²

with local means and (co)variances under an 11×11 Gaussian of σ 1.5, at all positions where it fits inside the image, as
in the authors' MATLAB code; then the mean over channels. Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment:
From Error Visibility to Structural Similarity", IEEE TIP 2004.

Neither metric clips or quantises. Published tables measure 8-bit outputs, `quantise_8bit(restored)`; those of Gaussian
denoising measure the output of the network itself.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from jaxtyping import Float, Float64
from torch import Tensor

from dgunet.images import MAX_GREY_LEVEL

WINDOW = 11
WINDOW_SIGMA = 1.5
HIGHEST_PSNR = 100.0  # dB; counts in a mean for an identical image, whose PSNR is infinite


def psnr(restored: Float[Tensor, "B C H W"], clean: Float[Tensor, "B C H W"], *, crop: int = 0) -> Float64[Tensor, "B"]:
    """Return the peak signal-to-noise ratio of each image in dB, without `crop` pixels at every border.

    Identical images give inf, which counts as HIGHEST_PSNR in a mean.

    Args:
        restored: restored images, black 0 and white 1.
        clean: clean images of the same shape.
        crop: pixels to leave out at each side.

    Raises:
        ValueError: the shapes differ, or no pixel is left after cropping.
    """
    restored, clean = _comparable(restored, clean, crop)
    return -10 * torch.log10((restored - clean).square().mean(dim=(1, 2, 3)))


def ssim(restored: Float[Tensor, "B C H W"], clean: Float[Tensor, "B C H W"], *, crop: int = 0) -> Float64[Tensor, "B"]:
    """Return the structural similarity of each image, 1 for identical ones; arguments and errors as for `psnr`.

    In images smaller than 11×11 the window has the largest odd size that fits.
    """
    restored, clean = _comparable(restored, clean, crop)
    mean_x, mean_y = _blur(restored), _blur(clean)
    variance_x = _blur(restored * restored) - mean_x * mean_x
    variance_y = _blur(clean * clean) - mean_y * mean_y
    covariance = _blur(restored * clean) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def luma(image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
    """Return Y of MATLAB's rgb2ycbcr (BT.601, black 16/255, white 235/255) of an image in [0, 1], not rounded."""
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=image.dtype, device=image.device) / MAX_GREY_LEVEL
    return (image * weights[:, None, None]).sum(dim=1, keepdim=True) + 16 / MAX_GREY_LEVEL


def quantise_8bit(image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Return an image as an 8-bit file holds it: clipped to [0, 1] and rounded to multiples of 1/255."""
    return (image.clamp(0, 1) * MAX_GREY_LEVEL).round() / MAX_GREY_LEVEL


def _comparable(restored: Tensor, clean: Tensor, crop: int) -> tuple[Tensor, Tensor]:
    if restored.shape != clean.shape:
        raise ValueError(f"shapes differ: restored {tuple(restored.shape)}, clean {tuple(clean.shape)}")
    height, width = clean.shape[2:]
    if crop < 0 or 2 * crop >= min(height, width):
        raise ValueError(f"crop={crop} leaves no pixel of {width}x{height}")
    inside = (..., slice(crop, height - crop), slice(crop, width - crop))
    return restored[inside].double(), clean[inside].double()


def _blur(image: Float64[Tensor, "B C H W"]) -> Float64[Tensor, "B C h w"]:
    size = min(WINDOW, *(side - (side + 1) % 2 for side in image.shape[2:]))
    offsets = torch.arange(size, dtype=torch.float64, device=image.device) - size // 2
    window = torch.exp(-offsets.square() / (2 * WINDOW_SIGMA**2))
    window = window / window.sum()
    planes = image.flatten(0, 1)[:, None]
    planes = F.conv2d(F.conv2d(planes, window[None, None, :, None]), window[None, None, None, :])
    return planes.view(*image.shape[:2], *planes.shape[2:])
