"""How a command runs: one line for an error, a traceback in a file for an unexpected one, no stage without its DVC."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from factories import PROJECT, small_params
from processes import started

from pipeline.config.params import load_section
from pipeline.runtime import entry_point


def test_a_mistake_of_the_user_is_one_line_and_exits_with_1(tmp_path: Path) -> None:
    params = small_params()
    params["derain"]["train"]["learning_rate"] = -1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.validate"],
        cwd=tmp_path, env={"PYTHONPATH": str(PROJECT), "PATH": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: params.yaml:\n  derain.train.learning_rate: should be greater than 0, not -1\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; the command line names `models` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["command", "--model", "models"])
    return tmp_path


def message(main: Callable[[], Any]) -> str:
    """The line with which `main` ends as a command."""
    with pytest.raises(SystemExit) as ended:
        entry_point.run_command(main)
    return str(ended.value)


def project_code(source: str) -> Callable[[], Any]:
    """A function that runs `source` as code of a file of the project."""
    return lambda: exec(compile(source, str(PROJECT / "pipeline" / "some.py"), "exec"), {})


@pytest.mark.parametrize(
    ("main", "start"),
    [
        (lambda: np.zeros(2) + np.zeros(3), "error: operands could not be broadcast"),
        (lambda: list(Path(__file__).iterdir()), "error: [Errno 20] Not a directory"),
        (lambda: Path("elsewhere").read_text(), "error: [Errno 2] No such file or directory: 'elsewhere'"),
        (lambda: shutil.copytree("empty/link", "copy"), "error: [Errno 2] No such file"),
        (lambda: shutil.copytree("empty", "copy"), "error: [Errno 2] No such file"),
        (project_code("import os; os.mkdir('empty')"), "error: [Errno 17] File exists: 'empty'"),
    ],
    ids=["library", "operating system", "absent file", "absent folder", "copy", "system call in project code"],
)
def test_the_traceback_of_an_unexpected_error_is_in_a_file(folder: Path, main: Callable[[], Any], start: str) -> None:
    (folder / "empty").mkdir()
    (folder / "empty" / "link").symlink_to("nowhere")
    said = message(main)
    assert said.startswith(start)
    assert said.endswith(" (the traceback is in .cache/last-error.txt)")
    assert said.count("\n") == 0
    trace = Path(".cache/last-error.txt").read_text()
    assert trace.startswith("Traceback (most recent call last):\n") and "run_command" in trace


@pytest.mark.parametrize(
    ("main", "expected"),
    [
        (lambda: load_section("seed", int), "params.yaml is missing: run from the root of the checkout"),
        (project_code("raise OSError('the store is gone')"), "the store is gone"),
        (project_code("raise OSError(13, 'no; not written', 'x.png')"), "[Errno 13] no; not written: 'x.png'"),
        (lambda: Path("models/a").read_text(), "[Errno 2] No such file or directory: 'models/a'"),
    ],
    ids=["ValueError", "OSError", "OSError with a number", "file that the command line names"],
)
def test_an_expected_error_is_one_line_without_a_traceback(
    folder: Path, main: Callable[[], Any], expected: str
) -> None:
    assert message(main) == f"error: {expected}"
    assert not Path(".cache").exists()


def test_a_full_disk_is_one_line_with_what_to_do(folder: Path) -> None:
    def fill() -> None:
        with Path("/dev/full").open("w") as file:
            file.write("x")

    assert (
        message(fill) == "error: [Errno 28] No space left on device: free some space, then run the same command again"
    )
    assert not Path(".cache").exists()


STAGE = """
import signal, sys, time
from pipeline.runtime.entry_point import run_command

def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    print("started", flush=True)
    time.sleep(100)  # ends by itself if nothing stops it

run_command(main)
"""


def test_a_stage_stops_when_its_parent_is_not_dvc(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    with started("sleep", "60") as parent, monkeypatch.context() as patched:
        patched.setattr(os, "kill", lambda *call: sent.append(call))
        patched.setattr(psutil.Process, "ppid", lambda self: parent.pid)
        entry_point._stop_after_dvc(psutil.Process(), parent.pid)
    assert sent == [(os.getpid(), signal.SIGTERM)]


def test_a_stage_ends_on_sigterm_though_dvc_ignores_it() -> None:
    main = (
        "from pipeline.runtime.entry_point import run_command; import os; run_command(lambda: os.kill(os.getpid(), 15))"
    )
    with started(
        "sh",
        "-c",
        'trap "" TERM; "$@"; exit "$?"',
        "sh",
        sys.executable,
        "-c",
        main,
        env=os.environ | {"DVC_STAGE": "a"},
    ) as shell:
        assert shell.wait(60) == 128 + signal.SIGTERM


@pytest.mark.parametrize("command", ['exec "$0" "$@"', '"$0" "$@"; true'], ids=["replaced", "waiting"])
def test_a_stage_stops_when_dvc_was_killed_and_the_shell_between_them_was_not(command: str) -> None:
    dvc = f"""
import os, subprocess, sys
subprocess.run(["/bin/sh", "-c", {command!r}, sys.executable, "-c", {STAGE!r}], env=os.environ | {{"DVC_STAGE": "x"}})
"""
    with started(sys.executable, "-c", dvc, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout
        assert process.stdout.readline() == "started\n"
        process.kill()
        assert process.stdout.read() == "stopped\n"


@pytest.mark.parametrize("lines", [1, 100_000])  # written when the program ends, and while it runs
def test_a_command_ends_quietly_where_nobody_reads_its_output(tmp_path: Path, lines: int) -> None:
    code = (
        f"from pipeline.runtime.entry_point import run_command\nrun_command(lambda: print(*range({lines}), sep='\\n'))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={"PYTHONPATH": str(PROJECT)}, stdout=writer, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
    assert not list(tmp_path.iterdir())


def test_another_broken_pipe_is_an_error(folder: Path) -> None:
    def main() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        os.write(writer, b"x")

    assert message(main).startswith("error: [Errno 32] Broken pipe (the traceback is in ")
