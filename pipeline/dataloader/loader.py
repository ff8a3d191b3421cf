"""Batches of one rank: its slots of each global batch, collated to tensors B C H W by torch's DataLoader.

The batches of all ranks, concatenated in the order of the ranks, are the global batch of `SampleOrder`: the same for
any number of ranks and of loader processes, and from any first step on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.dataloader.dataset import PatchDataset
from pipeline.dataloader.sampler import BatchSampler, slots_of_rank


class Batch(NamedTuple):
    """Clean and degraded patches, and the keys of the pairs that they come from."""

    clean: Float[Tensor, "B C H W"]
    degraded: Float[Tensor, "B C H W"]
    keys: Sequence[str]


def batches(
    patches: PatchDataset,
    *,
    rank: int,
    world_size: int,
    first_step: int,
    num_steps: int,
    num_loader_processes: int,
    pin_memory: bool,
) -> Iterator[Batch]:
    """Yield one rank's part of the global batches `first_step` to `num_steps` - 1.

    Args:
        patches: the training patches.
        rank: 0 to `world_size` - 1.
        world_size: number of ranks.
        first_step: step of the first batch; later than 0 in a resumed run.
        num_steps: step at which the training ends.
        num_loader_processes: processes that decode; 0 decodes in a thread of this process, one batch ahead.
        pin_memory: whether the batches lie in pinned memory, for faster copies to a GPU.

    Raises:
        ValueError: more ranks than samples in a batch; or, while it yields, a damaged shard.
        OSError: while it yields, a shard cannot be read.
    """
    slots = slots_of_rank(patches.order.batch_size, rank, world_size)
    loader = DataLoader(
        _ErrorsAsItems(patches) if num_loader_processes else patches,
        batch_sampler=BatchSampler(first_step, num_steps, slots),
        num_workers=num_loader_processes,
        collate_fn=_collate_or_error if num_loader_processes else collate,
        pin_memory=pin_memory,
        persistent_workers=False,
        generator=torch.Generator(),  # DataLoader would draw the seed of its processes from the global generator
        prefetch_factor=4 if num_loader_processes else None,
        multiprocessing_context="forkserver" if num_loader_processes else None,
        worker_init_fn=_use_one_thread if num_loader_processes else None,
    )
    return _reraise(iter(loader)) if num_loader_processes else _prefetch(iter(loader))


def _use_one_thread(worker_id: int) -> None:
    cv2.setNumThreads(1)  # DataLoader itself sets torch to one thread


class _ErrorsAsItems(Dataset[Any]):
    """Returns errors of a loader process as items: DataLoader would replace their message by a traceback."""

    def __init__(self, patches: PatchDataset) -> None:
        self.patches = patches

    def __getitem__(self, position: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, str] | Exception:
        try:
            return self.patches[position]
        except (ValueError, OSError) as error:
            return error


def _collate_or_error(samples: Sequence[Any]) -> Batch | Exception:
    return next((sample for sample in samples if isinstance(sample, Exception)), None) or collate(samples)


def _reraise(batches: Iterator[Batch | Exception]) -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, Exception):
            raise batch
        yield batch


def _prefetch(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Make the next batch in a thread while the current one is used: torch and NumPy release the GIL."""
    with ThreadPoolExecutor(1, "loader") as pool:
        future = pool.submit(next, batches, None)
        while (batch := future.result()) is not None:
            future = pool.submit(next, batches, None)
            yield batch


def collate(samples: Sequence[tuple[np.ndarray, np.ndarray, str]]) -> Batch:
    """Stack samples into one batch."""
    clean, degraded, keys = zip(*samples, strict=True)
    return Batch(_stack(clean), _stack(degraded), keys)


def _stack(patches: Sequence[np.ndarray]) -> Float[Tensor, "B C H W"]:
    batch = np.empty((len(patches), patches[0].shape[2], *patches[0].shape[:2]), np.float32)
    for image, patch in zip(batch, patches, strict=True):
        image[...] = patch.transpose(2, 0, 1)
    return torch.from_numpy(batch)
