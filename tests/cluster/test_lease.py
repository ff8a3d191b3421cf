"""One driver for each run, wherever the other is: seen by a beat in the run's folder, never by clocks."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from factories import PROJECT
from processes import until

from pipeline.cluster import lease

BEATS = """
import time
from pipeline.cluster import lease
with lease.hold_lease({!r}):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SECONDS_BETWEEN_BEATS", 0.1)
    monkeypatch.setattr(lease, "SECONDS_TO_WATCH", 1.0)


def elsewhere(folder: Path, beat: int) -> None:
    (folder / "new").write_text(json.dumps({"host": "elsewhere", "pid": 7, "driver": "d", "beat": beat}))
    (folder / "new").replace(folder / lease.NAME)


def test_a_run_that_another_machine_drives_is_refused(tmp_path: Path) -> None:
    over = threading.Event()

    def beat() -> None:
        for number in range(1000):
            elsewhere(tmp_path, number)
            if over.wait(0.02):
                return

    heart = threading.Thread(target=beat)
    heart.start()
    until((tmp_path / lease.NAME).exists)
    with pytest.raises(ValueError, match="number 7 on elsewhere"), lease.hold_lease(str(tmp_path)):
        pass
    over.set()
    heart.join()
    assert json.loads((tmp_path / lease.NAME).read_text())["host"] == "elsewhere"


def test_a_driver_that_died_on_another_machine_is_followed(tmp_path: Path) -> None:
    elsewhere(tmp_path, 3)
    with lease.hold_lease(str(tmp_path)):
        until(lambda: json.loads((tmp_path / lease.NAME).read_text())["host"] == socket.gethostname())
        first = json.loads((tmp_path / lease.NAME).read_text())
        until(lambda: json.loads((tmp_path / lease.NAME).read_text())["beat"] > first["beat"])
    assert not (tmp_path / lease.NAME).exists()


def test_a_driver_that_was_killed_on_this_machine_is_followed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", BEATS.format(str(tmp_path))]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        until((tmp_path / lease.NAME).exists)
        other.kill()
    monkeypatch.setattr(lease, "SECONDS_TO_WATCH", 1e9)
    with lease.hold_lease(str(tmp_path)):
        until(lambda: json.loads((tmp_path / lease.NAME).read_text())["pid"] == os.getpid())


def test_a_storage_that_is_away_does_not_end_the_lease(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with lease.hold_lease(str(folder)):
        until((folder / lease.NAME).exists)
        folder.rename(tmp_path / "away")
        first = json.loads((tmp_path / "away" / lease.NAME).read_text())["beat"]
        (tmp_path / "away").rename(folder)
        until(lambda: json.loads((folder / lease.NAME).read_text())["beat"] > first + 1)
        folder.rename(tmp_path / "away")
