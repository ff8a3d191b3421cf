"""Training steps, validation, checkpoint and resume: plain torch, told where to report.

The loop knows the world as four callables (`Ports`) and, when torch.distributed is initialised, its other workers.
Whatever is random in training is a function of (seed, step), see `pipeline.loader`; whatever else has a state is in
the checkpoint. So a run that was interrupted and resumed has the losses of one that was not.
"""

from __future__ import annotations

import io
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dgunet.checkpoint import assemble, save_model
from dgunet.losses import LossKind, stage_loss
from dgunet.metrics import psnr
from dgunet.network import DGUNet
from pipeline.loader import Batch, LoadedPair
from pipeline.params import Train

STATE, BEST = "state.pt", "best"
PROGRESS_SECONDS = 2.0
STEPS_BETWEEN_SYNCHRONISATIONS = {
    "cpu": 1,
    "cuda": 20,
}  # reading a loss back makes the host wait for the device


class TrainingFailed(ValueError):
    """Training cannot go on; says at which step, on which pairs, and what to do."""


@dataclass(frozen=True)
class Ports:
    """What the loop needs of the world.

    batches: first step -> this worker's batches from there to the last step.
    validation: -> this worker's share of the validation pairs, a stretch of them.
    report: (metrics, checkpoint folder or None), called by every worker at the same steps; the folder is the
        receiver's to copy before it returns. Only rank 0 has one.
    progress: (step, figures) every few seconds on rank 0, for a person to watch.
    stop_requested: polled at every step on rank 0; when true, all workers save a checkpoint and return.
    keep: (name, content) of a file worth keeping when training fails; returns where it was put.
    """

    batches: Callable[[int], Iterator[Batch]]
    validation: Callable[[], Iterator[LoadedPair]]
    report: Callable[[dict[str, float], Path | None], None]
    progress: Callable[[int, dict[str, float]], None] = lambda step, figures: None
    stop_requested: Callable[[], bool] = lambda: False
    keep: Callable[[str, bytes], str] = lambda name, content: "nowhere"


class Objective(nn.Module):
    """The loss of a network on a batch, as one module: what DistributedDataParallel wraps."""

    def __init__(self, network: DGUNet, loss: LossKind) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, clean: Tensor, degraded: Tensor) -> Tensor:
        """Return the scalar loss; a sensing network measures the clean patch itself."""
        sensing = self.network.config.sensing_ratio_percent is not None
        estimates = self.network(self.network.sense(clean) if sensing else degraded)
        return stage_loss(estimates, clean, kind=self.loss)


@dataclass
class Progress:
    """How far training has come: part of the checkpoint, and the same for equal runs (so no times)."""

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_psnr: float = -math.inf
    best_step: int = 0
    history: list[dict[str, float | int]] = field(default_factory=list)


class _Step(NamedTuple):
    """A step whose figures the host has not read yet."""

    number: int
    keys: Sequence[str]
    loss: Tensor
    gradient_norm: Tensor


