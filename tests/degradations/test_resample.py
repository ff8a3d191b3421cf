"""Bicubic resampling against the algorithm of MATLAB's imresize, sample by sample, and against Pillow."""

import math

import numpy as np
import pytest
from PIL import Image

from pipeline.degradations import degrade
from pipeline.degradations.resample import Bicubic, downsample, resize


def imresize(image: np.ndarray, scale: float, new_size: tuple[int, int]) -> np.ndarray:
    """The documented algorithm in float64, one output sample after the other, places counted from 1 as MATLAB does."""

    def cubic(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    result = image.astype(np.float64)
    for axis, length in enumerate(new_size):
        size = image.shape[axis]
        scale_factor = min(scale, 1.0)
        rows = []
        for place in range(1, length + 1):
            centre = place / scale + 0.5 * (1 - 1 / scale)
            left = math.floor(centre - 2 / scale_factor)
            around = range(left, left + math.ceil(4 / scale_factor) + 2)
            weights = [scale_factor * cubic(scale_factor * (centre - near)) for near in around]
            period = [*range(1, size + 1), *range(size, 0, -1)]
            taken = [np.take(result, period[(near - 1) % (2 * size)] - 1, axis=axis) for near in around]
            rows.append(sum(w * t for w, t in zip(weights, taken, strict=True)) / sum(weights))
        result = np.stack(rows, axis=axis)
    return result


def texture(height: int, width: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(height * width)
    return np.round(rng.random((height, width, channels)) * 255).astype(np.float32) / np.float32(255)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(24, 36), (25, 31), (7, 5), (1, 3), (1, 1)])
def test_downsample_equals_imresize(scale: int, size: tuple[int, int]) -> None:
    image = texture(*size)
    expected = imresize(image, 1 / scale, (math.ceil(size[0] / scale), math.ceil(size[1] / scale)))
    np.testing.assert_allclose(downsample(image, scale), expected, atol=2e-6)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_resize_equals_imresize(scale: int) -> None:
    image = texture(9, 11)
    expected = imresize(image, scale, (9 * scale, 11 * scale))
    np.testing.assert_allclose(resize(image, 9 * scale, 11 * scale), expected, atol=2e-6)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_downsample_equals_pillow_away_from_the_border(scale: int) -> None:
    image = texture(24 * scale, 20 * scale, 1)
    pillow = Image.fromarray(image[:, :, 0]).resize((20, 24), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(downsample(image, scale)[3:-3, 3:-3, 0], np.asarray(pillow)[3:-3, 3:-3], atol=2e-6)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_constants_and_ramps_are_kept(scale: int) -> None:
    flat = np.full((13, 17, 3), 0.3, np.float32)
    np.testing.assert_allclose(degrade(flat, Bicubic(scale=scale), [0]).image, flat, atol=1e-6)
    margin = 5 * scale
    for length in (60, 61):  # 61 divides by no scale: the picture must stay where it was all the same
        ramp = np.broadcast_to(np.linspace(0.1, 0.9, length, dtype=np.float32)[:, None, None], (length, length, 1))
        back = degrade(np.ascontiguousarray(ramp), Bicubic(scale=scale), [0]).image
        np.testing.assert_allclose(back[margin:-margin], ramp[margin:-margin], atol=1e-5)


def test_antialiasing_removes_high_frequencies() -> None:
    stripes = np.zeros((64, 64, 1), np.float32)
    stripes[:, ::2] = 1
    assert downsample(stripes, 4)[:, 4:-4].std() < 0.02


def test_downsample_is_linear() -> None:
    one, other = texture(18, 22), texture(18, 23)[:, :22]
    together = downsample(2 * one - 3 * other, 3)
    np.testing.assert_allclose(together, 2 * downsample(one, 3) - 3 * downsample(other, 3), atol=5e-6)


def test_an_invalid_scale_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bicubic\.scale"):
        Bicubic(scale=0)
