"""The section `tune` of params.yaml."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, model_validator

from pipeline.config.params import Section
from pipeline.training.settings import Train

FIXED = ("num_steps", "validate_every")


class _Range(Section):
    @model_validator(mode="after")
    def _is_not_empty(self) -> _Range:
        low, high = self.model_dump()["low"], self.model_dump()["high"]
        if not low < high:
            raise ValueError(f"low ({low}) must be smaller than high ({high})")
        return self


class LogUniform(_Range):
    """Any number between `low` and `high`, uniformly distributed on a logarithmic scale."""

    kind: Literal["log_uniform"]
    low: PositiveFloat
    high: PositiveFloat


class Uniform(_Range):
    """Any number between `low` and `high`, uniformly distributed."""

    kind: Literal["uniform"]
    low: float
    high: float


class Integer(_Range):
    """A whole number from `low` to `high`, both included."""

    kind: Literal["integer"]
    low: int
    high: int


class Choice(Section):
    """One of `values`."""

    kind: Literal["choice"]
    values: Annotated[list[bool | int | float | str], Field(min_length=2)]


Dimension = Annotated[LogUniform | Uniform | Integer | Choice, Field(discriminator="kind")]


class Tune(Section):
    """The section `tune`: search space, budget, and the resources of one trial.

    Attributes:
        grace_steps: no trial is stopped before this step.
        reduction_factor: f of successive halving: at steps grace, grace·f, grace·f², ... one trial in f continues.
        gpus_per_trial: whole GPUs, with one worker on each, or a fraction of a GPU that trials share.
    """

    num_trials: PositiveInt
    grace_steps: PositiveInt
    reduction_factor: Annotated[int, Field(ge=2)]
    time_budget_minutes: PositiveFloat
    cpus_per_trial: PositiveFloat
    gpus_per_trial: Annotated[float, Field(ge=0)]
    search_space: Annotated[dict[str, Dimension], Field(min_length=1)]

    @model_validator(mode="after")
    def _can_be_searched(self) -> Tune:
        if self.gpus_per_trial > 1 and self.gpus_per_trial % 1:
            raise ValueError(f"gpus_per_trial ({self.gpus_per_trial}) must be a whole number, or a fraction of one")
        for name in self.search_space:
            if name in FIXED:
                raise ValueError(f"search_space.{name}: trials with unequal {' or '.join(FIXED)} cannot be compared")
            if not _is_a_value(name):
                raise ValueError(f"search_space.{name}: a task's `train` section has no such value")
        return self


def _is_a_value(name: str) -> bool:
    section: Any = Train
    for part in name.split("."):
        if not (isinstance(section, type) and issubclass(section, BaseModel) and part in section.model_fields):
            return False
        section = section.model_fields[part].annotation
    return not (isinstance(section, type) and issubclass(section, BaseModel))
