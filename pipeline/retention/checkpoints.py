"""Finds folders of unfinished runs in DGUNET_STORAGE that nobody will continue; reads the copies of dvc.lock there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.fs

from pipeline.cluster import lease
from pipeline.cluster.checkpoints import LOCKS, ORIGIN, filesystem
from pipeline.retention.items import YOUNG, Item, Place, reachable
from pipeline.runtime.environment import Environment

# TASK-FINGERPRINT; the folder of a trial has the name of its search, followed by its own.
RUN = re.compile(r"((?:tune-)?[\w-]+?-[0-9a-f]{16})(?:-\w+)?")


@dataclass
class Folder:
    """The folder of a run, or those of a search and its trials."""

    name: str
    paths: set[str] = field(default_factory=set)
    size: int = 0
    modified: float = 0.0
    origin: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Collected:
    """What can be deleted, and what the kept folders refer to.

    Attributes:
        place: the place with its items.
        live: names of the runs that a driver is training, and of those with young checkpoints.
        shards: sha256 of the shards that kept runs read.
        commits: commits whose results are stored with a copy of dvc.lock.
        locks: contents of these copies.
    """

    place: Place
    live: set[str]
    shards: set[str]
    commits: set[str]
    locks: list[str]


def collect(environment: Environment, commits: set[str], current: set[str], oldest: float) -> Collected:
    """Find the folders of runs that no commit and no living driver refers to.

    Args:
        environment: has the address of the storage.
        commits: all commits of this clone.
        current: names of the runs that this checkout would start or continue.
        oldest: time in seconds since 1970; everything that was changed later is kept.

    Raises:
        ValueError: the storage cannot be read.
    """
    address = environment.storage
    with reachable(f"DGUNET_STORAGE={address}"):
        files, root = filesystem(address)
        _check_exists(files, root, environment)
        listed = files.get_file_info(pyarrow.fs.FileSelector(root, allow_not_found=True, recursive=True))
        infos = [info for info in listed if info.is_file]
        folders, locks = _folders(files, root, infos), _locks(files, root, infos)
        old = [folder for folder in folders.values() if folder.modified <= oldest]
        driven = lease.driven(f"{address}/{path.rpartition('/')[2]}" for folder in old for path in folder.paths)
    place = Place("checkpoints", address, lambda paths: _delete(files, paths))
    live, shards = set[str](), set[str]()
    for folder in folders.values():
        reason = _reason(folder, commits, current, oldest)
        if any(f"{address}/{path.rpartition('/')[2]}" in driven for path in folder.paths):
            reason = "being trained"
        if reason in (YOUNG, "being trained"):
            live.add(folder.name)
        if reason:
            place.keep(reason, folder.size)
            shards |= set(folder.origin.get("shards", ()))
        else:
            place.items.append(Item(folder.name, tuple(sorted(folder.paths)), folder.size, folder.modified))
    return Collected(place, live, shards, set(locks), list(locks.values()))


def _check_exists(files: Any, root: str, environment: Environment) -> None:
    """Raise FileNotFoundError if DGUNET_STORAGE is set but does not exist, for example because it is not mounted."""
    is_named = bool(os.environ.get("DGUNET_STORAGE"))
    top = root if isinstance(files, pyarrow.fs.LocalFileSystem) else root.partition("/")[0]
    if is_named and files.get_file_info(top).type == pyarrow.fs.FileType.NotFound:
        raise FileNotFoundError("it does not exist")


def _folders(files: Any, root: str, infos: Sequence[Any]) -> dict[str, Folder]:
    folders: dict[str, Folder] = {}
    for info in infos:
        top, _, rest = info.path.removeprefix(root).lstrip("/").partition("/")
        match = RUN.fullmatch(top)
        if not match or not rest:
            continue  # not written by this pipeline
        folder = folders.setdefault(match[1], Folder(match[1]))
        folder.paths.add(f"{root.rstrip('/')}/{top}")
        folder.size += info.size or 0
        folder.modified = max(folder.modified, info.mtime.timestamp() if info.mtime else float("inf"))
        if rest == ORIGIN:
            with files.open_input_stream(info.path) as file:
                folder.origin = json.loads(file.read())
    return folders


def _locks(files: Any, root: str, infos: Sequence[Any]) -> dict[str, str]:
    found = {}
    for info in infos:
        parts = Path(info.path.removeprefix(root).lstrip("/")).parts
        if len(parts) == 3 and parts[0] == LOCKS and parts[2] == "dvc.lock":
            with files.open_input_stream(info.path) as file:
                found[parts[1]] = file.read().decode()
    return found


def _reason(folder: Folder, commits: set[str], current: set[str], oldest: float) -> str:
    """Return why a folder is kept, "" if there is no reason."""
    if folder.modified > oldest:
        return YOUNG
    if folder.name in current:
        return "continued by the next `make repro`"
    return "unfinished run of an existing commit" if folder.origin.get("commit") in commits else ""


def _delete(files: Any, paths: Sequence[str]) -> None:
    for path in paths:
        try:
            files.delete_dir(path)
        except FileNotFoundError:
            continue
