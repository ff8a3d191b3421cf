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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import ray
import ray.train
import ray.train.torch
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import lease, record
from pipeline.cluster import storage
from pipeline.group import Trainer
from pipeline.line import Ears, Heard, Line, Mouth, relay, told

Number = TypeVar("Number", int, float)

POLL_SECONDS = 0.5
SECONDS_UNTIL_MISSED = 60.0  # a group of workers starts in some ten
SECONDS_BETWEEN_RESIZES = 30.0  # a larger group starts again from its last checkpoint
MOST_SECONDS_BETWEEN_TRIES = 30.0


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, has saved a checkpoint, and can go on from there."""


class WorkersLost(OSError):
    """Workers died or hung more often than a run survives; its last checkpoint is kept."""


class StorageLost(OSError):
    """Checkpoints could not be stored, or shards not be read, for longer than a run waits."""


@dataclass(frozen=True)
class Worker:
    """What one training worker is told: who it is, what to continue from, and whom to tell.

    resume: the folder of the checkpoint to go on from, there while the context is entered: of one in a bucket, a copy.
    report: (metrics, checkpoint folder or None); every worker calls it equally often. It returns when the checkpoint
        is safe in storage.
    progress: (step, figures), never waits. stop_requested: whether to save and return, never waits.
    keep: (name, content) of a file to be kept beside the checkpoints; returns where, or why not.
    patiently: (what an OSError means, action); it is waited out, as long as DGUNET_PATIENCE says, and tried again.
    """

    rank: int
    num_workers: int
    device: torch.device
    resume: AbstractContextManager[Path | None]
    report: Callable[[dict[str, float], Path | None], None]
    progress: Callable[[int, dict[str, float]], None]
    stop_requested: Callable[[], bool]
    save_requested: Callable[[], bool]
    keep: Callable[[str, bytes], str]
    patiently: Callable[[str, Callable[[], Any]], Any]


@dataclass(frozen=True)
class Share:
    """What one run uses of the cluster: so many workers, each with so many CPUs and GPUs (a fraction: shared).

    at_most: where it is larger than `num_workers`, the run shrinks when a node leaves and grows when one joins.
    """

    num_workers: int
    cpus: float
    gpus: float
    at_most: int = 0


def patience() -> int:
    """Return for how many seconds a run waits for a worker or a storage that does not answer: DGUNET_PATIENCE."""
    return number("DGUNET_PATIENCE", 600)


def number(name: str, default: Number) -> Number:
    """Return the number that the environment gives `name`, a whole one if `default` is; ValueError where it is none."""
    kind = type(default)
    with suppress(ValueError):
        if (given := kind(os.environ.get(name) or default)) >= 0:
            return given
    what = "whole number" if kind is int else "number"
    raise ValueError(f"{name} must be a {what}, 0 or more, not {os.environ[name]!r}")


def fit(
    work: Callable[[Worker], None],
    *,
    name: str,
    into: Path,
    ears: Ears,
    share: Share | None = None,
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
    used = share or whole_cluster(_nodes(), most_workers)
    if share is None and most_workers and (asked := num_workers()[1]) > most_workers:
        ears.notice(f"{used.at_most} workers, not {asked}: a batch has {most_workers} images (train.batch_size)")
    with ExitStack() as stack:
        try:
            record.make_room(f"{storage()}/{name}")
            stack.enter_context(lease.held(f"{storage()}/{name}"))
        except OSError as error:
            raise _storage_lost(_unkept(), error, 0.0) from error
        _drive(work, name, into, ears, used)


def _drive(work: Callable[[Worker], None], name: str, into: Path, ears: Ears, used: Share) -> None:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    at_hand = ray.remote(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)
    line = at_hand(Line).remote()  # elsewhere it would leave with its node
    outcome: list[ray.train.Result | BaseException] = []
    with _stop_signals() as stop:

        def run() -> None:
            try:
                train = partial(_trainer, work, name, line, used)
                outcome.append(_run_and_resume(lambda: train().fit(), name, line, stop))
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        last_seen = time.monotonic()
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            at_work = relay(line, ears)
            if stop.is_set():
                if not at_work:
                    raise Interrupted  # nobody is there who had anything to save
                line.stop.remote()
            if at_work:
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > SECONDS_UNTIL_MISSED:
                last_seen = time.monotonic()
                ears.notice(
                    f"waiting for room for {used.num_workers} workers with {used.cpus:g} CPUs, {used.gpus:g} GPUs each"
                )
    relay(line, ears)
    if isinstance(outcome[0], ray.train.TrainingFailedError | ray.exceptions.RayActorError):
        # Of a controller that died, not every cluster gives back what its workers held: the next session has it.
        what = told(outcome[0]) if isinstance(outcome[0], ray.train.TrainingFailedError) else "Ray's controller died"
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
    run: Callable[[], ray.train.Result], name: str, line: Any, stop: threading.Event
) -> ray.train.Result:
    """Run, and again from the last checkpoint where Ray gave up too early.

    It does when driver or controller cannot reach the storage for a moment, and when more workers were lost than
    DGUNET_MAX_FAILURES since it began, though there were new checkpoints in between. Raises StorageLost, Interrupted,
    and what `run` raises for another reason.
    """
    pause, failing_since, stored, failures = 1.0, 0.0, 0, 0
    while True:
        before = ray.get(line.num_reports.remote())
        stored = max(stored, before)  # the line forgets when it dies
        try:
            if damage := record.mend(f"{storage()}/{name}", must_be_there=stored > 0):
                line.notice.remote(damage)
            return run()
        except (OSError, ray.train.TrainingFailedError) as error:
            went_well = ray.get(line.num_reports.remote()) > before
            cause = getattr(error, "controller_failure", error)
            if isinstance(cause, OSError):
                now = time.monotonic()
                if not failing_since or went_well:
                    pause, failing_since = 1.0, now
                waited = now - failing_since
                if waited > patience():
                    raise _storage_lost(_unkept(), cause, waited) from error
                line.leave.remote(f"{told(error)}; trying again for {patience() - waited:.0f} s")
            else:
                failures = 0 if went_well else failures + 1
                most = 0 if isinstance(error, ray.train.WorkerGroupError) else max_failures()  # those Ray has counted
                if failures > most or max_failures() == 0:
                    raise
                line.leave.remote(f"{told(error)}; back to the last checkpoint")
                pause, failing_since = 1.0, 0.0
        if stop.wait(pause):
            raise Interrupted  # all that could be saved is
        pause = min(2 * pause, MOST_SECONDS_BETWEEN_TRIES)


def _storage_lost(meaning: str, error: OSError, waited: float) -> StorageLost:
    return StorageLost(
        f"{meaning}, tried for {waited:.0f} s: {error}. What was done up to the last checkpoint is kept: the same "
        "command goes on from there"
    )


def _unkept() -> str:
    return f"checkpoints cannot be kept in {storage()} (DGUNET_STORAGE names another place)"


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


def max_failures() -> int:
    """Return how many deaths of workers a run survives without a new checkpoint: DGUNET_MAX_FAILURES."""
    return number("DGUNET_MAX_FAILURES", 3)


def whole_cluster(nodes: Sequence[Mapping[str, float]], most_workers: int | None = None) -> Share:
    """Return all that one run can use of `nodes`, each given by its resources; ValueError if its workers do not fit."""
    least, most = (min(asked, most_workers or asked) for asked in num_workers())
    total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    gpus, asked = 1.0 if total["GPU"] else 0.0, number("DGUNET_CPUS_PER_WORKER", 0.0)
    # Of a GPU that is not used the CPUs are not either: with them a node would hold fewer workers than it has GPUs.
    whole = range(max(1, int(total["CPU"] // max(most, total["GPU"]))), 0, -1)
    for cpus in [asked] if asked else [*map(float, whole), 1 / 2, 1 / 4, 1 / 8]:  # fewer where nodes are cut up badly
        share = Share(least, cpus, gpus, at_most=most)
        if places(share, nodes) >= least:
            return share
    raise ValueError(
        f"{least} workers do not fit on the cluster, which has {total['CPU']:g} CPUs and {total['GPU']:g} GPUs on "
        f"{len(nodes)} nodes: lower DGUNET_WORKERS" + (" or DGUNET_CPUS_PER_WORKER" if asked else "")
    )


def places(share: Share, nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many workers fit on `nodes`, each given by its resources."""
    needed = {"CPU": share.cpus, "GPU": share.gpus}
    return sum(
        min(int(node.get(name, 0) / amount + 1e-9) for name, amount in needed.items() if amount) for node in nodes
    )


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _trainer(work: Callable[[Worker], None], name: str, line: Any, share: Share) -> Trainer:
    use_gpu, elastic = share.gpus > 0, share.at_most > share.num_workers
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(patience())
    return Trainer(
        line,
        train_loop_per_worker=_worker,
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
            failure_config=ray.train.FailureConfig(max_failures=max_failures()),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=[Heard(line, f"{storage()}/{name}")],
        ),
    )


