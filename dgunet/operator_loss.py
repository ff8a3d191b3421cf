"""Loss on the learned Φ and Φᵀ of each stage, which makes its step a true gradient step on the data term.

    degradation   charbonnier(Φ_k(clean) − y)                         Φ_k is the degradation
    adjoint       ‖Φ_kᵀ r − J_kᵀ r‖² / ‖J_kᵀ r‖²,   r = Φ_k(x) − y,   Φ_kᵀ is the transpose of Φ_k's Jacobian J_k at x

x is the estimate of the previous stage. The loss of the paper asks for neither: docs/interpretability.md has what they
change. Both are computed on the middle of each patch, a quarter of its pixels, which costs a quarter of the time.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dgunet.losses import charbonnier
from dgunet.network import DGUNet

REACH = 2  # pixels that two 3×3 convolutions see on each side; so wide a border of the patch is left out of the loss
TINY = 1e-12


def operator_loss(
    network: DGUNet,
    degraded: Float[Tensor, "B C H W"],
    estimates: Sequence[Float[Tensor, "B C H W"]],
    clean: Float[Tensor, "B C H W"],
    *,
    degradation_weight: float,
    adjoint_weight: float,
) -> Float[Tensor, ""]:
    """Return the sum over all stages, in float32; its gradient reaches Φ and Φᵀ alone.

    Args:
        network: of the blind family.
        degraded: y.
        estimates: the K estimates of the network for y.
        clean: the clean image.
        degradation_weight: factor of the degradation term.
        adjoint_weight: factor of the adjoint term.
    """
    clean, degraded = _middle(clean), _middle(degraded)
    loss = torch.zeros((), device=clean.device)
    inputs = [degraded, *(_middle(estimate.detach()) for estimate in estimates[:-1])]
    for stage, estimate in zip(network.stages(), inputs, strict=True):
        learned = stage.gradient.learned
        assert learned is not None, "a sensing network knows Φ"
        if degradation_weight:
            difference = _inside(learned.degrade(clean).float() - degraded)
            loss = loss + degradation_weight * charbonnier(difference)
        if adjoint_weight:
            with torch.no_grad():
                residual = learned.degrade(estimate) - degraded
                wanted = learned.degrade.transposed(residual, estimate).float()
            error = _inside(learned.adjoint(residual).float() - wanted).square().sum(dim=(1, 2, 3))
            loss = loss + adjoint_weight * (error / (_inside(wanted).square().sum(dim=(1, 2, 3)) + TINY)).mean()
    return loss


def _middle(patch: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
    rows, columns = (slice(side // 4, side - side // 4) for side in patch.shape[2:])
    return patch[:, :, rows, columns]


def _inside(image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
    return image[:, :, REACH:-REACH, REACH:-REACH]
