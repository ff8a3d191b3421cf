"""A 3×3 convolution with a quarter of the products, for float32 on a CPU with AVX2: minimal filtering F(4×4, 3×3).

    Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A     d a 6×6 tile of the image, g a 3×3 kernel, Y the 4×4 outputs of the tile

The definition takes 144 products per tile, channel and output channel, this takes 36, as 36 products of matrices. The
same function up to rounding: the error is some four times that of the definition, and below 1e-6 of the output.
Source: Lavin and Gray, CVPR 2016 (arXiv 1509.09308). Points of interpolation: 0, ±3/4, ±3/2, ∞, the most exact of
twelve sets that were tried. Axes: T tiles, R rows of tiles, C channels, N output channels; 6, 4: within a tile.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE, STEP = 6, 4  # side of a tile in the input, and in the output: neighbouring tiles share two pixels
STRIP_BYTES = 2**20  # of transformed input per thread: it stays in the cache
# Below these, and on CPUs with AVX-512, the transforms cost as much as the products that they save.
LEAST_CHANNELS = 40
LEAST_PIXELS = 1024

INPUT = torch.tensor(
    [
        [81 / 64, 0, -45 / 16, 0, 1, 0],
        [0, -27 / 16, -9 / 4, 3 / 4, 1, 0],
        [0, 27 / 16, -9 / 4, -3 / 4, 1, 0],
        [0, -27 / 32, -9 / 16, 3 / 2, 1, 0],
        [0, 27 / 32, -9 / 16, -3 / 2, 1, 0],
        [0, 81 / 64, 0, -45 / 16, 0, 1],
    ]
)  # Bᵀ
KERNEL = torch.tensor(
    [
        [64 / 81, 0, 0],
        [-128 / 243, -32 / 81, -8 / 27],
        [-128 / 243, 32 / 81, -8 / 27],
        [32 / 243, 16 / 81, 8 / 27],
        [32 / 243, -16 / 81, 8 / 27],
        [0, 0, 1],
    ]
)  # G
OUTPUT = torch.tensor(
    [
        [1, 1, 1, 1, 1, 0],
        [0, 3 / 4, -3 / 4, 3 / 2, -3 / 2, 0],
        [0, 9 / 16, 9 / 16, 9 / 4, 9 / 4, 0],
        [0, 27 / 64, -27 / 64, 27 / 8, -27 / 8, 1],
    ]
)  # Aᵀ


def applies(image: Float[Tensor, "B C H W"], weight: Float[Tensor, "N C 3 3"]) -> bool:
    """Whether `Convolution` is the faster way to convolve these here: not on a GPU, under autocast or compiled."""
    return (
        image.device.type == "cpu"
        and image.dtype == weight.dtype == torch.float32
        and min(weight.shape[:2]) >= LEAST_CHANNELS
        and image.shape[2] * image.shape[3] >= LEAST_PIXELS
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
    )


class Convolution(torch.autograd.Function):
    """A 3×3 convolution with padding 1, and its gradients: `Convolution.apply(image, weight, bias)`."""

    @staticmethod
    def forward(
        ctx: Any, image: Float[Tensor, "B C H W"], weight: Float[Tensor, "N C 3 3"], bias: Float[Tensor, " N"] | None
    ) -> Float[Tensor, "B N H W"]:
        """The convolution, channels last."""
        ctx.save_for_backward(image, weight)
        return _convolve(image, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "B N H W"]) -> tuple[Tensor | None, ...]:
        """The gradients of image, weight and bias, where they are wanted."""
        image, weight = ctx.saved_tensors
        of_image, of_weight, of_bias = ctx.needs_input_grad
        return (
            _convolve(gradient, weight.flip(2, 3).transpose(0, 1), None) if of_image else None,
            _weight_gradient(image, gradient) if of_weight else None,
            gradient.sum(dim=(0, 2, 3)) if of_bias else None,
        )


def _convolve(image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    outputs, channels = weight.shape[:2]
    batch, _, height, width = image.shape
    rows, columns = _strip(image, outputs), -(-width // STEP)
    kernel = _both_ways(KERNEL, weight.permute(2, 3, 1, 0)).view(TILE * TILE, channels, outputs)
    products = image.new_empty(TILE * TILE, rows * columns, outputs)
    narrow = image.new_empty(TILE, STEP, rows * columns * outputs)
    pixels = image.new_empty(STEP, STEP * rows * columns * outputs)
    by_tile = pixels.view(STEP, STEP, rows, columns, outputs).permute(2, 0, 3, 1, 4)
    result = torch.empty((batch, outputs, -(-height // STEP) * STEP, columns * STEP), memory_format=torch.channels_last)
    parts = result.permute(0, 2, 3, 1).view(-1, *by_tile.shape)
    for part, tiles in zip(parts, _tiles(image, INPUT, rows), strict=True):
        torch.bmm(tiles, kernel, out=products)
        torch.bmm(OUTPUT.expand(TILE, STEP, TILE), products.view(TILE, TILE, -1), out=narrow)
        torch.mm(OUTPUT, narrow.view(TILE, -1), out=pixels)
        if bias is None:
            part.copy_(by_tile)
        else:
            torch.add(by_tile, bias, out=part)
    if result.shape[2:] == image.shape[2:]:
        return result
    return result[:, :, :height, :width].clone(memory_format=torch.channels_last)


def _weight_gradient(image: Tensor, gradient: Tensor) -> Tensor:
    channels, outputs = image.shape[1], gradient.shape[1]
    rows = _strip(image, outputs)
    total = image.new_zeros(TILE * TILE, channels, outputs)
    for tiles, slopes in zip(_tiles(image, INPUT, rows), _tiles(gradient, OUTPUT.T, rows), strict=True):
        total.baddbmm_(tiles.transpose(1, 2), slopes)
    return _both_ways(KERNEL.T, total.view(TILE, TILE, channels, outputs)).permute(3, 2, 0, 1)


def _strip(image: Tensor, outputs: int) -> int:
    """Rows of tiles that are computed at a time: they divide all rows."""
    channels, height, width = image.shape[1:]
    num_rows = -(-height // STEP)
    row_bytes = 4 * TILE**2 * -(-width // STEP) * max(channels, outputs)
    most = max(1, STRIP_BYTES * torch.get_num_threads() // row_bytes)
    return next(rows for rows in range(min(most, num_rows), 0, -1) if num_rows % rows == 0)


def _tiles(image: Tensor, matrix: Tensor, rows: int) -> Iterator[Tensor]:
    """Tiles d of the image as M d Mᵀ, 36 T C, strip by strip, each in the memory of the one before.

    Args:
        image: B C H W.
        matrix: M, 6 × 6 for tiles that overlap, 6 × 4 for tiles that do not.
        rows: rows of tiles of a strip.
    """
    channels, height, width = image.shape[1:]
    size, columns = matrix.shape[1], -(-width // STEP)
    margin = (size - STEP) // 2
    strip = image.new_zeros(rows * STEP + 2 * margin, columns * STEP + 2 * margin, channels)
    length = strip[0].numel()
    lines = strip.as_strided((rows, size, length), (STEP * length, length, 1))
    high = image.new_empty(rows, TILE, length)
    squares = high.as_strided(
        (TILE, size, rows, columns, channels), (length, channels, TILE * length, STEP * channels, 1)
    )
    wide = image.new_empty(squares.shape)
    result = image.new_empty(TILE, TILE, rows * columns * channels)
    for plane in image.permute(0, 2, 3, 1):
        for top in range(-margin, height - margin, rows * STEP):
            first, last = max(top, 0), min(top + len(strip), height)
            strip[: first - top].zero_()
            strip[last - top :].zero_()
            strip[first - top : last - top, margin : margin + width].copy_(plane[first:last])
            torch.bmm(matrix.expand(rows, TILE, size), lines, out=high)
            wide.copy_(squares)
            torch.bmm(matrix.expand(TILE, TILE, size), wide.view(TILE, size, -1), out=result)
            yield result.view(TILE * TILE, rows * columns, channels)


def _both_ways(matrix: Tensor, squares: Tensor) -> Tensor:
    """M S Mᵀ for the square matrices S that the first two axes of `squares` hold."""
    size = squares.shape[0]
    half = (matrix @ squares.reshape(size, -1)).view(len(matrix), size, -1)
    return (matrix @ half).view(len(matrix), len(matrix), *squares.shape[2:])
