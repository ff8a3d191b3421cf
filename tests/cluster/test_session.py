"""A Ray session: what its processes read from the environment, and that os.environ is as before afterwards."""

import os
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from platform import python_version
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import pytest
import ray
from factories import pythonpath

from pipeline.cluster import ray_internals, tasks
from pipeline.cluster import session as session_module
from pipeline.cluster.resources import ClusterState
from pipeline.cluster.session import SETTINGS_FRAME, session

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings


def variable_of_task(name: str) -> str | None:
    return os.environ.get(name)


def niceness_of_task(_: int) -> int:
    return os.nice(0)


def test_a_session_sets_what_its_processes_need_and_restores_os_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "RAY_worker_niceness", "RAY_ADDRESS", "DGUNET_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", pythonpath(__file__))
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PRINT_PATCH", "1")
    monkeypatch.setenv("DGUNET_TIMEOUT_SECONDS", "7")
    before = dict(os.environ)
    names = [
        "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "RAY_TRAIN_ENABLE_PRINT_PATCH", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S",
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S",
    ]  # fmt: skip
    with session():
        assert os.environ["DGUNET_STORAGE"].endswith(".cache/runs")
        assert sorted(tasks.map_unordered(variable_of_task, names)) == ["0.2", "1", "1000", "7", "passive"]
        (niceness,) = tasks.map_unordered(niceness_of_task, [0])
        assert niceness == os.nice(0)
    assert dict(os.environ) == before


@contextmanager
def listening(says: bytes) -> Iterator[str]:
    """The address of a server that sends `says` to everybody who connects, and then waits."""
    end = threading.Event()

    class Silent(BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(says)
            end.wait()

    # Its end closes all connections, also that of somebody who connects afterwards: no later test inherits a socket.
    with ThreadingTCPServer(("127.0.0.1", 0), Silent) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            end.set()
            server.shutdown()
            thread.join()


class Joined:
    dashboard_url = ""


def test_a_session_that_cannot_start_restores_os_environ_too(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {}

    def init(address: str, **arguments: Any) -> Joined:
        options.update(arguments)
        return Joined()

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(session_module, "check_cluster", lambda address: None)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth1")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("DGUNET_SHARD_CACHE", raising=False)
    before = dict(os.environ)
    with pytest.raises(ValueError, match="the Ray cluster head:6379 has no dashboard"), session(dashboard=True):
        pass
    assert dict(os.environ) == before
    forwarded: Mapping[str, str] = options["runtime_env"]["env_vars"]
    assert forwarded["RAY_ADDRESS"] == "head:6379"
    assert forwarded["NCCL_DEBUG"] == "WARN"
    assert forwarded["GLOO_SOCKET_IFNAME"] == "eth1"
    assert forwarded["AWS_ENDPOINT_URL"] == "http://minio:9000"
    assert forwarded["GOMP_SPINCOUNT"] == "1000"
    assert forwarded["RAY_TRAIN_ENABLE_PRINT_PATCH"] == "0"
    assert "dgunet-shards-" in forwarded["DGUNET_SHARD_CACHE"]
    assert not {"OMP_WAIT_POLICY", "PATH", "HOME"} & forwarded.keys()


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_an_address_where_no_head_answers_is_refused_soon(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    monkeypatch.setattr(session_module, "SECONDS_TO_ANSWER", 0.2)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was asked"))
    with listening(b"") as silent, listening(b"SSH-2.0-OpenSSH_9.2\r\n") as other:
        refused = {f"{prefix}{silent}": "no Ray head answers", f"{prefix}{other}": "is not a Ray head"}
        refused |= {f"{prefix}127.0.0.1:1": "cannot be reached", f"{prefix}[::1]:1": "cannot be reached"}
        refused |= {f"{prefix}no-such-host.invalid:6379": "cannot be reached", "head": "should be HOST:PORT"}
        for address, message in refused.items():
            monkeypatch.setenv("RAY_ADDRESS", address)
            with pytest.raises(ValueError, match=message) as error, session():
                pass
            assert str(error.value).startswith(f"RAY_ADDRESS={address}: ")
            assert "\n" not in str(error.value)


def state(**differing: Any) -> ClusterState:
    """The state of a cluster that this process can join, but for what differs."""
    here = {"sockets": {"127.0.0.1": __file__}, "ray_version": ray.__version__, "python_version": python_version()}
    return ClusterState(**{"nodes": {"127.0.0.1": {"CPU": 2.0}}, **here, **differing})


def raising(error: Exception) -> Any:
    def raise_it(*_: Any) -> None:
        raise error

    return raise_it


def test_an_address_that_speaks_grpc_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[str] = []
    monkeypatch.setattr(ray_internals, "cluster_state", lambda *_: state())

    def init(address: str, **_: Any) -> Joined:
        joined.append(address)
        return Joined()

    monkeypatch.setattr(ray, "init", init)
    with listening(SETTINGS_FRAME) as head:
        monkeypatch.setenv("RAY_ADDRESS", head)
        with session() as dashboard:
            assert (joined, dashboard) == ([head], "")
        monkeypatch.setattr(Joined, "dashboard_url", "10.77.0.1:8265")
        with session() as dashboard:
            assert dashboard == "http://10.77.0.1:8265"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda *_: state(sockets={"127.0.0.1": "/no/such/socket"}), "this machine is not a node of that cluster"),
        (lambda *_: state(sockets={"192.0.2.1": __file__}), "this machine is not a node of that cluster"),
        (lambda *_: state(ray_version="2.59.0"), "the cluster has Ray 2.59.0 and Python"),
        (lambda *_: state(python_version="3.12.1"), "and Python 3.12.1, this machine Ray"),
        (raising(PermissionError("no")), "the head refuses the token: set RAY_AUTH_MODE=token"),
        (raising(OSError("timed out")), "the head does not answer (timed out)"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch, answer: Any, message: str
) -> None:
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was asked"))
    monkeypatch.setattr(ray_internals, "cluster_state", answer)
    with listening(SETTINGS_FRAME) as head:
        monkeypatch.setenv("RAY_ADDRESS", head)
        with pytest.raises(ValueError, match=re.escape(message)) as error, session():
            pass
        assert str(error.value).startswith(f"RAY_ADDRESS={head}: ")
        assert "\n" not in str(error.value)


def test_a_folder_that_is_too_deep_for_sockets_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["folder"] * 12)
    deep.mkdir(parents=True)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(deep))
    monkeypatch.setenv("PYTHONPATH", pythonpath(__file__))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with session():
        assert list(tasks.map_unordered(variable_of_task, ["TMPDIR"])) == [str(deep)]
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="too long a path for Ray's sockets: set RAY_TMPDIR"), session():
        pass


def test_what_ray_prints_about_dead_nodes_is_discarded_in_a_session(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def print_as_ray(text: str) -> None:  # as Ray's thread does that listens to the cluster
        ray._private.worker.print_to_stdstream({"lines": [text], "pid": "raylet", "is_err": False}, ignore_prefix=False)

    options: dict[str, Any] = {}

    def init(*_: Any, **arguments: Any) -> Joined:
        options.update(arguments)
        print_as_ray("Raylet is terminated, inside")
        return Joined()

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(session_module, "check_cluster", lambda address: None)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with session():
        print_as_ray("Raylet is terminated, too")
    assert (options["log_to_driver"], options["logging_level"]) == (False, "ERROR")
    assert capsys.readouterr().out == ""
    print_as_ray("Raylet is terminated, afterwards")
    assert "Raylet is terminated, afterwards" in capsys.readouterr().out
