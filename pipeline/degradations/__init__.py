"""Synthetic degradations: sample parameters, record them, and apply them again bit for bit.

A degradation is a frozen dataclass of parameter ranges. Its `sample` turns a random generator into a list of steps,
each a dictionary of plain JSON values (`SampledParams`). The `apply` of a step's kind turns a clean image and the step
into the degraded image; its only randomness is the seed in the step.

The bytes are the same on every CPU. NumPy's transcendental functions and OpenCV's filters round float32 differently
with AVX-512 or fused multiply-add. They run in float64 here and the result is rounded to float32, so that differences
of about 2⁻⁵³ practically never remain.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from pipeline.degradations.compose import SINGLE, Degradation
from pipeline.degradations.sampling import Image, SampledParams, generator

__all__ = ["APPLY", "Degradation", "Degraded", "degrade", "regenerate"]
APPLY: Mapping[str, Callable[[Image, SampledParams], Image]] = {
    str(field.default): single.apply for single in SINGLE for field in fields(single) if field.name == "kind"
}


class Degraded(NamedTuple):
    """The degraded image, and the record from which `regenerate` makes it again."""

    image: Image
    record: dict[str, Any]


def degrade(clean: Image, degradation: Degradation, seed: abc.Sequence[int]) -> Degraded:
    """Degrade an image; global random states are not used.

    Args:
        clean: H W C float32 in [0, 1], C = 1 or 3.
        degradation: the ranges of its parameters.
        seed: whole numbers >= 0 that identify the sample, such as seed, image, tile, copy.

    Returns:
        An image of the same shape and type, outside of [0, 1] only where the degradation documents it, and the record
        {"seed": [...], "steps": [...]} of plain JSON.

    Raises:
        ValueError: `clean` has another shape or type.
    """
    record = {"seed": [int(number) for number in seed], "steps": degradation.sample(generator(seed))}
    return Degraded(regenerate(clean, record), record)


def regenerate(clean: Image, record: Mapping[str, Any]) -> Image:
    """Return the degraded image of a record of `degrade`, bit for bit, from the same clean image."""
    height, width, channels = clean.shape
    if clean.dtype != np.float32 or channels not in (1, 3) or height * width == 0:
        raise ValueError(
            "a clean image is H W C float32 with 1 or 3 channels and at least one pixel, "
            f"got {clean.shape} {clean.dtype}"
        )
    image = clean.copy()
    for step in record["steps"]:
        if step["kind"] not in APPLY:
            raise ValueError(f"the record has a step of unknown kind {step['kind']!r}; known kinds are {sorted(APPLY)}")
        image = np.ascontiguousarray(APPLY[step["kind"]](image, step), dtype=np.float32)
    return image
