"""Training losses, summed over all K estimates.

    Charbonnier   mean √(d² + ε²),   d = estimate − clean,   ε = 1e-3
    edge          the same of the Laplacian of d: d minus its pyramid round trip (blur, keep every second pixel times 4,
                  blur)
    PSNR          mean over images of 10 log₁₀(1 + MSE(d) / 10⁻⁶): the distance of the PSNR from 60 dB

The Laplacian is linear: that of the difference is the difference of the Laplacians. Source of the first two: Jiang et
al., "Multi-Scale Progressive Fusion Network", CVPR 2020; Zamir et al., "MPRNet", CVPR 2021; of the PSNR as a loss: Chen
et al., "HINet", CVPR workshops 2021. In it images with small errors count as much as those with large ones.
"""

from collections.abc import Sequence
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from dgunet.config import LossKind

CHARBONNIER_EPSILON = 1e-3
EDGE_WEIGHT = 0.05
ERROR_AT_60_DB = 1e-6
BLUR_TAPS = (0.05, 0.25, 0.4, 0.25, 0.05)


def charbonnier(difference: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return the mean of √(d² + ε²)."""
    return (difference.square() + CHARBONNIER_EPSILON**2).sqrt().mean()


def laplacian(image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Return the image minus its round trip through one level of a Gaussian pyramid."""
    coarse = _blurred(image)[:, :, ::2, ::2]
    grid = torch.zeros_like(image)
    grid[:, :, ::2, ::2] = 4 * coarse
    return image - _blurred(grid)


def _blurred(image: Tensor) -> Tensor:
    # Every channel is a separate image of one channel, for which all memory formats are the same. With more channels in
    # channels-last order the padding's gradient fails when compiled for a CPU (torch 2.13 assumes a wrong layout).
    single = image.flatten(0, 1)[:, None]
    taps = torch.cat([image.new_full((1,), tap) for tap in BLUR_TAPS])  # made on the device: no copy, no wait
    reach = len(BLUR_TAPS) // 2
    padded = functional.pad(single, (reach, reach, reach, reach), mode="replicate")
    across = functional.conv2d(padded, taps.view(1, 1, 1, -1))
    return functional.conv2d(across, taps.view(1, 1, -1, 1)).view(image.shape)


def stage_loss(
    estimates: Sequence[Float[Tensor, "B C H W"]],
    clean: Float[Tensor, "B C H W"],
    *,
    kind: LossKind = "charbonnier_edge",
    edge_weight: float = EDGE_WEIGHT,
) -> Float[Tensor, ""]:
    """Return the sum over all estimates of their loss against the clean image, computed in float32.

    Args:
        estimates: the K estimates of the network.
        clean: the clean image in [0, 1].
        kind: `charbonnier`; `charbonnier_edge` (deraining, deblurring) adds the edge loss; `charbonnier_clamped` (real
            denoising) and `mse_clamped` (sensing) clamp the estimates to [0, 1] first, as a file would; `psnr` (a
            mixture of slight and heavy degradations) is the PSNR loss.
        edge_weight: factor of the edge loss.

    Raises:
        ValueError: `kind` is none of these.
    """
    if kind not in get_args(LossKind):
        raise ValueError(f"loss kind: must be one of {', '.join(get_args(LossKind))}, is {kind!r}")
    with torch.autocast(clean.device.type, enabled=False):
        stacked = torch.stack([estimate.float() for estimate in estimates])
        if kind.endswith("_clamped"):
            stacked = stacked.clamp(0, 1)
        difference = stacked - clean.float()
        if kind == "mse_clamped":
            return len(estimates) * difference.square().mean()
        if kind == "psnr":
            errors = difference.square().mean(dim=(2, 3, 4))
            return len(estimates) * 10 * torch.log10(1 + errors / ERROR_AT_60_DB).mean()
        loss = charbonnier(difference)
        if kind == "charbonnier_edge":
            loss = loss + edge_weight * charbonnier(laplacian(difference.flatten(0, 1)))
        return len(estimates) * loss
