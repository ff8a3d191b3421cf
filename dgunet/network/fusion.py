"""Connections between stages: how a stage uses the features of the previous one.

    subspace projection   g' = Vᵀ(V Vᵀ)⁻¹V g,   out = a + conv([a, g'])      V: 16 rows made from [a, g]
    gated fusion          t = L(conv e + conv d),   a·sigmoid(gate t) + shift t + a     L = LeakyReLU 0.1
    plain fusion          a + conv e + conv d

a: features of this stage; g, e, d: output, encoder and decoder features of the previous stage. Axes: n channels,
r = 16 rows. Source: Mou, Wang, Zhang, CVPR 2022; for the projection Cheng et al., "NBNet", CVPR 2021; for the fusion of
encoder and decoder features Zamir et al., "MPRNet", CVPR 2021.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional

from dgunet.network import statistics
from dgunet.network.blocks import conv3x3

SUBSPACE_RANK = 16
ROW_NORM_EPSILON = 1e-6
# Added to the diagonal of the Gram matrix. With the relative part, which changes the outputs by about
# 40·RELATIVE_DAMPING, an LU solve in float32 stays finite for zero or equal rows; the absolute part keeps the matrix
# invertible for V = 0.
RELATIVE_DAMPING = 1e-7
ABSOLUTE_DAMPING = 1e-12
FUSION_SLOPE = 0.1


class StageFeatures(NamedTuple):
    """Features that the next stage uses.

    Attributes:
        encoder: e, outputs of the three encoder levels, finest first.
        decoder: d, outputs of the three decoder levels, coarsest first.
        output: g, features of the restored image at full resolution.
    """

    encoder: tuple[Tensor, ...]
    decoder: tuple[Tensor, ...]
    output: Tensor


class ReceivedFeatures(ABC):
    """Features of the previous stage, mixed already and read on request; they take less memory than StageFeatures."""

    @property
    @abstractmethod
    def output(self) -> Float[Tensor, "B n H W"]:
        """The features g."""

    @abstractmethod
    def mixed(self, level: int) -> Float[Tensor, "B n h w"]:
        """The sum conv e + conv d of an encoder level, the finest is 0, with the convolutions of the stage itself."""


def _exact_type(device: str) -> torch.dtype:
    """Return float32, or float64 where torch is set to compute float32 products in TF32 or bfloat16."""
    backend = torch.backends.cuda if device == "cuda" else torch.backends.mkldnn
    return torch.float32 if backend.matmul.fp32_precision in ("none", "ieee") else torch.float64


# The effect of torch.compiler.assume_constant_result without importing the compiler, which takes 0.9 s.
_exact_type._dynamo_marked_constant = True  # type: ignore[attr-defined]


def project(features: Float[Tensor, "B n H W"], basis: Float[Tensor, "B r H W"]) -> Float[Tensor, "B n H W"]:
    """Return each channel of `features` projected onto the span of the rows of `basis`, in float32 also under autocast.

    The Gram matrix (diagonal near 2e-5 at 256×256) underflows in half precision and is singular when rows are parallel
    or zero. It is damped and solved by LU, which does not need a positive definite matrix nor wait for the device.
    """
    with torch.autocast(features.device.type, enabled=False):
        if (given := statistics.in_use()) is not None:
            return given.projected(features.float(), basis.float(), _coefficients)
        exact = _exact_type(features.device.type)
        rows = basis.to(exact).flatten(2)
        rows = rows / (ROW_NORM_EPSILON + rows.abs().sum(dim=2, keepdim=True))
        columns = features.to(exact).flatten(2).transpose(1, 2)
        gram = rows @ rows.transpose(1, 2)
        identity = torch.eye(rows.shape[1], device=rows.device, dtype=rows.dtype)
        if torch.compiler.is_exporting():  # OpenVINO has no diagonal
            trace = (gram * identity).sum(dim=(1, 2))
        else:
            trace = gram.diagonal(dim1=1, dim2=2).sum(dim=1)
        damping = (RELATIVE_DAMPING * trace + ABSOLUTE_DAMPING)[:, None, None]
        coefficients = _solve(gram + damping * identity, rows @ columns)
        projected: Tensor = rows.transpose(1, 2) @ coefficients  # B (H W) n: channels last, as all features are
    return projected.float().transpose(1, 2).reshape(features.shape)


def _solve(matrix: Float[Tensor, "B r r"], right: Float[Tensor, "B r n"]) -> Float[Tensor, "B r n"]:
    """Return matrix⁻¹·right."""
    if not torch.compiler.is_exporting():
        solution: Tensor = torch.linalg.solve_ex(matrix, right).result
        return solution
    # ONNX has no solver: Gauss-Jordan elimination, written out. The Gram matrix is positive but for rounding and is
    # damped, so that pivots in order, in float64, suffice.
    rank = matrix.shape[1]
    system = torch.cat([matrix, right], dim=2).double()
    for index in range(rank):
        pivot = system[:, index : index + 1] / system[:, index : index + 1, index : index + 1]
        is_pivot = (torch.arange(rank, device=matrix.device) == index)[:, None]
        system = torch.where(is_pivot, pivot, system - system[:, :, index : index + 1] * pivot)
    return system[:, :, rank:].to(matrix.dtype)


def _coefficients(
    lengths: Float64[Tensor, "*b r"], gram: Float64[Tensor, "*b r r"], products: Float64[Tensor, "*b r n"]
) -> Float64[Tensor, "*b r n"]:
    """Return C of the projection Vᵀ C, as `project` computes it.

    Args:
        lengths: sums of |V| over the pixels.
        gram: V Vᵀ.
        products: V gᵀ.
    """
    scale = 1 / (ROW_NORM_EPSILON + lengths)
    gram = scale[..., :, None] * gram * scale[..., None, :]
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    damping = (RELATIVE_DAMPING * trace + ABSOLUTE_DAMPING)[..., None, None]
    identity = torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype)
    coefficients: Tensor = torch.linalg.solve_ex(gram + damping * identity, scale[..., None] * products).result
    return scale[..., None] * coefficients


class SubspaceProjection(nn.Module):
    """Adds the previous stage's features, projected onto a subspace computed from both stages (blind family)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.basis = conv3x3(2 * width, SUBSPACE_RANK, bias=True)
        self.conv = conv3x3(2 * width, width, bias=True)

    def forward(
        self, features: Float[Tensor, "B n H W"], previous: Float[Tensor, "B n H W"]
    ) -> Float[Tensor, "B n H W"]:
        """Return features of the same shape."""
        basis = self.basis(torch.cat([features, previous], dim=1))
        projected = project(previous, basis)
        merged: Tensor = self.conv(torch.cat([features, projected.to(features.dtype)], dim=1))
        return features + merged


