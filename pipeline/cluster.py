"""Work on many processes and machines: the one place that knows Ray.

`session` joins the cluster that RAY_ADDRESS names, or starts Ray on this machine. `map_unordered` runs a function
over items. `fit` runs training workers that survive the death of any of them.

The environment says how large the machine is, never params.yaml: RAY_ADDRESS; DGUNET_WORKERS (default: one per GPU,
else one; "2:8": as many as the cluster has, between these); DGUNET_CPUS_PER_WORKER; DGUNET_STORAGE (where checkpoints
of running work live: a folder all nodes see, or s3://...; default .cache/runs); DGUNET_MAX_FAILURES (how many deaths
of workers a run survives, default 3).
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import ray
import ray.train
import ray.train.torch
import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

PROJECT = Path(__file__).parents[1]
POLL_SECONDS = 0.5
OBJECT_STORE_BYTES = 256 * 2**20  # nothing large goes through it
COLLECTIVE_TIMEOUT_SECONDS = 600
SECONDS_BETWEEN_RESIZES = 30.0  # a larger group starts again from its last checkpoint

# Reports wait for the controller's next poll (2 s apart by default); printing is forwarded twice.
RAY_SETTINGS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
PASSED_ON = ("MLFLOW_", "AWS_", "DGUNET_")


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, has saved a checkpoint, and can go on from there."""


@dataclass(frozen=True)
class Worker:
    """What one training worker is told: who it is, what to continue from, and whom to tell.

    report: (metrics, checkpoint folder or None); every worker calls it equally often. It returns when the checkpoint
        is safe in storage.
    progress: (step, figures), never waits. stop_requested: whether to save and return, never waits.
    keep: (name, content) of a file to be kept beside the checkpoints; returns where.
    """

    rank: int
    num_workers: int
    device: torch.device
    resume: Path | None
    report: Callable[[dict[str, float], Path | None], None]
    progress: Callable[[int, dict[str, float]], None]
    stop_requested: Callable[[], bool]
    keep: Callable[[str, bytes], str]


@dataclass(frozen=True)
class Share:
    """What one run uses of the cluster: so many workers, each with so many CPUs and GPUs (a fraction: shared).

    at_most: where it is larger than `num_workers`, the run shrinks when a node leaves and grows when one joins.
    """

    num_workers: int
    cpus: float
    gpus: float
    at_most: int = 0


@contextmanager
def session(*, dashboard: bool = False) -> Iterator[None]:
    """Join the Ray cluster of RAY_ADDRESS, or start one on this machine; leave it at the end.

    dashboard: the session needs Ray's dashboard (about 1 GB of memory): a search does, see `pipeline.search`.
    """
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    if address:
        passed_on = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)} | RAY_SETTINGS
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
        ray.init(
            "local", include_dashboard=dashboard, log_to_driver=False, object_store_memory=OBJECT_STORE_BYTES,
            logging_level="ERROR",
        )  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


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
        raise error.as_instanceof_cause() from None


def storage() -> str:
    """Return where checkpoints of running work live, as DGUNET_STORAGE or the default says."""
    return os.environ.get("DGUNET_STORAGE", str(PROJECT / ".cache" / "runs"))


def fit(
    work: Callable[[Worker], None],
    *,
    name: str,
    into: Path,
    on_report: Callable[[dict[str, float]], None],
    on_progress: Callable[[int, dict[str, float]], None],
    share: Share | None = None,
) -> None:
    """Run `work` on every training worker and leave the last checkpoint in the folder `into`.

    A run of the same `name` that did not finish is continued from its last checkpoint, so the name must tell equal
    runs from others. Workers that die are started again from it, DGUNET_MAX_FAILURES times. On SIGTERM and Ctrl-C the
    workers save a checkpoint first, then Interrupted is raised. A ValueError of `work` is final, and raised here.
    share: what the run may use of the cluster; default: all of it.
    """
    line = ray.remote(num_cpus=0)(_Line).remote()
    outcome: list[ray.train.Result | BaseException] = []
    trainer = _trainer(work, name, line, share or _whole_cluster())

    def run() -> None:
        try:
            outcome.append(trainer.fit())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    with _stop_signals() as stop:
        thread.start()
        asked = False
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            if stop.is_set() and not asked:
                asked = bool(ray.get(line.stop.remote()))
            _relay(line, on_report, on_progress)
    _relay(line, on_report, on_progress)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    if asked:
        raise Interrupted
    with outcome[0].checkpoint.as_directory() as folder:
        shutil.copytree(folder, into, dirs_exist_ok=True)


def forget(name: str) -> None:
    """Remove the checkpoints of the run `name`, which is finished."""
    filesystem, path = ray.train.v2._internal.execution.storage.get_fs_and_path(f"{storage()}/{name}")
    filesystem.delete_dir(path)


