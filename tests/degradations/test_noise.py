"""Noise has the variance of its parameters; a camera without noise changes nothing; JPEG gives whole grey levels."""

import numpy as np
import pytest

from pipeline.degradations import degrade
from pipeline.degradations.camera import (
    LUMA,
    CameraNoise,
    compress,
    demosaic,
    develop,
    expand,
    mix,
    sample_bayer,
    to_camera,
    to_raw,
    white_balance,
)
from pipeline.degradations.noise import GaussianNoise, Jpeg

RNG = np.random.default_rng(5)
GRAY = np.full((200, 200, 3), 0.5, np.float32)


def camera_step(**changes: object) -> dict[str, object]:
    (sampled,) = CameraNoise(shot_noise=(0.001, 0.01), mosaic=False).sample(np.random.default_rng(0))
    return {**sampled, **changes}


@pytest.mark.parametrize("sigma", [5.0, 25.0, 75.0])
def test_gaussian_noise_has_standard_deviation_sigma_and_is_not_clipped(sigma: float) -> None:
    noise = degrade(GRAY * 0, GaussianNoise(sigma=(sigma, sigma), per_channel=True), [1]).image
    assert noise.std() * 255 == pytest.approx(sigma, rel=0.01)
    assert abs(noise.mean()) * 255 < 0.02 * sigma
    assert noise.min() < 0


def test_gaussian_noise_is_white() -> None:
    noise = degrade(GRAY * 0, GaussianNoise(sigma=(25.0, 25.0), per_channel=True), [2]).image
    for shifted in (noise[1:] * noise[:-1], noise[:, 1:] * noise[:, :-1], noise[:, :, 1:] * noise[:, :, :-1]):
        assert abs(shifted.mean()) < 0.02 * noise.var()


def test_noise_without_per_channel_is_equal_in_all_channels() -> None:
    noise = degrade(GRAY, GaussianNoise(sigma=(25.0, 25.0), per_channel=False), [3]).image - GRAY
    np.testing.assert_array_equal(noise[:, :, 0], noise[:, :, 2])


def test_sigma_is_uniform_in_its_range() -> None:
    rng = np.random.default_rng(0)
    sampled = [GaussianNoise(sigma=(10.0, 50.0), per_channel=True).sample(rng)[0]["sigma"] for _ in range(2000)]
    assert min(sampled) >= 10
    assert max(sampled) <= 50
    np.testing.assert_allclose(np.quantile(sampled, [0.25, 0.5, 0.75]), [20, 30, 40], atol=1.5)


def test_expand_is_the_inverse_of_compress() -> None:
    display = np.linspace(0, 1, 300, dtype=np.float32).reshape(10, 10, 3)
    np.testing.assert_allclose(compress(expand(display)), display, atol=3e-4)


def test_develop_is_the_inverse_of_to_raw_below_the_highlights() -> None:
    clean = RNG.uniform(0.1, 0.7, (40, 40, 3)).astype(np.float32)
    clean = 0.5 + 0.3 * (clean - 0.5)  # colours that every camera of the mixture can hold
    sampled = camera_step()
    gains = white_balance(3, sampled)
    developed = develop(mix(to_raw(clean, gains, sampled), np.diag(gains)), sampled)
    np.testing.assert_allclose(developed, clean, atol=1e-4)


def test_to_raw_keeps_white_and_colour_matrices_keep_gray() -> None:
    sampled = camera_step()
    raw = to_raw(np.ones((2, 2, 3), np.float32), white_balance(3, sampled), sampled)
    np.testing.assert_allclose(raw, 1, atol=1e-5)
    np.testing.assert_allclose(to_camera(sampled) @ np.ones(3), 1, atol=1e-12)


@pytest.mark.parametrize("value", [0.2, 0.4])
def test_raw_noise_has_the_variance_shot_times_value_plus_read(value: float) -> None:
    # A gray camera without gains: its display values differ from raw ones by a known curve alone.
    clean = compress(np.full((400, 400, 1), value)).astype(np.float32)
    sampled = camera_step(shot_noise=1e-4, read_noise=4e-6, exposure_gain=1.0)
    raw = expand(CameraNoise.apply(clean, sampled))
    assert raw.var() == pytest.approx(1e-4 * value + 4e-6, rel=0.03)
    assert raw.mean() == pytest.approx(value, abs=1e-3)


def test_read_noise_follows_the_published_line() -> None:
    rng = np.random.default_rng(0)
    sampled = [CameraNoise(shot_noise=(0.0001, 0.012), mosaic=True).sample(rng)[0] for _ in range(3000)]
    shot = np.log([step["shot_noise"] for step in sampled])
    read = np.log([step["read_noise"] for step in sampled])
    slope, offset = np.polyfit(shot, read, 1)
    assert slope == pytest.approx(2.18, abs=0.02)
    assert offset == pytest.approx(1.20, abs=0.15)
    assert np.std(read - slope * shot - offset) == pytest.approx(0.26, abs=0.01)
    assert shot.mean() == pytest.approx((np.log(0.0001) + np.log(0.012)) / 2, abs=0.1)
    assert {(step["bayer_row"], step["bayer_column"]) for step in sampled} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_shadows_are_noisier_than_highlights_on_the_display() -> None:
    sampled = camera_step(shot_noise=0.005, read_noise=1e-4)
    deviations = [CameraNoise.apply(GRAY * np.float32(level), sampled).std(axis=(0, 1)).mean() for level in (0.4, 1.9)]
    assert deviations[0] > 1.5 * deviations[1]


def correlation(values: np.ndarray) -> float:
    """Correlation of horizontal neighbours."""
    return float((values[:, 1:] * values[:, :-1]).mean() / np.square(values).mean())


