"""Finds objects in DVC's cache and remote that nothing refers to.

`dvc gc` deletes everything that the commits of one clone do not name, including what another clone has just pushed.
Here an object is also kept if it is young, if a young directory or a young entry of the run cache names it (DVC does
not upload an object that the remote already has, so the object itself may be old), or if a lock file outside git names
it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from dvc.config import NoRemoteError
from dvc.exceptions import NotDvcRepoError
from dvc.repo import Repo
from dvc_data.hashfile.db import get_index

from pipeline.retention import references
from pipeline.retention.items import YOUNG, File, Item, Place, delete_files, list_files, local_filesystem, reachable

DIRECTORY = ".dir"  # suffix of the md5 of a directory
SHARDS = "data/shards/"  # outputs below it are folders of shards
INDEX = "index.json"
LENGTH_OF_HASH = 32


@dataclass(frozen=True)
class Store:
    """A cache or a remote: objects by md5, and entries of the run cache by path."""

    kind: str
    filesystem: Any
    address: str
    objects: Mapping[str, File]
    run_cache: Mapping[str, tuple[File, str]]
    after_deletion: Callable[[], None]

    def read(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Return the contents of files by their path."""
        found = self.filesystem.cat(list(paths)) if paths else {}
        return found if isinstance(found, dict) else {paths[0]: found}


@dataclass(frozen=True)
class Collected:
    """Places with what can be deleted, and the indices of shards among the kept objects.

    Attributes:
        places: the cache, and the remote if there is one.
        indices: contents of the index files of kept folders of shards.
        unknown: kept folders of shards whose index is neither in the cache nor in the remote.
    """

    places: list[Place]
    indices: list[bytes]
    unknown: list[str]


def collect(root: Path, locks: Sequence[str], oldest: float) -> Collected:
    """Find the objects that no lock file names.

    Args:
        root: the checkout.
        locks: contents of all lock files that refer to objects.
        oldest: time in seconds since 1970; everything that was changed later is kept.

    Raises:
        ValueError: the checkout is not a DVC repository, or a store cannot be read.
    """
    stores = _stores(root)
    entries = [entry for store in stores for entry in store.run_cache.values()]
    young = {md5 for store in stores for md5, file in store.objects.items() if file.modified > oldest}
    recent = [text for file, text in entries if file.modified > oldest]
    named = references.hashes(locks) | references.hashes(recent)
    kept, indices, unknown = _with_contents(stores, named | young, references.names([*locks, *recent]))
    names = references.names([*(text for _, text in entries), *locks])
    return Collected([_place(store, named, kept, names, oldest) for store in stores], indices, unknown)


def _stores(root: Path) -> list[Store]:
    try:
        repo = Repo(str(root))
    except NotDvcRepoError:
        raise ValueError("nothing is deleted: this checkout has no .dvc folder; run `make setup`") from None
    with repo:
        files = local_filesystem()
        found = [_read_store("DVC cache", files, repo.cache.local.path, repo.cache.legacy.path, lambda: None)]
        try:
            remote = repo.cloud.get_remote_odb(None, "gc", hash_name="md5")
            legacy = repo.cloud.get_remote_odb(None, "gc", hash_name="md5-dos2unix")
        except NoRemoteError:
            return found
        filesystem = files if remote.fs.protocol == "local" else remote.fs.fs

        def forget() -> None:
            get_index(remote).clear()  # otherwise `dvc push` assumes that the remote still has the deleted objects

        found.append(_with_own_times(_read_store("DVC remote", filesystem, remote.path, legacy.path, forget), found[0]))
    return found


def _with_own_times(remote: Store, cache: Store) -> Store:
    """Return a remote whose entries of the run cache are as old as those of this clone.

    `dvc push --run-cache` uploads all entries again, so their times in the remote do not tell how old they are.
    """
    own = {_entry_name(path): file.modified for path, (file, _) in cache.run_cache.items()}
    entries = {
        path: (replace(file, modified=min(file.modified, own.get(_entry_name(path), file.modified))), text)
        for path, (file, text) in remote.run_cache.items()
    }
    return replace(remote, run_cache=entries)


def _entry_name(path: str) -> str:
    return path.rpartition("/runs/")[2]


