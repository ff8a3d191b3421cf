"""The order of samples: each one once an epoch, shard by shard, and even parts for the ranks."""

from collections import Counter
from itertools import pairwise

import pytest

from pipeline.dataloader.sampler import SampleOrder, slots_of_rank
from pipeline.shards.format import Index, ShardEntry


def sample_order(sizes: list[int], batch_size: int, seed: int = 1) -> SampleOrder:
    index = Index({}, tuple(ShardEntry(f"{n:06d}.tar", size, 0, "", 24) for n, size in enumerate(sizes)))
    return SampleOrder(index, batch_size, seed)


@pytest.mark.parametrize(("sizes", "batch_size"), [([7, 10, 6], 4), ([1, 1, 50], 8), ([5], 5), ([3] * 40, 16)])
def test_an_epoch_uses_each_sample_once_but_for_a_remainder(sizes: list[int], batch_size: int) -> None:
    order = sample_order(sizes, batch_size)
    for epoch in range(3):
        first = epoch * order.steps_per_epoch
        located = [order.locate(first + s, j) for s in range(order.steps_per_epoch) for j in range(batch_size)]
        assert {sample[0] for sample in located} == {epoch}
        seen = Counter(sample[1:] for sample in located)
        assert max(seen.values()) == 1
        assert sum(sizes) - len(seen) == sum(sizes) % batch_size
        assert all(number < sizes[shard] for shard, number in seen)


def test_the_order_differs_between_epochs_and_between_seeds() -> None:
    def walk(seed: int, epoch: int) -> list[tuple[int, ...]]:
        order = sample_order([20, 20, 20], 4, seed)
        return [order.locate(epoch * order.steps_per_epoch + s, 0)[1:] for s in range(order.steps_per_epoch)]

    assert walk(1, 0) == walk(1, 0)
    assert walk(1, 0) != walk(1, 1)
    assert walk(1, 0) != walk(2, 0)


def test_a_slot_reads_its_samples_shard_by_shard() -> None:
    order = sample_order([10] * 32, 16)
    for slot in range(16):
        opened = [order.locate(step, slot)[1] for step in range(order.steps_per_epoch)]
        assert sum(a != b for a, b in pairwise(opened)) <= 2


def test_slots_of_all_ranks_are_even_and_cover_the_batch() -> None:
    for world_size in range(1, 8):
        shares = [slots_of_rank(16, rank, world_size) for rank in range(world_size)]
        assert [j for part in shares for j in part] == list(range(16))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    with pytest.raises(ValueError, match="17 workers cannot share a batch of 16"):
        slots_of_rank(16, 0, 17)
