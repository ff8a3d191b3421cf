"""Metrics of a run: what the gauges hold, and that Ray exports them to Prometheus."""

import math
import os
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import ray
from factories import pythonpath, step_of
from processes import until

from pipeline.cluster import lease, resources, run_metrics, training_run
from pipeline.cluster.channel import RunListener
from pipeline.cluster.run_channel import RunChannel
from pipeline.cluster.run_metrics import RunMetrics
from pipeline.training.context import WorkerContext

STATS = {
    "loss": 0.25, "val_psnr": math.nan, "best_val_psnr": math.nan, "images_per_second": 12.0, "seconds_left": 65.0,
    "waiting_for_data": 0.125,
}  # fmt: skip


class FakeGauge:
    """Stores what was set since the last export, as Ray does."""

    exported: dict[str, tuple[str, float]] = {}  # noqa: RUF012 (each test gets its own)

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert description
        assert tag_keys == ("run",)
        self.name, self.run = name, ""

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self.run = tags["run"]

    def set(self, value: float) -> None:
        self.exported[self.name.removeprefix("dgunet_")] = (self.run, value)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, float]]:
    monkeypatch.setattr(run_metrics, "Gauge", FakeGauge)
    monkeypatch.setattr(FakeGauge, "exported", values := {})
    return values


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    times = [1000.0]
    monkeypatch.setattr(run_metrics.time, "monotonic", lambda: times[0])
    return times


def test_all_that_is_known_is_set_each_time_the_driver_polls(
    exported: dict[str, tuple[str, float]], now: list[float]
) -> None:
    channel = RunChannel("denoise-1")
    channel.poll()
    assert exported == {"lost_workers": ("denoise-1", 0.0), "checkpoint_age_seconds": ("denoise-1", 0.0)}
    channel.progress(3, STATS)
    now[0] += 30.0
    for _ in range(2):
        exported.clear()
        channel.poll()
        assert {name: value for name, (_, value) in exported.items()} == {
            "loss": 0.25, "images_per_second": 12.0, "waiting_share": 0.125, "lost_workers": 0.0,
            "checkpoint_age_seconds": 30.0,
        }  # fmt: skip
    channel.progress(4, STATS | {"val_psnr": 31.5, "loss": math.nan})
    channel.report({})
    channel.poll()
    assert exported["val_psnr"] == ("denoise-1", 31.5)
    assert exported["checkpoint_age_seconds"] == ("denoise-1", 0.0)
    assert math.isnan(exported["loss"][1]), "an alert looks for it"


def test_the_speed_is_0_without_workers_and_where_they_hang(
    exported: dict[str, tuple[str, float]], now: list[float]
) -> None:
    metrics = RunMetrics("denoise-1")

    def speed_after(seconds: float) -> float:
        now[0] += seconds
        metrics.refresh()
        return exported["images_per_second"][1]

    metrics.add_progress(STATS)
    assert speed_after(59.0) == 12.0
    metrics.add_progress(STATS)  # a step takes a minute here
    assert speed_after(120.0) == 12.0
    assert speed_after(60.0) == 0.0
    metrics.add_progress(STATS)
    assert speed_after(0.0) == 12.0
    metrics.stop_workers()
    assert speed_after(0.0) == 0.0


def test_lost_workers_are_added_up(exported: dict[str, tuple[str, float]]) -> None:
    channel = RunChannel("denoise-1")
    for number in (1, 0, 2):
        channel.workers_started()
        channel.workers_gone("worker 0 died", number)
        channel.workers_gone()
    channel.poll()
    assert exported["lost_workers"] == ("denoise-1", 3.0)


@pytest.fixture
def exporting_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of the metrics of a Ray session on this machine."""
    monkeypatch.setenv("PYTHONPATH", pythonpath(__file__))
    monkeypatch.setenv("DGUNET_STORAGE", str(tmp_path / "storage"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(lease, "SECONDS_TO_SETTLE", 0.1)  # no other driver is there
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=2**27, _metrics_export_port=port,
    )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}/metrics"
    finally:
        ray.shutdown()


def train_until_stopped(folder: str, context: WorkerContext) -> None:
    """Is lost at step 2, then reports progress until the file `end` exists."""
    place, step = Path(folder), step_of(context)
    while not (place / "end").exists():
        step += 1
        context.progress(step, STATS | {"val_psnr": 31.5})
        checkpoint = place / f"made{step}"
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "step").write_text(str(step))
        context.report({"step": step}, checkpoint)
        if step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2)


def scraped(address: str, run: str) -> dict[str, float]:
    """The values of our metrics with the label of a run, without their prefix."""
    with urllib.request.urlopen(address, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = [re.fullmatch(rf'ray_dgunet_(\w+){{.*\brun="{run}".*}} (\S+)', line) for line in lines]
    return {match[1]: float(match[2]) for match in found if match}


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # Ray's own warnings
def test_ray_exports_the_metrics_of_a_run_and_forgets_them_after_its_end(exporting_ray: str, tmp_path: Path) -> None:
    run = ThreadPoolExecutor().submit(
        training_run.fit, partial(train_until_stopped, str(tmp_path)), name="denoise-7", into=tmp_path / "out",
        listener=RunListener(), resources=resources.WorkerResources(1, 1.0, 0.0),
    )  # fmt: skip

    def all_values() -> dict[str, float]:
        assert not run.done(), run.result()
        values = scraped(exporting_ray, "denoise-7") if (tmp_path / "made1").exists() else {}
        return values if values.get("lost_workers") == 1 and values.get("images_per_second") else {}

    try:
        first = until(all_values, 300)
        until(lambda: not run.done() and scraped(exporting_ray, "denoise-7") != first, 60)
        second = scraped(exporting_ray, "denoise-7")
    finally:
        (tmp_path / "end").touch()
    run.result(120)
    for values in (first, second):
        assert 0 <= values.pop("checkpoint_age_seconds") < 60
        assert values == {
            "loss": 0.25, "val_psnr": 31.5, "images_per_second": 12.0, "waiting_share": 0.125, "lost_workers": 1.0,
        }  # fmt: skip
    until(lambda: not scraped(exporting_ray, "denoise-7"), 90)
