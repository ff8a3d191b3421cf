"""Published image sets on this machine: found below DGUNET_DATA, compared with the registry, fetched if absent.

Each set has a folder of its own. Files that are present are never overwritten or deleted: a file that does not match
the registry is an error. Archives are read without unpacking them; a folder with the name of an archive, without the
suffix, counts as this archive, unpacked.

Inspecting a set writes nothing into DGUNET_DATA, which may be shared and read-only. Two records belong to the user: the
user's cache holds size, time and checksum of the files that were compared, so that they are not read again; the user's
state holds the terms that were accepted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs
from filelock import FileLock
from tqdm import tqdm

from dgunet.images import SUFFIXES
from dgunet.images.names import is_hidden
from pipeline.runtime.environment import read_environment, variable_name
from pipeline.runtime.files import write_atomically
from pipeline.sources.places import ARCHIVE_SUFFIXES, StorageError, is_archive
from pipeline.sources.registry import Content, DataFile, DataSet, Layout, data_set
from pipeline.sources.storage import list_files

PREFIX = "dataset:"  # of the URIs of images of published sets, before their path below DGUNET_DATA
_ACCEPTED = "accepted-terms.json"
_NAMED = 5  # maximum number of files that a message names


@dataclass(frozen=True)
class Found:
    """State of a set on this machine.

    Attributes:
        missing: the files that are absent.
        wrong: one line for each file that does not match the registry, or does not belong to the set.
        present: number of files that are present.
        unchecked: number of these that have no checksum to compare with.
    """

    missing: Sequence[DataFile]
    wrong: Sequence[str]
    present: int
    unchecked: int


def root() -> str:
    """Return the folder or the URL of published sets, DGUNET_DATA."""
    return read_environment().data


def located(uri: str) -> str:
    """Return the path or URL of an image of a published set on this machine; other URIs unchanged."""
    return f"{root()}/{uri.removeprefix(PREFIX)}" if uri.startswith(PREFIX) else uri


def portable_uri(uri: str, base: str) -> str:
    """Return the `dataset:` URI, which does not depend on DGUNET_DATA, of a file below `base`; other URIs unchanged."""
    below = uri.removeprefix(f"{base.rstrip('/')}/")
    return uri if below == uri else PREFIX + below


def layouts(name: str, split: str | None) -> dict[str, Layout]:
    """Return the layout of each split, as places to read from. Raises ValueError if there is no such set or split."""
    found = data_set(name)
    return {
        key: Layout.model_construct(
            clean=_place(found, layout.clean), degraded=layout.degraded and _place(found, layout.degraded)
        )
        for key, layout in found.layouts(split).items()
    }


def require(name: str) -> None:
    """Compare a set with the registry and fetch what is missing; do nothing if DGUNET_DATA is a URL.

    Raises:
        ValueError: there is no set of that name, a file does not match the registry, or the set cannot be fetched;
            the message says how to fetch it by hand.
        OSError: the disk is full, or cannot be written.
    """
    if is_incomplete(name):
        fetch(name)


def is_incomplete(name: str) -> bool:
    """Whether files of a set are missing; False for a URL. Raises StorageError if one does not match the registry."""
    if "://" in root():
        return False
    found, status = data_set(name), inspect(name)
    if status.wrong:
        raise StorageError(_wrong(found, status.wrong))
    if status.unchecked and not status.missing:
        _note(f"{name}: not verified: {status.unchecked} of its files have no known checksum (see {found.page})")
    return bool(status.missing)


def folder_of(name: str) -> str:
    """Return the folder of a set on this machine, or its URL."""
    return f"{root()}/{data_set(name).folder}"


def inspect(name: str) -> Found:
    """Compare the files of a set on this machine with the registry. DGUNET_DATA must be a folder."""
    found = data_set(name)
    folder = Path(root(), found.folder)
    verified = _Verified(folder.absolute())
    missing, wrong, present, unchecked = [], [], 0, 0
    for file in found.all_files():
        path = folder / file.path
        if path.is_file():
            present += 1
            unchecked += file.checksum is None
            if problem := verified.problem(path, file):
                wrong.append(f"{path}: {problem}")
        elif _unpacked(path).is_dir() and is_archive(file.path):
            present += 1
            unchecked += 1
        else:
            missing.append(file)
    if found.listed and folder.is_dir():
        wrong += [f"{path}: not one of the images of the set" for path in _strangers(found, folder)]
    verified.save()
    return Found(missing, wrong, present, unchecked)


def fetch(name: str) -> None:
    """Fetch the files of a set that are missing. Raises as `require`."""
    found = data_set(name)
    if "://" in root():
        raise StorageError(f"{variable_name('data')} is the URL {root()}: sets can be fetched only into a folder")
    if not is_incomplete(name):
        return
    status = inspect(name)
    if not found.verified:
        _note(f"{name}: its address was not verified when it was added to the registry; see {found.page}")
    if by_hand := [file for file in status.missing if file.url is None]:
        raise StorageError(f"{name}: cannot be fetched automatically. {how_by_hand(found, by_hand)}")
    _require_terms(found)
    folder = Path(root(), found.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        sizes = [file.size for file in status.missing]
        total = sum(size for size in sizes if size) if all(sizes) else None
        with tqdm(desc=f"fetch {name}", total=total, unit="B", unit_scale=True, disable=None) as bar:
            for file in status.missing:
                if not (folder / file.path).exists():  # another process may have fetched it meanwhile
                    _fetch_file(found, file, folder / file.path, bar.update)
    if not found.has_checksums():
        _note(f"{name}: some of its files have no known checksum and are not verified")


def how_by_hand(found: DataSet, files: Sequence[DataFile]) -> str:
    """Return instructions for fetching files by hand: from where, and where to put them."""
    folder = Path(root(), found.folder).absolute()
    source = found.page
    if found.listed:
        _, owner, repository, commit, *_ = urlsplit(found.listed.base).path.split("/")
        source = f"https://github.com/{owner}/{repository}/tree/{commit}"
        names = [f"{(file.url or '').removeprefix(found.listed.base)} as {file.path}" for file in files[:_NAMED]]
    else:
        names = [f"{file.url} as {file.path}" if file.url else file.path for file in files[:_NAMED]]
    more = f" and {len(files) - _NAMED} more in the same way" if len(files) > _NAMED else ""
    return (
        f"Fetch by hand from {source}, and put into {folder}: {', '.join(names)}{more}. "
        f"Then run `make data NAME={found.name}`, which compares the checksums"
    )


def _fetch_file(found: DataSet, file: DataFile, target: Path, progress: Callable[[int], object]) -> None:
    import pooch  # here, because it imports requests, which is slow

    from pipeline.sources.download import Downloader, NotFetched

    pooch.get_logger().setLevel(logging.WARNING)
    url = _address(found, file)
    target.parent.mkdir(parents=True, exist_ok=True)
    downloader = Downloader(target, file.size, checked=file.checksum is not None, progress=progress)
    while True:
        try:
            pooch.retrieve(url, file.checksum, target.name, target.parent, downloader=downloader)
            break
        except NotFetched as error:
            raise StorageError(f"{found.name}: {error}. {_other_ways(found)}") from error
        except ValueError as error:  # the checksum differs; pooch has deleted the file
            if downloader.resumed:  # the part from before may be of another version
                continue
            raise StorageError(
                f"{found.name}: {url} does not match the registry: its checksum is not {file.checksum}. "
                f"It was deleted. {_other_ways(found)}"
            ) from error
    if is_archive(file.path):
        _refuse_hostile(found, target)


def _other_ways(found: DataSet) -> str:
    """Return what else a user can do if a file cannot be fetched, for all files that are missing."""
    folder = Path(root(), found.folder)
    missing = [file for file in found.all_files() if not (folder / file.path).exists()]
    variable = variable_name("data_mirror")
    unset = f"Is {variable} right? " if read_environment().data_mirror else ""
    return f"{unset}{how_by_hand(found, missing)}" + ("" if unset else f"; or set {variable} to a mirror")


def _refuse_hostile(found: DataSet, archive: Path) -> None:
    """Delete an archive that is damaged or has members with paths outside it. Raises StorageError then."""
    try:
        hostile = [file.name for file in list_files(str(archive)) if file.problem and "points outside" in file.problem]
    except StorageError as error:
        archive.unlink()
        raise StorageError(f"{found.name}: {error}. It was deleted") from error
    if hostile:
        archive.unlink()
        raise StorageError(f"{found.name}: {archive.name} has paths that point outside, such as {hostile[0]}: deleted")


def _address(found: DataSet, file: DataFile) -> str:
    """Return the address of a file: DGUNET_DATA_MIRROR/HOST/PATH if the variable is set, else its own."""
    assert file.url is not None
    prefix = read_environment().data_mirror
    return f"{prefix}/{file.url.partition('://')[2]}" if prefix else file.url


def _require_terms(found: DataSet) -> None:
    """Raise StorageError unless the user has accepted the terms of a set; at a terminal, ask once."""
    if found.terms is None or found.name in read_environment().accept_terms:
        return
    record = platformdirs.user_state_path("dgunet") / _ACCEPTED
    accepted: dict[str, str] = {}
    with suppress(OSError, ValueError):
        content = json.loads(record.read_text(encoding="utf-8"))
        accepted = content if isinstance(content, dict) else {}
    if accepted.get(found.name) == found.terms:
        return
    if sys.stdin is not None and sys.stdin.isatty():
        print(f"{found.name}, {found.page}:\n{found.terms}", file=sys.stderr)
        print("Accept these terms? Type yes: ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() == "yes":
            write_atomically(record, json.dumps({**accepted, found.name: found.terms}, indent=1) + "\n")
            return
    raise StorageError(
        f"{found.name} has terms of use: {found.terms} ({found.page}) "
        f"To accept them, set {variable_name('accept_terms')}={found.name}"
    )


def _place(found: DataSet, inner: str) -> str:
    """Return where to read `inner`, a place in a set's folder: in the unpacked folder if the archive is unpacked."""
    folder = f"{root()}/{found.folder}"
    archive, mark, member = inner.partition("!")
    if mark and "://" not in root() and not Path(folder, archive).exists():
        unpacked = _unpacked(Path(folder, archive))
        if unpacked.is_dir():
            # the archive's own top folder may have been kept as the folder of its name
            top, _, below = member.partition("/")
            inside = member if (unpacked / top).is_dir() or top != unpacked.name else below
            return f"{unpacked}/{inside}".rstrip("/")
    return folder if inner == "." else f"{folder}/{inner}"


