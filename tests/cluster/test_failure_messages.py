"""Failures of workers in one line; the texts of the errors are those of Ray 2.60 and of a real gloo group."""

import fcntl
import os
import subprocess
import sys
import textwrap
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import ray
from factories import pythonpath
from processes import started, until

from pipeline.cluster.failures import (
    describe_failure,
    describe_start_failure,
    describe_worker_failures,
    num_lost_workers,
)
from pipeline.cluster.ray_internals import WorkerGroupCleanup, WorkerGroupStartupFailedError

PROCESS_DIED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker\n\tip: 10.77.0.2\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called"
)
NODE_DIED = (
    "The actor died unexpectedly before finishing this task.\nThe actor died because its node has died. Node Id: 77 "
    "\n\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats"
)
MEMORY = "1 worker(s) were killed due to the node running low on memory. Memory on the node was 7.6GB / 8GB"
REFUSED = (
    "Gloo connectFullMesh failed with [/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:152] timed out "
    "connecting: SO_ERROR: Connection refused, remote=[{}]:25510$1"
)
TIMEOUT = (
    "Gloo connectFullMesh failed with [/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.h:311] Connect "
    "timeout [none]"
)


class HealthCheckFailed(Exception):
    """Stands for ray.train's error, whose text has that of its cause."""


@pytest.mark.parametrize(
    ("error", "expected", "num_lost"),
    [
        (HealthCheckFailed(PROCESS_DIED), "worker 0 died", 1),
        (HealthCheckFailed(NODE_DIED), "worker 0 died with its node", 1),
        (HealthCheckFailed(MEMORY), "worker 0 died: its node has too little memory", 1),
        (
            RuntimeError("Timed out waiting 40000ms for recv operation"),
            "worker 0 timed out waiting for another worker",
            0,
        ),
        (RuntimeError("Connection closed by peer"), "worker 0 lost the connection to another worker", 0),
        (EOFError(), "worker 0 failed with EOFError", 0),
    ],
)
def test_a_lost_worker_is_distinguished_from_one_that_waited_for_it(
    error: Exception, expected: str, num_lost: int
) -> None:
    assert describe_worker_failures({0: error}) == expected
    assert num_lost_workers({0: error, 1: EOFError()}) == num_lost


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.1.1", "::1"])
def test_a_host_whose_name_resolves_to_itself_is_named_with_what_to_do(address: str) -> None:
    error = ray.train.ControllerError(RuntimeError(f"ray::worker (pid=7)\nRuntimeError: {REFUSED.format(address)}"))
    line = describe_failure(error)
    assert line.startswith(f"a worker could not connect to another one, whose host's name resolves to {address}: ")
    assert all(text in line for text in ("/etc/hosts", "GLOO_SOCKET_IFNAME", "hostname -i"))
    assert "\n" not in line


def test_a_host_that_cannot_be_reached_is_named_by_its_address_where_that_is_known() -> None:
    line = describe_worker_failures({1: RuntimeError(REFUSED.format("172.17.0.1"))})
    assert line.startswith("worker 1 could not connect to another one at 172.17.0.1: on each host")
    line = describe_worker_failures({0: RuntimeError(TIMEOUT)})
    assert line.startswith("worker 0 could not connect to another one: on each host")


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (HealthCheckFailed(PROCESS_DIED), "workers died as they started"),
        (HealthCheckFailed(NODE_DIED), "workers died as they started with their node"),
        (ray.exceptions.ActorUnavailableError("Socket closed", None), "workers died as they started, or "),
        (RuntimeError("creation failed\nno module named job"), "workers failed with no module named job"),
    ],
)
def test_why_workers_could_not_start_is_described(cause: Exception, expected: str) -> None:
    assert describe_start_failure(cause).startswith(expected)


class Recorder:
    """Stands for the channel's handle."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    @property
    def workers_gone(self) -> "Recorder":
        return self

    def remote(self, *arguments: object) -> None:
        self.calls.append(arguments)


def test_a_group_that_does_not_start_says_why_to_the_channel() -> None:
    channel = Recorder()
    cleanup = WorkerGroupCleanup(channel)
    with pytest.raises(WorkerGroupStartupFailedError), cleanup.on_worker_group_start():
        raise WorkerGroupStartupFailedError("At least one failed") from HealthCheckFailed(NODE_DIED)
    assert channel.calls == [("workers died as they started with their node; trying again", 1)]
    with pytest.raises(RuntimeError), cleanup.on_worker_group_start():
        raise RuntimeError(TIMEOUT)  # the driver reports it
    assert len(channel.calls) == 1


RANK = """
    import sys
    from datetime import timedelta
    import torch.distributed as dist
    rank, file = int(sys.argv[1]), sys.argv[2]
    try:
        store = dist.FileStore(file, 2)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    except RuntimeError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_error_of_a_gloo_group_at_an_address_of_the_own_host_is_known(tmp_path: Path) -> None:
    """As between two hosts: what rank 0 gives as its address is where rank 1 finds nobody.

    Of two ranks, gloo has the one with the larger port connect, and the other one wait: that one is given up.
    """
    environment = os.environ | {"PYTHONPATH": pythonpath(__file__), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-c", textwrap.dedent(RANK)]
    printed = ""
    for attempt in range(10):
        store = tmp_path / f"store{attempt}"
        with started(*command, "0", str(store), env=environment, stderr=subprocess.DEVNULL) as first:
            until(partial(killed_after_giving_its_address, first, store), 120)
        with suppress(subprocess.TimeoutExpired):
            printed = subprocess.run(
                [*command, "1", str(store)], env=environment, capture_output=True, text=True, check=True, timeout=45
            ).stdout
            break
    line = describe_worker_failures({1: RuntimeError(printed)})
    expected = "worker 1 could not connect to another one, whose host's name resolves to 127.0.0.1: on each host"
    assert line.startswith(expected), printed


def killed_after_giving_its_address(rank: subprocess.Popen[str], store: Path) -> bool:
    """Under the lock of the store, so that it holds no half-written entry: a reader would wait for the rest."""
    assert rank.poll() is None
    if not store.exists():
        return False
    with store.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        if b"cpu" not in file.read():
            return False
        rank.kill()
        rank.wait()
    return True
