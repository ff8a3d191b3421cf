"""The search space: rounds sampled values, writes them into a recipe, and checks the corners of the space.

A value is named by its dotted key in a task's `train` section: `learning_rate`, `network.width`. Trials are compared at
equal steps, so values that set the number of steps or of reports cannot be searched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations, product
from typing import Any

from pipeline.config.params import ParamsError, validated
from pipeline.training.settings import Train
from pipeline.tuning.settings import Choice, Dimension, Integer, LogUniform, Tune, Uniform

SIGNIFICANT_DIGITS = 3  # of a sampled float, so that the proposal holds exactly the values that were tried


def rounded(space: Mapping[str, Dimension], sampled: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampled values with floats rounded to three significant digits, within their range."""
    return {name: _rounded(space[name], value) for name, value in sampled.items()}


def changed(train: Train, values: Mapping[str, Any]) -> Train:
    """Return the recipe with some of its values changed; ParamsError if the result is not a valid recipe."""
    return validated(nested(values, train.model_dump()), Train, "train")


def nested(values: Mapping[str, Any], content: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a copy of `content`, as nested mappings, with the `values` of the dotted keys."""
    tree = dict(content or {})
    for name, value in values.items():
        first, _, rest = name.partition(".")
        tree[first] = nested({rest: value}, tree.get(first)) if rest else value
    return tree


def current(train: Train, space: Mapping[str, Dimension]) -> dict[str, Any] | None:
    """Return the current values of `train`; None if one of them is outside the search space."""
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
    for values in _corners(tune.search_space):
        try:
            changed(train, values)
        except ParamsError as error:
            tried = ", ".join(f"{name}={value}" for name, value in values.items())
            raise ParamsError(f"tune.search_space: with {tried} the recipe of {task} is not valid: {error}") from None


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
