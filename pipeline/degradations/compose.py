"""Compositions of degradations, such as sequence, random order and choice; sampling gives one flat list of steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Discriminator

from pipeline.degradations.blur import CameraShake, Defocus, GaussianBlur
from pipeline.degradations.camera import CameraNoise
from pipeline.degradations.light import LowLight
from pipeline.degradations.noise import GaussianNoise, Jpeg
from pipeline.degradations.rain import RainStreaks
from pipeline.degradations.resample import Bicubic
from pipeline.degradations.sampling import NAMED_FIELDS_ONLY, Count, Image, Number, SampledParams, check_number
from pipeline.degradations.weather import Haze, Snow


@dataclass(frozen=True, slots=True, kw_only=True)
class NoDegradation:
    """The identity, y = x: for real pairs, and for compressive sensing, where the network itself measures the image."""

    __pydantic_config__ = NAMED_FIELDS_ONLY
    kind: Literal["none"] = "none"

    def sample(self, rng: np.random.Generator) -> list[SampledParams]:
        """Return no steps."""
        return []

    @staticmethod
    def apply(clean: Image, sampled: SampledParams) -> Image:
        """Return the same image."""
        return clean


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """All steps in this order; an empty list is the identity."""

    __pydantic_config__ = NAMED_FIELDS_ONLY
    kind: Literal["sequence"] = "sequence"
    steps: tuple[Degradation, ...]

    def sample(self, rng: np.random.Generator) -> list[SampledParams]:
        """Sample all steps, in order."""
        return [sampled for step in self.steps for sampled in step.sample(rng)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomOrder:
    """All steps, in a random order for each image; every order has the same probability."""

    __pydantic_config__ = NAMED_FIELDS_ONLY
    kind: Literal["random_order"] = "random_order"
    steps: tuple[Degradation, ...]

    def sample(self, rng: np.random.Generator) -> list[SampledParams]:
        """Sample all steps, in a random order."""
        return [sampled for index in rng.permutation(len(self.steps)) for sampled in self.steps[index].sample(rng)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OneOf:
    """One of the choices, with a probability proportional to its weight (a number >= 0; the sum need not be 1)."""

    __pydantic_config__ = NAMED_FIELDS_ONLY
    kind: Literal["one_of"] = "one_of"
    choices: tuple[Degradation, ...]
    weights: tuple[Number, ...]

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.choices) or min(self.weights, default=0) < 0 or sum(self.weights) <= 0:
            raise ValueError(
                f"one_of.weights: expected one number >= 0 for each of the {len(self.choices)} choices, "
                f"not all of them 0, got {list(self.weights)}"
            )

    def sample(self, rng: np.random.Generator) -> list[SampledParams]:
        """Sample one of the choices."""
        index = int(rng.choice(len(self.choices), p=np.asarray(self.weights) / sum(self.weights)))
        return self.choices[index].sample(rng)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sometimes:
    """A degradation that is applied with a probability; otherwise the identity."""

    __pydantic_config__ = NAMED_FIELDS_ONLY
    kind: Literal["sometimes"] = "sometimes"
    probability: Number
    step: Degradation

    def __post_init__(self) -> None:
        check_number(self, "probability", 0, 1)

    def sample(self, rng: np.random.Generator) -> list[SampledParams]:
        """Sample the step, or return no steps."""
        return self.step.sample(rng) if rng.random() < self.probability else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """The same degradation several times, sampled anew each time.

    With times = 2 it is the second-order model of Real-ESRGAN (Wang et al., ICCVW 2021, arXiv 2107.10833).

    times  number of applications, 1 to 10
    """

    __pydantic_config__ = NAMED_FIELDS_ONLY
    kind: Literal["repeat"] = "repeat"
    times: Count
    step: Degradation

    def __post_init__(self) -> None:
        check_number(self, "times", 1, 10)

    def sample(self, rng: np.random.Generator) -> list[SampledParams]:
        """Sample the step `times` times."""
        return [sampled for _ in range(self.times) for sampled in self.step.sample(rng)]


SINGLE = (
    NoDegradation,
    GaussianNoise,
    CameraNoise,
    Jpeg,
    CameraShake,
    Defocus,
    GaussianBlur,
    RainStreaks,
    Haze,
    Snow,
    LowLight,
    Bicubic,
)
"""Degradations that are no compositions."""
# With the discriminator pydantic reports an error in a nested section once, at its place.
Degradation = Annotated[
    NoDegradation
    | GaussianNoise
    | CameraNoise
    | Jpeg
    | CameraShake
    | Defocus
    | GaussianBlur
    | RainStreaks
    | Haze
    | Snow
    | LowLight
    | Bicubic
    | Sequence
    | RandomOrder
    | OneOf
    | Sometimes
    | Repeat,
    Discriminator("kind"),
]
