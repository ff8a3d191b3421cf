"""The WebDataset shard format: pairs of images in tar files, and the index of a folder of shards.

A folder of shards holds `000000.tar`, `000001.tar`, ... and `index.json`. The index states the settings that the
shards were made with, and for each shard the number of samples, its size in bytes, its sha256 and the shortest side of
its images. A sample consists of

    KEY.clean.npy       H W C uint8
    KEY.degraded.npy    H W C uint8; absent when pairs are made online
    KEY.json            how the pair was made: source image, tile, sampled degradation, seed

Arrays are stored raw: a training patch is read 54 times as fast as from PNG photographs (benchmarks/results/loader.md).
WebDataset reads truncated and damaged tar files without an error. Here nothing is read before the shard's size,
checksum and number of samples have been compared with the index. If DGUNET_SHARDS names a URL, the tar files are
stored there and the folder holds the index alone (`pipeline.shards.store`); the index is the same.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import webdataset as wds
from jaxtyping import UInt8

from pipeline.shards import store

INDEX = "index.json"
PARTIAL = ".partial"  # suffix of files that are still being written
HEADER = {"mtime": 0, "user": "", "group": "", "mode": 0o444}  # of each member of a tar file
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]+")


class DamagedShard(ValueError):
    """A shard is missing, truncated or not the one that the index describes; the message says what to run."""


@dataclass(frozen=True)
class Pair:
    """Clean and degraded image as stored, H W C uint8; `degraded` is None if the loader makes it (online)."""

    key: str
    clean: UInt8[np.ndarray, "H W C"]
    degraded: UInt8[np.ndarray, "H W C"] | None
    record: Mapping[str, Any]


@dataclass(frozen=True)
class ShardEntry:
    """One shard in the index: file name, number of samples, bytes, sha256, shortest side of an image in pixels."""

    name: str
    samples: int
    bytes: int
    sha256: str
    min_side: int


@dataclass(frozen=True)
class Index:
    """The shards of a folder, and the settings that they were made with."""

    recipe: Mapping[str, Any]
    shards: Sequence[ShardEntry]

    @property
    def samples(self) -> int:
        """Number of pairs in all shards."""
        return sum(entry.samples for entry in self.shards)

    @property
    def min_side(self) -> int:
        """The shortest side of an image in all shards, in pixels; the index lists at least one shard."""
        return min(entry.min_side for entry in self.shards)


def write_shard(path: Path, pairs: Iterable[Pair]) -> ShardEntry:
    """Write `pairs` to the tar file `path` and return its entry; the same pairs give the same bytes.

    The file is written under a temporary name, synchronised to disk and renamed.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    sides = set[int]()

    def members() -> Iterator[dict[str, Any]]:
        for pair in pairs:
            yield _members(pair)
            sides.update(pair.clean.shape[:2])

    try:
        samples = write_tar(partial, members())
        entry = ShardEntry(path.name, samples, partial.stat().st_size, checksum(partial), min(sides))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return entry


def write_tar(path: Path, samples: Iterable[Mapping[str, Any]]) -> int:
    """Write samples, `__key__` and bytes by extension, to a tar file on disk, and return their number.

    The same samples give the same bytes.
    """
    count = 0
    with path.open("wb") as file:
        with wds.TarWriter(file, encoder=False, keep_meta=True, format="PAX_FORMAT", **HEADER) as tar:
            for sample in samples:
                tar.write(sample)
                count += 1
        file.flush()
        os.fsync(file.fileno())
    return count


