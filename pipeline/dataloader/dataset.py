"""Augmented training patches as a torch Dataset."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from torch.utils.data import Dataset

from dgunet.images import to_float
from pipeline.dataloader.pairs import degrade_online, online_degradation, sample_generator
from pipeline.dataloader.sampler import SampleOrder, partners
from pipeline.degradations.compose import Degradation
from pipeline.shards.format import Index, Pair, Shard, ShardEntry, read_index

_MIXUP = 1  # sets what is drawn for mixing apart from all else that is drawn from (seed, step)


@lru_cache(maxsize=4)
def _opener(shards_kept_open: int) -> Callable[[Path, ShardEntry], Shard]:
    """Return what opens shards: to open one is to verify it whole, so those that are read from stay open."""
    return lru_cache(shards_kept_open)(Shard)


class PatchDataset(Dataset[tuple[np.ndarray, np.ndarray, str]]):
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
        self.order = SampleOrder(self.index, batch_size, seed)
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
        step, slot = place
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, step], spawn_key=(_MIXUP,)))
        partner = int(partners(self.order.batch_size, rng)[slot])
        weight = np.float32(rng.beta(self.mixup_alpha, self.mixup_alpha, self.order.batch_size)[slot])
        other_clean, other_degraded, _ = self._patch((step, partner))
        clean, degraded = (
            weight * ours + (1 - weight) * theirs for ours, theirs in ((clean, other_clean), (degraded, other_degraded))
        )
        return clean, degraded, key

    def _patch(self, place: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, str]:
        epoch, shard, number = self.order.at(*place)
        opened = _opener(self.order.batch_size + 1)  # one for each stream, and the next of one that goes on
        pair = opened(self.folder, self.index.shards[shard]).arrays(number)
        rng = sample_generator(self.seed, pair.key, epoch)
        seed = int(rng.integers(2**63))
        window = _window(pair.clean.shape[:2], self.patch_size, rng)
        mirror, quarter_turns = bool(rng.integers(2)), int(rng.integers(4))
        clean, degraded = _in_unit_range(pair, self.degradation, seed, window)
        clean, degraded = (_augment(image, mirror, quarter_turns) for image in (clean, degraded))
        return clean, degraded, pair.key


def _in_unit_range(
    pair: Pair, degradation: Degradation | None, seed: int, window: tuple[slice, slice]
) -> tuple[Float32[np.ndarray, "H W C"], Float32[np.ndarray, "H W C"]]:
    if pair.degraded is not None:
        return to_float(pair.clean[window]), to_float(pair.degraded[window])
    clean = to_float(pair.clean)  # degraded as a whole: what lies outside of the window is seen through a blur
    return clean[window], degrade_online(clean, degradation, seed).image[window]


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
