"""Where a result comes from: the commit of the code, and whether the code was changed since."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path

from pipeline.runtime.files import PROJECT

CODE = ("dgunet", "pipeline", "params.yaml", "dvc.yaml")


def commit() -> str:
    """Return the commit of the checkout, with "+changes" where code or parameters differ from it."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "--", *CODE) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def digest(paths: Iterable[Path]) -> str:
    """Return the sha256 of the files' names and contents."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
