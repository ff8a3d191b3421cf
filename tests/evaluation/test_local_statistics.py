"""Windows are chosen on the val split by measurement, and only where most images gain."""

import numpy as np
import pytest

from dgunet.config import LocalStatistics
from dgunet.network import DGUNet, DGUNetConfig
from pipeline.dataloader.pairs import EvaluationPair
from pipeline.evaluation.baselines import NoBaseline
from pipeline.evaluation.local_statistics import Candidate, choose, measure
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.scores import evaluate

RGB = Protocol("rgb", quantise=False, crop=None, border=0, self_ensemble=False)
NORM, ALL = LocalStatistics(96, ("norm",)), LocalStatistics(96, ("norm", "attention", "projection"))


def images() -> list[EvaluationPair]:
    random = np.random.default_rng(0)
    cleans = [random.random((64, 160, 3), np.float32) for _ in range(2)]
    return [EvaluationPair(f"{n}", clean, clean**2, {}) for n, clean in enumerate(cleans)]


def network(**sizes) -> DGUNet:
    return DGUNet.with_seed(DGUNetConfig(**{"width": 4, "growth": 2, "num_stages": 3, **sizes}), 0).eval()


def test_each_candidate_is_measured_as_the_model_with_these_windows():
    model = network()
    whole, norm, everything = measure(model, images, [NORM, ALL], RGB)
    assert model.local_statistics is None
    for candidate in (whole, norm, everything):
        model.local_statistics = candidate.local
        found = evaluate(model, images(), NoBaseline("none"), RGB)
        assert candidate.psnr == found.restored.psnr
    assert norm.gains != everything.gains
    assert norm.gains[1] == pytest.approx(norm.psnr * 2 - norm.gains[0] - whole.psnr * 2)
    assert whole.gains == (0, 0)


def test_the_model_is_as_it_was_after_an_error():
    model = network()
    model.local_statistics = ALL

    def one_damaged() -> list[EvaluationPair]:
        return [EvaluationPair("0", *(np.full((8, 8, 3), np.nan, np.float32),) * 2, {})]

    with pytest.raises(ValueError, match="not finite"):
        measure(model, one_damaged, [NORM], RGB)
    assert model.local_statistics == ALL


def test_nothing_is_measured_without_images_windows_or_an_image_as_a_whole():
    blocks = network(image_channels=1, sensing_ratio_percent=25, full_image=False)
    assert measure(network(), list, [NORM], RGB) == ()
    assert measure(network(), images, [], RGB) == ()
    assert measure(blocks, images, [NORM], RGB) == ()
    assert choose(()) is None


@pytest.mark.parametrize(
    ("gains", "is_better"),
    [
        ((0.1, 0.1, 0.1, 0.1), True),
        ((0.1, 0.1, 0.1, -0.1), True),
        ((0.1, 0.1, -0.01, -0.01), False),  # too few images gain
        ((0.01, 0.01, 0.01, 0.01), False),  # too little
        ((-0.1, -0.2, 0.0, 0.0), False),
    ],
)
def test_most_images_must_gain_and_the_mean_enough(gains, is_better):
    assert Candidate(NORM, 30.0, gains).is_better is is_better
    assert choose([Candidate(None, 29.0, (0.0,) * 4), Candidate(NORM, 30.0, gains)]) == (NORM if is_better else None)


def test_the_highest_psnr_of_those_that_are_better_is_chosen():
    whole, low, high = Candidate(None, 30.0, (0.0,)), Candidate(NORM, 30.1, (0.1,)), Candidate(ALL, 30.2, (0.2,))
    assert choose([whole, high, low]) == ALL
    assert high.as_json() == {
        "window": 96, "of": ("norm", "attention", "projection"), "psnr": 30.2,
        "mean_gain_db": 0.2, "worst_gain_db": 0.2, "best_gain_db": 0.2,
    }  # fmt: skip
