"""Gaussian noise and JPEG compression of display values.

GaussianNoise    y = x + n,   n ~ N(0, σ²)
Jpeg             y = decode(encode(round(255·clip(x)))) / 255,   as libjpeg does it (ITU-T T.81)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from dgunet.images import MAX_GREY_LEVEL
from pipeline.degradations.sampling import (
    NAMED_FIELDS_ONLY,
    Count,
    Flag,
    Image,
    Range,
    SampledParams,
    check_range,
    generator,
    sample_integer,
    sample_seed,
    sample_uniform,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianNoise:
    """White Gaussian noise. The result is neither clipped to [0, 1] nor quantised, so its standard deviation is σ.

    sigma        standard deviation in grey levels, 0 to 255; a wide range trains a blind denoiser
    per_channel  True: independent in each channel; False: the same noise in all channels (noise of the luma
                 alone)
    """

    __pydantic_config__ = NAMED_FIELDS_ONLY
    kind: Literal["gaussian_noise"] = "gaussian_noise"
    sigma: Range
    per_channel: Flag

    def __post_init__(self) -> None:
        check_range(self, "sigma", 0, MAX_GREY_LEVEL)

    def sample(self, rng: np.random.Generator) -> list[SampledParams]:
        """Sample σ and the seed of the noise."""
        sigma = sample_uniform(rng, self.sigma)
        return [{"kind": self.kind, "sigma": sigma, "per_channel": self.per_channel, "seed": sample_seed(rng)}]

    @staticmethod
    def apply(clean: Image, sampled: SampledParams) -> Image:
        """Return clean + n; values may leave [0, 1]."""
        height, width, channels = clean.shape
        shape = (height, width, channels if sampled["per_channel"] else 1)
        noise = generator(sampled["seed"]).standard_normal(shape, dtype=np.float32)
        noise *= np.float32(sampled["sigma"] / MAX_GREY_LEVEL)
        return clean + noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Jpeg:
    """JPEG compression by libjpeg; values are clipped to [0, 1] and rounded to 8 bits before and after it.

    quality  of libjpeg, whole numbers from 1 to 100
    chroma   "4:2:0" halves the resolution of the colour channels, as most cameras do; "4:4:4" keeps it
    """

    __pydantic_config__ = NAMED_FIELDS_ONLY
    kind: Literal["jpeg"] = "jpeg"
    quality: tuple[Count, Count]
    chroma: Literal["4:2:0", "4:4:4"]

    def __post_init__(self) -> None:
        check_range(self, "quality", 1, 100)

    def sample(self, rng: np.random.Generator) -> list[SampledParams]:
        """Sample the quality."""
        return [{"kind": self.kind, "quality": sample_integer(rng, self.quality), "chroma": self.chroma}]

    @staticmethod
    def apply(clean: Image, sampled: SampledParams) -> Image:
        """Return the image after encoding and decoding; whole grey levels in [0, 1]."""
        codes = np.rint(np.clip(clean, 0, 1) * np.float32(MAX_GREY_LEVEL)).astype(np.uint8)
        sampling = {
            "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
            "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
        }[sampled["chroma"]]
        settings = [cv2.IMWRITE_JPEG_QUALITY, sampled["quality"], cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
        _, file = cv2.imencode(".jpg", codes[:, :, ::-1], settings)  # OpenCV takes blue, green, red
        decoded = cv2.imdecode(file, cv2.IMREAD_COLOR if clean.shape[2] == 3 else cv2.IMREAD_GRAYSCALE)
        compressed = np.asarray(decoded, np.float32).reshape(clean.shape)[:, :, ::-1]
        return compressed / np.float32(MAX_GREY_LEVEL)
