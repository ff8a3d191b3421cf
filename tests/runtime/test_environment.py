"""Environment variables: read when they are used, refused in one line, named in the documents, restored."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from factories import PROJECT

from pipeline.runtime.environment import (
    SERVING_LIMIT,
    Environment,
    read_environment,
    restored_environ,
    variable_name,
)

VARIABLES = {variable_name(field) for field in Environment.model_fields}
DOCUMENTS = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md")), *sorted(PROJECT.glob("CONTRIBUTING.md"))]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("DGUNET_WORKERS", "4", "workers", (4, 4)),
        ("DGUNET_WORKERS", "2:8", "workers", (2, 8)),
        ("DGUNET_WORKERS", "", "workers", None),
        ("DGUNET_STORAGE", "s3://bucket/runs/", "storage", "s3://bucket/runs"),
        ("DGUNET_STORAGE", "runs", "storage", str(Path("runs").absolute())),
        ("DGUNET_STORAGE", "", "storage", str(PROJECT / ".cache" / "runs")),
        ("DGUNET_SHARD_CACHE_GB", "0.5", "shard_cache_gb", 0.5),
        ("DGUNET_LOADER_PROCESSES", "0", "loader_processes", 0),
        ("DGUNET_DATA", "sets/", "data", "sets"),
        ("XDG_CACHE_HOME", "/cache", "data", "/cache/dgunet/sets"),
        ("DGUNET_DATA_MIRROR", "https://host/copy/", "data_mirror", "https://host/copy"),
        ("DGUNET_ACCEPT_TERMS", "polyu, bsds500", "accept_terms", ("polyu", "bsds500")),
    ],
)
def test_a_variable_is_read_when_it_is_used(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, field: str, expected: object
) -> None:
    monkeypatch.setenv(name, value)
    assert getattr(read_environment(), field) == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DGUNET_WORKERS", "many", """DGUNET_WORKERS must be a number of workers, or "least:most", not 'many'"""),
        ("DGUNET_WORKERS", "8:2", """DGUNET_WORKERS must be a number of workers, or "least:most", not '8:2'"""),
        ("DGUNET_MAX_FAILURES", "2.5", "DGUNET_MAX_FAILURES must be a whole number, 0 or more, not '2.5'"),
        ("DGUNET_CPUS_PER_WORKER", "-1", "DGUNET_CPUS_PER_WORKER must be a number, 0 or more, not '-1'"),
        ("DGUNET_DATA_MIRROR", "host", "DGUNET_DATA_MIRROR must be a URL, http:// or https://, not 'host'"),
        ("DGUNET_CPUS_PER_WORKER", "inf", "DGUNET_CPUS_PER_WORKER must be a number, 0 or more, not 'inf'"),
        (
            "DGUNET_WORKER",
            "4",
            "DGUNET_WORKER is not a variable of this project: rename it to DGUNET_WORKERS, or unset it",
        ),
    ],
)
def test_a_wrong_variable_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"^DGUNET_") as error:
        read_environment()
    assert str(error.value) == message


def test_all_wrong_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGUNET_MAX_FAILURES", "x")
    monkeypatch.setenv("DGUNET_TIMEOUT_SECONDS", "-5")
    with pytest.raises(ValueError, match=r"^DGUNET_MAX_FAILURES .* not 'x'; DGUNET_TIMEOUT_SECONDS .* not '-5'$"):
        read_environment()


def test_the_readme_has_a_row_for_every_variable() -> None:
    rows = [line.split("|")[1] for line in DOCUMENTS[0].read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    assert set(re.findall(r"DGUNET_[A-Z_]+", " ".join(rows))) >= VARIABLES


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_only_variables_that_exist(document: Path) -> None:
    names = set(re.findall(r"DGUNET_[A-Z_]*[A-Z]", document.read_text(encoding="utf-8")))
    of_the_server = set(re.findall(r"DGUNET_[A-Z_]+", (PROJECT / "pipeline/tracking/pyfunc_model.py").read_text()))
    assert {name for name in names if not name.startswith("DGUNET_TEST_")} <= VARIABLES | of_the_server


def test_os_environ_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGUNET_WORKERS", "2")
    monkeypatch.setenv("DGUNET_SHARDS", "s3://bucket")
    before = dict(os.environ)
    with pytest.raises(KeyError), restored_environ():
        os.environ["DGUNET_WORKERS"] = "3"
        os.environ["DGUNET_DATA"] = "sets"
        del os.environ["DGUNET_SHARDS"]
        raise KeyError
    assert dict(os.environ) == before


IMPORTS = """
import importlib, os, pkgutil, sys, traceback
import pipeline, dgunet
changes = []

def recorded(method):
    def record(self, *args):
        frames = [frame.filename for frame in traceback.extract_stack()[:-1]]
        caller = next(name for name in reversed(frames) if not name.startswith("<frozen"))  # methods of os.environ
        changes.append((caller, args[0]))
        return method(self, *args)
    return record

kind = type(os.environ)
kind.__setitem__, kind.__delitem__ = recorded(kind.__setitem__), recorded(kind.__delitem__)
for package in (dgunet, pipeline):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name != "dgunet.__main__":
            importlib.import_module(module.name)
print(*(f"{caller}: {name}" for caller, name in changes if caller.startswith(tuple(sys.argv[1:]))), sep="\\n")
print("imported", "pipeline.tuning.search" in sys.modules)
"""


def test_importing_a_module_changes_no_environment_variable() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, f"{PROJECT / 'pipeline'}{os.sep}", f"{PROJECT / 'dgunet'}{os.sep}"],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["imported", "True"]


def test_the_size_limit_of_registered_models_may_be_set_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert f'LIMIT = "{SERVING_LIMIT}"' in (PROJECT / "pipeline" / "tracking" / "pyfunc_model.py").read_text()
    monkeypatch.setenv(SERVING_LIMIT, "5")
    read_environment()
