"""The interval of a mean covers the true mean as often as it says, where photographs vary and their tiles do too."""

import numpy as np
import pytest

from pipeline.evaluation.intervals import LEVEL, mean_interval, photograph_of


def test_it_covers_the_true_mean_about_as_often_as_it_says():
    rng, covered, num_trials = np.random.default_rng(0), 0, 120
    names = [f"photograph{number // 4}" for number in range(4 * 40)]
    for _ in range(num_trials):
        values = np.repeat(rng.normal(1.0, 0.5, 40), 4) + rng.normal(0, 0.1, 160)
        interval = mean_interval(values.tolist(), names)
        covered += interval.low <= 1.0 <= interval.high
    assert 0.88 <= covered / num_trials <= 0.99


@pytest.mark.parametrize("num_photographs", [2, 3, 5])
@pytest.mark.parametrize("tiles", [4, None])
def test_its_lower_bound_is_seldom_above_the_true_mean_where_photographs_are_few(num_photographs, tiles):
    rng, num_trials, wrong = np.random.default_rng(num_photographs), 400, 0
    for _ in range(num_trials):
        counts = rng.integers(2, 9, num_photographs) if tiles is None else np.full(num_photographs, tiles)
        values = np.repeat(rng.normal(0, 0.2, num_photographs), counts) + rng.normal(0, 0.1, counts.sum())
        names = np.repeat([f"photograph{number}" for number in range(num_photographs)], counts)
        wrong += mean_interval(values.tolist(), names.tolist()).low > 0
    assert wrong / num_trials <= 0.05


def test_two_photographs_give_the_interval_of_student():
    interval = mean_interval([0.0, 2.0], ["a", "b"])
    assert (interval.low, interval.high) == pytest.approx((1 - 12.7062, 1 + 12.7062), abs=1e-4)  # t, 1 degree, 97.5 %


def test_many_skewed_values_give_a_bound_of_the_bootstrap():
    values = [0.0] * 95 + [10.0] * 5
    interval = mean_interval(values, [str(number) for number in range(100)])
    mean, half_width = 0.5, 1.98422 * np.std(values, ddof=1) / 10  # t, 99 degrees, 97.5 %
    assert interval.low == pytest.approx(mean - half_width, abs=1e-4)
    assert interval.high > mean + half_width + 0.02


def test_tiles_of_one_photograph_count_as_one_draw():
    rng = np.random.default_rng(1)
    by_photograph = rng.normal(0, 1, 10)
    few = mean_interval(by_photograph.tolist(), [str(n) for n in range(10)])
    many = mean_interval(np.repeat(by_photograph, 50).tolist(), [str(n // 50) for n in range(500)])
    assert (many.low, many.high) == pytest.approx((few.low, few.high))
    assert many.num_photographs == 10
    assert few.level == LEVEL


def test_it_is_the_same_every_time_and_follows_the_mean():
    values = [1.0, 2.0, 4.0]
    interval = mean_interval(values, ["a", "b", "c"])
    assert interval == mean_interval(values, ["a", "b", "c"])
    shifted = mean_interval([value + 10 for value in values], ["a", "b", "c"])
    assert (shifted.low, shifted.high) == pytest.approx((interval.low + 10, interval.high + 10))
    assert interval.low < 7 / 3 < interval.high


@pytest.mark.parametrize("values", [[1.0, 2.0], [1.0, float("nan"), 3.0], [1.0, float("inf"), 3.0]])
def test_there_is_none_of_one_photograph_or_of_values_that_are_not_finite(values):
    names = ["a", "a"] if len(values) == 2 else ["a", "b", "c"]
    assert mean_interval(values, names) is None


def test_there_must_be_a_photograph_for_each_value():
    with pytest.raises(ValueError, match="2 values, but 1 names"):
        mean_interval([1.0, 2.0], ["a"])


@pytest.mark.parametrize(
    ("key", "photograph"),
    [("00d26556db94cd8d_00000_00195_0", "00d26556db94cd8d"), ("rain-001", "rain-001"), ("a_b", "a_b")],
)
def test_the_photograph_of_a_key(key, photograph):
    assert photograph_of(key) == photograph
