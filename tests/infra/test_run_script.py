"""infra/run.sh is stopped as `ray job stop` does it: SIGTERM to each of its processes."""

import shutil
import sys
from pathlib import Path

import psutil
import pytest
from factories import PROJECT
from processes import started, until

STAGE = """
import pathlib, signal, time
stopped = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: stopped.append(number))
pathlib.Path("started").touch()
while not stopped:
    time.sleep(0.1)
time.sleep(2)
pathlib.Path("saved").touch()
raise SystemExit(130)
"""


@pytest.mark.slow
def test_dvc_and_the_script_wait_for_a_stage_that_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("infra", ".venv/bin"):
        Path(name).mkdir(parents=True)
    shutil.copy(PROJECT / "infra" / "run.sh", "infra")
    Path(".venv/bin/python").write_text("#!/bin/sh\n")  # doctor and results, which need a cluster
    Path(".venv/bin/python").chmod(0o755)
    Path("stage.py").write_text(STAGE)
    Path("dvc.yaml").write_text(f"stages: {{train: {{cmd: {sys.executable} stage.py}}}}\n")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("SHELL", "/bin/sh")
    with started("dvc", "init", "--quiet", "--no-scm") as made:
        assert made.wait(120) == 0
    with Path("log").open("w") as log, started("infra/run.sh", "train", stdout=log, stderr=log) as script:
        until(lambda: Path("started").exists() or script.poll() is not None, 120)
        entry = psutil.Process(script.pid)
        processes = [entry, *entry.children(recursive=True)]
        for process in processes:
            process.terminate()
        assert script.wait(120) != 0
        assert Path("saved").exists(), "the script ended before its stage"
    assert not [process for process in processes if process.is_running()]
    output = Path("log").read_text()
    assert "asked to stop: saving" in output
    assert "failed to reproduce 'train'" in output
