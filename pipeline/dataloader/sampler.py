"""Deterministic order of training samples: maps (step, slot) to (epoch, shard, index).

A *slot* is a position of the global batch. In each epoch the shards are shuffled by (seed, epoch), and the samples of
each shard by (seed, epoch, shard). Laid end to end they are cut into `batch_size` equal parts, one for each slot:

    epoch, s = divmod(step, S)        sample at (step, slot) = samples of the epoch[slot·S + s]

where S = ⌊number of samples / batch_size⌋ is the number of steps of an epoch. The remainder that does not fill a batch
is left out, a different one in each epoch.

The sample at (step, slot) is computed, not replayed. So the global batches are the same for any number of ranks, a
resumed run starts at its step without reading earlier samples, and the step is the only state. A rank owns
neighbouring slots and each slot reads its samples shard by shard, so a rank opens few shards at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np

from pipeline.shards.format import Index

SLOTS_MIXED = 4  # mixup mixes within groups of 4 to 7 neighbouring slots, so that a rank opens few more shards


@dataclass(frozen=True)
class SampleOrder:
    """Order of the samples of a folder of shards, for all steps.

    Args:
        index: the index of the folder of shards.
        batch_size: size of the global batch.
        seed: seed of the training.

    Raises:
        ValueError: the shards hold fewer samples than one batch.
    """

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
        """S: steps in which each sample is used once, except for a remainder smaller than a batch."""
        return self.index.samples // self.batch_size

    def locate(self, step: int, slot: int) -> tuple[int, int, int]:
        """Return (epoch, number of the shard, index of the sample in it) for a step and a slot of the global batch."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        shards, ends = self._order(epoch)
        position = slot * self.steps_per_epoch + step_in_epoch
        number = int(np.searchsorted(ends, position, side="right"))
        shard = int(shards[number])
        size = self.index.shards[shard].samples
        return epoch, shard, int(_shuffle(size, self.seed, epoch, shard)[position - (int(ends[number]) - size)])

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the shards in the order of an epoch and where each ends; kept, as there may be thousands of shards."""
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
    """Return the slot that each slot is mixed with: a permutation within each group of neighbouring slots."""
    neighbours = np.array_split(np.arange(batch_size), max(1, batch_size // SLOTS_MIXED))
    return np.concatenate([rng.permutation(slots) for slots in neighbours])


def slots_of_rank(batch_size: int, rank: int, world_size: int) -> range:
    """Return the slots of the global batch that one rank owns; their number differs by at most one between ranks.

    Args:
        batch_size: size of the global batch.
        rank: 0 to `world_size` - 1.
        world_size: number of ranks.

    Raises:
        ValueError: there are more ranks than slots.
    """
    if world_size > batch_size:
        raise ValueError(f"{world_size} workers cannot share a batch of {batch_size}: use fewer workers")
    return range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


class BatchSampler:
    """Batch sampler of torch's DataLoader: yields the (step, slot) of all samples of each batch of one rank."""

    def __init__(self, first_step: int, num_steps: int, slots: range) -> None:
        self.steps, self.slots = range(first_step, num_steps), slots

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(step, slot) for slot in self.slots] for step in self.steps)

    def __len__(self) -> int:
        return len(self.steps)
