"""The whole of params.yaml, typed: what `prepare` checks before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt

from pipeline.evaluation import Evaluate
from pipeline.params import PARAMS_FILE, ParamsError, Promote, Section, Synthesize, Train, read_params, validated
from pipeline.sources import Prepare
from pipeline.space import Tune


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
