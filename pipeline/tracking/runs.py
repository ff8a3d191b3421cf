"""A run in MLflow: parameters, curves, system metrics, files.

Tracked in mlflow.db (SQLite) in the checkout, or wherever MLFLOW_TRACKING_URI says. Equal runs share one: what was
begun by a process that died is continued, and a metric has one value per step however often the step was reported. A
tracking server that goes away does not stop training: what it missed is kept and sent when it is back.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from pipeline.runtime.files import PROJECT

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7 by default: minutes of silence when it is gone
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")  # asked for per run below
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
DEFAULT_DATABASE = PROJECT / "mlflow.db"
SQLITE = "sqlite:///"
LONGEST_VALUE = 500  # MLflow refuses longer parameters
METRICS_PER_REQUEST, PARAMS_PER_REQUEST = 1000, 100  # MLflow refuses more
SYSTEM_METRICS = "system/"
SECONDS_TO_ANSWER = 10.0  # for a server to say that it is there
SECONDS_TO_WAIT = 2.0  # for a delivery; then it goes on in the background
SECONDS_BETWEEN_TRIES = 10.0
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)  # a server that is away is told once, below
logging.getLogger("alembic").setLevel(logging.WARNING)


class Run:
    """One MLflow run that is being written.

    What is logged is delivered by a thread of its own, so that a server that hangs holds up nobody.
    """

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self._client = mlflow.MlflowClient()
        self._known = self._points()
        self._metrics: list[Metric] = []
        self._tags: dict[str, str] = {}
        self._away = False
        self._sending = threading.Lock()
        self._postman = threading.Thread()

    def log(self, metrics: Mapping[str, float | int], step: int) -> None:
        """Log what is not logged yet of `metrics` at `step`."""
        now = int(time.time() * 1000)
        new = [(name, step) for name in metrics if (name, step) not in self._known]
        self._known.update(new)
        self._metrics += [Metric(name, float(metrics[name]), now, step) for name, _ in new]
        self._deliver()

    def complete(self, history: Sequence[Mapping[str, float | int]]) -> None:
        """Log what is not logged yet of `history`, whose lines have a `step`: reports that nobody heard."""
        for line in history:
            self.log(line, int(line["step"]))

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._tags |= tags
        self._deliver()

    def files(self, folder: Path, name: str) -> None:
        """Log the files of `folder`, not those of its subfolders, as artifacts under `name`."""
        for path in sorted(folder.iterdir()):
            if path.is_file():
                self._client.log_artifact(self.id, str(path), name)

    def send(self) -> bool:
        """Send now what has not been sent; return whether all is sent."""
        with self._sending:
            while self._metrics or self._tags:
                metrics, tags = self._metrics[:METRICS_PER_REQUEST], dict(self._tags)
                try:
                    self._client.log_batch(self.id, metrics, tags=[RunTag(*tag) for tag in tags.items()])
                except MlflowException as error:
                    self._tell(f"does not answer, metrics are kept until it does ({_first_line(error)})", away=True)
                    return False
                del self._metrics[: len(metrics)]
                self._tags = {name: value for name, value in self._tags.items() if tags.get(name) != value}
            self._tell("answers again; what it missed is sent", away=False)
            return True

    def _deliver(self) -> None:
        if not self._postman.is_alive():
            self._postman = threading.Thread(target=self._send_until_done, daemon=True)
            self._postman.start()
        if not self._away:
            self._postman.join(SECONDS_TO_WAIT)

    def _send_until_done(self) -> None:
        while not self.send():
            time.sleep(SECONDS_BETWEEN_TRIES)

    def _tell(self, what: str, *, away: bool) -> None:
        if away != self._away:
            self._away = away
            print(f"MLflow {what}", file=sys.stderr, flush=True)

    def _points(self) -> set[tuple[str, int]]:
        """Return name and step of each metric that is logged."""
        names = self._client.get_run(self.id).data.metrics
        own = [name for name in names if not name.startswith(SYSTEM_METRICS)]
        return {(name, point.step) for name in own for point in self._client.get_metric_history(self.id, name)}


class _Monitor(SystemMetricsMonitor):  # type: ignore[misc]
    """MLflow's own, but one that goes on when a server that was away is back."""

    def monitor(self) -> None:
        while not self._shutdown_event.is_set():
            super().monitor()
            self._shutdown_event.wait(SECONDS_BETWEEN_TRIES)