class Training:
    """A network in training: what a checkpoint holds, and the step that changes it."""

    def __init__(self, network: DGUNet, recipe: Train, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.network = network.to(device)
        averaging = get_ema_multi_avg_fn(recipe.average_decay)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(self.network, multi_avg_fn=averaging)
        self.best: dict[str, Tensor] = _on_cpu(self.averaged.module)
        self.progress = Progress()
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
        self.objective: nn.Module = Objective(self.network, recipe.loss)
        if _num_workers() > 1:
            self.objective = DistributedDataParallel(
                self.objective,
                device_ids=[device] if device.type == "cuda" else None,
                static_graph=True,
                gradient_as_bucket_view=True,
            )

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Take one step; return its loss (mean over the global batch) and gradient norm, both on the device.

        Where the gradient is not finite the weights stay as they are: fused optimisers decide that on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.progress.step, self.recipe)
        self.optimizer.zero_grad(set_to_none=True)
        clean, degraded = (t.to(self.device, non_blocking=True) for t in (batch.clean, batch.degraded))
        # DistributedDataParallel averages over workers; their shares of the batch may differ by one.
        weight = len(batch.keys) * _num_workers() / self.recipe.batch_size
        with self._autocast():
            loss = self.objective(clean, degraded) * weight
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.gradient_clip)
        self.optimizer.found_inf = (~torch.isfinite(norm)).float().reshape(())  # type: ignore[attr-defined]
        self.optimizer.step()
        self.averaged.update_parameters(self.network)
        self.progress.step += 1
        return loss.detach(), norm.detach()

    @torch.no_grad()
    def validate(self, pairs: Iterator[LoadedPair]) -> float:
        """Return the mean PSNR in dB of the averaged network over all workers' pairs, each counted once."""
        network = cast(DGUNet, self.averaged.module).eval()
        sensing = self.network.config.sensing_ratio_percent is not None
        scores: list[tuple[str, float]] = []
        for pair in pairs:
            clean, degraded = (
                torch.from_numpy(image).permute(2, 0, 1)[None].to(self.device) for image in (pair.clean, pair.degraded)
            )
            with self._autocast():
                restored = network(network.sense(clean) if sensing else degraded)[-1]
            scores.append((pair.key, float(psnr(restored.float().clamp(0, 1), clean))))
        scores = sorted(score for part in _gathered(scores) for score in part)
        if not scores:
            raise ValueError("there is no validation pair: raise prepare.split.val, or add images")
        return math.fsum(score for _, score in scores) / len(scores)

    def keep_best(self, val_psnr: float) -> None:
        """Remember the averaged weights if `val_psnr` is the highest so far."""
        if val_psnr > self.progress.best_psnr:
            self.progress.best_psnr, self.progress.best_step = val_psnr, self.progress.step
            self.best = _on_cpu(self.averaged.module)

    def save(self, folder: Path, card: Mapping[str, Any]) -> None:
        """Write the whole state, and the best weights so far as a model folder, into the empty `folder`."""
        state = {
            "progress": asdict(self.progress),
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
        }
        torch.save(state, folder / STATE)
        best = assemble(self.network.config, self.best, "best weights so far")
        metrics = {"steps": self.progress.best_step, "val_psnr": self.progress.best_psnr}
        save_model(best, folder / BEST, {**card, "provenance": {**card["provenance"], "metrics": metrics}})

    def load(self, folder: Path) -> None:
        """Continue from the checkpoint in `folder`."""
        state = torch.load(folder / STATE, weights_only=True, map_location="cpu")
        self.progress = Progress(**state["progress"])
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = state["best"]

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.precision == "bfloat16" and has_bfloat16_units(self.device):
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()


def has_bfloat16_units(device: torch.device) -> bool:
    """Return whether products in bfloat16 are faster there than in float32: GPUs, and CPUs with matrix units (AMX)."""
    return device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16"))


def fit(
    network: DGUNet,
    recipe: Train,
    ports: Ports,
    *,
    device: torch.device,
    resume: Path | None,
    card: Mapping[str, Any],
) -> Progress:
    """Train `network` by `recipe` on `device`, from the start or from the checkpoint folder `resume`.

    Reports, with a checkpoint, every `recipe.validate_every` steps and at the end. Raises TrainingFailed when more than
    `recipe.max_skipped_steps` steps in a row had a gradient that is not finite.
    """
    training = Training(network, recipe, device)
    if resume is not None:
        training.load(resume)
    progress = training.progress
    watch = _Watch(progress.step)
    pending: list[_Step] = []
    losses: list[float] = []
    batches = ports.batches(progress.step)
    patience = STEPS_BETWEEN_SYNCHRONISATIONS[device.type]
    while progress.step < recipe.num_steps:
        with watch.waiting():
            batch = next(batches)
        pending.append(_Step(progress.step, batch.keys, *training.step(batch)))
        due = progress.step % recipe.validate_every == 0 or progress.step == recipe.num_steps
        if not due and progress.step % patience:
            continue
        losses += _read_back(pending, progress, recipe, ports)
        figures = {
            "loss": losses[-1] if losses else math.nan,
            "val_psnr": progress.best_psnr,
            **watch.figures(progress.step, recipe),
        }
        if _rank() == 0 and watch.due():
            ports.progress(progress.step, figures)
        stop = _agreed(ports.stop_requested() if _rank() == 0 else False)
        if due or stop:
            _report(training, losses, figures, ports, card)
            losses = []
        if stop:
            break
    return progress


