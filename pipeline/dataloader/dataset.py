"""Augmented training patches as a torch Dataset, addressed by (step, slot).

A patch is a random crop of a pair, flipped and rotated at random. If pairs are made online, the whole tile is degraded
before the crop. All random numbers of a sample come from (seed, key, epoch), so a sample does not depend on the rank or
the process that makes it.

With mixup (Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv 1710.09412) clean and degraded
patch x at (step, j) become

    w_j·x_j + (1 − w_j)·x_p(j),        w_j ~ Beta(α, α),

where the permutation p and the weights come from (seed, step). The rank that owns slot j makes both patches, also where
slot p(j) belongs to another rank.
"""

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

_MIXUP = 1  # a seed sequence of its own for mixup, apart from other uses of (seed, step)


@lru_cache(maxsize=4)
def _shard_opener(max_open: int) -> Callable[[Path, ShardEntry], Shard]:
    """Return a function that opens shards and keeps `max_open` of them open: opening one verifies its checksum."""
    return lru_cache(max_open)(Shard)


class PatchDataset(Dataset[tuple[np.ndarray, np.ndarray, str]]):
    """Augmented training patches, addressed by (step, slot).

    Args:
        folder: folder or URL of the shards of the train split.
        batch_size: size of the global batch.
        patch_size: side of the patches in pixels.
        seed: seed of the training.
        mixup_alpha: α of mixup; 0 turns it off.
        index: the index of `folder`, if only another machine can read it; None: read it.

    Raises:
        ValueError: too few samples for one batch, or tiles smaller than `patch_size`.
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

    def __getitem__(self, position: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, str]:
        """Return (clean, degraded, key) of the patch at `position` = (step, slot); float32 arrays H W C."""
        clean, degraded, key = self._patch(position)
        if self.mixup_alpha == 0:
            return clean, degraded, key
        step, slot = position
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, step], spawn_key=(_MIXUP,)))
        partner = int(partners(self.order.batch_size, rng)[slot])
        weight = np.float32(rng.beta(self.mixup_alpha, self.mixup_alpha, self.order.batch_size)[slot])
        other_clean, other_degraded, _ = self._patch((step, partner))
        clean, degraded = (
            weight * own + (1 - weight) * other for own, other in ((clean, other_clean), (degraded, other_degraded))
        )
        return clean, degraded, key

    def _patch(self, position: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, str]:
        epoch, shard, index = self.order.locate(*position)
        open_shard = _shard_opener(self.order.batch_size + 1)  # each slot reads from one; one more while it changes
        pair = open_shard(self.folder, self.index.shards[shard]).arrays(index)
        rng = sample_generator(self.seed, pair.key, epoch)
        seed = int(rng.integers(2**63))
        window = _window(pair.clean.shape[:2], self.patch_size, rng)
        flip, quarter_turns = bool(rng.integers(2)), int(rng.integers(4))
        clean, degraded = _in_unit_range(pair, self.degradation, seed, window)
        clean, degraded = (_augment(image, flip, quarter_turns) for image in (clean, degraded))
        return clean, degraded, pair.key


def _in_unit_range(
    pair: Pair, degradation: Degradation | None, seed: int, window: tuple[slice, slice]
) -> tuple[Float32[np.ndarray, "H W C"], Float32[np.ndarray, "H W C"]]:
    if pair.degraded is not None:
        return to_float(pair.clean[window]), to_float(pair.degraded[window])
    clean = to_float(pair.clean)  # the whole tile is degraded: a blur moves pixels from outside of the window into it
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


def _augment(patch: Float32[np.ndarray, "H W C"], flip: bool, quarter_turns: int) -> Float32[np.ndarray, "W H C"]:
    turned: Float32[np.ndarray, "W H C"] = np.rot90(patch[:, ::-1] if flip else patch, quarter_turns)
    return turned
