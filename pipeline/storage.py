"""Folders, archives and URLs as one thing: named files, listed in a fixed order and read by a portable string.

    place:   photos           photos.zip, photos.zip!inner    s3://bucket/photos          https://host/photos.tar
    where:   photos/a.png     photos.zip!inner/a.png          s3://bucket/photos/a.png    https://host/photos.tar!a.png

No member is ever extracted to disk, and members are read by exact name, so a hostile archive can write nowhere. An
archive that can only be read from its start (a compressed tar, or one on a server that gives no parts of a file) is
copied once, whole and uncompressed, to .cache/archives: one copy for each archive, until the archive changes.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
from filelock import FileLock

from dgunet.photo import MAX_PIXELS, UnreadableImage, header_size

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
COPIES = Path(".cache/archives")
_COMPRESSED: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_MAX_RATIO, _HARMLESS_COPY_BYTES = 100, 2**30  # images hardly compress further: what unpacks to more is a bomb
_ASKED_AT_ONCE = 16  # files at a URL, where the server must be asked for the stamp of each
_BYTES_PER_PIXEL = 8  # RGBA of 16 bits, not compressed
_BYTES_BESIDE_PIXELS = 2**26  # previews, profiles, notes of the camera
MAX_FILE_BYTES = _BYTES_PER_PIXEL * MAX_PIXELS + _BYTES_BESIDE_PIXELS
_HARMLESS_BYTES = 2**24  # so large a member is unpacked without a look at its header

_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


class StorageError(ValueError):
    """A place that cannot be listed or reached: nothing can be said about its files."""


class NotThere(StorageError):
    """A place that does not exist, or a URL or a folder of an archive without files."""


class UnreadableFile(ValueError):
    """One file that cannot be read, though its place can."""


@dataclass(frozen=True)
class File:
    """One listed file: `name` below its place (with /), `where` as `read` takes it.

    `stamp` changes when the content does; None where the place keeps no such record. `problem` says why the file
    must not be read, if so.
    """

    name: str
    where: str
    stamp: str | None = None
    problem: str | None = None

    @property
    def is_hidden(self) -> bool:
        """Whether a part of the name starts with a dot, or it is the shadow that macOS puts into archives."""
        return any(part.startswith(".") or part == "__MACOSX" for part in self.name.split("/"))


def list_files(place: str) -> Iterator[File]:
    """List all files below a folder, archive, folder in an archive or URL, recursively, sorted within each folder.

    Hidden files are listed (a hidden folder as one entry). Links to folders are followed once.
    Raises NotThere, or StorageError if the place is no folder or archive, is damaged or out of reach; each names it.
    """
    archive, below = split_member(place)
    if below is not None:
        yield from _list_below(archive, below)
    elif is_archive(place):
        yield from _open_archive(place, _archive_stamp(place, anew=True)).files()
    elif "://" in place:
        yield from _list_url(place)
    else:
        folder = Path(place).expanduser()
        if not folder.exists():
            raise NotThere(f"{place}: no such folder (looked in {folder.absolute()})")
        if not folder.is_dir():
            raise StorageError(
                f"{place}: not a folder; give a folder, an archive ({', '.join(ARCHIVE_SUFFIXES)}) or a URL"
            )
        yield from _walk(folder, "", set())


def read(where: str, *, max_pixels: int = MAX_PIXELS) -> bytes:
    """Return the bytes of one image file. Raises UnreadableFile for this file alone, StorageError for its place.

    A few bytes in an archive may unpack to gigabytes: a large member is unpacked only if its header is that of an image
    of at most `max_pixels`, and it has no more bytes than such an image needs. UnreadableFile otherwise.
    """
    place, member = split_member(where)
    if member is not None:
        return _open_archive(place, _archive_stamp(place)).read(member, max_pixels)
    if "://" not in where:
        try:
            return Path(where).expanduser().read_bytes()
        except OSError as error:
            raise UnreadableFile(f"cannot be read: {error.strerror or error}") from error
    filesystem, path = _filesystem(where)
    try:
        return bytes(filesystem.cat_file(path))
    except (FileNotFoundError, PermissionError) as error:
        raise UnreadableFile(f"cannot be read: {error}") from error
    except Exception as error:  # each protocol has its own errors; all mean that the place cannot be reached now
        raise StorageError(f"{where}: cannot be reached ({_describe(error)}); try again when it can") from error


def is_archive(place: str) -> bool:
    """Whether the name is that of an archive."""
    return place.lower().endswith(ARCHIVE_SUFFIXES)


def split_member(where: str) -> tuple[str, str | None]:
    """Split "photos.zip!inner/a.png" into archive and member; the member is None for what lies in no archive."""
    position = where.find("!")
    while position >= 0:
        if is_archive(where[:position]):
            return where[:position], where[position + 1 :]
        position = where.find("!", position + 1)
    return where, None


def _walk(folder: Path, prefix: str, visited: set[tuple[int, int]]) -> Iterator[File]:
    identity = folder.stat()
    if (identity.st_dev, identity.st_ino) in visited:
        return
    visited.add((identity.st_dev, identity.st_ino))
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield File(prefix, _portable(folder), problem=f"folder cannot be opened: {error.strerror}")
        return
    for entry in entries:
        name, path = prefix + entry.name, folder / entry.name
        if entry.is_dir() and not entry.name.startswith("."):
            yield from _walk(path, name + "/", visited)
            continue
        try:
            stat = entry.stat()
        except OSError as error:
            yield File(name, _portable(path), problem=f"cannot be read: {error.strerror}")
            continue
        yield File(name, _portable(path), _stamp(stat), _size_problem(stat.st_size))


def _list_below(archive: str, folder: str) -> Iterator[File]:
    prefix = folder.rstrip("/") + "/"
    files = list(list_files(archive))
    found = [replace(file, name=file.name.removeprefix(prefix)) for file in files if file.name.startswith(prefix)]
    if not found:
        example = f"; there is, for one, {files[0].name}" if files else ""
        raise NotThere(f"{archive}!{folder}: no such folder in the archive{example}")
    yield from found


def _list_url(place: str) -> Iterator[File]:
    filesystem, root = _filesystem(place)
    try:
        filesystem.invalidate_cache()
        found: dict[str, dict[str, Any]] = filesystem.find(root, detail=True)
    except Exception as error:  # each protocol has its own errors
        raise StorageError(f"{place}: cannot be listed ({_describe(error)})") from error
    if not found:
        raise NotThere(f"{place}: nothing there")

    def complete(path: str) -> dict[str, Any]:
        try:
            return found[path] if _url_stamp(found[path]) else {**found[path], **filesystem.info(path)}
        except Exception:  # each protocol has its own errors; reading it says why
            return found[path]

    paths = sorted(found)
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        for path, facts in zip(paths, pool.map(complete, paths), strict=True):
            name = path.removeprefix(root.rstrip("/")).lstrip("/") or path.rpartition("/")[2]
            yield File(
                name, filesystem.unstrip_protocol(path), _url_stamp(facts), _size_problem(facts.get("size") or 0)
            )


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or error.name or "the package"
        raise StorageError(
            f"{url}: needs a package that is not installed: .venv/bin/pip install {missing} ({_describe(error)})"
        ) from error
    except Exception as error:  # an unknown protocol, or one that wants to know more
        raise StorageError(f"{url}: cannot be opened ({_describe(error)})") from error
    return filesystem, path


class _Archive:
    """A zip or tar file, opened once for many reads; threads take turns."""

    def __init__(self, place: str, stamp: str | None):
        self._place, self._stamp = place, stamp
        self._turn = threading.Lock()
        self._inside: dict[str, zipfile.ZipInfo | tarfile.TarInfo] = {}  # by name, without the "./" of some tars
        self._file = _open_seekable(place, stamp)
        try:
            self._zip = zipfile.ZipFile(self._file) if place.lower().endswith(".zip") else None
            self._tar = None if self._zip else tarfile.open(fileobj=self._file, mode="r:")  # noqa: SIM115
            self._members = dict(self._zip_members() if self._zip else self._tar_members())
        except (*_DAMAGE, OSError) as error:
            self._file.close()
            raise StorageError(f"{place}: not a whole archive ({_describe(error)}); fetch it again") from error
        except Exception as error:  # each protocol has its own errors
            self._file.close()
            raise StorageError(f"{place}: cannot be opened ({_describe(error)})") from error

    def files(self) -> Iterator[File]:
        for name, (facts, problem) in sorted(self._members.items()):
            stamp = self._stamp and f"{self._stamp}:{facts}"
            yield File(name, f"{_portable_place(self._place)}!{name}", stamp, problem)

    def read(self, member: str, max_pixels: int) -> bytes:
        facts_and_problem = self._members.get(member)
        if facts_and_problem is None:
            raise UnreadableFile("not in the archive")
        if facts_and_problem[1]:
            raise UnreadableFile(facts_and_problem[1])
        inside = self._inside[member]
        size = inside.file_size if isinstance(inside, zipfile.ZipInfo) else inside.size
        if size > _BYTES_PER_PIXEL * max_pixels + _BYTES_BESIDE_PIXELS:
            raise UnreadableFile(f"{size} bytes are too many for an image of the {max_pixels} pixels allowed")
        try:
            with self._turn:
                if size > _HARMLESS_BYTES:
                    with self._open(inside) as content:
                        _check_header(content, max_pixels)
                with self._open(inside) as content:
                    return bytes(content.read())
        except UnreadableFile:
            raise
        except _DAMAGE as error:
            raise UnreadableFile(f"damaged in its archive: {_describe(error)}") from error
        except Exception as error:  # each protocol has its own errors
            raise StorageError(
                f"{self._place}: cannot be reached ({_describe(error)}); try again when it can"
            ) from error

    def _open(self, inside: zipfile.ZipInfo | tarfile.TarInfo) -> Any:
        if isinstance(inside, zipfile.ZipInfo):
            assert self._zip is not None
            return self._zip.open(inside)
        assert self._tar is not None
        return self._tar.extractfile(inside)  # None for no regular file; those have a problem

    def _zip_members(self) -> Iterator[tuple[str, tuple[str, str | None]]]:
        assert self._zip is not None
        for member in self._zip.infolist():
            if not member.is_dir():
                self._inside[member.filename] = member
                problem = "encrypted" if member.flag_bits & 1 else None
                facts = f"{member.header_offset}:{member.CRC}:{member.file_size}"
                yield member.filename, (facts, problem or _member_problem(member.filename, member.file_size))

    def _tar_members(self) -> Iterator[tuple[str, tuple[str, str | None]]]:
        assert self._tar is not None
        name = "the start"
        for member in self._tar:
            name = member.name.removeprefix("./")
            if not member.isdir():
                problem = None if member.isreg() else "a link or device in an archive"
                self._inside[name] = member
                yield name, (f"{member.offset_data}:{member.size}", problem or _member_problem(name, member.size))
        # tarfile takes a damaged header, or a cut between two members, for the end: a whole archive ends in zeros
        assert self._tar.fileobj is not None
        self._tar.fileobj.seek(self._tar.offset)
        if self._tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"cut off or damaged after {name}")

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


class _Watched(io.RawIOBase):
    """A stream that keeps the error in which it ended: who decodes a header takes it for one of the image."""

    def __init__(self, content: Any):
        self._content = content
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        try:
            return int(self._content.seek(offset, whence))
        except Exception as error:
            self.error = error
            raise

    def readinto(self, buffer: Any, /) -> int:
        try:
            return int(self._content.readinto(buffer))
        except Exception as error:
            self.error = error
            raise


def _check_header(content: Any, max_pixels: int) -> None:
    watched = _Watched(content)
    try:
        width, height = header_size(io.BufferedReader(watched), "")
    except UnreadableImage as error:
        raise watched.error or UnreadableFile(str(error).removeprefix(": ")) from error
    if height * width > max_pixels:
        raise UnreadableFile(f"{width}x{height} are more than the {max_pixels} pixels allowed")


@lru_cache(maxsize=16)
def _open_archive(place: str, stamp: str | None) -> _Archive:
    """`stamp` makes a changed archive another one."""
    return _Archive(place, stamp)


def _open_seekable(place: str, stamp: str | None) -> Any:
    """Open an archive so that it can be read in any order: as a copy where it cannot be itself."""
    copy = _copy(place, stamp) if stamp else None
    if copy and copy.exists():
        return copy.open("rb")
    file, gives_parts = _open_binary(place)
    # of a zip, whose directory is at its end, not even the first block is fetched
    start = b"" if place.lower().endswith(".zip") else file.peek(8)
    opener = next((opener for magic, opener in _COMPRESSED.items() if start.startswith(magic)), None)
    if gives_parts and opener is None:
        return file
    COPIES.mkdir(parents=True, exist_ok=True)
    with file:
        chunks = _chunks(place, file, opener(file) if opener else file)
        if copy:
            return _written(copy, chunks)
        nameless = tempfile.TemporaryFile(dir=COPIES)  # noqa: SIM115
        nameless.writelines(chunks)
        nameless.seek(0)
        return nameless


def _copy(place: str, stamp: str) -> Path:
    name, version = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (_portable_place(place), stamp))
    return COPIES / f"{name}.{version}"


def _written(copy: Path, chunks: Iterator[bytes]) -> io.BufferedReader:
    """Make the copy, unless another process did meanwhile, and remove older ones of the same archive."""
    with FileLock(copy.with_suffix(".lock")):
        if not copy.exists():
            for stale in copy.parent.glob(f"{copy.stem}.*"):
                if stale.suffix != ".lock":
                    stale.unlink()
            partial = copy.with_suffix(".partial")
            try:
                with partial.open("wb") as file:
                    file.writelines(chunks)
                partial.replace(copy)
            finally:
                partial.unlink(missing_ok=True)
        return copy.open("rb")


def _chunks(place: str, packed: io.BufferedReader, content: Any) -> Iterator[bytes]:
    size = 0
    while True:
        try:
            chunk = content.read(2**20)
        except Exception as error:  # each protocol and each compression has its own errors
            raise StorageError(f"{place}: not a whole archive ({_describe(error)}); fetch it again") from error
        if not chunk:
            return
        size += len(chunk)
        if size > max(_MAX_RATIO * packed.tell(), _HARMLESS_COPY_BYTES):
            raise StorageError(
                f"{place}: unpacks to more than {_MAX_RATIO} times its size; if it is no bomb, unpack it"
            )
        yield chunk


def _open_binary(place: str) -> tuple[io.BufferedReader, bool]:
    """Return the file, opened at its start, and whether it can be read in any order."""
    try:
        if "://" not in place:
            return Path(place).expanduser().open("rb"), True
        filesystem, path = _filesystem(place)
        file = filesystem.open(path, "rb")
        if gives_parts := _gives_parts(file):
            file.seek(0)
        else:
            file.close()
            file = filesystem.open(path, "rb", block_size=0)  # from its start to its end
        return io.BufferedReader(file), gives_parts
    except StorageError:
        raise
    except FileNotFoundError as error:
        told = f" ({_describe(error.__cause__)})" if error.__cause__ else ""
        raise NotThere(f"{place}: no such archive{told}") from error
    except Exception as error:  # each protocol has its own errors
        raise StorageError(f"{place}: cannot be opened ({_describe(error)})") from error


def _gives_parts(file: Any) -> bool:
    """Whether the server gives a part of a file: those of HTTP need not."""
    try:
        file.seek(-1, os.SEEK_END)
        file.read(1)
    except ValueError:
        return False
    return True


_stamps_at_urls: dict[str, str | None] = {}  # when last listed: to ask the server for each image would take long


def _archive_stamp(place: str, *, anew: bool = False) -> str | None:
    try:
        if "://" not in place:
            return _stamp(Path(place).expanduser().stat())
        if anew or place not in _stamps_at_urls:
            filesystem, path = _filesystem(place)
            filesystem.invalidate_cache()
            _stamps_at_urls[place] = _url_stamp(filesystem.info(path))
        return _stamps_at_urls[place]
    except StorageError:
        raise
    except Exception:  # each protocol has its own errors; opening it says why
        return None


def _stamp(stat: os.stat_result) -> str:
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"  # ctime: content may change and mtime be set back


def _url_stamp(facts: dict[str, Any]) -> str | None:
    known = [
        facts[key]
        for key in ("ETag", "etag", "LastModified", "Last-Modified", "last_modified", "mtime", "updated")
        if facts.get(key)
    ]
    return f"{facts.get('size')}:{known[0]}" if known else None


def _size_problem(size: int) -> str | None:
    return f"{size} bytes are too many for an image" if size > MAX_FILE_BYTES else None


def _member_problem(name: str, size: int) -> str | None:
    path = name.replace("\\", "/")
    if path.startswith("/") or ".." in path.split("/") or path[1:2] == ":":
        return "its path leads out of the archive"
    return _size_problem(size)


def _portable(path: Path) -> str:
    """Relative to the working folder if inside it (links are not resolved), else absolute; with forward slashes."""
    absolute, here = Path(os.path.abspath(path)), Path.cwd()  # noqa: PTH100 (Path.resolve would follow links)
    return (absolute.relative_to(here) if absolute.is_relative_to(here) else absolute).as_posix()


def _portable_place(place: str) -> str:
    return place if "://" in place else _portable(Path(place).expanduser())


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
