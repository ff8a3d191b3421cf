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

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dgunet.images import to_float
from pipeline.degradations import Degradation, Degraded, degrade
from pipeline.params import parse_degradation
from pipeline.shards import Index, Pair, Shard, ShardEntry, read_index

STREAMS_MIXED = 4  # mixup mixes within so many streams, or up to twice as many
_MIXUP = 1  # sets what is drawn for mixing apart from all else that is drawn from (seed, step)


class Batch(NamedTuple):
    """Clean and degraded patches, and the keys of the pairs that they were cut from."""

    clean: Float[Tensor, "B C H W"]
    degraded: Float[Tensor, "B C H W"]
    keys: Sequence[str]


@dataclass(frozen=True)
class LoadedPair:
    """One whole pair in [0, 1]; `degraded` may leave that range when it is made online.

    record: how the pair came to be, with what was drawn for it (`degradation`) also when it is made online.
    was_gray: whether the image's three channels are those of a gray file, three times.
    """

    key: str
    clean: Float32[np.ndarray, "H W C"]
    degraded: Float32[np.ndarray, "H W C"]
    record: dict[str, Any]
    was_gray: bool = False


@dataclass(frozen=True)
class Course:
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
    def steps_per_pass(self) -> int:
        """Steps until each sample was seen once (but for a remainder smaller than a batch)."""
        return self.index.samples // self.batch_size

    def at(self, step: int, stream: int) -> tuple[int, int, int]:
        """Return (pass, number of the shard, number of the sample in it) for stream `stream` at `step`."""
        turn, within = divmod(step, self.steps_per_pass)
        shards, ends = self._order(turn)
        place = stream * self.steps_per_pass + within
        position = int(np.searchsorted(ends, place, side="right"))
        shard = int(shards[position])
        size = self.index.shards[shard].samples
        return turn, shard, int(_shuffle(size, self.seed, turn, shard)[place - (int(ends[position]) - size)])

    def _order(self, turn: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the shards in the order of a pass, and where each ends; drawn once, as they may be thousands."""
        order = self._orders.get(turn)
        if order is None:
            sizes = np.array([entry.samples for entry in self.index.shards])
            shards = np.random.default_rng([self.seed, turn]).permutation(len(sizes))
            order = shards, np.cumsum(sizes[shards])
            self._orders.clear()
            self._orders[turn] = order
        return order


@lru_cache(maxsize=1024)
def _shuffle(size: int, seed: int, turn: int, shard: int) -> np.ndarray:
    return np.random.default_rng([seed, turn, shard]).permutation(size)


@lru_cache(maxsize=4)
def _opener(shards_kept_open: int) -> Callable[[Path, ShardEntry], Shard]:
    """Return what opens shards: to open one is to verify it whole, so those that are read from stay open."""
    return lru_cache(shards_kept_open)(Shard)


class Patches(Dataset[tuple[np.ndarray, np.ndarray, str]]):
    """Augmented training patches, addressed by (step, stream).

    index: what `folder` holds, where the folder itself is on another machine; default: its own.
    """

    def __init__(
        self,
        folder: Path,
        batch_size: int,
        patch_size: int,
        seed: int,
        mixup_alpha: float = 0.0,
        *,
        index: Index | None = None,
    ) -> None:
        self.folder = folder
        self.index = index or read_index(folder)
        self.course = Course(self.index, batch_size, seed)
        _check_patch_size(patch_size, self.index)
        self.degradation = online_degradation(self.index)
        self.patch_size = patch_size
        self.seed = seed
        self.mixup_alpha = mixup_alpha

    def __getitem__(self, place: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, str]:
        """Return (clean, degraded, key) of the patch at `place` = (step, stream); arrays H W C float32."""
        clean, degraded, key = self._patch(place)
        if self.mixup_alpha == 0:
            return clean, degraded, key
        step, stream = place
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, step], spawn_key=(_MIXUP,)))
        partner = int(_partners(self.course.batch_size, rng)[stream])
        weight = np.float32(rng.beta(self.mixup_alpha, self.mixup_alpha, self.course.batch_size)[stream])
        other_clean, other_degraded, _ = self._patch((step, partner))
        clean, degraded = (
            weight * ours + (1 - weight) * theirs for ours, theirs in ((clean, other_clean), (degraded, other_degraded))
        )
        return clean, degraded, key

    def _patch(self, place: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, str]:
        turn, shard, number = self.course.at(*place)
        opened = _opener(self.course.batch_size + 1)  # one for each stream, and the next of one that goes on
        pair = opened(self.folder, self.index.shards[shard]).arrays(number)
        rng = _generator(self.seed, pair.key, turn)
        seed = int(rng.integers(2**63))
        window = _window(pair.clean.shape[:2], self.patch_size, rng)
        mirror, quarter_turns = bool(rng.integers(2)), int(rng.integers(4))
        clean, degraded = _in_unit_range(pair, self.degradation, seed, window)
        clean, degraded = (_augment(image, mirror, quarter_turns) for image in (clean, degraded))
        return clean, degraded, pair.key


def _partners(batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Return which stream each is mixed with: a permutation within each of a few neighbours."""
    neighbours = np.array_split(np.arange(batch_size), max(1, batch_size // STREAMS_MIXED))
    return np.concatenate([rng.permutation(streams) for streams in neighbours])


def batches(
    patches: Patches,
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
    streams = share(patches.course.batch_size, rank, num_workers)
    loader = DataLoader(
        _Told(patches) if processes else patches,
        batch_sampler=_Places(first_step, num_steps, streams),
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

    def __init__(self, patches: Patches) -> None:
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


def share(batch_size: int, rank: int, num_workers: int) -> range:
    """Return the positions of a global batch that worker `rank` of `num_workers` owns: as even as can be."""
    if num_workers > batch_size:
        raise ValueError(f"{num_workers} workers cannot share a batch of {batch_size}: use fewer workers")
    return range(rank * batch_size // num_workers, (rank + 1) * batch_size // num_workers)


def pairs(folder: Path, rank: int = 0, num_workers: int = 1, *, index: Index | None = None) -> Iterator[LoadedPair]:
    """Yield the whole pairs of a folder of shards in order, of several workers each its share, as even as can be.

    A share is one stretch, so that a worker opens few shards. Pairs made online are those of pass 0, the same at every
    call: what a network is validated and measured on.
    index: what `folder` holds, where the folder itself is on another machine; default: its own.
    """
    index = index or read_index(folder)
    degradation = online_degradation(index)
    seed, number = int(index.recipe["seed"]), 0
    first, last = (index.samples * worker // num_workers for worker in (rank, rank + 1))
    for entry in index.shards:
        mine = range(max(first - number, 0), min(last - number, entry.samples))
        number += entry.samples
        if mine:
            shard = Shard(folder, entry)
            for i in mine:
                yield _whole(shard[i], degradation, seed, turn=0)


def online_pair(folder: Path, key: str, turn: int, seed: int) -> LoadedPair:
    """Return, bit for bit, the pair `key` as it was in pass `turn` of a training with `seed`: before crop and flip.

    Raises ValueError where no shard of the folder holds the key.
    """
    index = read_index(folder)
    for entry in index.shards:
        shard = Shard(folder, entry)
        if key in shard.keys:
            return _whole(shard[shard.keys.index(key)], online_degradation(index), seed, turn)
    raise ValueError(f"{folder} holds no pair {key}")


def _whole(pair: Pair, degradation: Degradation | None, seed: int, turn: int) -> LoadedPair:
    clean, record = to_float(pair.clean), dict(pair.record)
    if pair.degraded is not None:
        return LoadedPair(pair.key, clean, to_float(pair.degraded), record)
    drawn = _degraded(clean, degradation, int(_generator(seed, pair.key, turn).integers(2**63)))
    return LoadedPair(pair.key, clean, drawn.image, {**record, "degradation": drawn.record})


def _generator(seed: int, key: str, turn: int) -> np.random.Generator:
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little"), turn])


def online_degradation(index: Index) -> Degradation | None:
    """Return the degradation that the loader applies, None where the shards hold degraded images already."""
    return parse_degradation(index.recipe["degradation"]) if index.recipe["online"] else None


class _Places:
    """The places (step, stream) of each of a worker's batches, in order."""

    def __init__(self, first_step: int, num_steps: int, streams: range) -> None:
        self.steps, self.streams = range(first_step, num_steps), streams

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(step, stream) for stream in self.streams] for step in self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def _in_unit_range(
    pair: Pair, degradation: Degradation | None, seed: int, window: tuple[slice, slice]
) -> tuple[Float32[np.ndarray, "H W C"], Float32[np.ndarray, "H W C"]]:
    if pair.degraded is not None:
        return to_float(pair.clean[window]), to_float(pair.degraded[window])
    clean = to_float(pair.clean)  # degraded as a whole: what lies outside of the window is seen through a blur
    return clean[window], _degraded(clean, degradation, seed).image[window]


def _degraded(clean: Float32[np.ndarray, "H W C"], degradation: Degradation | None, seed: int) -> Degraded:
    assert degradation is not None, "shards without degraded images are made online"
    return degrade(clean, degradation, [seed])


def _check_patch_size(patch_size: int, index: Index) -> None:
    if patch_size <= index.min_side:
        return
    tile_size = index.recipe["tile_size"]
    raise ValueError(
        f"train.patch_size is {patch_size}, but the smallest training tile has a side of {index.min_side} pixels: "
        f"lower train.patch_size to {index.min_side}, or raise "
        + (f"synthesize.tile_size to {patch_size} or more and " if tile_size < patch_size else "")
        + f"prepare.min_side to {patch_size}, which leaves smaller photographs out"
    )


def _window(size: tuple[int, ...], patch_size: int, rng: np.random.Generator) -> tuple[slice, slice]:
    top, left = (int(rng.integers(length - patch_size + 1)) for length in size)
    return slice(top, top + patch_size), slice(left, left + patch_size)


def _augment(patch: Float32[np.ndarray, "H W C"], mirror: bool, quarter_turns: int) -> Float32[np.ndarray, "W H C"]:
    turned: Float32[np.ndarray, "W H C"] = np.rot90(patch[:, ::-1] if mirror else patch, quarter_turns)
    return turned


def collate(samples: Sequence[tuple[np.ndarray, np.ndarray, str]]) -> Batch:
    """Lay patches side by side."""
    clean, degraded, keys = zip(*samples, strict=True)
    return Batch(_stack(clean), _stack(degraded), keys)


def _stack(patches: Sequence[np.ndarray]) -> Float[Tensor, "B C H W"]:
    batch = np.empty((len(patches), patches[0].shape[2], *patches[0].shape[:2]), np.float32)
    for place, patch in zip(batch, patches, strict=True):
        place[...] = patch.transpose(2, 0, 1)
    return torch.from_numpy(batch)
