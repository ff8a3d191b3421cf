"""A place of stored data: what can be deleted there, what is kept, and how its files are listed and deleted."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import fsspec

SECONDS_TO_KEEP = 7 * 24 * 3600.0  # since the last change: another clone may just have pushed it
TIMES = ("mtime", "LastModified", "last_modified", "updated", "timeModified")  # as the file systems of fsspec name it
YOUNG = "changed within a week"


@dataclass(frozen=True)
class File:
    """A stored file: its path, its size in bytes, and when it was changed, in seconds since 1970."""

    path: str
    size: int
    modified: float


@dataclass(frozen=True)
class Item:
    """Something that nothing refers to.

    Attributes:
        name: name shown to people.
        parts: its parts, in the form that the `delete` of its place takes.
        size: in bytes; 0 if not known.
        modified: when it was last changed, in seconds since 1970.
    """

    name: str
    parts: tuple[str, ...]
    size: int
    modified: float


@dataclass
class Place:
    """A place where things are stored.

    Attributes:
        kind: what is stored there, such as "shards".
        address: folder or URL.
        delete: deletes parts of items.
        items: what can be deleted.
        kept: number of things that are kept, by reason.
        kept_bytes: their total size.
        notes: further lines of the report.
    """

    kind: str
    address: str
    delete: Callable[[Sequence[str]], None]
    items: list[Item] = field(default_factory=list)
    kept: Counter[str] = field(default_factory=Counter)
    kept_bytes: int = 0
    notes: list[str] = field(default_factory=list)

    def keep(self, reason: str, size: int) -> None:
        """Count something that is kept."""
        self.kept[reason] += 1
        self.kept_bytes += size

    def parts(self) -> set[str]:
        """Return the parts of all items."""
        return {part for item in self.items for part in item.parts}


def list_files(filesystem: Any, folder: str) -> list[File]:
    """Return all files below a folder of an fsspec file system, none if the folder does not exist.

    If the file system does not report when a file was changed, `modified` is infinite: the file counts as new.
    """
    filesystem.invalidate_cache()
    found = filesystem.find(folder, detail=True)
    return [File(path, int(info.get("size") or 0), _modified(info)) for path, info in found.items()]


def delete_files(filesystem: Any, paths: Sequence[str]) -> None:
    """Delete files of an fsspec file system; ignore those that another process has deleted."""
    for path in paths if _is_local(filesystem) else ():
        try:
            filesystem.rm_file(path)
        except FileNotFoundError:
            continue
    if paths and not _is_local(filesystem):
        filesystem.rm(list(paths))  # in bulk; object stores raise no error for missing files


def local_filesystem() -> Any:
    """Return the file system of this machine."""
    return fsspec.filesystem("file")


@contextmanager
def reachable(what: str) -> Iterator[None]:
    """Turn any error into a ValueError of one line: each storage library has its own types of errors."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"nothing is deleted: {what} cannot be read ({lines[0][:200]})") from error


def _modified(info: dict[str, Any]) -> float:
    for name in TIMES:
        value = info.get(name)
        if isinstance(value, datetime.datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str):
            return datetime.datetime.fromisoformat(value).timestamp()
    return float("inf")


def _is_local(filesystem: Any) -> bool:
    protocols = {filesystem.protocol} if isinstance(filesystem.protocol, str) else set(filesystem.protocol)
    return bool(protocols & {"file", "local"})
