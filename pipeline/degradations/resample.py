"""Bicubic downsampling and upsampling to the original size, as MATLAB's imresize.

imresize places output sample i at u = (i + ½)/s − ½ of the input (s the scale, indices from 0) and weights the inputs j
around it by h(u − j), with Keys' cubic h, a = −½. For s < 1 the cubic is stretched for antialiasing, s·h(s·(u − j)).
The weights are divided by their sum. Borders are reflected (…2 1 0 | 0 1 2…).
Keys, "Cubic convolution interpolation for digital image processing", IEEE TASSP 1981; MATLAB's imresize.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Float32

from pipeline.degradations.sampling import NAMED_FIELDS_ONLY, Count, Image, SampledParams, check_number

if TYPE_CHECKING:
    from scipy.sparse import csr_array


@dataclass(frozen=True, slots=True, kw_only=True)
class Bicubic:
    """Low resolution: y = imresize(imresize(x, 1/scale), scale), cropped to the size of x.

    scale  1 (identity) to 16; sizes that are no multiples of it are rounded up, as in imresize
    """

    __pydantic_config__ = NAMED_FIELDS_ONLY
    kind: Literal["bicubic"] = "bicubic"
    scale: Count

    def __post_init__(self) -> None:
        check_number(self, "scale", 1, 16)

    def sample(self, rng: np.random.Generator) -> list[SampledParams]:
        """Return the scale; nothing is random."""
        return [{"kind": self.kind, "scale": self.scale}]

    @staticmethod
    def apply(clean: Image, sampled: SampledParams) -> Image:
        """Return the image resized down and up again, each time clipped to [0, 1] as in a file, but not quantised."""
        height, width = clean.shape[:2]
        small = np.clip(downsample(clean, sampled["scale"]), 0, 1)
        large = resize(small, small.shape[0] * sampled["scale"], small.shape[1] * sampled["scale"])
        restored_size: Image = np.clip(large[:height, :width], 0, 1)  # a resize to this size would change the scale
        return restored_size


def downsample(image: Image, scale: int) -> Float32[np.ndarray, "h w C"]:
    """Return imresize(image, 1/scale); values may overshoot [0, 1]."""
    height, width = math.ceil(image.shape[0] / scale), math.ceil(image.shape[1] / scale)
    rows = along_rows(image, weights(image.shape[0], height, 1 / scale))
    return along_columns(rows, weights(image.shape[1], width, 1 / scale))


def resize(image: Image, height: int, width: int) -> Float32[np.ndarray, "{height} {width} C"]:
    """Return imresize(image, [height, width]); values may overshoot [0, 1]."""
    rows = along_rows(image, weights(image.shape[0], height, height / image.shape[0]))
    return along_columns(rows, weights(image.shape[1], width, width / image.shape[1]))


@lru_cache(maxsize=64)
def weights(size: int, new_size: int, scale: float) -> csr_array:
    """Return the sparse matrix, new_size × size, that resizes one axis."""
    from scipy.sparse import (
        csr_array,
    )  # not at the top: it takes 0.2 s, and a check of params.yaml needs the classes alone

    shrink = min(scale, 1.0)
    centre = (np.arange(new_size)[:, None] + 0.5) / scale - 0.5
    reach = 2 / shrink
    inputs = np.floor(centre - reach) + np.arange(math.ceil(2 * reach) + 2)
    weight = cubic(shrink * (centre - inputs))
    weight /= weight.sum(axis=1, keepdims=True)
    reflected = np.mod(inputs, 2 * size).astype(np.intp)
    columns = np.minimum(reflected, 2 * size - 1 - reflected)
    rows = np.broadcast_to(np.arange(new_size)[:, None], columns.shape)
    matrix = csr_array((weight.ravel(), (rows.ravel(), columns.ravel())), shape=(new_size, size), dtype=np.float32)
    matrix.eliminate_zeros()
    return matrix


def cubic(x: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """Return Keys' cubic with a = −½."""
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x**2 + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0.0))


def along_rows(image: Image, matrix: csr_array) -> Float32[np.ndarray, "h W C"]:
    """Resize the first axis; the sparse product sums in a fixed order, a BLAS in one that depends on its threads."""
    product: np.ndarray = matrix @ image.reshape(image.shape[0], -1)
    return product.reshape(-1, image.shape[1], image.shape[2])


def along_columns(image: Image, matrix: csr_array) -> Float32[np.ndarray, "H w C"]:
    """Resize the second axis."""
    return along_rows(image.transpose(1, 0, 2), matrix).transpose(1, 0, 2)