class Concatenation(nn.Module):
    """Merges the features of both stages by one convolution of their concatenation."""

    def __init__(self, width: int, out_channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(2 * width, out_channels, bias=False)

    def forward(
        self, features: Float[Tensor, "B n H W"], previous: Float[Tensor, "B n H W"]
    ) -> Float[Tensor, "B m H W"]:
        """Return features of the same resolution."""
        merged: Tensor = self.conv(torch.cat([features, previous], dim=1))
        return merged


class PlainFusion(nn.Module):
    """Inter-stage fusion of the sensing family: a + conv e + conv d."""

    def __init__(self, channels: int, decoder_channels: int) -> None:
        super().__init__()
        self.from_encoder = conv3x3(channels, channels, bias=True)
        self.from_decoder = conv3x3(decoder_channels, channels, bias=True)

    def mixed(self, encoder: Float[Tensor, "B n H W"], decoder: Float[Tensor, "B m H W"]) -> Float[Tensor, "B n H W"]:
        """Return conv e + conv d."""
        # Two convolutions, as gate and shift below: one joint convolution costs more memory traffic.
        mixed: Tensor = self.from_encoder(encoder)
        return mixed.add_(self.from_decoder(decoder))

    def forward(self, features: Float[Tensor, "B n H W"], mixed: Float[Tensor, "B n H W"]) -> Float[Tensor, "B n H W"]:
        """Return features of the same shape; `mixed` is what the method of that name gave."""
        return features + mixed


class GatedFusion(PlainFusion):
    """Inter-stage fusion of the blind family: a·sigmoid(gate t) + shift t + a with t = L(conv e + conv d)."""

    def __init__(self, channels: int, decoder_channels: int) -> None:
        super().__init__(channels, decoder_channels)
        self.gate = conv3x3(channels, channels, bias=True)
        self.shift = conv3x3(channels, channels, bias=True)

    def forward(self, features: Float[Tensor, "B n H W"], mixed: Float[Tensor, "B n H W"]) -> Float[Tensor, "B n H W"]:
        """Return features of the same shape; `mixed`, which the method of that name gave, is changed in place."""
        mixed = functional.leaky_relu(mixed, FUSION_SLOPE, inplace=True)
        return torch.addcmul(features + self.shift(mixed), features, torch.sigmoid(self.gate(mixed)))
