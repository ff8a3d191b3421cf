"""Exchanges Python objects between the workers of a training run, through torch.distributed.

If torch.distributed is not initialised, there is one worker.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def rank() -> int:
    """Return the number of this worker, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of workers."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_gather(own: list[Any]) -> list[list[Any]]:
    """Return the lists of all workers, by rank. Every worker must call it, and gets the same result."""
    if world_size() == 1:
        return [own]
    lists: list[list[Any]] = [[] for _ in range(world_size())]
    dist.all_gather_object(lists, own)
    return lists


def broadcast(value: Any) -> Any:
    """Return the value of rank 0. Every worker must call it; the values of other ranks are ignored."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
