"""The line between a run's workers, Ray's controller and the driver: reports, progress, notices, the wish to stop."""

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
from pipeline.cluster.failures import describe_worker_failures

SECONDS_BETWEEN_QUESTIONS = 0.5
MOST_SECONDS_TO_ANSWER = 0.1


@dataclass(frozen=True)
class RunListener:
    """Who listens to a run, in the driver.

    report: each report once, when its checkpoint is safe. progress: (step, figures). notice: a line for a person, when
    workers were lost or something is waited for.
    """

    report: Callable[[dict[str, float]], None] = lambda metrics: None
    progress: Callable[[int, dict[str, float]], None] = lambda step, figures: None
    notice: Callable[[str], None] = lambda run_channel: None


class RunChannel:
    """The telephone exchange: an actor of its own, called by all and calling nobody."""

    def __init__(self) -> None:
        self.latest: tuple[int, dict[str, float]] | None = None
        self.reports: list[dict[str, float]] = []
        self.notices: list[str] = []
        self.stored = 0
        self.working, self.farewell = False, ""
        self.failure: Exception | None = None
        self.stopping = False

    def progress(self, step: int, figures: dict[str, float]) -> None:
        """Keep the latest figures."""
        self.latest, self.working = (step, figures), True

    def report(self, metrics: dict[str, float]) -> None:
        """Take a report whose checkpoint is safe; without metrics there is nothing to pass on."""
        if metrics:
            self.reports.append(metrics)
        self.stored += 1

    def num_reports(self) -> int:
        """Return how many reports were taken since the start."""
        return self.stored

    def notice(self, text: str) -> None:
        """Take a line for a person."""
        self.notices.append(text)

    def enter(self) -> None:
        """Learn that a worker has begun."""
        self.working = True

    def leave(self, text: str = "") -> None:
        """Learn that the workers are gone, in a line for a person; the same again, of the same workers, is no news."""
        if text and (self.working or text != self.farewell):
            self.notices.append(text)
        self.working, self.farewell = False, text or self.farewell

    def fail(self, error: Exception) -> None:
        """Take an error that no retry can mend."""
        self.failure = error

    def stop(self) -> None:
        """Have the workers save and return."""
        self.stopping = True

    def stop_requested(self) -> bool:
        """Return whether the workers are to save and return."""
        return self.stopping

    def listen(self) -> dict[str, Any]:
        """Return what is new since the last time."""
        heard = {
            "latest": self.latest, "reports": self.reports, "notices": self.notices, "failure": self.failure,
            "working": self.working,
        }  # fmt: skip
        self.reports, self.notices = [], []
        return heard


class ReportCallback(ray.train.UserCallback):  # type: ignore[misc]
    """Passes on each report once, when its checkpoint is committed, and each loss; lives in Ray's controller."""

    def __init__(self, run_channel: Any, place: str) -> None:
        self.run_channel, self.place = run_channel, place

    def after_report(self, run_context: Any, metrics: list[dict[str, float]], checkpoint: Any) -> None:
        """Pass on what rank 0 reported."""
        with suppress(OSError):
            checkpoints.keep(self.place)
        self.run_channel.report.remote(metrics[0])

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Pass on who was lost."""
        self.run_channel.leave.remote(f"{describe_worker_failures(worker_exceptions)}; back to the last checkpoint")


class WorkerChannel:
    """A worker's end of the line."""

    def __init__(self, run_channel: Any) -> None:
        self.run_channel, self.answer, self.asked, self.stopping = run_channel, None, -math.inf, False
        self.preemption: Any = None

    def progress(self, step: int, figures: dict[str, float]) -> None:
        """Tell how far training has come."""
        self.run_channel.progress.remote(step, figures)

    def notice(self, text: str) -> None:
        """Tell a person something."""
        self.run_channel.notice.remote(text)

    def stop_requested(self) -> bool:
        """Return whether the driver wants the workers to save and return, asking it now and then.

        An answer takes milliseconds and is waited for, so that a worker that asks seldom has a fresh one; not longer
        than MOST_SECONDS_TO_ANSWER, then it is looked for the next time.
        """
        self._hear(0.0)
        if self.answer is None and time.monotonic() - self.asked >= SECONDS_BETWEEN_QUESTIONS:
            self.answer, self.asked = self.run_channel.stop_requested.remote(), time.monotonic()
            self._hear(MOST_SECONDS_TO_ANSWER)
        return self.stopping

    def _hear(self, seconds: float) -> None:
        if self.answer is not None and ray.wait([self.answer], timeout=seconds)[0]:
            self.stopping, self.answer = ray.get(self.answer), None

    def save_requested(self) -> bool:
        """Return whether Ray has word, not heard before, that nodes of this run are to be taken away."""
        word = ray_internals.preemption_notice()
        if word is None or word == self.preemption:
            return False
        self.preemption = word
        ranks = ", ".join(map(str, word.preempted_ranks))
        self.notice(f"the node of worker {ranks} is to be taken away: a checkpoint is saved before")
        return True


def forward_messages(run_channel: Any, listener: RunListener) -> bool:
    """Tell `ears` what is new; return whether there are workers at work. Raises what a worker said is final."""
    heard = ray.get(run_channel.listen.remote())
    if heard["latest"]:
        listener.progress(*heard["latest"])
    for metrics in heard["reports"]:
        listener.report(metrics)
    for text in heard["notices"]:
        listener.notice(text)
    if heard["failure"]:
        raise heard["failure"]
    return bool(heard["working"])
