"""Starts, observes and kills processes for tests: programs, and a local S3 server."""

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
    """Call `condition` until it returns something true, and return that; TimeoutError after `seconds`.

    The pauses are long where `condition` takes long, so that asking leaves the CPUs to what is waited for.
    """
    deadline = time.monotonic() + seconds
    asked = time.monotonic()
    while not (result := condition()):
        answered = time.monotonic()
        if answered > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {condition}")
        time.sleep(min(max(0.05, 5 * (answered - asked)), 1.0))
        asked = time.monotonic()
    return result


def command(process: psutil.Process) -> str:
    """The command line of a process; empty if it has ended, also while it is a zombie."""
    try:
        return " ".join(process.cmdline()) if process.is_running() else ""
    except psutil.NoSuchProcess:
        return ""


@contextmanager
def started(*command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a process in a process group of its own; the end of the context kills it and all its descendants."""
    with subprocess.Popen(command, start_new_session=True, text=True, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                parent = psutil.Process(process.pid)
                for running in [*parent.children(recursive=True), parent]:
                    with suppress(psutil.NoSuchProcess):
                        running.kill()


# A server that is started in this way ends with the tests, also where they are killed and cannot stop it. One that has
# child processes needs TERM, to end them.
KILLED_WITH_THE_TESTS = ("setpriv", "--pdeathsig", "KILL")
ENDED_WITH_THE_TESTS = ("setpriv", "--pdeathsig", "TERM")
# `mlflow server` starts processes for jobs, each of which imports MLflow for seconds; no test needs them.
WITHOUT_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


class S3Server:
    """An S3 server on this machine, started for a test."""

    bucket = "bucket"

    def __init__(self, log: Path, address: str = "127.0.0.1") -> None:
        self.log = log
        command = [sys.executable, "-m", "moto.server", "-H", address, "-p", "0"]
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)
        self.port = int(until(self.port_in_log).group(1))

    def port_in_log(self) -> re.Match[str] | None:
        """The line of the log that names the port; None until the server listens."""
        log = self.log.read_text()
        assert self.process.poll() is None, log
        return re.search(r"Running on http://[\d.]+:(\d+)", log)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def client(self) -> Any:
        """A client of the server; creates the bucket."""
        import boto3

        client = boto3.client("s3")
        client.create_bucket(Bucket=self.bucket)
        return client


SmallDisk = Callable[[Path, str], None]
"""Mounts a file system of a size ("200k", "4m") at a folder, or changes the size of the one mounted there."""
