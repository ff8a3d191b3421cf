"""Restore many photos: a failure does not stop the others, finished photos are kept, a table or JSON ends the batch.

Only one photo at a time, and the list of results, is in memory.
"""

import errno
import json
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8

from dgunet.console import Interrupted, ProgressLine, duration, explain, is_terminal, printable, write_line
from dgunet.images import WRITABLE_SUFFIXES, Photo, read_photo, write_photo
from dgunet.images.encode import check_size, encode
from dgunet.images.files import Source
from dgunet.images.names import describe_unread
from dgunet.jobs import Job, Plan, is_folder

Pixels = Shaped[np.ndarray, "H W C"]
Restore = Callable[[Pixels, Callable[[int, int], None]], Pixels]
STOPS = {  # write errors that every further photo would have, too
    errno.ENOSPC: "the disk is full (No space left on device)",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the folder can no longer be written to (read-only file system)",
}
_REASONS = 12  # of the table
NAMED_PHOTOS = 3  # of each reason
COMPARED_SIDE = 1600  # pixels, the longer side of a picture that is compared
COMPARED_GAP = 8


@dataclass
class Results:
    """The outcome of each photo; `stopped` says why the batch ended early, if it did."""

    done: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[Job] = field(default_factory=list)
    refused: list[tuple[Path, str]] = field(default_factory=list)
    unread: dict[str, int] = field(default_factory=dict)
    num_remaining: int = 0
    stopped: str | None = None
    interrupted_by: int | None = None  # the exit status: 128 and the number of the signal
    seconds: float = 0.0

    @property
    def status(self) -> int:
        """The exit status."""
        return self.interrupted_by or (1 if self.refused or self.stopped else 0)


def run(
    planned: Plan,
    out: Path,
    load: Callable[[], Restore],
    *,
    page: int | None = None,
    existing: str = "refuse",
    compare: bool = False,
    as_json: bool = False,
) -> int:
    """Restore photos, report each, and return the exit status.

    Args:
        planned: the photos and their targets.
        out: the folder to write to, or the only file.
        load: returns the function that restores pixels and calls its second argument after each tile; called before
            the first photo that is to be restored, if there is one.
        page: as `read_photo`.
        existing: "refuse", "skip" or "replace" targets that exist.
        compare: write NAME.compare.jpg beside each target, the photo on the left, the restored one on the right.
        as_json: print one JSON object at the end on stdout, all else on stderr.

    Raises:
        OSError: nothing can be written to `out`.
        Exception: any that `load` raises.
    """
    started = time.monotonic()
    results = Results(unread=planned.unread)
    for path, reason in planned.refused:
        _refuse(results, path, reason)
    jobs = list(_to_do(planned.jobs, existing, results))
    progress = ProgressLine(len(jobs))
    try:
        if jobs:
            with _writable(out if planned.jobs[0].target != out else out.parent):
                _restore_all(jobs, load(), results, page=page, compare=compare, progress=progress, as_json=as_json)
    except Interrupted as error:
        results.interrupted_by, results.stopped = error.status, "interrupted"
    except KeyboardInterrupt:
        results.interrupted_by, results.stopped = Interrupted.STATUS, "interrupted"
    progress.clear()
    num_tried = len(results.done) + len(results.skipped) + len(results.refused)
    results.num_remaining = len(planned.jobs) + len(planned.refused) - num_tried
    results.seconds = time.monotonic() - started
    lines = [json.dumps(_as_json(results))] if as_json else list(_table(results))
    num_written = sum(write_line(line) for line in lines)
    if results.stopped:
        write_line(f"dgunet: {printable(results.stopped)}; run again with --skip-existing to continue", to_stderr=True)
    return results.status if num_written == len(lines) else results.status or 1


