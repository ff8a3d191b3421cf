"""Training workers on the cluster: started, listened to, started again when one dies, asked to stop; through Ray Train.

The environment says how large a run is and where it keeps its state, never params.yaml: DGUNET_WORKERS (default: one
per GPU, else one; "2:8": as many as the cluster has, between these); DGUNET_CPUS_PER_WORKER; DGUNET_STORAGE (where
checkpoints of running work live: a folder all nodes see, or s3://...; default .cache/runs); DGUNET_MAX_FAILURES (how
many deaths of workers a run survives, default 3); DGUNET_PATIENCE (seconds to wait for a worker or a storage that does
not answer, default 600).
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import ray
import ray.train
import ray.train.torch
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import record
from pipeline.cluster import PROJECT
from pipeline.line import Ears, Heard, Line, Mouth, relay, told

POLL_SECONDS = 0.5
SECONDS_BETWEEN_RESIZES = 30.0  # a larger group starts again from its last checkpoint
MOST_SECONDS_BETWEEN_TRIES = 30.0


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, has saved a checkpoint, and can go on from there."""


class WorkersLost(OSError):
    """Workers died or hung more often than a run survives; its last checkpoint is kept."""


class StorageLost(OSError):
    """Checkpoints could not be stored for longer than a run waits."""


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


def storage() -> str:
    """Return where checkpoints of running work live, as DGUNET_STORAGE or the default says."""
    return os.environ.get("DGUNET_STORAGE", str(PROJECT / ".cache" / "runs"))


def patience() -> int:
    """Return for how many seconds a run waits for a worker or a storage that does not answer: DGUNET_PATIENCE."""
    return _number("DGUNET_PATIENCE", 600)


def _number(name: str, default: int) -> int:
    """Return the whole number that the environment gives `name`."""
    try:
        return int(os.environ.get(name, default))
    except ValueError:
        raise ValueError(f"{name} must be a whole number, not {os.environ[name]!r}") from None


def fit(work: Callable[[Worker], None], *, name: str, into: Path, ears: Ears, share: Share | None = None) -> None:
    """Run `work` on every training worker and leave the last checkpoint in the folder `into`.

    A run of the same `name` that did not finish is continued from its last checkpoint, so the name must tell equal
    runs from others. Workers that die or hang are started again from it, DGUNET_MAX_FAILURES times, then WorkersLost is
    raised. On SIGTERM and Ctrl-C the workers save a checkpoint first, then Interrupted is raised. A ValueError of
    `work` is final, and raised here, as is StorageLost, at once where a run that starts cannot reach the storage.
    share: what the run may use of the cluster; default: all of it.
    """
    try:
        record.make_room(f"{storage()}/{name}")
    except OSError as error:
        raise _storage_lost(error, 0.0) from error
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    line = ray.remote(num_cpus=0, scheduling_strategy=here)(Line).remote()  # elsewhere it would leave with its node
    outcome: list[ray.train.Result | BaseException] = []
    used = share or _whole_cluster()

    with _stop_signals() as stop:

        def run() -> None:
            try:
                train = partial(_trainer, work, name, line, used)
                outcome.append(_while_storage_comes_back(lambda: train().fit(), name, line, stop))
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        asked = False
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            if stop.is_set() and not asked:
                asked = bool(ray.get(line.stop.remote()))
            relay(line, ears)
    relay(line, ears)
    if isinstance(outcome[0], ray.train.TrainingFailedError):
        raise WorkersLost(
            f"training stopped: {told(outcome[0])}. What was done up to the last checkpoint is kept: the same command "
            "goes on from there. DGUNET_MAX_FAILURES sets how many losses a run survives"
        ) from outcome[0]
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    if asked:
        raise Interrupted
    with outcome[0].checkpoint.as_directory() as folder:
        shutil.copytree(folder, into, dirs_exist_ok=True)


