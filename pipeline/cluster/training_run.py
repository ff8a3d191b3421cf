"""Runs a training job on workers of the cluster with Ray Train; restarts them after failures, stops them on request.

The size of a run, and where it stores its state, are set in the environment, never in params.yaml
(`pipeline.runtime.environment.Environment`).
"""

from __future__ import annotations

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

from pipeline.cluster import checkpoints
from pipeline.cluster.channel import ReportCallback, RunListener, forward_messages
from pipeline.cluster.checkpoints import run_dir
from pipeline.cluster.errors import Interrupted, WorkersLost, storage_lost
from pipeline.cluster.failures import describe_failure
from pipeline.cluster.lease import Lease, hold_lease
from pipeline.cluster.ray_internals import RunTrainer, without_lines_of_nodes
from pipeline.cluster.resources import WorkerResources, nodes, plan_resources, requested_workers
from pipeline.cluster.run_channel import RunChannel
from pipeline.cluster.worker import MAX_SECONDS_BETWEEN_TRIES, run_worker
from pipeline.runtime.environment import read_environment
from pipeline.training.context import WorkerContext

POLL_SECONDS = 0.5
SECONDS_UNTIL_NOTICE = 60.0  # without workers; they start within some ten
SECONDS_BETWEEN_RESIZES = 30.0  # a resized group starts from the last checkpoint
Job = Callable[[WorkerContext], None]


def fit(
    job: Job,
    *,
    name: str,
    into: Path,
    listener: RunListener,
    resources: WorkerResources | None = None,
    most_workers: int | None = None,
) -> None:
    """Run `job` on every training worker and copy the last checkpoint to a folder.

    An unfinished run of the same name continues from its last checkpoint. Workers that die or hang are restarted from
    the last checkpoint. On SIGTERM and Ctrl-C the workers first save a checkpoint.

    Args:
        job: what each worker does.
        name: name of the run; runs with different results need different names.
        into: folder of the last checkpoint.
        listener: callbacks for reports, progress and notices.
        resources: workers of the run and their shares of the cluster; by default workers that use all of it.
        most_workers: maximum number of workers, if `resources` is not given.

    Raises:
        ValueError: the workers do not fit on the cluster, another driver runs this training, or `job` raised it.
        StorageLost: the storage could not be used when the run started, or for DGUNET_TIMEOUT_SECONDS.
        WorkersLost: workers failed more often than DGUNET_MAX_FAILURES without a new checkpoint in between, or Ray's
            controller died.
        Interrupted: the run was asked to stop.
    """
    planned = resources or plan_resources(nodes(), most_workers)
    if resources is None and most_workers and (asked := requested_workers()[1]) > most_workers:
        listener.notice(
            f"{planned.max_workers} workers, not {asked}: a batch has {most_workers} images (train.batch_size)"
        )
    with ExitStack() as stack:
        stack.enter_context(without_lines_of_nodes())
        try:
            checkpoints.create_run_dir(run_dir(name))
            lease = stack.enter_context(hold_lease(run_dir(name)))
        except OSError as error:
            raise storage_lost(_cannot_be_stored(), error, 0.0) from error
        _drive(job, name, into, listener=listener, resources=planned, lease=lease)


def _drive(job: Job, name: str, into: Path, *, listener: RunListener, resources: WorkerResources, lease: Lease) -> None:
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    start = ray.remote(num_cpus=0, scheduling_strategy=this_node, max_restarts=-1, max_task_retries=-1)
    channel = start(RunChannel).remote(name)  # on another node it would be lost with that node
    outcome: list[ray.train.Result | BaseException] = []
    with _stop_signals() as stop:

        def run() -> None:
            try:
                trainer = partial(_run_trainer, job, name, channel, resources)
                outcome.append(_run_and_resume(lambda: trainer().fit(), name, channel, stop))
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        last_seen = time.monotonic()
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            working = forward_messages(channel, listener)
            if lease.lost:
                raise lease.lost
            if stop.is_set():
                if not working:
                    raise Interrupted  # there is nothing to save
                channel.stop.remote()
            if working:
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > SECONDS_UNTIL_NOTICE:
                last_seen = time.monotonic()
                listener.notice(
                    f"waiting for the cluster to have room for {resources.num_workers} workers with "
                    f"{resources.cpus_per_worker:g} CPUs and {resources.gpus_per_worker:g} GPUs each"
                )
    forward_messages(channel, listener)
    if isinstance(outcome[0], ray.train.TrainingFailedError | ray.exceptions.RayActorError):
        # After a controller has died, not every cluster frees the resources of its workers before the session ends.
        what = (
            describe_failure(outcome[0])
            if isinstance(outcome[0], ray.train.TrainingFailedError)
            else "Ray's controller died"
        )
        raise WorkersLost(
            f"training stopped: {what}. The last checkpoint is kept: the same command continues from it. "
            "DGUNET_MAX_FAILURES sets how many failures of workers a run survives"
        ) from outcome[0]
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    if stop.is_set():
        raise Interrupted
    with outcome[0].checkpoint.as_directory() as folder:
        shutil.copytree(folder, into, dirs_exist_ok=True)


