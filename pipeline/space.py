"""What a search may change, and how much it may cost: the section `tune` of params.yaml.

A value is named by its dotted place in a task's `train` section: `learning_rate`, `network.width`. A dimension is
where it may lie. Reports are compared step by step, so what sets the number of steps or of reports is no dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations, product
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, model_validator

from pipeline.params import ParamsError, Section, Train, validated

SIGNIFICANT_DIGITS = 3  # of a float that is tried: what is proposed is what was tried, and can be read
FIXED = ("num_steps", "validate_every")


class _Range(Section):
    @model_validator(mode="after")
    def _is_not_empty(self) -> _Range:
        low, high = self.model_dump()["low"], self.model_dump()["high"]
        if not low < high:
            raise ValueError(f"low ({low}) must be smaller than high ({high})")
        return self


class LogUniform(_Range):
    """Any number between `low` and `high`, each power of ten as likely as the next."""

    kind: Literal["log_uniform"]
    low: PositiveFloat
    high: PositiveFloat


class Uniform(_Range):
    """Any number between `low` and `high`."""

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
    """A search: its space, its budget, and what one trial uses of the cluster.

    grace_steps: no trial is stopped before so many steps. reduction_factor: of the trials at steps grace, grace·f,
    grace·f², ... about one in f goes on (successive halving). gpus_per_trial: whole GPUs, one worker on each, or a
    fraction of one, shared by trials.
    """

    num_trials: PositiveInt
    grace_steps: PositiveInt
    reduction_factor: Annotated[int, Field(ge=2)]
    time_budget_minutes: PositiveFloat
    cpus_per_trial: PositiveFloat
    gpus_per_trial: Annotated[float, Field(ge=0)]
    space: Annotated[dict[str, Dimension], Field(min_length=1)]

    @model_validator(mode="after")
    def _can_be_searched(self) -> Tune:
        if self.gpus_per_trial > 1 and self.gpus_per_trial % 1:
            raise ValueError(f"gpus_per_trial ({self.gpus_per_trial}) must be a whole number, or a fraction of one")
        for name in self.space:
            if name in FIXED:
                raise ValueError(f"space.{name}: trials with unequal {' or '.join(FIXED)} cannot be compared")
            if not _is_a_value(name):
                raise ValueError(f"space.{name}: a task's `train` section has no such value")
        return self


def rounded(space: Mapping[str, Dimension], drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `drawn` values as they are tried: floats of a range with three significant digits, never outside."""
    return {name: _rounded(space[name], value) for name, value in drawn.items()}


def changed(train: Train, values: Mapping[str, Any]) -> Train:
    """Return the recipe with some of its values changed; ParamsError where that is no valid recipe."""
    return validated(nested(values, train.model_dump()), Train, "train")


def nested(values: Mapping[str, Any], content: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a copy of `content` with the dotted `values` in their places."""
    tree = dict(content or {})
    for name, value in values.items():
        first, _, rest = name.partition(".")
        tree[first] = nested({rest: value}, tree.get(first)) if rest else value
    return tree


def current(train: Train, space: Mapping[str, Dimension]) -> dict[str, Any] | None:
    """Return the values that `train` has now, None where one of them lies outside of the space."""
    values: dict[str, Any] = {}
    for name, dimension in space.items():
        value: Any = train
        for part in name.split("."):
            value = getattr(value, part)
        inside = value in dimension.values if isinstance(dimension, Choice) else _lies_in(dimension, value)
        if not inside:
            return None
        values[name] = value
    return values


def check(tune: Tune, train: Train, task: str) -> None:
    """Raise ParamsError unless every pair of extreme values of the space is a valid recipe of `task`."""
    if tune.grace_steps > train.num_steps:
        raise ParamsError(f"tune.grace_steps ({tune.grace_steps}) must not exceed {task}.train.num_steps")
    for values in _corners(tune.space):
        try:
            changed(train, values)
        except ParamsError as error:
            tried = ", ".join(f"{name}={value}" for name, value in values.items())
            raise ParamsError(f"tune.space: with {tried} the recipe of {task} is not valid: {error}") from None


def _corners(space: Mapping[str, Dimension]) -> Iterator[dict[str, Any]]:
    extremes = {name: d.values if isinstance(d, Choice) else [d.low, d.high] for name, d in space.items()}
    for names in combinations(extremes, min(2, len(extremes))):
        for values in product(*(extremes[name] for name in names)):
            yield dict(zip(names, values, strict=True))


def _rounded(dimension: Dimension, value: Any) -> Any:
    if not isinstance(dimension, LogUniform | Uniform):
        return value
    return min(max(float(f"{value:.{SIGNIFICANT_DIGITS}g}"), dimension.low), dimension.high)


def _lies_in(dimension: LogUniform | Uniform | Integer, value: Any) -> bool:
    return isinstance(value, int | float) and dimension.low <= value <= dimension.high


def _is_a_value(name: str) -> bool:
    section: Any = Train
    for part in name.split("."):
        if not (isinstance(section, type) and issubclass(section, BaseModel) and part in section.model_fields):
            return False
        section = section.model_fields[part].annotation
    return not (isinstance(section, type) and issubclass(section, BaseModel))
