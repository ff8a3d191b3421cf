"""How workers, controller and driver use the actor `RunChannel`: reports, progress, notices and stop requests."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
import ray.train

from pipeline.cluster import checkpoints, ray_internals
from pipeline.cluster.failures import describe_worker_failures, num_lost_workers

SECONDS_BETWEEN_REQUESTS = 0.5
MAX_SECONDS_FOR_ANSWER = 0.1


@dataclass(frozen=True)
class RunListener:
    """Callbacks of the driver for what happens in a run.

    Attributes:
        report: (metrics) called once for each report that has metrics, when its checkpoint is in the storage.
        progress: (step, stats) of the latest known step; called at each poll, even if the step is the same.
        notice: (one line of text) for the user, such as a failure of workers or what the run waits for.
    """

    report: Callable[[dict[str, float]], None] = lambda metrics: None
    progress: Callable[[int, dict[str, float]], None] = lambda step, stats: None
    notice: Callable[[str], None] = lambda text: None


class ReportCallback(ray.train.UserCallback):  # type: ignore[misc]
    """Forwards each report once, when its checkpoint is committed, and each failure; runs in Ray's controller."""

    def __init__(self, channel: Any, run_dir: str) -> None:
        self.channel, self.run_dir = channel, run_dir

    def after_report(self, run_context: Any, metrics: list[dict[str, float]], checkpoint: Any) -> None:
        """Forward the report of rank 0."""
        with suppress(OSError):
            checkpoints.backup_snapshot(self.run_dir)
        self.channel.report.remote(metrics[0])

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Forward which workers failed."""
        text = f"{describe_worker_failures(worker_exceptions)}; continuing from the last checkpoint"
        self.channel.workers_gone.remote(text, num_lost_workers(worker_exceptions))


class WorkerChannel:
    """The worker's side of the channel."""

    def __init__(self, channel: Any) -> None:
        self.channel, self.answer, self.asked, self.stopping = channel, None, -math.inf, False
        self.preemption: Any = None

    def progress(self, step: int, stats: dict[str, float]) -> None:
        """Send the step and its stats."""
        self.channel.progress.remote(step, stats)

    def notice(self, text: str) -> None:
        """Send a line for people."""
        self.channel.notice.remote(text)

    def stop_requested(self) -> bool:
        """Return whether the driver asked the workers to save a checkpoint and return.

        The worker asks every SECONDS_BETWEEN_REQUESTS. It waits at most MAX_SECONDS_FOR_ANSWER for the answer, which
        usually takes milliseconds; a later answer is read at the next call.
        """
        self._read_answer(0.0)
        if self.answer is None and time.monotonic() - self.asked >= SECONDS_BETWEEN_REQUESTS:
            self.answer, self.asked = self.channel.stop_requested.remote(), time.monotonic()
            self._read_answer(MAX_SECONDS_FOR_ANSWER)
        return self.stopping

    def _read_answer(self, seconds: float) -> None:
        if self.answer is not None and ray.wait([self.answer], timeout=seconds)[0]:
            self.stopping, self.answer = ray.get(self.answer), None

    def save_requested(self) -> bool:
        """Return whether Ray has announced that nodes of this run will be taken away, once for each announcement."""
        preemption = ray_internals.preemption_notice()
        if preemption is None or preemption == self.preemption:
            return False
        self.preemption = preemption
        ranks = ", ".join(map(str, preemption.preempted_ranks))
        self.notice(f"the node of worker {ranks} will be taken away: saving a checkpoint")
        return True


def forward_messages(channel: Any, listener: RunListener) -> bool:
    """Poll the channel and call the listener; return whether workers are running. Raises a failure that is final."""
    messages = ray.get(channel.poll.remote())
    if messages["latest"]:
        listener.progress(*messages["latest"])
    for metrics in messages["reports"]:
        listener.report(metrics)
    for text in messages["notices"]:
        listener.notice(text)
    if messages["failure"]:
        raise messages["failure"]
    return bool(messages["working"])
