"""A network measured on pairs: PSNR and SSIM of what it got, of what a baseline makes of it, and of its K estimates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32

from dgunet.inference import WHOLE_IMAGE_PIXELS, restore
from dgunet.network import DGUNet, Measurements
from dgunet.tensors import to_array, to_tensor
from pipeline.dataloader.pairs import EvaluationPair
from pipeline.evaluation.baselines import Baseline, PseudoInverse
from pipeline.evaluation.protocol import Protocol, Quality, gain, mean_quality

Image = Float32[np.ndarray, "H W C"]


class Restoration(NamedTuple):
    """One pair and what was made of it; the estimates are clipped to [0, 1], the degraded image is as it came."""

    clean: Image
    degraded: Image
    baseline: Image
    estimates: tuple[Image, ...]

    @property
    def restored(self) -> Image:
        """The last estimate."""
        return self.estimates[-1]


@dataclass(frozen=True)
class Measured:
    """The numbers of one pair; `stages` holds those of the estimates, first to last.

    Only of the last where the image was restored in tiles, or as the mean over flips and turns.
    """

    key: str
    degraded: Quality
    baseline: Quality
    stages: tuple[Quality, ...]

    @property
    def restored(self) -> Quality:
        """Quality of the last estimate."""
        return self.stages[-1]

    @property
    def gain_db(self) -> float:
        """PSNR of restored minus that of degraded."""
        return gain(self.restored, self.degraded)


@dataclass(frozen=True)
class Evaluation:
    """The numbers of all pairs of a set, in its order, their means, and how they were measured."""

    images: tuple[Measured, ...]
    protocol: Protocol

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError(
                "there is no pair to measure on: raise prepare.split.test, add images, or mend the benchmark's folder"
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
        """Mean PSNR of restored minus mean PSNR of degraded."""
        return gain(self.restored, self.degraded)

    @property
    def stages(self) -> tuple[Quality, ...]:
        """Means after stage 1 ... K, over the images that were restored in one piece."""
        most = max(len(image.stages) for image in self.images)
        whole = [image for image in self.images if len(image.stages) == most]
        return tuple(mean_quality(image.stages[k] for image in whole) for k in range(most))


def evaluate(model: DGUNet, pairs: Iterable[EvaluationPair], baseline: Baseline, protocol: Protocol) -> Evaluation:
    """Measure `model` on `pairs`, one at a time, by `protocol`; ValueError if there is none."""
    restored = ((pair, restoration(model, pair, baseline, protocol.self_ensemble)) for pair in pairs)
    found = (measured(pair, images, protocol) for pair, images in restored)
    return Evaluation(tuple(found), protocol)


def measured(pair: EvaluationPair, images: Restoration, protocol: Protocol) -> Measured:
    """Return the numbers of one restoration."""
    measure = partial(protocol.measure, clean=images.clean, was_gray=pair.was_gray)
    return Measured(
        pair.key,
        measure(images.degraded),
        measure(images.baseline),
        tuple(measure(estimate) for estimate in images.estimates),
    )


@torch.inference_mode()
def restoration(model: DGUNet, pair: EvaluationPair, baseline: Baseline, self_ensemble: bool) -> Restoration:
    """Restore one pair with the network and with the baseline, on the device that holds the network.

    A sensing network measures the clean image itself: its degraded image is Φᵀy, where its iteration starts. Raises
    ValueError where it shall restore flips and turns, each of which would be measured anew.
    """
    if model.config.sensing_ratio_percent is not None:
        if self_ensemble:
            raise ValueError("protocol.self_ensemble must be false for compressive sensing: it would measure 8 times")
        return _sensed(model, pair.clean, baseline)
    height, width = pair.degraded.shape[:2]
    if self_ensemble or height * width > WHOLE_IMAGE_PIXELS:  # only the last estimate is known
        estimates: tuple[Image, ...] = (restore(model, pair.degraded, self_ensemble=self_ensemble),)
    else:
        device = next(model.parameters()).device
        estimates = tuple(to_array(estimate) for estimate in model(to_tensor(pair.degraded).to(device)))
    return Restoration(pair.clean, pair.degraded, baseline.restore(pair.degraded), _clipped(estimates))


def _sensed(model: DGUNet, clean: Image, baseline: Baseline) -> Restoration:
    assert model.sensing is not None, "a network with a sensing ratio has a sensing matrix"
    measurements = model.sense(to_tensor(clean).to(model.sensing.matrix.device))
    degraded = first_estimate(model, measurements)
    linear = (
        baseline.reconstruct(clean, model.config.num_measurements)
        if isinstance(baseline, PseudoInverse)
        else baseline.restore(degraded)
    )
    return Restoration(clean, degraded, linear, _clipped(to_array(estimate) for estimate in model(measurements)))


def first_estimate(model: DGUNet, measurements: Measurements) -> Image:
    """Return Φᵀy of the measurements of one image: where a sensing network's iteration starts."""
    assert model.sensing is not None, "a network with a sensing ratio has a sensing matrix"
    return to_array(model.sensing.adjoint(measurements.values)[:, :, : measurements.height, : measurements.width])


def _clipped(estimates: Iterable[Image]) -> tuple[Image, ...]:
    clipped = tuple(estimate.clip(0, 1) for estimate in estimates)
    if not all(np.isfinite(estimate).all() for estimate in clipped):
        raise ValueError("the model makes values that are not finite: train it anew, with a lower train.learning_rate")
    return clipped
