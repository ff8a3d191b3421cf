"""Restores one block of photographs after the other, with one model.

Photographs of a folder that are written as files need no record: those that exist in the output count as restored. For
a shard, read or written, a record in the output says what it was made from and what became of each photograph:

    {"made_by": …, "inputs_sha256": …, "bytes": of the shard that was written,
     "done": [{"photo": …, "target": …, "width": …, "height": …, "seconds": …, "dropped": […]}],
     "refused": [{"photo": …, "reason": …}]}
"""

from __future__ import annotations

import io
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import cv2
import numpy as np
import torch

from dgunet.batch import STOPS, read_for, reason_of, restored_photo
from dgunet.checkpoint import load_model
from dgunet.config import CARD_FILE, WEIGHTS_FILE
from dgunet.images import SUFFIXES, WRITABLE_SUFFIXES, Photo
from dgunet.images.encode import encode
from dgunet.inference import restore
from dgunet.jobs import target_names
from pipeline.restoration.blocks import SHARD, Block
from pipeline.restoration.output import Output
from pipeline.shards.format import write_tar
from pipeline.sources.places import File, UnreadableFile, open_filesystem
from pipeline.sources.storage import read

DEGRADED = "degraded.npy"  # in the shards of this project
END_OF_TAR = 1024  # zero bytes, at least
Existing = Literal["continue", "skip", "replace"]


@dataclass(frozen=True)
class Job:
    """What is done to every block.

    Attributes:
        output: where it is written to.
        to_shards: write shards; False: files.
        options: arguments of `dgunet.restore`.
        file_format: one of `dgunet.jobs.FORMATS`, or None.
        page: which picture of files that hold several.
        existing: `replace` makes all anew. `continue` and `skip` pass over photographs of a folder whose output file
            exists, and over shards whose record names this job and the same inputs; `skip` also passes over every
            other shard, and every file of a shard, that exists in the output.
        made_by: sha256 of the model and of all that decides what a photograph becomes.
        most_deaths: how many processes must have died over a photograph before it is refused.
    """

    output: Output
    to_shards: bool
    options: Mapping[str, Any]
    file_format: str | None
    page: int | None
    existing: Existing
    made_by: str
    most_deaths: int


@dataclass
class Result:
    """What became of the photographs of a block; those that were restored are counted, not listed.

    Attributes:
        block: its name.
        done: number of photographs that this run restored.
        skipped: number of those that were restored before.
        refused: photographs and reasons.
        dropped: how often each phrase names what was not kept.
        num_deaths: how many processes died over the block.
    """

    block: str
    done: int = 0
    skipped: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    num_deaths: int = 0


class Refused(Exception):
    """A photograph is not restored, for the reason in the message."""


Begin = Callable[[str, str], int]
"""Called with the block and "" when the block begins, then with the block and each photograph before it is restored.

Returns how many processes died while they restored this photograph; for "", while they restored this block.
"""


