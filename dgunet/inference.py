"""Restore one image: an array of any size in, an array of the same shape and type out.

A large image is cut into overlapping tiles. Neighbouring tiles are blended in the middle of their overlap,

    joined = left + w·(right − left),    w from 0 to 1 over the ramp,

which is exact, to the last bit, where both agree. The outer part of every overlap is discarded: there a tile sees only
padding. Tiles change the statistics that the network computes over its whole input (half instance norm, channel
attention, subspace projection); the training patches are smaller than the tiles.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from dgunet.images import quantise, to_float
from dgunet.network import DGUNet
from dgunet.tensors import to_array, to_tensor

WHOLE_IMAGE_PIXELS = 1024 * 1024
TILE = 512
OVERLAP = 64
GRID = 32  # tiles start at multiples of it, so that sensing blocks and encoder strides are those of the whole image
Array = Shaped[np.ndarray, "H W *C"]
Precision = Literal["float32", "bfloat16"]


def restore(
    model: DGUNet,
    array: Array,
    *,
    tile: int | None = None,
    overlap: int = OVERLAP,
    self_ensemble: bool = False,
    precision: Precision = "float32",
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Array:
    """Restore one image: H W, or H W C with gray, gray and alpha, RGB or RGBA.

    Args:
        model: a network in evaluation mode. A colour network restores gray as three equal channels and averages
            them; a gray network restores each colour channel separately; a sensing network measures each tile first.
        array: uint8, uint16, or float32 where [0, 1] is black to white and values outside are kept. Alpha is
            returned unchanged.
        tile: side in pixels of the tiles, a multiple of 32 and at least 3 overlaps. None: an image of up to 1024·1024
            pixels is restored as a whole, a larger one in tiles of 512.
        overlap: pixels that neighbouring tiles share, a multiple of 32.
        self_ensemble: average over the 8 flips and rotations by 90°; eight times the work.
        precision: bfloat16 is faster on devices that support it, and less exact. The metrics of a model are measured
            in float32 (on CUDA with torch's default: convolutions in TF32 unless torch.backends.cudnn.allow_tf32 is
            False).
        device: the model is moved there; None: it stays on its device.
        progress: called after each tile with the number of finished tiles and of all tiles.

    Raises:
        ValueError: shape, type or options are not as above, or the image or the output of the network has NaN or
            infinite values.
    """
    _check(model, array, tile, overlap, precision)
    if device is not None:
        model.to(device)
    channels = array.reshape(*array.shape[:2], -1)
    num_colours = channels.shape[2] - (channels.shape[2] in (2, 4))
    restored = channels.copy()
    height, width = channels.shape[:2]
    if tile is None:
        tile = max(height, width) if height * width <= WHOLE_IMAGE_PIXELS else TILE
    rows, columns = _cuts(height, tile, overlap), _cuts(width, tile, overlap)
    num_done = 0

    def restored_tile(row: slice, column: slice) -> Float32[np.ndarray, "h w C"]:
        nonlocal num_done
        estimate = _estimate(model, _as_float(channels[row, column, :num_colours]), self_ensemble, precision)
        num_done += 1
        if progress is not None:
            progress(num_done, len(rows) * len(columns))
        return estimate

    def restored_row(row: slice) -> Float32[np.ndarray, "h W C"]:
        tiles = ((column.start, restored_tile(row, column).swapaxes(0, 1)) for column in columns)
        joined = np.empty((row.stop - row.start, width, num_colours), np.float32)
        for start, part in _joined(tiles, overlap // 2):
            joined[:, start : start + len(part)] = part.swapaxes(0, 1)
        return joined

    for start, part in _joined(((row.start, restored_row(row)) for row in rows), overlap // 2):
        restored[start : start + len(part), :, :num_colours] = _as_type(part, array.dtype)
    return restored.reshape(array.shape)


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
    model: DGUNet, image: Float32[np.ndarray, "H W C"], self_ensemble: bool, precision: Precision
) -> Float32[np.ndarray, "H W C"]:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        degraded = to_tensor(image).to(device)
        estimate = _ensemble(model, degraded) if self_ensemble else _last_estimate(model, degraded)
    if not bool(estimate.isfinite().all()):
        raise ValueError("the network gave NaN or infinite values: its weights are damaged, or its training diverged")
    return to_array(estimate)


def _ensemble(model: DGUNet, degraded: Float[Tensor, "1 C H W"]) -> Float[Tensor, "1 C H W"]:
    total = torch.zeros_like(degraded)
    for quarter_turns in range(4):
        rotated = degraded.rot90(quarter_turns, (2, 3))
        total += _last_estimate(model, rotated).rot90(-quarter_turns, (2, 3))
        total += _last_estimate(model, rotated.flip(3)).flip(3).rot90(-quarter_turns, (2, 3))
    return total / 8


def _last_estimate(model: DGUNet, degraded: Float[Tensor, "1 C H W"]) -> Float[Tensor, "1 C H W"]:
    num_channels = model.config.image_channels
    if degraded.shape[1] == 1 and num_channels == 3:
        return _last_estimate(model, degraded.expand(-1, 3, -1, -1)).mean(dim=1, keepdim=True)
    if degraded.shape[1] == 3 and num_channels == 1:
        return torch.cat([_last_estimate(model, degraded[:, [index]]) for index in range(3)], dim=1)
    estimates: tuple[Tensor, ...] = model(model.network_input(degraded, degraded))
    return estimates[-1].float()


def _as_float(channels: Shaped[np.ndarray, "H W C"]) -> Float32[np.ndarray, "H W C"]:
    return channels if channels.dtype == np.float32 else to_float(channels)


def _as_type(image: Float32[np.ndarray, "H W C"], dtype: np.dtype) -> Shaped[np.ndarray, "H W C"]:
    return image if dtype == np.float32 else quantise(image, dtype.type)
