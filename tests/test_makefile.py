"""Targets of the Makefile that a test can run in a folder of its own."""

import shutil
import subprocess
from pathlib import Path

from factories import PROJECT


def clean(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["make", "clean", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def test_clean_keeps_unfinished_work_unless_it_is_asked_to_remove_it(tmp_path: Path) -> None:
    shutil.copy(PROJECT / "Makefile", tmp_path)
    for name in ("data", "models", ".cache/prepare", ".cache/runs/denoise-1", ".cache/synthesize"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "mlflow.db").touch()
    said = clean(tmp_path)
    assert "kept: unfinished work in .cache/runs (make clean UNFINISHED=1 removes it)" in said
    assert ".cache/synthesize (" not in said, "it is empty"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".cache", "Makefile", "mlflow.db"]
    assert (tmp_path / ".cache/runs/denoise-1").is_dir()
    assert not (tmp_path / ".cache/prepare").exists()
    clean(tmp_path, "UNFINISHED=1")
    assert not list((tmp_path / ".cache").iterdir())
    clean(tmp_path)  # with nothing to remove


def test_values_of_variables_reach_commands_as_they_are(tmp_path: Path) -> None:
    shutil.copy(PROJECT / "Makefile", tmp_path)
    shutil.copy(PROJECT / "constraints.txt", tmp_path)
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("python", "dvc"):  # they show their arguments
        (tmp_path / ".venv" / "bin" / name).write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
        (tmp_path / ".venv" / "bin" / name).chmod(0o755)
    (tmp_path / ".venv" / ".ready").touch()
    value = "a b; touch injected; $(touch injected) ' \" `touch injected`"
    for target, variable in (
        ("preview", "TASK"),
        ("preview", "PAIR"),
        ("tune", "TASK"),
        ("apply", "RECIPE"),
        ("plan", "GPUS"),
    ):
        written = value.replace("$", "$$")  # make's own escape
        said = subprocess.run(
            ["make", target, f"{variable}={written}"], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        assert f"<{value}>" in said, said
        assert not (tmp_path / "injected").exists()
