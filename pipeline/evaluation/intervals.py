"""Confidence interval of a mean over images, where photographs, not images, are the independent observations.

It spans two intervals. The first is the percentile bootstrap (Efron, Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13): photographs are drawn with replacement, and the mean is taken over all tiles of those drawn. It
follows skewed distributions, but is too narrow for few photographs. The second is Student's t with one degree of
freedom fewer than photographs, and the standard error of a ratio of sums over photographs (Cochran, Sampling
Techniques, 1977, chapter 6). With one photograph there is no interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

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
        num_photographs: number of photographs that the images are of.
        num_resamples: number of resamples of the bootstrap.
        seed: seed of its random numbers.
        method: name of the method.
    """

    low: float
    high: float
    level: float
    num_photographs: int
    num_resamples: int
    seed: int
    method: str = "percentile bootstrap and Student's t over photographs, the wider bounds"


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
    mean = sums.sum() / counts.sum()
    deviation = np.sqrt(np.sum((sums - mean * counts) ** 2) / (len(names) - 1)) / counts.mean()
    half_width = deviation * float(half_width_in_deviations(len(names)))
    bounds = float(min(low, mean - half_width)), float(max(high, mean + half_width))
    return Interval(*bounds, LEVEL, len(names), NUM_RESAMPLES, SEED)


def half_width_in_deviations(num_photographs: int | npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return half the width of Student's interval of a mean over so many photographs, in their standard deviations.

    Args:
        num_photographs: one number or an array of them, each at least 2.
    """
    numbers = np.asarray(num_photographs)
    return np.asarray(stdtrit(numbers - 1, (1 + LEVEL) / 2) / np.sqrt(numbers), np.float64)


def photograph_of(key: str) -> str:
    """Return the photograph of a pair in shards, whose key is photograph_row_column_copy."""
    return key.rsplit("_", 3)[0] if key.count("_") >= 3 else key
