"""A Ray session: what its processes read from the environment, and that os.environ is as before afterwards."""

import os
from collections.abc import Mapping
from typing import Any

import pytest
import ray
from factories import pythonpath

from pipeline.cluster import tasks
from pipeline.cluster.session import session

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings


def variable_of_task(name: str) -> str | None:
    return os.environ.get(name)


def test_a_session_sets_what_its_processes_need_and_restores_os_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "RAY_ADDRESS", "DGUNET_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", pythonpath(__file__))
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PRINT_PATCH", "1")
    monkeypatch.setenv("DGUNET_TIMEOUT_SECONDS", "7")
    before = dict(os.environ)
    names = [
        "OMP_WAIT_POLICY", "RAY_TRAIN_ENABLE_PRINT_PATCH", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S",
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S",
    ]  # fmt: skip
    with session():
        assert os.environ["DGUNET_STORAGE"].endswith(".cache/runs")
        assert sorted(tasks.map_unordered(variable_of_task, names)) == ["0.2", "1", "7", "passive"]
    assert dict(os.environ) == before


class Joined:
    dashboard_url = ""


def test_a_session_that_cannot_start_restores_os_environ_too(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {}

    def init(address: str, **arguments: Any) -> Joined:
        options.update(arguments)
        return Joined()

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("DGUNET_SHARD_CACHE", raising=False)
    before = dict(os.environ)
    with pytest.raises(ValueError, match="the Ray cluster head:6379 has no dashboard"), session(dashboard=True):
        pass
    assert dict(os.environ) == before
    forwarded: Mapping[str, str] = options["runtime_env"]["env_vars"]
    assert forwarded["RAY_ADDRESS"] == "head:6379"
    assert forwarded["AWS_ENDPOINT_URL"] == "http://minio:9000"
    assert forwarded["GOMP_SPINCOUNT"] == "1000"
    assert forwarded["RAY_TRAIN_ENABLE_PRINT_PATCH"] == "0"
    assert "dgunet-shards-" in forwarded["DGUNET_SHARD_CACHE"]
    assert not {"OMP_WAIT_POLICY", "PATH", "HOME"} & forwarded.keys()
