"""What a run needs is checked before it starts: each fault is a line with variable, address and advice."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from processes import S3Server

from pipeline import doctor
from pipeline.cluster.session import NotANode


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "DGUNET_SHARDS", "DGUNET_REMOTE", "DGUNET_WORKERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DGUNET_STORAGE", str(tmp_path / "runs"))


def test_this_machine_alone_needs_a_folder_that_can_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor.main([])
    assert f"ok      DGUNET_STORAGE: {tmp_path}/runs\n" in capsys.readouterr().out
    assert list((tmp_path / "runs").iterdir()) == []


def test_every_fault_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DGUNET_STORAGE", str(tmp_path / "file" / "runs"))
    monkeypatch.setenv("DGUNET_SHARDS", "nosuch://place")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ValueError, match="checks that failed: Ray cluster, MLflow, DGUNET_STORAGE, DGUNET_SHARDS"):
        doctor.main([])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    for line, start in zip(
        lines,
        [
            "RAY_ADDRESS=127.0.0.1:1: cannot be reached",
            "MLflow at http://127.0.0.1:1 does not answer",
            f"DGUNET_STORAGE={tmp_path}/file/runs: cannot be used",
            "DGUNET_SHARDS=nosuch://place: cannot be used",
        ],
        strict=True,
    ):
        assert line.startswith(f"failed  {start}")


class Refusing(BaseHTTPRequestHandler):
    """A server that knows no login."""

    def do_GET(self) -> None:
        self.send_response(401 if "api" in self.path else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Write no log."""


def test_a_refused_login_is_not_taken_for_a_server_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(ValueError, match="refuses the login: set MLFLOW_TRACKING_USERNAME"):
            doctor._check_mlflow()
        server.shutdown()


def test_buckets_are_written_to_and_left_empty(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = s3_server.client()
    monkeypatch.setenv("DGUNET_REMOTE", "s3://bucket/dvc")
    doctor.main([])
    assert "ok      DGUNET_REMOTE: s3://bucket/dvc" in capsys.readouterr().out
    assert "Contents" not in client.list_objects_v2(Bucket="bucket")
    for variables, message in (
        ({"DGUNET_REMOTE": "s3://nobucket/dvc"}, "there is no such bucket"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "cannot be reached"),
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match="checks that failed: DGUNET_REMOTE"):
            doctor.main([])
        assert message in capsys.readouterr().err


def test_nodes_may_take_a_while_to_join(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    answers = iter([NotANode("not yet"), doctor.TooFewNodes("not yet"), "head:6379, 2 nodes", "head:6379, 2 nodes"])

    def check(*_: object) -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(doctor, "_check_ray", check)
    monkeypatch.setattr(doctor, "nodes_without", lambda *_: [])
    doctor.main(["--wait", "60"])
    printed = capsys.readouterr()
    assert "ok      Ray cluster: head:6379, 2 nodes" in printed.out
    assert printed.err == "waiting for up to 60 s for nodes to join: not yet\n"


def test_a_folder_of_one_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setenv("DGUNET_SHARDS", "memory://shards")
    monkeypatch.setattr(doctor, "_check_ray", lambda *_: "head:6379")
    monkeypatch.setattr(doctor, "nodes_without", lambda *_: ["10.0.0.2"])
    with pytest.raises(ValueError, match="shared folders"):
        doctor.main([])
    assert f"DGUNET_STORAGE={tmp_path}/runs: the nodes 10.0.0.2 do not see this folder" in capsys.readouterr().err


def test_a_check_that_does_not_end_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits = threading.Event()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setattr(doctor, "SECONDS", 0.1)
    monkeypatch.setattr(doctor, "check_storage", lambda variable, place: place)
    monkeypatch.setattr(doctor, "_check_mlflow", lambda: str(waits.wait(30)))
    with pytest.raises(ValueError, match="checks that failed: MLflow"):
        doctor.main([])
    waits.set()
    line = "failed  MLFLOW_TRACKING_URI=http://mlflow:5000: no answer within 0.1 s: correct the address, or open the "
    assert capsys.readouterr().err == f"{line}network to it\n"
