"""Write text to the terminal: names that it cannot show and a full disk are no errors, a closed pipe is."""

import contextlib
import errno
import io
import os
import signal
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BROKEN_PIPE_STATUS = 141  # what a shell reports for a program that SIGPIPE ended


def show_all_names() -> None:
    """Let stdout and stderr write backslash sequences for what their encoding lacks, unless the user chose otherwise.

    File names on Linux are bytes: in any encoding, some cannot be shown.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def printable(text: object) -> str:
    """Return the text on one line: control characters, and bytes that are not text, as backslash sequences."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        else character
        for character in str(text)
    )


def write_line(text: str, *, to_stderr: bool = False) -> bool:
    """Write a line at once; return False, and write no more to this stream, if that fails.

    A full disk may hold the log too, and must not stop the photos. Raises BrokenPipeError if nobody reads.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    if stream is None:  # closed by the caller; print would take stdout instead
        return True
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        drop(stream)
        if not to_stderr:
            write_line(f"dgunet: the output cannot be written: {error.strerror}", to_stderr=True)
        return False
    return True


def is_terminal(stream: Any) -> bool:
    """Whether a person sees the stream; a standard stream is None where its descriptor is closed."""
    return stream is not None and bool(stream.isatty())


def drop(stream: Any) -> None:
    """Discard what `stream` still has to write, so that the end of the process does not fail either."""
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def explain(error: BaseException) -> str:
    """Return the message of an error as a user needs it, with a remedy if memory ran out."""
    if isinstance(error, OSError) and error.strerror:
        limit = " (the limit is that of `ulimit -f`)" if error.errno == errno.EFBIG else ""
        return (f"{error.filename}: {error.strerror}" if error.filename else error.strerror) + limit
    if isinstance(error, MemoryError) or ("memory" in str(error) and isinstance(error, RuntimeError)):
        return "not enough memory; try smaller tiles, such as --tile 256"
    if isinstance(error, RuntimeError | AssertionError):  # the first line, as torch adds a stack trace
        return (str(error).splitlines() or [type(error).__name__])[0]
    return str(error) or type(error).__name__


def duration(seconds: float) -> str:
    """Return seconds as "4.2 s", "3 min 5 s" or "2 h 10 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, hours = divmod(round(seconds), 60), divmod(round(seconds / 60), 60)
    return f"{minutes[0]} min {minutes[1]} s" if seconds < 3599.5 else f"{hours[0]} h {hours[1]} min"


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to stop, as Ctrl-C does; `status` is the exit status."""

    STATUS = 128 + signal.SIGINT

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """Let SIGTERM, and SIGHUP of a terminal that closes, raise `Interrupted` inside, unless they are ignored."""

    def interrupt(number: int, _: object) -> None:
        raise Interrupted(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    is_main_thread = threading.current_thread() is threading.main_thread()
    changed = [number for number in numbers if is_main_thread and signal.getsignal(number) == signal.SIG_DFL]
    for number in changed:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


class ProgressLine:
    """A line on stderr that is updated in place: photos, rate, time left, tiles. Shown only on a terminal."""

    def __init__(self, num_photos: int) -> None:
        self.is_shown = is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"
        self._num_photos = num_photos
        self._num_finished = 0
        self._started = time.monotonic()
        self._length = 0

    def finish_photo(self) -> None:
        """Count one more photo of those that take time."""
        self._num_finished += 1

    def show_tiles(self, num_done: int, num_all: int) -> None:
        """Write the line; the arguments count the tiles of the photo that is being restored."""
        if self.is_shown:
            text = self._photos() if self._num_photos > 1 else ""
            self._write(text + (f"  tile {num_done} of {num_all}" if num_all > 1 else ""))

    def clear(self) -> None:
        """Remove the line, so that another can be written."""
        if self._length:
            self._write("")

    def _photos(self) -> str:
        text = f"  {self._num_finished} of {self._num_photos} photos"
        if not self._num_finished:
            return text
        seconds = (time.monotonic() - self._started) / self._num_finished
        rate = f"{1 / seconds:.1f} photos per s" if seconds < 1 else f"{duration(seconds)} per photo"
        return f"{text}  {rate}  {duration(seconds * (self._num_photos - self._num_finished))} left"

    def _write(self, text: str) -> None:
        try:
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        except (OSError, ValueError):
            width = 80
        text = text[: width - 1]
        padding = " " * (self._length - len(text))
        self._length = len(text)
        with contextlib.suppress(OSError):
            print(f"\r{text}{padding}", end="" if text else "\r", file=sys.stderr, flush=True)
