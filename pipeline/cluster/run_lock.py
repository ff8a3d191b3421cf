"""A lock that keeps two processes on this machine off the same run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from pipeline.runtime.files import PROJECT

LOCKS = PROJECT / ".cache" / "locks"


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Keep other processes on this machine away from the run `name`; ValueError if one is at work on it."""
    LOCKS.mkdir(parents=True, exist_ok=True)
    try:
        hold_lease = FileLock(LOCKS / name).acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process is at work on {name}: wait for it, or stop it") from None
    with hold_lease:
        yield
