"""Batches depend on the shards, the seed and the batch size alone: not on world size, processes or interruptions."""

import threading
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
from pipeline.dataloader.pairs import online_pair
from pipeline.shards.format import DamagedShard, Index, Shard, write_index, write_shard


def loaded(
    folder: Path, rank: int, world_size: int, first: int, last: int, *, num_loader_processes: int = 0
) -> list[Batch]:
    patches = PatchDataset(folder, batch_size=4, patch_size=16, seed=1)
    return list(
        batches(
            patches, rank=rank, world_size=world_size, first_step=first, num_steps=last,
            num_loader_processes=num_loader_processes, pin_memory=False,
        )
    )  # fmt: skip


def joined(parts: list[list[Batch]]) -> list[Batch]:
    steps = []
    for shares in zip(*parts, strict=True):
        names = [key for part in shares for key in part.keys]
        steps.append(Batch(torch.cat([s.clean for s in shares]), torch.cat([s.degraded for s in shares]), names))
    return steps


def assert_equal(batches_a: list[Batch], batches_b: list[Batch]) -> None:
    assert len(batches_a) == len(batches_b)
    for one, other in zip(batches_a, batches_b, strict=True):
        assert list(one.keys) == list(other.keys)
        assert torch.equal(one.clean, other.clean)
        assert torch.equal(one.degraded, other.degraded)


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("online", [False, True])
def test_global_batches_do_not_depend_on_the_world_size(tmp_path: Path, world_size: int, online: bool) -> None:
    write_folder(tmp_path / "s", [7, 10, 6], online=online)
    alone = loaded(tmp_path / "s", 0, 1, 0, 12)
    assert_equal(alone, joined([loaded(tmp_path / "s", rank, world_size, 0, 12) for rank in range(world_size)]))


def test_a_resumed_run_continues_the_batches_with_any_number_of_loader_processes(shards: Path) -> None:
    whole = loaded(shards / "train", 0, 1, 0, 9)
    assert_equal(whole[5:], loaded(shards / "train", 0, 1, 5, 9))
    assert_equal(whole[5:], loaded(shards / "train", 0, 1, 5, 9, num_loader_processes=2))