def _while_storage_comes_back(
    run: Callable[[], ray.train.Result], name: str, line: Any, stop: threading.Event
) -> ray.train.Result:
    """Run; and again, from the last checkpoint, when the storage was out of reach of the driver or Ray's controller."""
    pause, failing_since, stored = 1.0, 0.0, 0
    while True:
        try:
            if damage := record.mend(f"{storage()}/{name}"):
                line.notice.remote(damage)
            return run()
        except (OSError, ray.train.ControllerError) as error:
            cause, now = getattr(error, "controller_failure", error), time.monotonic()
            if not isinstance(cause, OSError):
                raise
            stored, before = ray.get(line.num_reports.remote()), stored
            if not failing_since or stored > before:  # all was well in between
                pause, failing_since = 1.0, now
            waited = now - failing_since
            if waited > patience():
                raise _storage_lost(cause, waited) from error
            line.notice.remote(f"{told(error)}; trying again for {patience() - waited:.0f} s")
        if stop.wait(pause):
            raise Interrupted  # all that could be saved is
        pause = min(2 * pause, MOST_SECONDS_BETWEEN_TRIES)


def _storage_lost(error: OSError, waited: float) -> StorageLost:
    return StorageLost(
        f"checkpoints cannot be stored in {storage()}, tried for {waited:.0f} s: {error}. What was done up to the last "
        "one is kept: the same command goes on from there. DGUNET_STORAGE names another place"
    )


def forget(name: str) -> None:
    """Remove the checkpoints of the run `name`, which is finished."""
    filesystem, path = record.place(f"{storage()}/{name}")
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
    cpus = _number("DGUNET_CPUS_PER_WORKER", 0) or max(1, int(resources["CPU"] // bounds[1]))
    return Share(bounds[0], float(cpus), 1.0 if resources.get("GPU", 0) >= bounds[0] else 0.0, at_most=bounds[1])


def _trainer(work: Callable[[Worker], None], name: str, line: Any, share: Share) -> ray.train.torch.TorchTrainer:
    use_gpu, elastic = share.gpus > 0, share.at_most > share.num_workers
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(patience())
    return ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config={
            "work": work,
            "line": line,
            "threads": max(1, int(share.cpus)),
            "place": f"{storage()}/{name}",
            "patience": patience(),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=(share.num_workers, share.at_most) if elastic else share.num_workers,
            elastic_resize_monitor_interval_s=SECONDS_BETWEEN_RESIZES,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": share.cpus} | ({"GPU": share.gpus} if use_gpu else {}),
        ),
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=patience()),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage(),
            failure_config=ray.train.FailureConfig(max_failures=_number("DGUNET_MAX_FAILURES", 3)),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=[Heard(line, f"{storage()}/{name}")],
        ),
    )


def _worker(config: dict[str, Any]) -> None:
    """Run in each worker process: tell `work` who it is."""
    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    checkpoint = ray.train.get_checkpoint()
    mouth = Mouth(config["line"])
    with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
        worker = Worker(
            rank=context.get_world_rank(),
            num_workers=context.get_world_size(),
            device=ray.train.torch.get_device(),
            resume=Path(folder) if folder else None,
            report=partial(_report, upload=partial(_upload, config["line"], config["patience"])),
            progress=mouth.progress,
            stop_requested=mouth.stop_requested,
            keep=partial(_keep, config["place"]),
        )
        try:
            config["work"](worker)
        except (ValueError, StorageLost) as error:
            ray.get(config["line"].fail.remote(error))
            raise


def _keep(place: str, name: str, content: bytes) -> str:
    where = f"{place}/{name}"
    with fsspec.open(where, "wb") as file:
        file.write(content)
    return where


def _report(metrics: dict[str, float], folder: Path | None, *, upload: Callable[[Any, str], Any]) -> None:
    checkpoint = ray.train.Checkpoint.from_directory(folder) if folder else None
    ray.train.report(metrics, checkpoint=checkpoint, checkpoint_upload_fn=upload)
    # report() returns before the controller has committed it; a worker killed then would lose two checkpoints.
    ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED)


def _upload(line: Any, patience: float, checkpoint: Any, name: str) -> Any:
    """Store a checkpoint; try again, ever less often, while the storage is full or away."""
    place = ray.train.get_context().get_storage()
    started, pause = time.monotonic(), 1.0
    while True:
        try:
            return place.persist_current_checkpoint(checkpoint, name)
        except OSError as error:
            waited = time.monotonic() - started
            if waited > patience:
                raise _storage_lost(error, waited) from error
            line.notice.remote(f"the checkpoint cannot be stored, trying again for {patience - waited:.0f} s: {error}")
        time.sleep(pause)
        pause = min(2 * pause, MOST_SECONDS_BETWEEN_TRIES)


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
