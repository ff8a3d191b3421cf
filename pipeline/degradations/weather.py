"""Haze and snow.

Haze, in linear light (Koschmieder)    y = x·t + A·(1 − t),   t = e^(−β·d),   d the distance
Snow                                   y = x + (L − x)·(1 − e^{−τ}),   τ the sum of optical depths, as for rain
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float32

from pipeline.degradations.light import to_display, to_linear
from pipeline.degradations.rain import DENSITY_AREA, FWHM_OF_GAUSSIAN, behind_layers, check_layers, hidden, soften
from pipeline.degradations.sampling import (
    NAMED_FIELDS_ONLY,
    Count,
    Image,
    Range,
    SampledParams,
    check_range,
    generator,
    sample_seed,
    sample_uniform,
)

CLUMPS_PER_FLAKE = 5
SAMPLES_PER_FLAKE = 6  # along its fall during the exposure


@dataclass(frozen=True, slots=True, kw_only=True)
class Haze:
    """Haze or fog over a scene whose distance increases from bottom to top, with a smooth relief.

    beta        optical depth of the farthest point, 0 (clear air) to 10
    airlight    display value of the scattered light A, 0 to 1
    tint        largest difference of a channel of A from it, 0 to 0.2
    relief      share of the relief in the distance, 0 (a plane) to 1
    """

    __pydantic_config__ = NAMED_FIELDS_ONLY
    kind: Literal["haze"] = "haze"
    beta: Range
    airlight: Range
    tint: Range
    relief: Range

    def __post_init__(self) -> None:
        check_range(self, "beta", 0, 10)
        check_range(self, "airlight", 0, 1)
        check_range(self, "tint", 0, 0.2)
        check_range(self, "relief", 0, 1)

    def sample(self, rng: np.random.Generator) -> list[SampledParams]:
        """Sample optical depth, colour of the airlight and relief; the hills follow from the seed."""
        airlight, tint = sample_uniform(rng, self.airlight), sample_uniform(rng, self.tint)
        colour = np.clip(airlight + tint * rng.uniform(-1, 1, 3), 0, 1).tolist()
        beta, relief = sample_uniform(rng, self.beta), sample_uniform(rng, self.relief)
        return [{"kind": self.kind, "beta": beta, "airlight": colour, "relief": relief, "seed": sample_seed(rng)}]

    @staticmethod
    def apply(clean: Image, sampled: SampledParams) -> Image:
        """Return display(x·t + A·(1 − t)), within [0, 1] if clean is."""
        colour = np.array(sampled["airlight"], np.float32).reshape(1, 1, 3)
        airlight = to_linear(colour if clean.shape[2] == 3 else colour.mean(axis=2, keepdims=True))
        depth = distance(clean.shape[0], clean.shape[1], sampled["relief"], generator(sampled["seed"]))
        light = to_linear(clean)
        return to_display(light + (airlight - light) * hidden(np.float32(sampled["beta"]) * depth))


@dataclass(frozen=True, slots=True, kw_only=True)
class Snow:
    """Snowflakes at several distances: soft, uneven clumps, blurred along their fall, and a veil of far snow.

    layers      number of distances, 1 to 8, spaced geometrically from `depth` to 1
    depth       distance of the farthest layer in units of the nearest, 1 to 20
    angle       direction of fall in degrees from the vertical, -90 to 90; standard deviation per flake 15 degrees
    size        full width at half maximum of a near flake in pixels, 0.5 to 40
    motion      fall of a near flake during the exposure in pixels, 0 to 100
    density     near flakes per 100 × 100 pixels, 0 to 100
    opacity     share of the background hidden by the middle of a thick flake, 0 to 0.99
    brightness  display value L of flakes and veil, 0 to 1
    veil        share of the background hidden by the farthest flakes, 0 to 0.99
    """

    __pydantic_config__ = NAMED_FIELDS_ONLY
    kind: Literal["snow"] = "snow"
    layers: Count
    depth: Range
    angle: Range
    size: Range
    motion: Range
    density: Range
    opacity: Range
    brightness: Range
    veil: Range

    def __post_init__(self) -> None:
        check_layers(self)
        check_range(self, "size", 0.5, 40)
        check_range(self, "motion", 0, 100)

    def sample(self, rng: np.random.Generator) -> list[SampledParams]:
        """Sample the weather; the positions of the flakes follow from the seed."""
        names = ("depth", "angle", "size", "motion", "density", "opacity", "brightness", "veil")
        weather = {name: sample_uniform(rng, getattr(self, name)) for name in names}
        return [{"kind": self.kind, "layers": self.layers, **weather, "seed": sample_seed(rng)}]

    @staticmethod
    def apply(clean: Image, sampled: SampledParams) -> Image:
        """Return x + (L − x)·(1 − e^{−τ}), within [0, 1] if clean is."""
        return behind_layers(clean, sampled, flake_layer)


def distance(height: int, width: int, relief: float, rng: np.random.Generator) -> Float32[np.ndarray, "H W"]:
    """Return the distance of each pixel, 0 to 1 (farthest): a tilted plane in perspective, and hills.

    Args:
        height: rows of the image.
        width: columns of the image.
        relief: share of the hills, 0 to 1.
        rng: for tilt and hills.
    """
    tilt = rng.uniform(-0.3, 0.3)
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None] + np.float32(tilt) * np.linspace(
        -0.5, 0.5, width, dtype=np.float32
    )
    plane = 1 / (1 + 3 * np.clip(down, 0, 1))
    coarse = rng.random((5, 5), dtype=np.float32).astype(np.float64)
    hills = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width)
    hills = np.clip(hills, 0, 1).astype(np.float32)
    away: Float32[np.ndarray, "H W"] = np.float32(1 - relief) * plane + np.float32(relief) * hills
    return away


def flake_layer(
    height: int, width: int, sampled: SampledParams, away: float, rng: np.random.Generator
) -> Float32[np.ndarray, "H W"]:
    """Return the optical depth of the flakes of one layer; a flake is a few clumps, blurred along its own fall.

    Args:
        height: rows of the image.
        width: columns of the image.
        sampled: parameters of the snow.
        away: distance of the layer in units of the nearest one.
        rng: for positions, sizes and directions.
    """
    size, motion = sampled["size"] / away, sampled["motion"] / away
    margin = 2 * size + motion
    count = int(rng.poisson(sampled["density"] / DENSITY_AREA * away**2 * (height + 2 * margin) * (width + 2 * margin)))
    centre_y = rng.uniform(-margin, height + margin, (count, 1, 1))
    centre_x = rng.uniform(-margin, width + margin, (count, 1, 1))
    own_size = size * rng.uniform(0.5, 1.3, (count, 1, 1))
    clump_y, clump_x = 0.3 * own_size * rng.standard_normal((2, count, CLUMPS_PER_FLAKE, 1))
    angle = np.deg2rad(sampled["angle"] + 15 * rng.standard_normal((count, 1, 1)))
    along = motion * np.linspace(-0.5, 0.5, SAMPLES_PER_FLAKE)
    y = centre_y + clump_y + along * np.cos(angle)
    x = centre_x + clump_x + along * np.sin(angle)
    clump = 0.6 * size  # full width at half maximum
    strength = -math.log1p(-sampled["opacity"]) * rng.uniform(0.3, 1.0, (count, 1, 1))
    area = math.pi / (4 * math.log(2)) * clump**2  # of a Gaussian with unit peak
    weight = np.broadcast_to(strength * area / SAMPLES_PER_FLAKE * (own_size / size) ** 2 / 2, y.shape)
    row, column = np.rint(y).astype(np.int32), np.rint(x).astype(np.int32)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = row[inside] * width + column[inside]
    depth = np.bincount(place, weights=weight[inside], minlength=height * width)
    return soften(depth.reshape(height, width).astype(np.float64), max((clump / FWHM_OF_GAUSSIAN) ** 2, 0.01))