@contextmanager
def connected() -> Iterator[None]:
    """Point MLflow to where runs and models are tracked; what it refuses within becomes a ValueError of one line."""
    address = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{DEFAULT_DATABASE}"
    mlflow.set_tracking_uri(address)
    try:
        if address.startswith(("http://", "https://")):
            _knock(f"{address.rstrip('/')}/health")
        mlflow.MlflowClient().search_experiments(max_results=1)
    except (MlflowException, OSError) as error:
        raise ValueError(
            f"MLflow at {address} does not answer ({_first_line(error)}): start it, or set MLFLOW_TRACKING_URI"
        ) from error
    try:
        yield
    except MlflowException as error:
        raise ValueError(f"MLflow at {address}: {_first_line(error)}") from error


@contextmanager
def run(
    experiment: str, name: str, key: Mapping[str, str], params: Mapping[str, Any], *, system_metrics: bool
) -> Iterator[Run]:
    """Write a run of `experiment`: a new one, or the one that has the tags `key` already.

    It is MLflow's active run meanwhile. It ends FINISHED, KILLED on Ctrl-C and the like, FAILED on any other exception.
    """
    with connected():
        current = Run(_begun(experiment, name, key, params))
        mlflow.start_run(run_id=current.id, log_system_metrics=False)
        monitor = _Monitor(current.id, resume_logging=True)
        status = RunStatus.FAILED
        try:
            if system_metrics:
                monitor.start()
            yield current
            status = RunStatus.FINISHED
        except KeyboardInterrupt:
            status = RunStatus.KILLED
            raise
        finally:
            if not current.send():
                print("MLflow did not come back: it lacks the last metrics", file=sys.stderr)
            monitor.finish()
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


def _begun(experiment: str, name: str, key: Mapping[str, str], params: Mapping[str, Any]) -> str:
    """Return the id of the run with the tags `key`, made if there is none; it has its parameters."""
    client, experiment_id = mlflow.MlflowClient(), _experiment(experiment)
    found = find(experiment, key)
    run_id = found or str(client.create_run(experiment_id, run_name=name, tags=dict(key)).info.run_id)
    if found is None or not client.get_run(found).data.params:  # else MLflow refuses those that are not the same
        flat = [Param(k, str(v)[:LONGEST_VALUE]) for k, v in flattened(params).items()]
        for first in range(0, len(flat), PARAMS_PER_REQUEST):
            client.log_batch(run_id, params=flat[first : first + PARAMS_PER_REQUEST])
    return run_id


def _experiment(name: str) -> str:
    """Return the id of the experiment, made if there is none, back from the bin if it was deleted."""
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=_beside_database()))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:  # else somebody made it just now
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _beside_database() -> str | None:
    """Return where a SQLite store keeps its files (MLflow would take the current directory); a server knows itself."""
    address = mlflow.get_tracking_uri()
    if not address.startswith(SQLITE):
        return None
    return (Path(address.removeprefix(SQLITE)).absolute().parent / "mlartifacts").as_uri()


def _knock(address: str) -> None:
    """Raise OSError if nobody answers; any answer will do."""
    try:
        urllib.request.urlopen(address, timeout=SECONDS_TO_ANSWER).close()
    except urllib.error.HTTPError as answer:
        answer.close()


def _first_line(error: Exception) -> str:
    """Return the line that says what happened; SQLAlchemy may put one about sessions before it."""
    lines = [line for line in str(error).splitlines() if not line.startswith("(raised as a result of")]
    return (lines or [type(error).__name__])[0][:200]
