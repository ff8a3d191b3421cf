"""Describes failures of workers in one line."""

from __future__ import annotations

import re
from collections.abc import Mapping

import ray
import ray.train

# gloo's error when it connects workers on CPUs; the address is the one that the other worker gave as its own.
GLOO_FAILURE = "Gloo connectFullMesh failed"
GLOO_PEER = re.compile(r"remote=\[([^\]]+)\]")
GLOO_ADVICE = (
    "on each host `hostname -i` must print the address at which the others reach it: correct /etc/hosts there, or set "
    "GLOO_SOCKET_IFNAME to the network interface of that address"
)


def describe_failure(error: Exception) -> str:
    """Return in one line why training failed."""
    if isinstance(error, ray.train.WorkerGroupError):
        return describe_worker_failures(error.worker_failures)
    cause = getattr(error, "controller_failure", error)
    if GLOO_FAILURE in str(cause):
        return f"a worker {_describe_cause(cause)}"
    return f"storage: {cause}" if isinstance(cause, OSError) else f"the run {_describe_cause(cause)}"


def describe_start_failure(error: Exception) -> str:
    """Return in one line why workers did not start; `error` is the error of one of them."""
    what = _describe_cause(error)
    return f"workers {what.replace('died', 'died as they started', 1)}".replace("its node", "their node")


def describe_worker_failures(errors: Mapping[int, Exception]) -> str:
    """Return in one line which workers failed and how; `errors` is by rank."""
    ranks: dict[str, list[str]] = {}
    for rank, error in sorted(errors.items()):
        ranks.setdefault(_describe_cause(error), []).append(str(rank))
    return "; ".join(f"worker {', '.join(numbers)} {what}" for what, numbers in ranks.items())


def num_lost_workers(errors: Mapping[int, Exception]) -> int:
    """Return how many workers died or hung, without those that only waited for them or raised an error."""
    return sum(_describe_cause(error).startswith(("died", "hung")) for error in errors.values())


def _describe_cause(error: Exception) -> str:
    kind, text = type(error).__name__, str(error)
    if GLOO_FAILURE in text:
        return _describe_gloo_failure(text)
    descriptions = {  # the first match counts
        "hung and was killed": "HealthCheckTimeout" in kind,
        "died: its node has too little memory": "low on memory" in text,
        "died with its node": "node has died" in text,
        "died": "HealthCheckFailed" in kind or "worker process has died" in text,
        "died, or its node cannot be reached": kind == "ActorUnavailableError",
        "timed out waiting for another worker": "Timed out" in text or "timeout" in text,
        "lost the connection to another worker": "Connection" in text,
    }
    unknown = f"failed with {(text.strip().splitlines() or [kind])[-1]}"
    return next((description for description, holds in descriptions.items() if holds), unknown)


def _describe_gloo_failure(text: str) -> str:
    peer = GLOO_PEER.search(text)
    if peer is None:
        return f"could not connect to another one: {GLOO_ADVICE}"
    if peer[1].startswith("127.") or peer[1] == "::1":
        return f"could not connect to another one, whose host's name resolves to {peer[1]}: {GLOO_ADVICE}"
    return f"could not connect to another one at {peer[1]}: {GLOO_ADVICE}"
