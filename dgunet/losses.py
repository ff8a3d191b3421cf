"""What training minimises, summed over all K estimates.

    Charbonnier   mean √(d² + ε²),   d = estimate − clean,   ε = 1e-3
    edge          the same of Laplacians: d minus its pyramid round trip (blur, drop every second pixel, ×4, blur)

The Laplacian is linear, so that of the difference is the difference of the Laplacians. Source of both: Jiang et al.,
"Multi-Scale Progressive Fusion Network", CVPR 2020; Zamir et al., "MPRNet", CVPR 2021.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

LossKind = Literal["charbonnier", "charbonnier_edge", "charbonnier_clamped", "mse_clamped"]
CHARBONNIER_EPSILON = 1e-3
EDGE_WEIGHT = 0.05
BLUR_TAPS = (0.05, 0.25, 0.4, 0.25, 0.05)


def charbonnier(difference: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean of √(d² + ε²)."""
    return (difference.square() + CHARBONNIER_EPSILON**2).sqrt().mean()


def laplacian(image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """The image minus its round trip through one level of a Gaussian pyramid."""
    coarse = _blurred(image)[:, :, ::2, ::2]
    grid = torch.zeros_like(image)
    grid[:, :, ::2, ::2] = 4 * coarse
    return image - _blurred(grid)


def _blurred(image: Tensor) -> Tensor:
    # Every channel as an image of its own: of these all memory formats are one. Compiled on a CPU, the padding's
    # gradient fails for more channels, last in memory: torch 2.13 misjudges its layout.
    single = image.flatten(0, 1)[:, None]
    taps = torch.cat([image.new_full((1,), tap) for tap in BLUR_TAPS])  # made where the image is: nobody waits
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
    """The sum over all estimates of their distance to the clean image, images in [0, 1], computed in float32.

    `charbonnier_edge` (deraining, deblurring) adds `edge_weight` times the edge loss; the clamped kinds compare what
    would be written to a file: `charbonnier_clamped` (real denoising), `mse_clamped` (sensing). Raises ValueError for
    another kind.
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
        loss = charbonnier(difference)
        if kind == "charbonnier_edge":
            loss = loss + edge_weight * charbonnier(laplacian(difference.flatten(0, 1)))
        return len(estimates) * loss
