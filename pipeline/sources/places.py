"""Places that hold files: names, limits, errors and file systems."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from dgunet.images.photo import MAX_PIXELS

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
NOT_UTF8 = "its name is not UTF-8; rename it"
BYTES_PER_PIXEL = 8  # RGBA of 16 bits, not compressed
BYTES_BESIDE_PIXELS = 2**26  # previews, profiles, notes of the camera
MAX_FILE_BYTES = BYTES_PER_PIXEL * MAX_PIXELS + BYTES_BESIDE_PIXELS


class StorageError(ValueError):
    """A place that cannot be listed or reached: nothing is known about its files."""


class NoSuchPlace(StorageError):
    """A place that does not exist, or a URL or a folder of an archive without files."""


class UnreadableFile(ValueError):
    """One file that cannot be read, though its place can."""


@dataclass(frozen=True)
class File:
    """One listed file: `name` below its place (with /), `uri` as `read` takes it.

    `version` changes when the content does; None if the place records no version. `problem` says why the file must not
    be read; None if it may.
    """

    name: str
    uri: str
    version: str | None = None
    problem: str | None = None


def is_archive(place: str) -> bool:
    """Whether the name has the suffix of an archive."""
    return place.lower().endswith(ARCHIVE_SUFFIXES)


def split_member(uri: str) -> tuple[str, str | None]:
    """Split "photos.zip!inner/a.png" into archive and member; the member is None for a path that is in no archive.

    A file with exactly this name takes precedence: "photos.zip!a.png" may be the name of a photo.
    """
    if "!" in uri and "://" not in uri and os.path.isfile(Path(uri).expanduser()):  # noqa: PTH113 (no error for long names)
        return uri, None
    position = uri.find("!")
    while position >= 0:
        if is_archive(uri[:position]):
            return uri[:position], uri[position + 1 :]
        position = uri.find("!", position + 1)
    return uri, None


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL and the path on it. Raises StorageError."""
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or error.name or "the package"
        raise StorageError(
            f"{url}: needs a package that is not installed: .venv/bin/pip install {missing} ({describe_error(error)})"
        ) from error
    except Exception as error:  # an unknown protocol, or one that needs more settings
        raise StorageError(f"{url}: cannot be opened ({describe_error(error)})") from error
    return filesystem, path


def file_version(stat: os.stat_result) -> str:
    """Return a version tag of a local file: it changes when the content does."""
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"  # ctime: mtime can be set back after a change


def url_version(facts: dict[str, Any]) -> str | None:
    """Return a version tag of a file at a URL from the facts that fsspec reports, None if they hold no version."""
    known = [
        facts[key]
        for key in ("ETag", "etag", "LastModified", "Last-Modified", "last_modified", "mtime", "updated")
        if facts.get(key)
    ]
    return f"{facts.get('size')}:{known[0]}" if known else None


def is_utf8(name: str) -> bool:
    """Whether a file name, as the operating system returned it, is valid UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def shown_name(name: str) -> str:
    """Return a name with escape sequences in place of bytes that are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def size_problem(size: int) -> str | None:
    """Return why a file of `size` bytes must not be read, None if it may."""
    return f"{size} bytes are too many for an image" if size > MAX_FILE_BYTES else None


def portable(path: Path) -> str:
    """Return `path` relative to the current directory if it is inside, else absolute; links stay unresolved."""
    absolute, here = Path(os.path.abspath(path)), Path.cwd()  # noqa: PTH100 (Path.resolve would follow links)
    return (absolute.relative_to(here) if absolute.is_relative_to(here) else absolute).as_posix()


def portable_place(place: str) -> str:
    """Return a URL unchanged, a path as `portable` does."""
    return place if "://" in place else portable(Path(place).expanduser())


def describe_error(error: BaseException) -> str:
    """Return the type and the message of an error."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
