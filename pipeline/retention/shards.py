"""Finds shards at DGUNET_SHARDS that nothing refers to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.retention.items import YOUNG, File, Item, Place, delete_files, list_files, reachable
from pipeline.shards import store

RECORDS, UNFINISHED = "records of shards", "unfinished uploads"
SHARD = re.compile(r"([0-9a-f]{64})\.tar")


@dataclass(frozen=True)
class Known:
    """What is known about the shards that are needed.

    Attributes:
        shards: sha256 of shards that are referred to.
        indices: sha256 of indices that registered versions and runs name.
        unknown: folders of shards whose index cannot be read; if there is one, no shard can be deleted.
    """

    shards: set[str]
    indices: set[str]
    unknown: Sequence[str]


def of_indices(contents: Iterable[bytes]) -> set[str]:
    """Return the sha256 of the shards that index files name; files of any other form are ignored."""
    found = set[str]()
    for content in contents:
        try:
            found |= {str(entry["sha256"]) for entry in json.loads(content)["shards"]}
        except (ValueError, LookupError, TypeError):
            continue
    return found


def of_checkout(root: Path) -> set[str]:
    """Return the sha256 of the shards of a checkout, including those that `synthesize` is writing."""
    indices = [*root.glob("data/shards/*/*/index.json"), *root.glob(".cache/synthesize/*/shards/*/index.json")]
    found = of_indices(path.read_bytes() for path in indices)
    for path in root.glob(".cache/synthesize/*/progress.jsonl"):
        found |= set(re.findall(r'"sha256": "([0-9a-f]{64})"', path.read_text(encoding="utf-8")))
    return found


def collect(address: str, known: Known, oldest: float) -> Place:
    """Find the shards that nothing refers to.

    Args:
        address: DGUNET_SHARDS.
        known: what refers to shards.
        oldest: time in seconds since 1970; everything that was changed later is kept.

    Raises:
        ValueError: the URL cannot be read.
    """
    filesystem, folder = store.url_to_fs(address)
    with reachable(f"DGUNET_SHARDS={address}"):
        files = list_files(filesystem, folder)
        records = {
            file.path: file for file in files if file.path.endswith(".json") and f"/{store.RECORDS}/" in file.path
        }
        contents = _read(filesystem, list(records))
    place = Place("shards", address, lambda paths: delete_files(filesystem, paths))
    needed = set(known.shards)
    names: dict[str, str] = {}
    for path, content in contents.items():
        indices, shards = set(content["indices"].values()), set(content["shards"])
        names |= dict.fromkeys(shards, f"of the index {content['indices'].get('train', '')[:10]}")
        if indices & known.indices or records[path].modified > oldest:
            needed |= shards
    garbage: dict[str, list[File]] = {}
    for file in files:
        name = file.path.rpartition("/")[2]
        shard = SHARD.fullmatch(name)
        if file.path in contents:
            is_needed = bool(set(contents[file.path]["shards"]) & needed)
            title = RECORDS
        elif shard:
            is_needed, title = shard[1] in needed, names.get(shard[1], "without a record")
        elif name.endswith(".partial"):
            is_needed, title = False, UNFINISHED
        else:
            continue
        if is_needed or file.modified > oldest:
            place.keep("referred to" if is_needed else YOUNG, file.size)
        else:
            garbage.setdefault(title, []).append(file)
    place.items = [_item(title, members) for title, members in garbage.items()]
    if known.unknown and place.items:
        place.notes.append(
            f"no shard is deleted: the index of {known.unknown[0]} is neither in DVC's cache nor in its remote; run "
            "`dvc push` in the clone that made it"
        )
        place.items = []
    return place


def _item(title: str, files: Sequence[File]) -> Item:
    name = title if title in (RECORDS, UNFINISHED) else f"{len(files)} shards {title}"
    return Item(name, tuple(file.path for file in files), sum(f.size for f in files), max(f.modified for f in files))


def _read(filesystem: Any, paths: Sequence[str]) -> dict[str, Any]:
    return {path: json.loads(filesystem.cat_file(path)) for path in paths}
