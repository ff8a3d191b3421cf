"""The only file that uses internals of Ray: callbacks of the Train controller, and state without public access.

It was tried with the versions of Ray in TRIED_WITH; importing it with any other version raises an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.train.torch
from ray import tune

TRIED_WITH = ("2.60",)
if not ray.__version__.startswith(tuple(f"{version}." for version in TRIED_WITH)):
    raise ImportError(
        f"Ray {ray.__version__} is installed, but pipeline/cluster/ray_internals.py uses internals of Ray and was "
        f"tried with {', '.join(TRIED_WITH)} only: run `make setup`, or run tests/cluster and tests/tuning with your "
        "version and add it to TRIED_WITH"
    )

from ray._raylet import GcsClient  # type: ignore[attr-defined]  # noqa: E402
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback  # noqa: E402
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback  # noqa: E402
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME as SNAPSHOT  # noqa: E402
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError  # noqa: E402
from ray.train.v2._internal.execution.callback import WorkerGroupCallback  # noqa: E402
from ray.train.v2._internal.execution.context import get_train_context  # noqa: E402

from pipeline.cluster.failures import describe_start_failure  # noqa: E402
from pipeline.cluster.resources import ClusterState  # noqa: E402

__all__ = [
    "SNAPSHOT", "RunTrainer", "WorkerGroupCleanup", "cluster_state", "preemption_notice",
    "refresh_tuner", "without_lines_of_nodes", "without_stderr",
]  # fmt: skip
ALIVE = 0  # state of a node


def cluster_state(address: str, timeout_seconds: float) -> ClusterState:
    """Return the state of the cluster whose head is at HOST:PORT.

    `ray.init` checks the same, but ends the process with a C++ stack trace if this machine is not a node.

    Raises:
        PermissionError: the head refuses the token.
        OSError: the head does not answer.
    """
    with without_stderr():
        try:
            client = GcsClient(address=address)
            found = client.get_all_node_info(timeout=timeout_seconds).values()
            stored = client.internal_kv_get(b"CLUSTER_METADATA", b"cluster", timeout=timeout_seconds)
        except ray.exceptions.AuthenticationError as error:
            raise PermissionError(str(error).splitlines()[0]) from None
        except ray.exceptions.RayError as error:
            raise OSError(str(error).splitlines()[0]) from None
    versions = json.loads(stored) if stored else {}
    alive = [node for node in found if node.state == ALIVE]
    return ClusterState(
        {node.node_manager_address: dict(node.resources_total) for node in alive},
        {node.node_manager_address: node.raylet_socket_name for node in alive},
        versions.get("ray_version", "of unknown version"),
        versions.get("python_version", "of unknown version"),
    )


@contextmanager
def without_stderr() -> Iterator[None]:
    """Discard all that is written to file descriptor 2 meanwhile, such as C++ messages that repeat an exception."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def without_lines_of_nodes() -> Iterator[None]:
    """Discard the lines that Ray prints in the driver about nodes and processes that died.

    Ray prints them even with log_to_driver=False, with the end of the node's log; they remain in Ray's own logs. A run
    reports in one line what they mean for it, see `pipeline.cluster.failures`.
    """
    printed = ray._private.worker.print_to_stdstream
    ray._private.worker.print_to_stdstream = lambda data, ignore_prefix: None
    try:
        yield
    finally:
        ray._private.worker.print_to_stdstream = printed


def preemption_notice() -> Any:
    """Return the last announcement that nodes of this run will be preempted; None if there was none.

    The public ray.train.get_preemption_info() exchanges messages with all workers at each call; Ray also stores the
    announcement in each worker.
    """
    return get_train_context().preemption_context.preemption_info


def refresh_tuner(tuner: tune.Tuner, *, max_concurrent_trials: int, callbacks: list[tune.Callback]) -> Any:
    """Replace those settings of a restored Tuner that must come from this process; return its scheduler."""
    inner = tuner._local_tuner
    inner._run_config.callbacks = callbacks
    inner._tune_config.max_concurrent_trials = max_concurrent_trials
    return inner._tune_config.scheduler


class WorkerGroupCleanup(WorkerGroupCallback):  # type: ignore[misc]
    """Tells the channel when all workers have stopped, and frees the resources of a group whose start failed.

    If the start of a group fails after the first callback, Ray does not free the group's resources
    (`WorkerGroup._start`), and the next group waits for them forever.
    """

    def __init__(self, channel: Any) -> None:
        self.channel: Any = channel
        self.starting: Any = None

    @contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        """Free the resources of a group whose start fails."""
        self.starting = None
        try:
            yield
        except Exception as error:
            if self.starting is not None:
                self.starting._clear_state()  # frees the resources
            if isinstance(error, WorkerGroupStartupFailedError):
                text = f"{describe_start_failure(error.__cause__ or error)}; trying again"
                self.channel.workers_gone.remote(text, 1)
            raise

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Store the group, before the callbacks that may fail."""
        self.starting = worker_group

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Report that the workers stop, even if none failed: a node may be drained, or the group may grow."""
        self.channel.workers_gone.remote()


class RunTrainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """TorchTrainer whose first callback is `WorkerGroupCleanup`; configured callbacks come after Ray's own.

    Two of Ray's callbacks are left out where they are of no use, as each starts a process that imports Ray Train for
    seconds of CPU time: `DatasetsCallback` starts one for each group of workers, and no run has Ray datasets.
    `PlacementGroupCleanerCallback` frees what the workers of a dead controller hold; a session that this process has
    started ends with the run and frees all.
    """

    def __init__(self, channel: Any, **settings: Any) -> None:
        super().__init__(**settings)
        self.cleanup = WorkerGroupCleanup(channel)

    def _create_default_callbacks(self) -> list[Any]:
        useless: tuple[type, ...] = (DatasetsCallback,)
        if not os.environ.get("RAY_ADDRESS"):
            useless = (*useless, PlacementGroupCleanerCallback)
        of_ray = super()._create_default_callbacks()
        return [self.cleanup, *(callback for callback in of_ray if not isinstance(callback, useless))]