def _run_and_resume(
    run: Callable[[], ray.train.Result], name: str, channel: Any, stop: threading.Event
) -> ray.train.Result:
    """Call `run`, and call it again if Ray gives up too early.

    Ray gives up if driver or controller briefly cannot reach the storage, and if more workers have failed than
    DGUNET_MAX_FAILURES since the start, even with new checkpoints in between.

    Args:
        run: starts training from the last checkpoint and returns at its end.
        name: name of the run.
        channel: the run's channel; its number of reports shows whether there were new checkpoints.
        stop: set when the run was asked to stop.

    Raises:
        ray.train.TrainingFailedError: more than DGUNET_MAX_FAILURES failures without a new checkpoint in between.
        StorageLost: the storage could not be used for DGUNET_TIMEOUT_SECONDS.
        Interrupted: the run was asked to stop.
    """
    environment = read_environment()
    timeout, max_failures = environment.timeout_seconds, environment.max_failures
    pause, failing_since, stored, failures = 1.0, 0.0, 0, 0
    while True:
        before = ray.get(channel.num_reports.remote())
        stored = max(stored, before)  # a channel that died and was restarted counts from 0
        try:
            if damage := checkpoints.repair_snapshot(run_dir(name), must_exist=stored > 0):
                channel.notice.remote(damage)
            return run()
        except (OSError, ray.train.TrainingFailedError) as error:
            went_well = ray.get(channel.num_reports.remote()) > before
            cause = getattr(error, "controller_failure", error)
            if isinstance(cause, OSError):
                now = time.monotonic()
                if not failing_since or went_well:
                    pause, failing_since = 1.0, now
                waited = now - failing_since
                if waited > timeout:
                    raise storage_lost(_cannot_be_stored(), cause, waited) from error
                channel.workers_gone.remote(f"{describe_failure(error)}; trying again for {timeout - waited:.0f} s")
            else:
                failures = 0 if went_well else failures + 1
                # Ray itself has counted the failures of workers.
                most = 0 if isinstance(error, ray.train.WorkerGroupError) else max_failures
                if failures > most or max_failures == 0:
                    raise
                channel.workers_gone.remote(f"{describe_failure(error)}; continuing from the last checkpoint")
                pause, failing_since = 1.0, 0.0
        if stop.wait(pause):
            raise Interrupted  # there is nothing to save
        pause = min(2 * pause, MAX_SECONDS_BETWEEN_TRIES)


def _cannot_be_stored() -> str:
    return f"checkpoints cannot be stored in {read_environment().storage} (DGUNET_STORAGE sets the place)"


def _run_trainer(job: Job, name: str, channel: Any, resources: WorkerResources) -> RunTrainer:
    environment = read_environment()
    use_gpu, elastic = resources.gpus_per_worker > 0, resources.max_workers > resources.num_workers
    return RunTrainer(
        channel,
        train_loop_per_worker=run_worker,
        train_loop_config={
            "job": job,
            "channel": channel,
            "threads": max(1, int(resources.cpus_per_worker)),
            "run_dir": run_dir(name),
            "timeout_seconds": environment.timeout_seconds,
            "seconds_between_checkpoints": 60 * environment.checkpoint_minutes,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=(resources.num_workers, resources.max_workers) if elastic else resources.num_workers,
            elastic_resize_monitor_interval_s=SECONDS_BETWEEN_RESIZES,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": resources.cpus_per_worker}
            | ({"GPU": resources.gpus_per_worker} if use_gpu else {}),
        ),
        torch_config=ray.train.torch.TorchConfig(
            backend="nccl" if use_gpu else "gloo", timeout_s=environment.timeout_seconds
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=environment.storage,
            failure_config=ray.train.FailureConfig(max_failures=environment.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=[ReportCallback(channel, run_dir(name))],
        ),
    )


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Set an event on the first SIGTERM or Ctrl-C; the second Ctrl-C raises KeyboardInterrupt.

    One request to stop may arrive as both signals: `ray job stop` sends SIGTERM to all processes of a job, and
    infra/run.sh, which receives it too, sends SIGINT.
    Python handles signals only in the main thread; in other threads (trials of a search) the event is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request_stop(number: int, frame: Any) -> None:
        stop.set()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
