"""What happens to a clean image on its way to us: drawn once, written down, and applied again bit for bit.

A degradation is a frozen dataclass of ranges. `draw` turns it and a generator into a list of steps, each a
dictionary of plain JSON numbers; `apply` turns a clean image and a step into an image, and knows no other
randomness than the seed that the step holds.

The same bytes on every CPU: NumPy's transcendental functions and OpenCV's filters round float32 by what the CPU has
(AVX-512, fused multiply-add). They work in float64 here and the result is rounded to float32: what differs is then
some 2⁻⁵³, and practically never survives.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from pipeline.degradations.compose import SINGLE, Degradation
from pipeline.degradations.sampling import Image, SampledParams, generator

__all__ = [
    "Bicubic",
    "CameraNoise",
    "CameraShake",
    "Defocus",
    "Degradation",
    "Degraded",
    "GaussianBlur",
    "GaussianNoise",
    "Haze",
    "Jpeg",
    "LowLight",
    "NoDegradation",
    "OneOf",
    "RainStreaks",
    "RandomOrder",
    "Repeat",
    "Sequence",
    "Snow",
    "Sometimes",
    "degrade",
    "regenerate",
]
APPLY: Mapping[str, Callable[[Image, SampledParams], Image]] = {
    str(field.default): single.apply for single in SINGLE for field in fields(single) if field.name == "kind"
}


class Degraded(NamedTuple):
    """The degraded image, and the record from which `regenerate` makes it again."""

    image: Image
    record: dict[str, Any]


def degrade(clean: Image, degradation: Degradation, seed: abc.Sequence[int]) -> Degraded:
    """Degrade H W C float32 in [0, 1], C = 1 or 3, with a generator of its own.

    seed: whole numbers >= 0 that name the sample (such as seed, image, tile, copy). The result has the
    shape of clean, float32; it leaves [0, 1] only where the degradation's own text says so. The record,
    {"seed": [...], "steps": [...]}, is plain JSON.
    """
    record = {"seed": [int(number) for number in seed], "steps": degradation.sample(generator(seed))}
    return Degraded(regenerate(clean, record), record)


def regenerate(clean: Image, record: Mapping[str, Any]) -> Image:
    """The degraded image that belongs to a record of `degrade`, bit for bit; clean must be the same image."""
    height, width, channels = clean.shape
    if clean.dtype != np.float32 or channels not in (1, 3) or height * width == 0:
        raise ValueError(
            "a clean image is H W C float32 with 1 or 3 channels and at least one pixel, "
            f"got {clean.shape} {clean.dtype}"
        )
    image = clean.copy()
    for step in record["steps"]:
        if step["kind"] not in APPLY:
            raise ValueError(f"this record has a step of unknown kind {step['kind']!r}; known are {sorted(APPLY)}")
        image = np.ascontiguousarray(APPLY[step["kind"]](image, step), dtype=np.float32)
    return image
