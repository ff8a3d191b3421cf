"""Haze, snow and low light follow their equations."""

import numpy as np
import pytest

from pipeline.degradations import degrade
from pipeline.degradations.light import LowLight, to_linear
from pipeline.degradations.sampling import generator
from pipeline.degradations.weather import Haze, Snow, distance, flake_layer

CLEAN = np.random.default_rng(1).random((60, 80, 3), dtype=np.float32)


def haze_step(**changes: object) -> dict[str, object]:
    return {"beta": 1.5, "airlight": [0.8, 0.8, 0.9], "relief": 0.3, "seed": 4, **changes}


def test_haze_follows_the_scattering_equation_in_linear_light() -> None:
    image = Haze.apply(CLEAN, haze_step())
    transmission = np.exp(-1.5 * distance(60, 80, 0.3, generator(4)))[:, :, None]
    airlight = to_linear(np.array([[[0.8, 0.8, 0.9]]], np.float32))
    expected = to_linear(CLEAN) * transmission + airlight * (1 - transmission)
    np.testing.assert_allclose(to_linear(image), expected, atol=1e-5)


def test_thick_haze_tends_to_the_airlight_and_increases_with_distance() -> None:
    wall = Haze.apply(CLEAN, haze_step(beta=200.0))[:30]
    np.testing.assert_allclose(wall, np.broadcast_to(np.float32([0.8, 0.8, 0.9]), wall.shape), atol=1e-3)
    lost = np.abs(Haze.apply(CLEAN, haze_step(relief=0.0)) - 0.8).mean(axis=(1, 2))
    assert lost[:20].mean() < lost[-20:].mean()


@pytest.mark.parametrize("relief", [0.0, 0.5, 1.0])
def test_distance_is_smooth_and_between_0_and_1(relief: float) -> None:
    field = distance(64, 96, relief, generator(2))
    assert field.min() >= 0
    assert field.max() <= 1
    assert np.abs(np.diff(field, axis=0)).max() < 0.15
    assert np.abs(np.diff(field, axis=1)).max() < 0.15


def test_snow_covers_the_area_of_its_density_and_hides_the_background() -> None:
    sampled = {"angle": 0.0, "size": 10.0, "motion": 6.0, "density": 4.0, "opacity": 0.8}
    once = flake_layer(400, 400, sampled, 1.0, generator(3)).mean()
    twice = flake_layer(400, 400, {**sampled, "density": 8.0}, 1.0, generator(3)).mean()
    assert twice == pytest.approx(2 * once, rel=0.15)
    blizzard = Snow(
        layers=2, depth=(1.0, 1.0), angle=(0.0, 0.0), size=(20.0, 20.0), motion=(0.0, 0.0), density=(100.0, 100.0),
        opacity=(0.99, 0.99), brightness=(0.95, 0.95), veil=(0.5, 0.5),
    )  # fmt: skip
    assert abs(float(degrade(CLEAN, blizzard, [0]).image.mean()) - 0.95) < 0.02


def test_each_stop_halves_the_linear_light() -> None:
    dark = degrade(CLEAN, LowLight(stops=(3.0, 3.0), gamma=(1.0, 1.0)), [0]).image
    np.testing.assert_allclose(to_linear(dark), to_linear(CLEAN) / 8, atol=1e-6)


def test_the_tone_curve_darkens_the_middle_and_keeps_black_and_white() -> None:
    steps = np.array([0, 0.5, 1], np.float32).reshape(1, 3, 1)
    image = degrade(steps, LowLight(stops=(0.0, 0.0), gamma=(2.0, 2.0)), [0]).image
    np.testing.assert_allclose(image.ravel(), [0, 0.25, 1], atol=1e-5)
