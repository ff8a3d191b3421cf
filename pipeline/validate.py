"""Validates all of params.yaml before anything is built."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt

from pipeline.config.params import (
    GENERAL,
    PARAMS_FILE,
    STAGES,
    WITHOUT_DEFAULT,
    ParamsError,
    Place,
    Section,
    default_section,
    invalid_values,
    merge,
    read_params,
    validated,
    validated_merge,
)
from pipeline.evaluation.settings import BENCHMARKS, Evaluate, benchmark_settings
from pipeline.preparation.settings import Prepare
from pipeline.runtime.entry_point import run_command
from pipeline.sources.registry import data_set
from pipeline.synthesis.settings import Synthesize
from pipeline.tracking.settings import Promote
from pipeline.training.settings import Train
from pipeline.tuning.settings import Tune

TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*", re.ASCII)
KINDS: dict[str, type[Section]] = {"synthesize": Synthesize, "train": Train, "evaluate": Evaluate}


class General(Section):
    """The sections that all tasks share; `tasks` are those to be built."""

    tasks: Annotated[list[str], Field(min_length=1)]
    seed: NonNegativeInt
    prepare: Prepare
    promote: Promote
    tune: Tune
    defaults: dict[str, dict[str, Any]]
    benchmarks: dict[str, dict[str, Any]]


def check(path: Path = PARAMS_FILE) -> None:
    """Validate all sections, including those of tasks that are not built.

    Raises:
        ParamsError: params.yaml is not valid; one line for every mistake in the file.
    """
    params = read_params(path)
    mistakes = list(dict.fromkeys(_mistakes(params)))
    if mistakes:
        raise ParamsError(f"{path}:\n  " + "\n  ".join(mistakes))


def _mistakes(params: Mapping[str, Any]) -> Iterator[str]:
    yield from _errors(validated, {name: params[name] for name in GENERAL if name in params}, General)
    tasks = {name: section for name, section in params.items() if name not in GENERAL}
    listed = params.get("tasks")
    listed = listed if isinstance(listed, list) else []
    for task in listed:
        if task not in tasks:
            yield f"tasks: {task} has no section; available: {', '.join(tasks)}"
    if len(set(map(str, listed))) != len(listed):
        yield "tasks: a task is named twice"
    yield from _mistakes_in_defaults(params)
    benchmarks = params.get(BENCHMARKS, {})
    names = list(benchmarks) if isinstance(benchmarks, dict) else []
    yield from _mistakes_in_names(tasks)
    for name in names:
        yield from _errors(benchmark_settings, params, name)
        yield from _mistakes_in_dataset(name, benchmarks.get(name))
    for task, section in tasks.items():
        if not isinstance(task, str):
            continue
        yield from _mistakes_in_task(params, task, section)
        for name in _named_benchmarks(params, section):
            if name not in names:
                yield f"{task}.evaluate.benchmarks: there is no benchmark `{name}`; available: {', '.join(names)}"


def _mistakes_in_dataset(name: str, benchmark: Any) -> Iterator[str]:
    """Yield mistakes of a benchmark that names a published set: no such set or split, or pairs to be degraded."""
    if not isinstance(benchmark, dict) or not isinstance(benchmark.get("dataset"), str):
        return
    try:
        layouts = data_set(benchmark["dataset"]).layouts(benchmark.get("split"))
    except ValueError as error:
        yield f"{BENCHMARKS}.{name}: {error}"
        return
    if benchmark.get("degradation") is not None and any(layout.degraded for layout in layouts.values()):
        yield f"{BENCHMARKS}.{name}: {benchmark['dataset']} has its own degraded images: remove degradation"


def _mistakes_in_names(tasks: Iterable[object]) -> Iterator[str]:
    """Yield the names of tasks that cannot be parts of commands, of file names and of DVC's keys."""
    for name in tasks:
        if not (isinstance(name, str) and TASK_NAME.fullmatch(name)):
            yield f"{name}: the name of a task has letters, digits, _ and - only, and starts with a letter or a digit"


def _mistakes_in_defaults(params: Mapping[str, Any]) -> Iterator[str]:
    """Yield mistakes in `defaults`, even if every task states another value."""
    defaults = params.get("defaults")
    for stage in defaults if isinstance(defaults, dict) else ():
        if stage not in KINDS:
            yield f"defaults.{stage}: no such key; available: {', '.join(KINDS)}"
            continue
        section = default_section(params, stage)
        for name in WITHOUT_DEFAULT[stage]:
            if name in section.value:
                yield f"{section.name}.{name}: has no default; state it in each task"
        yield from invalid_values(section, KINDS[stage])


def _mistakes_in_task(params: Mapping[str, Any], task: str, section: Any) -> Iterator[str]:
    if not isinstance(section, dict):
        yield f"{task}: should be a mapping of {', '.join(STAGES)}, not {section!r}"
        return
    for stage in section:
        if stage not in KINDS:
            yield f"{task}.{stage}: no such key; check the spelling, or remove it"
    for stage, kind in KINDS.items():
        if stage not in section:
            yield f"{task}.{stage}: missing; write `{stage}: {{}}` to take all values from `defaults`"
            continue
        own = Place(f"{task}.{stage}", section[stage])
        yield from _errors(validated_merge, own, default_section(params, stage), kind, WITHOUT_DEFAULT[stage])


def _named_benchmarks(params: Mapping[str, Any], section: Any) -> list[str]:
    evaluate = section.get("evaluate") if isinstance(section, dict) else None
    merged = merge(default_section(params, "evaluate").value, evaluate)
    named = merged.get(BENCHMARKS) if isinstance(merged, dict) else None
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def _errors(function: Any, *arguments: Any) -> list[str]:
    try:
        function(*arguments)
    except ParamsError as error:
        return str(error).split("\n")
    return []


def main() -> None:
    """Validate params.yaml of this checkout."""
    argparse.ArgumentParser(prog="python -m pipeline.validate", description=__doc__).parse_args()
    check()


if __name__ == "__main__":
    run_command(main)
