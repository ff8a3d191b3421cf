"""Splits scenes into train, val and test:

    u = sha256("SEED:SCENE") / 2^256,   SCENE: the first 16 digits of the smallest pixel hash among its images
    test if u < s_test,   val if u < s_test + s_val,   else train

The split of a photograph depends on its scene, the seed and the shares, but not on names, order or other scenes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.sources.manifest import SPLITS, SplitName

_MAX_SEEDS = 10_000


def split_of(group: str, *, seed: int, shares: Mapping[SplitName, float]) -> SplitName:
    """Return the split of a group of images; `shares` has `val` and `test`, the rest is train."""
    draw = int(hashlib.sha256(f"{seed}:{group}".encode()).hexdigest(), 16) / 2**256
    if draw < shares["test"]:
        return "test"
    return "val" if draw < shares["test"] + shares["val"] else "train"


def check_splits(groups: Sequence[str], *, seed: int, shares: Mapping[SplitName, float], origin: str) -> None:
    """Raise ValueError if a split with a share has no image; the message names `origin` and says what to change."""
    counts = Counter(split_of(group, seed=seed, shares=shares) for group in groups)
    empty = [split for split in SPLITS if not counts[split] and shares.get(split, 1) > 0]
    if not empty:
        return
    better = smallest_filling_seed(groups, shares)
    raise ValueError(
        f"{origin}: no image for {' and '.join(empty)}: {len(groups)} different scenes fall into "
        f"{', '.join(f'{split} {counts[split]}' for split in SPLITS)}. Add images, or change prepare.split "
        f"(val {shares['val']}, test {shares['test']})"
        + (
            f", or set seed to {better}, the smallest that fills all splits"
            if better is not None
            else "; no seed helps"
        )
    )


def smallest_filling_seed(groups: Sequence[str], shares: Mapping[SplitName, float]) -> int | None:
    """Return the smallest seed that leaves no split with a share empty, None if none was found."""
    wanted = {split for split in SPLITS if shares.get(split, 1) > 0}
    if len(groups) < len(wanted):
        return None
    for seed in range(_MAX_SEEDS):
        if wanted <= {split_of(group, seed=seed, shares=shares) for group in groups}:
            return seed
    return None
