"""Plans the work of `dgunet restore`: which files are photos, and where each is written. Reads no photo."""

import errno
import os
import stat
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_NO_FILE = "not a regular file"
FORMATS = ("png", "jpg", "tif", "webp", "avif", "bmp")  # of --format


class UsageError(ValueError):
    """The arguments contradict each other or the existing files."""


@dataclass(frozen=True)
class Job:
    """A photo and the file to write."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Plan:
    """The work to do.

    Attributes:
        jobs: in the order of the arguments, by name within a folder.
        refused: paths that cannot be photos, with the reason.
        unread: number of files in the folders for each suffix that is not that of a photo.
    """

    jobs: tuple[Job, ...]
    refused: tuple[tuple[Path, str], ...]
    unread: dict[str, int]


def plan(photos: Sequence[Path], out: str, file_format: str | None = None) -> Plan:
    """Find the photos and choose the file that each is written to.

    A photo keeps its name; a photo found in a folder keeps its path below that folder. Its suffix becomes that of
    `file_format`, or .png where its own format cannot be written. `out` names a file if it has the suffix of a photo,
    does not end in / and is no existing folder; then `photos` must be a single photo.

    Args:
        photos: photos and folders, which are searched with all subfolders. Links to folders are followed once.
        out: the folder or file to write to, as the user wrote it.
        file_format: one of FORMATS, or None.

    Raises:
        UsageError: there is no photo, `out` does not fit the photos or `file_format`, or a file would be written over
            a photo or over another restored one.
    """
    from dgunet.images import SUFFIXES, WRITABLE_SUFFIXES
    from dgunet.images.names import count_unread, describe_unread

    if _is_file_name(out, SUFFIXES):
        job = _single_job(photos, Path(out), file_format, WRITABLE_SUFFIXES)
        problem = _problem(job.source)
        return Plan((), ((job.source, problem),), {}) if problem else Plan((job,), (), {})
    folder = Path(out)
    if folder.exists() and not is_folder(folder):
        raise UsageError(f"{out}: the last argument must be a folder to write to, but is a file")
    if folder.is_symlink() and not folder.exists():
        raise UsageError(f"{out}: a link to a folder that does not exist")
    for photo in photos:
        if is_folder(folder) and is_folder(photo) and photo.samefile(folder):
            raise UsageError(f"{out}: the photos are in this folder; choose another folder to write to")
    found, refused, others = _find(photos, folder, SUFFIXES, any_suffix=file_format is not None)
    unread = count_unread(others, SUFFIXES)
    if not found and not refused:
        folders = ", ".join(map(str, photos))
        raise UsageError(
            f"{folders}: no photos in this folder; photos end in {', '.join(SUFFIXES)}"
            + (f"; {describe_unread(unread)}" if unread else "")
        )
    return Plan(tuple(_jobs(found, folder, file_format, WRITABLE_SUFFIXES)), tuple(refused), unread)


def find_photos(photos: Sequence[Path]) -> list[Path]:
    """Return the photos among files and folders, in the order of the arguments, by name within a folder.

    Raises:
        UsageError: there is no photo, or a path is neither a photo nor a folder.
    """
    from dgunet.images import SUFFIXES

    found, refused, _ = _find(photos, None, SUFFIXES, any_suffix=False)
    if refused:
        path, reason = refused[0]
        raise UsageError(f"{path}: {reason}")
    if photos and not found:
        raise UsageError(f"{', '.join(map(str, photos))}: no photos there; photos end in {', '.join(SUFFIXES)}")
    return [path for path, _ in found]


def _find(
    photos: Sequence[Path], out: Path | None, suffixes: Collection[str], *, any_suffix: bool
) -> tuple[list[tuple[Path, Path]], list[tuple[Path, str]], list[str]]:
    """Return the photos with their paths below OUT, refused paths with reasons, and names that are no photos'.

    With `any_suffix`, a photo that is an argument itself may have any suffix: its content decides.
    """
    found: list[tuple[Path, Path]] = []
    refused: list[tuple[Path, str]] = []
    others: list[str] = []
    for photo in photos:
        if is_folder(photo):
            for name, problem in sorted(_walk(photo, out)):
                is_photo = _suffix(name) in suffixes
                if problem is not None and (is_photo or problem != _NO_FILE):
                    refused.append((photo / name, problem))
                elif is_photo:
                    found.append((photo / name, Path(name)))
                else:
                    others.append(name)
        elif problem := _problem(photo):
            refused.append((photo, problem))
        elif any_suffix or _suffix(photo.name) in suffixes:
            found.append((photo, Path(photo.name)))
        else:
            refused.append((photo, f"unknown suffix; photos end in {', '.join(suffixes)}"))
    return found, refused, others


def _is_file_name(out: str, suffixes: Collection[str]) -> bool:
    return not out.endswith(("/", os.sep)) and _suffix(out) in suffixes and not is_folder(Path(out))


def _single_job(photos: Sequence[Path], target: Path, file_format: str | None, writable: Mapping[str, str]) -> Job:
    if len(photos) > 1 or is_folder(photos[0]):
        is_file = target.exists()
        raise UsageError(
            f"{target}: the last argument must be a folder to write to, but is a file"
            if is_file
            else f"{target}: the name of a photo; to write several photos into a folder of this name, add a /"
        )
    form = writable.get(_suffix(target.name))
    if form is None:
        raise UsageError(f"{target}: files of this format cannot be written; use one of {', '.join(writable)}")
    if file_format is not None and writable[f".{file_format}"] != form:
        raise UsageError(f"{target}: its suffix contradicts --format {file_format}")
    if os.path.realpath(target) == os.path.realpath(photos[0]):
        raise UsageError(f"{target} is the photo and would be overwritten; choose another name")
    return Job(photos[0], target)


def target_names(names: Sequence[Path], file_format: str | None, writable: Mapping[str, str]) -> list[Path]:
    """Return the path below OUT that each photo is written to, given those below the folder that was searched.

    a.heic becomes a.png, or a.heic.png where there is an a.png. So all photos of a folder have to be given together.
    """
    suffixes = [_target_suffix(name.suffix, file_format, writable) for name in names]
    taken = {name for name, suffix in zip(names, suffixes, strict=True) if suffix == name.suffix}
    targets = []
    for name, suffix in zip(names, suffixes, strict=True):
        target = name
        if suffix != name.suffix:
            target = name.with_suffix(suffix)
            if target in taken:
                target = name.with_name(name.name + suffix)
            taken.add(target)
        targets.append(target)
    return targets


def _jobs(
    found: Sequence[tuple[Path, Path]], folder: Path, file_format: str | None, writable: Mapping[str, str]
) -> Iterator[Job]:
    sources: dict[Path, Path] = {}
    for (source, _), name in zip(found, target_names([name for _, name in found], file_format, writable), strict=True):
        target = folder / name
        other = sources.setdefault(target, source)
        if os.path.realpath(other) != os.path.realpath(source):
            raise UsageError(f"{other} and {source} would both be written to {target}; restore them into two folders")
    originals = {os.path.realpath(source) for source in sources.values()}
    for target, source in sources.items():
        if os.path.realpath(target) in originals:
            raise UsageError(f"{target} is one of the photos and would be overwritten; choose another output folder")
        yield Job(source, target)


def _target_suffix(suffix: str, file_format: str | None, writable: Mapping[str, str]) -> str:
    own = writable.get(suffix.lower())
    if file_format is not None:
        return suffix if own == writable[f".{file_format}"] else f".{file_format}"
    return suffix if own is not None else ".png"


def _walk(root: Path, out: Path | None) -> Iterator[tuple[str, str | None]]:
    """Yield the path below `root` of each file that is not hidden, with the reason if it cannot be read.

    The folder `out` is skipped. Folders that are reached without a link come first, so that a link does not change the
    paths of their files.
    """
    from dgunet.images.names import is_hidden

    visited = set() if out is None else {_identity(out)} - {None}
    folders, links = deque([""]), deque[str]()
    while folders or links:
        prefix = folders.popleft() if folders else links.popleft()
        identity = _identity(root / prefix)
        if identity in visited:
            continue
        visited.add(identity)
        try:
            with os.scandir(root / prefix) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield prefix, f"the folder cannot be opened: {error.strerror}"
            continue
        for entry in listed:
            name, path = f"{prefix}{entry.name}", Path(entry.path)
            if is_hidden(name):
                continue
            problem = _problem(path)
            if problem is not None or not is_folder(path):
                yield name, problem
            elif not path.is_symlink():
                folders.append(f"{name}/")
            elif _is_inside(path.parent, path):
                yield name, "a link to a folder that contains it"
            else:
                links.append(f"{name}/")


def _is_inside(path: Path, folder: Path) -> bool:
    inner, outer = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    return inner.is_relative_to(outer)


def is_folder(path: Path) -> bool:
    """Whether the path is a folder, or a link to one; False also if this cannot be determined."""
    return os.path.isdir(path)  # noqa: PTH112 (Path.is_dir raises where a folder above may not be searched)


def _problem(path: Path) -> str | None:
    """Return why a path can be neither a photo nor a folder."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        is_dangling = error.errno == errno.ENOENT and path.is_symlink()
        return f"a link to a file that does not exist: {path.readlink()}" if is_dangling else error.strerror
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else _NO_FILE


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