def test_resuming_reads_no_earlier_sample(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = PatchDataset(shards / "train", batch_size=4, patch_size=16, seed=1)
    reads: list[tuple[int, int]] = []
    original = PatchDataset.__getitem__
    monkeypatch.setattr(PatchDataset, "__getitem__", lambda self, at: reads.append(at) or original(self, at))
    next(
        batches(
            patches, rank=0, world_size=1, first_step=1000, num_steps=1001, num_loader_processes=0, pin_memory=False
        )
    )
    assert reads == [(1000, slot) for slot in range(4)]


def test_crops_of_clean_and_degraded_have_the_same_position(tmp_path: Path) -> None:
    write_folder(tmp_path / "s", [8])
    for batch in loaded(tmp_path / "s", 0, 1, 0, 2):
        assert batch.clean.shape == batch.degraded.shape == (4, 3, 16, 16)
        assert (batch.clean - batch.degraded).abs().max() <= 20.5 / 255


def test_pairs_made_online_differ_between_epochs_and_are_not_clipped(tmp_path: Path) -> None:
    write_folder(tmp_path / "s", [4], online=True)
    noises = {}
    for epoch, batch in enumerate(loaded(tmp_path / "s", 0, 1, 0, 2)):
        noise = batch.degraded - batch.clean
        assert noise.std() == pytest.approx(25 / 255, rel=0.1)
        assert batch.degraded.min() < 0 and batch.degraded.max() > 1
        noises[epoch] = dict(zip(batch.keys, noise, strict=True))
    assert all(not torch.equal(noises[0][key], noises[1][key]) for key in noises[0])


def orientations(image: np.ndarray) -> list[np.ndarray]:
    """The 8 flips and rotations of an image C H W."""
    turned = [np.rot90(image, turns, (1, 2)) for turns in range(4)]
    return [*turned, *(one[:, :, ::-1] for one in turned)]


def test_online_pair_makes_a_training_pair_again_bit_for_bit(tmp_path: Path) -> None:
    write_folder(tmp_path / "s", [3, 5], online=True)
    patches = PatchDataset(tmp_path / "s", batch_size=4, patch_size=24, seed=7)
    steps = batches(patches, rank=0, world_size=1, first_step=0, num_steps=6, num_loader_processes=0, pin_memory=False)
    for step, batch in enumerate(steps):
        for key, clean, degraded in zip(batch.keys, batch.clean, batch.degraded, strict=True):
            again = online_pair(tmp_path / "s", key, epoch=step // 2, seed=7)
            assert any(np.array_equal(one, again.clean.transpose(2, 0, 1)) for one in orientations(clean.numpy()))
            assert any(np.array_equal(one, again.degraded.transpose(2, 0, 1)) for one in orientations(degraded.numpy()))
            assert not np.array_equal(online_pair(tmp_path / "s", key, step // 2 + 1, 7).degraded, again.degraded)
    with pytest.raises(ValueError, match="holds no pair missing"):
        online_pair(tmp_path / "s", "missing", epoch=0, seed=7)


def test_the_whole_tile_is_degraded_before_the_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "s", [4], online=True)
    seen: list[tuple[int, ...]] = []
    original = dataloader_pairs.degrade
    monkeypatch.setattr(
        dataloader_pairs, "degrade", lambda clean, *rest: seen.append(clean.shape) or original(clean, *rest)
    )
    loaded(tmp_path / "s", 0, 1, 0, 1)
    assert seen == [(24, 24, 3)] * 4


def test_prefetching_raises_errors_and_ends_when_the_iterator_is_closed(tmp_path: Path, shards: Path) -> None:
    patches = PatchDataset(shards / "train", batch_size=4, patch_size=16, seed=1)
    world = {"rank": 0, "world_size": 1, "num_steps": 100, "num_loader_processes": 0, "pin_memory": False}
    before = threading.active_count()
    made = batches(patches, first_step=0, **world)
    next(made)
    made.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    write_folder(tmp_path / "t", [8])
    (tmp_path / "t" / "000000.tar").unlink()
    with pytest.raises(DamagedShard, match=r"000000\.tar is missing"):
        list(batches(PatchDataset(tmp_path / "t", batch_size=4, patch_size=16, seed=2), first_step=0, **world))


def test_an_error_of_a_loader_process_keeps_its_message(shards: Path) -> None:
    (shards / "train" / "000000.tar").unlink()
    with pytest.raises(DamagedShard, match=r"000000\.tar is missing") as error:
        loaded(shards / "train", 0, 1, 0, 20, num_loader_processes=1)
    assert "Traceback" not in str(error.value)


def test_too_few_samples_for_a_batch_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "s", [3])
    with pytest.raises(ValueError, match=r"train\.batch_size"):
        PatchDataset(tmp_path / "s", batch_size=4, patch_size=16, seed=1)


def test_a_patch_larger_than_a_tile_is_refused_with_a_remedy(tmp_path: Path) -> None:
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


def test_global_random_states_are_not_changed(shards: Path) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    loaded(shards / "train", 0, 1, 0, 3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


class Threads(PatchDataset):
    """Returns in place of the key the number of threads that OpenCV uses."""

    def __getitem__(self, position: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, str]:
        return (*super().__getitem__(position)[:2], str(cv2.getNumThreads()))


def test_a_loader_process_uses_one_thread(shards: Path) -> None:
    world = {"rank": 0, "world_size": 1, "first_step": 0, "num_steps": 1, "pin_memory": False}
    (batch,) = batches(Threads(shards / "train", 4, 16, seed=1), num_loader_processes=1, **world)
    assert list(batch.keys) == ["1"] * 4


def mixed(folder: Path, rank: int = 0, world_size: int = 1, seed: int = 1) -> list[Batch]:
    patches = PatchDataset(folder, batch_size=4, patch_size=16, seed=seed, mixup_alpha=0.6)
    world = {"rank": rank, "world_size": world_size}
    return list(batches(patches, first_step=0, num_steps=12, num_loader_processes=0, pin_memory=False, **world))


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("online", [False, True])
def test_mixup_batches_do_not_depend_on_the_world_size(tmp_path: Path, world_size: int, online: bool) -> None:
    write_folder(tmp_path / "s", [7, 10, 6], online=online)
    assert_equal(mixed(tmp_path / "s"), joined([mixed(tmp_path / "s", rank, world_size) for rank in range(world_size)]))


def test_each_shard_is_opened_once_in_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "s", [2] * 40)
    opened: list[str] = []

    def counted(folder: Path, entry: Any) -> Shard:
        opened.append(entry.name)
        return Shard(folder, entry)

    monkeypatch.setattr(dataset, "Shard", counted)
    dataset._shard_opener.cache_clear()
    patches = PatchDataset(tmp_path / "s", batch_size=40, patch_size=16, seed=1)
    for step in range(2):
        for slot in range(40):
            patches[step, slot]
    dataset._shard_opener.cache_clear()
    assert len(opened) == len(set(opened)) == 40


def test_mixup_interpolates_two_samples_of_the_batch_clean_and_degraded_alike(tmp_path: Path) -> None:
    write_folder(tmp_path / "s", [7, 10, 6])
    weights = []
    for plain, batch in zip(loaded(tmp_path / "s", 0, 1, 0, 12), mixed(tmp_path / "s"), strict=True):
        assert list(plain.keys) == list(batch.keys)
        samples = torch.cat([plain.clean, plain.degraded], dim=1).flatten(1).double()
        for slot, mixture in enumerate(torch.cat([batch.clean, batch.degraded], dim=1).flatten(1).double()):
            differences = samples - samples[slot]
            shares = (differences @ (mixture - samples[slot])) / differences.square().sum(1).clamp(min=1e-12)
            residuals = (mixture - samples[slot] - shares[:, None] * differences).norm(dim=1)
            partner = int(residuals.argmin())
            assert residuals[partner] < 1e-4
            weights.append(float(shares[partner]))
    assert min(weights) > -1e-4 and max(weights) < 1 + 1e-4
    assert max(weights) > 0.7


def test_mixup_depends_on_the_seed(tmp_path: Path) -> None:
    write_folder(tmp_path / "s", [23])
    assert_equal(mixed(tmp_path / "s"), mixed(tmp_path / "s"))
    assert not torch.equal(mixed(tmp_path / "s")[0].clean, mixed(tmp_path / "s", seed=2)[0].clean)
