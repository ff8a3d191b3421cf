"""The house rules that a machine can check: files, dvc.yaml, params.yaml and imports agree."""

from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml

from pipeline.mirror import check

PROJECT = Path(__file__).parents[1]
STAGES: dict[str, Any] = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
PARAMS: dict[str, Any] = yaml.safe_load((PROJECT / "params.yaml").read_text())
SECTIONS_READ = {  # beyond the stage's own, with the reason in the door
    "prepare": ["tasks", "seed", "prepare"],
    "synthesize": ["seed", "${item}.synthesize"],
    "train": ["seed", "${item}.synthesize.channels", "${item}.train"],
    "evaluate": ["seed", "${item}.synthesize", "${item}.evaluate"],
    "promote": ["${item}.evaluate", "${item}.promote"],
}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("dgunet", "pipeline", cache_dir=None)


def stage(name: str) -> dict[str, Any]:
    body: dict[str, Any] = STAGES[name]
    return body.get("do", body)


def path_of(module: str) -> str:
    path = Path(*module.split("."))
    return str(path / "__init__.py" if (PROJECT / path).is_dir() else path.with_suffix(".py"))


def closure(graph: grimp.ImportGraph, door: str) -> list[str]:
    modules = {door} | graph.find_upstream_modules(door)
    packages = {name.rpartition(".")[0] for name in modules} - {""}
    return sorted(path_of(name) for name in modules | packages)


def test_a_stage_has_the_name_of_its_door_and_runs_it() -> None:
    for name in STAGES:
        assert (PROJECT / "pipeline" / f"{name}.py").is_file()
        assert stage(name)["cmd"].startswith(f"python -m pipeline.{name} ")


@pytest.mark.parametrize("name", list(STAGES))
def test_the_deps_of_a_stage_are_the_import_closure_of_its_door(graph: grimp.ImportGraph, name: str) -> None:
    expected = closure(graph, f"pipeline.{name}")
    listed = sorted(dep for dep in stage(name)["deps"] if dep.endswith(".py"))
    assert listed == expected, "dvc.yaml must list:\n" + "\n".join(f"        - {path}" for path in expected)


@pytest.mark.parametrize("name", list(STAGES))
def test_a_stage_depends_on_the_sections_that_its_door_reads(name: str) -> None:
    assert stage(name)["params"] == SECTIONS_READ[name]


def test_params_yaml_is_valid_and_names_tasks_that_have_a_section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    check()


def test_doors_do_not_import_each_other(graph: grimp.ImportGraph) -> None:
    doors = {f"pipeline.{name}" for name in (*STAGES, "look", "tune", "adopt", "summary")} & graph.modules
    for door in doors:
        assert not graph.find_modules_directly_imported_by(door) & doors


@pytest.mark.parametrize(
    ("system", "rooms"),
    [
        ("ray", {f"pipeline.{room}" for room in ("cluster", "group", "line", "record", "workers", "search")}),
        ("webdataset", {"pipeline.shards"}),
        ("mlflow", {"pipeline.tracking", "pipeline.registry", "pipeline.served", "pipeline.trials", "dgunet.hub"}),
        ("dvc", set()),
    ],
)
def test_a_foreign_system_has_its_rooms_and_no_others(system: str, rooms: set[str]) -> None:
    graph = grimp.build_graph("dgunet", "pipeline", include_external_packages=True, cache_dir=None)
    assert graph.find_modules_that_directly_import(system) == rooms if system in graph.modules else not rooms


def test_there_is_no_room_without_a_name() -> None:
    nameless = {"utils", "common", "helpers", "base", "core"}
    assert not [path for path in PROJECT.glob("[dp]*/**/*.py") if path.stem in nameless]
