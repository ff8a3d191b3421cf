"""Starts, watches and kills processes for tests: programs, and a local S3 server."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil


def until(condition: Callable[[], Any], seconds: float = 600) -> Any:
    """Return what `condition` returns once that is true; TimeoutError if it never is."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {condition}")
        time.sleep(0.05)
    return result


def command(process: psutil.Process) -> str:
    """The command line of a process; empty if it has ended, whether reaped or not."""
    try:
        return " ".join(process.cmdline()) if process.is_running() else ""
    except psutil.NoSuchProcess:
        return ""


@contextmanager
def started(*command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that leads a group of its own; what of it and of all that it started is left in the end is killed."""
    with subprocess.Popen(command, start_new_session=True, text=True, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                for left in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                    with suppress(psutil.NoSuchProcess):
                        left.kill()


class S3Server:
    """A bucket on an S3 server of our own."""

    bucket = "bucket"

    def __init__(self, log: Path) -> None:
        self.log = log
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)
        self.port = int(until(self.listening).group(1))

    def listening(self) -> re.Match[str] | None:
        """What it says of its port, once it listens."""
        said = self.log.read_text()
        assert self.process.poll() is None, said
        return re.search(r"Running on http://127\.0\.0\.1:(\d+)", said)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def client(self) -> Any:
        """A client of the server, with the bucket made."""
        import boto3

        client = boto3.client("s3")
        client.create_bucket(Bucket=self.bucket)
        return client


SmallDisk = Callable[[Path, str], None]
"""Mounts a disk of so many bytes ("200k", "4m") at a folder, or gives the one that is there another size."""
