"""Lists and reads files of folders, archives and URLs: in a fixed order, each named by a portable URI.

    place:   photos           photos.zip, photos.zip!inner    s3://bucket/photos          https://host/photos.tar
    URI:     photos/a.png     photos.zip!inner/a.png          s3://bucket/photos/a.png    https://host/photos.tar!a.png

No member is ever extracted to disk, and members are read by exact name, so a hostile archive can write nowhere. An
archive without random access (a compressed tar, or one on a server without range requests) is copied once to
.cache/archives, uncompressed; the copy is replaced when the archive changes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

from dgunet.images.names import is_hidden
from dgunet.images.photo import MAX_PIXELS
from pipeline.sources.archives import archive_version, open_archive, other_archive
from pipeline.sources.places import (
    ARCHIVE_SUFFIXES,
    NOT_UTF8,
    File,
    NoSuchPlace,
    StorageError,
    UnreadableFile,
    describe_error,
    file_version,
    is_archive,
    is_utf8,
    open_filesystem,
    portable,
    shown_name,
    size_problem,
    split_member,
    url_version,
)

_ASKED_AT_ONCE = 16  # concurrent requests for the versions of files at a URL


def list_files(place: str) -> Iterator[File]:
    """List all files below a folder, archive, folder in an archive or URL, recursively, sorted within each folder.

    Hidden files are listed (a hidden folder as one entry). Links to folders are followed once.
    Raises NoSuchPlace if the place does not exist, StorageError if it is neither folder nor archive, is damaged or
    cannot be reached; the message names it.
    """
    archive, below = split_member(place)
    if below is not None:
        yield from _list_below(archive, below)
    elif is_archive(place):
        yield from open_archive(place, archive_version(place, anew=True)).files()
    elif "://" in place:
        yield from _list_url(place)
    else:
        folder = Path(place).expanduser()
        if not folder.exists():
            raise NoSuchPlace(f"{place}: no such folder (looked for {folder.absolute()})")
        if not folder.is_dir():
            if folder.is_file():
                with folder.open("rb") as file:
                    if other := other_archive(file):
                        raise StorageError(f"{place}: {other}")
            raise StorageError(
                f"{place}: not a folder; give a folder, an archive ({', '.join(ARCHIVE_SUFFIXES)}) or a URL"
            )
        yield from _walk(folder, "", set())


def read(uri: str, *, max_pixels: int = MAX_PIXELS) -> bytes:
    """Return the bytes of one image file.

    A few bytes in an archive may unpack to gigabytes: a large member is unpacked only if its header is that of an image
    of at most `max_pixels`, and if it has no more bytes than such an image needs.

    Raises UnreadableFile if only this file cannot be read, StorageError if its place cannot be reached.
    """
    place, member = split_member(uri)
    if member is not None:
        return open_archive(place, archive_version(place)).read(member, max_pixels)
    if "://" not in uri:
        try:
            return Path(uri).expanduser().read_bytes()
        except OSError as error:
            raise UnreadableFile(f"cannot be read: {error.strerror or error}") from error
    filesystem, path = open_filesystem(uri)
    try:
        return bytes(filesystem.cat_file(path))
    except (FileNotFoundError, PermissionError) as error:
        raise UnreadableFile(f"cannot be read: {error}") from error
    except Exception as error:  # each protocol has its own errors; all mean that the place cannot be reached now
        raise StorageError(f"{uri}: cannot be reached ({describe_error(error)}); try again later") from error


def _walk(folder: Path, prefix: str, visited: set[tuple[int, int]]) -> Iterator[File]:
    try:
        identity = folder.stat()
        if (identity.st_dev, identity.st_ino) in visited:
            return
        visited.add((identity.st_dev, identity.st_ino))
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield File(prefix, portable(folder), problem=f"folder cannot be opened: {error.strerror}")
        return
    for entry in entries:
        name, path = prefix + entry.name, folder / entry.name
        if not is_utf8(entry.name):
            yield File(shown_name(name), portable(folder / shown_name(entry.name)), problem=NOT_UTF8)
            continue
        try:
            if entry.is_dir() and not is_hidden(entry.name):
                if entry.is_symlink() and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(path)):
                    yield File(name, portable(path), problem="a link to a folder that contains it")
                    continue
                yield from _walk(path, name + "/", visited)
                continue
            stat = entry.stat()
        except OSError as error:  # such as a link to itself or to a missing file
            yield File(name, portable(path), problem=f"cannot be read: {error.strerror}")
            continue
        is_file = S_ISREG(stat.st_mode) or S_ISDIR(stat.st_mode)  # a folder is hidden if it gets here
        problem = size_problem(stat.st_size) if is_file else "a pipe, socket or device, not a file"
        yield File(name, portable(path), file_version(stat), problem)


def _list_below(archive: str, folder: str) -> Iterator[File]:
    prefix = folder.rstrip("/") + "/"
    files = list(list_files(archive))
    found = [replace(file, name=file.name.removeprefix(prefix)) for file in files if file.name.startswith(prefix)]
    if not found:
        example = f"; the archive holds, for example, {files[0].name}" if files else ""
        raise NoSuchPlace(f"{archive}!{folder}: no such folder in the archive{example}")
    yield from found


def _list_url(place: str) -> Iterator[File]:
    filesystem, root = open_filesystem(place)
    try:
        filesystem.invalidate_cache()
        found: dict[str, dict[str, Any]] = filesystem.find(root, detail=True)
    except Exception as error:  # each protocol has its own errors
        raise StorageError(f"{place}: cannot be listed ({describe_error(error)})") from error
    if not found:
        raise NoSuchPlace(f"{place}: no files found")

    def complete(path: str) -> dict[str, Any]:
        try:
            return found[path] if url_version(found[path]) else {**found[path], **filesystem.info(path)}
        except Exception:  # each protocol has its own errors; reading the file will report it
            return found[path]

    paths = sorted(found)
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        for path, facts in zip(paths, pool.map(complete, paths), strict=True):
            name = path.removeprefix(root.rstrip("/")).lstrip("/") or path.rpartition("/")[2]
            yield File(
                name, filesystem.unstrip_protocol(path), url_version(facts), size_problem(facts.get("size") or 0)
            )
