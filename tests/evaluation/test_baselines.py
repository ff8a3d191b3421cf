"""Classical baselines do what they say, on images of one and of three channels."""

import cv2
import numpy as np
import pytest

from pipeline.evaluation.baselines import (
    Baseline,
    Bilateral,
    Median,
    NoBaseline,
    NonLocalMeans,
    Opening,
    PseudoInverse,
    Unsharp,
    noise_sigma,
)
from pipeline.evaluation.pseudo_inverse import reconstruct

FILTERS: list[Baseline] = [
    NoBaseline("none"),
    NonLocalMeans("non_local_means", 0.9),
    Median("median", 3),
    Bilateral("bilateral", 5, 30.0, 2.0),
    Opening("opening", 3),
    Unsharp("unsharp", 1.0, 0.5),
]


def smooth_image(height: int, width: int, channels: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    waves = [0.5 + 0.3 * np.sin(rows / (7 + c)) * np.cos(columns / 9) for c in range(channels)]
    return np.stack(waves, axis=2).astype(np.float32)


def mean_square(image: np.ndarray, clean: np.ndarray) -> float:
    return float(np.square(image - clean).mean())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("baseline", FILTERS, ids=lambda baseline: baseline.kind)
def test_a_baseline_keeps_shape_and_type_and_its_input(baseline, channels):
    for height, width in [(33, 21), (1, 1)]:
        degraded = smooth_image(height, width, channels)
        before = degraded.copy()
        restored = baseline.restore(degraded)
        assert restored.shape == degraded.shape
        assert restored.dtype == np.float32
        np.testing.assert_array_equal(degraded, before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sigma", [15, 25, 50])
def test_non_local_means_finds_the_strength_of_the_noise_and_removes_most_of_it(channels, sigma):
    clean = smooth_image(96, 96, channels)
    noisy = clean + np.random.default_rng(0).normal(0, sigma / 255, clean.shape).astype(np.float32)
    restored = NonLocalMeans("non_local_means", 0.9).restore(noisy)
    assert mean_square(restored, clean) < 0.25 * mean_square(noisy, clean)


def test_the_noise_of_a_smooth_image_is_estimated_within_a_tenth():
    noise = np.random.default_rng(1).normal(0, 0.1, (128, 128, 3)).astype(np.float32)
    assert noise_sigma(smooth_image(128, 128, 3) + noise) == pytest.approx(0.1, rel=0.1)
    assert noise_sigma(np.zeros((2, 2, 3), np.float32)) == 0


def test_opening_removes_a_narrow_bright_streak_and_keeps_a_wide_one():
    clean = np.full((20, 20, 3), 0.25, np.float32)
    narrow, wide = clean.copy(), clean.copy()
    narrow[:, 9:11] = 1.0
    wide[:, 8:12] = 1.0
    opening = Opening("opening", 3)
    np.testing.assert_array_equal(opening.restore(narrow), clean)
    np.testing.assert_array_equal(opening.restore(wide), wide)


def test_the_median_removes_a_single_bright_pixel():
    image = np.full((9, 9, 1), 0.2, np.float32)
    image[4, 4] = 1.0
    assert np.ptp(Median("median", 3).restore(image)) == 0


def test_unsharp_masking_brings_a_blurred_image_nearer_to_the_sharp_one():
    clean = np.random.default_rng(2).random((64, 64, 3)).astype(np.float32)
    clean = cv2.GaussianBlur(clean, (0, 0), 2)
    blurred = cv2.GaussianBlur(clean, (0, 0), 1)
    sharpened = Unsharp("unsharp", 1.0, 1.0).restore(blurred)
    assert mean_square(sharpened, clean) < 0.25 * mean_square(blurred, clean)


@pytest.mark.parametrize("count", [10, 102, 1024])
def test_the_pseudo_inverse_keeps_the_lowest_frequencies_of_each_block_and_nothing_else(count):
    clean = (0.3 + 0.4 * np.random.default_rng(3).random((64, 96, 1))).astype(np.float32)
    image = reconstruct(clean, count)
    assert image.shape == clean.shape
    y, x = np.mgrid[:32, :32]
    kept = np.isin(np.arange(1024), np.argsort((y**2 + x**2).ravel(), kind="stable")[:count]).reshape(32, 32)
    for top in range(0, 64, 32):
        for left in range(0, 96, 32):
            block = np.s_[top : top + 32, left : left + 32, 0]
            expected = cv2.idct(np.where(kept, cv2.dct(clean[block]), 0).astype(np.float32))
            np.testing.assert_allclose(image[block], expected, atol=1e-5)


def test_the_pseudo_inverse_takes_any_size_and_stays_in_range():
    clean = (np.random.default_rng(4).random((40, 33, 1)) > 0.5).astype(np.float32)
    image = reconstruct(clean, 300)
    assert image.shape == clean.shape
    assert (image.min(), image.max()) == (0, 1)


def test_the_pseudo_inverse_refuses_an_image():
    with pytest.raises(ValueError, match="is for sensing networks"):
        PseudoInverse("pseudo_inverse").restore(smooth_image(8, 8, 1))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: NonLocalMeans("non_local_means", 0.0), "strength_per_sigma"),
        (lambda: Bilateral("bilateral", 0, 30.0, 2.0), "diameter"),
        (lambda: Bilateral("bilateral", 5, -1.0, 2.0), "sigma_range"),
        (lambda: Opening("opening", 0), "width"),
        (lambda: Unsharp("unsharp", 0.0, 1.0), "sigma"),
    ],
)
def test_a_senseless_strength_is_refused_by_name(make, name):
    with pytest.raises(ValueError, match=name):
        make()
