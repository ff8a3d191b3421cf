"""Reads members of zip and tar archives without extracting them."""

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
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from dgunet.images import UnreadableImage
from dgunet.images.decode import header_size
from pipeline.sources.places import (
    BYTES_BESIDE_PIXELS,
    BYTES_PER_PIXEL,
    NOT_UTF8,
    File,
    NoSuchPlace,
    StorageError,
    UnreadableFile,
    describe_error,
    file_version,
    is_utf8,
    open_filesystem,
    portable_place,
    shown_name,
    size_problem,
    url_version,
)

COPIES = Path(".cache/archives")
_COMPRESSED: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_WINDOWS = (0, 10, 14)  # host systems that a zip member names: FAT, NTFS, VFAT
_ENCRYPTED, _PATCH, _STRONG = 1, 0x20, 0x40  # bits of a member's flags
_END_OF_ZIP, _LONGEST_END = b"PK\x05\x06", 22 + 65535  # the record at the end of a zip, and its largest size
_OTHER_ARCHIVES = {b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "RAR"}
_JOIN = "one part of a split archive; put all parts into one folder and join them: zip -s 0 FIRST.zip --out WHOLE.zip"
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_OTHER_ZIP_METHODS = {1: "Shrink", 6: "Implode", 9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd", 99: "AES"}
_MAX_RATIO, _HARMLESS_COPY_BYTES = 100, 2**30  # images hardly compress; a larger ratio means a decompression bomb
_HARMLESS_BYTES = 2**24  # members up to this size are unpacked without a check of their header
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


class Archive:
    """A zip or tar file, opened once for many reads; a lock lets one thread read at a time."""

    def __init__(self, place: str, version: str | None):
        self._place, self._version = place, version
        self._lock = threading.Lock()
        self._inside: dict[str, zipfile.ZipInfo | tarfile.TarInfo] = {}  # by name, without the "./" of some tars
        self._file = _open_seekable(place, version)
        try:
            is_zip = place.lower().endswith(".zip")
            if is_zip and _is_split(self._file):
                raise StorageError(f"{place}: {_JOIN}")
            self._zip = zipfile.ZipFile(self._file) if is_zip else None
            self._tar = None if self._zip else tarfile.open(fileobj=self._file, mode="r:")  # noqa: SIM115
            self._members = _by_name(self._zip_members() if self._zip else self._tar_members())
        except StorageError:
            self._file.close()
            raise
        except UnicodeDecodeError as error:
            self._file.close()
            raise StorageError(
                f"{place}: a name in it is not in the encoding that the archive declares ({describe_error(error)}); "
                "unpack it into a folder"
            ) from error
        except (*_DAMAGE, OSError) as error:
            with self._file:
                other = other_archive(self._file)
            if other is None and "multiple disks" in str(error):
                raise StorageError(f"{place}: {_JOIN}") from error
            raise StorageError(
                f"{place}: {other or f'incomplete or damaged ({describe_error(error)}); fetch it again'}"
            ) from error
        except Exception as error:  # each protocol has its own errors
            self._file.close()
            raise StorageError(f"{place}: cannot be opened ({describe_error(error)})") from error

    def files(self) -> Iterator[File]:
        """List the members, sorted by name."""
        for name, (facts, problem) in sorted(self._members.items()):
            version = self._version and f"{self._version}:{facts}"
            yield File(name, f"{portable_place(self._place)}!{name}", version, problem)

    def read(self, member: str, max_pixels: int) -> bytes:
        """Return the bytes of a member. Raises as `sources.storage.read`."""
        facts_and_problem = self._members.get(member)
        if facts_and_problem is None:
            raise UnreadableFile("not in the archive")
        if facts_and_problem[1]:
            raise UnreadableFile(facts_and_problem[1])
        inside = self._inside[member]
        size = inside.file_size if isinstance(inside, zipfile.ZipInfo) else inside.size
        if size > BYTES_PER_PIXEL * max_pixels + BYTES_BESIDE_PIXELS:
            raise UnreadableFile(f"{size} bytes are too many for an image of the {max_pixels} pixels allowed")
        try:
            with self._lock:
                if size > _HARMLESS_BYTES:
                    with self._open(inside) as content:
                        _check_header(content, max_pixels)
                with self._open(inside) as content:
                    return bytes(content.read())
        except UnreadableFile:
            raise
        except _DAMAGE as error:
            raise UnreadableFile(f"damaged in its archive: {describe_error(error)}") from error
        except Exception as error:  # each protocol has its own errors
            raise StorageError(
                f"{self._place}: cannot be reached ({describe_error(error)}); try again later"
            ) from error

    def _open(self, inside: zipfile.ZipInfo | tarfile.TarInfo) -> Any:
        if isinstance(inside, zipfile.ZipInfo):
            assert self._zip is not None
            return self._zip.open(inside)
        assert self._tar is not None
        return self._tar.extractfile(inside)  # None unless it is a regular file; `read` refuses others

    def _zip_members(self) -> Iterator[tuple[str, tuple[str, str | None]]]:
        assert self._zip is not None
        for member in self._zip.infolist():
            name = member.filename
            # Some programs on Windows separate folders by backslashes, against the standard.
            if "/" not in name or member.create_system in _WINDOWS:
                name = name.replace("\\", "/")
            if not name.endswith("/"):
                self._inside[name] = member
                facts = f"{member.header_offset}:{member.CRC}:{member.file_size}"
                yield name, (facts, _zip_problem(member) or _member_problem(name, member.file_size))

    def _tar_members(self) -> Iterator[tuple[str, tuple[str, str | None]]]:
        assert self._tar is not None
        name = "the start"
        for member in self._tar:
            name = member.name.removeprefix("./")
            if not member.isdir():
                problem = None if member.isreg() else "a link or device in an archive"
                if not is_utf8(name):
                    name, problem = shown_name(name), NOT_UTF8
                self._inside[name] = member
                yield name, (f"{member.offset_data}:{member.size}", problem or _member_problem(name, member.size))
        # tarfile takes a damaged header, or a cut between two members, for the end; a complete archive ends in zeros
        assert self._tar.fileobj is not None
        self._tar.fileobj.seek(self._tar.offset)
        if self._tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"cut off or damaged after {name}")

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


