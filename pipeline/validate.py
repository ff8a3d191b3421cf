"""Validates the whole of params.yaml before anything is built."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt

from pipeline.config.params import PARAMS_FILE, ParamsError, Section, read_params, validated
from pipeline.evaluation.settings import Evaluate
from pipeline.preparation.settings import Prepare
from pipeline.runtime.entry_point import run_command
from pipeline.synthesis.settings import Synthesize
from pipeline.tracking.settings import Promote
from pipeline.training.settings import Train
from pipeline.tuning.settings import Tune


class Task(Section):
    """One task's values, a section for each DVC stage that is built per task."""

    synthesize: Synthesize
    train: Train
    evaluate: Evaluate
    promote: Promote


class General(Section):
    """What all tasks share; `tasks` are the sections to be built."""

    tasks: Annotated[list[str], Field(min_length=1)]
    seed: NonNegativeInt
    prepare: Prepare
    tune: Tune


def check(path: Path = PARAMS_FILE) -> None:
    """Read all sections, also those that are not built; ParamsError names every mistake in the file, one a line."""
    content = read_params(path)
    general = {name: content.pop(name) for name in General.model_fields if name in content}
    mistakes = []
    sections: list[tuple[Any, type[Section], str]] = [(general, General, "")]
    sections += [(section, Task, name) for name, section in content.items()]
    for value, kind, name in sections:
        try:
            validated(value, kind, name)
        except ParamsError as error:
            mistakes.append(str(error))
    named = general.get("tasks") or []
    mistakes += [
        f"tasks: {task} has no section; there is: {', '.join(content)}" for task in named if task not in content
    ]
    if len(set(named)) != len(named):
        mistakes.append("tasks: a task is named twice")
    if mistakes:
        raise ParamsError(f"{path}:\n  " + "\n".join(mistakes).replace("\n", "\n  "))


def main() -> None:
    """Validate params.yaml of this checkout."""
    argparse.ArgumentParser(prog="python -m pipeline.validate", description=__doc__).parse_args()
    check()


if __name__ == "__main__":
    run_command(main)
