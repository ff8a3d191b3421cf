"""Whole pairs of a folder of shards, in order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from dgunet.images import to_float
from pipeline.degradations import Degraded, degrade
from pipeline.degradations.compose import Degradation
from pipeline.degradations.parsing import parse_degradation
from pipeline.shards.format import Index, Pair, Shard, read_index


@dataclass(frozen=True)
class EvaluationPair:
    """One whole pair in [0, 1]; `degraded` may leave that range when it is made online.

    record: how the pair came to be, with what was drawn for it (`degradation`) also when it is made online.
    was_gray: whether the image's three channels are those of a gray file, three times.
    """

    key: str
    clean: Float32[np.ndarray, "H W C"]
    degraded: Float32[np.ndarray, "H W C"]
    record: dict[str, Any]
    was_gray: bool = False


def pairs(folder: Path, rank: int = 0, num_workers: int = 1, *, index: Index | None = None) -> Iterator[EvaluationPair]:
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
                yield _whole(shard[i], degradation, seed, epoch=0)


def online_pair(folder: Path, key: str, epoch: int, seed: int) -> EvaluationPair:
    """Return, bit for bit, the pair `key` as it was in pass `turn` of a training with `seed`: before crop and flip.

    Raises ValueError where no shard of the folder holds the key.
    """
    index = read_index(folder)
    for entry in index.shards:
        shard = Shard(folder, entry)
        if key in shard.keys:
            return _whole(shard[shard.keys.index(key)], online_degradation(index), seed, epoch)
    raise ValueError(f"{folder} holds no pair {key}")


def _whole(pair: Pair, degradation: Degradation | None, seed: int, epoch: int) -> EvaluationPair:
    clean, record = to_float(pair.clean), dict(pair.record)
    if pair.degraded is not None:
        return EvaluationPair(pair.key, clean, to_float(pair.degraded), record)
    sampled = degrade_online(clean, degradation, int(sample_generator(seed, pair.key, epoch).integers(2**63)))
    return EvaluationPair(pair.key, clean, sampled.image, {**record, "degradation": sampled.record})


def sample_generator(seed: int, key: str, epoch: int) -> np.random.Generator:
    """Return the random generator of the sample `key` in epoch `turn`."""
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little"), epoch])


def online_degradation(index: Index) -> Degradation | None:
    """Return the degradation that the loader applies, None where the shards hold degraded images already."""
    return parse_degradation(index.recipe["degradation"]) if index.recipe["online"] else None


def degrade_online(clean: Float32[np.ndarray, "H W C"], degradation: Degradation | None, seed: int) -> Degraded:
    """Degrade a clean tile whose shard holds no degraded image."""
    assert degradation is not None, "shards without degraded images are made online"
    return degrade(clean, degradation, [seed])
