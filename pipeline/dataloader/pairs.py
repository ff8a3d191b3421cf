"""Whole clean/degraded pairs of a folder of shards, for validation, evaluation and for reproducing a training pair.

If the shards hold no degraded image, it is made online, with random numbers from (seed, key, epoch), so the pair of a
key in an epoch can be reproduced bit for bit. Validation and evaluation use epoch 0 and the seed of the shards.
"""

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

    Attributes:
        key: name of the pair in the shards.
        clean: the clean image.
        degraded: the degraded image, of the same shape.
        record: how the pair was made; `degradation` holds the sampled parameters, also of a pair made online.
        was_gray: whether the file was gray and its channel is repeated three times.
    """

    key: str
    clean: Float32[np.ndarray, "H W C"]
    degraded: Float32[np.ndarray, "H W C"]
    record: dict[str, Any]
    was_gray: bool = False


def pairs(folder: Path, rank: int = 0, world_size: int = 1, *, index: Index | None = None) -> Iterator[EvaluationPair]:
    """Yield one rank's part of the whole pairs of a folder of shards, in order; the same pairs at every call.

    The parts are contiguous, so that a rank opens few shards, and differ by at most one pair. Pairs made online are
    those of epoch 0.

    Args:
        folder: folder or URL of the shards of one split.
        rank: 0 to `world_size` - 1.
        world_size: number of ranks.
        index: the index of `folder`, if only another machine can read it; None: read it.

    Raises:
        ValueError: the index or a shard is damaged.
    """
    index = index or read_index(folder)
    degradation = online_degradation(index)
    seed, number = int(index.recipe["seed"]), 0
    first, last = (index.samples * bound // world_size for bound in (rank, rank + 1))
    for entry in index.shards:
        indices = range(max(first - number, 0), min(last - number, entry.samples))
        number += entry.samples
        if indices:
            shard = Shard(folder, entry)
            for i in indices:
                yield _evaluation_pair(shard[i], degradation, seed, epoch=0)


def online_pair(folder: Path, key: str, epoch: int, seed: int) -> EvaluationPair:
    """Return the pair of a key as a training used it, bit for bit, before crop, flip and rotation.

    Args:
        folder: folder of the shards of one split.
        key: name of the pair.
        epoch: epoch of the training, from 0.
        seed: seed of the training.

    Raises:
        ValueError: no shard of the folder holds the key.
    """
    index = read_index(folder)
    for entry in index.shards:
        shard = Shard(folder, entry)
        if key in shard.keys:
            return _evaluation_pair(shard[shard.keys.index(key)], online_degradation(index), seed, epoch)
    raise ValueError(f"{folder} holds no pair {key}")


def _evaluation_pair(pair: Pair, degradation: Degradation | None, seed: int, epoch: int) -> EvaluationPair:
    clean, record = to_float(pair.clean), dict(pair.record)
    if pair.degraded is not None:
        return EvaluationPair(pair.key, clean, to_float(pair.degraded), record)
    sampled = degrade_online(clean, degradation, int(sample_generator(seed, pair.key, epoch).integers(2**63)))
    return EvaluationPair(pair.key, clean, sampled.image, {**record, "degradation": sampled.record})


def sample_generator(seed: int, key: str, epoch: int) -> np.random.Generator:
    """Return the random generator of the sample `key` in an epoch."""
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little"), epoch])


def online_degradation(index: Index) -> Degradation | None:
    """Return the degradation that the loader applies; None if the shards hold the degraded images."""
    return parse_degradation(index.recipe["degradation"]) if index.recipe["online"] else None


def degrade_online(clean: Float32[np.ndarray, "H W C"], degradation: Degradation | None, seed: int) -> Degraded:
    """Degrade a clean tile whose shard holds no degraded image."""
    assert degradation is not None, "shards without degraded images need a degradation"
    return degrade(clean, degradation, [seed])
