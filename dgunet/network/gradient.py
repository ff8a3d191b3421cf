"""Gradient descent module: one gradient step on the data term ½‖Φx − y‖², with a learned or a known Φ.

    v = x − ρ·Φᵀ(Φx − y)

x is the estimate, y the degraded image or the measurements, ρ the step size. Unknown Φ (rain, blur, camera noise): Φ
and Φᵀ are two independent residual convolutions per stage. Known Φ (block compressive sensing): one M × B² matrix on
B×B blocks, B = 32, learned jointly with the network.
Source: Mou, Wang, Zhang, CVPR 2022 (gradient descent module).
Axes: M measurements of a block; h, w blocks in height and width; x is B C H W, y as x (learned) or B M h w (known).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from dgunet.config import BLOCK_SIZE
from dgunet.network.blocks import PReLU, conv3x3

OPERATOR_WIDTH = 64
INITIAL_STEP_SIZE = 0.5


class Measurements(NamedTuple):
    """Compressive measurements: `values` of the padded image, and height and width of the image before padding."""

    values: Float[Tensor, "B M h w"]
    height: int
    width: int


class ResidualOperator(nn.Module):
    """A learned Φ or Φᵀ: image + conv(PReLU(conv(image)))."""

    def __init__(self, image_channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(image_channels, OPERATOR_WIDTH, bias=True)
        self.activation = PReLU()
        self.conv2 = conv3x3(OPERATOR_WIDTH, image_channels, bias=True)

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return an image of the same shape."""
        correction: Tensor = self.conv2(self.activation(self.conv1(image)))
        return image + correction

    @torch.no_grad()
    def transposed(self, vector: Float[Tensor, "B C H W"], image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return Jᵀ·vector, J the Jacobian of the operator at `image`; without gradients.

        PReLU is linear on each side of zero, so J = 1 + W₂·D·W₁ with the slopes D that `image` selects.
        """
        features = functional.conv_transpose2d(vector, self.conv2.weight, padding=1)
        features = torch.where(self.conv1(image) > 0, features, self.activation.weight * features)
        return vector + functional.conv_transpose2d(features, self.conv1.weight, padding=1)


class LearnedDegradation(nn.Module):
    """Φ and Φᵀ for an unknown degradation: two operators, trained with the network."""

    def __init__(self, image_channels: int) -> None:
        super().__init__()
        self.degrade = ResidualOperator(image_channels)
        self.adjoint = ResidualOperator(image_channels)


class SensingMatrix(nn.Module):
    """Φ of block compressive sensing: each 32×32 block, flattened row by row, times an M × 1024 matrix.

    The initial rows are the lowest frequencies of the 2-D cosine transform, which hold most energy of photographs. They
    are orthonormal, so Φᵀy is the least-squares image of smallest norm.
    """

    def __init__(self, num_measurements: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(lowest_frequencies(num_measurements))

    # A matrix product instead of the usual strided convolution: the convolution took, with its gradient and in bfloat16
    # on a CPU, 156 ms where this takes 0.8 ms (103 measurements, eight images of 64 x 64).
    def degrade(self, image: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B M h w"]:
        """Return Φ·image; H and W are multiples of 32."""
        blocks = functional.pixel_unshuffle(image, BLOCK_SIZE)
        return functional.linear(blocks.permute(0, 2, 3, 1), self.matrix).permute(0, 3, 1, 2)

    def adjoint(self, values: Float[Tensor, "B M h w"]) -> Float[Tensor, "B 1 H W"]:
        """Return Φᵀ·values."""
        blocks = functional.linear(values.permute(0, 2, 3, 1), self.matrix.T).permute(0, 3, 1, 2)
        return functional.pixel_shuffle(blocks, BLOCK_SIZE)


def lowest_frequencies(count: int) -> Float[Tensor, "{count} 1024"]:
    """Return the `count` lowest vectors of a block's orthonormal 2-D cosine transform (DCT-II), one a row."""
    frequency, position = torch.arange(BLOCK_SIZE), torch.arange(BLOCK_SIZE) + 0.5
    waves = math.sqrt(2 / BLOCK_SIZE) * torch.cos(math.pi / BLOCK_SIZE * frequency[:, None] * position)
    waves[0] /= math.sqrt(2)
    squared_length = frequency[:, None] ** 2 + frequency**2
    first = squared_length.flatten().argsort(stable=True)[:count]
    down, across = waves[first // BLOCK_SIZE], waves[first % BLOCK_SIZE]
    return (down[:, :, None] * across[:, None, :]).flatten(1)


class GradientDescentModule(nn.Module):
    """One gradient step with a learned step size ρ; Φ is learned here, or the sensing matrix of the network."""

    def __init__(self, image_channels: int, *, learned_degradation: bool) -> None:
        super().__init__()
        self.step_size = nn.Parameter(torch.full((1,), INITIAL_STEP_SIZE))
        self.learned = LearnedDegradation(image_channels) if learned_degradation else None

    def forward(
        self,
        estimate: Float[Tensor, "B C H W"],
        degraded: Float[Tensor, "B M h w"],
        sensing: SensingMatrix | None,
    ) -> Float[Tensor, "B C H W"]:
        """Return v = estimate − ρ·Φᵀ(Φ·estimate − degraded).

        Args:
            estimate: x, the output of the previous stage.
            degraded: y, the degraded image; with `sensing` the measurements.
            sensing: the known Φ; None where the stage has learned operators.
        """
        degradation = sensing if sensing is not None else self.learned
        assert degradation is not None, "a stage without learned operators needs the sensing matrix"
        degrade, adjoint, step_size = degradation.degrade, degradation.adjoint, self.step_size
        gradient_step: Tensor = estimate - step_size * adjoint(degrade(estimate) - degraded)
        return gradient_step
