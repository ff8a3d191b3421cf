"""The inspection cache: an SQLite file with the results of earlier inspections.

    inspections   one row per image file, pixel limit and version of the reading code, with a checksum of the row
    scenes        the grouping of the last set of images

Everything in the cache can be computed again. A damaged file is deleted and filled again; a damaged row counts as
absent. A full disk, or a folder that cannot be written, is an error.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sqlite3
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

_TABLES = (
    "CREATE TABLE IF NOT EXISTS inspections (key TEXT PRIMARY KEY, sha256 TEXT, degraded_sha256 TEXT, height INTEGER, "
    "width INTEGER, thumbnail BLOB, reason TEXT, checksum TEXT) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS scenes (key TEXT PRIMARY KEY, scene_of TEXT, checksum TEXT) WITHOUT ROWID",
)
_DISK_FULL = {sqlite3.SQLITE_FULL}
_UNREACHABLE = {  # primary result codes that say nothing about the content of the file
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}
_DAMAGED_ON_READING = {sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS}


@dataclass(frozen=True)
class Inspection:
    """Result of decoding an image. If the image cannot be used, `reason` says why and the other fields are empty.

    sha256, degraded_sha256: hash of the pixels of the image, and of its degraded partner in a real pair.
    height, width: in pixels.
    """

    sha256: str = ""
    degraded_sha256: str = ""
    height: int = 0
    width: int = 0
    thumbnail: bytes = b""
    reason: str = ""


class InspectionCache:
    """An open cache; as a context manager it commits on exit, also after an exception.

    Every method deletes a damaged file, reports this on stderr, and continues with an empty one. It raises OSError if
    the disk is full or if the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = self._open()
        except sqlite3.DatabaseError as error:
            self._replace_damaged(error)

    def __enter__(self) -> InspectionCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.commit()
        finally:
            self._database.close()

    def find_inspection(self, key: str) -> Inspection | None:
        """Return the inspection stored under `key`, None if there is none."""
        row = self._execute("SELECT * FROM inspections WHERE key = ?", (key,))
        return Inspection(*row[1:-1]) if row and row[-1] == _checksum(row[:-1]) else None

    def store_inspection(self, key: str, inspection: Inspection) -> None:
        """Store an inspection under `key`."""
        row = (key, *astuple(inspection))
        self._execute("INSERT OR REPLACE INTO inspections VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, _checksum(row)))

    def find_scenes(self, key: str) -> dict[str, str] | None:
        """Return the grouping (pixel hash -> scene) stored under `key`, None if there is none."""
        row = self._execute("SELECT * FROM scenes WHERE key = ?", (key,))
        if not row or row[-1] != _checksum(row[:-1]):
            return None
        scenes: dict[str, str] = json.loads(row[1])
        return scenes

    def store_scenes(self, key: str, scenes: dict[str, str]) -> None:
        """Store a grouping under `key`, and delete the previous one."""
        row = (key, json.dumps(scenes))
        self._execute("DELETE FROM scenes")
        self._execute("INSERT INTO scenes VALUES (?, ?, ?)", (*row, _checksum(row)))

    def commit(self) -> None:
        """Write the stored results to disk."""
        try:
            self._database.commit()
        except sqlite3.DatabaseError as error:
            self._replace_damaged(error)

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        try:
            row: tuple[Any, ...] | None = self._database.execute(statement, values).fetchone()
        except sqlite3.DatabaseError as error:
            self._replace_damaged(error)
            row = self._database.execute(statement, values).fetchone()
        return row

    def _open(self) -> sqlite3.Connection:
        self._database = sqlite3.connect(self._path, timeout=60)
        for statement in _TABLES:
            self._database.execute(statement)
        return self._database

    def _replace_damaged(self, error: sqlite3.DatabaseError) -> None:
        """Delete the file and open an empty one. Raises OSError if `error` is not about the content of the file."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)  # absent: text that is not UTF-8
        primary_code = code & 0xFF
        if primary_code in _DISK_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path)) from error
        if primary_code in _UNREACHABLE and code not in _DAMAGED_ON_READING:
            raise OSError(f"{self._path}: {error}") from error
        print(f"{self._path} is damaged ({error}): deleted; all images are inspected again", file=sys.stderr)
        self._database.close()
        for suffix in ("", "-journal", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        try:
            self._open()
        except sqlite3.DatabaseError as again:
            raise OSError(f"{self._path}: {again}") from again


def _checksum(row: Sequence[Any]) -> str:
    return hashlib.sha256(repr(tuple(row)).encode()).hexdigest()
