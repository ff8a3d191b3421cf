"""Training workers on the cluster: started, listened to, started again when one dies, asked to stop; through Ray Train.

The environment says how large a run is and where it keeps its state, never params.yaml: DGUNET_WORKERS (default: one
per GPU, else one; "2:8": as many as the cluster has, between these); DGUNET_CPUS_PER_WORKER; DGUNET_STORAGE (where
checkpoints of running work live: a folder all nodes see, or s3://...; default .cache/runs); DGUNET_MAX_FAILURES (how
many deaths of workers a run survives without a new checkpoint, default 3); DGUNET_PATIENCE (seconds to wait for a
worker or a storage that does not answer, default 600).
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster import checkpoints, lease
from pipeline.cluster.channel import ReportCallback, RunChannel, RunListener, forward_messages
from pipeline.cluster.checkpoints import storage
from pipeline.cluster.errors import Interrupted, WorkersLost, storage_lost
from pipeline.cluster.failures import describe_failure
from pipeline.cluster.ray_internals import RunTrainer
from pipeline.cluster.resources import WorkerResources, nodes, num_workers, plan_resources
from pipeline.cluster.worker import MOST_SECONDS_BETWEEN_TRIES, run_worker
from pipeline.runtime.environment import max_failures, patience
from pipeline.training.context import Worker

POLL_SECONDS = 0.5
SECONDS_UNTIL_MISSED = 60.0  # a group of workers starts in some ten
SECONDS_BETWEEN_RESIZES = 30.0  # a larger group starts again from its last checkpoint


def fit(
    work: Callable[[Worker], None],
    *,
    name: str,
    into: Path,
    listener: RunListener,
    share: WorkerResources | None = None,
    most_workers: int | None = None,
) -> None:
    """Run `work` on every training worker and leave the last checkpoint in the folder `into`.

    A run of the same `name` that did not finish is continued from its last checkpoint, so the name must tell equal
    runs from others. Workers that die or hang are started again from it, DGUNET_MAX_FAILURES times without a new
    checkpoint, then WorkersLost is raised. On SIGTERM and Ctrl-C the workers save a checkpoint first, then Interrupted
    is raised. A ValueError of `work` is final, and raised here, as is StorageLost, at once where a run that starts
    cannot reach the storage.
    share: what the run may use of the cluster; default: all of it, by at most `most_workers`. ValueError if it has no
    room for them.
    """
    used = share or plan_resources(nodes(), most_workers)
    if share is None and most_workers and (asked := num_workers()[1]) > most_workers:
        listener.notice(
            f"{used.max_workers} workers, not {asked}: a batch has {most_workers} images (train.batch_size)"
        )
    with ExitStack() as stack:
        try:
            checkpoints.create_run_dir(f"{storage()}/{name}")
            stack.enter_context(lease.hold_lease(f"{storage()}/{name}"))
        except OSError as error:
            raise storage_lost(_unkept(), error, 0.0) from error
        _drive(work, name, into, listener, used)


def _drive(work: Callable[[Worker], None], name: str, into: Path, listener: RunListener, used: WorkerResources) -> None:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    at_hand = ray.remote(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)
    run_channel = at_hand(RunChannel).remote()  # elsewhere it would leave with its node
    outcome: list[ray.train.Result | BaseException] = []
    with _stop_signals() as stop:

        def run() -> None:
            try:
                train = partial(_run_trainer, work, name, run_channel, used)
                outcome.append(_run_and_resume(lambda: train().fit(), name, run_channel, stop))
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        last_seen = time.monotonic()
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            at_work = forward_messages(run_channel, listener)
            if stop.is_set():
                if not at_work:
                    raise Interrupted  # nobody is there who had anything to save
                run_channel.stop.remote()
            if at_work:
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > SECONDS_UNTIL_MISSED:
                last_seen = time.monotonic()
                listener.notice(
                    f"waiting for the cluster to have room for {used.num_workers} workers with "
                    f"{used.cpus_per_worker:g} CPUs, {used.gpus_per_worker:g} GPUs each"
                )
    forward_messages(run_channel, listener)
    if isinstance(outcome[0], ray.train.TrainingFailedError | ray.exceptions.RayActorError):
        # Of a controller that died, not every cluster gives back what its workers held: the next session has it.
        what = (
            describe_failure(outcome[0])
            if isinstance(outcome[0], ray.train.TrainingFailedError)
            else "Ray's controller died"
        )
        raise WorkersLost(
            f"training stopped: {what}. What was done up to the last checkpoint is kept: the same command goes on from "
            "there. DGUNET_MAX_FAILURES sets how many losses of workers a run survives"
        ) from outcome[0]
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    if stop.is_set():
        raise Interrupted
    with outcome[0].checkpoint.as_directory() as folder:
        shutil.copytree(folder, into, dirs_exist_ok=True)


def _run_and_resume(
    run: Callable[[], ray.train.Result], name: str, run_channel: Any, stop: threading.Event
) -> ray.train.Result:
    """Run, and again from the last checkpoint where Ray gave up too early.

    It does when driver or controller cannot reach the storage for a moment, and when more workers were lost than
    DGUNET_MAX_FAILURES since it began, though there were new checkpoints in between. Raises StorageLost, Interrupted,
    and what `run` raises for another reason.
    """
    pause, failing_since, stored, failures = 1.0, 0.0, 0, 0
    while True:
        before = ray.get(run_channel.num_reports.remote())
        stored = max(stored, before)  # the line forgets when it dies
        try:
            if damage := checkpoints.repair_snapshot(f"{storage()}/{name}", must_be_there=stored > 0):
                run_channel.notice.remote(damage)
            return run()
        except (OSError, ray.train.TrainingFailedError) as error:
            went_well = ray.get(run_channel.num_reports.remote()) > before
            cause = getattr(error, "controller_failure", error)
            if isinstance(cause, OSError):
                now = time.monotonic()
                if not failing_since or went_well:
                    pause, failing_since = 1.0, now
                waited = now - failing_since
                if waited > patience():
                    raise storage_lost(_unkept(), cause, waited) from error
                run_channel.leave.remote(f"{describe_failure(error)}; trying again for {patience() - waited:.0f} s")
            else:
                failures = 0 if went_well else failures + 1
                most = 0 if isinstance(error, ray.train.WorkerGroupError) else max_failures()  # those Ray has counted
                if failures > most or max_failures() == 0:
                    raise
                run_channel.leave.remote(f"{describe_failure(error)}; back to the last checkpoint")
                pause, failing_since = 1.0, 0.0
        if stop.wait(pause):
            raise Interrupted  # all that could be saved is
        pause = min(2 * pause, MOST_SECONDS_BETWEEN_TRIES)


def _unkept() -> str:
    return f"checkpoints cannot be kept in {storage()} (DGUNET_STORAGE names another place)"


def delete_checkpoints(name: str) -> None:
    """Remove the checkpoints of the run `name`, which is finished."""
    filesystem, path = checkpoints.place(f"{storage()}/{name}")
    filesystem.delete_dir(path)


def _run_trainer(work: Callable[[Worker], None], name: str, run_channel: Any, share: WorkerResources) -> RunTrainer:
    use_gpu, elastic = share.gpus_per_worker > 0, share.max_workers > share.num_workers
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(patience())
    return RunTrainer(
        run_channel,
        train_loop_per_worker=run_worker,
        train_loop_config={
            "work": work,
            "run_channel": run_channel,
            "threads": max(1, int(share.cpus_per_worker)),
            "place": f"{storage()}/{name}",
            "patience": patience(),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=(share.num_workers, share.max_workers) if elastic else share.num_workers,
            elastic_resize_monitor_interval_s=SECONDS_BETWEEN_RESIZES,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": share.cpus_per_worker} | ({"GPU": share.gpus_per_worker} if use_gpu else {}),
        ),
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=patience()),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage(),
            failure_config=ray.train.FailureConfig(max_failures=max_failures()),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=[ReportCallback(run_channel, f"{storage()}/{name}")],
        ),
    )


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
