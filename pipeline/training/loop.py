"""The course of a training: steps, validation, checkpoints; told where to report.

The loop knows the world as the callables of `Ports` and, when torch.distributed is initialised, its other workers.
Whatever is random in training is a function of (seed, step), see `pipeline.dataloader`; whatever else has a state is
in the checkpoint. So a run that was interrupted and resumed has the losses of one that was not.
"""

from __future__ import annotations

import io
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from dgunet.network import DGUNet
from pipeline.dataloader.loader import Batch
from pipeline.dataloader.pairs import EvaluationPair
from pipeline.training import collectives
from pipeline.training.progress import ProgressMeter
from pipeline.training.settings import Train
from pipeline.training.trainer import Progress, Training, learning_rate

# Reading a loss back makes the host wait for the device, so it looks at its figures, and asks for wishes, now and then.
MOST_STEPS_BETWEEN_LOOKS = {"cpu": 1, "cuda": 20}


class TrainingFailed(ValueError):
    """Training cannot go on; says at which step, on which pairs, and what to do."""


@dataclass(frozen=True)
class Ports:
    """What the loop needs of the world.

    batches: first step -> this worker's batches from there to the last step.
    validation: -> this worker's share of the validation pairs, a stretch of them.
    report: (metrics, checkpoint folder or None), called by every worker at the same steps; the folder is the
        receiver's to copy before it returns. Only rank 0 has one. No metrics: the checkpoint is all there is to tell.
    progress: (step, figures) every few seconds on rank 0, for a person to watch.
    stop_requested: asked at every look on rank 0 (each step on a CPU, each second on a GPU); when true, all workers
        save a checkpoint and return.
    save_requested: likewise; all save a checkpoint and go on.
    keep: (name, content) of a file worth keeping when training fails; returns where it was put.
    patiently: (what an OSError means, action) where one may pass: a full disk, a store of shards that is away.
    seconds_between_checkpoints: no more than these are lost, whatever happens, and a few steps.
    """

    batches: Callable[[int], Iterator[Batch]]
    validation: Callable[[], Iterator[EvaluationPair]]
    report: Callable[[dict[str, float], Path | None], None]
    progress: Callable[[int, dict[str, float]], None] = lambda step, figures: None
    stop_requested: Callable[[], bool] = lambda: False
    save_requested: Callable[[], bool] = lambda: False
    keep: Callable[[str, bytes], str] = lambda name, content: "nowhere"
    retry_while_unavailable: Callable[[str, Callable[[], Any]], Any] = lambda meaning, action: action()
    seconds_between_checkpoints: float = math.inf


class _Step(NamedTuple):
    """A step whose figures the host has not read yet."""

    number: int
    keys: Sequence[str]
    loss: Tensor
    gradient_norm: Tensor


def fit(
    network: DGUNet,
    recipe: Train,
    ports: Ports,
    *,
    device: torch.device,
    resume: AbstractContextManager[Path | None],
) -> Progress:
    """Train `network` by `recipe` on `device`, from the start or from the checkpoint folder that `resume` holds.

    Validates and reports, with a checkpoint, every `recipe.validate_every` steps and at the end; has checkpoints in
    between as `ports` asks. Raises TrainingFailed when more than `recipe.max_skipped_steps` steps in a row had a
    gradient that is not finite, or validation had.
    """
    training = Training(network, recipe, device)
    with resume as folder:
        if folder is not None:
            training.load(folder)
    progress = training.progress
    meter = ProgressMeter(progress.step)
    pending: list[_Step] = []
    batches = _Batches(ports)
    next_look = progress.step + 1
    while True:
        if _due(progress, recipe):
            _validated(training, meter, ports)
        if progress.step == recipe.num_steps:
            return progress
        with meter.waiting():
            batch = ports.retry_while_unavailable("shards cannot be read", lambda: batches.next(progress.step))
        pending.append(_Step(progress.step, batch.keys, *_stepped(training, batch)))
        due = _due(progress, recipe)
        if not due and progress.step < next_look:
            continue
        progress.losses += _read_back(pending, progress, recipe, ports)
        if collectives.rank() == 0 and meter.due():
            ports.progress(progress.step, meter.figures(progress, recipe))
        timely = not due and meter.seconds_unsaved() > ports.seconds_between_checkpoints
        wishes = None
        if collectives.rank() == 0:
            steps = meter.steps_to_next_look(progress.step, MOST_STEPS_BETWEEN_LOOKS[device.type])
            wishes = ports.stop_requested(), ports.save_requested() or timely, steps
        stop, save, steps = collectives.broadcast(wishes)
        next_look = progress.step + steps
        if stop or save:  # what was done is saved first, before any validation; no trace of it is left in the history
            _report({}, training, meter, ports)
        if stop:
            return progress


