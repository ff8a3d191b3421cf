"""Light: display values and the linear light that sensors and air add up; pictures taken with too little of it.

The sRGB transfer (IEC 61966-2-1): linear = display / 12.92 up to 0.04045, ((display + 0.055) / 1.055)^2.4 above.
Values outside [0, 1] follow the same two branches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.degradations.sampling import NAMED_FIELDS_ONLY, Image, Range, SampledParams, check_range, sample_uniform


@dataclass(frozen=True, slots=True, kw_only=True)
class LowLight:
    """Underexposure in linear light, then a darker tone curve: y = display(linear(x)·2^(−stops))^gamma; without noise.

    stops  exposure that is missing, in powers of two, 0 to 10
    gamma  exponent on display values, 0.2 to 5; above 1 darkens the middle tones
    """

    __pydantic_config__ = NAMED_FIELDS_ONLY
    kind: Literal["low_light"] = "low_light"
    stops: Range
    gamma: Range

    def __post_init__(self) -> None:
        check_range(self, "stops", 0, 10)
        check_range(self, "gamma", 0.2, 5)

    def sample(self, rng: np.random.Generator) -> list[SampledParams]:
        """The exposure and the tone curve of this picture."""
        return [{"kind": self.kind, "stops": sample_uniform(rng, self.stops), "gamma": sample_uniform(rng, self.gamma)}]

    @staticmethod
    def apply(clean: Image, sampled: SampledParams) -> Image:
        """y = display(linear(x)·2^(−stops))^gamma, in [0, 1]."""
        dark = to_display(to_linear(clean) * np.float32(2.0 ** -sampled["stops"]))
        return power(np.clip(dark, 0, 1), sampled["gamma"])


def to_linear(display: Image) -> Image:
    """Linear light of sRGB display values."""
    curve = power(np.maximum((display + np.float32(0.055)) / np.float32(1.055), 0), 2.4)
    return np.where(display <= 0.04045, display / np.float32(12.92), curve)


def to_display(linear: Image) -> Image:
    """The sRGB display values of linear light."""
    curve = np.float32(1.055) * power(np.maximum(linear, 0), 1 / 2.4) - np.float32(0.055)
    return np.where(linear <= 0.0031308, linear * np.float32(12.92), curve)


def power(image: Image, exponent: float) -> Image:
    """image^exponent of values >= 0."""
    raised: Image = np.empty_like(image)  # given, it is filled piece by piece: no float64 copy of the picture
    np.power(image, exponent, out=raised, dtype=np.float64, casting="same_kind")
    return raised
