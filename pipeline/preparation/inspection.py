"""One look at an image: decoded once, hashed, measured, and remembered until its file changes."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import PIL
from numpy.typing import NDArray

from dgunet import images
from dgunet.images import codecs, exif
from dgunet.images import files as images_files
from pipeline.preparation import near_duplicates
from pipeline.sources.hashing import pixel_hash
from pipeline.sources.listing import Candidate, read_source_image
from pipeline.sources.places import UnreadableFile

_CHUNK = 256  # images between two commits: what an interrupted run loses at most
In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Inspection:
    """What decoding an image told. `reason` says why it cannot be used; all else is empty then.

    `sha256` is that of the pixels (pixel_hash), `degraded_sha256` that of its partner in a real pair, sides in pixels.
    """

    sha256: str = ""
    degraded_sha256: str = ""
    height: int = 0
    width: int = 0
    thumbnail: bytes = b""
    reason: str = ""


def inspect_images(
    candidates: Iterable[Candidate], max_pixels: int, cache: Path
) -> Iterator[tuple[Candidate, Inspection]]:
    """Yield each candidate, in order, with what one look at it tells; a look is remembered in the file `memory`.

    Raises StorageError if a place cannot be reached any more: what was seen until then stays remembered.
    """
    todo = iter(candidates)
    with _saved(cache) as database:
        while chunk := list(islice(todo, _CHUNK)):
            keys = [_key(candidate, max_pixels) for candidate in chunk]
            known = {key: seen for key in keys if key and (seen := _recall(database, key))}
            unknown = [candidate for candidate, key in zip(chunk, keys, strict=True) if key not in known]
            looks = _in_threads(partial(inspect_image, max_pixels=max_pixels), unknown)
            for candidate, key in zip(chunk, keys, strict=True):
                if key in known:
                    yield candidate, known[key]
                    continue
                inspection = next(looks)
                if key:
                    database.execute(
                        "INSERT OR REPLACE INTO looks VALUES (?, ?, ?, ?, ?, ?, ?)", (key, *astuple(inspection))
                    )
                yield candidate, inspection
            database.commit()


def inspect_image(candidate: Candidate, *, max_pixels: int) -> Inspection:
    """Decode an image (and its degraded partner) and describe it. Raises StorageError if its place is out of reach."""
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
        at_fault = f"its clean partner {uri}: " if candidate.degraded and uri == candidate.uri else ""
        return Inspection(reason=at_fault + str(error))
    return Inspection(pixel_hash(image), degraded_sha256, height, width, near_duplicates.thumbnail(image).tobytes())


def group_scenes(thumbnails: Mapping[str, bytes], cache: Path) -> dict[str, str]:
    """Return duplicates.name_groups, remembered for as long as the images are the same: it is slow for very many."""
    key = hashlib.sha256(" ".join((_reader(), *sorted(thumbnails))).encode()).hexdigest()
    with _saved(cache) as database:
        row = database.execute("SELECT groups FROM scenes WHERE key = ?", (key,)).fetchone()
        groups: dict[str, str] = json.loads(row[0]) if row else near_duplicates.name_scenes(thumbnails)
        database.execute("DELETE FROM scenes")
        database.execute("INSERT INTO scenes VALUES (?, ?)", (key, json.dumps(groups)))
    return groups


def _read(uri: str, max_pixels: int) -> NDArray[np.float32]:
    try:
        return images.read_image(read_source_image(uri, max_pixels=max_pixels), max_pixels=max_pixels)
    except images.UnreadableImage as error:
        raise images.UnreadableImage(str(error).removeprefix("image in memory: ")) from error


def _in_threads(function: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """Map, a few items ahead, results in order; decoding and hashing release the interpreter, so threads do."""
    num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting: deque[Future[Out]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def _saved(cache: Path) -> Iterator[sqlite3.Connection]:
    """Open the memory; save what was added, whatever happens meanwhile. A disk that is full or read-only: OSError."""
    with closing(_open_cache(cache)) as database:
        try:
            try:
                yield database
            finally:
                database.commit()
        except sqlite3.OperationalError as error:
            raise OSError(f"{cache}: {error}") from error


def _open_cache(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = "key TEXT PRIMARY KEY, sha256 TEXT, degraded TEXT, height INT, width INT, thumbnail BLOB, reason TEXT"
    database = sqlite3.connect(path, timeout=60)
    try:
        database.execute(f"CREATE TABLE IF NOT EXISTS looks ({columns}) WITHOUT ROWID")
        database.execute("CREATE TABLE IF NOT EXISTS scenes (key TEXT PRIMARY KEY, groups TEXT)")
        database.execute("SELECT * FROM looks LIMIT 1").fetchone()
    except sqlite3.DatabaseError as error:
        database.close()
        if "locked" in str(error) or "readonly" in str(error) or "disk" in str(error):
            raise OSError(f"{path}: {error}") from error
        path.unlink()  # damaged: it is only a memory
        return _open_cache(path)
    return database


def _recall(database: sqlite3.Connection, key: str) -> Inspection | None:
    row = database.execute("SELECT * FROM looks WHERE key = ?", (key,)).fetchone()
    return Inspection(*row[1:]) if row else None


def _key(candidate: Candidate, max_pixels: int) -> str | None:
    """Everything that a look depends on; None for a file that bears no sign of change."""
    if candidate.version is None:
        return None
    parts = (candidate.uri, candidate.degraded, candidate.version, max_pixels, _reader())
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@cache
def _reader() -> str:
    """The code that reads and describes images: when it changes, what it said is forgotten."""
    files = (images_files.__file__, codecs.__file__, exif.__file__, near_duplicates.__file__, __file__)
    code = hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()
    return f"{code} {cv2.__version__} {PIL.__version__}"
