"""Which images of published sets show scenes of other sets (facts of the registry)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from pipeline.sources.datasets import PREFIX
from pipeline.sources.registry import ALL, data_set, set_of_folder, shared_images


def shows_scene_of(uri: str, other: str) -> bool:
    """Whether an image, named as in the manifest, is of a published set and shows a scene of set `other`."""
    folder, _, below = uri.removeprefix(PREFIX).partition("/")
    if not uri.startswith(PREFIX) or (found := set_of_folder(folder)) is None:
        return False
    shared = shared_images(found.name, other)
    return shared == ALL or str(PurePosixPath(below).with_suffix("")) in shared


def count_scenes_of(uris: Iterable[str], other: str) -> int:
    """Return how many images show a scene of set `other`. Raises ValueError if there is no such set."""
    data_set(other)
    return sum(shows_scene_of(uri, other) for uri in uris)
