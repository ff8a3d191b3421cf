"""Which files of a folder are photographs, judged by their names alone.

One rule for the command line and for the sources of training data. Imports neither NumPy nor a decoder.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

# Folders and files that systems and programs put among photographs; compared without case. Names that start with a dot
# are hidden anyway: ._x.jpg and .AppleDouble of macOS, .thumbnails, .Trash-1000, .git.
_OF_PROGRAMS = frozenset(
    {
        "__macosx",
        "@eadir",  # previews of Synology
        "@__thumb",  # previews of QNAP
        "@recycle",
        "#recycle",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
    }
)
_HINTS = dict.fromkeys((".heic", ".heif", ".hif"), "pip install 'dgunet[photos]'")
NO_PHOTO = ": not an image's name"
_MOST_LISTED = 6


def is_hidden(name: str) -> bool:
    """Whether a part of `name`, the path of a file or folder below the given folder, is hidden or a system file."""
    return any(part.startswith(".") or part.lower() in _OF_PROGRAMS for part in name.split("/"))


def why_no_photo(name: str, suffixes: Collection[str]) -> str | None:
    """Return why a file is not a photograph, judged by its name; None if it may be one.

    Args:
        name: its path below the given folder, with forward slashes; the names of the given folder do not count.
        suffixes: of photographs, in lower case, with their dots.
    """
    if is_hidden(name):
        return "hidden, or a system file"
    suffix = _suffix(name)
    return None if suffix in suffixes else f"{suffix or 'no suffix'}{NO_PHOTO}"


def count_unread(names: Iterable[str], suffixes: Collection[str]) -> dict[str, int]:
    """Return how many files have each suffix that is not in `suffixes`, most frequent first; hidden files are left out.

    The key of files without a suffix is "".
    """
    counts = Counter(_suffix(name) for name in names if not is_hidden(name) and _suffix(name) not in suffixes)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def describe_unread(counts: dict[str, int]) -> str:
    """Return one line on the result of `count_unread`, such as "12 files are not supported photographs: .heic 9, …".

    Empty if there is no such file. Says which package reads a suffix, where there is one.
    """
    if not counts:
        return ""
    total = sum(counts.values())
    listed = [f"{suffix or 'no suffix'} {count}" for suffix, count in counts.items()]
    if len(listed) > _MOST_LISTED + 1:
        listed[_MOST_LISTED:] = [f"{len(listed) - _MOST_LISTED} more suffixes"]
    verb = "file is not a supported photograph" if total == 1 else "files are not supported photographs"
    needed = [suffix for suffix in counts if suffix in _HINTS]
    hints = f"for {', '.join(needed)}: {_HINTS[needed[0]]}" if needed else ""
    return f"{total} {verb}: {', '.join(listed)}" + (f" ({hints})" if hints else "")


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
