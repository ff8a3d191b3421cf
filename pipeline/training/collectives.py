"""The other workers of a training run, asked through torch.distributed; alone where it is not initialised."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def rank() -> int:
    """Return this worker's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many workers there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_gather(mine: list[Any]) -> list[list[Any]]:
    """Return every worker's list, by rank, on every worker."""
    if world_size() == 1:
        return [mine]
    everyones: list[list[Any]] = [[] for _ in range(world_size())]
    dist.all_gather_object(everyones, mine)
    return everyones


def broadcast(mine: Any) -> Any:
    """Return what rank 0 gave, on every worker."""
    if world_size() == 1:
        return mine
    given = [mine]
    dist.broadcast_object_list(given, src=0)
    return given[0]
