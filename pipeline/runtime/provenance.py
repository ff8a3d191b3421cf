"""Where a result comes from: the commit of the code, whether the code was changed since, and the processor."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

from pipeline.runtime.files import PROJECT

CODE = ("dgunet", "pipeline", "params.yaml", "dvc.yaml")


def commit() -> str:
    """Return the commit of the checkout, with "+changes" if code or parameters differ from it.

    If git cannot tell, return "unknown" and print the reason once.
    """
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "--", *CODE) else "")
    except FileNotFoundError:
        _warn("git is not installed")
    except subprocess.CalledProcessError as error:
        _warn(reason_of_git(error.stderr))
    except OSError as error:
        _warn(str(error))
    return "unknown"


@cache
def _warn(reason: str) -> None:
    print(f"the commit of this checkout is recorded as unknown: {reason}", file=sys.stderr)


def reason_of_git(message: str) -> str:
    """Return an error message of git in one line, with a remedy if there is one."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    remedy = next((line for line in lines if line.startswith("git config")), None)
    if "dubious ownership" in message and remedy:
        return f"it belongs to another user; if you trust it: {remedy}"
    if "unknown revision" in message or "Needed a single revision" in message:
        return "it has no commit yet"
    if "not a git repository" in message:
        return "it is not a git repository"
    return lines[0].removeprefix("fatal: ") if lines else "git failed without a message"


def processor() -> str:
    """Return the name of this machine's processor and the number of cores that this process may use."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {_num_cores()} cores"
    return f"{platform.processor() or platform.machine()}, {_num_cores()} cores"


def digest(paths: Iterable[Path]) -> str:
    """Return the sha256 of the files' names and contents."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _git(*arguments: str) -> str:
    environment = {**os.environ, "LC_ALL": "C"}  # its messages are compared
    done = subprocess.run(
        ["git", *arguments], cwd=PROJECT, env=environment, capture_output=True, text=True, check=True, errors="replace"
    )
    return done.stdout.strip()