def _unpacked(archive: Path) -> Path:
    suffix = next((suffix for suffix in ARCHIVE_SUFFIXES if archive.name.lower().endswith(suffix)), "")
    return archive.with_name(archive.name[: len(archive.name) - len(suffix)])


def _strangers(found: DataSet, folder: Path) -> Iterator[Path]:
    """Yield images in the folder that do not belong to the set: they would be trained on or measured with it."""
    known = {file.path for file in found.all_files()}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name not in known and path.suffix.lower() in SUFFIXES and path.is_file() and not is_hidden(path.name):
            yield path


def _wrong(found: DataSet, wrong: Sequence[str]) -> str:
    lines = "".join(f"\n  {line}" for line in wrong[:_NAMED]) + ("\n  ..." if len(wrong) > _NAMED else "")
    return (
        f"{found.name}: files that do not match the registry: {len(wrong)}{lines}\n"
        f"Remove them, then run `make data NAME={found.name}`, which fetches what is missing"
    )


class _Verified:
    """Record of verified files: a file is not read again while its size and time are unchanged."""

    def __init__(self, folder: Path):
        key = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        path = platformdirs.user_cache_path("dgunet") / "verified" / f"{folder.name}.{key}.json"
        self._path, self._changed = path, False
        self._known: dict[str, list[object]] = {}
        with suppress(OSError, ValueError):
            content = json.loads(path.read_text(encoding="utf-8"))
            self._known = content if isinstance(content, dict) else {}

    def problem(self, path: Path, file: DataFile) -> str | None:
        """Return why a file does not match the registry, None if it does, or if no checksum is known."""
        stat = path.stat()
        candidates = [content for content in file.contents if content.size in (None, stat.st_size)]
        if not candidates:
            return f"{stat.st_size} bytes, not {file.size}"
        if file.checksum is None:
            return None
        expected = [content.checksum for content in candidates]
        facts: list[object] = [stat.st_size, stat.st_mtime_ns]
        if self._known.get(file.path, [])[:2] == facts and self._known[file.path][2] in expected:
            return None
        actual = next((c.checksum for c in candidates if c.checksum == _checksum(path, c)), None)
        if actual is None:
            return f"its checksum is not {expected[0]}"
        self._known[file.path] = [*facts, actual]
        self._changed = True
        return None

    def save(self) -> None:
        """Write the record if its folder can be written; without it, files are read again."""
        if self._changed:
            with suppress(OSError):
                write_atomically(self._path, json.dumps(self._known))


def _checksum(path: Path, content: Content) -> str:
    algorithm = (content.checksum or "sha256:").partition(":")[0]
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)
