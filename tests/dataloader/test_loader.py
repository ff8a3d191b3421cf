"""The order of samples: a function of data, seed and batch size alone, however many workers, resumed or not."""

import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from factories import pair, write_folder

from pipeline.dataloader import dataset
from pipeline.dataloader import pairs as dataloader_pairs
from pipeline.dataloader.dataset import PatchDataset
from pipeline.dataloader.loader import Batch, batches
from pipeline.dataloader.pairs import online_pair, pairs
from pipeline.dataloader.sampler import SampleOrder, slots_of_rank
from pipeline.degradations import regenerate
from pipeline.shards.format import DamagedShard, Index, Shard, ShardEntry, write_index, write_shard


def sample_order(sizes: list[int], batch_size: int, seed: int = 1) -> SampleOrder:
    index = Index({}, tuple(ShardEntry(f"{n:06d}.tar", size, 0, "", 24) for n, size in enumerate(sizes)))
    return SampleOrder(index, batch_size, seed)


def keys(folder: Path, rank: int, num_workers: int, first: int, last: int, *, processes: int = 0) -> list[Batch]:
    patches = PatchDataset(folder, batch_size=4, patch_size=16, seed=1)
    return list(
        batches(
            patches, rank=rank, num_workers=num_workers, first_step=first, num_steps=last,
            processes=processes, pin_memory=False,
        )
    )  # fmt: skip


def joined(parts: list[list[Batch]]) -> list[Batch]:
    steps = []
    for shares in zip(*parts, strict=True):
        names = [key for part in shares for key in part.keys]
        steps.append(Batch(torch.cat([s.clean for s in shares]), torch.cat([s.degraded for s in shares]), names))
    return steps


def same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert list(one.keys) == list(other.keys)
        assert torch.equal(one.clean, other.clean)
        assert torch.equal(one.degraded, other.degraded)


@pytest.mark.parametrize(("sizes", "batch_size"), [([7, 10, 6], 4), ([1, 1, 50], 8), ([5], 5), ([3] * 40, 16)])
def test_a_pass_sees_each_sample_once_but_for_a_remainder(sizes: list[int], batch_size: int) -> None:
    order = sample_order(sizes, batch_size)
    for epoch in range(3):
        first = epoch * order.steps_per_epoch
        places = [order.at(first + s, j) for s in range(order.steps_per_epoch) for j in range(batch_size)]
        assert {place[0] for place in places} == {epoch}
        seen = Counter(place[1:] for place in places)
        assert max(seen.values()) == 1
        assert sum(sizes) - len(seen) == sum(sizes) % batch_size
        assert all(number < sizes[shard] for shard, number in seen)


def test_each_pass_has_an_order_of_its_own_and_so_has_each_seed() -> None:
    def walk(seed: int, epoch: int) -> list[tuple[int, ...]]:
        order = sample_order([20, 20, 20], 4, seed)
        return [order.at(epoch * order.steps_per_epoch + s, 0)[1:] for s in range(order.steps_per_epoch)]

    assert walk(1, 0) == walk(1, 0)
    assert walk(1, 0) != walk(1, 1)
    assert walk(1, 0) != walk(2, 0)


def test_a_stream_opens_few_shards_at_a_time() -> None:
    order = sample_order([10] * 32, 16)
    for slot in range(16):
        opened = [order.at(step, slot)[1] for step in range(order.steps_per_epoch)]
        assert sum(a != b for a, b in pairwise(opened)) <= 2


@pytest.mark.parametrize("num_workers", [2, 3, 4])
@pytest.mark.parametrize("online", [False, True])
def test_any_number_of_workers_sees_the_same_global_batches(tmp_path: Path, num_workers: int, online: bool) -> None:
    write_folder(tmp_path / "s", [7, 10, 6], online=online)
    alone = keys(tmp_path / "s", 0, 1, 0, 12)
    same(alone, joined([keys(tmp_path / "s", rank, num_workers, 0, 12) for rank in range(num_workers)]))


