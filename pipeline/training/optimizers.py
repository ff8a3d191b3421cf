"""Optimizers: AdamW, and Muon for the weights of convolutions.

Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024) takes the weights of a layer as a
matrix W with one row for each output channel, and makes each step orthogonal:

    m ← m + (1 − μ)·(g − m),    u = g + μ·(m − g)
    W ← (1 − η·λ)·W − η·0.2·√max(rows, columns)·U Vᵀ,    u = U S Vᵀ

μ is the momentum, g the gradient, η the learning rate, λ the weight decay. 0.2·√max(rows, columns) makes steps as
long as those of AdamW (Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982), and one learning rate suits
both. U Vᵀ is approximated by five Newton-Schulz iterations.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from pipeline.training.settings import Train

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5


def build_optimizers(network: nn.Module, recipe: Train) -> list[Optimizer]:
    """Return the optimizers of a network's parameters.

    `recipe.optimizer: muon` uses Muon for the weights of convolutions and AdamW for all other parameters.
    """
    parameters, muon = list(network.parameters()), recipe.optimizer == "muon"
    weights = [parameter for parameter in parameters if muon and parameter.ndim == 4]
    others = [parameter for parameter in parameters if not (muon and parameter.ndim == 4)]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    adamw = AdamW(others, lr=rate, weight_decay=decay, fused=True)
    return [Muon(weights, lr=rate, weight_decay=decay), adamw] if weights else [adamw]


class Muon(Optimizer):
    """Muon for the weights of convolutions.

    Differs from torch.optim.Muon (torch 2.13): that one takes two-dimensional parameters alone, orthogonalises one
    matrix at a time in bfloat16, which rounds differently on each kind of CPU, and has no `found_inf`. As in torch's
    fused optimizers, where `found_inf` is not 0, weights and momentum stay unchanged, without waiting for the device.

    Args:
        weights: four-dimensional parameters, the output channels first.
        lr: learning rate.
        weight_decay: share of the weights that a step subtracts at learning rate 1.
    """

    found_inf: Tensor | None = None

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # the base class also takes a function
        """Change the weights that have a gradient. Matrices of the same shape are orthogonalised together."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[_matrix(weight).shape].append(weight)
            for weights in by_shape.values():
                self._change(weights, group["lr"], group["weight_decay"])

    def _change(self, weights: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        """Change weights whose matrices have the same shape."""
        gradients = torch.stack([_matrix(weight.grad) for weight in weights if weight.grad is not None])
        states = [self.state[weight] for weight in weights]
        momentum = torch.stack([state.get("momentum", torch.zeros_like(gradients[0])) for state in states])
        changed = momentum.lerp(gradients, 1 - MOMENTUM)
        step = orthogonalised(gradients.lerp(changed, MOMENTUM)) * (lr * 0.2 * math.sqrt(max(gradients.shape[1:])))
        decay: float | Tensor = 1 - lr * weight_decay
        if self.found_inf is not None:
            skipped = self.found_inf.bool()
            changed, step = torch.where(skipped, momentum, changed), step.masked_fill(skipped, 0)
            decay = torch.where(skipped, 1.0, decay)
        for weight, state, new, difference in zip(weights, states, changed, step, strict=True):
            state["momentum"] = new.clone()  # a view would save all of `changed` in each checkpoint
            weight.mul_(decay).sub_(_like(difference, weight))


def orthogonalised(matrices: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    """Return U Vᵀ of each matrix U S Vᵀ, with singular values of some 0.7 to 1.2 instead of 1.

    Source: Newton-Schulz iteration with the coefficients of Jordan et al., chosen for speed.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NUM_ITERATIONS):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if matrices.shape[1] <= matrices.shape[2] else wide.mT


def _matrix(weight: Float[Tensor, "out in h w"]) -> Float[Tensor, "out columns"]:
    """Return the weights as a matrix; a view where they are stored in channels-last order."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def _like(matrix: Float[Tensor, "out columns"], weight: Float[Tensor, "out in h w"]) -> Float[Tensor, "out in h w"]:
    rows, channels, height, width = weight.shape
    return matrix.view(rows, height, width, channels).permute(0, 3, 1, 2)
