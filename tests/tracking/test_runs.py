"""Runs in MLflow, against a real SQLite store and a real server that is killed and started again."""

import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from factories import PROJECT
from mlflow.exceptions import MlflowException
from processes import WITHOUT_JOBS, until

from pipeline.tracking import runs

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning:mlflow")
KEY = {"fingerprint": "derain-1"}
SYSTEM_METRICS = {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}
PARAMS = {"train": {"learning_rate": 0.002, "network": {"width": 16}}, "seed": 1}


def run(key=KEY, params=PARAMS, *, system_metrics=False):
    return runs.run("derain", "a run", key, params, system_metrics=system_metrics)


def written(run_id: str) -> mlflow.entities.Run:
    return mlflow.MlflowClient().get_run(run_id)


def curve(run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in mlflow.MlflowClient().get_metric_history(run_id, name))


def test_the_environment_is_as_before_when_mlflow_is_no_longer_connected(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    before = dict(os.environ)
    with runs.connected():
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7", "what the user has set stays"
        assert os.environ["MLFLOW_TRACKING_URI"] == store
    assert dict(os.environ) == before


def test_importing_the_package_does_not_change_the_environment():
    code = (
        "import os, mlflow, mlflow.pyfunc; before = dict(os.environ)\n"
        "import pipeline.tracking.registry, pipeline.tracking.runs, pipeline.tracking.trials\n"
        "assert dict(os.environ) == before"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=PROJECT, check=True)


def test_a_run_holds_its_params_curves_tags_and_files(store, tmp_path):
    (tmp_path / "report" / "tune").mkdir(parents=True)
    (tmp_path / "report" / "gallery.html").write_text("before, after")
    (tmp_path / "report" / "tune" / "other.csv").write_text("not of this run")
    with run() as current:
        for step in (100, 200):
            current.log({"loss": 1 / step, "val_psnr": 30 + step / 100}, step)
        current.tag({"data": "abc"})
        current.log_files(tmp_path / "report", "report")
    found = written(current.id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"train.learning_rate": "0.002", "train.network.width": "16", "seed": "1"}
    assert found.data.tags.items() >= {**KEY, "data": "abc", "mlflow.runName": "a run"}.items()
    assert curve(current.id, "loss") == [(100, 0.01), (200, 0.005)]
    assert curve(current.id, "val_psnr") == [(100, 31), (200, 32)]
    listed = mlflow.MlflowClient().list_artifacts(current.id, "report")
    assert [file.path for file in listed] == ["report/gallery.html"]
    assert (tmp_path / "mlartifacts").is_dir(), "files lie beside the database, not in the current directory"


def test_a_line_says_where_a_run_is_seen(store, monkeypatch):
    with run() as current:
        assert current.places("") == "MLflow run: `make ui`"
        line = current.places("http://10.77.0.1:8265")
        assert line == "MLflow run: `make ui`; Ray's dashboard: http://10.77.0.1:8265"
        experiment = written(current.id).info.experiment_id
        for address in ("https://mlflow.lab:5000/", "https://ann:secret@mlflow.lab:5000"):
            monkeypatch.setattr(runs.mlflow, "get_tracking_uri", lambda: address)  # noqa: B023
            url = f"https://mlflow.lab:5000/#/experiments/{experiment}/runs/{current.id}"
            assert current.places("") == f"MLflow run: {url}"
        monkeypatch.setattr(runs.mlflow, "get_tracking_uri", lambda: "postgresql://ann:secret@db/mlflow")
        assert current.places("") == f"MLflow run: {current.id} in postgresql"
        monkeypatch.undo()


def test_equal_runs_share_one_and_a_run_that_failed_is_continued(store):
    with pytest.raises(RuntimeError), run() as first:
        first.log({"loss": 0.5}, 10)
        raise RuntimeError("something failed")
    assert written(first.id).info.status == "FAILED"
    with run(params={**PARAMS, "evaluate": "changed since"}) as second:
        second.log({"loss": 0.4}, 20)
    assert second.id == first.id
    assert curve(second.id, "loss") == [(10, 0.5), (20, 0.4)]
    assert written(second.id).info.status == "FINISHED"
    with run({"fingerprint": "derain-2"}) as other:
        pass
    assert other.id != first.id


def test_a_step_that_is_reported_again_is_logged_once(store):
    with run() as first:
        first.log({"loss": 0.5, "val_psnr": 30.0}, 10)
        first.log({"loss": 0.5}, 10)
    with run() as second:
        second.log({"loss": 0.5, "val_psnr": 30.0}, 10)
        second.log({"loss": 0.4, "val_psnr": 31.0}, 20)
    assert curve(second.id, "loss") == [(10, 0.5), (20, 0.4)]
    assert curve(second.id, "val_psnr") == [(10, 30.0), (20, 31.0)]


def test_lost_reports_are_filled_in_from_the_history(store):
    with run() as current:
        current.log({"step": 10, "loss": 0.5}, 10)
        current.log({"step": 30, "loss": 0.3}, 30)
        current.log_history([{"step": step, "loss": 1 - step / 20} for step in (10, 20, 30)])
    assert curve(current.id, "loss") == [(10, 0.5), (20, 0.0), (30, 0.3)]


def test_parameters_that_a_crashed_run_lacks_are_logged_when_it_is_continued(store):
    with run(params={}) as first:
        pass
    with run() as second:
        pass
    assert second.id == first.id
    assert written(first.id).data.params["seed"] == "1"


def test_any_number_of_params_and_metrics_is_logged_and_nan_is_kept(store):
    params = {"long": "x" * 10_000, **{f"p{number}": number for number in range(250)}}
    with run(params=params) as current:
        current.log({f"m{number}": float(number) for number in range(2500)}, 1)
        current.log({"BSD68 σ 25.psnr": 29.5, "loss": math.nan}, 1)
    found = written(current.id)
    assert len(found.data.params) == 251
    assert len(found.data.metrics) == 2502
    assert math.isnan(found.data.metrics["loss"])


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (SystemExit, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_run_has_the_status_of_its_end(store, error, status):
    with pytest.raises(error), run() as current:
        raise error
    assert written(current.id).info.status == status
    assert mlflow.active_run() is None


def test_an_experiment_that_was_deleted_is_restored(store):
    with run() as first:
        pass
    client = mlflow.MlflowClient()
    client.delete_experiment(client.get_experiment_by_name("derain").experiment_id)
    with run({"fingerprint": "derain-2"}) as second:
        pass
    assert written(second.id).info.experiment_id == written(first.id).info.experiment_id


def test_system_metrics_are_in_the_run(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with run(system_metrics=True) as current:
        until(lambda: set(written(current.id).data.metrics) >= SYSTEM_METRICS)


class UnreliableServer:
    """Makes MLflow's requests that log metrics fail or hang."""

    def __init__(self, monkeypatch) -> None:
        self.fails, self.failures = False, 0
        self.answers = threading.Event()
        self.answers.set()
        original = mlflow.MlflowClient.log_batch

        def log_batch(client, *arguments, **named):
            self.answers.wait()
            if self.fails:
                self.failures += 1
                raise MlflowException("no answer\nand a second line")
            return original(client, *arguments, **named)

        monkeypatch.setattr(mlflow.MlflowClient, "log_batch", log_batch)
        monkeypatch.setattr(runs, "SECONDS_BETWEEN_TRIES", 0.05)
        monkeypatch.setattr(runs, "SECONDS_TO_WAIT", 0.5)


def test_metrics_wait_for_a_server_that_does_not_answer_and_two_lines_say_so(store, monkeypatch, capsys):
    server = UnreliableServer(monkeypatch)
    with run() as current:
        current.log({"loss": 1.0}, 1)
        server.fails = True
        for step in (2, 3, 4):
            current.log({"loss": 1 / step}, step)
        current.tag({"data": "abc"})
        until(lambda: server.failures)
        server.fails = False
        current.log({"loss": 1 / 5}, 5)
    assert curve(current.id, "loss") == [(step, 1 / step) for step in (1, 2, 3, 4, 5)]
    assert written(current.id).data.tags["data"] == "abc"
    assert capsys.readouterr().err.splitlines() == [
        "MLflow does not answer; metrics are sent when it does (no answer)",
        "MLflow answers again; all metrics are sent",
    ]


def test_a_server_that_hangs_delays_nothing(store, monkeypatch):
    server = UnreliableServer(monkeypatch)
    monkeypatch.setattr(runs, "SECONDS_TO_WAIT", 0.01)
    with run() as current:
        server.answers.clear()
        for step in range(5):
            current.log({"loss": float(step)}, step)
        assert curve(current.id, "loss") == []
        server.answers.set()
    assert len(curve(current.id, "loss")) == 5


def test_a_server_that_never_answers_does_not_fail_the_body_of_a_run(store, monkeypatch, capsys):
    server = UnreliableServer(monkeypatch)
    with run() as current:
        server.fails = True
        current.log({"loss": 1.0}, 1)
        current.tag({"data": "abc"})
    assert "the run lacks its last metrics" in capsys.readouterr().err


def test_a_request_that_mlflow_refuses_is_one_line_with_its_address(store):
    with pytest.raises(ValueError, match=r"^MLflow at sqlite:///.*mlflow.db: no such thing$"), run():
        raise MlflowException("no such thing\ntraceback")


def test_an_address_without_a_server_is_reported_at_once(monkeypatch):
    monkeypatch.setattr(mlflow.MlflowClient, "search_experiments", lambda *_, **__: pytest.fail("asked MLflow"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed.getsockname()[1]}")
        unanswered = r"^MLflow at http://127.* does not answer .*refused.* set MLFLOW_TRACKING_URI$"
        with pytest.raises(ValueError, match=unanswered), run():
            pass


def test_a_server_that_accepts_connections_but_never_answers_is_reported(monkeypatch):
    monkeypatch.setattr(runs, "SECONDS_TO_ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ValueError, match=r"does not answer .*timed out.*MLFLOW_TRACKING_URI"), run():
            pass


class Server:
    """`mlflow server` over a SQLite file and a folder, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.process = folder, None

    def start(self, port: int = 0) -> None:
        """Start it at `port`, or at a port that it chooses."""
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination", f"{self.folder}/files",
        ]  # fmt: skip
        with (self.folder / "server.log").open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True, env=os.environ | WITHOUT_JOBS
            )
        self.port = int(until(self.listening).group(1))
        self.address = f"http://127.0.0.1:{self.port}"
        urllib.request.urlopen(f"{self.address}/health").close()

    def listening(self) -> re.Match[str] | None:
        """The port in its log, once it has started."""
        log = (self.folder / "server.log").read_text()
        assert self.process.poll() is None, log
        return re.search(r"running on http://127\.0\.0\.1:(\d+)", log)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path, empty_store, monkeypatch) -> Iterator[Server]:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    server = Server(tmp_path)
    try:
        server.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        yield server
    finally:
        server.kill()


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again_has_all_metrics_in_the_end(server, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.5")
    monkeypatch.setattr(runs, "SECONDS_BETWEEN_TRIES", 1.0)

    def count() -> int:
        return len(curve(current.id, "system/cpu_utilization_percentage"))

    with run(system_metrics=True) as current:
        for step in range(5):
            current.log({"loss": 1 / (1 + step)}, step)
        before = until(count)
        server.kill()
        for step in range(5, 10):
            current.log({"loss": 1 / (1 + step)}, step)  # training goes on without it
        server.start(server.port)
        current.log({"loss": 1 / 11}, 10)
        current.tag({"data": "abc"})
        until(lambda: count() > before)  # system metrics are logged again, too
        (server.folder / "report").mkdir()
        (server.folder / "report" / "gallery.html").write_text("before, after")
        current.log_files(server.folder / "report", "report")
    assert curve(current.id, "loss") == [(step, 1 / (1 + step)) for step in range(11)]
    assert written(current.id).info.status == "FINISHED"
    assert written(current.id).data.tags["data"] == "abc"
    assert [file.path for file in mlflow.MlflowClient().list_artifacts(current.id, "report")] == ["report/gallery.html"]
    assert "View run" not in capsys.readouterr().out
