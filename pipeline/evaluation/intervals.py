"""Confidence interval of a mean over images, by the bootstrap over photographs.

Tiles of one photograph are not independent: photographs are drawn with replacement, and the
mean is taken over all tiles of those drawn. The interval is that of the percentiles (Efron, Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13). With few photographs it is too narrow; with one there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
NUM_RESAMPLES = 10_000
SEED = 0


@dataclass(frozen=True)
class Interval:
    """Confidence interval of a mean, and how it was computed.

    Attributes:
        low: lower bound.
        high: upper bound.
        level: confidence, such as 0.95.
        num_photographs: number of photographs that were resampled.
        num_resamples: number of resamples.
        seed: seed of the random numbers.
        method: name of the method.
    """

    low: float
    high: float
    level: float
    num_photographs: int
    num_resamples: int
    seed: int
    method: str = "percentile bootstrap over photographs"


def mean_interval(values: Sequence[float], photographs: Sequence[str]) -> Interval | None:
    """Return the interval of the mean of `values`, one for each image; None with one photograph or a value not finite.

    Args:
        values: one for each image, such as gains in dB.
        photographs: the photograph of each image.

    Raises:
        ValueError: there are not as many photographs as values.
    """
    if len(values) != len(photographs):
        raise ValueError(f"{len(values)} values, but {len(photographs)} names of photographs")
    names, indices = np.unique(np.asarray(photographs, dtype=str), return_inverse=True)
    numbers = np.asarray(values, np.float64)
    if len(names) < 2 or not np.isfinite(numbers).all():
        return None
    sums, counts = np.bincount(indices, numbers), np.bincount(indices)
    chosen = np.random.default_rng(SEED).integers(len(names), size=(NUM_RESAMPLES, len(names)))
    means = sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), LEVEL, len(names), NUM_RESAMPLES, SEED)


def photograph_of(key: str) -> str:
    """Return the photograph of a pair in shards, whose key is photograph_row_column_copy."""
    return key.rsplit("_", 3)[0] if key.count("_") >= 3 else key
