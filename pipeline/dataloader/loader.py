"""Shards to this worker's batches: an order that depends on nothing but the data, the seed and the batch size.

Position j of every global batch is a *stream*. In each pass over the data the shards are put in an order drawn from
(seed, pass), laid end to end and cut into `batch_size` equal stretches; stream j walks its stretch, in an order
shuffled within each shard. So the sample at (step, j) can be computed, not only replayed: any number of workers sees
the same global batches, a resumed run starts at its step without reading what went before, and the only state is the
step. A worker owns some of the streams and so opens few shards at a time. The remainder that does not fill a batch is
left out, another one in each pass.

What is drawn for a sample (crop, flip, turn, and the degradation when pairs are made online) comes from
(seed, key, pass). With mixup the sample at (step, j) is mixed with that at (step, p(j)), whoever owns it: it is
computed twice rather than sent; p and the weights are drawn from (seed, step). p stays within a few neighbouring
streams, so that a worker opens few shards more than its own.
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
    """Clean and degraded patches, and the keys of the pairs that they were cut from."""

    clean: Float[Tensor, "B C H W"]
    degraded: Float[Tensor, "B C H W"]
    keys: Sequence[str]


def batches(
    patches: PatchDataset,
    *,
    rank: int,
    num_workers: int,
    first_step: int,
    num_steps: int,
    processes: int,
    pin_memory: bool,
) -> Iterator[Batch]:
    """Yield worker `rank`'s share of the global batches `first_step` ... `num_steps` - 1.

    processes: how many loader processes decode; 0 decodes in a thread of this one, one batch ahead. The patches do not
    depend on it, nor on `num_workers`: the shares of all workers, laid side by side, are the global batch.
    """
    slots = slots_of_rank(patches.order.batch_size, rank, num_workers)
    loader = DataLoader(
        _Told(patches) if processes else patches,
        batch_sampler=BatchSampler(first_step, num_steps, slots),
        num_workers=processes,
        collate_fn=_collate_told if processes else collate,
        pin_memory=pin_memory,
        persistent_workers=False,
        generator=torch.Generator(),  # DataLoader draws a seed for its processes; not from the global generator
        prefetch_factor=4 if processes else None,
        multiprocessing_context="forkserver" if processes else None,
        worker_init_fn=_with_one_thread if processes else None,
    )
    return _raised(iter(loader)) if processes else _one_ahead(iter(loader))


def _with_one_thread(process: int) -> None:
    cv2.setNumThreads(1)  # of torch's own DataLoader sees to that


class _Told(Dataset[Any]):
    """Hands over an error of a loader process as a value: DataLoader would raise one that begins with a traceback."""

    def __init__(self, patches: PatchDataset) -> None:
        self.patches = patches

    def __getitem__(self, place: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, str] | Exception:
        try:
            return self.patches[place]
        except (ValueError, OSError) as error:
            return error


def _collate_told(samples: Sequence[Any]) -> Batch | Exception:
    return next((sample for sample in samples if isinstance(sample, Exception)), None) or collate(samples)


def _raised(batches: Iterator[Batch | Exception]) -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, Exception):
            raise batch
        yield batch


def _one_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Make the next batch while this one is worked on: torch and NumPy let go of the interpreter."""
    with ThreadPoolExecutor(1, "loader") as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def collate(samples: Sequence[tuple[np.ndarray, np.ndarray, str]]) -> Batch:
    """Lay patches side by side."""
    clean, degraded, keys = zip(*samples, strict=True)
    return Batch(_stack(clean), _stack(degraded), keys)


def _stack(patches: Sequence[np.ndarray]) -> Float[Tensor, "B C H W"]:
    batch = np.empty((len(patches), patches[0].shape[2], *patches[0].shape[:2]), np.float32)
    for place, patch in zip(batch, patches, strict=True):
        place[...] = patch.transpose(2, 0, 1)
    return torch.from_numpy(batch)
