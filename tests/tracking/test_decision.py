"""A candidate becomes champion by the lower bound of its gain, so that chance alone seldom makes one."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from pipeline.tracking.decision import Gain, compare_with_baselines, compare_with_champion, paired_gain
from pipeline.tracking.settings import Promote

Scores = dict[str, float]
RULE = Promote(margin_db=0.02, min_scenes=3, require_approval=False)
WITHOUT_MARGIN = RULE.model_copy(update={"margin_db": 0.0})


def same(gains: list[float]) -> tuple[Scores, Scores]:
    """Scores of a candidate and a champion, which has 25 dB throughout; each image is of another photograph."""
    champion = {f"image{number}": 25.0 for number in range(len(gains))}
    return {key: 25.0 + gain for key, gain in zip(champion, gains, strict=True)}, champion


def models(seed: int, num_photographs: int, gain: float) -> tuple[Scores, Scores]:
    """Scores of two models whose true mean difference is `gain` dB, on four tiles of each photograph.

    Photographs differ by 3 dB, tiles of one by 1.5; by how much the candidate is better differs from photograph to
    photograph (0.2 dB), and from tile to tile (0.1 dB).
    """
    rng = np.random.default_rng(seed)
    shape = (num_photographs, 4)
    champion = 30 + rng.normal(0, 3, (num_photographs, 1)) + rng.normal(0, 1.5, shape)
    candidate = champion + gain + rng.normal(0, 0.2, (num_photographs, 1)) + rng.normal(0, 0.1, shape)
    keys = [f"photograph{i}_00000_{tile:05d}_0" for i in range(num_photographs) for tile in range(4)]
    return (
        dict(zip(keys, candidate.ravel().tolist(), strict=True)),
        dict(zip(keys, champion.ravel().tolist(), strict=True)),
    )


@pytest.mark.parametrize(
    ("num_photographs", "rule"),
    [(3, RULE), (3, WITHOUT_MARGIN), (5, WITHOUT_MARGIN), (20, RULE), (20, WITHOUT_MARGIN), (30, WITHOUT_MARGIN)],
)
def test_of_two_models_that_are_equally_good_chance_seldom_makes_a_champion(
    num_photographs: int, rule: Promote
) -> None:
    decisions = [compare_with_champion(*models(seed, num_photographs, 0.0), 1, rule) for seed in range(100)]
    assert sum(decision.set_champion for decision in decisions) <= 5
    by_the_mean = sum(decision.gain is not None and decision.gain["mean"] > rule.margin_db for decision in decisions)
    assert by_the_mean >= 25, "the difference of the means alone would make many"


def test_a_model_that_is_better_by_a_fifth_of_a_decibel_becomes_champion_on_a_hundred_photographs() -> None:
    decisions = [compare_with_champion(*models(seed, 100, 0.2), 1, RULE) for seed in range(30)]
    assert sum(decision.set_champion for decision in decisions) >= 29


def test_tiles_of_one_photograph_are_one_observation() -> None:
    champion = {f"{name}_00000_{tile:05d}_0": 25.0 for name in "abc" for tile in range(100)}
    candidate = {key: psnr + {"a": 1.0, "b": 1.0, "c": -1.0}[key[0]] for key, psnr in champion.items()}
    gain = paired_gain(candidate, champion, "version 1")
    assert gain.num_photographs == 3
    assert gain.interval is not None
    assert gain.interval.low == pytest.approx(1 / 3 - 4.30265 * math.sqrt(4 / 9), abs=1e-4)  # t, 2 degrees, 97.5 %


def test_the_lower_bound_must_exceed_the_margin() -> None:
    rule = RULE.model_copy(update={"margin_db": 0.5})
    assert not compare_with_champion(*same([0.5, 0.5, 0.5]), 1, rule).set_champion
    assert compare_with_champion(*same([0.75, 0.75, 0.75]), 1, rule).set_champion
    assert not compare_with_champion(*same([0.0, 0.0, 0.0]), 1, WITHOUT_MARGIN).set_champion
    assert not compare_with_champion(*same([0.25, 0.75, 1.25]), 1, rule).set_champion


def test_a_gain_that_is_sure_is_said_with_its_interval() -> None:
    decision = compare_with_champion(*same([0.25, 0.25, 0.3125]), 7, RULE)
    assert decision.set_champion
    assert decision.champion_psnr == 25.0
    assert decision.reason == (
        "beats the champion: 25.27 dB against 25.00 dB of version 7, margin 0.02 dB; "
        "mean gain +0.271 dB, 95 % interval +0.181 to +0.360 dB over 3 photographs"
    )
    assert decision.gain == {
        "over": "version 7", "mean": 0.2708, "num_photographs": 3,
        "interval": {
            "low": 0.1812, "high": 0.3605, "level": 0.95, "num_photographs": 3, "num_resamples": 10_000, "seed": 0,
            "method": "percentile bootstrap and Student's t over photographs, the wider bounds",
        },
    }  # fmt: skip


def test_a_gain_that_may_be_chance_is_said_with_the_number_of_photographs_that_would_show_it() -> None:
    decision = compare_with_champion(*same([0.5, -0.25, 0.5]), 7, RULE)
    assert not decision.set_champion
    assert not decision.asks_a_person
    assert decision.reason == (
        "3 photographs cannot tell whether it beats the champion: 25.25 dB against 25.00 dB of version 7; "
        "mean gain +0.250 dB, 95 % interval -0.826 to +1.326 dB over 3 photographs, of which the lower bound must "
        "exceed 0.02 dB; with this mean and spread that takes about 17 photographs"
    )
    barely = compare_with_champion(*same([10.0, -10.0, 0.0625]), 7, RULE)
    assert barely.reason.endswith("that takes more than 10000 photographs")


def test_a_gain_whose_mean_is_too_small_is_none() -> None:
    decision = compare_with_champion(*same([0.0, -0.25, 0.25]), 7, RULE)
    assert not decision.set_champion
    assert decision.reason.startswith(
        "does not beat the champion: 25.00 dB against 25.00 dB of version 7, margin 0.02 dB;"
    )
    assert "photographs would" not in decision.reason


def test_so_many_photographs_do_show_it() -> None:
    few = paired_gain(*models(0, 20, 0.05), "version 1")
    assert not few.exceeds(0.02)
    needed = few.photographs_needed(0.02)
    assert 20 < needed < 10_000
    assert few.interval is not None
    deviation = (few.mean - few.interval.low) * math.sqrt(20) / 2.09302  # t, 19 degrees, 97.5 %
    assert few.mean - 1.96 * deviation / math.sqrt(needed) > 0.02
    assert few.mean - 2.1 * deviation / math.sqrt(needed - 1) < 0.02
    assert Gain("it", 0.01, few.interval, 20).photographs_needed(0.02) == math.inf
    assert Gain("it", 1.0, None, 1).photographs_needed(0.02) == math.inf


@pytest.mark.parametrize(("num", "named"), [(1, "1 photograph,"), (2, "2 photographs,")])
def test_on_fewer_photographs_than_asked_for_no_candidate_is_judged(num: int, named: str) -> None:
    decision = compare_with_champion(*same([10.0] * num), 7, RULE)
    assert not decision.set_champion
    assert decision.asks_a_person
    assert decision.reason == (
        f"not judged: the test set has {named} and promote.min_scenes asks for 3; "
        "35.00 dB against 25.00 dB of version 7"
    )
    assert compare_with_champion(*same([10.0] * 2), 7, RULE.model_copy(update={"min_scenes": 2})).set_champion


def compare(*gains: float, over_degraded: float = 5.0) -> Callable[[], object]:
    """The decision on a first candidate with these gains over the baseline, on as many photographs."""
    restored, baseline = same(list(gains))
    degraded = {key: psnr - over_degraded for key, psnr in restored.items()}
    return partial(compare_with_baselines, {"restored": restored, "degraded": degraded, "baseline": baseline}, RULE)


@pytest.mark.parametrize(
    ("gains", "is_champion", "says"),
    [
        ((1.0, 1.0, 1.25), True, "the baseline has 25.00 dB; mean gain +1.083 dB, 95 % interval +0.725 to +1.442 dB"),
        ((-0.5, 1.0, 1.0), False, "no champion yet, and 3 photographs cannot tell whether 25.50 dB beat the baseline"),
        ((-1.0, -1.0, 1.0), False, "no champion yet, and 24.67 dB do not beat the baseline images with 25.00 dB"),
        ((-0.5, 1.0), True, "2 photographs cannot tell whether it is better (promote.min_scenes: 3)"),
        ((1.0,), True, "1 photograph cannot tell whether it is better (promote.min_scenes: 3)"),
        ((-1.0,), False, "no champion yet, and 24.00 dB do not beat the baseline images with 25.00 dB"),
    ],
)
def test_a_first_champion_needs_a_sure_gain_only_where_there_are_photographs_enough(
    gains: tuple[float, ...], is_champion: bool, says: str
) -> None:
    decision = compare(*gains)()
    assert decision.set_champion == is_champion
    assert says in decision.reason
    assert decision.champion_psnr is None
    assert decision.gain["over"] == "the baseline images"


def test_a_first_champion_must_beat_the_degraded_images_too() -> None:
    decision = compare(1.0, 1.0, 1.0, over_degraded=0.0)()
    assert not decision.set_champion
    assert "26.00 dB do not beat the degraded images with 26.00 dB" in decision.reason


def test_images_are_paired_by_key_whatever_their_order() -> None:
    candidate, champion = models(0, 5, 0.1)
    shuffled = dict(reversed(champion.items()))
    assert paired_gain(candidate, shuffled, "it") == paired_gain(candidate, champion, "it")


def test_an_image_that_one_side_lacks_is_an_error_that_names_it() -> None:
    candidate, champion = same([0.0, 0.0, 0.0])
    less = {"image0": 25.0}
    with pytest.raises(ValueError, match=r"^the candidate has no PSNR of the test image image1 and of 1 more$"):
        paired_gain(less, champion, "version 7")
    with pytest.raises(ValueError, match=r"^version 7 has no PSNR of the test image image1 and of 1 more$"):
        paired_gain(candidate, less, "version 7")
    del champion["image2"]
    with pytest.raises(ValueError, match=r"^version 7 has no PSNR of the test image image2$"):
        paired_gain(candidate, champion, "version 7")
