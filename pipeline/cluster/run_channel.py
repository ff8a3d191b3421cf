"""A Ray actor that stores reports, progress, notices and stop requests of a training run, and exports its metrics.

This module imports little on purpose: Ray starts a process for the actor in each run, and importing ray.train and torch
there would take seconds.
"""

from __future__ import annotations

from typing import Any

from pipeline.cluster.run_metrics import RunMetrics


class RunChannel:
    """Actor that stores messages until the driver polls them. It calls no other process.

    Args:
        run: name of the run, the label of its metrics.
    """

    def __init__(self, run: str = "") -> None:
        self.metrics = RunMetrics(run)
        self.latest: tuple[int, dict[str, float]] | None = None
        self.reports: list[dict[str, float]] = []
        self.notices: list[str] = []
        self.reported = 0
        self.working, self.last_notice = False, ""
        self.failure: Exception | None = None
        self.stopping = False

    def progress(self, step: int, stats: dict[str, float]) -> None:
        """Store the latest stats."""
        self.latest, self.working = (step, stats), True
        self.metrics.add_progress(stats)

    def report(self, metrics: dict[str, float]) -> None:
        """Count a report whose checkpoint is in the storage, and store its metrics if it has any."""
        if metrics:
            self.reports.append(metrics)
        self.reported += 1
        self.metrics.add_checkpoint()

    def num_reports(self) -> int:
        """Return the number of reports since the actor started."""
        return self.reported

    def notice(self, text: str) -> None:
        """Store a line for people."""
        self.notices.append(text)

    def workers_started(self) -> None:
        """Record that a worker has started."""
        self.working = True

    def workers_gone(self, text: str = "", num_lost: int = 0) -> None:
        """Record that all workers have stopped, `num_lost` of them because they died or hung.

        Repeated notices about the same workers are dropped.
        """
        self.metrics.add_lost_workers(num_lost)
        self.metrics.stop_workers()
        if text and (self.working or text != self.last_notice):
            self.notices.append(text)
        self.working, self.last_notice = False, text or self.last_notice

    def fail(self, error: Exception) -> None:
        """Store an error that no retry can correct."""
        self.failure = error

    def stop(self) -> None:
        """Ask the workers to save a checkpoint and return."""
        self.stopping = True

    def stop_requested(self) -> bool:
        """Return whether the workers are to save a checkpoint and return."""
        return self.stopping

    def poll(self) -> dict[str, Any]:
        """Return new reports and notices, the latest progress, the failure if any, and whether workers are running."""
        messages = {
            "latest": self.latest, "reports": self.reports, "notices": self.notices, "failure": self.failure,
            "working": self.working,
        }  # fmt: skip
        self.metrics.refresh()
        self.reports, self.notices = [], []
        return messages
