"""Runs inside each training worker: connects the training job to Ray Train."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import ray
import ray.train
import ray.train.torch
import torch

from pipeline.cluster import checkpoints
from pipeline.cluster.channel import WorkerChannel
from pipeline.cluster.errors import StorageLost, storage_lost
from pipeline.training.context import WorkerContext

MAX_SECONDS_BETWEEN_TRIES = 30.0


def run_worker(config: dict[str, Any]) -> None:
    """Run the job of `config`, see `pipeline.cluster.training_run`, with the context of this worker."""
    torch.set_num_threads(config["threads"])
    train_context, run_channel = ray.train.get_context(), config["channel"]
    run_channel.workers_started.remote()
    channel = WorkerChannel(run_channel)
    retry_while_unavailable = partial(_retry_while_unavailable, channel, config["timeout_seconds"])
    context = WorkerContext(
        rank=train_context.get_world_rank(),
        world_size=train_context.get_world_size(),
        device=ray.train.torch.get_device(),
        resume=_last_checkpoint(retry_while_unavailable),
        report=partial(_report, retry_while_unavailable=retry_while_unavailable),
        progress=channel.progress,
        notice=channel.notice,
        stop_requested=channel.stop_requested,
        save_requested=channel.save_requested,
        keep_file=partial(_keep_file, config["run_dir"]),
        retry_while_unavailable=retry_while_unavailable,
        seconds_between_checkpoints=config["seconds_between_checkpoints"],
    )
    try:
        config["job"](context)
    except (ValueError, StorageLost) as error:
        ray.get(run_channel.fail.remote(error))
        raise


@contextmanager
def _last_checkpoint(retry_while_unavailable: Callable[..., Any]) -> Iterator[Path | None]:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with ExitStack() as stack:

        def fetch() -> Path:
            folder = Path(stack.enter_context(checkpoint.as_directory()))
            if not any(folder.iterdir()):  # iterdir raises OSError if it is missing
                raise FileNotFoundError(f"{folder} is empty")
            return folder

        yield retry_while_unavailable("the checkpoint cannot be read", fetch)


def _keep_file(run_dir: str, name: str, content: bytes) -> str:
    address = f"{run_dir}/{name}"
    try:
        with fsspec.open(address, "wb") as file:
            file.write(content)
    except OSError as error:
        return f"no file ({error})"
    return address


def _report(metrics: dict[str, float], folder: Path | None, *, retry_while_unavailable: Callable[..., Any]) -> None:
    if folder:
        retry_while_unavailable("the checkpoint cannot be written", lambda: checkpoints.write_checksums(folder))
    checkpoint = ray.train.Checkpoint.from_directory(folder) if folder else None
    lost: list[StorageLost] = []

    def upload(checkpoint: Any, name: str) -> Any:
        try:
            return _upload(checkpoint, name, retry_while_unavailable)
        except StorageLost as error:
            lost.append(error)
            # Ray retries an upload if it knows the message of the error, for example a timeout of S3.
            raise RuntimeError("the upload was given up") from None

    try:
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_upload_fn=upload)
    except RuntimeError as error:
        raise (lost[0] if lost else error) from None
    # report() returns before the controller has committed the checkpoint: a worker killed in between would lose this
    # checkpoint and the previous one.
    ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED)


def _upload(checkpoint: Any, name: str, retry_while_unavailable: Callable[..., Any]) -> Any:
    storage = ray.train.get_context().get_storage()

    def persist() -> Any:
        try:
            return storage.persist_current_checkpoint(checkpoint, name)
        except RuntimeError as error:  # Ray's error if its marker file in the storage is missing
            raise OSError(f"there is no {storage.experiment_fs_path}") from error

    return retry_while_unavailable(f"the checkpoint cannot be stored in {storage.experiment_fs_path}", persist)


def _retry_while_unavailable(
    channel: WorkerChannel, timeout_seconds: float, meaning: str, action: Callable[[], Any]
) -> Any:
    """Return the result of `action`; while it raises OSError, call it again, at growing intervals.

    Args:
        channel: receives a notice at each error, and tells whether to stop.
        timeout_seconds: how long to try.
        meaning: what an OSError means, for the notice.
        action: called without arguments.

    Raises:
        StorageLost: after `timeout_seconds`, or when the run was asked to stop.
    """
    started, pause = time.monotonic(), 1.0
    while True:
        try:
            return action()
        except OSError as error:
            waited = time.monotonic() - started
            if waited > timeout_seconds or channel.stop_requested():
                raise storage_lost(meaning, error, waited) from error
            channel.notice(f"{meaning}, trying again for {timeout_seconds - waited:.0f} s: {error}")
        time.sleep(pause)
        pause = min(2 * pause, MAX_SECONDS_BETWEEN_TRIES)
