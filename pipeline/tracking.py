"""A run in MLflow: parameters, curves, system metrics, files.

Tracked in mlflow.db (SQLite) in the checkout, or wherever MLFLOW_TRACKING_URI says. Equal runs share one: what was
begun by a process that died is continued. A tracking server that goes away does not stop training: what it missed is
kept and sent when it is back.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7 by default: minutes of silence when it is gone
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")  # asked for per run below
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow
from mlflow.entities import Metric, RunStatus
from mlflow.exceptions import MlflowException

PROJECT = Path(__file__).parents[1]
DEFAULT_DATABASE = PROJECT / "mlflow.db"
DEFAULT_ARTIFACTS = PROJECT / "mlartifacts"
LONGEST_VALUE = 500  # MLflow refuses longer parameters

logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)


class Run:
    """One MLflow run that is being written."""

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self._client = mlflow.MlflowClient()
        self._unsent: list[Metric] = []
        self._warned = False

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log `metrics` at `step`; keeps them for the next call if the server does not answer."""
        now = int(time.time() * 1000)
        self._unsent += [Metric(name, float(value), now, step) for name, value in metrics.items()]
        self.send()

    def send(self) -> bool:
        """Send what has not been sent; return whether all is sent."""
        try:
            self._client.log_batch(self.id, metrics=self._unsent)
        except MlflowException as error:
            if not self._warned:
                self._warned = True
                print(
                    f"MLflow does not answer, its metrics are kept until it does ({_first_line(error)})",
                    file=sys.stderr,
                )
            return False
        self._unsent.clear()
        self._warned = False
        return True

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._client.log_batch(self.id, tags=[mlflow.entities.RunTag(name, value) for name, value in tags.items()])

    def files(self, folder: Path, name: str) -> None:
        """Log every file of `folder` as artifacts under `name`."""
        self._client.log_artifacts(self.id, str(folder), name)


def connect() -> str:
    """Point MLflow to where runs and models are tracked, and return that address."""
    address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DEFAULT_DATABASE}"
    mlflow.set_tracking_uri(address)
    try:
        mlflow.MlflowClient().search_experiments(max_results=1)
    except MlflowException as error:
        raise ValueError(
            f"MLflow at {address} does not answer ({_first_line(error)}): start it, or set MLFLOW_TRACKING_URI"
        ) from error
    return address


@contextmanager
def run(
    experiment: str, name: str, key: Mapping[str, str], params: Mapping[str, Any], *, system_metrics: bool
) -> Iterator[Run]:
    """Write a run of `experiment`: a new one, or the one that has the tags `key` already.

    It ends FINISHED, KILLED on Ctrl-C and the like, FAILED on any other exception.
    """
    connect()
    experiment_id = _experiment(experiment)
    client = mlflow.MlflowClient()
    started = find(experiment, key)
    if started is None:
        started = client.create_run(experiment_id, run_name=name, tags=dict(key)).info.run_id
        flat = [mlflow.entities.Param(k, str(v)[:LONGEST_VALUE]) for k, v in flattened(params).items()]
        client.log_batch(started, params=flat)
    mlflow.start_run(run_id=started, log_system_metrics=system_metrics)
    status = RunStatus.FAILED
    current = Run(started)
    try:
        yield current
        status = RunStatus.FINISHED
    except KeyboardInterrupt:
        status = RunStatus.KILLED
        raise
    finally:
        if not current.send():
            print("MLflow did not come back: the last metrics are in reports/ only", file=sys.stderr)
        try:
            mlflow.end_run(RunStatus.to_string(status))
        except MlflowException as error:
            print(f"MLflow: the run could not be closed ({_first_line(error)})", file=sys.stderr)


def find(experiment: str, tags: Mapping[str, str]) -> str | None:
    """Return the id of the newest run of `experiment` with these tags, None if there is none."""
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    runs = client.search_runs([found.experiment_id], condition, max_results=1)
    return runs[0].info.run_id if runs else None


def flattened(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested `params` with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _experiment(name: str) -> str:
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = mlflow.get_tracking_uri() == f"sqlite:///{DEFAULT_DATABASE}"
    try:
        return str(client.create_experiment(name, artifact_location=DEFAULT_ARTIFACTS.as_uri() if local else None))
    except MlflowException:  # somebody else made it just now
        return str(client.get_experiment_by_name(name).experiment_id)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
