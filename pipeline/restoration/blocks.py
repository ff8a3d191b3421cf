"""Blocks of photographs to restore: a number of files of a folder, or a WebDataset shard.

Files below a folder are listed one subfolder at a time, so that millions of names are never in memory together. The
names at a URL, or in an archive, are all in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path, PurePosixPath
from typing import Any

from dgunet.images import SUFFIXES, WRITABLE_SUFFIXES
from dgunet.images.names import count_unread, is_hidden, why_no_photo
from dgunet.jobs import target_names
from pipeline.sources.places import (
    File,
    NoSuchPlace,
    StorageError,
    describe_error,
    file_version,
    open_filesystem,
    split_member,
    url_version,
)
from pipeline.sources.storage import list_files

SHARD = ".tar"


@dataclass(frozen=True)
class Block:
    """Photographs that one process restores one after the other.

    Attributes:
        name: of the shard without .tar, or a number with leading zeros.
        files: the photographs of a folder, and what may not be read; empty for a shard.
        targets: the name below the output of each file.
        shard: the shard; None for files of a folder.
    """

    name: str
    files: tuple[File, ...] = ()
    targets: tuple[str, ...] = ()
    shard: File | None = None

    @property
    def inputs_sha256(self) -> str:
        """Sha256 over the names and versions of what is read, and the names that are written."""
        files = [(file.name, file.version) for file in (self.files if self.shard is None else (self.shard,))]
        return hashlib.sha256(json.dumps([files, self.targets]).encode()).hexdigest()


def photo_blocks(place: str, size: int, file_format: str | None) -> Iterator[Block]:
    """Yield blocks of the photographs of a folder, an archive or a URL, in the order of their paths.

    Which files are photographs, and the names that they are written to, is as for `dgunet restore`.

    Args:
        place: as `pipeline.sources.storage.list_files` takes it; a path must be absolute.
        size: photographs of each block.
        file_format: one of `dgunet.jobs.FORMATS`; None: that of each photograph, PNG where it cannot be written.

    Raises:
        StorageError: the place cannot be listed.
    """
    named, number = _named(place, file_format), 0
    while block := list(islice(named, size)):
        files, targets = zip(*block, strict=True)
        yield Block(f"{number:06d}", files, targets)
        number += 1


def count_photos(place: str) -> tuple[int, dict[str, int]]:
    """Return the number of photographs of a place, and that of other files by suffix."""
    num_photos, num_others = 0, dict[str, int]()
    for file in list_files(place):
        if _is_restored(file):
            num_photos += 1
        else:
            for suffix, count in count_unread([file.name], SUFFIXES).items():
                num_others[suffix] = num_others.get(suffix, 0) + count
    return num_photos, num_others


def _named(place: str, file_format: str | None) -> Iterator[tuple[File, str]]:
    """Yield each photograph with the name that it is written to.

    That name depends on other files of the same stem. Their paths are equal up to the first dot, so they follow each
    other in the listing and form one group.
    """
    photos = (_readable_anywhere(file, place) for file in list_files(place) if _is_restored(file))
    for _, group in groupby(photos, key=lambda file: file.name.partition(".")[0]):
        files = list(group)
        names = target_names([Path(file.name) for file in files], file_format, WRITABLE_SUFFIXES)
        yield from zip(files, (name.as_posix() for name in names), strict=True)


def _readable_anywhere(file: File, place: str) -> File:
    """Return the file with an absolute path: another process has another working directory."""
    is_of_folder = "://" not in file.uri and split_member(file.uri)[1] is None
    return replace(file, uri=str(Path(place, file.name))) if is_of_folder else file


def _is_restored(file: File) -> bool:
    """Whether a file is restored or refused, rather than passed over as no photograph."""
    is_folder = (file.problem or "").startswith(("folder", "a link to a folder"))
    return why_no_photo(file.name, SUFFIXES) is None or (is_folder and not is_hidden(file.name))


def find_shards(places: Sequence[str]) -> list[File]:
    """Return the shards that places name: .tar files, folders of them, patterns with *; empty if none is one.

    Raises:
        StorageError: a place cannot be listed.
        ValueError: two shards have the same name.
    """
    found = [file for place in places for file in _shards_of(place)]
    by_name: dict[str, File] = {}
    for file in found:
        if (other := by_name.setdefault(file.name, file)) != file:
            raise ValueError(f"{other.uri} and {file.uri} have the same name: restore them into two folders")
    return found


def shard_blocks(shards: Iterable[File]) -> Iterator[Block]:
    """Yield a block for each shard."""
    return (Block(shard.name.removesuffix(SHARD), shard=shard) for shard in shards)


def _shards_of(place: str) -> list[File]:
    filesystem, path = open_filesystem(place if "://" in place else str(Path(place).expanduser().absolute()))
    if not place.endswith(SHARD):
        path = f"{path.rstrip('/')}/*{SHARD}"
    try:
        filesystem.invalidate_cache()
        found: dict[str, dict[str, Any]] = filesystem.glob(path, detail=True)
    except Exception as error:  # each protocol has its own errors
        raise StorageError(f"{place}: cannot be listed ({describe_error(error)})") from error
    if place.endswith(SHARD) and not found:
        raise NoSuchPlace(f"{place}: no such shard")
    shards = []
    for name, facts in sorted(found.items()):
        base = PurePosixPath(name).name
        if facts.get("type") != "directory" and not is_hidden(base):
            is_local = "://" not in place
            version = file_version(Path(name).stat()) if is_local else url_version(facts)
            shards.append(File(base, name if is_local else filesystem.unstrip_protocol(name), version))
    return shards
