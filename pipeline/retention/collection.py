"""Finds and deletes stored data that no commit, registered version or live run refers to, in all places."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.config.params import load_section, load_task_section, read_params, task_names
from pipeline.retention import checkpoints, dvc_objects, references, shards, tracked_runs
from pipeline.retention.items import SECONDS_TO_KEEP, Place
from pipeline.runtime.environment import read_environment
from pipeline.shards.format import INDEX, checksum
from pipeline.tracking import runs
from pipeline.training.job import run_name
from pipeline.training.settings import Train


def collect(root: Path, now: float) -> list[Place]:
    """Find what can be deleted; delete nothing.

    Args:
        root: the checkout; it must be the current directory.
        now: current time in seconds since 1970; everything that was changed in the week before is kept.

    Raises:
        ValueError: a place cannot be read, so references to other places may be missing.
    """
    environment, oldest = read_environment(), now - SECONDS_TO_KEEP
    commits, locks = references.commits(root), references.lock_files(root)
    with runs.connected():
        versions = tracked_runs.versions()
        storage = checkpoints.collect(environment, commits, _current_runs(root), oldest)
        tracked, data = tracked_runs.collect(versions, commits | storage.commits, storage.live, oldest)
    objects = dvc_objects.collect(root, [*locks, *storage.locks, *versions.locks], oldest)
    places = [storage.place, *objects.places, tracked]
    if environment.shards:
        wanted = shards.of_indices(objects.indices) | shards.of_checkout(root) | storage.shards
        known = shards.Known(wanted, versions.data | data, objects.unknown)
        places.insert(0, shards.collect(environment.shards, known, oldest))
    return places


def delete(shown: Sequence[Place], root: Path, now: float) -> int:
    """Delete the items that were shown, except those that something refers to by now; return the bytes deleted.

    Raises ValueError or OSError if a place cannot be read or written.
    """
    confirmed = {(place.kind, place.address): place.parts() for place in shown}
    freed = 0
    for place in collect(root, now):
        parts = confirmed.get((place.kind, place.address), set())
        items = [item for item in place.items if set(item.parts) <= parts]
        with runs.connected():
            for item in items:
                place.delete(item.parts)
                freed += item.size
    return freed


def _current_runs(root: Path) -> set[str]:
    """Return the names of the runs that `make repro` in this checkout would start or continue."""
    found = set()
    for task in task_names(read_params()):
        folder = root / "data" / "shards" / task
        paths = {split: folder / split / INDEX for split in ("train", "val")}
        if all(path.is_file() for path in paths.values()):
            data = {split: checksum(path) for split, path in paths.items()}
            found.add(run_name(task, load_task_section(task, "train", Train), data, load_section("seed", int)))
    return found