class _ErrorRecordingStream(io.RawIOBase):
    """A stream that stores the error of a failed read: image decoders report such an error as damage of the image."""

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
    recording = _ErrorRecordingStream(content)
    try:
        width, height = header_size(io.BufferedReader(recording), "")
    except UnreadableImage as error:
        raise recording.error or UnreadableFile(str(error).removeprefix(": ")) from error
    if height * width > max_pixels:
        raise UnreadableFile(f"{width}x{height} are more than the {max_pixels} pixels allowed")


@lru_cache(maxsize=16)
def open_archive(place: str, version: str | None) -> Archive:
    """Open an archive, or return the open one: `version` is a part of the cache key."""
    return Archive(place, version)


def _open_seekable(place: str, version: str | None) -> Any:
    """Open an archive for random access; archives without random access are copied first."""
    copy = _copy(place, version) if version else None
    if copy and copy.exists():
        return copy.open("rb")
    file, has_random_access = _open_binary(place)
    # a zip has its directory at the end: its first block is not fetched
    start = b"" if place.lower().endswith(".zip") else file.peek(8)
    opener = next((opener for magic, opener in _COMPRESSED.items() if start.startswith(magic)), None)
    if has_random_access and opener is None:
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


def _copy(place: str, version: str) -> Path:
    name, version = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (portable_place(place), version))
    return COPIES / f"{name}.{version}"


def _written(copy: Path, chunks: Iterator[bytes]) -> io.BufferedReader:
    """Write the copy unless another process has written it, and remove older copies of the same archive."""
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
            raise StorageError(f"{place}: incomplete or damaged ({describe_error(error)}); fetch it again") from error
        if not chunk:
            return
        size += len(chunk)
        if size > max(_MAX_RATIO * packed.tell(), _HARMLESS_COPY_BYTES):
            raise StorageError(
                f"{place}: unpacks to more than {_MAX_RATIO} times its size; "
                "if it is not a decompression bomb, unpack it yourself"
            )
        yield chunk


