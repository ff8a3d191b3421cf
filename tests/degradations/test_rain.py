"""Rain: streaks carry the optical depth they were given, and the two presets lie where the field's sets lie."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from factories import PROJECT, image_set

from pipeline.degradations import degrade
from pipeline.degradations.rain import RainStreaks, draw_steep, streak_layer
from pipeline.degradations.sampling import generator

EXAMPLES: dict[str, Any] = yaml.safe_load((PROJECT / "infra" / "degradations.yaml").read_text())


def preset(name: str) -> RainStreaks:
    text = {
        key: tuple(map(float, value)) if isinstance(value, list) else value for key, value in EXAMPLES[name].items()
    }
    return RainStreaks(**text)


def streak(y: float, x: float, reach_y: float, reach_x: float, strength: float) -> np.ndarray:
    return np.array([[y], [x], [reach_y], [reach_x], [strength]], np.float32)


def test_an_upright_streak_between_two_columns_is_shared_in_proportion_and_fades_towards_its_ends() -> None:
    sampled = draw_steep(9, 5, streak(4.0, 1.25, 4.0, 0.0, 4.0))
    fade = 1 - (np.arange(-4, 5) / 4) ** 2
    expected = np.zeros((9, 5))
    expected[:, 1], expected[:, 2] = 0.75 * fade, 0.25 * fade
    np.testing.assert_allclose(sampled, expected, atol=1e-6)


def test_a_leaning_streak_has_the_depth_of_an_upright_one_of_its_length() -> None:
    upright = draw_steep(200, 200, streak(100.0, 100.0, 50.0, 0.0, 50.0)).sum()
    leaning = draw_steep(200, 200, streak(100.3, 100.2, 40.0, 30.0, 50.0)).sum()
    assert leaning == pytest.approx(upright, rel=0.01)
    assert upright == pytest.approx(50 * 4 / 3, rel=0.01)  # half length times the integral of 1 - s²


def test_a_streak_that_is_partly_outside_is_cut_and_one_that_is_wholly_outside_is_nothing() -> None:
    whole = draw_steep(40, 40, streak(20.0, 20.0, 6.0, 2.0, 1.0))
    assert draw_steep(40, 17, streak(20.0, 20.0, 6.0, 2.0, 1.0)).sum() == 0
    np.testing.assert_array_equal(draw_steep(40, 21, streak(20.0, 20.0, 6.0, 2.0, 1.0)), whole[:, :21])
    np.testing.assert_array_equal(draw_steep(40, 40, streak(20.0, -0.5, 6.0, 2.0, 1.0)).sum(axis=0)[3:], 0)
    assert draw_steep(40, 40, np.zeros((5, 0), np.float32)).sum() == 0


@pytest.mark.parametrize("distance", [1.0, 2.0])
def test_the_mean_optical_depth_of_a_layer_is_what_its_parameters_say(distance: float) -> None:
    sampled = {"angle": 20.0, "angle_spread": 2.0, "length": 24.0, "width": 3.0, "density": 8.0, "opacity": 0.5}
    layer = streak_layer(400, 400, sampled, distance, generator(1))
    mean_strength = -np.log(1 - 0.5) * (0.1 + 1.0) / 2
    mean_profile = 2 / 3  # of 1 - s² over a streak
    streaks_per_pixel = 8.0 / 100**2 * distance**2
    expected = streaks_per_pixel * mean_strength * mean_profile * (24 / distance) * (1.0645 * 3 / distance)
    assert layer.mean() == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("angle", [-75.0, 30.0, 80.0])
def test_streaks_run_along_their_angle(angle: float) -> None:
    sampled = {"angle": angle, "angle_spread": 0.0, "length": 60.0, "width": 2.0, "density": 4.0, "opacity": 0.8}
    layer = streak_layer(256, 256, sampled, 1.0, generator(2))
    gradient_y, gradient_x = np.gradient(cv2.GaussianBlur(layer, (0, 0), 1.0))
    across = 0.5 * np.arctan2(2 * (gradient_x * gradient_y).sum(), (gradient_x**2 - gradient_y**2).sum())
    off = (np.rad2deg(across) + angle + 90) % 180 - 90  # the fall (sin α, cos α) has its normal at −α
    assert abs(off) < 2


def test_rain_hides_what_is_behind_it_and_tends_to_its_own_brightness() -> None:
    clean = np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)
    storm = {**EXAMPLES["heavy_rain"], "density": (100.0, 100.0), "opacity": (0.99, 0.99), "brightness": (0.7, 0.7)}
    storm = {key: tuple(map(float, value)) if isinstance(value, list) else value for key, value in storm.items()}
    image = degrade(clean, RainStreaks(**storm), [0]).image
    assert abs(float(image.mean()) - 0.7) < 0.02
    assert image.std() < 0.2 * clean.std()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), [("light_rain", 26.9), ("heavy_rain", 13.6)])
def test_a_preset_has_the_mean_luma_psnr_of_the_set_it_is_named_after(name: str, expected: float) -> None:
    rain, photos = preset(name), sorted(image_set("CBSD400/test").iterdir())  # the 200 test images of BSDS500
    psnr = [luma_psnr(read(path), rain, index) for index, path in enumerate(photos)]
    assert np.mean(psnr) == pytest.approx(expected, abs=0.7)


def read(path: Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB).astype(np.float32) / 255


def luma_psnr(clean: np.ndarray, rain: RainStreaks, index: int) -> float:
    degraded = np.round(np.clip(degrade(clean, rain, [1234, index]).image, 0, 1) * 255) / 255
    luma = (degraded - clean) @ np.array([65.481, 128.553, 24.966]) / 255  # MATLAB's rgb2ycbcr; the offset cancels
    return float(-10 * np.log10(np.mean(luma**2)))