def _stepped(training: Training, batch: Batch) -> tuple[Tensor, Tensor]:
    try:
        return training.step(batch)
    except torch.OutOfMemoryError as error:
        raise TrainingFailed(
            f"step {training.progress.step}: the device has too little memory for it. Raise train.compute.accumulate "
            "(the same step in parts), set train.compute.recompute_activations: true, or lower train.batch_size or "
            f"train.patch_size ({str(error).splitlines()[0]})"
        ) from error


def _due(progress: Progress, recipe: Train) -> bool:
    """Return whether the network is to be validated as it is now."""
    validated = progress.history[-1]["step"] if progress.history else 0
    at_an_end = progress.step % recipe.validate_every == 0 or progress.step == recipe.num_steps
    return at_an_end and progress.step > validated


def _read_back(pending: list[_Step], progress: Progress, recipe: Train, ports: Ports) -> list[float]:
    """Read the figures of the pending steps, count those that were skipped, and empty the list."""
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
            raise _hopeless(step, loss, norm, progress, ports)
    pending.clear()
    return losses


def _hopeless(step: _Step, loss: float, norm: float, progress: Progress, ports: Ports) -> TrainingFailed:
    """Keep this worker's share of the step's batch, read once more, and say what happened."""
    content = io.BytesIO()
    torch.save(next(ports.batches(step.number))._asdict(), content)
    kept = ports.keep(f"batch-of-step-{step.number}-worker-{collectives.rank()}.pt", content.getvalue())
    return TrainingFailed(
        f"step {step.number}: the loss is {loss}, its gradient's norm {norm}, and so for "
        f"{progress.skipped_in_a_row} steps in a row. The weights before them are in the last checkpoint, the batch is "
        f"in {kept}. Lower train.learning_rate or train.gradient_clip, or look at the pairs: "
        f"{', '.join(key for part in collectives.all_gather(list(step.keys)) for key in part)}"
    )


def _validated(training: Training, meter: ProgressMeter, ports: Ports) -> None:
    """Validate, add a line to the history, and report it with a checkpoint."""
    progress = training.progress
    figures = meter.figures(progress, training.recipe)
    val_psnr = ports.retry_while_unavailable("shards cannot be read", lambda: training.validate(ports.validation()))
    if math.isnan(val_psnr):
        raise TrainingFailed(
            f"step {progress.step}: what the averaged network makes of the validation pairs is not a number. Lower "
            "train.learning_rate or train.gradient_clip"
        )
    training.keep_best(val_psnr)
    losses = progress.losses
    line = {
        "step": progress.step,
        "loss": math.fsum(losses) / len(losses) if losses else math.nan,
        "learning_rate": learning_rate(progress.step - 1, training.recipe),
        "val_psnr": val_psnr,
        "skipped_steps": progress.skipped,
    }
    progress.history.append(line)
    losses.clear()
    speed = {name: figures[name] for name in ("images_per_second", "waiting_for_data")}
    _report(line | speed, training, meter, ports)
    if collectives.rank() == 0:
        ports.progress(progress.step, {**figures, "val_psnr": val_psnr})


def _report(metrics: dict[str, Any], training: Training, meter: ProgressMeter, ports: Ports) -> None:
    if collectives.rank() != 0:
        ports.report(metrics, None)
        return
    with tempfile.TemporaryDirectory() as folder:
        ports.retry_while_unavailable("the checkpoint cannot be written", lambda: training.save(Path(folder)))
        ports.report(metrics, Path(folder))
    meter.saved = time.monotonic()


class _Batches:
    """This worker's batches; after an error they go on at the step that is asked for, as an iterator does not."""

    def __init__(self, ports: Ports) -> None:
        self.begin = ports.batches
        self.coming: Iterator[Batch] | None = None

    def next(self, step: int) -> Batch:
        """Return the batch of `step`; steps are asked for one by one, again where it could not be read."""
        if self.coming is None:
            self.coming = self.begin(step)
        try:
            return next(self.coming)
        except OSError:
            self.coming = None
            raise
