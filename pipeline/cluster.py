"""Work on many processes and machines, through Ray; `pipeline.workers` trains on it.

`session` joins the cluster that RAY_ADDRESS names, or starts Ray on this machine. `map_unordered` runs a function
over items. `alone` keeps two runs of one name apart.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import ray
from filelock import FileLock, Timeout

Item = TypeVar("Item")
Result = TypeVar("Result")

PROJECT = Path(__file__).parents[1]
STORAGE, LOCKS = PROJECT / ".cache" / "runs", PROJECT / ".cache" / "locks"
OBJECT_STORE_BYTES = 256 * 2**20  # nothing large goes through it

# Reports wait for the controller's next poll (2 s apart by default); printing is forwarded twice.
RAY_SETTINGS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
PASSED_ON = ("MLFLOW_", "AWS_", "DGUNET_")


def storage() -> str:
    """Return where checkpoints of running work live, as DGUNET_STORAGE or the default says: a URL or a whole path."""
    asked = os.environ.get("DGUNET_STORAGE") or str(STORAGE)
    return asked.rstrip("/") if "://" in asked else str(Path(asked).absolute())


@contextmanager
def session(*, dashboard: bool = False) -> Iterator[None]:
    """Join the Ray cluster of RAY_ADDRESS, or start one on this machine; leave it at the end.

    dashboard: the session needs Ray's dashboard (about 1 GB of memory): a search does, see `pipeline.search`.
    """
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ["DGUNET_STORAGE"] = storage()  # in this process's words: others work in other folders
    address = os.environ.get("RAY_ADDRESS")
    if address:
        passed_on = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)} | RAY_SETTINGS
        # A copy of the project on a node has its own PROJECT, and after a change of code another.
        passed_on.setdefault("DGUNET_SHARD_CACHE", f"{tempfile.gettempdir()}/dgunet-shards-{os.getuid()}")
        if "://" not in address:
            passed_on["RAY_ADDRESS"] = address
        runtime = {"working_dir": str(PROJECT), "env_vars": passed_on}
        joined = ray.init(address, log_to_driver=False, runtime_env=runtime)
        if dashboard and not joined.dashboard_url:
            ray.shutdown()
            raise ValueError(
                f"the Ray cluster {address} has no dashboard: start its head with --include-dashboard=true"
            )
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # nobody else can reach it, and HOME may be read-only
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
        with _known_address() if dashboard else nullcontext() as own:
            ray.init(
                "local", include_dashboard=dashboard, log_to_driver=False, object_store_memory=OBJECT_STORE_BYTES,
                logging_level="ERROR", runtime_env=own and {"env_vars": {"RAY_ADDRESS": own}},
                # Of four times as many processes that start at once Ray warns on the terminal: a search starts eight.
                _system_config=own and {"worker_maximum_startup_concurrency": 8},
            )  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _known_address() -> Iterator[str]:
    """The address of the session that is started meanwhile, for its workers.

    What gives back the CPUs of a stopped trial looks for its session on the machine, and gives up where it finds two.
    """
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    os.environ["RAY_GCS_SERVER_PORT"] = port
    try:
        yield f"{ray.util.get_node_ip_address()}:{port}"
    finally:
        del os.environ["RAY_GCS_SERVER_PORT"]


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Keep other processes on this machine away from the run `name`; ValueError if one is at work on it."""
    LOCKS.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(LOCKS / name).acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process is at work on {name}: wait for it, or stop it") from None
    with held:
        yield


def map_unordered(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `function(item)` for each item as they are done, on all the cluster's cores.

    Items are drawn only as fast as they are worked off, so neither they nor the results pile up. An item whose process
    or node died is worked on again (up to three times); an exception of `function` is raised here.
    """
    shared, remote = ray.put(function), ray.remote(num_cpus=1, max_retries=3)(_apply)
    at_once = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: list[ray.ObjectRef] = []
    for item in items:
        running.append(remote.remote(shared, item))
        if len(running) >= at_once:
            done, running = ray.wait(running, num_returns=1)
            yield _result(done[0])
    while running:
        done, running = ray.wait(running, num_returns=1)
        yield _result(done[0])


def _apply(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _result(reference: ray.ObjectRef) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # What a user can mend is told as it was; of all else Ray's error shows where it happened.
        raise (error.cause if isinstance(error.cause, ValueError | OSError) else error) from None
