"""Shards in object storage, each named by its checksum, and a local cache of limited size to read them through.

DGUNET_SHARDS is an fsspec URL (s3://bucket/shards); if it is empty, shards are stored in the task's folders. A shard is
URL/SHA256.tar, and URL/records/ says which shards belong together. The index holds the checksums, so it needs no paths
and does not depend on where the shards are stored. Readers never see a shard that is half written. Shards that two
tasks share are stored once.

DGUNET_SHARD_CACHE (default .cache/shards; on a cluster dgunet-shards-UID in each node's temporary folder) is a folder
that all processes of a machine share. It holds the most recently opened shards, up to DGUNET_SHARD_CACHE_GB (default
20). A process can continue to read an open shard after it is evicted from the cache.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
from filelock import FileLock

from pipeline.runtime.environment import read_environment

WAITS = (1.0, 4.0, 16.0)  # seconds between attempts to reach the URL
ABANDONED_SECONDS = 3600  # a download as old as this belongs to a process that was killed
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}  # their writes are atomic
RECORDS = "records"  # folder below the URL
Result = TypeVar("Result")


class NoSuchShard(ValueError):
    """The URL can be reached, but a shard is missing, or its content does not match the checksum in its name."""


class OutOfReach(OSError):
    """The URL of the shards cannot be reached after several attempts; a later attempt may succeed."""


def in_use() -> bool:
    """Return whether shards are stored at a URL (DGUNET_SHARDS)."""
    return bool(read_environment().shards)


def put(path: Path, sha256: str) -> None:
    """Upload the shard `path`. Raises OutOfReach."""
    filesystem, place = _place(sha256)

    _persist(lambda: upload(filesystem, path, place), sha256)


def upload(filesystem: Any, path: Path, place: str) -> None:
    """Copy a local file to a place on a file system of fsspec, where it appears whole or not at all."""
    if _protocols(filesystem) & OBJECT_STORES:
        filesystem.put_file(str(path), place)
        return
    partial = f"{place}.{os.getpid()}.partial"
    filesystem.makedirs(place.rpartition("/")[0], exist_ok=True)
    filesystem.put_file(str(path), partial)
    filesystem.mv(partial, place)


def put_record(indices: Mapping[str, str], shards: Iterable[str]) -> None:
    """Upload a record of which shards belong together, URL/records/SHA256.json, for `make gc`. Raises OutOfReach.

    Args:
        indices: sha256 of the index of each split; registered models name their shards by it.
        shards: sha256 of each shard of all splits.
    """
    content = json.dumps({"indices": indices, "shards": sorted(shards)}, sort_keys=True).encode()
    sha256 = hashlib.sha256(content).hexdigest()
    filesystem, place = url_to_fs(f"{read_environment().shards.rstrip('/')}/{RECORDS}/{sha256}.json")

    def attempt() -> None:
        filesystem.makedirs(place.rpartition("/")[0], exist_ok=True)
        filesystem.pipe_file(place, content)  # also where it exists: its time says when it was last needed

    _persist(attempt, sha256)


def is_intact(sha256: str) -> bool:
    """Return whether the shard is stored and has the right checksum; reads all of it. Raises OutOfReach."""
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
    """Return the shard opened for reading, with verified checksum; it is downloaded first if it is not in the cache.

    Raises NoSuchShard, OutOfReach.
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
                raise NoSuchShard(f"has another checksum than its name at {_url(sha256)}")
            _evict(path.parent, most - partial.stat().st_size)
            partial.replace(path)
            return _used(file)
        except FileNotFoundError:
            raise NoSuchShard(f"is missing at {_url(sha256)}") from None
        finally:
            partial.unlink(missing_ok=True)

    return _persist(attempt, sha256)


def _used(file: BinaryIO) -> BinaryIO:
    now = time.time_ns()  # finer than the clock of file times
    os.utime(file.fileno(), ns=(now, now))
    return file


def _evict(folder: Path, limit: float) -> None:
    """Remove the least recently used shards until `limit` bytes are left; keep the running downloads of others."""
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
    """Return `attempt()`; after any error except NoSuchShard and a full disk, try again after each of WAITS.

    Each protocol of fsspec raises errors of its own, so all are caught.
    """
    for wait in (*WAITS, None):
        try:
            return attempt()
        except NoSuchShard:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            if wait is None:
                reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                raise OutOfReach(
                    f"{_url(sha256)}: cannot be reached, tried {len(WAITS) + 1} times ({reason}). Check DGUNET_SHARDS "
                    "and the network, then run the same command again: it continues from here"
                ) from error
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _url(sha256: str) -> str:
    return f"{read_environment().shards.rstrip('/')}/{sha256}.tar"


def _place(sha256: str) -> tuple[Any, str]:
    return url_to_fs(_url(sha256))


def url_to_fs(url: str) -> tuple[Any, str]:
    """Return the file system (of fsspec) of a URL below DGUNET_SHARDS, and the path on it.

    Raises ValueError if a package is not installed or the protocol is unknown.
    """
    try:
        filesystem, place = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"DGUNET_SHARDS={read_environment().shards}: {error}") from error
    return filesystem, str(place)


def _protocols(filesystem: Any) -> set[str]:
    return {filesystem.protocol} if isinstance(filesystem.protocol, str) else set(filesystem.protocol)


def _checksum(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()
