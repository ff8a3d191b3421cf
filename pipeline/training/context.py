"""What the training loop needs from the process that runs it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


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
    retry_while_unavailable: Callable[[str, Callable[[], Any]], Any]
