"""Measures a network on pairs: PSNR and SSIM of the degraded image, of a baseline, and of the network's K estimates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32

from dgunet.config import BLOCK_SIZE
from dgunet.inference import WHOLE_IMAGE_PIXELS, estimates, restore
from dgunet.network import DGUNet, Measurements
from dgunet.tensors import to_array, to_tensor
from pipeline.dataloader.pairs import EvaluationPair
from pipeline.evaluation.baselines import Baseline, PseudoInverse
from pipeline.evaluation.intervals import Interval, mean_interval, photograph_of
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.pseudo_inverse import reconstruct
from pipeline.evaluation.quality import Quality, gain, mean_quality, measure

Image = Float32[np.ndarray, "H W C"]


class Restoration(NamedTuple):
    """The images of one pair: clean, degraded, restored by the baseline, and the K estimates of the network.

    Estimates are in [0, 1]; the degraded image, and the baselines `none` and `opening`, need not be. If the image was
    restored in tiles, or as the mean over flips and quarter turns, only the last estimate is known.
    """

    clean: Image
    degraded: Image
    baseline: Image
    estimates: tuple[Image, ...]

    @property
    def restored(self) -> Image:
        """The last estimate."""
        return self.estimates[-1]


@dataclass(frozen=True)
class ImageScores:
    """The scores of one pair; `stages` has those of the estimates of its `Restoration`, in their order."""

    key: str
    degraded: Quality
    baseline: Quality
    stages: tuple[Quality, ...]

    @property
    def restored(self) -> Quality:
        """Scores of the last estimate."""
        return self.stages[-1]

    @property
    def gain_db(self) -> float:
        """PSNR of the restored image minus that of the degraded image."""
        return gain(self.restored, self.degraded)


@dataclass(frozen=True)
class Evaluation:
    """The scores of all pairs of a test set, in its order, and the protocol."""

    images: tuple[ImageScores, ...]
    protocol: Protocol

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError(
                "there is no pair to measure on: raise prepare.split.test, add images, or correct the benchmark"
            )

    @property
    def degraded(self) -> Quality:
        """Mean over images."""
        return mean_quality(image.degraded for image in self.images)

    @property
    def baseline(self) -> Quality:
        """Mean over images."""
        return mean_quality(image.baseline for image in self.images)

    @property
    def restored(self) -> Quality:
        """Mean over images."""
        return mean_quality(image.restored for image in self.images)

    @property
    def gain_db(self) -> float:
        """Mean PSNR of the restored images minus that of the degraded images."""
        return gain(self.restored, self.degraded)

    @property
    def gain_interval(self) -> Interval | None:
        """Confidence interval of the mean over images of their gains in dB; None with one photograph."""
        return mean_interval(
            [image.gain_db for image in self.images], [photograph_of(image.key) for image in self.images]
        )

    @property
    def stages(self) -> tuple[Quality, ...]:
        """Means after stage 1 ... K, over the images of which all estimates are known."""
        most = max(len(image.stages) for image in self.images)
        whole = [image for image in self.images if len(image.stages) == most]
        return tuple(mean_quality(image.stages[k] for image in whole) for k in range(most))


def evaluate(model: DGUNet, pairs: Iterable[EvaluationPair], baseline: Baseline, protocol: Protocol) -> Evaluation:
    """Measure a network on pairs, one after the other.

    Args:
        model: the network in evaluation mode, on the device to compute on.
        pairs: read one at a time.
        baseline: the classical restoration to compare with.
        protocol: how images are measured.

    Raises:
        ValueError: there is no pair, or as `restore_pair`.
    """
    restored = ((pair, restore_pair(model, pair, baseline, protocol.self_ensemble)) for pair in pairs)
    return Evaluation(tuple(score(pair, images, protocol) for pair, images in restored), protocol)


def score(pair: EvaluationPair, images: Restoration, protocol: Protocol) -> ImageScores:
    """Return the scores of the images that `restore_pair` made of `pair`."""
    measured = partial(measure, protocol, clean=images.clean, was_gray=pair.was_gray)
    return ImageScores(
        pair.key,
        measured(images.degraded),
        measured(images.baseline),
        tuple(measured(estimate) for estimate in images.estimates),
    )


@torch.inference_mode()
def restore_pair(model: DGUNet, pair: EvaluationPair, baseline: Baseline, self_ensemble: bool) -> Restoration:
    """Restore one pair with the network and with the baseline.

    An image of more than WHOLE_IMAGE_PIXELS is restored in tiles, as `dgunet.restore` does.

    Args:
        model: the network; it computes on its own device. A sensing network measures the clean image itself, and Φᵀy,
            where its iteration starts, counts as the degraded image.
        pair: clean and degraded image.
        baseline: the classical restoration.
        self_ensemble: whether to average over flips and quarter turns; not for a sensing network.

    Raises:
        ValueError: `self_ensemble` for a sensing network, or the network returns values that are not finite.
    """
    if model.config.sensing_ratio_percent is not None:
        if self_ensemble:
            raise ValueError("protocol.self_ensemble must be false for compressive sensing: it would measure 8 times")
        return _restore_sensed(model, pair.clean, baseline)
    if self_ensemble or _is_large(pair.degraded):
        found: tuple[Image, ...] = (restore(model, pair.degraded, self_ensemble=self_ensemble),)
    else:
        device = next(model.parameters()).device
        found = tuple(to_array(estimate) for estimate in estimates(model, to_tensor(pair.degraded).to(device)))
    return Restoration(pair.clean, pair.degraded, baseline.restore(pair.degraded), _clipped(found))


def _restore_sensed(model: DGUNet, clean: Image, baseline: Baseline) -> Restoration:
    assert model.sensing is not None, "a network with a sensing ratio has a sensing matrix"
    device = model.sensing.matrix.device
    if _is_large(clean):
        strips = [initial_estimate(model, model.sense(to_tensor(strip).to(device))) for strip in _strips(clean)]
        degraded = np.concatenate(strips)
        found: tuple[Image, ...] = (restore(model, clean),)  # its tiles consist of whole blocks of the image
    else:
        measurements = model.sense(to_tensor(clean).to(device))
        degraded = initial_estimate(model, measurements)
        found = tuple(to_array(estimate) for estimate in estimates(model, measurements))
    if isinstance(baseline, PseudoInverse):
        number = model.config.num_measurements
        linear = np.concatenate([reconstruct(strip, number) for strip in _strips(clean)])
    else:
        linear = baseline.restore(degraded)
    return Restoration(clean, degraded, linear, _clipped(found))


def initial_estimate(model: DGUNet, measurements: Measurements) -> Image:
    """Return Φᵀy of the measurements of one image, where the iteration of a sensing network starts."""
    assert model.sensing is not None, "a network with a sensing ratio has a sensing matrix"
    return to_array(model.sensing.adjoint(measurements.values)[:, :, : measurements.height, : measurements.width])


def _is_large(image: Image) -> bool:
    height, width = image.shape[:2]
    return bool(height * width > WHOLE_IMAGE_PIXELS)


def _strips(image: Image) -> list[Float32[np.ndarray, "_ W C"]]:
    """Cut an image into strips of whole rows of blocks, of at most WHOLE_IMAGE_PIXELS where the last allows it.

    The last strip has at least one whole row of blocks, so that it is padded as the whole image is.
    """
    height, width = image.shape[:2]
    rows = max(1, WHOLE_IMAGE_PIXELS // (BLOCK_SIZE * width)) * BLOCK_SIZE
    starts = [0, *range(rows, height - BLOCK_SIZE + 1, rows)]
    return [image[start:end] for start, end in zip(starts, [*starts[1:], height], strict=True)]


def _clipped(estimates: Iterable[Image]) -> tuple[Image, ...]:
    found = tuple(estimates)
    if not all(np.isfinite(estimate).all() for estimate in found):
        raise ValueError(
            "the network returns values that are not finite: train it again with a lower train.learning_rate"
        )
    return tuple(estimate.clip(0, 1) for estimate in found)