def _read_store(kind: str, filesystem: Any, folder: str, parent: str, after_deletion: Callable[[], None]) -> Store:
    """List a store: objects are at FOLDER/ab/cdef…, the run cache is at PARENT/runs."""
    with reachable(f"the {kind} {parent}"):
        objects = {}
        for file in list_files(filesystem, folder):
            first, _, rest = file.path.rpartition(folder.rpartition("/")[2] + "/")[2].partition("/")
            if len((first + rest).removesuffix(DIRECTORY)) == LENGTH_OF_HASH and "/" not in rest:
                objects[first + rest] = file
        runs = {file.path: file for file in list_files(filesystem, f"{parent}/runs")}
        store = Store(kind, filesystem, parent, objects, {}, after_deletion)
        texts = store.read(list(runs))
    entries = {path: (file, texts[path].decode()) for path, file in runs.items()}
    return Store(kind, filesystem, parent, objects, entries, after_deletion)


def _with_contents(
    stores: Sequence[Store], kept: set[str], names: Mapping[str, str]
) -> tuple[set[str], list[bytes], list[str]]:
    """Return `kept` with the files of its directories, the indices of shards, and the shards whose index is missing."""
    directories = {md5 for md5 in kept if md5.endswith(DIRECTORY)}
    contents = _read_objects(stores, directories)
    kept, with_index = set(kept), set[str]()
    for content in contents.values():
        for member in json.loads(content):
            kept.add(member["md5"])
            if Path(member["relpath"]).name == INDEX:
                with_index.add(member["md5"])
    indices = _read_objects(stores, with_index)
    lost = [md5 for md5 in directories - contents.keys() if names.get(md5, "").startswith(SHARDS)]
    return kept, list(indices.values()), [names[md5] for md5 in lost] + sorted(with_index - indices.keys())


def _read_objects(stores: Sequence[Store], wanted: Iterable[str]) -> dict[str, bytes]:
    """Return the contents of those objects that a store has."""
    found: dict[str, bytes] = {}
    for store in stores:
        paths = {store.objects[md5].path: md5 for md5 in wanted if md5 in store.objects and md5 not in found}
        with reachable(f"the {store.kind} {store.address}"):
            found |= {paths[path]: content for path, content in store.read(list(paths)).items()}
    return found


def _place(store: Store, named: set[str], kept: set[str], names: Mapping[str, str], oldest: float) -> Place:
    def delete(paths: Sequence[str]) -> None:
        delete_files(store.filesystem, paths)
        for path in store.run_cache.keys() & set(paths):
            with suppress(OSError):  # the folder has other entries, or is in an object store, which has no folders
                Path(path).parent.rmdir()  # `dvc repro` fails on an empty folder
        store.after_deletion()

    place = Place(store.kind, store.address, delete)
    garbage = {}
    for md5, file in store.objects.items():
        if md5 not in kept:
            garbage[md5] = file
        else:
            place.keep("named by a lock file" if md5 in named or file.modified <= oldest else YOUNG, file.size)
    place.items = _by_directory(store, garbage, names)
    for path, (file, text) in store.run_cache.items():
        outs = {out.get("md5") for out in (yaml.safe_load(text) or {}).get("outs", ())}
        if file.modified > oldest or outs <= kept:
            place.keep(YOUNG if file.modified > oldest else "named by a lock file", file.size)
        else:
            command = str((yaml.safe_load(text) or {}).get("cmd", path))
            place.items.append(Item(f"run cache: {command[:60]}", (path,), file.size, file.modified))
    return place


def _by_directory(store: Store, garbage: Mapping[str, File], names: Mapping[str, str]) -> list[Item]:
    """Return an item for each directory and one for each other file. The first directory that has a file lists it."""
    items, left = [], dict(garbage)
    directories = [md5 for md5 in garbage if md5.endswith(DIRECTORY)]
    for md5, content in _read_objects([store], directories).items():
        members = [left.pop(name) for name in (md5, *(each["md5"] for each in json.loads(content))) if name in left]
        # The directory comes first and is deleted first, so that no directory is left without its files.
        paths = tuple(file.path for file in members)
        newest = max(file.modified for file in members)
        items.append(Item(names.get(md5, md5), paths, sum(file.size for file in members), newest))
    return items + [Item(names.get(md5, md5), (file.path,), file.size, file.modified) for md5, file in left.items()]
