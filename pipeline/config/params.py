"""params.yaml: reads sections, merges a task's section with its defaults, and reports errors with the place to edit.

A task states what differs; `defaults` holds the rest. Section `derain.train` is `defaults.train` updated with
`derain.train`, mapping by mapping; a mapping whose `kind` differs is replaced as a whole. The merged section is
validated: keys without a default value are required, unknown keys are refused, nothing is converted silently.

A command reads only the sections it uses, so that a change of the code behind one section does not make the results of
another stale. `pipeline.validate` checks the whole file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

PARAMS_FILE = Path("params.yaml")
BYTE_ORDER_MARK = "\ufeff"  # editors on Windows put it before UTF-8
GENERAL = ("tasks", "seed", "prepare", "promote", "tune", "defaults", "benchmarks")  # every other section is a task
STAGES = ("synthesize", "train", "evaluate")  # the sections of a task
WITHOUT_DEFAULT = {"synthesize": ("degradation",), "train": (), "evaluate": ("baseline",)}  # each task gives its own
MISSING = ("missing", "missing_argument")  # types of pydantic's errors
Fraction = Annotated[float, Field(ge=0, lt=1)]


class ParamsError(ValueError):
    """params.yaml is not valid; one line per mistake."""


class Section(BaseModel):
    """A mapping of params.yaml: keys without default are required, unknown ones refused, nothing converted silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True)
class Place:
    """A value of params.yaml and its dotted name, such as `derain.train`."""

    name: str
    value: Any


Kind = TypeVar("Kind")


def read_text(path: Path) -> str:
    """Return the text of a YAML file, with its line ends and byte order mark. Raises ParamsError if it is not UTF-8."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ParamsError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None


def read_params(path: Path = PARAMS_FILE) -> dict[str, Any]:
    """Return the content of params.yaml; ParamsError if it is missing or not a mapping."""
    try:
        content = YAML(typ="safe", pure=True).load(read_text(path).removeprefix(BYTE_ORDER_MARK))
    except FileNotFoundError:
        raise ParamsError(f"{path} is missing: run from the root of the checkout") from None
    except YAMLError as error:
        raise ParamsError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ParamsError(f"{path} must be a mapping of sections")
    return content


def load_section(name: str, kind: type[Kind], path: Path = PARAMS_FILE) -> Kind:
    """Return a section that all tasks share.

    Args:
        name: Dotted name of the value, such as "prepare" or "seed".
        kind: Type to validate it as.
        path: The params.yaml to read.

    Raises:
        ParamsError: The value is missing or not valid; one line per mistake, with its place and what is allowed.
    """
    value: Any = read_params(path)
    for depth, part in enumerate(parts := name.split(".")):
        if not isinstance(value, dict) or part not in value:
            existing = ", ".join(map(str, value)) if isinstance(value, dict) else repr(value)
            place = ".".join(parts[:depth]) or str(path)
            raise ParamsError(f"{place} has no `{part}`; available: {existing}")
        value = value[part]
    return validated(value, kind, name)


def load_task_section(task: str, stage: str, kind: type[Kind], path: Path = PARAMS_FILE) -> Kind:
    """Return a task's section for a stage, merged with its defaults.

    Args:
        task: A task of params.yaml.
        stage: "synthesize", "train" or "evaluate".
        kind: Type to validate the merged section as.
        path: The params.yaml to read.

    Raises:
        ParamsError: The task does not exist, or its merged section is not valid. An error names the task's key if the
            task states it, else the key of the defaults.
    """
    params = read_params(path)
    own = _task_section(params, task, stage)
    return validated_merge(own, default_section(params, stage), kind, WITHOUT_DEFAULT[stage])


def merged_section(params: Mapping[str, Any], task: str, stage: str) -> dict[str, Any]:
    """Return a task's section as plain YAML values, merged with its defaults but not validated.

    Args:
        params: Content of params.yaml.
        task: A task of it.
        stage: "synthesize", "train" or "evaluate".

    Raises:
        ParamsError: The task or its section does not exist.
    """
    merged: dict[str, Any] = merge(default_section(params, stage).value, _task_section(params, task, stage).value)
    return merged


def merged_task(params: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return all values that a task is built with, by stage, merged but not validated; for the record of a run."""
    return {stage: merged_section(params, task, stage) for stage in STAGES} | {"promote": params.get("promote")}


def task_names(params: Mapping[str, Any]) -> list[str]:
    """Return the tasks of params.yaml, including those that `tasks` does not list."""
    return [name for name in params if name not in GENERAL]


def default_section(params: Mapping[str, Any], stage: str) -> Place:
    """Return the defaults of a stage; an empty mapping if there are none."""
    defaults = params.get("defaults")
    value = defaults.get(stage) if isinstance(defaults, dict) else None
    return Place(f"defaults.{stage}", value if isinstance(value, dict) else {})


