"""Restore an image in tiles exactly as a whole, with memory that does not grow with the image.

The network takes statistics over the whole image (`dgunet.network.statistics`). So a stage runs over all tiles several
times: each pass runs up to the next statistic, adds up its sums over the tiles, in float64, and stops there. The last
pass has all statistics and computes the estimate and the features for the next stage. Every pass starts from the output
of the previous stage, which is kept in memory or, above MEMORY_LIMIT, in temporary files.

A tile is read with a halo on each side. The outer pixels of the halo are wrong, because convolutions see the edge.
Within a stage the wrong margin grows as follows, in pixels of the image:

    gradient step 4, shallow features 7, projection 9, level 1/1: 11, level 1/2: 16, level 1/4: 28, bottom 48,
    decoder 1/4: 56, 1/2: 60, 1/1: 62; the features that the next stage mixes from these: 63

With HALO = 64 the part inside the halo is exact up to rounding. Statistics before the bottom level need 24 at most.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import IO

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from dgunet.config import BLOCK_SIZE, DGUNetConfig, LocalStatistics
from dgunet.images import quantise, to_float
from dgunet.network.fusion import ReceivedFeatures, StageFeatures, SubspaceProjection
from dgunet.network.gradient import OPERATOR_WIDTH
from dgunet.network.proximal import NUM_LEVELS
from dgunet.network.statistics import NotYetKnown, Statistics, Tile
from dgunet.network.unfolding import SIZE_MULTIPLE, DGUNet, LastStage, Stage
from dgunet.tensors import to_array, to_tensor

GRID = BLOCK_SIZE  # tiles start at multiples of it, so that sensing blocks and encoder strides are those of the image
HALO, SMALL_HALO = 64, 32
MEMORY_LIMIT = 2**29  # bytes of features between two stages that are kept in memory
TILE_MEMORY = 2**29  # bytes that the features of a tile may take, for `tile_side`
MORE_SPACE = "set TMPDIR to a folder with more space, or choose the statistics `tile` (each tile has its own)"
Array = Shaped[np.ndarray, "H W C"]


@dataclass(frozen=True)
class TilingOptions:
    """How an image is restored in tiles.

    Attributes:
        tile: side in pixels of the tiles without their halo, a multiple of 32.
        num_stages: which estimate is computed: that of this stage.
        local: which statistics are taken over windows; None: none.
    """

    tile: int
    num_stages: int
    local: LocalStatistics | None


def restore_in_tiles(
    model: DGUNet, source: Array, target: Array, options: TilingOptions, share: float | None = None
) -> Iterator[tuple[int, int]]:
    """Compute one estimate of an image; yields, after each tile of each pass, the number of those done and of all.

    Args:
        model: in evaluation mode, on the device where it computes.
        source: the degraded image (blind) or the image to measure (sensing), of the channels of the network, or gray
            for a colour network, which restores it as equal channels and averages them.
        target: an array of the same shape that the estimate is written to.
        options: tiles, stages and statistics.
        share: if given, `target` is a float32 array, and the estimate times `share` is added to it instead.

    Raises:
        ValueError: there is no space for the temporary files, or the network gives NaN or infinite values.
    """
    run = _Run(model, source, target, options, share)
    stages = list(model.stages())[: options.num_stages]
    num_all = sum(_num_statistics(stage) + 1 for stage in stages) * len(run.tiles)
    num_done = 0
    states = [_State(model.config, run.padded, options.tile, following) for following in stages[1:]]
    folder = _folder_for(max((state.size for state in states), default=0))
    try:
        for stage, before, after in zip(stages, [None, *states], [*states, None], strict=True):
            if after is not None:
                after.keep_in(folder)
            for _ in run.stage(stage, before, after):
                num_done += 1
                yield num_done, num_all
    finally:
        for state in states:
            state.drop(before=run.padded[0])


def tile_side(config: DGUNetConfig) -> int:
    """Return the side of the tiles whose features take about TILE_MEMORY, between 128 and 1024 pixels."""
    # Measured: at the worst place some eight feature maps of the width of the first level exist at once; in a narrow
    # network Φ and Φᵀ take more.
    num_maps = max(8 * (config.width + config.growth), 4 * OPERATOR_WIDTH)
    side = int((TILE_MEMORY / (4 * num_maps)) ** 0.5) - 2 * HALO
    return min(max(side // GRID * GRID, 128), 1024)


class _Run:
    """Computes stages, each from the state that the previous one left."""

    def __init__(
        self, model: DGUNet, source: Array, target: Array, options: TilingOptions, share: float | None
    ) -> None:
        self.model, self.source, self.target, self.options, self.share = model, source, target, options, share
        multiple = SIZE_MULTIPLE if model.sensing is None else BLOCK_SIZE
        self.size = source.shape[:2]
        self.padded = (-(-self.size[0] // multiple) * multiple, -(-self.size[1] // multiple) * multiple)
        # The image is padded as `dgunet.network.unfolding.pad` does it: which row and column each pixel is from.
        self.origins = [
            np.pad(np.arange(length), (0, padded - length), mode="reflect" if padded - length < length else "edge")
            for length, padded in zip(self.size, self.padded, strict=True)
        ]
        cuts = [_cuts(length, options.tile) for length in self.padded]
        self.tiles = list(product(*cuts))
        self.device = next(model.parameters()).device

    def stage(self, stage: Stage | LastStage, before: _State | None, after: _State | None) -> Iterator[None]:
        """Compute one stage from the state `before` (None: from the image) into `after` (None: into the target)."""
        statistics = Statistics(*self.padded, self.options.local, one_tile=False)
        for index in range(_num_statistics(stage)):
            at_bottom = isinstance(stage, Stage) and index == _num_statistics(stage) - 1
            for rows, columns in self.tiles:
                tile = self._with_halo(rows, columns, HALO if at_bottom else SMALL_HALO)
                with statistics.used_on(tile), suppress(NotYetKnown):
                    self._run(stage, before, tile)
                    raise AssertionError(f"the stage has {index} statistics, not {_num_statistics(stage)}")
                yield
            statistics.complete()
        for rows, columns in self.tiles:
            tile = self._with_halo(rows, columns, HALO if isinstance(stage, Stage) else SMALL_HALO)
            with statistics.used_on(tile):
                estimate, features = self._run(stage, before, tile)
            if after is None:
                self._write(tile, estimate)
            else:
                assert features is not None, "only the last stage gives no features"
                after.write(tile, estimate, features)
            if before is not None:
                before.drop(before=rows.start - HALO if columns.stop < self.padded[1] else rows.stop - HALO)
            yield
        if before is not None:
            before.drop(before=self.padded[0])

    def _run(self, stage: Stage | LastStage, before: _State | None, tile: Tile) -> tuple[Tensor, StageFeatures | None]:
        image = self._read(tile).to(self.device)
        sensing = self.model.sensing
        degraded = image if sensing is None else sensing.degrade(image)
        received = None if before is None else _Received(before, tile, self.device)
        if received is not None:
            estimate = received.estimate
        else:
            estimate = degraded if sensing is None else sensing.adjoint(degraded)
        result: tuple[Tensor, StageFeatures | None] = stage(estimate, degraded, received, sensing)
        return result

    def _with_halo(self, rows: slice, columns: slice, halo: int) -> Tile:
        wide = [
            slice(max(own.start - halo, 0), min(own.stop + halo, length))
            for own, length in zip((rows, columns), self.padded, strict=True)
        ]
        return Tile(wide[0], wide[1], rows, columns)

    def _read(self, tile: Tile) -> Float32[Tensor, "1 C h w"]:
        image = as_float(self.source[self.origins[0][tile.rows][:, None], self.origins[1][tile.columns]])
        return to_tensor(image).expand(-1, self.model.config.image_channels, -1, -1)

    def _write(self, tile: Tile, estimate: Tensor) -> None:
        rows, columns = tile.own_rows, tile.own_columns
        target = self.target[rows, columns]  # without the padding, which may be all that a tile has
        own = estimate[:, :, *_own_part(tile)][:, :, : target.shape[0], : target.shape[1]]
        if target.shape[2] != own.shape[1]:
            own = own.mean(dim=1, keepdim=True)
        values = to_array(finite(own))
        if self.share is None:
            target[:] = as_type(values, target.dtype)
        else:
            target += self.share * values


def finite(estimate: Tensor) -> Tensor:
    """Return the estimate; raises ValueError for NaN or infinite values."""
    if not bool(estimate.isfinite().all()):
        raise ValueError("the network gave NaN or infinite values: its weights are damaged, or its training diverged")
    return estimate


def as_float(pixels: Array) -> Float32[np.ndarray, "H W C"]:
    """Return pixels of any type as float32, where [0, 1] is black to white."""
    return pixels if pixels.dtype == np.float32 else to_float(pixels)


def as_type(image: Float32[np.ndarray, "H W C"], dtype: np.dtype) -> Array:
    """Return an image as pixels of a type; integers are clipped and rounded."""
    return image if dtype == np.float32 else quantise(image, dtype.type)


def _num_statistics(stage: Stage | LastStage) -> int:
    """Return the number of statistics of a stage: of the attention, of the projection, and of four norms."""
    merge = stage.proximal.merge if isinstance(stage, Stage) else stage.merge
    return 1 + isinstance(merge, SubspaceProjection) + (NUM_LEVELS + 1 if isinstance(stage, Stage) else 0)


def _cuts(length: int, tile: int) -> list[slice]:
    return [slice(start, min(start + tile, length)) for start in range(0, length, tile)]


def _own_part(tile: Tile, scale: int = 1) -> tuple[slice, slice]:
    """Return where the tile's own part lies within the tile, in pixels of a level at 1/scale of the resolution."""
    rows, columns = (
        slice((own.start - wide.start) // scale, (own.stop - wide.start) // scale)
        for own, wide in ((tile.own_rows, tile.rows), (tile.own_columns, tile.columns))
    )
    return rows, columns


class _State:
    """The state between two stages, for the whole image: the estimate, g, and the mixed features of each level."""

    def __init__(self, config: DGUNetConfig, padded: tuple[int, int], band: int, following: Stage | LastStage) -> None:
        """Take bands of `band` rows; `following` is the stage that will read."""
        self._encoder = following.proximal.encoder if isinstance(following, Stage) else None
        widths = [config.image_channels, config.width]
        scales = [1, 1]
        if self._encoder is not None:
            widths += [config.width + (level + 1) * config.growth for level in range(NUM_LEVELS)]
            scales += [2**level for level in range(NUM_LEVELS)]
        shapes = [(padded[0] // s, padded[1] // s, width) for s, width in zip(scales, widths, strict=True)]
        self.size = 4 * sum(math.prod(shape) for shape in shapes)  # bytes
        self.planes = [_Plane(shape, band // s) for s, shape in zip(scales, shapes, strict=True)]
        self.scales = scales

    def keep_in(self, folder: str | None) -> None:
        """Choose where the bands are stored: in temporary files of a folder; None: in memory."""
        for plane in self.planes:
            plane.folder = folder

    def write(self, tile: Tile, estimate: Tensor, features: StageFeatures) -> None:
        """Store a tile's own part."""
        mixed = [] if self._encoder is None else [self._encoder.mixed(features, level) for level in range(NUM_LEVELS)]
        for plane, scale, values in zip(self.planes, self.scales, (estimate, features.output, *mixed), strict=True):
            own = values[0, :, *_own_part(tile, scale)].permute(1, 2, 0).float().cpu().contiguous()
            plane.write(tile.own_rows.start // scale, tile.own_columns.start // scale, own.numpy())

    def drop(self, *, before: int) -> None:
        """Release the bands that end before this row of the image."""
        for plane, scale in zip(self.planes, self.scales, strict=True):
            plane.drop(before // scale)


class _Received(ReceivedFeatures):
    """A tile's part of a `_State`; each plane is read when a stage asks for it."""

    def __init__(self, state: _State, tile: Tile, device: torch.device) -> None:
        self._state, self._tile, self._device = state, tile, device

    @property
    def estimate(self) -> Float32[Tensor, "1 C h w"]:
        """The estimate of the previous stage."""
        return self._read(0)

    @property
    def output(self) -> Float32[Tensor, "1 n h w"]:
        """The features g."""
        return self._read(1)

    def mixed(self, level: int) -> Float32[Tensor, "1 n h w"]:
        """The mixed features of a level."""
        return self._read(2 + level)

    def _read(self, index: int) -> Tensor:
        scale = self._state.scales[index]
        rows, columns = (
            slice(part.start // scale, part.stop // scale) for part in (self._tile.rows, self._tile.columns)
        )
        values = torch.from_numpy(self._state.planes[index].read(rows, columns))
        return values.permute(2, 0, 1)[None].to(self._device)


class _Plane:
    """A float32 array H W C in bands of rows, each in memory or in a temporary file without a name."""

    def __init__(self, shape: tuple[int, int, int], band: int) -> None:
        self.folder: str | None = None
        self._shape, self._band = shape, band
        self._bands: dict[int, Array | IO[bytes]] = {}

    def write(self, row: int, column: int, values: Array) -> None:
        """Store values at this row and column; they lie within one band."""
        index = row // self._band
        if index not in self._bands:
            rows = min(self._band, self._shape[0] - index * self._band)
            shape = (rows, *self._shape[1:])
            self._bands[index] = np.empty(shape, np.float32) if self.folder is None else self._file()
        band, first = self._bands[index], row - index * self._band
        if isinstance(band, np.ndarray):
            band[first : first + len(values), column : column + values.shape[1]] = values
            return
        for offset, line in enumerate(values):
            _write_all(band.fileno(), line, self._position(first + offset, column))

    def read(self, rows: slice, columns: slice) -> Array:
        """Return a part of the array."""
        values = np.empty((rows.stop - rows.start, columns.stop - columns.start, self._shape[2]), np.float32)
        for row in range(rows.start, rows.stop):
            band, within = self._bands[row // self._band], row % self._band
            line = values[row - rows.start]
            if isinstance(band, np.ndarray):
                line[:] = band[within, columns]
            else:
                _read_all(band.fileno(), line, self._position(within, columns.start))
        return values

    def drop(self, before: int) -> None:
        """Release the bands that end before this row."""
        for index in [index for index in self._bands if min((index + 1) * self._band, self._shape[0]) <= before]:
            band = self._bands.pop(index)
            if not isinstance(band, np.ndarray):
                band.close()

    def _position(self, row: int, column: int) -> int:
        return 4 * (row * self._shape[1] + column) * self._shape[2]

    def _file(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self.folder, prefix="dgunet-", buffering=0)


def _folder_for(size: int) -> str | None:
    """Return the folder of temporary files that take this many bytes; None: keep them in memory."""
    if size <= MEMORY_LIMIT:
        return None
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ValueError(
            f"an image of this size needs {size / 1e9:.1f} GB of temporary files, and {folder} has {free / 1e9:.1f} GB "
            f"free: {MORE_SPACE}"
        )
    return folder


def _write_all(file: int, values: np.ndarray, position: int) -> None:
    data = memoryview(values.data).cast("B")
    try:
        while data:
            written = os.pwrite(file, data, position)
            data, position = data[written:], position + written
    except OSError as error:
        raise ValueError(f"temporary files cannot be written ({error.strerror}): {MORE_SPACE}") from error


def _read_all(file: int, values: np.ndarray, position: int) -> None:
    data = memoryview(values.data).cast("B")
    while data:
        count = os.preadv(file, [data], position)
        if count == 0:
            raise OSError("a temporary file is shorter than what was written to it")
        data, position = data[count:], position + count
