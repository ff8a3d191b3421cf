"""Parameters of degradations: types and checks of their ranges, and uniform sampling from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float32
from pydantic import Strict

Image = Float32[np.ndarray, "H W C"]
# Strict: "25" is not converted to a number, and 1 not to true.
Number = Annotated[float, Strict()]
Count = Annotated[int, Strict()]
Flag = Annotated[bool, Strict()]
Range = tuple[Number, Number]
SampledParams = dict[str, Any]
"""Parameters of one application: `kind` and plain JSON values, all that `apply` needs beside the image."""
NAMED_FIELDS_ONLY: Mapping[str, object] = {"extra": "forbid"}
"""`__pydantic_config__` of every degradation: unknown fields are refused."""


def check_range(owner: Any, name: str, lowest: int | float, highest: int | float) -> None:
    """Raise ValueError unless the field is (from, to) with lowest <= from <= to <= highest."""
    value = getattr(owner, name)
    if not (len(value) == 2 and lowest <= value[0] <= value[1] <= highest and math.isfinite(value[1])):
        raise ValueError(
            f"{owner.kind}.{name}: expected [from, to] with {lowest:g} <= from <= to <= {highest:g}, got {list(value)}"
        )


def check_number(owner: Any, name: str, lowest: int | float, highest: int | float) -> None:
    """Raise ValueError unless the field is a number with lowest <= value <= highest."""
    value = getattr(owner, name)
    if not lowest <= value <= highest or not math.isfinite(value):
        raise ValueError(f"{owner.kind}.{name}: expected a number from {lowest:g} to {highest:g}, got {value}")


def sample_uniform(rng: np.random.Generator, bounds: Range) -> float:
    """Return a number, uniform in [from, to]; exact for a range of one point."""
    return float(bounds[0] + (bounds[1] - bounds[0]) * rng.random())


def sample_integer(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    """Return a whole number, uniform in from..to, both included."""
    return int(rng.integers(bounds[0], bounds[1] + 1))


def sample_seed(rng: np.random.Generator) -> int:
    """Return the seed for the randomness of one application; below 2^53, which every JSON reader represents exactly."""
    return int(rng.integers(2**53))


def generator(seed: int | Sequence[int]) -> np.random.Generator:
    """Return a new generator, independent of global random states."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
