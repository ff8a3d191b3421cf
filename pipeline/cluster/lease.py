"""A lease file with a heartbeat in the run's folder, so that two drivers do not run the same training.

The file holds a random id of the driver and the number of its heartbeats, 0 while the driver only claims the lease.
The protocol needs neither file locks nor synchronised clocks:

    claim   wait until there is no lease, or its heartbeat has stopped; write an id; wait for longer than the time from
            that read to the write; read back: the driver whose id is in the file has the lease
    hold    write a heartbeat every SECONDS_BETWEEN_HEARTBEATS, which overwrites claims of other drivers

The claim is Fischer's algorithm (Lamport, "A Fast Mutual Exclusion Algorithm", 1987). On a slow storage, a claim may
overwrite a lease that is already held; the claiming driver then waits for the next heartbeat of the holder.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.cluster import checkpoints
from pipeline.runtime.environment import read_environment

FILE = "driver.json"
OTHER_STORAGE = "set DGUNET_STORAGE to another place"
SECONDS_BETWEEN_HEARTBEATS = 10.0
SECONDS_TO_WATCH = 25.0  # of a heartbeat that may have stopped
SECONDS_TO_SETTLE = 1.0  # from a claim to its read back
_held: set[str] = set()  # ids of the leases that this process holds or claims


class Lease:
    """A lease that this driver holds.

    Attributes:
        lost: the error to raise if another driver has taken the lease, for example while this machine was suspended.
    """

    def __init__(self, address: str, remedy: str) -> None:
        self.address, self.id, self._remedy = address, uuid.uuid4().hex, remedy
        self.lost: ValueError | None = None
        self._content: dict[str, Any] = {"driver": self.id, "heartbeat": 0, **_this_process()}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_heartbeats, daemon=True)

    def claim(self) -> None:
        """Wait for the lease, and start its heartbeat.

        Raises:
            ValueError: another driver has it.
            OSError: the storage cannot be used.
        """
        read = _wait_until_free(self.address, self._remedy)
        _write(self.address, self._content)
        seconds = time.monotonic() - read
        if seconds < SECONDS_TO_SETTLE / 2:
            time.sleep(SECONDS_TO_SETTLE)
        else:
            time.sleep(seconds + 2 * SECONDS_BETWEEN_HEARTBEATS)
        found = _read(self.address)
        if found is None or found["driver"] != self.id:
            raise _taken(self.address, found, self._remedy)
        self._thread.start()

    def release(self) -> None:
        """Stop the heartbeat and delete the file if it still belongs to this driver."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(SECONDS_BETWEEN_HEARTBEATS)  # a storage may hang for longer
        with suppress(OSError):
            found = _read(self.address)
            if found and found["driver"] == self.id:
                filesystem, folder = checkpoints.filesystem(self.address)
                filesystem.delete_file(f"{folder}/{FILE}")

    def _write_heartbeats(self) -> None:
        while True:
            self._content["heartbeat"] += 1
            with suppress(OSError):  # the next checkpoint reports that the storage cannot be used
                found = _read(self.address)
                if found and found["driver"] != self.id and found["heartbeat"]:
                    self.lost = _taken(self.address, found, self._remedy)
                    return
                _write(self.address, self._content)
            if self._ended.wait(SECONDS_BETWEEN_HEARTBEATS):
                return


@contextmanager
def hold_lease(address: str, remedy: str = OTHER_STORAGE) -> Iterator[Lease]:
    """Hold the lease of the run whose folder is `address`; `remedy` ends the message where another driver has it.

    The lease of a killed driver is taken immediately on the same machine, on others after SECONDS_TO_WATCH. While
    another driver has it, wait for up to DGUNET_DRIVER_WAIT_SECONDS: a cluster may restart a run before the former
    driver has ended. Raises ValueError if another driver still has it then, OSError if the storage cannot be used.
    """
    lease = Lease(address, remedy)
    _held.add(lease.id)
    try:
        lease.claim()
        yield lease
    finally:
        lease.release()
        _held.discard(lease.id)


def driven(addresses: Iterable[str]) -> set[str]:
    """Return the folders of runs whose driver is alive. Takes up to SECONDS_TO_WATCH if some may be alive or dead.

    Raises OSError if the storage cannot be read.
    """
    first = {address: _read(address) for address in addresses}
    watched = {address: found for address, found in first.items() if found is not None and not _is_gone(found)}
    alive, started = set[str](), time.monotonic()
    while watched.keys() - alive and time.monotonic() - started < SECONDS_TO_WATCH:
        time.sleep(SECONDS_BETWEEN_HEARTBEATS / 10)
        alive |= {address for address in watched.keys() - alive if _read(address) not in (None, watched[address])}
    return alive


def _wait_until_free(address: str, remedy: str) -> float:
    """Wait until there is no lease or its driver is gone; return the time of that read, from time.monotonic().

    Raises ValueError if the driver is alive after DGUNET_DRIVER_WAIT_SECONDS.
    """
    read = watched_since = time.monotonic()
    deadline = read + read_environment().driver_wait_seconds
    first = _read(address)
    if first is None or _is_gone(first):
        return read
    while time.monotonic() - watched_since < SECONDS_TO_WATCH:
        time.sleep(SECONDS_BETWEEN_HEARTBEATS / 10)
        read = time.monotonic()
        found = _read(address)
        if found is None:
            return read
        if found != first:
            if read > deadline:
                raise _taken(address, found, remedy)
            first, watched_since = found, read
    return read


def _taken(address: str, found: Mapping[str, Any] | None, remedy: str) -> ValueError:
    """Return the error to raise if another driver, whose lease is `found`, has the run."""
    driver = f": process {found['pid']} on {found['host']}" if found else ""
    return ValueError(f"another process drives the run in {address}{driver}. Wait for it, stop it, or {remedy}")


def _is_gone(found: Mapping[str, Any]) -> bool:
    """Return whether the driver of a lease is certainly gone; False if this process cannot know.

    The host name is not enough: two containers may have the same one.
    """
    this = _this_process()
    if not this["boot"] or any(found.get(name) != this[name] for name in ("host", "boot", "pid_namespace")):
        return False
    if found["pid"] == this["pid"] and found["started"] == this["started"]:
        return str(found["driver"]) not in _held
    return bool(_start_time(found["pid"]) != found["started"])


def _this_process() -> dict[str, Any]:
    """Return what identifies this process among those of all machines; `boot` is empty if Linux does not report it."""
    identity = {"host": socket.gethostname(), "pid": os.getpid(), "boot": "", "pid_namespace": "", "started": 0}
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        identity |= {"boot": boot, "pid_namespace": namespace, "started": _start_time(os.getpid())}
    return identity


def _start_time(pid: int) -> int | None:
    """Return when a process of this machine started, in clock ticks since the boot; None if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        # "pid (name) state ppid …": the name may contain spaces and brackets; field 22 is the start.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    return None


def _write(address: str, content: Mapping[str, Any]) -> None:
    filesystem, folder = checkpoints.filesystem(address)
    temporary = f"{folder}/{FILE}.{content['driver']}"  # two drivers may write at the same time
    with filesystem.open_output_stream(temporary) as file:
        file.write(json.dumps(content).encode())
    filesystem.move(temporary, f"{folder}/{FILE}")


def _read(address: str) -> dict[str, Any] | None:
    filesystem, folder = checkpoints.filesystem(address)
    with suppress(FileNotFoundError, ValueError), filesystem.open_input_stream(f"{folder}/{FILE}") as file:
        content: dict[str, Any] = json.loads(file.read())
        return content
    return None
