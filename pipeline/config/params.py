"""params.yaml, section by section: no defaults, no unknown keys, and errors that say where a value is wrong.

A door reads the sections it uses and imports no others, so that touching the code behind one section does not make the
results of another stale. `pipeline.validate` is the whole file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

PARAMS_FILE = Path("params.yaml")
Fraction = Annotated[float, Field(ge=0, lt=1)]


class ParamsError(ValueError):
    """params.yaml is not what it must be; one line per mistake."""


class Section(BaseModel):
    """A mapping of params.yaml: every key is required, none may be added, nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Kind = TypeVar("Kind")


def read_params(path: Path = PARAMS_FILE) -> dict[str, Any]:
    """Return params.yaml as it stands; ParamsError when it is missing or no mapping."""
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path} is missing: run from the root of the checkout") from None
    except YAMLError as error:
        raise ParamsError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ParamsError(f"{path} must be a mapping of sections")
    return content


def load_section(name: str, kind: type[Kind], path: Path = PARAMS_FILE) -> Kind:
    """Return the value at the dotted `name` ("derain.train", "seed") of params.yaml, as a `kind`.

    Raises ParamsError with one line per mistake, each with its place and what is allowed.
    """
    value: Any = read_params(path)
    for depth, part in enumerate(parts := name.split(".")):
        if not isinstance(value, dict) or part not in value:
            there = ", ".join(map(str, value)) if isinstance(value, dict) else repr(value)
            place = ".".join(parts[:depth]) or str(path)
            raise ParamsError(f"{place} has no `{part}`; there is: {there}")
        value = value[part]
    return validated(value, kind, name)


def validated(value: Any, kind: type[Kind], name: str = "") -> Kind:
    """Return `value` as a `kind`; ParamsError names each wrong place below `name`."""
    try:
        result: Kind = TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        mistakes = [_mistake(name, dict(mistake)) for mistake in error.errors(include_url=False)]
        raise ParamsError("\n".join(dict.fromkeys(mistakes))) from None
    return result


def _mistake(name: str, mistake: Mapping[str, Any]) -> str:
    place = ".".join(filter(None, (name, *map(str, mistake["loc"]))))
    if mistake["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{place}: no such key; check the spelling, or remove it"
    if mistake["type"] in ("missing", "missing_argument"):
        return f"{place}: missing"
    what = mistake["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{place}: {what}, not {mistake['input']!r}" if what.startswith("should") else f"{place}: {what}"
