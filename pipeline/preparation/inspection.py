"""Inspects images: each is decoded once, hashed and measured. The results are cached until the file changes."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import PIL
import pyvips
from numpy.typing import NDArray

from dgunet import images
from pipeline.preparation import inspection_cache, near_duplicates
from pipeline.preparation.inspection_cache import Inspection, InspectionCache
from pipeline.sources import hashing
from pipeline.sources.hashing import pixel_hash
from pipeline.sources.listing import Candidate, read_source_image
from pipeline.sources.places import UnreadableFile

_CHUNK = 256  # images between two commits; an interrupted run inspects at most this many again
In = TypeVar("In")
Out = TypeVar("Out")


def inspect_images(
    candidates: Iterable[Candidate], max_pixels: int, cache_file: Path
) -> Iterator[tuple[Candidate, Inspection]]:
    """Inspect images, several at once, and cache the results.

    Args:
        candidates: the images.
        max_pixels: limit per image; images with more pixels are not decoded.
        cache_file: the inspection cache; created if it does not exist.

    Yields:
        Each candidate, in the given order, with its inspection.

    Raises:
        StorageError: a source cannot be reached. The cache keeps what was inspected before.
        OSError: the cache cannot be read or written.
    """
    remaining = iter(candidates)
    with InspectionCache(cache_file) as cache:
        while chunk := list(islice(remaining, _CHUNK)):
            keys = [_cache_key(candidate, max_pixels) for candidate in chunk]
            known = {key: found for key in keys if key and (found := cache.find_inspection(key))}
            unknown = [candidate for candidate, key in zip(chunk, keys, strict=True) if key not in known]
            inspections = _map_in_threads(partial(inspect_image, max_pixels=max_pixels), unknown)
            for candidate, key in zip(chunk, keys, strict=True):
                if key in known:
                    yield candidate, known[key]
                    continue
                inspection = next(inspections)
                if key:
                    cache.store_inspection(key, inspection)
                yield candidate, inspection
            cache.commit()


def inspect_image(candidate: Candidate, *, max_pixels: int) -> Inspection:
    """Decode an image, and its degraded partner if it has one, and inspect them.

    Raises StorageError if a source cannot be reached. An image that cannot be used is no error: `reason` says why.
    """
    uri = candidate.uri
    try:
        image = _read(uri, max_pixels)
        height, width = image.shape[:2]
        degraded_sha256 = ""
        if candidate.degraded:
            uri = candidate.degraded
            degraded = _read(uri, max_pixels)
            degraded_sha256 = pixel_hash(degraded)
            if degraded.shape != image.shape:
                size = f"{degraded.shape[1]}x{degraded.shape[0]}"
                return Inspection(reason=f"misaligned: {size}, but its clean partner is {width}x{height}")
    except (UnreadableFile, images.UnreadableImage) as error:
        prefix = f"its clean partner {uri}: " if candidate.degraded and uri == candidate.uri else ""
        return Inspection(reason=prefix + str(error))
    return Inspection(pixel_hash(image), degraded_sha256, height, width, near_duplicates.thumbnail(image).tobytes())


def group_scenes(thumbnails: Mapping[str, bytes], cache_file: Path) -> dict[str, str]:
    """Return `near_duplicates.name_scenes(thumbnails)`; it is slow for many images and therefore cached."""
    key = hashlib.sha256(" ".join((_code_version(), *sorted(thumbnails))).encode()).hexdigest()
    with InspectionCache(cache_file) as cache:
        scenes = cache.find_scenes(key)
        if scenes is None:
            scenes = near_duplicates.name_scenes(thumbnails)
            cache.store_scenes(key, scenes)
    return scenes


def _read(uri: str, max_pixels: int) -> NDArray[np.float32]:
    try:
        return images.read_image(read_source_image(uri, max_pixels=max_pixels), max_pixels=max_pixels)
    except images.UnreadableImage as error:
        raise images.UnreadableImage(str(error).removeprefix("image in memory: ")) from error


def _map_in_threads(function: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """Map in threads, a few items ahead, results in order. Threads suffice: decoding and hashing release the GIL."""
    num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pending: deque[Future[Out]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _cache_key(candidate: Candidate, max_pixels: int) -> str | None:
    """Return a hash of everything that an inspection depends on; None for a file without a version tag."""
    if candidate.version is None:
        return None
    parts = (candidate.uri, candidate.degraded, candidate.version, max_pixels, _code_version())
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@lru_cache(maxsize=1)
def _code_version() -> str:
    """Return a hash of the code that reads and describes images: an edit invalidates the cached inspections."""
    modules = (near_duplicates, hashing, inspection_cache)
    files = [Path(str(module.__file__)) for module in modules] + [Path(__file__)]
    files += sorted(Path(images.__path__[0]).glob("*.py"))
    code = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    libvips = ".".join(str(pyvips.version(part)) for part in range(3))
    return f"{code} {cv2.__version__} {PIL.__version__} {libvips}"
