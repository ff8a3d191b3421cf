"""A run in MLflow: parameters, curves, system metrics, files.

Runs are stored in mlflow.db (SQLite) in the checkout, or at MLFLOW_TRACKING_URI. Training with equal inputs continues
one run: after its process died, a metric still has one value per step, however often the step is reported. A tracking
server that does not answer does not stop training: metrics are kept and sent when it answers again.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from dgunet.hub.registry import sqlite_address, sqlite_path
from pipeline.runtime.files import PROJECT

ENVIRONMENT = {  # MLflow's variables while connected; values that the user has set are kept
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # with MLflow's 7, minutes pass without a message if the server is down
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
ADDRESS = "MLFLOW_TRACKING_URI"
DEFAULT_DATABASE = PROJECT / "mlflow.db"
LONGEST_VALUE = 500  # MLflow refuses longer parameters
METRICS_PER_REQUEST, PARAMS_PER_REQUEST = 1000, 100  # MLflow refuses more
SYSTEM_METRICS = "system/"
LOCK_FILE = "dvc.lock"
SECONDS_TO_ANSWER = 10.0  # limit for the answer to the first request
SECONDS_TO_WAIT = 2.0  # for metrics to be sent; sending then goes on in the background
SECONDS_BETWEEN_TRIES = 10.0
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("mlflow.system_metrics").setLevel(
    logging.CRITICAL
)  # `Run` reports once that a server does not answer
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it also raises what it logs
logging.getLogger("alembic").setLevel(logging.WARNING)


class Run:
    """One MLflow run that is being written.

    A thread sends what is logged, so a server that hangs does not delay training.
    """

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self._client = mlflow.MlflowClient()
        found = self._client.get_run(run_id)
        self._experiment_id = found.info.experiment_id
        self._logged = self._logged_points(found.data.metrics)
        self._metrics: list[Metric] = []
        self._tags: dict[str, str] = {}
        self._unreachable = False
        self._sending = threading.Lock()
        self._sender = threading.Thread()

    def log(self, metrics: Mapping[str, float | int], step: int) -> None:
        """Log the metrics that are not logged yet at `step`."""
        now = int(time.time() * 1000)
        new = [(name, step) for name in metrics if (name, step) not in self._logged]
        self._logged.update(new)
        self._metrics += [Metric(name, float(metrics[name]), now, step) for name, _ in new]
        self._start_sending()

    def log_history(self, history: Sequence[Mapping[str, float | int]]) -> None:
        """Log the points of `history` that are not logged yet: reports may have been lost. Each entry has a `step`."""
        for metrics in history:
            self.log(metrics, int(metrics["step"]))

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._tags |= tags
        self._start_sending()

    def log_lock_file(self, path: Path) -> None:
        """Log a dvc.lock as an artifact: `make gc` keeps its objects while a registered version refers to the run."""
        self._client.log_artifact(self.id, str(path))

    def log_files(self, folder: Path, name: str) -> None:
        """Log the files of `folder`, without its subfolders, as artifacts under `name`."""
        for path in sorted(folder.iterdir()):
            if path.is_file():
                self._client.log_artifact(self.id, str(path), name)

    def send(self) -> bool:
        """Send everything that is not sent yet; return whether that succeeded."""
        with self._sending:
            while self._metrics or self._tags:
                metrics, tags = self._metrics[:METRICS_PER_REQUEST], dict(self._tags)
                try:
                    self._client.log_batch(self.id, metrics, tags=[RunTag(*tag) for tag in tags.items()])
                except MlflowException as error:
                    reason = _first_line(error)
                    self._report(f"does not answer; metrics are sent when it does ({reason})", unreachable=True)
                    return False
                del self._metrics[: len(metrics)]
                self._tags = {name: value for name, value in self._tags.items() if tags.get(name) != value}
            self._report("answers again; all metrics are sent", unreachable=False)
            return True

    def places(self, dashboard: str) -> str:
        """Return a line that says where to see this run: in MLflow, and on Ray's dashboard.

        User and password in the address of an MLflow server are left out.

        Args:
            dashboard: URL of Ray's dashboard; "" if there is none.
        """
        address = mlflow.get_tracking_uri()
        parts = urllib.parse.urlsplit(address)
        place = "`make ui`" if sqlite_path(address) else f"{self.id} in {parts.scheme}"
        if parts.scheme in ("http", "https"):
            server = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
            place = f"{server}/#/experiments/{self._experiment_id}/runs/{self.id}"
        return f"MLflow run: {place}" + (f"; Ray's dashboard: {dashboard}" if dashboard else "")

    def _start_sending(self) -> None:
        if not self._sender.is_alive():
            self._sender = threading.Thread(target=self._send_until_done, daemon=True)
            self._sender.start()
        if not self._unreachable:
            self._sender.join(SECONDS_TO_WAIT)

    def _send_until_done(self) -> None:
        while not self.send():
            time.sleep(SECONDS_BETWEEN_TRIES)

    def _report(self, message: str, *, unreachable: bool) -> None:
        """Print `message` if the server has become reachable or unreachable."""
        if unreachable != self._unreachable:
            self._unreachable = unreachable
            print(f"MLflow {message}", file=sys.stderr, flush=True)

    def _logged_points(self, names: Iterable[str]) -> set[tuple[str, int]]:
        """Return name and step of each point that is already logged for the metrics `names`."""
        own = [name for name in names if not name.startswith(SYSTEM_METRICS)]
        return {(name, point.step) for name in own for point in self._client.get_metric_history(self.id, name)}


class _Monitor(SystemMetricsMonitor):  # type: ignore[misc]
    """MLflow's monitor of system metrics, restarted after errors; MLflow's own stops at the first error."""

    def monitor(self) -> None:
        while not self._shutdown_event.is_set():
            super().monitor()
            self._shutdown_event.wait(SECONDS_BETWEEN_TRIES)


def tracking_address() -> str:
    """Return the address of the tracking store and registry: MLFLOW_TRACKING_URI, else a database in the checkout."""
    return os.environ.get(ADDRESS) or sqlite_address(DEFAULT_DATABASE)


@contextmanager
def connected() -> Iterator[None]:
    """Connect MLflow to the tracking store and registry; afterwards the environment is restored.

    Raises:
        ValueError: the store does not answer, or MLflow refuses a request made inside; the message has one line.
    """
    address = tracking_address()
    with _environment():
        mlflow.set_tracking_uri(address)  # sets the variable, too
        try:
            if address.startswith(("http://", "https://")):
                _check_server(f"{address.rstrip('/')}/health")
            mlflow.MlflowClient().search_experiments(max_results=1)
        except (MlflowException, OSError) as error:
            if isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403):
                raise ValueError(
                    f"MLflow at {address} refuses the login: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
                ) from None
            raise ValueError(
                f"MLflow at {address} does not answer ({_first_line(error)}): start it, or set {ADDRESS}"
            ) from error
        try:
            yield
        except MlflowException as error:
            raise ValueError(f"MLflow at {address}: {_first_line(error)}") from error


@contextmanager
def run(
    experiment: str, name: str, key: Mapping[str, str], params: Mapping[str, Any], *, system_metrics: bool
) -> Iterator[Run]:
    """Open a run for writing; inside, it is MLflow's active run.

    It ends as FINISHED, as KILLED on KeyboardInterrupt, as FAILED on any other exception.

    Args:
        experiment: name of the experiment, usually the task.
        name: name of a new run.
        key: tags that identify the run; a run of the experiment that has them is continued.
        params: parameters, nested mappings allowed.
        system_metrics: whether to log CPU, memory, disk and network use.

    Raises:
        ValueError: as `connected`.
    """
    with connected():
        current = Run(_find_or_create_run(experiment, name, key, params))
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
                print("MLflow does not answer: the run lacks its last metrics", file=sys.stderr)
            monitor.finish()
            try:
                mlflow.end_run(RunStatus.to_string(status))
            except MlflowException as error:
                print(f"MLflow: the run could not be closed ({_first_line(error)})", file=sys.stderr)


def find_run(experiment: str, tags: Mapping[str, str]) -> str | None:
    """Return the id of the newest run of `experiment` with these tags, None if there is none."""
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    runs = client.search_runs([found.experiment_id], condition, max_results=1)
    return runs[0].info.run_id if runs else None


def flattened(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested `params` as one mapping with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _find_or_create_run(experiment: str, name: str, key: Mapping[str, str], params: Mapping[str, Any]) -> str:
    """Return the id of the run with the tags `key`; create it if there is none; log its parameters if it has none."""
    client, experiment_id = mlflow.MlflowClient(), _find_or_create_experiment(experiment)
    found = find_run(experiment, key)
    run_id = found or str(client.create_run(experiment_id, run_name=name, tags=dict(key)).info.run_id)
    if found is None or not client.get_run(found).data.params:  # MLflow refuses to change a parameter
        flat = [Param(k, str(v)[:LONGEST_VALUE]) for k, v in flattened(params).items()]
        for first in range(0, len(flat), PARAMS_PER_REQUEST):
            client.log_batch(run_id, params=flat[first : first + PARAMS_PER_REQUEST])
    return run_id


def _find_or_create_experiment(name: str) -> str:
    """Return the id of the experiment; create it if there is none, restore it if it was deleted."""
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=_artifact_folder()))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:  # else another process has just created it
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _artifact_folder() -> str | None:
    """Return the folder of files beside a SQLite store (MLflow takes the current directory); None for a server."""
    database = sqlite_path(mlflow.get_tracking_uri())
    return (database.absolute().parent / "mlartifacts").as_uri() if database else None


def _check_server(address: str) -> None:
    """Raise OSError if no server answers; any answer will do."""
    try:
        urllib.request.urlopen(address, timeout=SECONDS_TO_ANSWER).close()
    except urllib.error.HTTPError as answer:
        answer.close()


@contextmanager
def _environment() -> Iterator[None]:
    """Set MLflow's environment variables, and restore them afterwards. MLflow reads them at every request."""
    before = {name: os.environ.get(name) for name in (*ENVIRONMENT, ADDRESS)}
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name, former in before.items():
            os.environ.pop(name, None)
            if former is not None:
                os.environ[name] = former


def _first_line(error: Exception) -> str:
    """Return the line that says what happened; SQLAlchemy may put a line about sessions before it."""
    lines = [line for line in str(error).splitlines() if not line.startswith("(raised as a result of")]
    return (lines or [type(error).__name__])[0][:200]
