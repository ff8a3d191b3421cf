"""Rain streaks in layers at several distances; each drop is an optical depth blurred along its fall.

With τ the sum of the optical depths of all drops and of the veil, and L the light that water scatters to the camera,

    y = x + (L − x)·(1 − e^{−τ})

so that streaks occlude the background, and their transmissions multiply where they overlap. At distance d a streak is
d times shorter and thinner than a near one and d² times as frequent; far rain merges into a veil (Garg and Nayar,
"Vision and Rain", IJCV 2007). Blending uses display values, as the usual training sets do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float32, Float64

from pipeline.degradations.sampling import (
    NAMED_FIELDS_ONLY,
    Count,
    Image,
    Range,
    SampledParams,
    check_number,
    check_range,
    generator,
    sample_seed,
    sample_uniform,
)

Layer = Callable[[int, int, SampledParams, float, np.random.Generator], Float32[np.ndarray, "H W"]]
"""(height, width, sampled parameters, distance, rng) -> optical depth of one layer."""
DENSITY_AREA = 100.0 * 100.0
FWHM_OF_GAUSSIAN = 2.3548
AREA_OF_GAUSSIAN = 1.0645  # of one with unit peak and unit full width at half maximum
VARIANCE_OF_DOT = 1 / 6  # of one shared by two pixels
VARIANCE_OF_LENS = 0.25  # of the sharpest point, in pixels²


@dataclass(frozen=True, slots=True, kw_only=True)
class RainStreaks:
    """Rain from drizzle (Rain100L-like) to storm (Rain100H-like).

    layers        number of distances, 1 to 8, spaced geometrically from `depth` to 1
    depth         distance of the farthest layer in units of the nearest, 1 to 20
    angle         mean direction of fall in degrees from the vertical, -90 to 90, positive to the right
    angle_spread  standard deviation of the direction of a drop in degrees, 0 to 45
    length        mean length of a near streak in pixels, 1 to 400
    width         full width at half maximum of a near streak in pixels, 0.2 to 20
    density       near streaks per 100 × 100 pixels, 0 to 100
    opacity       share of the background hidden by the middle of a strong streak, 0 to 0.99
    brightness    display value L of drops and veil, 0 to 1
    veil          share of the background hidden by the veil of the farthest drops, 0 to 0.99
    """

    __pydantic_config__ = NAMED_FIELDS_ONLY
    kind: Literal["rain_streaks"] = "rain_streaks"
    layers: Count
    depth: Range
    angle: Range
    angle_spread: Range
    length: Range
    width: Range
    density: Range
    opacity: Range
    brightness: Range
    veil: Range

    def __post_init__(self) -> None:
        check_layers(self)
        check_range(self, "angle_spread", 0, 45)
        check_range(self, "length", 1, 400)
        check_range(self, "width", 0.2, 20)

    def sample(self, rng: np.random.Generator) -> list[SampledParams]:
        """Sample the weather; the positions of the drops follow from the seed."""
        names = (
            "depth",
            "angle",
            "angle_spread",
            "length",
            "width",
            "density",
            "opacity",
            "brightness",
            "veil",
        )
        weather = {name: sample_uniform(rng, getattr(self, name)) for name in names}
        return [{"kind": self.kind, "layers": self.layers, **weather, "seed": sample_seed(rng)}]

    @staticmethod
    def apply(clean: Image, sampled: SampledParams) -> Image:
        """Return x + (L − x)·(1 − e^{−τ}), within [0, 1] if clean is."""
        return behind_layers(clean, sampled, streak_layer)


def check_layers(weather: object) -> None:
    """Check the fields that rain and snow have in common."""
    check_number(weather, "layers", 1, 8)
    check_range(weather, "depth", 1, 20)
    check_range(weather, "angle", -90, 90)
    check_range(weather, "density", 0, 100)
    check_range(weather, "opacity", 0, 0.99)
    check_range(weather, "brightness", 0, 1)
    check_range(weather, "veil", 0, 0.99)


def behind_layers(clean: Image, sampled: SampledParams, layer: Layer) -> Image:
    """Return `clean` behind a veil and layers at several distances: x + (L − x)·(1 − e^{−τ}).

    Args:
        clean: H W C in [0, 1].
        sampled: parameters of the weather.
        layer: returns the optical depth of one layer.
    """
    rng = generator(sampled["seed"])
    optical_depth = np.full(clean.shape[:2], -np.log1p(-sampled["veil"]), dtype=np.float32)
    for distance in np.geomspace(sampled["depth"], 1.0, sampled["layers"]):
        optical_depth += layer(clean.shape[0], clean.shape[1], sampled, float(distance), rng)
    seen: Image = clean + (np.float32(sampled["brightness"]) - clean) * hidden(optical_depth)
    return seen


def hidden(optical_depth: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W 1"]:
    """Return the hidden share of the background, 1 − e^{−τ}."""
    share: Float32[np.ndarray, "H W 1"] = -np.expm1(-optical_depth, dtype=np.float64).astype(np.float32)[:, :, None]
    return share


def streak_layer(
    height: int, width: int, sampled: SampledParams, distance: float, rng: np.random.Generator
) -> Float32[np.ndarray, "H W"]:
    """Return the optical depth of the streaks of one layer; strength and length vary between drops.

    Args:
        height: rows of the image.
        width: columns of the image.
        sampled: parameters of the rain.
        distance: distance of the layer in units of the nearest one.
        rng: for positions, directions, lengths and strengths.
    """
    length = sampled["length"] / distance
    margin = length  # for drops outside of the image whose streaks reach into it
    area = (height + 2 * margin) * (width + 2 * margin)
    count = int(rng.poisson(sampled["density"] / DENSITY_AREA * distance**2 * area))
    centre_y = rng.uniform(-margin, height + margin, count)
    centre_x = rng.uniform(-margin, width + margin, count)
    angle = np.deg2rad(sampled["angle"] + sampled["angle_spread"] * rng.standard_normal(count))
    half_length = 0.5 * length * rng.uniform(0.4, 1.6, count)
    strength = -np.log1p(-sampled["opacity"]) * rng.uniform(0.1, 1.0, count)

    reach_y, reach_x = half_length * np.cos(angle), half_length * np.sin(angle)
    streaks = np.stack([centre_y, centre_x, reach_y, reach_x, strength * half_length]).astype(np.float32)
    steep = np.abs(reach_y) >= np.abs(reach_x)
    depth = draw_steep(height, width, streaks[:, steep])
    if not steep.all():
        depth += draw_steep(width, height, streaks[[1, 0, 3, 2, 4]][:, ~steep]).T
    streak_width = sampled["width"] / distance
    return blur_across(depth * np.float32(AREA_OF_GAUSSIAN * streak_width), streak_width)


def draw_steep(height: int, width: int, streaks: Float32[np.ndarray, "5 N"]) -> Float32[np.ndarray, "H W"]:
    """Render streaks less than 45 degrees from the vertical: one point in each row, divided between two pixels.

    Args:
        height: rows of the image.
        width: columns of the image.
        streaks: of each streak its centre (y, x), half its extent (y, x), and its strength times half its length. The
            strength decreases to both ends as 1 − s², s from −1 to 1 along the streak. Pixel centres are whole numbers.
    """
    reach_y, reach_x = np.abs(streaks[2]), np.abs(streaks[3])
    seen = (streaks[0] + reach_y > -1) & (streaks[0] - reach_y < height)
    seen &= (streaks[1] + reach_x > -1) & (streaks[1] - reach_x < width)
    centre_y, centre_x, reach_y, reach_x, strength = streaks[:, seen, None]
    num_rows = int(2 * np.abs(reach_y).max(initial=0)) + 1
    row = np.ceil(centre_y - np.abs(reach_y)).astype(np.int32) + np.arange(num_rows, dtype=np.int32)
    along = (row - centre_y) / np.where(reach_y == 0, np.float32(1), reach_y)
    x = centre_x + along * reach_x
    inside = (along**2 < 1) & (row >= 0) & (row < height) & (x > -1) & (x < width)
    weight = ((1 - along**2) * strength / np.maximum(np.abs(reach_y), np.float32(0.5)))[inside]
    left = np.floor(x[inside])
    place = row[inside] * (width + 1) + left.astype(np.int32) + 1  # one more column, left of the first one
    right_weight = weight * (x[inside] - left)
    total = np.bincount(place, weights=weight - right_weight, minlength=height * (width + 1) + 1)
    total += np.bincount(place + 1, weights=right_weight, minlength=height * (width + 1) + 1)
    return total[:-1].reshape(height, width + 1)[:, 1:].astype(np.float32)


def blur_across(depth: Float32[np.ndarray, "H W"], streak_width: float) -> Float32[np.ndarray, "H W"]:
    """Blur streaks to their width, by a Gaussian of that full width at half maximum, less the variance of a point.

    Behind a lens no streak is narrower than about 1.5 pixels; streaks of a smaller width are fainter instead.
    """
    variance = max((streak_width / FWHM_OF_GAUSSIAN) ** 2 - VARIANCE_OF_DOT, VARIANCE_OF_LENS)
    return soften(depth.astype(np.float64), variance)


def soften(depth: Float64[np.ndarray, "H W"], variance: float) -> Float32[np.ndarray, "H W"]:
    """Return a Gaussian blur with reflected borders."""
    blurred = cv2.GaussianBlur(depth, (0, 0), math.sqrt(variance), borderType=cv2.BORDER_REFLECT)
    softened: Float32[np.ndarray, "H W"] = blurred.astype(np.float32)
    return softened
