"""The command line `dgunet`; each command is a module of `dgunet.commands`.

Exit status: 0 success, 1 failure (stderr says why; for restore: some photos were refused), 2 wrong usage, 128 + the
number of the signal if interrupted (130 for Ctrl-C, 143 for SIGTERM), 141 the reader of the output has gone.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from dgunet.commands import demo, export, film, import_checkpoint, info, models, push, restore
from dgunet.commands import explain as explain_command
from dgunet.console import (
    BROKEN_PIPE_STATUS,
    Interrupted,
    drop,
    explain,
    printable,
    show_all_names,
    signals_interrupt,
    write_line,
)
from dgunet.jobs import UsageError

# How OpenMP threads wait for each other, as in pipeline/runtime/threads.py: not long, other processes need the cores.
THREAD_SETTINGS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    show_all_names()
    try:
        try:
            with signals_interrupt():
                return _run(argv)
        finally:  # an error of writing is reported here, not by the interpreter's shutdown
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                drop(stream)
        return BROKEN_PIPE_STATUS
    except OSError as error:
        drop(sys.stdout)
        write_line(f"dgunet: the output cannot be written: {explain(error)}", to_stderr=True)
        return 1


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    _let_threads_sleep()
    try:
        status: int = arguments.action(arguments)
    except KeyboardInterrupt as error:
        write_line("dgunet: interrupted", to_stderr=True)
        return error.status if isinstance(error, Interrupted) else Interrupted.STATUS
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError) as error:
        write_line(f"dgunet: {_lines_printable(error)}", to_stderr=True)
        return 2 if isinstance(error, UsageError) else 1
    return status


def _lines_printable(error: BaseException) -> str:
    return "\n".join(map(printable, explain(error).splitlines()))


def _let_threads_sleep() -> None:
    """Set THREAD_SETTINGS, unless the user has set one of them, or torch has been loaded, which reads them then."""
    if "torch" not in sys.modules and not THREAD_SETTINGS.keys() & os.environ.keys():
        os.environ.update(THREAD_SETTINGS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dgunet", description="Restore photographs with deep unfolding networks.")
    actions = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (restore, explain_command, demo, export, film, import_checkpoint, info, models, push):
        command.add(actions)
    return parser


if __name__ == "__main__":
    sys.exit(main())
