"""How a degradation's parameters are declared (ranges) and drawn (uniformly), each from its own rng."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float32
from pydantic import Strict

Image = Float32[np.ndarray, "H W C"]
# Strict: a file's "25" is no number and its 1 is no true; nothing is converted silently.
Number = Annotated[float, Strict()]
Count = Annotated[int, Strict()]
Flag = Annotated[bool, Strict()]
Range = tuple[Number, Number]
SampledParams = dict[str, Any]
"""One application: `kind` and plain JSON numbers, all that `apply` needs beside the image."""
NAMED_FIELDS_ONLY: Mapping[str, object] = {"extra": "forbid"}
"""As `__pydantic_config__`: whoever validates a degradation from a file refuses names it does not have."""


def check_range(owner: Any, name: str, lowest: int | float, highest: int | float) -> None:
    """Refuse a field that is not (from, to) with lowest <= from <= to <= highest."""
    value = getattr(owner, name)
    if not (len(value) == 2 and lowest <= value[0] <= value[1] <= highest and math.isfinite(value[1])):
        raise ValueError(
            f"{owner.kind}.{name}: expected [from, to] with {lowest:g} <= from <= to <= {highest:g}, got {list(value)}"
        )


def check_number(owner: Any, name: str, lowest: int | float, highest: int | float) -> None:
    """Refuse a field that is not one number with lowest <= value <= highest."""
    value = getattr(owner, name)
    if not lowest <= value <= highest or not math.isfinite(value):
        raise ValueError(f"{owner.kind}.{name}: expected a number from {lowest:g} to {highest:g}, got {value}")


def sample_uniform(rng: np.random.Generator, bounds: Range) -> float:
    """One number, uniform in [from, to]; a range of one point is that point exactly."""
    return float(bounds[0] + (bounds[1] - bounds[0]) * rng.random())


def sample_integer(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    """One whole number, uniform in from..to, both included."""
    return int(rng.integers(bounds[0], bounds[1] + 1))


def sample_seed(rng: np.random.Generator) -> int:
    """The seed of what is random within an application; below 2^53, which every JSON reader keeps whole."""
    return int(rng.integers(2**53))


def generator(seed: int | Sequence[int]) -> np.random.Generator:
    """An own generator, apart from all global state."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
