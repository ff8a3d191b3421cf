"""Trains a network on one device: the state that a checkpoint holds, and the step that changes it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dgunet.checkpoint import build_network, save_model
from dgunet.config import LossKind
from dgunet.losses import stage_loss
from dgunet.metrics import HIGHEST_PSNR, psnr
from dgunet.network import DGUNet, DGUNetConfig
from dgunet.operator_loss import operator_loss
from dgunet.tensors import to_tensor
from pipeline.dataloader.loader import Batch
from pipeline.dataloader.pairs import EvaluationPair
from pipeline.training import collectives
from pipeline.training.cuda_graph import GradientGraph, gradient_graph
from pipeline.training.optimizers import build_optimizers
from pipeline.training.settings import OperatorLoss, Train

STATE = "state.pt"


class Objective(nn.Module):
    """The loss of a network on a batch as one module, for DistributedDataParallel to wrap."""

    def __init__(self, network: DGUNet, loss: LossKind, operators: OperatorLoss) -> None:
        super().__init__()
        self.network, self.loss, self.operators = network, loss, operators
        self.has_operator_loss = network.sensing is None and (operators.degradation > 0 or operators.adjoint > 0)

    def forward(self, clean: Tensor, degraded: Tensor) -> Tensor:
        """Return the scalar loss; a sensing network measures the clean patch itself."""
        estimates = self.network(self.network.network_input(clean, degraded))
        loss = stage_loss(estimates, clean, kind=self.loss)
        if self.has_operator_loss:
            degradation, adjoint = self.operators.degradation, self.operators.adjoint
            loss = loss + operator_loss(
                self.network, degraded, estimates, clean, degradation_weight=degradation, adjoint_weight=adjoint
            )
        return loss


@dataclass
class Progress:
    """Progress of training, a part of the checkpoint. It holds no times, so that equal runs have equal progress.

    Attributes:
        degraded_psnr: mean PSNR in dB of the degraded images of the val split; −inf before the first validation, and
            for a sensing network, whose input is no image.
    """

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_psnr: float = -math.inf
    best_step: int = 0
    degraded_psnr: float = -math.inf
    losses: list[float] = field(default_factory=list)  # since the last entry of the history
    history: list[dict[str, float | int]] = field(default_factory=list)


class Trainer:
    """A network in training with its averaged weights, its optimizers and its progress.

    Attributes:
        network: the network, on `device`.
        averaged: the network with exponentially averaged weights; it is validated and exported.
        best: the averaged weights with the highest validation PSNR so far, on the CPU; the initial weights, which
            change an image almost nothing, until a validation is better than the degraded images.
        progress: how far training has come.
        uses_graph: whether a CUDA graph is to compute the gradients; False once the first step has shown that it gains
            nothing, or that it cannot be captured.
        graph: the CUDA graph, from the first step on.
    """

    def __init__(
        self,
        network: DGUNet,
        recipe: Train,
        device: torch.device,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.recipe, self.device, self.notice = recipe, device, notice
        self.network = network.to(device)
        self.averaged = copy.deepcopy(self.network).requires_grad_(False)
        # Not torch's AveragedModel: at each step it reads a counter back, for which the host waits for the device.
        self._average = get_ema_multi_avg_fn(recipe.average_decay)  # type: ignore[no-untyped-call]
        self.best: dict[str, Tensor] = _on_cpu(self.averaged)
        self.progress = Progress()
        self.optimizers = build_optimizers(self.network, recipe)
        compute = recipe.compute
        # Graphs that exchange gradients and graphs of compiled stages have not been tried.
        self.uses_graph = device.type == "cuda" and collectives.world_size() == 1 and not compute.compile
        self.graph: GradientGraph | None = None
        self.network.recompute = compute.recompute_activations
        self.objective: nn.Module = Objective(self.network, recipe.loss, recipe.operator_loss)
        if compute.compile:  # by stage: as fast as the whole network, and a shared stage is compiled once
            for stage in dict.fromkeys(self.network.stages()):
                stage.compile()
        if collectives.world_size() > 1:
            self.objective = DistributedDataParallel(
                self.objective,
                device_ids=[device] if device.type == "cuda" else None,
                static_graph=compute.accumulate == 1,  # refuses several backward passes per step
                gradient_as_bucket_view=True,
            )

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Take one step; return this worker's part of the loss and the norm of the gradient, both on the device.

        The mean of the parts over all workers is the loss of the global batch. If the gradient is not finite, weights
        and optimizers stay unchanged, which is decided on the device.
        """
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.progress.step, self.recipe)
        if self.uses_graph and self.graph is None:
            self._capture(batch)
        if self.graph is not None:
            loss = self.graph(batch.clean, batch.degraded)
        else:
            loss = self._gradients(*(t.to(self.device, non_blocking=True) for t in (batch.clean, batch.degraded)))
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.gradient_clip)
        found_inf = (~torch.isfinite(norm)).float().reshape(())
        for optimizer in self.optimizers:
            optimizer.found_inf = found_inf  # type: ignore[attr-defined]  # torch reads it, but does not declare it
            optimizer.step()
        self._update_average()
        self.progress.step += 1
        return loss, norm.detach()

    @torch.no_grad()
    def validate(self, pairs: Iterator[EvaluationPair]) -> float:
        """Return the mean PSNR in dB of the averaged network over all workers' pairs, each counted once.

        Also sets `progress.degraded_psnr`.
        """
        network = self.averaged.eval()
        scores: list[tuple[str, float, float]] = []
        for pair in pairs:
            clean, degraded = (to_tensor(image).to(self.device) for image in (pair.clean, pair.degraded))
            with self._autocast():
                restored = network(network.network_input(clean, degraded))[-1]
            score, before = (float(psnr(image.float().clamp(0, 1), clean)) for image in (restored, degraded))
            scores.append((pair.key, min(score, HIGHEST_PSNR), min(before, HIGHEST_PSNR)))
        scores = sorted(score for part in collectives.all_gather(scores) for score in part)
        if not scores:
            raise ValueError("there is no validation pair: raise prepare.split.val, or add images")
        if network.sensing is None:
            self.progress.degraded_psnr = math.fsum(before for _, _, before in scores) / len(scores)
        return math.fsum(score for _, score, _ in scores) / len(scores)

    def update_best(self, val_psnr: float) -> None:
        """Copy the averaged weights to `best` if `val_psnr` is the highest so far, and above that of the input."""
        if val_psnr > max(self.progress.best_psnr, self.progress.degraded_psnr):
            self.progress.best_psnr, self.progress.best_step = val_psnr, self.progress.step
            self.best = _on_cpu(self.averaged)

    def save(self, folder: Path) -> None:
        """Write a checkpoint into `folder`. Raises OSError if that fails."""
        state = {
            "config": asdict(self.network.config),
            "progress": asdict(self.progress),
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "best": self.best,
        }
        try:
            torch.save(state, folder / STATE)
        except RuntimeError as error:  # torch's error for a full disk
            raise OSError(f"{folder / STATE} cannot be written: is the disk full? ({error})") from error

    def load(self, folder: Path) -> None:
        """Continue from the checkpoint in `folder`."""
        state = _read(folder)
        self.progress = Progress(**state["progress"])
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        self.best = state["best"]

    def _capture(self, batch: Batch) -> None:
        try:
            self.graph = gradient_graph(self._gradients, batch.clean, batch.degraded, self.device)
        except RuntimeError as error:  # also OutOfMemoryError: a graph's memory pool is not shared
            reason = str(error).partition("\n")[0]
            self.notice(f"without a CUDA graph, which makes steps of small networks slower: {reason}")
        self.uses_graph = self.graph is not None

    def release_graph(self) -> bool:
        """Free the memory of the CUDA graph; later steps are computed without. Return whether there was a graph."""
        had_graph, self.graph, self.uses_graph = self.graph is not None, None, False
        for parameter in self.network.parameters():
            parameter.grad = None  # they are in the graph's memory
        return had_graph

    def _gradients(self, clean: Tensor, degraded: Tensor) -> Tensor:
        """Set the gradients to those of this worker's part of a batch, and return its part of the loss."""
        for parameter in self.network.parameters():
            parameter.grad = None
        parts = list(zip(*(t.chunk(self.recipe.compute.accumulate) for t in (clean, degraded)), strict=True))
        losses = []
        for number, (clean_part, degraded_part) in enumerate(parts, 1):
            # DistributedDataParallel averages over workers; their parts of the batch may differ by one image.
            weight = len(clean_part) * collectives.world_size() / self.recipe.batch_size
            with self._without_gradient_exchange() if number < len(parts) else nullcontext():
                with self._autocast():
                    loss = self.objective(clean_part, degraded_part) * weight
                loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    @torch.no_grad()
    def _update_average(self) -> None:
        averaged, live = (list[Tensor](network.parameters()) for network in (self.averaged, self.network))
        if self.progress.step == 0:
            torch._foreach_copy_(averaged, live)
        else:
            self._average(averaged, live, None)

    def _without_gradient_exchange(self) -> AbstractContextManager[Any]:
        """Add gradients up on this worker; the backward pass of the last part averages them over all workers."""
        return self.objective.no_sync() if isinstance(self.objective, DistributedDataParallel) else nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.compute.precision == "bfloat16" and has_bfloat16_units(self.device):
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()