class Restorer:
    """A model on a device, and the job; called with each block.

    Raises:
        ValueError: the files are not those of a model.
    """

    def __init__(self, job: Job, model: Mapping[str, bytes], *, device: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        cv2.setNumThreads(1)
        with tempfile.TemporaryDirectory() as folder:
            for name in (CARD_FILE, WEIGHTS_FILE):
                Path(folder, name).write_bytes(model[name])
            self._model = load_model(folder).to(device)
        self._job = job

    def __call__(self, block: Block, begin: Begin) -> Result:
        """Restore a block and return what became of it.

        Raises:
            OSError: the output cannot be written to, as on a full disk.
            StorageError: the input cannot be reached.
        """
        num_deaths = begin(block.name, "")
        restored = self._recorded if self._job.to_shards or block.shard is not None else self._files
        return replace(restored(block, partial(begin, block.name)), num_deaths=num_deaths)

    def _files(self, block: Block, begin: Callable[[str], int]) -> Result:
        """Restore photographs of a folder into files."""
        result = Result(block.name)
        for file, target in zip(block.files, block.targets, strict=True):
            try:
                if self._job.existing != "replace" and self._job.output.size(target) is not None:
                    result.skipped += 1
                    continue
                self._check_deaths(begin(file.uri))
                content, entry = self._restored(file.uri, _read(file), target)
                self._write(target, content)
            except Refused as error:
                result.refused.append((file.uri, str(error)))
                continue
            result.done += 1
            result.dropped.update(entry["dropped"])
        return result

    def _recorded(self, block: Block, begin: Callable[[str], int]) -> Result:
        """Restore photographs that come from a shard, or become one, and write the record."""
        output, shard, record_name = self._job.output, f"{block.name}{SHARD}", f"{block.name}.json"
        size = output.size(shard) if self._job.to_shards else None
        record = output.read_json(record_name) if self._job.existing != "replace" else None
        if record is not None and self._is_current(record, block, size):
            refused = [(entry["photo"], entry["reason"]) for entry in record["refused"]]
            return Result(block.name, skipped=len(record["done"]), refused=refused)
        if self._job.existing == "skip" and size is not None:
            return Result(block.name)
        result, done = Result(block.name), list[dict[str, Any]]()
        samples = self._samples(block, begin, result, done)
        size = None
        try:
            if self._job.to_shards:
                with output.new_file(shard) as path:
                    write_tar(path, samples)
                    size = path.stat().st_size
            else:
                for sample in samples:
                    key = sample.pop("__key__")
                    for extension, content in sample.items():
                        self._write(f"{block.name}/{key}.{extension}", content)
        except Refused as error:  # of the shard that is read
            assert block.shard is not None
            result = Result(block.name, refused=[(block.shard.uri, str(error))])
            done, size = [], None
        output.write_json(
            record_name,
            {
                "made_by": self._job.made_by,
                "inputs_sha256": block.inputs_sha256,
                "bytes": size,
                "done": done,
                "refused": [{"photo": photo, "reason": reason} for photo, reason in result.refused],
            },
        )
        return result

    def _is_current(self, record: Mapping[str, Any], block: Block, size: int | None) -> bool:
        made = (record.get("made_by"), record.get("inputs_sha256"), record.get("bytes"))
        return made == (self._job.made_by, block.inputs_sha256, size)

    def _samples(
        self, block: Block, begin: Callable[[str], int], result: Result, done: list[dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """Yield the samples to write: `__key__` and bytes by extension."""
        members = _photos(block) if block.shard is None else _members(block.shard.uri, self._job.file_format)
        keeps_files = self._job.existing == "skip" and not self._job.to_shards

        def is_kept(name: str) -> bool:
            return keeps_files and self._job.output.size(f"{block.name}/{name}") is not None

        names = set[str]()
        for member in members:
            try:
                _check_name(member.name)
                if member.name in names:
                    raise Refused("another member of the shard has the same name")
                if is_kept(member.name):
                    names.add(member.name)
                    result.skipped += member.is_photo
                    continue
                content = member.load()
                if member.is_photo:
                    self._check_deaths(begin(member.origin))
                    content, entry = self._restored(member.origin, content, member.name)
                    done.append(entry)
                    result.done += 1
                    result.dropped.update(entry["dropped"])
            except Refused as error:
                result.refused.append((member.origin, str(error)))
                continue
            names.add(member.name)
            key, extension = _split(member.name)
            yield {"__key__": key, extension: content}

    def _restored(self, origin: str, content: bytes | Photo, target: str) -> tuple[bytes, dict[str, Any]]:
        """Return the restored photograph as a file, and its entry of the record. Raises Refused."""
        started, suffix = time.monotonic(), PurePosixPath(target).suffix
        try:
            photo = content if isinstance(content, Photo) else read_for(content, suffix, page=self._job.page)
            photo = restored_photo(photo, lambda pixels: restore(self._model, pixels, **self._job.options))
            written, dropped = encode(photo, WRITABLE_SUFFIXES[suffix.lower()])
        except torch.AcceleratorError:  # the device is lost to this process, not the photograph
            raise
        except Exception as error:  # decoders raise many types; RuntimeError: torch is out of memory
            raise Refused(reason_of(error, "image in memory")) from error
        height, width = photo.pixels.shape[:2]
        return written, {
            "photo": origin,
            "target": target,
            "width": width,
            "height": height,
            "seconds": round(time.monotonic() - started, 3),
            "dropped": [*photo.dropped, *dropped],
        }

    def _check_deaths(self, num_deaths: int) -> None:
        if num_deaths >= self._job.most_deaths:
            raise Refused(f"{num_deaths} processes died while they restored it, for example for lack of memory")

    def _write(self, name: str, content: bytes) -> None:
        """Write a file. Raises Refused if others can still be written, OSError if not."""
        try:
            self._job.output.write(name, content)
        except OSError as error:
            if not self._job.output.is_local or error.errno in STOPS:
                raise
            raise Refused(reason_of(error, name)) from error


@dataclass(frozen=True)
class _Member:
    """A file that is written as a member of a shard, or comes from one.

    Attributes:
        origin: the file, or shard!member, that it comes from.
        name: that is written.
        load: returns its bytes, or the pixels of an array. Raises Refused.
        is_photo: whether it is restored; other members are copied.
    """

    origin: str
    name: str
    load: Callable[[], Any]
    is_photo: bool


def _photos(block: Block) -> Iterator[_Member]:
    """Yield the photographs of a folder as members of a shard; the key of a sample has no dot after the last slash."""
    for file, target in zip(block.files, block.targets, strict=True):
        path = PurePosixPath(target)
        name = path.with_name(f"{path.stem.replace('.', '%2E')}{path.suffix}").as_posix()
        yield _Member(file.uri, name, partial(_read, file), is_photo=True)


def _read(file: File) -> bytes:
    if file.problem:
        raise Refused(file.problem)
    try:
        return read(file.uri)
    except UnreadableFile as error:
        raise Refused(str(error)) from error


def _members(uri: str, file_format: str | None) -> Iterator[_Member]:
    """Yield the members of a shard, those of a sample together. Raises Refused if the shard is damaged."""
    for _, group in groupby(_contents(uri), key=lambda item: _split(item[0])[0]):
        contents = list(group)
        photos = [name for name, _ in contents if PurePosixPath(name).suffix.lower() in SUFFIXES]
        targets = target_names([Path(name) for name in photos], file_format, WRITABLE_SUFFIXES)
        renamed = dict(zip(photos, (target.as_posix() for target in targets), strict=True))
        for name, content in contents:
            if name.endswith(f".{DEGRADED}"):
                restored = f"{name.removesuffix(DEGRADED)}restored.{file_format or 'png'}"
                yield _Member(f"{uri}!{name}", restored, partial(_array, content), is_photo=True)
            else:
                yield _Member(f"{uri}!{name}", renamed.get(name, name), partial(bytes, content), name in renamed)


def _contents(uri: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each file of a tar. Raises Refused if it is damaged or cut off.

    tarfile takes a damaged header, and the end of a file that was cut off, for the end of the archive.
    """
    filesystem, path = open_filesystem(uri)
    try:
        with filesystem.open(path, "rb") as file:
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for member in tar:
                        if (content := tar.extractfile(member)) is not None:
                            yield member.name, content.read()
                    end = tar.offset
            except tarfile.TarError as error:
                raise Refused(f"not a whole tar file: {error}") from error
            file.seek(end)
            if file.read(END_OF_TAR) != bytes(END_OF_TAR):
                raise Refused(f"not a whole tar file: damaged or cut off after {end} bytes")
    except FileNotFoundError as error:
        raise Refused("is no longer there") from error


def _split(name: str) -> tuple[str, str]:
    """Return key and extension of a member, as WebDataset does: the key ends before the first dot of the last part."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension


def _check_name(name: str) -> None:
    """Raise Refused for a name that a sample cannot have, or that leads out of the folder that is written to."""
    key, extension = _split(name)
    if not (extension and key.rpartition("/")[2]) or name.startswith("/") or ".." in name.split("/"):
        raise Refused("not the name of a sample's member, KEY.EXTENSION")


def _array(content: bytes) -> Photo:
    """Return the pixels of a pair's degraded image."""
    try:
        pixels = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise Refused(f"not an array: {error}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise Refused(f"an array of {pixels.dtype} and shape {pixels.shape}; uint8 H W C with 1 or 3 channels is read")
    return Photo(pixels)