def _worker(config: dict[str, Any]) -> None:
    """Run in each worker process: tell `work` who it is."""
    torch.set_num_threads(config["threads"])
    context, line = ray.train.get_context(), config["line"]
    line.enter.remote()
    mouth = Mouth(line)
    patiently = partial(_patiently, mouth, config["patience"])
    worker = Worker(
        rank=context.get_world_rank(),
        num_workers=context.get_world_size(),
        device=ray.train.torch.get_device(),
        resume=_last_checkpoint(patiently),
        report=partial(_report, patiently=patiently),
        progress=mouth.progress,
        stop_requested=mouth.stop_requested,
        save_requested=mouth.save_requested,
        keep=partial(_keep, config["place"]),
        patiently=patiently,
    )
    try:
        config["work"](worker)
    except (ValueError, StorageLost) as error:
        ray.get(line.fail.remote(error))
        raise


@contextmanager
def _last_checkpoint(patiently: Callable[..., Any]) -> Iterator[Path | None]:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with ExitStack() as stack:

        def fetch() -> Path:
            folder = Path(stack.enter_context(checkpoint.as_directory()))
            if not any(folder.iterdir()):  # which raises an OSError itself where a folder is gone
                raise FileNotFoundError(f"{folder} is empty")
            return folder

        yield patiently("the checkpoint cannot be read", fetch)


