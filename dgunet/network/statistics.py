"""Statistics that the network takes of its features: over the whole image, over windows, or summed over tiles.

    channel attention    mean r                          per channel
    half instance norm   mean x, 1/√(var x + ε)          per channel
    subspace projection  C = (V Vᵀ)⁻¹ V gᵀ               per image; the projection is Vᵀ C

Without a `Statistics` in use, the modules compute them from their input, in training too. A `Statistics` computes them
from sums over blocks of 32×32 pixels of the image, in float64:

    whole image   the total of all blocks
    windows       the total of the blocks within a square window; between the centres of the blocks, values are
                  interpolated linearly, so that no border of a block or window shows

The sums can be gathered tile by tile: the modules run on each tile up to the first value that is not known, add to its
sums and stop (`NotYetKnown`); after the last tile `complete` computes the value, and the next pass comes further.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor
from torch.nn import functional

from dgunet.config import BLOCK_SIZE, LocalStatistics, StatisticsKind

SIDE = BLOCK_SIZE  # of a block whose sums are kept, in pixels
Solve = Callable[[Float64[Tensor, "*b r"], Float64[Tensor, "*b r r"], Float64[Tensor, "*b r n"]], Tensor]


class NotYetKnown(Exception):
    """The sums of a value were gathered on this tile; those of the other tiles are missing."""


@dataclass(frozen=True)
class Tile:
    """Where a tile lies in the padded image, in pixels.

    Attributes:
        rows, columns: of the tile, halo included; they begin at multiples of 32.
        own_rows, own_columns: of the part that no other tile has; they begin at multiples of 32.
    """

    rows: slice
    columns: slice
    own_rows: slice
    own_columns: slice


class Statistics:
    """The statistics of one run of modules over an image, in the order in which the modules request them.

    Args:
        height: of the padded image, in pixels.
        width: likewise.
        local: which statistics are taken over windows; None: none.
        one_tile: whether the image is one tile, so that its sums are complete at once.
    """

    def __init__(self, height: int, width: int, local: LocalStatistics | None, *, one_tile: bool) -> None:
        self._pixels = _lengths(height)[:, None] * _lengths(width)
        self._local = local
        self._one_tile = one_tile
        self._known: list[Float64[Tensor, "rows columns *m"]] = []
        self._sums: Float64[Tensor, "rows columns m"] | None = None
        self._finish: Callable[[], Tensor] | None = None
        self._index = 0
        everything = (slice(0, height), slice(0, width))
        self._tile = Tile(*everything, *everything)

    @property
    def num_known(self) -> int:
        """Number of values that are known."""
        return len(self._known)

    @contextmanager
    def used_on(self, tile: Tile | None = None) -> Iterator[None]:
        """Let the modules that run inside this context use these statistics; None: the tile is the image."""
        self._index = 0
        self._tile = tile or self._tile
        token = _IN_USE.set(self)
        try:
            yield
        finally:
            _IN_USE.reset(token)

    def complete(self) -> None:
        """Compute the value whose sums all tiles have been added to."""
        assert self._finish is not None, "no tile has stopped"
        self._known.append(self._finish())
        self._sums = self._finish = None

    def mean(self, features: Float[Tensor, "1 n h w"]) -> Float[Tensor, "1 n _ _"]:
        """Return the mean of each channel: one for the image, or one for each pixel."""
        means = self._value("attention", features, _sum, lambda sums, counts: sums / counts)
        return self._at_pixels(means, features).to(features.dtype)

    def normalised(
        self, features: Float[Tensor, "1 n h w"], weight: Float[Tensor, " n"], bias: Float[Tensor, " n"], epsilon: float
    ) -> Float32[Tensor, "1 n h w"]:
        """Return weight · (x − mean x) / √(var x + epsilon) + bias of the features x, per channel."""

        def moments(sums: Tensor, counts: Tensor) -> Tensor:
            mean, square = (sums / counts).chunk(2, dim=-1)
            return torch.cat([mean, ((square - mean.square()).clamp_min(0) + epsilon).rsqrt()], dim=-1)

        values = self._value("norm", features, _sum_and_squares, moments)
        mean, inverse_deviation = self._at_pixels(values, features).chunk(2, dim=1)
        return torch.addcmul(bias[:, None, None], features.float() - mean, inverse_deviation * weight[:, None, None])

    def projected(
        self, features: Float32[Tensor, "1 n h w"], basis: Float32[Tensor, "1 r h w"], solve: Solve
    ) -> Float32[Tensor, "1 n h w"]:
        """Return `features` projected onto the span of the rows of `basis`.

        Args:
            features: g, at the resolution of the image.
            basis: V, likewise.
            solve: gives C, for the projection Vᵀ C, of the sums of |V|, V Vᵀ and V gᵀ over the pixels.
        """
        rank, width = basis.shape[1], features.shape[1]

        def coefficients(sums: Tensor, _: Tensor) -> Tensor:
            lengths, gram, products = torch.split(sums, [rank, rank * rank, rank * width], dim=-1)
            shape = sums.shape[:-1]
            return solve(lengths, gram.reshape(*shape, rank, rank), products.reshape(*shape, rank, width))

        both = torch.cat([basis, features], dim=1)
        value = self._value("projection", both, partial(_products, rank=rank), coefficients)
        return self._combined(value.to(features.device, torch.float32), basis)

    def _value(
        self,
        kind: StatisticsKind,
        features: Tensor,
        sums_of: Callable[[Float64[Tensor, "blocks n pixels"]], Float64[Tensor, "blocks m"]],
        value_of: Callable[[Float64[Tensor, "rows columns m"], Float64[Tensor, "rows columns 1"]], Tensor],
    ) -> Float64[Tensor, "rows columns *m"]:
        if self._index == len(self._known):
            local = self._local if self._local is not None and kind in self._local.of else None
            scale = (self._tile.rows.stop - self._tile.rows.start) // features.shape[2]
            self._add(features, scale, sums_of, is_local=local is not None)
            assert self._sums is not None
            counts = self._pixels[:, :, None] / scale**2
            if local is None:
                self._finish = partial(value_of, self._sums, counts.sum(dim=(0, 1), keepdim=True))
            else:
                radius = local.window // SIDE // 2
                sums = self._sums
                self._finish = lambda: value_of(_in_windows(sums, radius), _in_windows(counts, radius))
            if not self._one_tile:
                raise NotYetKnown
            self.complete()
        self._index += 1
        return self._known[self._index - 1]

    def _add(self, features: Tensor, scale: int, sums_of: Callable[[Tensor], Tensor], *, is_local: bool) -> None:
        """Add this tile's part to the sums, a row of blocks at a time: float64 takes twice the memory."""
        tile, side = self._tile, SIDE // scale
        rows, columns = (
            slice((own.start - all_.start) // scale, (own.stop - all_.start) // scale)
            for own, all_ in ((tile.own_rows, tile.rows), (tile.own_columns, tile.columns))
        )
        first_row, first_column = tile.own_rows.start // SIDE, tile.own_columns.start // SIDE
        for index, strip in enumerate(torch.split(features[0, :, rows, columns], side, dim=1)):
            if is_local:
                padded = functional.pad(strip.double(), (0, -strip.shape[2] % side))
                blocks = padded.view(*padded.shape[:2], -1, side).permute(2, 0, 1, 3).flatten(2)
            else:
                blocks = strip.double().flatten(1)[None]
            sums = sums_of(blocks).cpu()
            if self._sums is None:
                shape = self._pixels.shape if is_local else (1, 1)
                self._sums = torch.zeros(*shape, sums.shape[1], dtype=torch.float64)
            if is_local:
                self._sums[first_row + index, first_column : first_column + len(sums)] += sums
            else:
                self._sums[0] += sums

    def _at_pixels(self, values: Float64[Tensor, "rows columns m"], features: Tensor) -> Float32[Tensor, "1 m _ _"]:
        """Return the values at the features' pixels, interpolated between the centres of the blocks."""
        planes = values.permute(2, 0, 1)[None].to(features.device, torch.float32)
        if values.shape[:2] == (1, 1):
            return planes
        for axis, part in ((2, self._tile.rows), (3, self._tile.columns)):
            side = SIDE * features.shape[axis] / (part.stop - part.start)  # of a block, in the features' pixels
            positions = torch.arange(features.shape[axis], device=features.device) + 0.5
            positions = ((positions / side + part.start / SIDE) - 0.5).clamp(0, planes.shape[axis] - 1)
            below = positions.floor().long()
            above = (below + 1).clamp_max(planes.shape[axis] - 1)
            weights = (positions - below).view([-1 if dim == axis else 1 for dim in range(4)])
            planes = torch.lerp(planes.index_select(axis, below), planes.index_select(axis, above), weights)
        return planes

    def _combined(
        self, coefficients: Float32[Tensor, "rows columns r n"], basis: Float32[Tensor, "1 r h w"]
    ) -> Float32[Tensor, "1 n h w"]:
        """Return Vᵀ C, with C interpolated between the centres of the blocks.

        The pixels between the same four centres are one product of matrices for each centre.
        """
        num_rows, num_columns, _, width = coefficients.shape
        height, basis_width = basis.shape[2:]
        if num_rows == num_columns == 1:
            product = basis[0].flatten(1).T @ coefficients[0, 0]
            return product.T.reshape(1, width, height, basis_width)
        half = SIDE // 2
        below, right = -height % SIDE, -basis_width % SIDE
        padded = functional.pad(basis[0], (half, right + half, half, below + half))
        shape = (padded.shape[1] // SIDE, SIDE, padded.shape[2] // SIDE, SIDE)
        cells = padded.view(-1, *shape).permute(1, 3, 2, 4, 0)  # i j a b r
        rows = torch.arange(cells.shape[0], device=basis.device) + self._tile.rows.start // SIDE
        columns = torch.arange(cells.shape[1], device=basis.device) + self._tile.columns.start // SIDE
        ramp = (torch.arange(SIDE, device=basis.device) + 0.5) / SIDE
        total = basis.new_zeros(*cells.shape[:4], width)
        for row, row_weights in ((rows - 1, 1 - ramp), (rows, ramp)):
            for column, column_weights in ((columns - 1, 1 - ramp), (columns, ramp)):
                there = coefficients[row.clamp(0, num_rows - 1)][:, column.clamp(0, num_columns - 1)]
                product = (cells.flatten(2, 3) @ there).view(*cells.shape[:4], width)
                total.addcmul_(product, (row_weights[:, None] * column_weights)[None, None, :, :, None])
        pixels = total.permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)
        return pixels[None, :, half : half + height, half : half + basis_width]


_IN_USE: ContextVar[Statistics | None] = ContextVar("statistics", default=None)


def in_use() -> Statistics | None:
    """Return the statistics that modules must use; None: they compute them from their input."""
    return None if torch.compiler.is_compiling() else _IN_USE.get()


def _lengths(length: int) -> Float64[Tensor, " blocks"]:
    """Return the lengths of the blocks along an axis; the last may be shorter."""
    return torch.tensor([min(SIDE, length - start) for start in range(0, length, SIDE)], dtype=torch.float64)


def _sum(blocks: Float64[Tensor, "blocks n pixels"]) -> Float64[Tensor, "blocks n"]:
    return blocks.sum(dim=2)


def _sum_and_squares(blocks: Float64[Tensor, "blocks n pixels"]) -> Float64[Tensor, "blocks 2*n"]:
    return torch.cat([blocks.sum(dim=2), blocks.square().sum(dim=2)], dim=1)


def _products(blocks: Float64[Tensor, "blocks n pixels"], rank: int) -> Float64[Tensor, "blocks m"]:
    """Return the sums of |V|, V Vᵀ and V gᵀ; the first `rank` channels are V, the others g."""
    basis = blocks[:, :rank]
    products = basis @ blocks.transpose(1, 2)
    return torch.cat(
        [basis.abs().sum(dim=2), products[:, :, :rank].flatten(1), products[:, :, rank:].flatten(1)], dim=1
    )


def _in_windows(sums: Float64[Tensor, "rows columns m"], radius: int) -> Float64[Tensor, "rows columns m"]:
    """Return the totals over squares of 2·radius + 1 blocks, of what lies in the image."""
    for axis in (0, 1):
        length = sums.shape[axis]
        running = torch.cat([torch.zeros_like(sums.narrow(axis, 0, 1)), sums.cumsum(dim=axis)], dim=axis)
        positions = torch.arange(length)
        last, first = (positions + radius + 1).clamp_max(length), (positions - radius).clamp_min(0)
        sums = running.index_select(axis, last) - running.index_select(axis, first)
    return sums
