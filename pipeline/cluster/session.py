"""Work on many processes and machines, through Ray; `pipeline.cluster.training_run` trains on it.

`session` joins the cluster that RAY_ADDRESS names, or starts Ray on this machine. `map_unordered` runs a function
over items. `alone` keeps two runs of one name apart.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import ray

from pipeline.cluster.checkpoints import storage
from pipeline.runtime.files import PROJECT

OBJECT_STORE_BYTES = 256 * 2**20  # nothing large goes through it
# Reports wait for the controller's next poll (2 s apart by default); printing is forwarded twice.
RAY_SETTINGS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
PASSED_ON = ("MLFLOW_", "AWS_", "DGUNET_")


@contextmanager
def session(*, dashboard: bool = False) -> Iterator[None]:
    """Join the Ray cluster of RAY_ADDRESS, or start one on this machine; leave it at the end.

    dashboard: the session needs Ray's dashboard (about 1 GB of memory): a search does, see `pipeline.tuning.search`.
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
