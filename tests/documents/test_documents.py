"""What the documents name exists: files, headings, make targets, options, variables, values."""

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from factories import PROJECT
from fenced_blocks import LANGUAGES, Block, Command, blocks, commands, documents, tracked_files
from PIL import Image

from dgunet.__main__ import _parser as dgunet_parser

sys.path.insert(0, str(PROJECT / "docs"))
import draw_architecture

DOCUMENTS = documents()
BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
SHELL = [block for block in BLOCKS if block.language in ("bash", "sh")]
MEASUREMENTS = Path("benchmarks/results")
MAKEFILE = (PROJECT / "Makefile").read_text()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document: str) -> None:
    text = re.sub(r"```.*?```", "", (PROJECT / document).read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, heading = target.partition("#")
        file = (PROJECT / document).parent / path if path else PROJECT / document
        assert file.exists(), f"{document}: {target} does not exist"
        assert not path or file.is_dir() or file.resolve().relative_to(PROJECT).as_posix() in tracked_files(), target
        assert not heading or heading in headings(file), f"{document}: no heading {target}"


def headings(file: Path) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    lines = re.findall(r"^#+ +(.*)$", file.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_decimals_beside_a_link_to_measurements_stand_there() -> None:
    found = [decimals_of(document) for document in DOCUMENTS if Path(document).parent != MEASUREMENTS]
    assert sum(found) >= 20


def decimals_of(document: str) -> int:
    """Compare the decimals of paragraphs that link to results with these, which may have more digits; count them."""
    count = 0
    text = re.sub(r"```.*?```", "", (PROJECT / document).read_text(encoding="utf-8"), flags=re.S)
    for paragraph in re.split(r"\n\s*\n|\n(?=[-|] ?)", text):
        files = [(PROJECT / document).parent / target for target in re.findall(r"\]\(([^)\s#:]+\.md)\)", paragraph)]
        linked = [file.read_text() for file in files if file.resolve().parent == PROJECT / MEASUREMENTS]
        content = re.sub(r"`[^`]*`", " ", "\n".join(linked))  # values of options are no results
        measured = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", content)]
        own = re.sub(r"\]\([^)]*\)|`[^`]*`", " ", paragraph)
        for number in re.findall(r"(?<![\w.])\d+\.\d+(?!\w|\.\d)", own) if linked else []:
            half = 0.5 * 10 ** -len(number.partition(".")[2])
            assert any(abs(value - float(number)) <= half + 1e-9 for value in measured), f"{number}: {paragraph}"
            count += 1
    return count


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_in_the_text_exist(document: str) -> None:
    text = re.sub(r"```.*?```", "", (PROJECT / document).read_text(encoding="utf-8"), flags=re.S)
    names = re.findall(r"\b(?:benchmarks|dgunet|docs|infra|pipeline|tests)/[\w/.\-]*\w", text)
    names = [name for name in names if not re.search(r"[A-Z]{3}", name)]  # NAME, TASK: to be replaced by the reader
    assert [name for name in names if not (PROJECT / name).exists() and "." in Path(name).name] == []
    folders = re.findall(r"\b(?:dgunet|docs|infra|pipeline|tests)/[\w/\-]*/", text)
    assert [name for name in folders if not (PROJECT / name).is_dir()] == []


def test_pictures_are_small() -> None:
    pictures = [path for path in (PROJECT / "docs").iterdir() if path.suffix in (".png", ".jpg")]
    assert len(pictures) > 3
    large = [path.name for path in pictures if path.stat().st_size > 400_000]
    assert not large
    used = "".join((PROJECT / document).read_text(encoding="utf-8") for document in DOCUMENTS)
    assert [path.name for path in pictures if path.name not in used] == []


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_has_a_language_and_can_be_parsed(block: Block) -> None:
    assert block.language in LANGUAGES
    if block.language in ("bash", "sh"):
        subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)
    elif block.language == "toml":
        tomllib.loads(block.code)


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_have_the_targets_and_options_that_are_named(block: Block) -> None:
    for command in commands(block):
        for name in command.variables:
            assert not name.startswith("DGUNET_") or name in variables_of_the_project(), name
        if command.words and (check := CHECKS.get(command.words[0])):
            check(command)


def check_make(command: Command) -> None:
    """Each word is a target, or sets a variable that the Makefile uses."""
    for word in command.words[1:]:
        if "=" in word:
            name = word.partition("=")[0]
            assert any(use in MAKEFILE for use in (f"$({name})", f"$(if $({name})", f"$${name}")), word
        else:
            assert re.search(rf"^{re.escape(word)}:", MAKEFILE, re.M), f"make {word}: no such target"


def check_dgunet(command: Command) -> None:
    """The parser of the command line takes the arguments."""
    with suppress(SystemExit):
        dgunet_parser().parse_args(command.words[1:])
        return
    raise AssertionError(f"wrong arguments: {' '.join(command.words)}")


def check_python(command: Command) -> None:
    """A module or script of the project, and options that it declares."""
    arguments = command.words[1:]
    name = Path(*arguments.pop(1).split(".")).with_suffix(".py") if arguments[0] == "-m" else Path(arguments[0])
    if name.parts[0] not in ("benchmarks", "docs", "pipeline"):
        return
    source = (PROJECT / name).read_text(encoding="utf-8")
    if "add_restoring(" in source:
        source += (PROJECT / "dgunet/commands/arguments.py").read_text(encoding="utf-8")
    for word in arguments:
        if word.startswith("--"):
            assert f'add_argument("{word.partition("=")[0]}"' in re.sub(r"\(\s+", "(", source), f"{name} {word}"


def check_pytest(command: Command) -> None:
    """The folders and files of tests exist."""
    for before, word in pairwise(command.words):
        of_an_option = before in ("-m", "-k")
        assert of_an_option or word.startswith("-") or (PROJECT / word.partition("::")[0]).exists(), word


def check_dvc(command: Command) -> None:
    """DVC's own parser takes the arguments."""
    from dvc.cli.parser import get_main_parser  # takes a second

    with suppress(SystemExit):
        get_main_parser().parse_args(command.words[1:])
        return
    raise AssertionError(f"wrong arguments: {' '.join(command.words)}")


CHECKS: dict[str, Callable[[Command], None]] = {
    "make": check_make,
    "dgunet": check_dgunet,
    "python": check_python,
    "pytest": check_pytest,
    "dvc": check_dvc,
}


def variables_of_the_project() -> set[str]:
    """The names of the environment variables that the code reads."""
    from pipeline.runtime.environment import Environment

    return {f"DGUNET_{name.upper()}" for name in Environment.model_fields}


def variables_of_the_tests() -> set[str]:
    """The names of the environment variables that only tests read."""
    return set(re.findall(r"DGUNET_[A-Z_]+", (PROJECT / "tests" / "factories.py").read_text()))


def test_variables_that_are_named_exist() -> None:
    found = {
        (document, name)
        for document in DOCUMENTS
        for name in re.findall(r"\bDGUNET_[A-Z_]*[A-Z]\b", (PROJECT / document).read_text(encoding="utf-8"))
    }
    of_the_server = set(
        re.findall(r"DGUNET_[A-Z_]+", (PROJECT / "pipeline" / "tracking" / "pyfunc_model.py").read_text())
    )
    known = variables_of_the_project() | variables_of_the_tests() | of_the_server
    assert {(document, name) for document, name in found if name not in known} == set()


def test_the_readme_lists_all_variables() -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(DGUNET_\w+)` \|", text, re.M)
    assert sorted(listed) == sorted(variables_of_the_project())


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=str)
def test_python_imports_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml"], ids=str)
def test_yaml_is_a_valid_part_of_params_yaml(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.validate import check

    (tmp_path / "infra").symlink_to(PROJECT / "infra")
    monkeypatch.chdir(tmp_path)
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    merge(params, yaml.safe_load(block.code))
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False, allow_unicode=True))
    check()


def merge(params: dict[str, Any], changes: dict[str, Any]) -> None:
    """Put the values of a block into params.yaml's; a mapping of another kind is replaced as a whole."""
    for key, value in changes.items():
        inner = params.get(key)
        if isinstance(value, dict) and isinstance(inner, dict) and inner.get("kind") == value.get("kind"):
            merge(inner, value)
        else:
            params[key] = value


def test_the_picture_of_the_architecture_shows_the_code_of_today() -> None:
    with Image.open(draw_architecture.PICTURE) as picture:
        shown = json.loads(picture.info["Description"])
    assert shown == draw_architecture.describe(), "run `python docs/draw_architecture.py`"


FOREIGN_PATH = re.compile(r"\.\./shared|[\"']shared[\"'/]|(?<![\w./~$}])/(?:work|tmp(?!/ray\b)|root|home)/\w")


def test_no_file_names_a_path_outside_of_the_checkout() -> None:
    found = [
        f"{name}: {match[0]}"
        for name in tracked_files()
        if Path(name).suffix not in (".png", ".jpg", ".npz", ".Dockerfile")  # those name paths of an image
        and name != Path(__file__).relative_to(PROJECT).as_posix()
        for match in FOREIGN_PATH.finditer((PROJECT / name).read_text(encoding="utf-8"))
    ]
    assert found == []


def test_foreign_paths_are_recognised() -> None:
    assert FOREIGN_PATH.search("see /work/main") and FOREIGN_PATH.search('Path("/tmp/x")')
    assert FOREIGN_PATH.search("../shared/data")
    assert not FOREIGN_PATH.search("s3://bucket/work/runs") and not FOREIGN_PATH.search("~/tmp/x")
