"""One driver for each run, wherever another one is: the lease is judged by its id and heartbeat, never by clocks."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from factories import PROJECT
from processes import started, until

from pipeline.cluster import lease

DRIVER = """
import sys, time
from pipeline.cluster import lease
wait_until_free = lease._wait_until_free

def wait_and_pause(*arguments):
    read = wait_until_free(*arguments)
    print("free", flush=True)
    time.sleep(float(sys.stdin.readline()))  # as a slow storage
    return read

lease._wait_until_free = wait_and_pause
for folder in map(str.strip, sys.stdin):
    try:
        with lease.hold_lease(folder):
            print("held", flush=True)
            sys.stdin.readline()
        print("released", flush=True)
    except ValueError as error:
        print(f"refused: {error}", flush=True)
"""


class Driver:
    """A process that claims leases. It pauses between the look whether a lease is free and its claim."""

    def __init__(self, process: Any) -> None:
        self.process, self.pid = process, process.pid

    def say(self, line: object) -> None:
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        return str(self.process.stdout.readline()).strip()


@contextmanager
def driver() -> Iterator[Driver]:
    command = [sys.executable, "-c", DRIVER]
    with started(*command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Driver(process)


@pytest.fixture(scope="module")
def drivers() -> Iterator[list[Driver]]:
    with driver() as first, driver() as second:
        yield [first, second]


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SECONDS_BETWEEN_HEARTBEATS", 0.1)
    monkeypatch.setattr(lease, "SECONDS_TO_WATCH", 1.0)
    monkeypatch.setattr(lease, "SECONDS_TO_SETTLE", 0.2)


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / lease.FILE).read_text())
    return found


def write(folder: Path, **values: Any) -> None:
    """Write the lease of another driver; of what `values` does not say it is like that of this process."""
    (folder / "new").write_text(json.dumps({**lease._this_process(), "driver": "other", "heartbeat": 3, **values}))
    (folder / "new").replace(folder / lease.FILE)


@contextmanager
def heartbeat(folder: Path, seconds: float = 0.02, **values: Any) -> Iterator[None]:
    """Another driver, in a thread, that has the lease."""
    ended = threading.Event()

    def write_heartbeats() -> None:
        for number in range(1, 1000):
            write(folder, **values, heartbeat=number)
            if ended.wait(seconds):
                return

    thread = threading.Thread(target=write_heartbeats)
    thread.start()
    try:
        until((folder / lease.FILE).exists)
        yield
    finally:
        ended.set()
        thread.join()


def test_a_run_that_another_machine_drives_is_refused(tmp_path: Path) -> None:
    with (
        heartbeat(tmp_path, host="elsewhere", pid=7),
        pytest.raises(ValueError, match="process 7 on elsewhere"),
        lease.hold_lease(str(tmp_path)),
    ):
        pass
    assert content(tmp_path)["host"] == "elsewhere"


def test_a_run_that_is_started_again_waits_for_the_former_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGUNET_DRIVER_WAIT_SECONDS", "60")
    other = heartbeat(tmp_path, host="elsewhere", pid=7)
    other.__enter__()
    end = threading.Timer(1.5, other.__exit__, (None, None, None))  # longer than a stopped heartbeat is watched
    end.start()
    with lease.hold_lease(str(tmp_path)):
        assert content(tmp_path)["pid"] == os.getpid()
    end.join()


def test_a_run_whose_driver_goes_on_is_refused_after_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGUNET_DRIVER_WAIT_SECONDS", "2")
    started_at = time.monotonic()
    with (
        heartbeat(tmp_path, host="elsewhere", pid=7),
        pytest.raises(ValueError, match="process 7 on elsewhere"),
        lease.hold_lease(str(tmp_path)),
    ):
        pass
    assert time.monotonic() - started_at >= 2


@pytest.mark.parametrize("other", [{"pid_namespace": "pid:[1]"}, {"boot": "of another machine"}, {"boot": ""}])
def test_a_driver_in_another_container_with_the_same_host_name_is_not_taken_for_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, str]
) -> None:
    monkeypatch.setattr(lease, "SECONDS_TO_WATCH", 60.0)
    with (
        heartbeat(tmp_path, seconds=2.0, pid=10**7, started=1, **other),  # there is no such process here
        pytest.raises(ValueError, match=f"process 10000000 on {socket.gethostname()}"),
        lease.hold_lease(str(tmp_path)),
    ):
        pass


def test_the_lease_of_a_driver_that_died_on_another_machine_is_taken(tmp_path: Path) -> None:
    write(tmp_path, host="elsewhere", pid=7)
    with lease.hold_lease(str(tmp_path)):
        first = content(tmp_path)
        assert first["host"] == socket.gethostname()
        until(lambda: content(tmp_path)["heartbeat"] > first["heartbeat"])
    assert not (tmp_path / lease.FILE).exists()


def test_the_lease_of_a_driver_that_was_killed_on_this_machine_is_taken_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driver() as other:
        other.say(tmp_path)
        other.say(0)
        assert [other.answer(), other.answer()] == ["free", "held"]
        other.process.kill()
    assert content(tmp_path)["pid"] == other.pid
    monkeypatch.setattr(lease, "SECONDS_TO_WATCH", 1e9)
    with lease.hold_lease(str(tmp_path)):
        assert content(tmp_path)["pid"] == os.getpid()


def test_the_number_of_a_driver_that_died_may_belong_to_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, pid=os.getppid(), started=1)
    monkeypatch.setattr(lease, "SECONDS_TO_WATCH", 1e9)
    with lease.hold_lease(str(tmp_path)):
        assert content(tmp_path)["driver"] != "other"


def test_a_run_that_this_process_drives_is_refused(tmp_path: Path) -> None:
    with lease.hold_lease(str(tmp_path)):
        with pytest.raises(ValueError, match="another process drives"), lease.hold_lease(str(tmp_path)):
            pass
        assert content(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize("seconds", [0.0, 0.0, 0.1, 0.4])
def test_of_two_drivers_that_start_together_one_continues(
    tmp_path: Path, drivers: list[Driver], seconds: float
) -> None:
    for each in drivers:
        each.say(tmp_path)
    assert [each.answer() for each in drivers] == ["free", "free"]  # neither sees a lease of the other
    drivers[0].say(0)
    drivers[1].say(seconds)
    answers = [each.answer().partition(":")[0] for each in drivers]
    assert sorted(answers) == ["held", "refused"]
    holder = drivers[answers.index("held")]
    assert content(tmp_path)["pid"] == holder.pid
    holder.say("release")
    assert holder.answer() == "released"


def test_a_claim_that_was_written_too_late_is_refused(tmp_path: Path, drivers: list[Driver]) -> None:
    late = drivers[0]
    late.say(tmp_path)
    assert late.answer() == "free"
    with lease.hold_lease(str(tmp_path)) as held:
        late.say(0)
        assert late.answer().startswith("refused: another process drives")
        assert not held.lost
        until(lambda: content(tmp_path)["driver"] == held.id)


def test_a_driver_learns_that_another_one_has_taken_over(tmp_path: Path) -> None:
    with lease.hold_lease(str(tmp_path)) as held, heartbeat(tmp_path, host="elsewhere", pid=7):
        until(lambda: held.lost)
    assert "process 7 on elsewhere" in str(held.lost)
    assert content(tmp_path)["host"] == "elsewhere"


def test_a_storage_that_is_unavailable_does_not_end_the_lease(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with lease.hold_lease(str(folder)):
        folder.rename(tmp_path / "away")
        first = content(tmp_path / "away")["heartbeat"]
        (tmp_path / "away").rename(folder)
        until(lambda: content(folder)["heartbeat"] > first + 1)
        folder.rename(tmp_path / "away")


def test_runs_whose_driver_is_alive_are_separated_from_the_others(tmp_path: Path) -> None:
    names = ("driven", "elsewhere", "silent", "dead", "without")
    folders = {name: tmp_path / name for name in names}
    for folder in folders.values():
        folder.mkdir()
    write(folders["silent"], host="elsewhere", pid=7)
    write(folders["dead"], pid=10**7, started=1)
    with lease.hold_lease(str(folders["driven"])), heartbeat(folders["elsewhere"], host="elsewhere", pid=7):
        found = lease.driven(map(str, folders.values()))
    assert found == {str(folders[name]) for name in ("driven", "elsewhere")}
