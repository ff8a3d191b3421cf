"""Chooses on the val split over which windows a network takes its statistics when it restores an image.

A network is trained on patches and takes the statistics of its features over a patch. Over a whole image they may
differ, and the network then restores worse. Whether windows help, which size, and for which statistics, depends on the
task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from dgunet.config import LocalStatistics
from dgunet.network import DGUNet
from pipeline.dataloader.pairs import EvaluationPair
from pipeline.evaluation.baselines import NoBaseline
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.scores import Evaluation, evaluate

LEAST_GAIN_DB = 0.02
LEAST_SHARE = 0.75  # of the images that must be restored better


@dataclass(frozen=True)
class Candidate:
    """Windows that were measured on the val split.

    Attributes:
        local: the windows; None: statistics of the whole image.
        psnr: mean PSNR in dB.
        gains: PSNR of each image minus that with the statistics of the whole image, in dB.
    """

    local: LocalStatistics | None
    psnr: float
    gains: tuple[float, ...]

    @property
    def is_better(self) -> bool:
        """Whether it restores most images better than with statistics of the whole image, and by enough on average."""
        share = sum(gain > 0 for gain in self.gains) / len(self.gains)
        return fmean(self.gains) > LEAST_GAIN_DB and share >= LEAST_SHARE

    def as_json(self) -> dict[str, Any]:
        """Return the entry of metrics.json."""
        local = {"window": None, "of": []} if self.local is None else asdict(self.local)
        gains = {"mean_gain_db": fmean(self.gains), "worst_gain_db": min(self.gains), "best_gain_db": max(self.gains)}
        return {**local, "psnr": round(self.psnr, 4), **{name: round(value, 4) for name, value in gains.items()}}


def measure(
    model: DGUNet,
    images: Callable[[], Iterable[EvaluationPair]],
    windows: Sequence[LocalStatistics],
    protocol: Protocol,
) -> tuple[Candidate, ...]:
    """Measure with statistics of the whole image, then with each of the windows; the model is unchanged afterwards.

    Args:
        model: the network, on the device where it computes.
        images: returns the pairs of the val split at every call; there may be none.
        windows: the candidates.
        protocol: how images are measured.
    """
    if not windows or not model.config.full_image or next(iter(images()), None) is None:
        return ()
    before = model.local_statistics

    def measured(local: LocalStatistics | None) -> Evaluation:
        model.local_statistics = local
        return evaluate(model, images(), NoBaseline("none"), protocol)

    try:
        whole = measured(None)
        candidates = [Candidate(None, whole.restored.psnr, (0.0,) * len(whole.images))]
        for local in windows:
            found = measured(local)
            gains = tuple(one.gain_db - other.gain_db for one, other in zip(found.images, whole.images, strict=True))
            candidates.append(Candidate(local, found.restored.psnr, gains))
    finally:
        model.local_statistics = before
    return tuple(candidates)


def choose(candidates: Sequence[Candidate]) -> LocalStatistics | None:
    """Return the windows with the highest mean PSNR among those that are better; None: the whole image."""
    better = [candidate for candidate in candidates if candidate.is_better]
    return max(better, key=lambda candidate: candidate.psnr).local if better else None
