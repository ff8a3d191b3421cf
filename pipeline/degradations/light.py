"""Underexposure, and the conversion between display values and linear light.

sRGB (IEC 61966-2-1): linear = display / 12.92 up to 0.04045, ((display + 0.055) / 1.055)^2.4 above. Values outside
[0, 1] follow the same two branches.

    LowLight    y = display(linear(x)·2^(−stops))^gamma
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.degradations.sampling import NAMED_FIELDS_ONLY, Image, Range, SampledParams, check_range, sample_uniform


@dataclass(frozen=True, slots=True, kw_only=True)
class LowLight:
    """Underexposure in linear light, then a tone curve: y = display(linear(x)·2^(−stops))^gamma; without noise.

    stops  underexposure in stops (powers of two), 0 to 10
    gamma  exponent of display values, 0.2 to 5; values above 1 darken the middle tones
    """

    __pydantic_config__ = NAMED_FIELDS_ONLY
    kind: Literal["low_light"] = "low_light"
    stops: Range
    gamma: Range

    def __post_init__(self) -> None:
        check_range(self, "stops", 0, 10)
        check_range(self, "gamma", 0.2, 5)

    def sample(self, rng: np.random.Generator) -> list[SampledParams]:
        """Sample the exposure and the tone curve."""
        return [{"kind": self.kind, "stops": sample_uniform(rng, self.stops), "gamma": sample_uniform(rng, self.gamma)}]

    @staticmethod
    def apply(clean: Image, sampled: SampledParams) -> Image:
        """Return display(linear(x)·2^(−stops))^gamma, in [0, 1]."""
        dark = to_display(to_linear(clean) * np.float32(2.0 ** -sampled["stops"]))
        return power(np.clip(dark, 0, 1), sampled["gamma"])


def to_linear(display: Image) -> Image:
    """Return the linear light of sRGB display values."""
    curve = power(np.maximum((display + np.float32(0.055)) / np.float32(1.055), 0), 2.4)
    return np.where(display <= 0.04045, display / np.float32(12.92), curve)


def to_display(linear: Image) -> Image:
    """Return the sRGB display values of linear light."""
    curve = np.float32(1.055) * power(np.maximum(linear, 0), 1 / 2.4) - np.float32(0.055)
    return np.where(linear <= 0.0031308, linear * np.float32(12.92), curve)


def power(image: Image, exponent: float) -> Image:
    """Return image^exponent of values >= 0, computed in float64."""
    raised: Image = np.empty_like(image)  # NumPy fills it in small buffers, without a float64 copy of the image
    np.power(image, exponent, out=raised, dtype=np.float64, casting="same_kind")
    return raised
