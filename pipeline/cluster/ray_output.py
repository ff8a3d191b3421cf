"""Keeps what Ray prints about dead nodes and processes out of the terminal. Uses an internal function of Ray.

Tried with Ray 2.60, see `pipeline.cluster.ray_internals`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def without_lines_of_nodes() -> Iterator[None]:
    """Discard the lines that Ray prints in the driver about nodes and processes that have died.

    Ray prints them also with log_to_driver=False, with the end of the log of the node; they stay in Ray's own logs. A
    run reports in a line what they mean for it, see `pipeline.cluster.failures`.
    """
    printed = ray._private.worker.print_to_stdstream
    ray._private.worker.print_to_stdstream = lambda data, ignore_prefix: None
    try:
        yield
    finally:
        ray._private.worker.print_to_stdstream = printed
