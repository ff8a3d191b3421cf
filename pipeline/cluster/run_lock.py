"""A lock that keeps two processes on this machine from working on the same run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from pipeline.runtime.files import PROJECT

LOCKS = PROJECT / ".cache" / "locks"


@contextmanager
def hold_run_lock(name: str) -> Iterator[None]:
    """Hold the lock of the run `name`; ValueError if another process on this machine holds it."""
    LOCKS.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(LOCKS / name).acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process works on {name}: wait for it, or stop it") from None
    with lock:
        yield
