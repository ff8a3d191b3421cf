"""What the training loop needs from the process that runs it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class WorkerContext:
    """Rank and device of a worker, its checkpoint to continue from, and callbacks. The defaults suit a single worker.

    Attributes:
        rank: number of this worker, from 0.
        world_size: number of workers.
        device: device of the network.
        resume: context manager of the checkpoint folder to continue from, or of None. The folder may vanish afterwards.
        report: (metrics, checkpoint folder or None); every worker calls it at the same steps, only rank 0 has a folder.
            Returns when the checkpoint is in the storage. Without metrics, only the checkpoint is stored.
        progress: (step, stats) every few seconds on rank 0, to be shown; does not wait.
        notice: (one line of text) to be shown to the user; does not wait.
        stop_requested: whether all workers are to save a checkpoint and return; does not wait. Called on rank 0, after
            each step on a CPU and about each second on a GPU.
        save_requested: whether all workers are to save a checkpoint and continue; called at the same steps.
        keep_file: (name, content) of a file to store beside the checkpoints; returns its address, or why there is none.
        retry_while_unavailable: (message, action); calls the action until it raises no OSError (a full disk, an
            unreachable storage), and returns its result. The message names what failed.
        seconds_between_checkpoints: the longest time between two checkpoints, plus a few steps.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (it cannot be changed)
    resume: AbstractContextManager[Path | None] = nullcontext()  # noqa: RUF009 (it has no state)
    report: Callable[[dict[str, float], Path | None], None] = lambda metrics, folder: None
    progress: Callable[[int, dict[str, float]], None] = lambda step, stats: None
    notice: Callable[[str], None] = lambda text: None
    stop_requested: Callable[[], bool] = lambda: False
    save_requested: Callable[[], bool] = lambda: False
    keep_file: Callable[[str, bytes], str] = lambda name, content: "no file"
    retry_while_unavailable: Callable[[str, Callable[[], Any]], Any] = lambda meaning, action: action()
    seconds_between_checkpoints: float = math.inf
