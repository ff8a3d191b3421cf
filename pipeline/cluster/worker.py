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
from pipeline.training.context import Worker

MOST_SECONDS_BETWEEN_TRIES = 30.0


def run_worker(config: dict[str, Any]) -> None:
    """Run in each worker process: tell `work` who it is."""
    torch.set_num_threads(config["threads"])
    context, run_channel = ray.train.get_context(), config["run_channel"]
    run_channel.enter.remote()
    channel = WorkerChannel(run_channel)
    retry_while_unavailable = partial(_retry_while_unavailable, channel, config["patience"])
    worker = Worker(
        rank=context.get_world_rank(),
        num_workers=context.get_world_size(),
        device=ray.train.torch.get_device(),
        resume=_last_checkpoint(retry_while_unavailable),
        report=partial(_report, retry_while_unavailable=retry_while_unavailable),
        progress=channel.progress,
        stop_requested=channel.stop_requested,
        save_requested=channel.save_requested,
        keep=partial(_keep, config["place"]),
        retry_while_unavailable=retry_while_unavailable,
    )
    try:
        config["work"](worker)
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
            if not any(folder.iterdir()):  # which raises an OSError itself where a folder is gone
                raise FileNotFoundError(f"{folder} is empty")
            return folder

        yield retry_while_unavailable("the checkpoint cannot be read", fetch)


def _keep(place: str, name: str, content: bytes) -> str:
    where = f"{place}/{name}"
    try:
        with fsspec.open(where, "wb") as file:
            file.write(content)
    except OSError as error:
        return f"no file ({error})"
    return where


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
            raise RuntimeError("given up") from None  # Ray tries again what it knows by its words: time-outs of S3

    try:
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_upload_fn=upload)
    except RuntimeError as error:
        raise (lost[0] if lost else error) from None
    # report() returns before the controller has committed it; a worker killed then would lose two checkpoints.
    ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED)


def _upload(checkpoint: Any, name: str, retry_while_unavailable: Callable[..., Any]) -> Any:
    place = ray.train.get_context().get_storage()

    def persist() -> Any:
        try:
            return place.persist_current_checkpoint(checkpoint, name)
        except RuntimeError as error:  # so Ray says that its mark in the storage is not there
            raise OSError(f"there is no {place.experiment_fs_path}") from error

    return retry_while_unavailable(f"the checkpoint cannot be stored in {place.experiment_fs_path}", persist)


def _retry_while_unavailable(channel: WorkerChannel, patience: float, meaning: str, action: Callable[[], Any]) -> Any:
    """Do something to a storage; try again, ever less often, while it is full or away and nobody wants to leave."""
    started, pause = time.monotonic(), 1.0
    while True:
        try:
            return action()
        except OSError as error:
            waited = time.monotonic() - started
            if waited > patience or channel.stop_requested():
                raise storage_lost(meaning, error, waited) from error
            channel.notice(f"{meaning}, trying again for {patience - waited:.0f} s: {error}")
        time.sleep(pause)
        pause = min(2 * pause, MOST_SECONDS_BETWEEN_TRIES)
