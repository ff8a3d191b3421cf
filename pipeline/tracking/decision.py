"""Decides whether a candidate becomes the champion, by the confidence interval of its gain.

The gain is the PSNR of the candidate minus that of the champion on the same image. Its interval is that of
`mean_interval`: photographs are the observations, because tiles of one photograph are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from pipeline.evaluation.intervals import Interval, half_width_in_deviations, mean_interval, photograph_of
from pipeline.tracking.settings import Promote

DECIMALS = 4  # of dB, as in the reports
MOST_PHOTOGRAPHS = 10_000  # larger numbers of needed photographs are not stated: they depend on the last digit


@dataclass(frozen=True)
class Gain:
    """The gain of the candidate over another model or method on the same images.

    Attributes:
        over: what it is compared with, such as `version 3`.
        mean: mean over images, in dB.
        interval: confidence interval of the mean, in dB; None with one photograph.
        num_photographs: number of photographs that the images are taken from.
    """

    over: str
    mean: float
    interval: Interval | None
    num_photographs: int

    def exceeds(self, margin_db: float) -> bool:
        """Whether the lower bound of the interval is above a margin in dB; False with one photograph."""
        return self.interval is not None and self.interval.low > margin_db

    def photographs_needed(self, margin_db: float) -> float:
        """Return roughly how many photographs would put the lower bound above a margin in dB.

        Mean and spread are assumed to stay as they are, and the width of the interval to fall as Student's does.
        Infinite where more than `MOST_PHOTOGRAPHS` would be needed, the mean itself is not above the margin, or there
        is no interval.
        """
        if self.interval is None:
            return math.inf
        numbers = np.arange(2, MOST_PHOTOGRAPHS + 1)
        narrower = half_width_in_deviations(numbers) / half_width_in_deviations(self.num_photographs)
        enough = numbers[self.mean - (self.mean - self.interval.low) * narrower > margin_db]
        return float(enough[0]) if len(enough) else math.inf

    def as_json(self) -> dict[str, Any]:
        """Return the gain in the form of the promotion record and of the tags of a version."""
        interval = None
        if self.interval is not None:
            bounds = {name: round(getattr(self.interval, name), DECIMALS) for name in ("low", "high")}
            interval = {**asdict(self.interval), **bounds}
        return {**asdict(self), "mean": round(self.mean, DECIMALS), "interval": interval}

    def __str__(self) -> str:
        text = f"mean gain {self.mean:+.3f} dB"
        if self.interval is None:
            return text
        low, high, level = self.interval.low, self.interval.high, self.interval.level
        return (
            f"{text}, {100 * level:g} % interval {low:+.3f} to {high:+.3f} dB over {self.num_photographs} photographs"
        )


@dataclass(frozen=True)
class Decision:
    """Whether the candidate becomes the champion, and why.

    Attributes:
        set_champion: whether it does.
        reason: one line.
        champion_psnr: mean PSNR in dB of the former champion; None if there was none.
        gain: `Gain.as_json` of the gain that decided; None if no gain decided.
        asks_a_person: the test set is too small to judge on; a person may decide.
    """

    set_champion: bool
    reason: str
    champion_psnr: float | None
    gain: Mapping[str, Any] | None = None
    asks_a_person: bool = False


def paired_gain(candidate: Mapping[str, float], other: Mapping[str, float], over: str) -> Gain:
    """Return the gain of a candidate over something else on the same images.

    Args:
        candidate: PSNR in dB of each image, by the key of the image.
        other: PSNR in dB of each image for what it is compared with.
        over: name of what it is compared with.

    Raises:
        ValueError: one of them lacks an image of the other; names an image.
    """
    for name, missing in (("the candidate", other.keys() - candidate.keys()), (over, candidate.keys() - other.keys())):
        if missing:
            more = f" and of {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"{name} has no PSNR of the test image {min(missing)}{more}")
    keys = sorted(candidate)
    gains, photographs = [candidate[key] - other[key] for key in keys], [photograph_of(key) for key in keys]
    return Gain(over, fmean(gains), mean_interval(gains, photographs), len(set(photographs)))


def compare_with_baselines(scores: Mapping[str, Mapping[str, float]], settings: Promote) -> Decision:
    """Decide on a task without a champion: its model must beat the degraded images and the classical baseline.

    With fewer photographs than `promote.min_scenes` the means decide, so that a first try on a few photographs gives
    a champion at all; the reason says that they cannot tell.

    Args:
        scores: PSNR in dB of each image, by the key of the image, of the restored, degraded and baseline images.
        settings: the rule.

    Raises:
        ValueError: as `paired_gain`.
    """
    means = {kind: fmean(psnrs.values()) for kind, psnrs in scores.items()}
    gains = {
        kind: paired_gain(scores["restored"], scores[kind], f"the {kind} images") for kind in ("degraded", "baseline")
    }
    is_enough = gains["baseline"].num_photographs >= settings.min_scenes
    for kind, gain in gains.items():
        comparison = f"{gain.over} with {means[kind]:.2f} dB"
        reason = None
        if gain.mean <= 0:
            reason = f"{means['restored']:.2f} dB do not beat {comparison}"
        elif is_enough and not gain.exceeds(0.0):
            unknown = f"{_photographs(gain)} cannot tell whether {means['restored']:.2f} dB beat {comparison}"
            reason = f"{unknown}: {_shortfall(gain, 0.0)}"
        if reason is not None:
            return Decision(False, f"no champion yet, and {reason}", None, gain.as_json())
    gain = gains["baseline"]
    reason = f"the first champion, with {means['restored']:.2f} dB; the baseline has {means['baseline']:.2f} dB"
    warning = f"{_photographs(gain)} cannot tell whether it is better (promote.min_scenes: {settings.min_scenes})"
    return Decision(True, f"{reason}; {gain if is_enough else warning}", None, gain.as_json())


def compare_with_champion(
    candidate: Mapping[str, float], champion: Mapping[str, float], number: int, settings: Promote
) -> Decision:
    """Decide by the lower bound of the interval of the gain of the candidate over the champion.

    Args:
        candidate: PSNR in dB of each image, by the key of the image.
        champion: that of the champion on the same images.
        number: number of the champion's version.
        settings: the rule.

    Raises:
        ValueError: as `paired_gain`.
    """
    gain, margin = paired_gain(candidate, champion, f"version {number}"), settings.margin_db
    champion_psnr = fmean(champion.values())
    comparison = f"{fmean(candidate.values()):.2f} dB against {champion_psnr:.2f} dB of {gain.over}"
    is_better = is_unknown = False
    if gain.num_photographs < settings.min_scenes:
        is_unknown = True
        reason = (
            f"not judged: the test set has {_photographs(gain)}, and promote.min_scenes asks for "
            f"{settings.min_scenes}; {comparison}"
        )
    elif gain.exceeds(margin):
        is_better = True
        reason = f"beats the champion: {comparison}, margin {margin:g} dB; {gain}"
    elif gain.mean > margin:
        reason = (
            f"{_photographs(gain)} cannot tell whether it beats the champion: {comparison}; {_shortfall(gain, margin)}"
        )
    else:
        reason = f"does not beat the champion: {comparison}, margin {margin:g} dB; {gain}"
    return Decision(is_better, reason, round(champion_psnr, DECIMALS), gain.as_json(), is_unknown)


def _shortfall(gain: Gain, margin_db: float) -> str:
    """Return text for a message: the interval, the bound that it must exceed, and how many photographs that takes."""
    number = gain.photographs_needed(margin_db)
    needed = f"about {number:.0f}" if math.isfinite(number) else f"more than {MOST_PHOTOGRAPHS}"
    return (
        f"{gain}, of which the lower bound must exceed {margin_db:g} dB; with this mean and spread that takes {needed} "
        f"photographs"
    )


def _photographs(gain: Gain) -> str:
    return f"{gain.num_photographs} photograph{'' if gain.num_photographs == 1 else 's'}"
