"""infra/python: which Python runs the stages of dvc.yaml."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from factories import PROJECT


def write_python(folder: Path, name: str) -> None:
    """Write a program `python` that prints `name` and its arguments."""
    folder.mkdir(parents=True)
    (folder / "python").write_text(f'#!/bin/sh\necho {name} "$@"\n')
    (folder / "python").chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in a path with a space; another `python` is on the PATH."""
    folder = tmp_path / "a checkout"
    (folder / "infra").mkdir(parents=True)
    shutil.copy(PROJECT / "infra" / "python", folder / "infra")
    write_python(tmp_path / "bin", "path")
    return folder


def run(launcher: Path, **variables: str) -> str:
    """What the launcher prints, called by its absolute path from another folder."""
    path = f"{launcher.parents[1].parent / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    environment = {"PATH": variables.pop("PATH", path), **variables}
    done = subprocess.run([launcher, "-m", "a b"], cwd="/", env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_environment_of_the_checkout_runs_where_none_is_activated(checkout: Path) -> None:
    write_python(checkout / ".venv" / "bin", "checkout")
    assert run(checkout / "infra" / "python") == "checkout -m a b\n"


def test_an_activated_environment_runs_also_where_the_checkout_has_one(checkout: Path) -> None:
    write_python(checkout / ".venv" / "bin", "checkout")
    assert run(checkout / "infra" / "python", VIRTUAL_ENV="/somewhere") == "path -m a b\n"


def test_the_python_on_the_path_runs_where_the_checkout_has_no_environment(checkout: Path) -> None:
    assert run(checkout / "infra" / "python") == "path -m a b\n"


def test_a_copy_that_dvc_makes_for_an_experiment_uses_the_environment_of_its_checkout(checkout: Path) -> None:
    write_python(checkout / ".venv" / "bin", "checkout")
    copy = checkout / ".dvc" / "tmp" / "exps" / "standalone" / "tmpa1"
    shutil.copytree(checkout / "infra", copy / "infra")
    path = f"{checkout.parent / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    assert run(copy / "infra" / "python", PATH=path) == "checkout -m a b\n"