def _to_do(jobs: Sequence[Job], existing: str, results: Results) -> Iterator[Job]:
    """Yield the jobs whose target is to be written; count the others as skipped or refused."""
    num_existing = 0
    for job in jobs:
        exists = os.path.exists(job.target)  # noqa: PTH110 (Path.exists raises for names that are too long)
        if is_folder(job.target):
            _refuse(results, job.source, "a folder of the same name exists in OUT")
        elif existing == "replace" or not exists:
            yield job
        elif existing == "skip":
            results.skipped.append(job)
        else:
            num_existing += 1
            results.refused.append((job.source, "exists in OUT"))
    if num_existing:  # one line, as there may be thousands
        remedy = "--overwrite replaces them, --skip-existing skips them"
        write_line(f"dgunet: {num_existing:,} of {len(jobs):,} photos exist in OUT; {remedy}", to_stderr=True)


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Create a folder and raise OSError if no file can be made there; remove it at the end if it stays empty."""
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; nothing was restored", str(folder)) from error
    try:
        yield
    finally:
        with suppress(OSError):  # not empty
            for path in created:
                path.rmdir()


class _Refused(Exception):
    """A photo was not restored. `stops` says why no other can be written either."""

    def __init__(self, reason: str, stops: str | None = None) -> None:
        super().__init__(reason)
        self.stops = stops


def _restore_all(
    jobs: Sequence[Job],
    restore: Restore,
    results: Results,
    *,
    page: int | None,
    compare: bool,
    progress: ProgressLine,
    as_json: bool,
) -> None:
    written: dict[str, Path] = {}  # by name without case
    for number, job in enumerate(jobs, start=1):
        label = f"[{number}/{len(jobs)}]"
        progress.show_tiles(0, 1)
        entry: dict[str, Any] | None = None
        reason, stops = "", None
        try:
            _check_case(job.target, written.setdefault(str(job.target).casefold(), job.target))
            entry = _restore_one(job, restore, page, progress.show_tiles, compare=compare)
        except _Refused as error:
            reason, stops = str(error), error.stops
        progress.finish_photo()
        progress.clear()
        if stops:
            results.stopped = f"{job.target}: {stops}"
            return
        if entry is None:
            _refuse(results, job.source, reason, label)
            continue
        results.done.append(entry)
        if len(jobs) == 1 or not (progress.is_shown and (as_json or is_terminal(sys.stdout))):
            size, seconds = f"{entry['width']}x{entry['height']}", duration(entry["seconds"])
            write_line(f"{label} {printable(job.target)}  {size}  {seconds}", to_stderr=as_json)


def _restore_one(
    job: Job, restore: Restore, page: int | None, show_tiles: Callable[[int, int], None], *, compare: bool
) -> dict[str, Any]:
    """Restore and write one photo, and return its entry of the results. Raises _Refused."""
    started = time.monotonic()
    try:
        photo = read_for(job.source, job.target.suffix, page=page)
        before = _shown(photo.pixels) if compare else None
        # After this call nothing refers to the pixels that were read: their memory can be reused for writing.
        photo = restored_photo(photo, lambda pixels: restore(pixels, show_tiles))
    except Exception as error:  # decoders raise many types; RuntimeError: torch is out of memory
        raise _Refused(reason_of(error, job.source)) from error
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        dropped = (*photo.dropped, *write_photo(job.target, photo))
        if before is not None:
            write_photo(_comparison(job.target), Photo(_side_by_side(before, _shown(photo.pixels))))
    except Exception as error:  # encoders raise many types
        stops = STOPS.get(error.errno or 0) if isinstance(error, OSError) else None
        raise _Refused(reason_of(error, job.target), stops) from error
    height, width = photo.pixels.shape[:2]
    return {
        "photo": str(job.source),
        "target": str(job.target),
        "width": width,
        "height": height,
        "seconds": round(time.monotonic() - started, 3),
        "dropped": list(dropped),
    }


def _comparison(target: Path) -> Path:
    return target.with_name(f"{target.stem[:200]}.compare.jpg")


def _shown(pixels: Pixels) -> UInt8[np.ndarray, "h w 3"]:
    """Return the picture as it is compared: RGB of 8 bits, the longer side at most COMPARED_SIDE pixels."""
    height, width = pixels.shape[:2]
    scale = min(1.0, COMPARED_SIDE / max(height, width))
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).reshape(*size[::-1], -1)
    levels = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    return np.repeat(levels, 3, axis=2) if levels.shape[2] == 1 else levels.copy()


def _side_by_side(
    before: UInt8[np.ndarray, "h w 3"], after: UInt8[np.ndarray, "h w 3"]
) -> UInt8[np.ndarray, "h both 3"]:
    return np.concatenate([before, np.full((before.shape[0], COMPARED_GAP, 3), 255, np.uint8), after], axis=1)


def _check_case(target: Path, other: Path) -> None:
    """Raise _Refused if another photo was written to the same file, whose name differs only in case."""
    if target != other and target.exists() and target.samefile(other):
        raise _Refused(f"would replace {other}: this folder does not distinguish upper and lower case")


def read_for(source: Source, suffix: str, *, page: int | None = None) -> Photo:
    """Read a photo that is to be written to a file of this suffix once it is restored.

    Raises as `read_photo`; ValueError also if the format cannot hold the photo, before minutes are spent on it.
    """
    photo = read_photo(source, page=page)
    file_format = WRITABLE_SUFFIXES[suffix.lower()]
    check_size(photo.pixels.shape[0], photo.pixels.shape[1], file_format)
    corner = (slice(8), slice(8))
    alpha = None if photo.alpha is None else photo.alpha[corner]
    encode(replace(photo, pixels=photo.pixels[corner], alpha=alpha), file_format)
    return photo


def restored_photo(photo: Photo, restore: Callable[[Pixels], Pixels]) -> Photo:
    """Return the photo with restored pixels, alpha and metadata as before."""
    alpha = None if photo.alpha is None else np.ascontiguousarray(photo.alpha)  # a view keeps the colours too
    return replace(photo, pixels=restore(photo.pixels), alpha=alpha)


def _refuse(results: Results, path: Path, reason: str, label: str = "") -> None:
    results.refused.append((path, reason))
    write_line(f"{label} {printable(path)}: refused: {printable(reason)}".lstrip(), to_stderr=True)


def reason_of(error: BaseException, path: str | Path) -> str:
    """Return the message of an error in one line, without the name of the photo, which is printed before it."""
    lines = explain(error).removeprefix(f"{path}: ").splitlines()
    text = "; ".join(stripped for line in lines if (stripped := line.strip()))
    is_usual = isinstance(error, OSError | ValueError | RuntimeError | MemoryError)
    return text if is_usual else f"{type(error).__name__}: {text}"


def _table(results: Results) -> Iterator[str]:
    """Yield the counts, unless a single restored photo is all, then the notes on unread files and dropped metadata."""
    reasons: dict[str, list[Path]] = defaultdict(list)
    for path, reason in results.refused:
        reasons[reason].append(path)
    refused = {reason: (len(paths), paths[:NAMED_PHOTOS]) for reason, paths in reasons.items()}
    dropped = Counter(phrase for photo in results.done for phrase in photo["dropped"])
    counts = _counts(results)
    if counts != {"restored": 1}:
        yield from count_lines(counts, refused, results.seconds)
    yield from note_lines(results.unread, dropped)


def count_lines(
    counts: Mapping[str, int], refused: Mapping[str, tuple[int, Sequence[str | Path]]], seconds: float
) -> Iterator[str]:
    """Yield the table of the end: a line for each count, and below `refused` one for each reason.

    Args:
        counts: of photos that were restored, skipped, refused, … by these words.
        refused: for each reason how many photos, and the first NAMED_PHOTOS of them.
        seconds: that it took.
    """
    width = max(len(f"{count:,}") for count in counts.values())
    for name, count in counts.items():
        yield f"{name:<10} {count:>{width},}" + (f"  in {duration(seconds)}" if name == "restored" else "")
        if name == "refused":
            yield from _refused_lines(refused)


def note_lines(unread: dict[str, int], dropped: Mapping[str, int]) -> Iterator[str]:
    """Yield the lines below the table: files that are no photographs by suffix, and what was not kept by phrase."""
    if line := describe_unread(unread):
        yield line
    for phrase, count in Counter(dropped).most_common(_REASONS):
        yield f"not kept in {count:,} {'photo' if count == 1 else 'photos'}: {printable(phrase)}"
    if len(dropped) > _REASONS:
        yield f"not kept: {len(dropped) - _REASONS} more; --json lists them"


def _counts(results: Results) -> dict[str, int]:
    counts = {
        "restored": len(results.done),
        "skipped": len(results.skipped),
        "refused": len(results.refused),
        "not tried": results.num_remaining,
    }
    return {name: count for name, count in counts.items() if count or name == "restored"}


def _refused_lines(refused: Mapping[str, tuple[int, Sequence[str | Path]]]) -> Iterator[str]:
    for reason, (count, paths) in sorted(refused.items(), key=lambda item: -item[1][0])[:_REASONS]:
        names = ", ".join(map(printable, paths))
        more = f" and {count - len(paths):,} more" if count > len(paths) else ""
        yield f"  {count:,}: {_shortened(printable(reason))}: {names}{more}"
    if len(refused) > _REASONS:
        yield f"  {len(refused) - _REASONS:,} more reasons; --json lists them"


def _shortened(reason: str) -> str:
    return reason if len(reason) <= 200 else f"{reason[:197]}..."


def _as_json(results: Results) -> dict[str, Any]:
    return {
        "done": results.done,
        "skipped": [{"photo": str(job.source), "target": str(job.target)} for job in results.skipped],
        "refused": [{"photo": str(path), "reason": reason} for path, reason in results.refused],
        "unread": results.unread,
        "counts": {
            "done": len(results.done),
            "skipped": len(results.skipped),
            "refused": len(results.refused),
            "not_tried": results.num_remaining,
            "unread": sum(results.unread.values()),
        },
        "stopped": results.stopped,
        "seconds": round(results.seconds, 3),
    }
