"""Gaussian noise: y = x + n, n ~ N(0, σ²), as the field's denoising benchmarks have it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.degradations.drawing import (
    MAX_GREY_LEVEL,
    STRICT,
    Drawn,
    Image,
    Range,
    check_range,
    draw_seed,
    draw_uniform,
    generator,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianNoise:
    """White Gaussian noise; the result is neither clipped to [0, 1] nor quantised, so σ is what the
    variance says.

    sigma        standard deviation, in grey levels of 8 bit, 0 to 255; a wide range makes a blind denoiser
    per_channel  True: independent in each channel; False: the same field in all of them (noise of the luma
                 alone)
    """

    __pydantic_config__ = STRICT
    kind: Literal["gaussian_noise"] = "gaussian_noise"
    sigma: Range
    per_channel: bool

    def __post_init__(self) -> None:
        check_range(self, "sigma", 0, MAX_GREY_LEVEL)

    def draw(self, rng: np.random.Generator) -> list[Drawn]:
        """The σ of this picture and the seed of its noise."""
        sigma = draw_uniform(rng, self.sigma)
        return [{"kind": self.kind, "sigma": sigma, "per_channel": self.per_channel, "seed": draw_seed(rng)}]

    @staticmethod
    def apply(clean: Image, drawn: Drawn) -> Image:
        """clean + n; values may leave [0, 1]."""
        height, width, channels = clean.shape
        shape = (height, width, channels if drawn["per_channel"] else 1)
        noise = generator(drawn["seed"]).standard_normal(shape, dtype=np.float32)
        noise *= np.float32(drawn["sigma"] / MAX_GREY_LEVEL)
        return clean + noise
