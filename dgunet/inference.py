"""Restore one image: an array of any size in, an array of the same shape and type out.

A large image is restored in tiles, with the statistics of the whole image or of windows of it: up to rounding, the
result is that of the image as a whole (`dgunet.tiling`). If each tile has its own statistics, which is faster and not
exact, tiles overlap. Neighbouring tiles are blended in the middle of their overlap,

    joined = left + w·(right − left),    w from 0 to 1 over the ramp,

which is exact, to the last bit, where both agree. The outer part of every overlap is discarded: near its border, a tile
is computed from padding instead of the pixels beyond it.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import product
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from dgunet.config import LocalStatistics
from dgunet.network import DGUNet, Measurements
from dgunet.network.statistics import Statistics
from dgunet.network.unfolding import padded_size
from dgunet.tensors import to_array, to_tensor
from dgunet.tiling import GRID, TilingOptions, as_float, as_type, finite, restore_in_tiles, tile_side

WHOLE_IMAGE_PIXELS = 1024 * 1024
TILE = 512
OVERLAP = 64
Array = Shaped[np.ndarray, "H W *C"]
Precision = Literal["float32", "bfloat16"]
StatisticsChoice = Literal["whole", "local", "tile"]
Graph = Callable[[Float[Tensor, "1 C H W"]], Float[Tensor, "1 C H W"]]  # from a degraded image to an estimate


def restore(
    model: DGUNet,
    array: Array,
    *,
    tile: int | None = None,
    statistics: StatisticsChoice | None = None,
    num_stages: int | None = None,
    overlap: int = OVERLAP,
    self_ensemble: bool = False,
    precision: Precision = "float32",
    device: str | torch.device | None = None,
    fast: Graph | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Array:
    """Restore one image: H W, or H W C with gray, gray and alpha, RGB or RGBA.

    Args:
        model: a network in evaluation mode. A colour network restores gray as three equal channels and averages
            them; a gray network restores each colour channel separately; a sensing network measures each tile first.
        array: uint8, uint16, or float32 where [0, 1] is black to white and values outside are kept. Alpha is
            returned unchanged.
        tile: side in pixels of the tiles, a multiple of 32 and at least 3 overlaps; an image no larger than one tile is
            restored as a whole. None: so is an image of up to 1024·1024 pixels; a larger one is restored in tiles that
            take about 512 MB, or in tiles of 512 pixels where each tile has its own statistics.
        statistics: where the network takes the statistics of its features: of the `whole` image; `local`, over the
            windows of `model.local_statistics`; of each `tile`, some three times as fast, but a large image then
            differs from the one restored as a whole. None: `local` if the model has such windows, else `whole`.
        num_stages: return the estimate after this many stages; None: after all.
        overlap: pixels that neighbouring tiles share where each has its own statistics, a multiple of 32.
        self_ensemble: average over the 8 flips and rotations by 90°; eight times the work.
        precision: bfloat16 is faster on devices that support it, and less exact. The metrics of a model are measured
            in float32 (on CUDA with torch's default: convolutions in TF32 unless torch.backends.cudnn.allow_tf32 is
            False).
        device: the model is moved there; None: it stays on its device.
        fast: the graph of the model, from `dgunet.fast.load_graph` with the same `num_stages` and precision. It is used
            for statistics `whole` if the image is not cut into tiles, and for statistics `tile`; in all other cases the
            model itself computes.
        progress: called after each tile with the number of finished tiles and of all tiles; tiles count once for each
            pass over the image.

    Raises:
        ValueError: shape, type or options are not as above, the image or the output of the network has NaN or infinite
            values, or there is no space for temporary files.
    """
    _check(model, array, tile, overlap, precision)
    local = _local(model, statistics)
    count = _checked_stages(model, num_stages)
    if device is not None:
        model.to(device)
    channels = array.reshape(*array.shape[:2], -1)
    num_colours = channels.shape[2] - (channels.shape[2] in (2, 4))
    restored = channels.copy()
    colours, target = channels[:, :, :num_colours], restored[:, :, :num_colours]
    height, width = channels.shape[:2]
    is_whole = height * width <= WHOLE_IMAGE_PIXELS if tile is None else max(height, width) <= tile
    compute = partial(
        _estimate,
        model,
        self_ensemble=self_ensemble,
        precision=precision,
        local=local,
        num_stages=count,
        fast=fast if local is None else None,
    )
    progress = progress or (lambda num_done, num_all: None)
    if is_whole:
        target[:] = as_type(compute(as_float(colours)), array.dtype)
        progress(1, 1)
    elif statistics == "tile" or not model.config.full_image:  # blocks of 32×32 pixels have their own statistics
        _restore_blended(compute, colours, target, tile=tile or TILE, overlap=overlap, progress=progress)
    else:
        options = TilingOptions(tile or tile_side(model.config), count or model.config.num_stages, local)
        with torch.inference_mode(), _autocast(model, precision):
            _restore_exactly(model, colours, target, options, self_ensemble=self_ensemble, progress=progress)
    return restored.reshape(array.shape)


def estimates(model: DGUNet, degraded: Float[Tensor, "1 C H W"] | Measurements) -> tuple[Float[Tensor, "1 C H W"], ...]:
    """Return all K estimates of a degraded image or of measurements, with the statistics that `restore` takes."""
    with _statistics(model, degraded, model.local_statistics):
        result: tuple[Tensor, ...] = model(degraded)
    return result


def _restore_exactly(
    model: DGUNet,
    colours: Array,
    target: Array,
    options: TilingOptions,
    *,
    self_ensemble: bool,
    progress: Callable[[int, int], None],
) -> None:
    """Restore `colours` into `target` in tiles, a group of channels at a time that the network takes."""
    num_colours = colours.shape[2]
    groups = (
        [slice(0, num_colours)] if model.config.image_channels == 3 else [slice(c, c + 1) for c in range(num_colours)]
    )
    turns = [(quarter, flip) for quarter in range(4) for flip in (1, -1)] if self_ensemble else [(0, 1)]
    total = np.zeros(target.shape, np.float32) if self_ensemble else target
    num_runs = len(groups) * len(turns)
    for index, (group, (quarter, flip)) in enumerate(product(groups, turns)):
        source, into = (np.rot90(array[:, :, group], quarter)[:, ::flip] for array in (colours, total))
        share = 1 / len(turns) if self_ensemble else None
        for num_done, num_all in restore_in_tiles(model, source, into, options, share):
            progress(index * num_all + num_done, num_runs * num_all)
    if self_ensemble:
        for row in range(0, len(target), TILE):
            target[row : row + TILE] = as_type(total[row : row + TILE], target.dtype)


def _restore_blended(
    compute: Callable[[Float32[np.ndarray, "h w C"]], Float32[np.ndarray, "h w C"]],
    colours: Array,
    target: Array,
    *,
    tile: int,
    overlap: int,
    progress: Callable[[int, int], None],
) -> None:
    """Restore `colours` into `target` in overlapping tiles, each as an image of its own."""
    rows, columns = (_cuts(length, tile, overlap) for length in colours.shape[:2])
    num_done = 0

    def restored_tile(row: slice, column: slice) -> Float32[np.ndarray, "h w C"]:
        nonlocal num_done
        estimate = compute(as_float(colours[row, column]))
        num_done += 1
        progress(num_done, len(rows) * len(columns))
        return estimate

    def restored_row(row: slice) -> Float32[np.ndarray, "h W C"]:
        tiles = ((column.start, restored_tile(row, column).swapaxes(0, 1)) for column in columns)
        joined = np.empty((row.stop - row.start, *colours.shape[1:]), np.float32)
        for start, part in _joined(tiles, overlap // 2):
            joined[:, start : start + len(part)] = part.swapaxes(0, 1)
        return joined

    for start, part in _joined(((row.start, restored_row(row)) for row in rows), overlap // 2):
        target[start : start + len(part)] = as_type(part, target.dtype)


def _check(model: DGUNet, array: Array, tile: int | None, overlap: int, precision: str) -> None:
    if not isinstance(array, np.ndarray):
        raise ValueError(f"the image is a {type(array).__name__}; give a NumPy array H W, or H W C")
    if array.dtype not in (np.uint8, np.uint16, np.float32):
        raise ValueError(f"the image has type {array.dtype}; give uint8, uint16, or float32 in [0, 1]")
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] > 4):
        raise ValueError(f"the image has shape {array.shape}; give one image: H W, or H W C with 1 to 4 channels")
    if array.dtype == np.float32 and not np.isfinite(array).all():
        raise ValueError("the image has NaN or infinite values")
    if model.config.image_channels not in (1, 3):
        raise ValueError(
            f"a network of {model.config.image_channels} channels cannot restore photographs; it needs 1 or 3"
        )
    if precision not in get_args(Precision):
        raise ValueError(f"precision: must be one of {', '.join(get_args(Precision))}, is {precision!r}")
    if overlap < GRID or overlap % GRID or (tile is not None and (tile % GRID or tile < 3 * overlap)):
        raise ValueError(f"tile {tile}, overlap {overlap}: give multiples of {GRID}, the tile at least 3 overlaps")


def _local(model: DGUNet, choice: StatisticsChoice | None) -> LocalStatistics | None:
    if choice is not None and choice not in get_args(StatisticsChoice):
        raise ValueError(f"statistics: must be one of {', '.join(get_args(StatisticsChoice))}, is {choice!r}")
    if choice == "local" and model.local_statistics is None:
        raise ValueError("statistics: this model has no local statistics; its config.json names no windows")
    return model.local_statistics if choice in (None, "local") else None


def _checked_stages(model: DGUNet, num_stages: int | None) -> int | None:
    if num_stages is None or num_stages == model.config.num_stages:
        return None
    if not 1 <= num_stages < model.config.num_stages:
        raise ValueError(f"num_stages: this model has stages 1 to {model.config.num_stages}, not {num_stages}")
    return num_stages


def _cuts(length: int, tile: int, overlap: int) -> list[slice]:
    """Return the tiles of one axis: evenly spaced, starting on the grid; the last one ends at the border."""
    if length <= tile:
        return [slice(0, length)]
    count = math.ceil((length - overlap) / (tile - overlap))
    starts = [index * (length - tile) // (count - 1) // GRID * GRID for index in range(count)]
    return [slice(start, start + tile) for start in starts[:-1]] + [slice(starts[-1], length)]


def _joined(
    tiles: Iterable[tuple[int, Float32[np.ndarray, "_ _ C"]]], ramp: int
) -> Iterator[tuple[int, Float32[np.ndarray, "_ _ C"]]]:
    """Blend overlapping tiles along the first axis; yields parts to write in order, where later ones overwrite."""
    previous, previous_start = None, 0
    for start, tile in tiles:
        first = start
        if previous is not None:
            overlap = previous_start + len(previous) - start
            offset = (overlap - ramp) // 2
            weight = ((np.arange(ramp, dtype=np.float32) + 0.5) / ramp)[:, None, None]
            weight = weight * weight * (3 - 2 * weight)  # smoothstep: slope 0 at both ends
            first = start + offset
            left = previous[first - previous_start :][:ramp]
            tile[offset : offset + ramp] = left + weight * (tile[offset : offset + ramp] - left)
        yield first, tile[first - start :]
        previous, previous_start = tile, start


def _estimate(
    model: DGUNet,
    image: Float32[np.ndarray, "H W C"],
    *,
    self_ensemble: bool,
    precision: Precision,
    local: LocalStatistics | None,
    num_stages: int | None,
    fast: Graph | None,
) -> Float32[np.ndarray, "H W C"]:
    compute = partial(_last_estimate, model, local=local, num_stages=num_stages, fast=fast)
    with torch.inference_mode(), _autocast(model, precision):
        degraded = to_tensor(image).to(_device(model))
        return to_array(finite(_ensemble(compute, degraded) if self_ensemble else compute(degraded)))


def _device(model: DGUNet) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _autocast(model: DGUNet, precision: Precision) -> torch.autocast:
    return torch.autocast(_device(model).type, torch.bfloat16, enabled=precision == "bfloat16")


def _ensemble(compute: Callable[[Tensor], Tensor], degraded: Float[Tensor, "1 C H W"]) -> Float[Tensor, "1 C H W"]:
    total = torch.zeros_like(degraded)
    for quarter_turns in range(4):
        rotated = degraded.rot90(quarter_turns, (2, 3))
        total += compute(rotated).rot90(-quarter_turns, (2, 3))
        total += compute(rotated.flip(3)).flip(3).rot90(-quarter_turns, (2, 3))
    return total / 8


def _last_estimate(
    model: DGUNet,
    degraded: Float[Tensor, "1 C H W"],
    *,
    local: LocalStatistics | None,
    num_stages: int | None,
    fast: Graph | None,
) -> Float[Tensor, "1 C H W"]:
    num_channels = model.config.image_channels
    compute = partial(_last_estimate, model, local=local, num_stages=num_stages, fast=fast)
    if degraded.shape[1] == 1 and num_channels == 3:
        return compute(degraded.expand(-1, 3, -1, -1)).mean(dim=1, keepdim=True)
    if degraded.shape[1] == 3 and num_channels == 1:
        return torch.cat([compute(degraded[:, [index]]) for index in range(3)], dim=1)
    if fast is not None:
        return fast(degraded)
    given = model.network_input(degraded, degraded)
    with _statistics(model, given, local):
        estimates: tuple[Tensor, ...] = model(given) if num_stages is None else model(given, num_stages)
    return estimates[-1].float()


def _statistics(
    model: DGUNet, degraded: Tensor | Measurements, local: LocalStatistics | None
) -> AbstractContextManager[None]:
    """Have the network take its statistics over windows; of blocks that it restores one by one, there are none."""
    if local is None or not model.config.full_image:
        return nullcontext()
    return Statistics(*padded_size(degraded), local, one_tile=True).used_on()