def _open_binary(place: str) -> tuple[io.BufferedReader, bool]:
    """Open a file at its start; return it and whether it allows random access."""
    try:
        if "://" not in place:
            local = Path(place).expanduser()
            if local.exists() and not local.is_file():  # opening a pipe would wait for its writer
                raise StorageError(f"{place}: not a regular file, though its name is that of an archive")
            return local.open("rb"), True
        filesystem, path = open_filesystem(place)
        file = filesystem.open(path, "rb")
        if has_random_access := _supports_ranges(file):
            file.seek(0)
        else:
            file.close()
            file = filesystem.open(path, "rb", block_size=0)  # sequential reads only
        return io.BufferedReader(file), has_random_access
    except StorageError:
        raise
    except FileNotFoundError as error:
        reason = f" ({describe_error(error.__cause__)})" if error.__cause__ else ""
        raise NoSuchPlace(f"{place}: no such archive{reason}") from error
    except Exception as error:  # each protocol has its own errors
        raise StorageError(f"{place}: cannot be opened ({describe_error(error)})") from error


def _supports_ranges(file: Any) -> bool:
    """Whether the server answers range requests; not all HTTP servers do."""
    try:
        file.seek(-1, os.SEEK_END)
        file.read(1)
    except ValueError:
        return False
    return True


_url_versions: dict[str, str | None] = {}  # as of the last listing; asking the server for each image takes too long


def archive_version(place: str, *, anew: bool = False) -> str | None:
    """Return a version tag of an archive; `anew` asks the server again. None where it has no version."""
    try:
        if "://" not in place:
            return file_version(Path(place).expanduser().stat())
        if anew or place not in _url_versions:
            filesystem, path = open_filesystem(place)
            filesystem.invalidate_cache()
            _url_versions[place] = url_version(filesystem.info(path))
        return _url_versions[place]
    except StorageError:
        raise
    except Exception:  # each protocol has its own errors; opening it says why
        return None


def _zip_problem(member: zipfile.ZipInfo) -> str | None:
    """Return why Python cannot unpack a member of a zip, None if it can."""
    if member.flag_bits & _PATCH:
        return "a patch of another file, which Python cannot unpack; unpack the archive with the program that made it"
    if member.flag_bits & (_ENCRYPTED | _STRONG):
        return "encrypted; unpack the archive with its password"
    if member.compress_type in _ZIP_METHODS:
        return None
    method = _OTHER_ZIP_METHODS.get(member.compress_type, f"method {member.compress_type}")
    return f"compressed with {method}, which Python cannot unpack; unpack the archive, or pack it again with Deflate"


def other_archive(file: io.BufferedIOBase) -> str | None:
    """Return what to do with an archive of an unsupported kind, judged by content, not name; None for other files."""
    file.seek(0)
    start = file.read(8)
    kind = next((kind for magic, kind in _OTHER_ARCHIVES.items() if start.startswith(magic)), None)
    return kind and f"a {kind} archive, which is not supported; unpack it into a folder, or pack it again as a zip"


def _is_split(file: io.BufferedIOBase) -> bool:
    """Whether a zip is one of several parts: its end record names a disk other than the first."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LONGEST_END))
    end = file.read()
    found = end.rfind(_END_OF_ZIP)
    number = end[found + 4 : found + 6] if found >= 0 else b""
    return number not in (b"", b"\0\0", b"\xff\xff")  # 0xffff: the zip64 record holds the number


def _by_name(members: Iterator[tuple[str, tuple[str, str | None]]]) -> dict[str, tuple[str, str | None]]:
    """Return facts and problem of each member by name; of several members with one name, only the last can be read."""
    named: dict[str, tuple[str, str | None]] = {}
    num_replaced = 0
    for name, facts in members:
        if name in named:
            num_replaced += 1
            path = PurePosixPath(name)
            earlier = str(path.with_name(f"{path.stem} (replaced {num_replaced}){path.suffix}"))
            named[earlier] = (named[name][0], "replaced by a later member of the same name")
        named[name] = facts
    return named


def _member_problem(name: str, size: int) -> str | None:
    path = name.replace("\\", "/")
    if path.startswith("/") or ".." in path.split("/") or path[1:2] == ":":
        return "its path points outside the archive"
    return size_problem(size)