def test_a_resumed_run_goes_on_where_it_stopped_with_any_number_of_processes(shards: Path) -> None:
    whole = keys(shards / "train", 0, 1, 0, 9)
    same(whole[5:], keys(shards / "train", 0, 1, 5, 9))
    same(whole[5:], keys(shards / "train", 0, 1, 5, 9, processes=2))


def test_resuming_reads_nothing_of_what_was_seen_before(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = PatchDataset(shards / "train", batch_size=4, patch_size=16, seed=1)
    reads: list[tuple[int, int]] = []
    original = PatchDataset.__getitem__
    monkeypatch.setattr(PatchDataset, "__getitem__", lambda self, place: reads.append(place) or original(self, place))
    next(batches(patches, rank=0, num_workers=1, first_step=1000, num_steps=1001, processes=0, pin_memory=False))
    assert reads == [(1000, slot) for slot in range(4)]


def test_crops_of_clean_and_degraded_are_of_the_same_place(tmp_path: Path) -> None:
    write_folder(tmp_path / "s", [8])
    for batch in keys(tmp_path / "s", 0, 1, 0, 2):
        assert batch.clean.shape == batch.degraded.shape == (4, 3, 16, 16)
        assert (batch.clean - batch.degraded).abs().max() <= 20.5 / 255


def test_pairs_made_online_are_new_in_each_pass_and_unclipped(tmp_path: Path) -> None:
    write_folder(tmp_path / "s", [4], online=True)
    noises = {}
    for epoch, batch in enumerate(keys(tmp_path / "s", 0, 1, 0, 2)):
        noise = batch.degraded - batch.clean
        assert noise.std() == pytest.approx(25 / 255, rel=0.1)
        assert batch.degraded.min() < 0 and batch.degraded.max() > 1
        noises[epoch] = dict(zip(batch.keys, noise, strict=True))
    assert all(not torch.equal(noises[0][key], noises[1][key]) for key in noises[0])


def orientations(image: np.ndarray) -> list[np.ndarray]:
    """The flips and quarter turns of an image C H W."""
    turned = [np.rot90(image, turns, (1, 2)) for turns in range(4)]
    return [*turned, *(one[:, :, ::-1] for one in turned)]


def test_a_pair_made_online_is_made_again_from_its_key_and_pass_bit_for_bit(tmp_path: Path) -> None:
    write_folder(tmp_path / "s", [3, 5], online=True)
    patches = PatchDataset(tmp_path / "s", batch_size=4, patch_size=24, seed=7)
    steps = batches(patches, rank=0, num_workers=1, first_step=0, num_steps=6, processes=0, pin_memory=False)
    for step, batch in enumerate(steps):
        for key, clean, degraded in zip(batch.keys, batch.clean, batch.degraded, strict=True):
            again = online_pair(tmp_path / "s", key, epoch=step // 2, seed=7)
            assert any(np.array_equal(one, again.clean.transpose(2, 0, 1)) for one in orientations(clean.numpy()))
            assert any(np.array_equal(one, again.degraded.transpose(2, 0, 1)) for one in orientations(degraded.numpy()))
            assert not np.array_equal(online_pair(tmp_path / "s", key, step // 2 + 1, 7).degraded, again.degraded)
    with pytest.raises(ValueError, match="holds no pair nobody"):
        online_pair(tmp_path / "s", "nobody", epoch=0, seed=7)


def test_the_record_of_a_pair_made_online_tells_what_was_drawn(tmp_path: Path) -> None:
    write_folder(tmp_path / "s", [2], online=True)
    for number, one in enumerate(pairs(tmp_path / "s")):
        assert one.record["number"] == number
        (step,) = one.record["degradation"]["steps"]
        assert (step["kind"], step["sigma"]) == ("gaussian_noise", 25.0)
        assert np.array_equal(regenerate(one.clean, one.record["degradation"]), one.degraded)
        assert np.array_equal(online_pair(tmp_path / "s", one.key, epoch=0, seed=1).degraded, one.degraded)


def test_a_patch_is_cut_from_the_degraded_tile_so_that_a_blur_sees_beyond_its_border(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "s", [4], online=True)
    seen: list[tuple[int, ...]] = []
    original = dataloader_pairs.degrade
    monkeypatch.setattr(
        dataloader_pairs, "degrade", lambda clean, *rest: seen.append(clean.shape) or original(clean, *rest)
    )
    keys(tmp_path / "s", 0, 1, 0, 1)
    assert seen == [(24, 24, 3)] * 4


def test_batches_made_ahead_raise_what_went_wrong_and_end_when_they_are_left(tmp_path: Path, shards: Path) -> None:
    patches = PatchDataset(shards / "train", batch_size=4, patch_size=16, seed=1)
    world = {"rank": 0, "num_workers": 1, "num_steps": 100, "processes": 0, "pin_memory": False}
    before = threading.active_count()
    made = batches(patches, first_step=0, **world)
    next(made)
    made.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    write_folder(tmp_path / "t", [8])
    (tmp_path / "t" / "000000.tar").unlink()
    with pytest.raises(DamagedShard, match=r"000000\.tar is missing"):
        list(batches(PatchDataset(tmp_path / "t", batch_size=4, patch_size=16, seed=2), first_step=0, **world))


def test_what_went_wrong_in_a_loader_process_is_told_in_its_own_words(shards: Path) -> None:
    (shards / "train" / "000000.tar").unlink()
    with pytest.raises(DamagedShard, match=r"000000\.tar is missing") as error:
        keys(shards / "train", 0, 1, 0, 20, processes=1)
    assert "Traceback" not in str(error.value)


def test_validation_sees_each_pair_exactly_once_and_the_same_each_time(tmp_path: Path) -> None:
    write_folder(tmp_path / "s", [2, 5, 1], online=True)
    whole = list(pairs(tmp_path / "s"))
    assert [pair.key for pair in whole] == [f"pair{n:04d}" for n in range(8)]
    for num_workers in (2, 3):
        shares = [list(pairs(tmp_path / "s", rank, num_workers)) for rank in range(num_workers)]
        assert sorted(pair.key for part in shares for pair in part) == [pair.key for pair in whole]
        by_key = {pair.key: pair for part in shares for pair in part}
        assert all(np.array_equal(by_key[pair.key].degraded, pair.degraded) for pair in whole)


def test_shares_are_even_and_cover_the_batch() -> None:
    for num_workers in range(1, 8):
        shares = [slots_of_rank(16, rank, num_workers) for rank in range(num_workers)]
        assert [j for part in shares for j in part] == list(range(16))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    with pytest.raises(ValueError, match="17 workers cannot share a batch of 16"):
        slots_of_rank(16, 0, 17)


def test_too_few_samples_are_told(tmp_path: Path) -> None:
    write_folder(tmp_path / "s", [3])
    with pytest.raises(ValueError, match=r"train\.batch_size"):
        PatchDataset(tmp_path / "s", batch_size=4, patch_size=16, seed=1)


def test_one_tile_that_is_too_small_is_told_before_the_first_step_with_what_helps(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    recipe = {"degradation": {"kind": "none"}, "online": False, "seed": 1, "tile_size": 48}
    images = [pair(0, size=48), pair(1, size=48), pair(2, size=20), pair(3, size=48)]
    entries = [write_shard(tmp_path / "s" / f"{n}.tar", images[2 * n : 2 * n + 2]) for n in range(2)]
    write_index(tmp_path / "s", Index(recipe, entries))
    assert PatchDataset(tmp_path / "s", batch_size=2, patch_size=20, seed=1).index.min_side == 20
    with pytest.raises(ValueError, match=r"train\.patch_size is 32, .* a side of 20 pixels: lower .* to 20,") as error:
        PatchDataset(tmp_path / "s", batch_size=2, patch_size=32, seed=1)
    assert "prepare.min_side to 32" in str(error.value)
    assert "tile_size" not in str(error.value), "the tiles that are too small are whole photographs"
    with pytest.raises(ValueError, match=r"synthesize\.tile_size to 64 or more and prepare\.min_side to 64"):
        PatchDataset(tmp_path / "s", batch_size=2, patch_size=64, seed=1)


def test_global_random_states_are_left_alone(shards: Path) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    keys(shards / "train", 0, 1, 0, 3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


class Threads(PatchDataset):
    """Says in place of its key how many threads OpenCV would use."""

    def __getitem__(self, place: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, str]:
        return (*super().__getitem__(place)[:2], str(cv2.getNumThreads()))


def test_a_loader_process_keeps_to_one_core(shards: Path) -> None:
    world = {"rank": 0, "num_workers": 1, "first_step": 0, "num_steps": 1, "pin_memory": False}
    (batch,) = batches(Threads(shards / "train", 4, 16, seed=1), processes=1, **world)
    assert list(batch.keys) == ["1"] * 4


def mixed(folder: Path, rank: int = 0, num_workers: int = 1, seed: int = 1) -> list[Batch]:
    patches = PatchDataset(folder, batch_size=4, patch_size=16, seed=seed, mixup_alpha=0.6)
    world = {"rank": rank, "num_workers": num_workers}
    return list(batches(patches, first_step=0, num_steps=12, processes=0, pin_memory=False, **world))


@pytest.mark.parametrize("num_workers", [2, 3, 4])
@pytest.mark.parametrize("online", [False, True])
def test_mixed_batches_are_the_same_for_any_number_of_workers(tmp_path: Path, num_workers: int, online: bool) -> None:
    write_folder(tmp_path / "s", [7, 10, 6], online=online)
    same(mixed(tmp_path / "s"), joined([mixed(tmp_path / "s", rank, num_workers) for rank in range(num_workers)]))


def test_each_shard_is_opened_once_in_a_pass_however_many_streams_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "s", [2] * 40)
    opened: list[str] = []

    def counted(folder: Path, entry: Any) -> Shard:
        opened.append(entry.name)
        return Shard(folder, entry)

    monkeypatch.setattr(dataset, "Shard", counted)
    dataset._opener.cache_clear()
    patches = PatchDataset(tmp_path / "s", batch_size=40, patch_size=16, seed=1)
    for step in range(2):
        for slot in range(40):
            patches[step, slot]
    dataset._opener.cache_clear()
    assert len(opened) == len(set(opened)) == 40


def test_a_mixed_pair_lies_between_two_of_its_batch_clean_and_degraded_alike(tmp_path: Path) -> None:
    write_folder(tmp_path / "s", [7, 10, 6])
    weights = []
    for plain, batch in zip(keys(tmp_path / "s", 0, 1, 0, 12), mixed(tmp_path / "s"), strict=True):
        assert list(plain.keys) == list(batch.keys)
        places = torch.cat([plain.clean, plain.degraded], dim=1).flatten(1).double()
        for own, ours in enumerate(torch.cat([batch.clean, batch.degraded], dim=1).flatten(1).double()):
            away = places - places[own]
            slots_of_rank = (away @ (ours - places[own])) / away.square().sum(1).clamp(min=1e-12)
            left = (ours - places[own] - slots_of_rank[:, None] * away).norm(dim=1)
            partner = int(left.argmin())
            assert left[partner] < 1e-4
            weights.append(float(slots_of_rank[partner]))
    assert min(weights) > -1e-4 and max(weights) < 1 + 1e-4
    assert max(weights) > 0.7


def test_how_pairs_are_mixed_follows_from_the_seed(tmp_path: Path) -> None:
    write_folder(tmp_path / "s", [23])
    same(mixed(tmp_path / "s"), mixed(tmp_path / "s"))
    assert not torch.equal(mixed(tmp_path / "s")[0].clean, mixed(tmp_path / "s", seed=2)[0].clean)
