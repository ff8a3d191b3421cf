"""Applies a recipe to params.yaml: merges, validates, shows the difference, and asks before it writes.

A recipe has the form of params.yaml and holds only the values to change: a published one of infra/recipes, or the
proposal of a search. Mappings are merged key by key; other values, and mappings whose `kind` changes, are replaced. A
task that params.yaml does not have is added at its end.
"""

from __future__ import annotations

import argparse
import difflib
import io
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarfloat import ScalarFloat

from pipeline.config.params import (
    BYTE_ORDER_MARK,
    GENERAL,
    PARAMS_FILE,
    STAGES,
    ParamsError,
    default_section,
    is_same_kind,
    read_text,
)
from pipeline.runtime.entry_point import run_command
from pipeline.validate import check

RECIPES = Path("infra") / "recipes"
LINE_LENGTH = 100
_LINE = re.compile(r"([^\r\n]*)(\r\n|\n|\r|(?<=[^\r\n])$)")
COLOURS = {"+": "\033[32m", "-": "\033[31m", "@": "\033[36m"}
PLAIN = "\033[0m"


def main() -> None:
    """Show what a recipe changes in params.yaml, and change it."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.apply_recipe", description=__doc__)
    parser.add_argument("recipe", type=Path, help="YAML file in the form of params.yaml, with the values to change")
    parser.add_argument("--yes", action="store_true", help="apply without asking")
    args = parser.parse_args()
    path = PARAMS_FILE.resolve()
    if not path.is_file():
        raise ValueError(f"{PARAMS_FILE} is missing: run from the root of the checkout")
    before = read_text(path)
    after = with_line_ends_of(before, apply_recipe(_plain(before), _plain(_text(args.recipe))))
    if after == before:
        raise ValueError(f"nothing to do: {PARAMS_FILE} has all values of {args.recipe}")
    checked = _checked(path, after, args.recipe)
    try:
        print(difference(before, after, coloured=sys.stdout.isatty() and "NO_COLOR" not in os.environ), end="")
        if not args.yes and not _confirmed():
            raise ValueError(
                f"{PARAMS_FILE} is unchanged"
                + ("" if sys.stdin.isatty() else "; to apply the recipe without a question: YES=1")
            )
        if read_text(path) != before:
            raise ValueError(
                f"{PARAMS_FILE} was changed by another program in the meantime and is left as it is: run this again"
            )
        checked.replace(path)
    finally:
        checked.unlink(missing_ok=True)
    print(f"{PARAMS_FILE}: {args.recipe} is applied; `git diff {PARAMS_FILE}` shows it, `make repro` builds it")


def apply_recipe(params: str, recipe: str) -> str:
    """Return the text of params.yaml with the values of a recipe; comments and layout are kept.

    A value that the defaults have as well is left out of the task's section.

    Args:
        params: Text of params.yaml.
        recipe: Text of the recipe.

    Raises:
        ValueError: The recipe is not YAML, or not a mapping of sections.
    """
    yaml = _yaml()
    try:
        content, changes = yaml.load(params), yaml.load(recipe)
    except YAMLError as error:
        raise ValueError(f"not YAML: {error}") from None
    if not isinstance(changes, CommentedMap) or not all(isinstance(section, str) for section in changes):
        raise ValueError("a recipe is a mapping of sections, as params.yaml: `derain: {train: {...}}`")
    before = json.dumps(content)
    added = [name for name in changes if name not in content]
    _merge(content, changes)
    for task in changes.keys() - set(GENERAL):
        for stage in STAGES:
            if _are_mappings(content[task], changes[task]) and _are_mappings(
                section := content[task].get(stage), changed := changes[task].get(stage)
            ):
                _leave_out_defaults(section, changed, default_section(content, stage).value)
                _break_long_line(yaml, section)
    if json.dumps(content) == before:
        return params
    for name in added:
        content.yaml_set_comment_before_after_key(name, before="\n")
    text = io.StringIO()
    yaml.dump(content, text)
    return text.getvalue()


def with_line_ends_of(before: str, after: str) -> str:
    """Return a text with the byte order mark and the line ends of its former version.

    Args:
        before: The former text, as it is in its file.
        after: The text with line feeds. Lines that were not there before end as most lines of `before`.
    """
    mark = BYTE_ORDER_MARK if before.startswith(BYTE_ORDER_MARK) else ""
    old = _LINE.findall(before.removeprefix(mark))
    new = [content for content, _ in _LINE.findall(after)]
    most = Counter(end for _, end in old if end).most_common(1)
    usual = most[0][0] if most else "\n"
    matcher = difflib.SequenceMatcher(None, [content for content, _ in old], new, autojunk=False)
    lines: list[tuple[str, str]] = []
    for operation, start, stop, new_start, new_stop in matcher.get_opcodes():
        lines += old[start:stop] if operation == "equal" else [(line, usual) for line in new[new_start:new_stop]]
    ended = [(content, end or usual) for content, end in lines[:-1]] + lines[-1:]
    return mark + "".join(content + end for content, end in ended)


def difference(before: str, after: str, *, coloured: bool) -> str:
    """Return the unified diff of two texts of params.yaml."""
    name = str(PARAMS_FILE)
    lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), f"a/{name}", f"b/{name}")
    if not coloured:
        return "".join(lines)
    return "".join(f"{COLOURS[line[0]]}{line.rstrip()}{PLAIN}\n" if line[0] in COLOURS else line for line in lines)


def _merge(content: CommentedMap, changes: CommentedMap) -> None:
    """Write `changes` into `content`, mapping by mapping."""
    for name, value in changes.items():
        old = content.get(name)
        if isinstance(old, CommentedMap) and isinstance(value, CommentedMap) and is_same_kind(old, value):
            _merge(old, value)
        elif name not in content or not _equal(old, value):
            if name not in content and name in changes.ca.items:
                content.ca.items[name] = changes.ca.items[name]  # the comment behind the key
            content[name] = _readable(value)


def _leave_out_defaults(section: CommentedMap, changes: CommentedMap, defaults: Mapping[str, Any]) -> None:
    """Remove from `section` what `changes` has just written and `defaults` has as well."""
    for name in changes.keys() & section.keys() & defaults.keys():
        value, default = section[name], defaults[name]
        if _are_mappings(value, changes[name]) and isinstance(default, Mapping) and is_same_kind(default, value):
            _leave_out_defaults(value, changes[name], default)
            if not value:
                del section[name]
        elif _equal(value, default):
            del section[name]


def _break_long_line(yaml: YAML, section: CommentedMap) -> None:
    """Write a section with one key per line if it would be longer than a line as `{...}`."""
    text = io.StringIO()
    yaml.dump(section, text)
    if section.fa.flow_style() and len(text.getvalue()) > LINE_LENGTH:
        section.fa.set_block_style()


def _are_mappings(one: Any, other: Any) -> bool:
    return isinstance(one, CommentedMap) and isinstance(other, CommentedMap)


def _equal(there: Any, value: Any) -> bool:
    return bool(there == value) and isinstance(there, bool) == isinstance(value, bool)


def _readable(value: Any) -> Any:
    """Return a copy of `value` without YAML anchors, its floats written plainly: YAML 1.1 takes 1e-6 for a string."""
    if isinstance(value, ScalarFloat):
        return float(value)
    if isinstance(value, CommentedMap):
        copy: CommentedMap | CommentedSeq = CommentedMap((name, _readable(item)) for name, item in value.items())
        copy.ca.items.update(value.ca.items)
    elif isinstance(value, CommentedSeq):
        copy = CommentedSeq(_readable(item) for item in value)
        copy.ca.items.update(value.ca.items)
    else:
        return value
    if value.fa.flow_style():
        copy.fa.set_flow_style()
    return copy


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(float, _float)
    yaml.representer.add_representer(type(None), lambda representer, _: representer.represent_scalar(_NULL, "null"))
    return yaml


_NULL, _FLOAT = "tag:yaml.org,2002:null", "tag:yaml.org,2002:float"


def _float(representer: Any, value: float) -> Any:
    text = f"{Decimal(repr(value)):f}"
    return representer.represent_scalar(_FLOAT, text if "." in text else f"{text}.0")


def _plain(text: str) -> str:
    """Return a text without a byte order mark, with line feeds."""
    return text.removeprefix(BYTE_ORDER_MARK).replace("\r\n", "\n").replace("\r", "\n")


def _text(recipe: Path) -> str:
    try:
        return read_text(recipe)
    except FileNotFoundError:
        there = ", ".join(sorted(str(path) for path in RECIPES.glob("*.yaml"))) or "none"
        raise ValueError(f"there is no recipe {recipe}; those of {RECIPES}: {there}") from None


def _checked(path: Path, text: str, recipe: Path) -> Path:
    """Write `text` beside `path` and check it as params.yaml; return the file, removed again after any error."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(path.stat().st_mode)
        check(partial)
    except BaseException as error:
        partial.unlink()
        if not isinstance(error, ParamsError):
            raise
        said = str(error).replace(str(partial), f"{PARAMS_FILE} with {recipe}")
        raise ValueError(f"not applied: {said}") from None
    return partial


def _confirmed() -> bool:
    return sys.stdin.isatty() and input("apply? [y/N] ").strip().lower() in ("y", "yes")


if __name__ == "__main__":
    run_command(main)
