"""Rain streaks: drops at several distances, each an optical depth smeared along its fall.

With τ the optical depths of all drops and of the veil added up, and L the light that water scatters towards
the camera,

    y = x + (L − x)·(1 − e^{−τ})

so that streaks occlude what is behind them, and overlap as transmissions do, by multiplication. At distance
d a streak is d times shorter and thinner than a near one and d² times as frequent, until the far rain
merges into a veil (Garg and Nayar, "Vision and Rain", IJCV 2007). Blending is done on display values, as in
the sets that the field trains on.
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
"""Height, width, drawn parameters, distance, rng -> optical depth of what falls at that distance."""
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
    angle_spread  standard deviation of the drops' directions about it in degrees, 0 to 45
    length        length of a near streak in pixels, 1 to 400
    width         full width at half maximum of a near streak in pixels, 0.2 to 20
    density       near streaks per 100 × 100 pixels, 0 to 100
    opacity       share of the background that the middle of a strong streak hides, 0 to 0.99
    brightness    display value of the light that drops and veil scatter, 0 to 1
    veil          share of the background that the mist of the farthest drops hides, 0 to 0.99
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
        """The weather of this picture; where the drops are follows from the seed."""
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
        """y = x + (L − x)·(1 − e^{−τ}); within [0, 1] if clean is."""
        return behind_layers(clean, sampled, streak_layer)


def check_layers(weather: object) -> None:
    """Check what all that falls in layers has in common."""
    check_number(weather, "layers", 1, 8)
    check_range(weather, "depth", 1, 20)
    check_range(weather, "angle", -90, 90)
    check_range(weather, "density", 0, 100)
    check_range(weather, "opacity", 0, 0.99)
    check_range(weather, "brightness", 0, 1)
    check_range(weather, "veil", 0, 0.99)


def behind_layers(clean: Image, sampled: SampledParams, layer: Layer) -> Image:
    """`clean` seen through a veil and through layers at several distances: y = x + (L − x)·(1 − e^{−τ})."""
    rng = generator(sampled["seed"])
    optical_depth = np.full(clean.shape[:2], -np.log1p(-sampled["veil"]), dtype=np.float32)
    for distance in np.geomspace(sampled["depth"], 1.0, sampled["layers"]):
        optical_depth += layer(clean.shape[0], clean.shape[1], sampled, float(distance), rng)
    seen: Image = clean + (np.float32(sampled["brightness"]) - clean) * hidden(optical_depth)
    return seen


def hidden(optical_depth: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W 1"]:
    """The share of the background that is not seen through it, 1 − e^{−τ}."""
    share: Float32[np.ndarray, "H W 1"] = -np.expm1(-optical_depth, dtype=np.float64).astype(np.float32)[:, :, None]
    return share


def streak_layer(
    height: int, width: int, sampled: SampledParams, distance: float, rng: np.random.Generator
) -> Float32[np.ndarray, "H W"]:
    """Optical depth of the streaks at one distance; strength and length vary from drop to drop."""
    length = sampled["length"] / distance
    margin = length  # drops outside whose streaks reach in
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
    """Draw streaks that are less than 45 degrees from the vertical: one dot in each row, shared by two pixels.

    streaks: of each its centre (y, x), how far it reaches from there (y, x), and its strength times half its length,
    which fades towards both ends as 1 − s², s from −1 to 1 along it. Pixel centres are whole numbers.
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
    place = row[inside] * (width + 1) + left.astype(np.int32) + 1  # one more column, for what lies left of the first
    right_weight = weight * (x[inside] - left)
    total = np.bincount(place, weights=weight - right_weight, minlength=height * (width + 1) + 1)
    total += np.bincount(place + 1, weights=right_weight, minlength=height * (width + 1) + 1)
    return total[:-1].reshape(height, width + 1)[:, 1:].astype(np.float32)


def blur_across(depth: Float32[np.ndarray, "H W"], streak_width: float) -> Float32[np.ndarray, "H W"]:
    """Give streaks their width: a Gaussian of that full width at half maximum, less what a dot has.

    A lens shows no streak sharper than about a pixel and a half; those that should be are fainter instead.
    """
    variance = max((streak_width / FWHM_OF_GAUSSIAN) ** 2 - VARIANCE_OF_DOT, VARIANCE_OF_LENS)
    return soften(depth.astype(np.float64), variance)


def soften(depth: Float64[np.ndarray, "H W"], variance: float) -> Float32[np.ndarray, "H W"]:
    """A Gaussian blur, the border reflected."""
    blurred = cv2.GaussianBlur(depth, (0, 0), math.sqrt(variance), borderType=cv2.BORDER_REFLECT)
    softened: Float32[np.ndarray, "H W"] = blurred.astype(np.float32)
    return softened