def _keep(place: str, name: str, content: bytes) -> str:
    where = f"{place}/{name}"
    try:
        with fsspec.open(where, "wb") as file:
            file.write(content)
    except OSError as error:
        return f"no file ({error})"
    return where


def _report(metrics: dict[str, float], folder: Path | None, *, patiently: Callable[..., Any]) -> None:
    if folder:
        patiently("the checkpoint cannot be written", lambda: record.seal(folder))
    checkpoint = ray.train.Checkpoint.from_directory(folder) if folder else None
    lost: list[StorageLost] = []

    def upload(checkpoint: Any, name: str) -> Any:
        try:
            return _upload(checkpoint, name, patiently)
        except StorageLost as error:
            lost.append(error)
            raise RuntimeError("given up") from None  # Ray tries again what it knows by its words: time-outs of S3

    try:
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_upload_fn=upload)
    except RuntimeError as error:
        raise (lost[0] if lost else error) from None
    # report() returns before the controller has committed it; a worker killed then would lose two checkpoints.
    ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED)


def _upload(checkpoint: Any, name: str, patiently: Callable[..., Any]) -> Any:
    place = ray.train.get_context().get_storage()

    def persist() -> Any:
        try:
            return place.persist_current_checkpoint(checkpoint, name)
        except RuntimeError as error:  # so Ray says that its mark in the storage is not there
            raise OSError(f"there is no {place.experiment_fs_path}") from error

    return patiently(f"the checkpoint cannot be stored in {place.experiment_fs_path}", persist)


def _patiently(mouth: Mouth, patience: float, meaning: str, action: Callable[[], Any]) -> Any:
    """Do something to a storage; try again, ever less often, while it is full or away and nobody wants to leave."""
    started, pause = time.monotonic(), 1.0
    while True:
        try:
            return action()
        except OSError as error:
            waited = time.monotonic() - started
            if waited > patience or mouth.stop_requested():
                raise _storage_lost(meaning, error, waited) from error
            mouth.notice(f"{meaning}, trying again for {patience - waited:.0f} s: {error}")
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