def num_workers() -> tuple[int, int]:
    """Return the least and the most training workers: DGUNET_WORKERS ("4", "2:8"), else one per GPU, else one."""
    asked = os.environ.get("DGUNET_WORKERS")
    if not asked:
        gpus = int(ray.cluster_resources().get("GPU", 0)) or 1
        return gpus, gpus
    try:
        least, _, most = asked.partition(":")
        bounds = int(least), int(most or least)
        if not 1 <= bounds[0] <= bounds[1]:
            raise ValueError(asked)
    except ValueError:
        raise ValueError(f'DGUNET_WORKERS must be a number of workers, or "least:most", not {asked!r}') from None
    return bounds


def _whole_cluster() -> Share:
    bounds, resources = num_workers(), ray.cluster_resources()
    cpus = int(os.environ.get("DGUNET_CPUS_PER_WORKER", "0")) or max(1, int(resources["CPU"] // bounds[1]))
    return Share(bounds[0], float(cpus), 1.0 if resources.get("GPU", 0) >= bounds[0] else 0.0, at_most=bounds[1])


def _trainer(work: Callable[[Worker], None], name: str, line: Any, share: Share) -> ray.train.torch.TorchTrainer:
    use_gpu, elastic = share.gpus > 0, share.at_most > share.num_workers
    return ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config={
            "work": work,
            "line": line,
            "threads": max(1, int(share.cpus)),
            "place": f"{storage()}/{name}",
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=(share.num_workers, share.at_most) if elastic else share.num_workers,
            elastic_resize_monitor_interval_s=SECONDS_BETWEEN_RESIZES,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": share.cpus} | ({"GPU": share.gpus} if use_gpu else {}),
        ),
        torch_config=ray.train.torch.TorchConfig(
            backend="nccl" if use_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_SECONDS
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage(),
            failure_config=ray.train.FailureConfig(max_failures=int(os.environ.get("DGUNET_MAX_FAILURES", "3"))),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=[_Heard(line)],
        ),
    )


def _worker(config: dict[str, Any]) -> None:
    """Run in each worker process: tell `work` who it is."""
    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    checkpoint = ray.train.get_checkpoint()
    mouth = _Mouth(config["line"])
    with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
        worker = Worker(
            rank=context.get_world_rank(),
            num_workers=context.get_world_size(),
            device=ray.train.torch.get_device(),
            resume=Path(folder) if folder else None,
            report=_report,
            progress=mouth.progress,
            stop_requested=mouth.stop_requested,
            keep=partial(_keep, config["place"]),
        )
        try:
            config["work"](worker)
        except ValueError as error:
            ray.get(config["line"].fail.remote(error))
            raise


def _keep(place: str, name: str, content: bytes) -> str:
    where = f"{place}/{name}"
    with fsspec.open(where, "wb") as file:
        file.write(content)
    return where


def _report(metrics: dict[str, float], folder: Path | None) -> None:
    checkpoint = ray.train.Checkpoint.from_directory(folder) if folder else None
    ray.train.report(metrics, checkpoint=checkpoint)
    # report() returns before the controller has committed it; a worker killed then would lose two checkpoints.
    ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED)


class _Line:
    """The telephone between the workers, the controller and the driver."""

    def __init__(self) -> None:
        self.latest: tuple[int, dict[str, float]] | None = None
        self.reports: list[dict[str, float]] = []
        self.failure: ValueError | None = None
        self.stopping = False

    def progress(self, step: int, figures: dict[str, float]) -> bool:
        self.latest = step, figures
        return self.stopping

    def report(self, metrics: dict[str, float]) -> None:
        self.reports.append(metrics)

    def fail(self, error: ValueError) -> None:
        self.failure = error

    def stop(self) -> bool:
        self.stopping = True
        return True

    def listen(self) -> tuple[tuple[int, dict[str, float]] | None, list[dict[str, float]], ValueError | None]:
        heard, self.reports = self.reports, []
        return self.latest, heard, self.failure


class _Heard(ray.train.UserCallback):  # type: ignore[misc]
    """Passes on each report once, when its checkpoint is committed; lives in Ray's controller."""

    def __init__(self, line: Any) -> None:
        self.line = line

    def after_report(self, run_context: Any, metrics: list[dict[str, float]], checkpoint: Any) -> None:
        self.line.report.remote(metrics[0])


class _Mouth:
    """A worker's end of the line; never waits for an answer, only looks whether one has come."""

    def __init__(self, line: Any) -> None:
        self.line, self.answer, self.stopping = line, None, False

    def progress(self, step: int, figures: dict[str, float]) -> None:
        self.answer = self.line.progress.remote(step, figures)

    def stop_requested(self) -> bool:
        if self.answer is not None and ray.wait([self.answer], timeout=0)[0]:
            self.stopping, self.answer = ray.get(self.answer), None
        return self.stopping


def _relay(
    line: Any,
    on_report: Callable[[dict[str, float]], None],
    on_progress: Callable[[int, dict[str, float]], None],
) -> None:
    latest, reports, failure = ray.get(line.listen.remote())
    if latest:
        on_progress(*latest)
    for metrics in reports:
        on_report(metrics)
    if failure:
        raise failure


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Set an event on the first SIGTERM or Ctrl-C; the second Ctrl-C does what it always does.

    Only the main thread hears signals; elsewhere (a trial of a search) the event is never set.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
