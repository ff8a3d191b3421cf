"""The training loop: steps, validation, checkpoints. Reports through the callbacks of `WorkerContext`.

Random numbers in training depend only on (seed, step), see `pipeline.dataloader`; all other state is in the checkpoint.
So a run that was interrupted and resumed has the same losses as an uninterrupted one.
"""

from __future__ import annotations

import io
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from dgunet.network import DGUNet
from pipeline.dataloader.loader import Batch
from pipeline.dataloader.pairs import EvaluationPair
from pipeline.training import collectives
from pipeline.training.context import WorkerContext
from pipeline.training.progress import ProgressMeter, val_stats
from pipeline.training.settings import Train
from pipeline.training.trainer import Progress, Trainer, learning_rate

# At a sync point the host waits for the device to read the losses, and the workers agree whether to save or to stop.
# On a GPU not every step is a sync point.
MAX_STEPS_BETWEEN_SYNCS = {"cpu": 1, "cuda": 20}

Batches = Callable[[int], Iterator[Batch]]


class TrainingFailed(ValueError):
    """Training cannot continue. The message gives the step, what happened and what to do."""


class _Step(NamedTuple):
    """A step whose loss the host has not read yet."""

    number: int
    keys: Sequence[str]
    loss: Tensor
    gradient_norm: Tensor


def fit(
    network: DGUNet,
    recipe: Train,
    context: WorkerContext,
    *,
    batches: Batches,
    validation: Callable[[], Iterator[EvaluationPair]],
) -> Progress:
    """Train a network, from the start or from the checkpoint of `context.resume`.

    Validates and reports, with a checkpoint, every `recipe.validate_every` steps and at the end. Saves checkpoints in
    between as `context` asks.

    Args:
        network: the network; it is changed in place.
        recipe: the section `train` of the task.
        context: rank, device, checkpoint to continue from, and callbacks.
        batches: first step -> batches of this worker from there to the last step.
        validation: -> the validation pairs of this worker.

    Returns:
        The progress at the end: at the last step, or at the step where the run was asked to stop.

    Raises:
        TrainingFailed: more than `recipe.max_skipped_steps` steps in a row had a gradient that is not finite, the
            validation PSNR is not a number, or the device has too little memory.
    """
    trainer = Trainer(network, recipe, context.device, context.notice)
    with context.resume as folder:
        if folder is not None:
            trainer.load(folder)
    progress = trainer.progress
    meter = ProgressMeter(progress.step)
    pending: list[_Step] = []
    reader = _BatchReader(batches)
    next_sync = progress.step + 1
    while True:
        if _validation_due(progress, recipe):
            _validate_and_report(trainer, meter, context, validation)
        if progress.step == recipe.num_steps:
            return progress
        with meter.waiting():
            batch = context.retry_while_unavailable("shards cannot be read", lambda: reader.read(progress.step))
        pending.append(_Step(progress.step, batch.keys, *_take_step(trainer, batch)))
        due = _validation_due(progress, recipe)
        if not due and progress.step < next_sync:
            continue
        progress.losses += _read_losses(pending, progress, recipe, context, batches)
        if context.rank == 0 and meter.due():
            context.progress(progress.step, meter.stats(progress, recipe))
        overdue = not due and meter.seconds_unsaved() > context.seconds_between_checkpoints
        decision = None
        if context.rank == 0:
            steps = meter.steps_to_next_sync(progress.step, MAX_STEPS_BETWEEN_SYNCS[context.device.type])
            decision = context.stop_requested(), context.save_requested() or overdue, steps
        stop, save, steps = collectives.broadcast(decision)
        next_sync = progress.step + steps
        if stop or save:  # before a validation that is due, which takes long; adds no entry to the history
            _report({}, trainer, meter, context)
        if stop:
            return progress


def _take_step(trainer: Trainer, batch: Batch) -> tuple[Tensor, Tensor]:
    try:
        return trainer.step(batch)
    except torch.OutOfMemoryError as error:
        raise TrainingFailed(
            f"step {trainer.progress.step}: the device has too little memory for it. Raise train.compute.accumulate "
            "(the same step in parts), set train.compute.recompute_activations: true, or lower train.batch_size or "
            f"train.patch_size ({str(error).splitlines()[0]})"
        ) from error


def _validation_due(progress: Progress, recipe: Train) -> bool:
    """Return whether the network is to be validated at this step and was not yet."""
    validated = progress.history[-1]["step"] if progress.history else 0
    at_an_end = progress.step % recipe.validate_every == 0 or progress.step == recipe.num_steps
    return at_an_end and progress.step > validated


