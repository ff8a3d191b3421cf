"""How every door is run: mistakes told in a line, Ctrl-C heard, and no stage left behind by a DVC that was killed."""

from __future__ import annotations

import errno
import os
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
    """Run a door: what the user can mend is told without a traceback and exits with 1; Ctrl-C exits with 130.

    A stage of DVC stops when `dvc repro` was killed, as on SIGTERM.
    """
    if "DVC_STAGE" in os.environ:
        threading.Thread(target=_follow, args=_beside_dvc(), daemon=True).start()
    try:
        main()
    except OSError as error:
        # shutil.Error lists what it could not copy, each with its reason.
        told = str(error.args[0][0][2] if isinstance(error, shutil.Error) else error)
        full = os.strerror(errno.ENOSPC) in told
        sys.exit(f"error: {told}" + (": make room, then run the same command again" if full else ""))
    except ValueError as error:
        sys.exit(f"error: {error}{_where(error)}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _where(error: ValueError) -> str:
    """Return where the traceback is of an error that is not in our words: it may be a fault of ours."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if any(Path(frame.f_code.co_filename).is_relative_to(PROJECT / package) for package in ("pipeline", "dgunet")):
        return ""
    with suppress(OSError):
        LAST_ERROR.parent.mkdir(exist_ok=True)
        LAST_ERROR.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        return f" (where it happened is in {LAST_ERROR})"
    return ""


def _beside_dvc() -> tuple[psutil.Process, int]:
    """Return the process that DVC started, this one or the shell that waits for it, and DVC's own number."""
    started = psutil.Process()
    while (parent := started.parent()) and _is_of_this_stage(parent):
        started = parent
    return started, started.ppid()


def _is_of_this_stage(process: psutil.Process) -> bool:
    with suppress(psutil.Error):  # another user's, or gone
        return bool(process.environ().get("DVC_STAGE") == os.environ["DVC_STAGE"])
    return False


def _may_be_dvc(process: psutil.Process) -> bool:
    """Return False for what DVC cannot be: the process that was left its children, where it died before we looked."""
    with suppress(psutil.AccessDenied):
        return any(name in Path(process.exe()).name for name in ("python", "pypy", "dvc"))
    return True


def _follow(started: psutil.Process, dvc: int) -> None:
    with suppress(psutil.NoSuchProcess):
        while started.ppid() == dvc and _may_be_dvc(psutil.Process(dvc)):
            time.sleep(1)  # nobody tells of the death of a process that is no child
    os.kill(os.getpid(), signal.SIGTERM)
