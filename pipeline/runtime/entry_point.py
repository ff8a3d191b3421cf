"""Runs a command: prints errors without their traceback, handles Ctrl-C, and stops when `dvc repro` was killed."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from pipeline.runtime.files import PROJECT

LAST_ERROR = Path(".cache/last-error.txt")


def run_command(main: Callable[[], None]) -> None:
    """Run `main` and exit with 1 on a ValueError or an OSError, with 130 on Ctrl-C; other exceptions pass through.

    If the program that reads the output has ended (`| head -1`), exit with 141 and print nothing, as programs do that
    SIGPIPE ends.

    Only the message of an error is printed. Its traceback goes to `.cache/last-error.txt`, unless the disk is full, the
    message is the project's own, or it is about an absent file that the command line names. A stage of DVC stops as on
    SIGTERM when `dvc repro` is killed.
    """
    if "DVC_STAGE" in os.environ:
        if signal.getsignal(signal.SIGTERM) == signal.SIG_IGN:  # infra/run.sh has DVC ignore it
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        threading.Thread(target=_stop_after_dvc, args=_stage_and_dvc(), daemon=True).start()
    try:
        main()
        sys.stdout.flush()
    except OSError as error:
        if isinstance(error, BrokenPipeError) and (unread := _unread_outputs()):
            for output in unread:
                os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # Python flushes once more when it exits
            sys.exit(128 + signal.SIGPIPE)
        # shutil.Error lists the files that it could not copy, each with the reason.
        message = str(error.args[0][0][2] if isinstance(error, shutil.Error) else error)
        if os.strerror(errno.ENOSPC) in message:
            sys.exit(f"error: {message}: free some space, then run the same command again")
        sys.exit(f"error: {message}{_save_traceback(error)}")
    except ValueError as error:
        sys.exit(f"error: {error}{_save_traceback(error)}")
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


def _unread_outputs() -> list[int]:
    """Return which of the standard outputs are pipes whose reader has ended, by file descriptor."""
    outputs = select.poll()
    for output in (1, 2):
        outputs.register(output, 0)
    return [output for output, event in outputs.poll(0) if event & (select.POLLERR | select.POLLHUP)]


def _save_traceback(error: OSError | ValueError) -> str:
    """Save the traceback of an unexpected error to a file and return a hint where it is; "" for expected errors."""
    if _is_own_message(error) or _is_absent_argument(error):
        return ""
    with suppress(OSError):
        LAST_ERROR.parent.mkdir(exist_ok=True)
        LAST_ERROR.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        return f" (the traceback is in {LAST_ERROR})"
    return ""


def _is_own_message(error: OSError | ValueError) -> bool:
    """Return whether a `raise` of this project made the error, not a library or the operating system."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror == os.strerror(error.errno):
        return False  # a system call raises in the frame that made it, which may be one of the project
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return any(Path(frame.f_code.co_filename).is_relative_to(PROJECT / name) for name in ("pipeline", "dgunet"))


def _is_absent_argument(error: OSError | ValueError) -> bool:
    """Return whether the missing file, or a folder above it, is an argument of the command line."""
    if not isinstance(error, FileNotFoundError) or not isinstance(error.filename, str):
        return False
    return any(Path(error.filename).is_relative_to(argument) for argument in sys.argv[1:] if argument)


def _stage_and_dvc() -> tuple[psutil.Process, int]:
    """Return the process that DVC started (this one, or the shell that waits for it) and the process id of DVC."""
    stage = psutil.Process()
    while (parent := stage.parent()) and _is_of_this_stage(parent):
        stage = parent
    return stage, stage.ppid()


def _is_of_this_stage(process: psutil.Process) -> bool:
    with suppress(psutil.Error):  # another user's process, or one that has ended
        return bool(process.environ().get("DVC_STAGE") == os.environ["DVC_STAGE"])
    return False


def _may_be_dvc(process: psutil.Process) -> bool:
    """Return False for the process that adopted the stage, if DVC had died before its process id was read."""
    with suppress(psutil.AccessDenied):
        return any(name in Path(process.exe()).name for name in ("python", "pypy", "dvc"))
    return True


def _stop_after_dvc(stage: psutil.Process, dvc: int) -> None:
    with suppress(psutil.NoSuchProcess):
        while stage.ppid() == dvc and _may_be_dvc(psutil.Process(dvc)):
            time.sleep(1)  # polled: the operating system reports only the death of child processes
    os.kill(os.getpid(), signal.SIGTERM)