def _read_losses(
    pending: list[_Step], progress: Progress, recipe: Train, context: WorkerContext, batches: Batches
) -> list[float]:
    """Return the losses of the pending steps without those that were skipped, count these, and empty the list."""
    losses = []
    total = torch.stack([step.loss for step in pending])
    if collectives.world_size() > 1:
        dist.all_reduce(total, op=dist.ReduceOp.AVG if total.is_cuda else dist.ReduceOp.SUM)
        total = total if total.is_cuda else total / collectives.world_size()
    norms = torch.stack([step.gradient_norm for step in pending]).tolist()
    for step, loss, norm in zip(pending, total.tolist(), norms, strict=True):
        if math.isfinite(norm):
            progress.skipped_in_a_row = 0
            losses.append(loss)
            continue
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row > recipe.max_skipped_steps:
            raise _not_finite(step, progress, context, batches, loss=loss, norm=norm)
    pending.clear()
    return losses


def _not_finite(
    step: _Step, progress: Progress, context: WorkerContext, batches: Batches, *, loss: float, norm: float
) -> TrainingFailed:
    """Read this worker's part of the batch again, store it, and return the error to raise."""
    content = io.BytesIO()
    torch.save(next(batches(step.number))._asdict(), content)
    address = context.keep_file(f"batch-of-step-{step.number}-worker-{context.rank}.pt", content.getvalue())
    return TrainingFailed(
        f"step {step.number}: the loss is {loss} and the norm of its gradient {norm}, not finite for "
        f"{progress.skipped_in_a_row} steps in a row. The last checkpoint has the weights before these steps, "
        f"{address} has the batch. Lower train.learning_rate or train.gradient_clip, or look at the pairs: "
        f"{', '.join(key for part in collectives.all_gather(list(step.keys)) for key in part)}"
    )


def _validate_and_report(
    trainer: Trainer, meter: ProgressMeter, context: WorkerContext, validation: Callable[[], Iterator[EvaluationPair]]
) -> None:
    """Validate, add an entry to the history, and report it with a checkpoint."""
    progress = trainer.progress
    stats = meter.stats(progress, trainer.recipe)
    val_psnr = context.retry_while_unavailable("shards cannot be read", lambda: _validate(trainer, validation))
    if math.isnan(val_psnr):
        raise TrainingFailed(
            f"step {progress.step}: the PSNR of the averaged network on the validation pairs is not a number. Lower "
            "train.learning_rate or train.gradient_clip"
        )
    trainer.update_best(val_psnr)
    losses = progress.losses
    entry = {
        "step": progress.step,
        "loss": math.fsum(losses) / len(losses) if losses else math.nan,
        "learning_rate": learning_rate(progress.step - 1, trainer.recipe),
        "val_psnr": val_psnr,
        "skipped_steps": progress.skipped,
    }
    progress.history.append(entry)
    losses.clear()
    # A run that is resumed when a validation is due has made no step yet: its speed is unknown.
    speed = {name: stats[name] for name in ("images_per_second", "waiting_for_data") if stats["images_per_second"] > 0}
    _report(entry | speed, trainer, meter, context)
    if context.rank == 0:
        context.progress(progress.step, {**stats, **val_stats(progress)})


def _validate(trainer: Trainer, validation: Callable[[], Iterator[EvaluationPair]]) -> float:
    try:
        return trainer.validate(validation())
    except torch.OutOfMemoryError as error:
        if not trainer.release_graph():
            raise TrainingFailed(
                f"step {trainer.progress.step}: the device has too little memory to validate. Lower "
                f"synthesize.held_out_tile_size ({str(error).splitlines()[0]})"
            ) from error
    return _validate(trainer, validation)  # here, because the error keeps the tensors of the first try


def _report(metrics: dict[str, Any], trainer: Trainer, meter: ProgressMeter, context: WorkerContext) -> None:
    if context.rank != 0:
        context.report(metrics, None)
        return
    with tempfile.TemporaryDirectory() as folder:
        context.retry_while_unavailable("the checkpoint cannot be written", lambda: trainer.save(Path(folder)))
        context.report(metrics, Path(folder))
    meter.saved = time.monotonic()


class _BatchReader:
    """Reads the batches of this worker. After an OSError it makes a new iterator, from the step that is asked for."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.iterator: Iterator[Batch] | None = None

    def read(self, step: int) -> Batch:
        """Return the batch of `step`, which is the next one, or the last one again if it could not be read."""
        if self.iterator is None:
            self.iterator = self.batches(step)
        try:
            return next(self.iterator)
        except OSError:
            self.iterator = None
            raise
