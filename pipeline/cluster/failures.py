"""Describes failures of workers in one line."""

from __future__ import annotations

from collections.abc import Mapping

import ray
import ray.train


def told(error: Exception) -> str:
    """Say in one line why training failed."""
    if isinstance(error, ray.train.WorkerGroupError):
        return losses(error.worker_failures)
    cause = getattr(error, "controller_failure", error)
    return f"storage: {cause}" if isinstance(cause, OSError) else f"the run {_loss(cause)}"


def losses(errors: Mapping[int, Exception]) -> str:
    """Say in one line what befell which worker."""
    ranks: dict[str, list[str]] = {}
    for rank, error in sorted(errors.items()):
        ranks.setdefault(_loss(error), []).append(str(rank))
    return "; ".join(f"worker {', '.join(numbers)} {what}" for what, numbers in ranks.items())


def _loss(error: Exception) -> str:
    kind, text = type(error).__name__, str(error)
    if "HealthCheckTimeout" in kind:
        return "hung and was killed"
    if "HealthCheckFailed" in kind or "worker process has died" in text:
        return "died"
    if "Timed out" in text or "timeout" in text:
        return "waited in vain for another"
    if "Connection" in text:
        return "lost touch with another"
    return f"failed with {(text.strip().splitlines() or [kind])[-1]}"
