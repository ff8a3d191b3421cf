"""A Ray session: joins the cluster that RAY_ADDRESS names, or starts Ray on this machine."""

from __future__ import annotations

import os
import platform
import shlex
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.resources import ClusterState
from pipeline.runtime.environment import read_environment, restored_environ
from pipeline.runtime.files import PROJECT
from pipeline.runtime.threads import SETTINGS, thread_settings

SECONDS_TO_ANSWER = 4.0  # limits until a head accepts a connection, and until it answers in gRPC
SETTINGS_FRAME = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # length, type 4, flags, stream
LONGEST_SOCKET_PATH = 107  # bytes, on Linux
LONGEST_SOCKET_NAME = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.65535")
OBJECT_STORE_BYTES = 256 * 2**20  # no large object is stored there
RAY_DEFAULTS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # reports wait for the controller's next poll; Ray's own: 2 s
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # otherwise printed lines are forwarded twice
    "RAY_worker_niceness": "0",  # with Ray's own 15, training almost stops beside other processes
}
FORWARDED = ("MLFLOW_", "AWS_", "DGUNET_", "GLOO_", "NCCL_", "RAY_TRAIN_", *SETTINGS)


class NotANode(ValueError):
    """This machine is not, or not yet, a node of the cluster."""


@contextmanager
def session(*, dashboard: bool = False) -> Iterator[str]:
    """Join the Ray cluster of RAY_ADDRESS, or start Ray on this machine; leave it at the end.

    Yields the URL of Ray's dashboard, "" if there is none.

    Inside, os.environ has the variables that Ray and its processes read; afterwards it is restored. Variables that the
    user has set are kept.

    Args:
        dashboard: whether Ray's dashboard is needed, for example by a search. It takes about 1 GB of memory.

    Raises:
        ValueError: this process cannot join the cluster at RAY_ADDRESS, the cluster lacks a dashboard that is needed,
            or no folder can hold Ray's sockets.
    """
    with restored_environ(), ExitStack() as stack:
        environment = read_environment()
        os.environ["DGUNET_STORAGE"] = environment.storage  # other processes have other working directories
        os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(environment.timeout_seconds)
        for name, value in {**RAY_DEFAULTS, **thread_settings(os.environ)}.items():
            os.environ.setdefault(name, value)
        try:
            if address := os.environ.get("RAY_ADDRESS"):
                # Imported here: it imports Ray Train, which takes seconds and is not needed on this machine alone.
                from pipeline.cluster.ray_internals import without_lines_of_nodes

                stack.enter_context(without_lines_of_nodes())
            started = _join(address, dashboard=dashboard) if address else _start(dashboard=dashboard)
            yield f"http://{started.dashboard_url}" if started.dashboard_url else ""
        finally:
            ray.shutdown()


def _join(address: str, *, dashboard: bool) -> Any:
    """Join a cluster and return Ray's context."""
    check_cluster(address)
    forwarded = {name: value for name, value in os.environ.items() if name.startswith(FORWARDED)}
    # On a node, each version of the code has its own copy of the checkout: a cache inside would be lost.
    forwarded.setdefault("DGUNET_SHARD_CACHE", f"{tempfile.gettempdir()}/dgunet-shards-{os.getuid()}")
    if "://" not in address:
        forwarded["RAY_ADDRESS"] = address
    runtime = {"working_dir": str(PROJECT), "env_vars": forwarded}
    joined = ray.init(address, log_to_driver=False, logging_level="ERROR", runtime_env=runtime)
    if dashboard and not joined.dashboard_url:
        raise ValueError(f"the Ray cluster {address} has no dashboard: start its head with --include-dashboard=true")
    return joined


def check_cluster(address: str) -> ClusterState | None:
    """Return the state of the cluster at an address, if a process of this machine can join it.

    Args:
        address: HOST:PORT; for the addresses ray://HOST:PORT and auto there is no state to return.

    Raises:
        ValueError: no Ray head answers there, it refuses the token, or it has other versions.
        NotANode: this machine is not a node of its cluster (a ValueError, too).
    """
    _check_head(address)
    if address == "auto" or "://" in address:
        return None
    from pipeline.cluster import ray_internals  # imports Ray Train, which takes seconds

    try:
        state = ray_internals.cluster_state(address, SECONDS_TO_ANSWER)
    except PermissionError:
        raise ValueError(
            f"RAY_ADDRESS={address}: the head refuses the token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH to what the head was started with"
        ) from None
    except OSError as error:
        raise ValueError(f"RAY_ADDRESS={address}: the head does not answer ({error})") from None
    here, there = (ray.__version__, platform.python_version()), (state.ray_version, state.python_version)
    if here != there:
        raise ValueError(
            f"RAY_ADDRESS={address}: the cluster has Ray {there[0]} and Python {there[1]}, this machine Ray {here[0]} "
            f"and Python {here[1]}: install the same on all nodes"
        )
    own = {each.address for interface in psutil.net_if_addrs().values() for each in interface}
    if not any(node in own and Path(socket).exists() for node, socket in state.sockets.items()):
        raise NotANode(
            f"RAY_ADDRESS={address}: this machine is not a node of that cluster, and a driver must run on one: start "
            f"infra/run.sh on a node, or let this machine join with `ray start --address={address} --num-cpus=0`"
        )
    return state


