"""Shards at a URL, each named by its checksum: put there by whoever made it, read through a bounded cache.

The environment says where: DGUNET_SHARDS is an fsspec URL (s3://bucket/shards), or empty where shards lie in their own
folders. A shard is URL/SHA256.tar, so an index, which holds the checksums, finds its shards and is the same wherever
they lie; a shard is never seen half written; and what two tasks share is stored once.

DGUNET_SHARD_CACHE (default .cache/shards; on a cluster dgunet-shards-UID in each node's temporary folder) is a folder
on each machine that its processes share; it holds DGUNET_SHARD_CACHE_GB (default 20) of the shards last opened. A
process that has one open keeps it, even when it leaves the cache.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
from filelock import FileLock

from pipeline.runtime.environment import read_environment

WAITS = (1.0, 4.0, 16.0)  # seconds between attempts to reach the place
ABANDONED_SECONDS = 3600  # a download as old as this belongs to a process that was killed
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}  # a file appears there whole or not at all
Result = TypeVar("Result")


class NotThere(ValueError):
    """The place can be reached, but a shard is missing or is not the one that its name promises; says where."""


class OutOfReach(OSError):
    """The place of the shards cannot be reached, after several attempts; it may come back."""


def in_use() -> bool:
    """Return whether shards lie at a URL (DGUNET_SHARDS)."""
    return bool(read_environment().shards)


def put(path: Path, sha256: str) -> None:
    """Copy the shard `path` to its place. Raises OutOfReach."""
    filesystem, place = _place(sha256)

    def attempt() -> None:
        if _protocols(filesystem) & OBJECT_STORES:
            filesystem.put_file(str(path), place)
            return
        partial = f"{place}.{os.getpid()}.partial"
        filesystem.makedirs(place.rpartition("/")[0], exist_ok=True)
        filesystem.put_file(str(path), partial)
        filesystem.mv(partial, place)

    _persist(attempt, sha256)


def is_intact(sha256: str) -> bool:
    """Whether the shard is in its place; reads all of it. Raises OutOfReach."""
    filesystem, place = _place(sha256)

    def attempt() -> bool:
        filesystem.invalidate_cache()
        try:
            with filesystem.open(place, "rb") as file:
                return _checksum(file) == sha256
        except FileNotFoundError:
            return False

    return _persist(attempt, sha256)


def open_shard(sha256: str) -> BinaryIO:
    """Return the shard opened for reading, verified; it is brought into the cache first where it is not there yet.

    Raises NotThere, OutOfReach.
    """
    environment = read_environment()
    folder, most = environment.shard_cache, environment.shard_cache_gb * 1e9
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{sha256}.tar"
    with FileLock(folder / f".{sha256[:2]}.lock"):  # processes that need the same shard download it once
        return _open_cached(path, sha256) or _bring(path, sha256, most)


def _open_cached(path: Path, sha256: str) -> BinaryIO | None:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    if _checksum(file) != sha256:
        file.close()
        path.unlink(missing_ok=True)
        return None
    return _used(file)


def _bring(path: Path, sha256: str, most: float) -> BinaryIO:
    filesystem, place = _place(sha256)

    def attempt() -> BinaryIO:
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        os.close(handle)
        partial = Path(name)
        try:
            filesystem.get_file(place, name)
            file = partial.open("rb")
            if _checksum(file) != sha256:
                file.close()
                raise NotThere(f"has other content than its name says at {_url(sha256)}")
            _evict(path.parent, most - partial.stat().st_size)
            partial.replace(path)
            return _used(file)
        except FileNotFoundError:
            raise NotThere(f"is missing at {_url(sha256)}") from None
        finally:
            partial.unlink(missing_ok=True)

    return _persist(attempt, sha256)


def _used(file: BinaryIO) -> BinaryIO:
    now = time.time_ns()  # finer than the clock of file times
    os.utime(file.fileno(), ns=(now, now))
    return file


def _evict(folder: Path, limit: float) -> None:
    """Remove what was used longest ago until `limit` bytes are left; unfinished downloads of others stay."""
    files = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # removed by another process
            stat = path.stat()
            if path.suffix == ".tar" or (path.suffix == ".partial" and stat.st_mtime < time.time() - ABANDONED_SECONDS):
                files.append((stat.st_mtime_ns, stat.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            return
        path.unlink(missing_ok=True)
        total -= size


def _persist(attempt: Callable[[], Result], sha256: str) -> Result:
    """Return `attempt()`, tried again after each of WAITS; each protocol has its own errors."""
    for wait in (*WAITS, None):
        try:
            return attempt()
        except NotThere:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            if wait is None:
                reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                raise OutOfReach(
                    f"{_url(sha256)}: cannot be reached, tried {len(WAITS) + 1} times ({reason}). Check DGUNET_SHARDS "
                    "and the network, then run the same command again: it goes on from here"
                ) from error
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _url(sha256: str) -> str:
    return f"{read_environment().shards.rstrip('/')}/{sha256}.tar"


def _place(sha256: str) -> tuple[Any, str]:
    try:
        filesystem, place = fsspec.core.url_to_fs(_url(sha256))
    except (ImportError, ValueError) as error:  # a package that is not installed, a protocol that nobody knows
        raise ValueError(f"DGUNET_SHARDS={read_environment().shards}: {error}") from error
    return filesystem, str(place)


def _protocols(filesystem: Any) -> set[str]:
    return {filesystem.protocol} if isinstance(filesystem.protocol, str) else set(filesystem.protocol)


def _checksum(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()
