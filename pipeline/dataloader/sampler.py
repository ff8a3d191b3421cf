"""Deterministic order of training samples: maps (step, slot) to (epoch, shard, index)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np

from pipeline.shards.format import Index

SLOTS_MIXED = 4  # mixup mixes within so many streams, or up to twice as many


@dataclass(frozen=True)
class SampleOrder:
    """The order of all samples for ever: `at(step, stream)` is (pass, shard, sample in the shard)."""

    index: Index
    batch_size: int
    seed: int
    _orders: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.index.samples < self.batch_size:
            raise ValueError(
                f"batch_size is {self.batch_size}, but the training shards hold only {self.index.samples} samples: "
                "lower train.batch_size, or make more pairs (smaller synthesize.stride, more copies, more images)"
            )

    @cached_property
    def steps_per_epoch(self) -> int:
        """Steps until each sample was seen once (but for a remainder smaller than a batch)."""
        return self.index.samples // self.batch_size

    def at(self, step: int, slot: int) -> tuple[int, int, int]:
        """Return (pass, number of the shard, number of the sample in it) for stream `stream` at `step`."""
        epoch, within = divmod(step, self.steps_per_epoch)
        shards, ends = self._order(epoch)
        place = slot * self.steps_per_epoch + within
        position = int(np.searchsorted(ends, place, side="right"))
        shard = int(shards[position])
        size = self.index.shards[shard].samples
        return epoch, shard, int(_shuffle(size, self.seed, epoch, shard)[place - (int(ends[position]) - size)])

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the shards in the order of a pass, and where each ends; drawn once, as they may be thousands."""
        order = self._orders.get(epoch)
        if order is None:
            sizes = np.array([entry.samples for entry in self.index.shards])
            shards = np.random.default_rng([self.seed, epoch]).permutation(len(sizes))
            order = shards, np.cumsum(sizes[shards])
            self._orders.clear()
            self._orders[epoch] = order
        return order


@lru_cache(maxsize=1024)
def _shuffle(size: int, seed: int, epoch: int, shard: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, shard]).permutation(size)


def partners(batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Return which stream each is mixed with: a permutation within each of a few neighbours."""
    neighbours = np.array_split(np.arange(batch_size), max(1, batch_size // SLOTS_MIXED))
    return np.concatenate([rng.permutation(slots) for slots in neighbours])


def slots_of_rank(batch_size: int, rank: int, num_workers: int) -> range:
    """Return the positions of a global batch that worker `rank` of `num_workers` owns: as even as can be."""
    if num_workers > batch_size:
        raise ValueError(f"{num_workers} workers cannot share a batch of {batch_size}: use fewer workers")
    return range(rank * batch_size // num_workers, (rank + 1) * batch_size // num_workers)


class BatchSampler:
    """The places (step, stream) of each of a worker's batches, in order."""

    def __init__(self, first_step: int, num_steps: int, slots: range) -> None:
        self.steps, self.slots = range(first_step, num_steps), slots

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(step, slot) for slot in self.slots] for step in self.steps)

    def __len__(self) -> int:
        return len(self.steps)