def learning_rate(step: int, recipe: Train) -> float:
    """Return the learning rate of step `step` (from 0): linear warm-up, then a cosine to the final one."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.num_steps - 1 - recipe.warmup_steps)
    final = recipe.final_learning_rate
    return final + (recipe.learning_rate - final) * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def has_bfloat16_units(device: torch.device) -> bool:
    """Return whether the device computes faster in bfloat16 than in float32: GPUs since Ampere, CPUs with AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def read_progress(folder: Path) -> Progress:
    """Return the progress that a checkpoint holds."""
    return Progress(**_read(folder)["progress"])


def history(folder: Path) -> list[dict[str, float | int]]:
    """Return the entries of a checkpoint's history, one for each validation."""
    return read_progress(folder).history


def export(folder: Path, model: Path, card: Mapping[str, Any]) -> None:
    """Write the best weights of a checkpoint as a model folder.

    Args:
        folder: the checkpoint.
        model: the model folder to write.
        card: the model card; the best step and its PSNR are added as `provenance.metrics`.
    """
    state = _read(folder)
    network = build_network(DGUNetConfig(**state["config"]), state["best"], "best weights so far")
    steps, val_psnr = state["progress"]["best_step"], state["progress"]["best_psnr"]
    metrics = {"steps": steps, "val_psnr": val_psnr} if steps else {"steps": steps}
    save_model(network, model, {**card, "provenance": {**card["provenance"], "metrics": metrics}})


def _read(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / STATE, weights_only=True, map_location="cpu")
    return state


def _on_cpu(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}
