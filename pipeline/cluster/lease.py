"""Who drives a run: a beat in the run's own folder, so that also drivers on other machines see that it is taken."""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from pipeline.cluster import checkpoints

NAME = "driver.json"
SECONDS_BETWEEN_BEATS = 10.0
SECONDS_TO_WATCH = 25.0


@contextmanager
def hold_lease(address: str) -> Iterator[None]:
    """Drive the run whose folder is `address`; ValueError where another driver is at work on it.

    A driver that is gone leaves its last beat. That it is gone shows at once on its own machine; elsewhere the beat is
    watched for SECONDS_TO_WATCH. Clocks are not compared. An outage of the storage is for others to tell.
    """
    _make_sure_nobody_else_drives(address)
    over = threading.Event()
    heart = threading.Thread(target=_beat, args=(address, over), daemon=True)
    heart.start()
    try:
        yield
    finally:
        over.set()
        heart.join(SECONDS_BETWEEN_BEATS)  # not for ever: a storage may hang
        with suppress(OSError):
            filesystem, folder = checkpoints.place(address)
            filesystem.delete_file(f"{folder}/{NAME}")


def _make_sure_nobody_else_drives(address: str) -> None:
    found = _read(address)
    if found is None or (found["host"] == socket.gethostname() and _is_gone(found["pid"])):
        return
    deadline = time.monotonic() + SECONDS_TO_WATCH
    while time.monotonic() < deadline:
        time.sleep(SECONDS_BETWEEN_BEATS / 10)
        now = _read(address)
        if now is None:
            return
        if now != found:
            raise ValueError(
                f"another process drives the run in {address}: number {now['pid']} on {now['host']}. Wait for it, or "
                "stop it; DGUNET_STORAGE names a place for runs of your own"
            )


def _is_gone(pid: int) -> bool:
    return pid == os.getpid() or not psutil.pid_exists(pid)


def _beat(address: str, over: threading.Event) -> None:
    driver = {"host": socket.gethostname(), "pid": os.getpid(), "driver": uuid.uuid4().hex}
    for beat in itertools.count():
        with suppress(OSError):
            _write(address, {**driver, "beat": beat})
        if over.wait(SECONDS_BETWEEN_BEATS):
            return


def _write(address: str, beat: dict[str, Any]) -> None:
    filesystem, folder = checkpoints.place(address)
    with filesystem.open_output_stream(f"{folder}/{NAME}.new") as file:
        file.write(json.dumps(beat).encode())
    filesystem.move(f"{folder}/{NAME}.new", f"{folder}/{NAME}")


def _read(address: str) -> dict[str, Any] | None:
    filesystem, folder = checkpoints.place(address)
    with suppress(FileNotFoundError, ValueError), filesystem.open_input_stream(f"{folder}/{NAME}") as file:
        found: dict[str, Any] = json.loads(file.read())
        return found
    return None
