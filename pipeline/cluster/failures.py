"""Describes failures of workers in one line."""

from __future__ import annotations

from collections.abc import Mapping

import ray
import ray.train


def describe_failure(error: Exception) -> str:
    """Return in one line why training failed."""
    if isinstance(error, ray.train.WorkerGroupError):
        return describe_worker_failures(error.worker_failures)
    cause = getattr(error, "controller_failure", error)
    return f"storage: {cause}" if isinstance(cause, OSError) else f"the run {_describe_cause(cause)}"


def describe_worker_failures(errors: Mapping[int, Exception]) -> str:
    """Return in one line which workers failed and how; `errors` is by rank."""
    ranks: dict[str, list[str]] = {}
    for rank, error in sorted(errors.items()):
        ranks.setdefault(_describe_cause(error), []).append(str(rank))
    return "; ".join(f"worker {', '.join(numbers)} {what}" for what, numbers in ranks.items())


def _describe_cause(error: Exception) -> str:
    kind, text = type(error).__name__, str(error)
    if "HealthCheckTimeout" in kind:
        return "hung and was killed"
    if "HealthCheckFailed" in kind or "worker process has died" in text:
        return "died"
    if "Timed out" in text or "timeout" in text:
        return "timed out waiting for another worker"
    if "Connection" in text:
        return "lost the connection to another worker"
    return f"failed with {(text.strip().splitlines() or [kind])[-1]}"