def history(folder: Path) -> list[dict[str, float | int]]:
    """Return a checkpoint's reports, first to last."""
    state = torch.load(folder / STATE, weights_only=True, map_location="cpu")
    lines: list[dict[str, float | int]] = state["progress"]["history"]
    return lines


def learning_rate(step: int, recipe: Train) -> float:
    """Return the learning rate of step `step` (from 0): linear warm-up, then a cosine to the final one."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.num_steps - 1 - recipe.warmup_steps)
    final = recipe.final_learning_rate
    return final + (recipe.learning_rate - final) * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def _read_back(pending: list[_Step], progress: Progress, recipe: Train, ports: Ports) -> list[float]:
    """Read the figures of the pending steps, count those that were skipped, and empty the list."""
    losses = []
    total = torch.stack([step.loss for step in pending])
    if _num_workers() > 1:
        dist.all_reduce(total, op=dist.ReduceOp.AVG if total.is_cuda else dist.ReduceOp.SUM)
        total = total if total.is_cuda else total / _num_workers()
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
    kept = ports.keep(f"batch-of-step-{step.number}-worker-{_rank()}.pt", content.getvalue())
    return TrainingFailed(
        f"step {step.number}: the loss is {loss}, its gradient's norm {norm}, and so for "
        f"{progress.skipped_in_a_row} steps in a row. The weights before them are in the last checkpoint, the batch is "
        f"in {kept}. Lower train.learning_rate or train.gradient_clip, or look at the pairs: "
        f"{', '.join(key for part in _gathered(list(step.keys)) for key in part)}"
    )


def _report(
    training: Training,
    losses: list[float],
    figures: Mapping[str, float],
    ports: Ports,
    card: Mapping[str, Any],
) -> None:
    """Validate, add a line to the history, and report it with a checkpoint."""
    progress = training.progress
    val_psnr = training.validate(ports.validation())
    training.keep_best(val_psnr)
    line = {
        "step": progress.step,
        "loss": math.fsum(losses) / len(losses) if losses else math.nan,
        "learning_rate": learning_rate(progress.step - 1, training.recipe),
        "val_psnr": val_psnr,
        "skipped_steps": progress.skipped,
    }
    progress.history.append(line)
    speed = {name: figures[name] for name in ("images_per_second", "waiting_for_data")}
    if _rank() != 0:
        ports.report(line | speed, None)
        return
    with tempfile.TemporaryDirectory() as folder:
        training.save(Path(folder), card)
        ports.report(line | speed, Path(folder))
    ports.progress(progress.step, {**figures, "val_psnr": val_psnr})


class _Watch:
    """Times for a person to watch; they change nothing."""

    def __init__(self, first_step: int) -> None:
        self.first_step, self.started, self.shown, self.waited = first_step, time.monotonic(), 0.0, 0.0

    def waiting(self) -> AbstractContextManager[None]:
        return _Stopwatch(self)

    def due(self) -> bool:
        now = time.monotonic()
        if now - self.shown < PROGRESS_SECONDS:
            return False
        self.shown = now
        return True

    def figures(self, step: int, recipe: Train) -> dict[str, float]:
        seconds = max(time.monotonic() - self.started, 1e-9)
        steps_per_second = (step - self.first_step) / seconds
        return {
            "images_per_second": steps_per_second * recipe.batch_size,
            "seconds_left": (recipe.num_steps - step) / max(steps_per_second, 1e-9),
            "waiting_for_data": self.waited / seconds,
        }


class _Stopwatch(AbstractContextManager[None]):
    def __init__(self, watch: _Watch) -> None:
        self.watch = watch

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.watch.waited += time.monotonic() - self.started


def _on_cpu(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _num_workers() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _gathered(mine: list[Any]) -> list[list[Any]]:
    if _num_workers() == 1:
        return [mine]
    everyones: list[list[Any]] = [[] for _ in range(_num_workers())]
    dist.all_gather_object(everyones, mine)
    return everyones


def _agreed(flag: bool) -> bool:
    """Return rank 0's flag on every worker."""
    if _num_workers() == 1:
        return flag
    flags = [flag]
    dist.broadcast_object_list(flags, src=0)
    return flags[0]