def test_noise_reduction_smooths_luma_and_chroma_each_for_itself() -> None:
    degradations = [
        CameraNoise(
            shot_noise=(0.005, 0.005), mosaic=True, luma_smoothing=(luma, luma), chroma_smoothing=(chroma, chroma)
        )
        for luma, chroma in ((0.0, 0.0), (0.0, 2.0), (1.0, 0.0), (1.0, 2.0))
    ]
    noises = [degrade(GRAY, degradation, [7]).image - GRAY for degradation in degradations]
    lumas = [noise @ LUMA[0].astype(np.float32) for noise in noises]
    chromas = [noise - luma[:, :, None] for noise, luma in zip(noises, lumas, strict=True)]
    np.testing.assert_allclose(lumas[1], lumas[0], atol=1e-6)
    np.testing.assert_allclose(chromas[2], chromas[0], atol=1e-6)
    np.testing.assert_allclose(lumas[3], lumas[2], atol=1e-6)
    np.testing.assert_allclose(chromas[3], chromas[1], atol=1e-6)
    assert correlation(lumas[0]) < 0.5
    assert correlation(lumas[2]) > 0.75
    assert correlation(chromas[0]) < 0.7
    assert correlation(chromas[1]) > 0.9
    assert noises[3].std() < noises[0].std() / 2
    assert abs(noises[3].mean() - noises[0].mean()) < 1e-4


def test_noise_without_reduction_has_the_records_and_pixels_of_before_there_was_any() -> None:
    (sampled,) = CameraNoise(shot_noise=(0.001, 0.01), mosaic=True).sample(np.random.default_rng(0))
    reduced = CameraNoise(shot_noise=(0.001, 0.01), mosaic=True, chroma_smoothing=(1.0, 2.0)).sample(
        np.random.default_rng(0)
    )
    assert not {"luma_smoothing", "chroma_smoothing"} & sampled.keys()
    assert reduced == [{**sampled, "chroma_smoothing": reduced[0]["chroma_smoothing"]}]
    assert 1 <= reduced[0]["chroma_smoothing"] <= 2


def test_a_logarithmic_range_from_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shot_noise.*0\.0001"):
        CameraNoise(shot_noise=(0.0, 0.01), mosaic=True)


@pytest.mark.parametrize("phase", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_demosaicing_recovers_ramps_exactly_and_keeps_what_was_measured(phase: tuple[int, int]) -> None:
    sampled = {"bayer_row": phase[0], "bayer_column": phase[1]}
    y, x = np.mgrid[:12, :15] / 20
    ramps = np.stack([0.2 + 0.3 * y, 0.1 + 0.3 * y, 0.4 + 0.3 * y], axis=2) + 0.2 * x[:, :, None]
    restored = demosaic(sample_bayer(ramps, sampled), np.ones(3), sampled)
    np.testing.assert_allclose(restored[2:-2, 2:-2], ramps[2:-2, 2:-2], atol=1e-6)
    noise = RNG.random((9, 8, 3))
    mosaic = sample_bayer(noise, sampled)
    np.testing.assert_array_equal(sample_bayer(demosaic(mosaic, np.ones(3), sampled), sampled), mosaic)


def test_demosaicing_balances_each_colour_by_its_own_gain() -> None:
    sampled = {"bayer_row": 1, "bayer_column": 0}
    gains = np.array([2.0, 1.0, 1.5])
    flat = np.broadcast_to(0.3 / gains, (8, 9, 3))
    np.testing.assert_allclose(demosaic(sample_bayer(flat, sampled), gains, sampled), 0.3, atol=1e-6)


def test_saturated_values_stay_white_without_fringes_for_any_gain() -> None:
    sampled = {"bayer_row": 0, "bayer_column": 1}
    gains = np.array([2.4, 1.2, 1.9])
    lamp = np.broadcast_to(0.3 / gains, (16, 24, 3)).copy()
    lamp[:, 8:16] = 1
    seen = demosaic(sample_bayer(lamp, sampled), gains, sampled)
    np.testing.assert_allclose(seen[:, 10:14], 1, atol=1e-6)
    assert np.ptp(seen, axis=2).max() < 0.25  # what Malvar's filters make of the step; 1.4 without the clipping


def test_a_mosaic_correlates_the_noise_of_neighbours() -> None:
    def correlation(mosaic: bool) -> float:
        noise = CameraNoise.apply(GRAY, camera_step(mosaic=mosaic)) - GRAY
        return float((noise[:, 1:, 0] * noise[:, :-1, 0]).mean() / noise[:, :, 0].var())

    assert abs(correlation(False)) < 0.05
    assert correlation(True) > 0.2


def test_jpeg_of_lower_quality_has_a_larger_error_and_whole_grey_levels() -> None:
    clean = RNG.random((64, 64, 3), dtype=np.float32)
    distances = []
    for quality in (90, 50, 10):
        image = degrade(clean, Jpeg(quality=(quality, quality), chroma="4:4:4"), [0]).image
        np.testing.assert_allclose(image * 255, np.rint(image * 255), atol=1e-4)
        distances.append(float(np.square(image - clean).mean()))
    assert distances == sorted(distances)


def test_jpeg_420_blurs_colours_and_keeps_the_order_of_channels() -> None:
    clean = np.zeros((64, 64, 3), np.float32)
    clean[:, 31:, 0] = 0.9  # a red edge between two samples of colour
    clean[:, :31, 2] = 0.9

    def error(chroma: str) -> float:
        image = degrade(clean, Jpeg(quality=(95, 95), chroma=chroma), [0]).image  # type: ignore[arg-type]
        assert image[:, 50:, 0].mean() > 0.8
        assert image[:, :10, 2].mean() > 0.8
        return float(np.square(image - clean).mean())

    assert error("4:2:0") > 2 * error("4:4:4")
