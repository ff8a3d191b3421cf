"""Looks up which images of published sets show scenes of other sets, as listed in the registry."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pipeline.sources import datasets
from pipeline.sources.registry import ALL, DataSet, set_of_folder, shared_images

# Files in a folder of shards on its train and val images: the URIs that `published` returns, and the pixel hashes.
PUBLISHED, PHOTOGRAPHS = "published.json", "photographs.json"


def published(uris: Iterable[str]) -> list[str]:
    """Return the URIs of images that are in published sets or below DGUNET_DATA, as `dataset:` URIs, sorted."""
    named = {uri if uri.startswith(datasets.PREFIX) else _below_root(uri) for uri in uris}
    return sorted(uri for uri in named if uri)


def set_of(place: str) -> DataSet | None:
    """Return the published set that holds `place` (a path, URL or `dataset:` URI), None if no set holds it."""
    uri = place if place.startswith(datasets.PREFIX) else _below_root(place)
    return set_of_folder(uri.removeprefix(datasets.PREFIX).split("/")[0]) if uri else None


def shows_scene_of(uri: str, other: str) -> bool:
    """Whether an image, given by its URI in the manifest, is of a published set and shows a scene of set `other`."""
    if not uri.startswith(datasets.PREFIX) or (found := set_of(uri)) is None:
        return False
    below = uri.removeprefix(f"{datasets.PREFIX}{found.folder}/")
    shared = shared_images(found.name, other)
    return shared == ALL or str(PurePosixPath(below).with_suffix("")) in shared


def _below_root(place: str) -> str | None:
    """Return the `dataset:` URI of a place below DGUNET_DATA, None for other places."""
    if "://" in place or "://" in datasets.root():
        below = place.removeprefix(f"{datasets.root()}/")
        return None if below == place else datasets.PREFIX + below
    path, base = Path(place).expanduser().absolute(), Path(datasets.root()).expanduser().absolute()
    return datasets.PREFIX + path.relative_to(base).as_posix() if path.is_relative_to(base) else None
