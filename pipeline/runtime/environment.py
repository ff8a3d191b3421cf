"""Reads the environment variables of the project."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TypeVar

Number = TypeVar("Number", int, float)


def patience() -> int:
    """Return for how many seconds a run waits for a worker or a storage that does not answer: DGUNET_PATIENCE."""
    return number("DGUNET_PATIENCE", 600)


def number(name: str, default: Number) -> Number:
    """Return the number that the environment gives `name`, a whole one if `default` is; ValueError where it is none."""
    kind = type(default)
    with suppress(ValueError):
        if (given := kind(os.environ.get(name) or default)) >= 0:
            return given
    what = "whole number" if kind is int else "number"
    raise ValueError(f"{name} must be a {what}, 0 or more, not {os.environ[name]!r}")


def max_failures() -> int:
    """Return how many deaths of workers a run survives without a new checkpoint: DGUNET_MAX_FAILURES."""
    return number("DGUNET_MAX_FAILURES", 3)


def data_folder() -> str:
    """Return the folder, or URL, that holds the images of benchmarks: DGUNET_DATA."""
    return (os.environ.get("DGUNET_DATA") or "data/sets").rstrip("/")
