"""How every door is run: a mistake is told in one line, a fault of ours is traced, a stage does not outlive its DVC."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from factories import PROJECT, small_params
from processes import started

from pipeline.config.params import load_section
from pipeline.runtime import entry_point


def test_a_door_tells_a_mistake_in_one_line_and_exits_with_1(tmp_path: Path) -> None:
    params = small_params()
    params["derain"]["train"]["learning_rate"] = -1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.validate"],
        cwd=tmp_path, env={"PYTHONPATH": str(PROJECT), "PATH": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: params.yaml:\n  derain.train.learning_rate: should be greater than 0, not -1\n"


def test_an_error_in_the_words_of_a_library_is_traced_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"could not be broadcast.*where it happened is in .cache/last-error.txt"):
        entry_point.run_command(lambda: np.zeros(2) + np.zeros(3))
    assert "entry_point.run_command(lambda: np.zeros(2) + np.zeros(3))" in Path(".cache/last-error.txt").read_text()


def test_an_error_in_words_of_ours_is_not_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"run from the root of the checkout[^()]*$"):
        entry_point.run_command(lambda: load_section("seed", int))
    assert not Path(".cache").exists()


STAGE = """
import signal, sys, time
from pipeline.runtime.entry_point import run_command

def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))
    print("at work", flush=True)
    time.sleep(100)  # told nothing, it ends by itself

run_command(main)
"""


def test_a_stage_that_was_left_to_a_process_that_is_no_dvc_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    with started("sleep", "60") as heir, monkeypatch.context() as patched:
        patched.setattr(os, "kill", lambda *call: told.append(call))
        patched.setattr(psutil.Process, "ppid", lambda self: heir.pid)
        entry_point._follow(psutil.Process(), heir.pid)
    assert told == [(os.getpid(), signal.SIGTERM)]


@pytest.mark.parametrize("command", ['exec "$0" "$@"', '"$0" "$@"; true'], ids=["replaced", "waiting"])
def test_a_stage_stops_when_its_dvc_was_killed_and_the_shell_between_them_was_not(command: str) -> None:
    dvc = f"""
import os, subprocess, sys
subprocess.run(["/bin/sh", "-c", {command!r}, sys.executable, "-c", {STAGE!r}], env=os.environ | {{"DVC_STAGE": "x"}})
"""
    with started(sys.executable, "-c", dvc, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout
        assert process.stdout.readline() == "at work\n"
        process.kill()
        assert process.stdout.read() == "told to stop\n"