def nodes_without(address: str, file: Path) -> list[str]:
    """Return the addresses of the nodes of a cluster that do not see a file of this machine."""

    def sees(path: str) -> bool:  # local, so that Ray sends it to nodes that do not have this code
        return Path(path).exists()

    ray.init(address, log_to_driver=False, logging_level="ERROR")
    try:
        found = {}
        for node in (node for node in ray.nodes() if node["Alive"]):
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, scheduling_strategy=here, max_retries=0)(sees)
            found[node["NodeManagerAddress"]] = task.remote(str(file))
        return sorted(node for node, seen in found.items() if not ray.get(seen))
    finally:
        ray.shutdown()


def _check_head(address: str) -> None:
    """Raise ValueError if no Ray head answers at an address. Ray itself would try for two minutes without a message.

    The head and the Ray client's server speak gRPC, which is HTTP/2: they send a SETTINGS frame (RFC 9113, 6.5) when a
    connection opens.
    """
    advice = "start the head (ray start --head), correct RAY_ADDRESS, or unset it to use this machine alone"
    place = address.removeprefix("ray://").rstrip("/")
    if place == "auto":
        return
    host, colon, port = place.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 2**16):
        raise ValueError(f"RAY_ADDRESS={address}: should be HOST:PORT, ray://HOST:PORT or auto")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return  # the server waits for the client's part of the handshake
            frame = b""
            while len(frame) < len(SETTINGS_FRAME) and (received := connection.recv(64)):
                frame += received
    except TimeoutError:
        raise ValueError(f"RAY_ADDRESS={address}: no Ray head answers there; {advice}") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"RAY_ADDRESS={address}: cannot be reached ({reason}); {advice}") from None
    if frame[3:4] != SETTINGS_FRAME[3:4]:
        raise ValueError(f"RAY_ADDRESS={address}: the server there is not a Ray head; {advice}")


def _short_folder() -> str | None:
    """Return a folder for Ray's sockets if the path of Ray's own folder is too long for them, else None.

    Raises:
        ValueError: none of /tmp, /var/tmp and /dev/shm can be used.
    """
    own = os.environ.get("RAY_TMPDIR") or f"{tempfile.gettempdir()}/ray"
    if len(os.fsencode(own)) + LONGEST_SOCKET_NAME <= LONGEST_SOCKET_PATH:
        return None
    for root in ("/tmp", "/var/tmp", "/dev/shm"):
        folder = Path(root, f"ray-{os.getuid()}")
        with suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK | os.X_OK):
                return str(folder)
    raise ValueError(f"{own} is too long a path for Ray's sockets: set RAY_TMPDIR to a short one, such as /tmp")


def _start(*, dashboard: bool) -> Any:
    """Start Ray on this machine and return its context."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # Ray listens only on this machine, and HOME may be read-only
    # Ray's monitor process watches for nodes that will be taken away; this session has only one node.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    runtime: dict[str, object] = {}
    if (quoted := shlex.quote(sys.executable)) != sys.executable:
        runtime["py_executable"] = quoted  # Ray hands it to a shell unquoted: a path with a space hangs
    options: dict[str, object] = {}
    if folder := _short_folder():
        options["_temp_dir"] = folder
    with restored_environ():
        if dashboard:
            # Ray's code that frees the CPUs of a stopped trial searches this machine for the session's address, and
            # gives up if it finds two sessions. Therefore all processes of this session get the address.
            port = _free_port()
            os.environ["RAY_GCS_SERVER_PORT"] = str(port)
            runtime["env_vars"] = {"RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}"}
            # Ray prints a warning if four times this number of processes start at once; a search starts eight.
            options["_system_config"] = {"worker_maximum_startup_concurrency": 8}
        return ray.init(
            "local", include_dashboard=dashboard, log_to_driver=False, object_store_memory=OBJECT_STORE_BYTES,
            logging_level="ERROR", runtime_env=runtime or None, **options,
        )  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