def checksum(path: Path) -> str:
    """Return the hexadecimal sha256 of the file `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_index(folder: Path, index: Index) -> None:
    """Write `folder/index.json`. It is written last, so that a folder with an index is complete."""
    text = json.dumps({"recipe": index.recipe, "shards": [asdict(e) for e in index.shards]}, indent=1, sort_keys=True)
    partial = folder / f".{INDEX}{PARTIAL}"
    partial.write_text(text + "\n")
    partial.replace(folder / INDEX)


def read_index(folder: Path) -> Index:
    """Return the index in `folder/index.json`; ValueError if it is missing or damaged."""
    path = folder / INDEX
    try:
        content = json.loads(path.read_text())
        return Index(content["recipe"], tuple(ShardEntry(**entry) for entry in content["shards"]))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: run `make repro` to make the shards") from None
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not an index of shards ({error}): remove {folder} and run `make repro`") from error


class Shard:
    """A shard, memory-mapped for random access: `shard[i]` is its i-th pair.

    Raises:
        DamagedShard: the file is not the one that the index describes.
        store.OutOfReach: the URL of the shards cannot be reached.
    """

    def __init__(self, folder: Path, entry: ShardEntry) -> None:
        self.path = folder / entry.name
        with self._opened(entry) as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._samples = _locate(file)
        if len(self._samples) != entry.samples:
            raise self._damaged(f"holds {len(self._samples)} samples, the index says {entry.samples}")

    def _opened(self, entry: ShardEntry) -> BinaryIO:
        """Open the file in the folder or at the URL, after verifying its checksum."""
        if store.in_use() and not self.path.exists():
            try:
                return store.open_shard(entry.sha256)
            except store.NoSuchShard as fault:
                raise self._damaged(
                    str(fault), "run `.venv/bin/dvc repro --force --single-item synthesize@TASK`"
                ) from fault
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            raise self._damaged("is missing, and DGUNET_SHARDS names no URL to look for it") from None
        if size != entry.bytes:
            raise self._damaged(f"has {size} bytes, the index says {entry.bytes}")
        if checksum(self.path) != entry.sha256:
            raise self._damaged("has another checksum than the index says")
        return self.path.open("rb")

    def _damaged(self, reason: str, remedy: str = "remove its folder and run `make repro`") -> DamagedShard:
        return DamagedShard(f"{self.path} {reason}: {remedy} to make it again")

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self._samples)

    @property
    def keys(self) -> list[str]:
        """The keys of its pairs, in the order of writing."""
        return [key for key, _ in self._samples]

    def __getitem__(self, number: int) -> Pair:
        """Return the pair at `number`, counted from 0 in the order of writing."""
        try:
            return replace(self.arrays(number), record=json.loads(self._content(number, "json")))
        except (KeyError, ValueError) as error:
            raise self._damaged(f"has an unreadable record {self._samples[number][0]} ({error})") from error

    def arrays(self, number: int) -> Pair:
        """Return the pair at `number` without its record, which takes longer to read than its pixels."""
        key, members = self._samples[number]
        try:
            clean = _array(self._content(number, "clean.npy"))
            degraded = _array(self._content(number, "degraded.npy")) if "degraded.npy" in members else None
        except (KeyError, ValueError) as error:
            raise self._damaged(f"has an unreadable sample {key} ({error})") from error
        return Pair(key, clean, degraded, {})

    def _content(self, number: int, extension: str) -> bytes:
        start, size = self._samples[number][1][extension]
        return self._bytes[start : start + size]


def _members(pair: Pair) -> dict[str, Any]:
    if not KEY_PATTERN.fullmatch(pair.key):
        raise ValueError(f"the key {pair.key!r} of a sample may hold only letters, digits, _ and -")
    members: dict[str, Any] = {"__key__": pair.key, "clean.npy": _npy(pair.clean)}
    if pair.degraded is not None:
        members["degraded.npy"] = _npy(pair.degraded)
    members["json"] = json.dumps(pair.record, sort_keys=True, allow_nan=False).encode()
    return members


def _locate(file: BinaryIO) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    """List the key of each sample and, by extension, the start and the number of its bytes."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            samples.setdefault(key, {})[extension] = (member.offset_data, member.size)
    return list(samples.items())


def _npy(array: UInt8[np.ndarray, "H W C"]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _array(content: bytes) -> UInt8[np.ndarray, "H W C"]:
    """Return what `_npy` wrote, read-only; np.load would parse each header again, which takes most of its time."""
    length = 10 + int.from_bytes(content[8:10], "little")  # magic, version 1.0, length of the header
    shape = _shape(content[:length])
    array: UInt8[np.ndarray, "H W C"] = np.frombuffer(content, np.uint8, offset=length).reshape(shape)
    return array


@lru_cache(maxsize=256)
def _shape(header: bytes) -> tuple[int, ...]:
    file = io.BytesIO(header)
    version = np.lib.format.read_magic(file)
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if version != (1, 0) or is_fortran or dtype != np.uint8:
        raise ValueError(f"unexpected array of {dtype} in format version {version}")
    return shape
