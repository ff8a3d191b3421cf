"""Building blocks of the encoder and decoder: convolutions, half instance norm, channel attention.

    half instance norm   h = [γ·(x₁ − mean x₁)/√(var x₁ + ε) + β, x₂],   x₁, x₂ the two halves of the channels
    channel attention    f + r·sigmoid(W₂ relu(W₁ mean r)),   r = conv(PReLU(conv f))
    convolution block    L(conv(L(norm(conv x)))) + W x,   L = LeakyReLU 0.2

Source: Chen et al., "HINet", CVPR Workshops 2021 (half instance norm); Zhang et al., "RCAN", ECCV 2018 (channel
attention). The norm always takes its statistics from the current image, in evaluation too.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dgunet.config import ATTENTION_REDUCTION
from dgunet.network import statistics, winograd

NORM_EPSILON = 1e-5
BLOCK_SLOPE = 0.2


class Conv3x3(nn.Conv2d):
    """A 3×3 convolution that keeps height and width, computed in the way that is fastest on this machine."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)

    def forward(self, input: Float[Tensor, "B n H W"]) -> Float[Tensor, "B m H W"]:
        """New features of the same resolution."""
        if winograd.applies(input, self.weight):
            convolved: Tensor = winograd.Convolution.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return convolved
        return super().forward(input)


def conv3x3(in_channels: int, out_channels: int, *, bias: bool) -> nn.Conv2d:
    """A 3×3 convolution that keeps height and width."""
    return Conv3x3(in_channels, out_channels, bias=bias)


class PReLU(nn.PReLU):
    """A PReLU with one slope, whose gradients cost no more than those of a leaky ReLU on a CPU."""

    def forward(self, input: Float[Tensor, "B n H W"]) -> Float[Tensor, "B n H W"]:
        """Features of the same shape."""
        if input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        activated: Tensor = _OneSlope.apply(input, self.weight)  # type: ignore[no-untyped-call]
        return activated


class _OneSlope(torch.autograd.Function):
    # torch computes the slope's gradient element by element; this took 8 % of a training step.
    @staticmethod
    def forward(ctx: Any, features: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(features, slope)
        return functional.leaky_relu(features, slope.item())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        features, slope = ctx.saved_tensors
        of_features, of_slope = ctx.needs_input_grad
        return (
            torch.ops.aten.leaky_relu_backward(gradient, features, slope.item(), False) if of_features else None,
            (gradient * features.clamp_max(0)).sum(dtype=slope.dtype).reshape(1) if of_slope else None,
        )


class HalfInstanceNorm(nn.Module):
    """Instance norm with scale and shift on the first half of the channels; the second half stays as it is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.normalised = channels // 2
        self.weight = nn.Parameter(torch.ones(self.normalised))
        self.bias = nn.Parameter(torch.zeros(self.normalised))

    def forward(self, features: Float[Tensor, "B n H W"]) -> Float[Tensor, "B n H W"]:
        """Return the features with the first half of the channels normalised; H·W must be at least 2."""
        first, second = features.tensor_split([self.normalised], dim=1)
        # A group norm on channels-first memory: instance_norm copies more, and the CPU's channels-last group norm loses
        # precision by cancellation (error 0.3 for mean 1, deviation 0.01 at 256×256).
        if (given := statistics.in_use()) is None:
            first = functional.group_norm(first.contiguous(), self.normalised, self.weight, self.bias, NORM_EPSILON)
        else:
            first = given.normalised(first, self.weight, self.bias, NORM_EPSILON)
        first = first.to(features.dtype, memory_format=torch.channels_last)
        return torch.cat([first, second], dim=1)


class ConvBlock(nn.Module):
    """Two 3×3 convolutions with a 1×1 shortcut around both."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: bool) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, bias=True)
        self.norm = HalfInstanceNorm(out_channels) if norm else None
        self.conv2 = conv3x3(out_channels, out_channels, bias=True)
        self.shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, features: Float[Tensor, "B n H W"]) -> Float[Tensor, "B m H W"]:
        """Return features of the same resolution."""
        hidden = self.conv1(features)
        if self.norm is not None:
            hidden = self.norm(hidden)
        hidden = functional.leaky_relu(hidden, BLOCK_SLOPE, inplace=True)
        hidden = functional.leaky_relu(self.conv2(hidden), BLOCK_SLOPE, inplace=True)
        shortcut: Tensor = self.shortcut(features)
        return hidden + shortcut


class ChannelAttention(nn.Module):
    """A residual block whose channels are weighted by gates computed from their means over the image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        squeezed = width // ATTENTION_REDUCTION
        self.conv1 = conv3x3(width, width, bias=False)
        self.activation = PReLU()
        self.conv2 = conv3x3(width, width, bias=False)
        self.squeeze = nn.Conv2d(width, squeezed, kernel_size=1, bias=False)
        self.excite = nn.Conv2d(squeezed, width, kernel_size=1, bias=False)

    def forward(self, features: Float[Tensor, "B n H W"]) -> Float[Tensor, "B n H W"]:
        """Return features of the same shape."""
        residual = self.conv2(self.activation(self.conv1(features)))
        given = statistics.in_use()
        mean = residual.mean(dim=(2, 3), keepdim=True) if given is None else given.mean(residual)
        gate = torch.sigmoid(self.excite(functional.relu(self.squeeze(mean))))
        return torch.addcmul(features, residual, gate)


class ShallowFeatures(nn.Module):
    """Shallow features of an image: one convolution and a channel attention block."""

    def __init__(self, image_channels: int, width: int) -> None:
        super().__init__()
        self.embed = conv3x3(image_channels, width, bias=False)
        self.attention = ChannelAttention(width)

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B n H W"]:
        """Return features of the image's resolution."""
        # Channels last is the faster memory format (benchmarks/network.py); one channel does not determine the format.
        embedded = self.embed(image).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.attention(embedded)
        return features