def merge(defaults: Any, own: Any) -> Any:
    """Return `own` with the keys that it lacks taken from `defaults`, mapping by mapping.

    A mapping whose `kind` differs from that of the default takes nothing from it.
    """
    if not (isinstance(defaults, Mapping) and isinstance(own, Mapping)) or not is_same_kind(defaults, own):
        return own
    return {**defaults, **{key: merge(defaults.get(key), value) for key, value in own.items()}}


def is_same_kind(one: Mapping[str, Any], changes: Mapping[str, Any]) -> bool:
    """Return whether `changes` may be merged into `one`: it states no `kind`, or the same one."""
    return "kind" not in changes or one.get("kind") == changes["kind"]


def validated(value: Any, kind: type[Kind], name: str = "") -> Kind:
    """Return `value` as a `kind`; ParamsError names each wrong place below `name`."""
    return validated_merge(Place(name, value), Place("", None), kind)


def validated_merge(own: Place, defaults: Place, kind: type[Kind], without_default: Sequence[str] = ()) -> Kind:
    """Return a section merged with its defaults, as a `kind`.

    Args:
        own: The section that states what differs.
        defaults: What it takes from elsewhere.
        kind: Type of the merged section.
        without_default: Keys that `own` must give.

    Raises:
        ParamsError: The merged section is not valid; each line names a key of `own` or of `defaults`.
    """
    merged = merge(defaults.value, own.value)
    try:
        result: Kind = TypeAdapter(kind).validate_python(merged)
    except ValidationError as error:
        details = error.errors(include_url=False)
        mistakes = [_mistake(dict(each), merged, own, defaults, without_default) for each in details]
        raise ParamsError("\n".join(dict.fromkeys(mistakes))) from None
    return result


def invalid_values(section: Place, kind: type[Section]) -> list[str]:
    """Return one line for each wrong key or value of a section that need not be complete."""
    try:
        kind.model_validate(section.value)
    except ValidationError as error:
        return [
            _mistake(dict(each), section.value, section, Place("", None))
            for each in error.errors(include_url=False)
            if each["loc"] and each["type"] not in MISSING
        ]
    return []


def _mistake(
    details: Mapping[str, Any], merged: Any, own: Place, defaults: Place, without_default: Sequence[str] = ()
) -> str:
    is_missing = details["type"] in MISSING
    keys = _keys(merged, details["loc"][:-1] if is_missing else details["loc"])
    if is_missing:
        keys.append(details["loc"][-1])
    if is_missing:
        in_own = not _has(defaults.value, keys[:-1]) or keys[0] in without_default
    else:
        in_own = not keys or _has(own.value, keys) or not _has(defaults.value, keys)
    place = ".".join(filter(None, ((own if in_own else defaults).name, *map(str, keys))))
    return f"{place}: missing" if is_missing else f"{place}: {_problem(details)}"


def _task_section(params: Mapping[str, Any], task: str, stage: str) -> Place:
    tasks = task_names(params)
    if task not in tasks:
        raise ParamsError(f"{PARAMS_FILE} has no task `{task}`; available: {', '.join(tasks)}")
    if not isinstance(params[task], dict) or stage not in params[task]:
        raise ParamsError(f"{task}.{stage}: missing; write `{stage}: {{}}` to take all values from `defaults`")
    return Place(f"{task}.{stage}", params[task][stage])


def _keys(value: Any, location: Sequence[int | str]) -> list[int | str]:
    """Return pydantic's location as keys of `value`: without the tags that it adds for unions."""
    keys: list[int | str] = []
    for key in location:
        if _has(value, [key]):
            keys.append(key)
            value = value[key]
    return keys


def _has(value: Any, keys: Sequence[int | str]) -> bool:
    """Return whether `value` has the nested keys; without keys, whether it is a mapping."""
    if not keys:
        return isinstance(value, Mapping)
    for key in keys:
        is_index = isinstance(value, list) and isinstance(key, int) and key < len(value)
        if not is_index and not (isinstance(value, Mapping) and key in value):
            return False
        value = value[key]
    return True


def _problem(details: Mapping[str, Any]) -> str:
    if details["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return "no such key; check the spelling, or remove it"
    if details["type"] in ("model_type", "dict_type", "dataclass_type"):
        return f"should be a mapping, not {details['input']!r}"
    if details["type"] == "union_tag_invalid":
        kind, known = details["ctx"]["tag"], details["ctx"]["expected_tags"]
        return f"there is no kind {kind!r}; available: {known}"
    if details["type"] == "union_tag_not_found":
        return "needs a `kind`"
    what: str = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{what}, not {details['input']!r}" if what.startswith("should") else what
