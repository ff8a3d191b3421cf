"""Finds out whether a model was trained on scenes of a benchmark; if so, its score there says nothing about the model.

There are two checks. The registry of published sets says which images of one set show scenes of another. If it names
none, the thumbnails of all images of the train and val splits are compared with those of the benchmark
(`near_duplicates`). `prepare` writes the thumbnails of all photographs:

    sha256        N hashes of pixels, ascending, as in the manifest
    uri           N places, as in the manifest, in UTF-8
    thumbnail     N 32 32, uint8
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pipeline.preparation.near_duplicates import THUMBNAIL_SIDE, shared_scenes
from pipeline.sources.manifest import Entry
from pipeline.sources.overlaps import PHOTOGRAPHS, PUBLISHED, shows_scene_of

Thumbnail = UInt8[np.ndarray, "32 32"]


@dataclass(frozen=True)
class Leak:
    """Why a benchmark is not measured.

    Attributes:
        reason: one line.
        remedy: what to do in order to measure it.
        pairs: images of the train and val splits, each with the image of the benchmark whose scene it shows; without
            one ("") where the registry says so.
    """

    reason: str
    remedy: str
    pairs: tuple[tuple[str, str], ...]


def write_thumbnails(path: Path, entries: Iterable[Entry], thumbnails: Mapping[str, bytes]) -> None:
    """Write the thumbnails of the entries of a manifest, given by the hash of pixels; equal entries, equal bytes."""
    uris = {entry.sha256: entry.uri for entry in sorted(entries, key=lambda entry: entry.sort_key, reverse=True)}
    hashes = sorted(uris)
    pixels = np.frombuffer(b"".join(thumbnails[sha256] for sha256 in hashes), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(
                file,
                sha256=np.array(hashes, "S"),
                uri=np.array([uris[sha256].encode() for sha256 in hashes]),
                thumbnail=pixels.reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE),
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def published_leak(shards: Path, dataset: str | None) -> Leak | None:
    """Return why a published set is no benchmark for what was trained on these shards, as the registry knows it.

    Args:
        shards: folder of a task's shards.
        dataset: name of the set; None for a benchmark of other images.
    """
    if dataset is None or not (shards / PUBLISHED).is_file():
        return None
    uris = json.loads((shards / PUBLISHED).read_text(encoding="utf-8"))
    seen = [uri for uri in uris if shows_scene_of(uri, dataset)]
    if not seen:
        return None
    return Leak(
        f"{len(seen)} images of the train and val splits show scenes of {dataset}, such as {seen[0]}",
        f"leave them out: `without: [{dataset}]` in the entry of prepare.sources, and train again",
        tuple((uri, "") for uri in seen),
    )


def photograph_leak(shards: Path, thumbnails: Path, benchmark: str, images: Mapping[str, Thumbnail]) -> Leak | None:
    """Return why images are no benchmark for what was trained on these shards, as near duplicates show it.

    Args:
        shards: folder of a task's shards.
        thumbnails: the file that `write_thumbnails` wrote.
        benchmark: name of the benchmark.
        images: thumbnails of its clean images, by their names.

    Raises:
        ValueError: a photograph of the train or val split has no thumbnail in the file.
    """
    hashes = json.loads((shards / PHOTOGRAPHS).read_text(encoding="utf-8"))
    if not hashes:
        return None
    with np.load(thumbnails) as content:
        known, uris, pixels = content["sha256"], content["uri"], content["thumbnail"]
    rows = np.searchsorted(known, np.array(hashes, known.dtype))
    if not np.array_equal(known[rows.clip(max=len(known) - 1)], np.array(hashes, known.dtype)):
        raise ValueError(f"{thumbnails} lacks photographs that {shards} is made of: run `make repro`")
    names = list(images)
    found = shared_scenes(np.stack([images[name] for name in names]), pixels[rows])
    if not found:
        return None
    pairs = tuple((uris[rows[seen]].decode(), names[one]) for one, seen in found)
    seen = {uri for uri, _ in pairs}
    return Leak(
        f"{len(seen)} images of the train and val splits show scenes of {benchmark}, such as {pairs[0][0]}, which is "
        f"like {pairs[0][1]}",
        "take them out of prepare.sources, and train again",
        pairs,
    )
