"""Compositions sample the right steps, with the right frequency and order."""

from collections import Counter

import numpy as np
import pytest

from pipeline.degradations import degrade
from pipeline.degradations.compose import OneOf, RandomOrder, Repeat, Sequence, Sometimes
from pipeline.degradations.light import LowLight
from pipeline.degradations.noise import GaussianNoise, Jpeg

NOISE = GaussianNoise(sigma=(1.0, 50.0), per_channel=True)
JPEG = Jpeg(quality=(10, 90), chroma="4:2:0")
DARK = LowLight(stops=(1.0, 2.0), gamma=(1.0, 1.0))


def kinds(
    degradation: Sequence | RandomOrder | OneOf | Sometimes | Repeat, num_samples: int
) -> Counter[tuple[str, ...]]:
    rng = np.random.default_rng(0)
    return Counter(tuple(step["kind"] for step in degradation.sample(rng)) for _ in range(num_samples))


def test_a_sequence_applies_its_steps_in_order() -> None:
    assert kinds(Sequence(steps=(NOISE, JPEG, DARK)), 5) == {("gaussian_noise", "jpeg", "low_light"): 5}
    clean = np.random.default_rng(0).random((16, 16, 3), dtype=np.float32)
    degraded = degrade(clean, Sequence(steps=(DARK, JPEG)), [3])
    dark_step, jpeg_step = degraded.record["steps"]
    np.testing.assert_array_equal(degraded.image, Jpeg.apply(LowLight.apply(clean, dark_step), jpeg_step))


def test_every_random_order_has_the_same_probability() -> None:
    orders = kinds(RandomOrder(steps=(NOISE, JPEG, DARK)), 1200)
    assert len(orders) == 6
    assert all(abs(count - 200) < 60 for count in orders.values())


def test_choices_have_the_probability_of_their_weights() -> None:
    chosen = kinds(OneOf(choices=(NOISE, JPEG, DARK), weights=(1.0, 3.0, 0.0)), 1000)
    assert set(chosen) == {("gaussian_noise",), ("jpeg",)}
    assert abs(chosen[("jpeg",)] - 750) < 60


def test_sometimes_applies_its_step_with_its_probability() -> None:
    sampled = kinds(Sometimes(probability=0.3, step=JPEG), 1000)
    assert abs(sampled[("jpeg",)] - 300) < 60
    assert sampled[("jpeg",)] + sampled[()] == 1000


def test_repeat_samples_anew_each_time() -> None:
    first, second = Repeat(times=2, step=NOISE).sample(np.random.default_rng(0))
    assert first["kind"] == second["kind"] == "gaussian_noise"
    assert first["sigma"] != second["sigma"]
    assert first["seed"] != second["seed"]


def test_nested_compositions_give_one_flat_list() -> None:
    nested = Repeat(times=2, step=Sequence(steps=(OneOf(choices=(NOISE,), weights=(1.0,)), RandomOrder(steps=(JPEG,)))))
    assert kinds(nested, 3) == {("gaussian_noise", "jpeg") * 2: 3}


@pytest.mark.parametrize("weights", [(1.0,), (0.0, 0.0), (1.0, -1.0)])
def test_weights_that_do_not_fit_the_choices_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"one_of\.weights.*2 choices"):
        OneOf(choices=(NOISE, JPEG), weights=weights)


def test_a_probability_or_a_count_out_of_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sometimes\.probability"):
        Sometimes(probability=1.5, step=NOISE)
    with pytest.raises(ValueError, match=r"repeat\.times"):
        Repeat(times=0, step=NOISE)
