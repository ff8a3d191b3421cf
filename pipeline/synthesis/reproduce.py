"""Makes one pair of a folder of shards again, from the source image that its record names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dgunet.images import quantise, to_float
from dgunet.images.photo import MAX_PIXELS
from pipeline.config.params import validated
from pipeline.dataloader.pairs import EvaluationPair, online_pair
from pipeline.degradations import regenerate
from pipeline.shards.format import INDEX, Index, Pair, Shard, read_index
from pipeline.sources.manifest import SPLITS, Entry, read_manifest
from pipeline.synthesis.settings import Synthesize
from pipeline.synthesis.tiles import read_clean, read_degraded, select_images


def reproduce_pair(shards: Path, key: str, *, epoch: int = 0, manifest: Path | None = None) -> EvaluationPair:
    """Make the pair `key` again, bit for bit, and compare it with the shard that holds it.

    The clean tile is cut from the source image. A stored degraded tile is generated again from the recorded
    degradation; that of a real pair is cut from the degraded image. If the shards hold no degraded tiles (`online`),
    the pair is the one that training sees in `epoch`, before crop, flip and rotation.

    Args:
        shards: a task's folder of shards (train/, val/, test/), or the folder of one split.
        key: the pair's key.
        epoch: epoch of the training, from 0; stored pairs are the same in each.
        manifest: the manifest; needed only for real pairs, whose records do not name the degraded image.

    Returns:
        Clean and degraded H W C float32, and the record. Values are in [0, 1]; degraded values of online pairs may
        leave that range.

    Raises:
        ValueError: the folder holds no such key, the source image is gone or changed, or the result differs from the
            shard; names the image or the shard.
    """
    folder, index, stored = _find(shards, key)
    channels = stored.clean.shape[2]
    source = _source(index, stored, manifest)
    rows = slice(stored.record["top"], stored.record["top"] + stored.clean.shape[0])
    columns = slice(stored.record["left"], stored.record["left"] + stored.clean.shape[1])
    clean = read_clean(source, channels)[rows, columns]
    _require_equal(clean, stored.clean, f"{folder}: the clean tile of {key}")
    if stored.degraded is None:
        return online_pair(folder, key, epoch=epoch, seed=int(index.recipe["seed"]))
    degraded_image = read_degraded(source, channels)
    if degraded_image is None:
        degraded = quantise(regenerate(to_float(clean), stored.record["degradation"]), np.uint8)
    else:
        degraded = degraded_image[rows, columns]
    _require_equal(degraded, stored.degraded, f"{folder}: the degraded tile of {key}")
    return EvaluationPair(key, to_float(clean), to_float(degraded), dict(stored.record))


def _find(shards: Path, key: str) -> tuple[Path, Index, Pair]:
    """Return the folder, the index and the stored pair of a key. Raises ValueError that shows three keys."""
    folders = [shards] if (shards / INDEX).exists() else [shards / split for split in SPLITS]
    existing: list[str] = []
    for folder in folders:
        index = read_index(folder)
        for entry in index.shards:
            shard = Shard(folder, entry)
            if key in shard.keys:
                return folder, index, shard[shard.keys.index(key)]
            existing += shard.keys[: 3 - len(existing)]
    raise ValueError(f"{shards} holds no pair {key!r}; it holds {', '.join(existing) or 'no pair'}, for example")


def _source(index: Index, stored: Pair, manifest: Path | None) -> Entry:
    """Return the entry of the source image: from the record, of a real pair from the manifest."""
    record = stored.record
    settings = validated({name: value for name, value in index.recipe.items() if name != "seed"}, Synthesize)
    if not settings.real_pairs:
        return _entry_of(record)
    if manifest is None:
        raise ValueError(f"{stored.key} is a real pair: give the manifest, which says where its degraded image is")
    partners = [image for image in select_images(read_manifest(manifest), settings) if image.sha256 == record["sha256"]]
    if record["copy"] >= len(partners):
        raise ValueError(f"{manifest} has no real pair of {record['where']}. Run `make repro`")
    return partners[int(record["copy"])]


def _entry_of(record: Any) -> Entry:
    # The record holds no size of the image; the hash of the pixels decides whether it is the right one.
    return Entry(
        uri=record["where"], sha256=record["sha256"], height=1, width=MAX_PIXELS, split="train", scene="", source=""
    )


def _require_equal(made: UInt8[np.ndarray, "H W C"], stored: UInt8[np.ndarray, "H W C"], what: str) -> None:
    if not np.array_equal(made, stored):
        raise ValueError(f"{what} differs from the shard, because the code has changed since. Run `make repro`")
