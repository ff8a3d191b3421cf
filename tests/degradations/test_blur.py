"""Blur: kernels sum to 1 and are centred, convolution is linear with its adjoint, and highlights are clipped last."""

import numpy as np
import pytest

from pipeline.degradations import blur, degrade
from pipeline.degradations.blur import (
    CameraShake,
    Defocus,
    GaussianBlur,
    convolve,
    disk_kernel,
    expose,
    gaussian_kernel,
    gaussian_profile,
    kernel_of_path,
    trajectory,
)
from pipeline.degradations.light import to_display, to_linear
from pipeline.degradations.sampling import generator

KERNELS = {
    "straight": kernel_of_path(20 * trajectory(0.0, generator([1]))),
    "shaken": kernel_of_path(60 * trajectory(0.7, generator([2]))),
    "crooked": kernel_of_path(12 * trajectory(0.5, generator([8]))),
    "long": kernel_of_path(150 * trajectory(0.1, generator([3]))),
    "small disk": disk_kernel(0.7),
    "disk": disk_kernel(4.3),
    "round": gaussian_kernel(1.7, 1.0, 0.0),
    "ellipse": gaussian_kernel(4.0, 0.3, 25.0),
    "no blur": gaussian_kernel(0.0, 1.0, 0.0),
    "no way": kernel_of_path(0 * trajectory(0.3, generator([4]))),
    "no radius": disk_kernel(0.0),
}
every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((height, width, 3)).astype(np.float32)


@every_kernel
def test_a_kernel_is_not_negative_sums_to_one_and_has_odd_sides(kernel: np.ndarray) -> None:
    assert kernel.sum(dtype=np.float64) == pytest.approx(1, abs=1e-5)
    assert kernel.min() >= 0
    assert kernel.shape[0] % 2 == kernel.shape[1] % 2 == 1


@every_kernel
def test_a_kernel_does_not_shift_the_image(kernel: np.ndarray) -> None:
    y, x = (np.arange(size) - size // 2 for size in kernel.shape)
    assert (kernel.sum(axis=1) * y).sum() == pytest.approx(0, abs=1e-3)
    assert (kernel.sum(axis=0) * x).sum() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("name", ["no blur", "no way", "no radius"])
def test_a_kernel_of_extent_zero_is_one_pixel(name: str) -> None:
    np.testing.assert_array_equal(KERNELS[name], np.ones((1, 1)))


@every_kernel
def test_convolution_follows_its_definition(kernel: np.ndarray) -> None:
    image = noise(20, 23)
    down, right = kernel.shape[0] // 2, kernel.shape[1] // 2
    wide = np.pad(image, ((down, down), (right, right), (0, 0)), mode="symmetric").astype(np.float64)
    expected = np.zeros(image.shape)
    for row in range(kernel.shape[0]):
        for column in range(kernel.shape[1]):
            shifted = wide[2 * down - row :, 2 * right - column :][: image.shape[0], : image.shape[1]]
            expected += float(kernel[row, column]) * shifted
    np.testing.assert_allclose(convolve(image, kernel), expected, atol=2e-6)


@every_kernel
def test_convolution_is_linear(kernel: np.ndarray) -> None:
    one, other = noise(31, 40, 1), noise(31, 40, 2)
    together = convolve(2 * one - 3 * other, kernel)
    np.testing.assert_allclose(together, 2 * convolve(one, kernel) - 3 * convolve(other, kernel), atol=2e-5)


@every_kernel
def test_the_flipped_kernel_is_the_adjoint(kernel: np.ndarray) -> None:
    margin = max(kernel.shape) // 2 + 1
    inside = np.zeros((2 * margin + 12, 2 * margin + 14, 1), np.float32)
    inside[margin:-margin, margin:-margin] = 1  # away from the reflected border
    one, other = inside * noise(*inside.shape[:2], 1), inside * noise(*inside.shape[:2], 2)
    forward = (convolve(one, kernel) * other).sum(dtype=np.float64)
    backward = (one * convolve(other, np.ascontiguousarray(kernel[::-1, ::-1]))).sum(dtype=np.float64)
    assert forward == pytest.approx(backward, abs=1e-3)


@pytest.mark.parametrize(("sigma", "ratio", "angle"), [(3.0, 1.0, 0.0), (4.0, 0.5, 30.0), (5.0, 0.4, -60.0)])
def test_a_gaussian_kernel_has_the_covariance_of_its_axes(sigma: float, ratio: float, angle: float) -> None:
    kernel = gaussian_kernel(sigma, ratio, angle).astype(np.float64)
    y, x = np.mgrid[: kernel.shape[0], : kernel.shape[1]] - kernel.shape[0] // 2
    covariance = [[(kernel * x * x).sum(), (kernel * x * y).sum()], [(kernel * x * y).sum(), (kernel * y * y).sum()]]
    axis = np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
    variances = [sigma**2, (sigma * ratio) ** 2]
    expected = variances[0] * np.outer(axis, axis) + variances[1] * np.outer(axis[::-1] * [-1, 1], axis[::-1] * [-1, 1])
    np.testing.assert_allclose(covariance, expected, rtol=0.01, atol=0.03)


@pytest.mark.parametrize("sigma", [0.0, 0.2, 0.7, 3.1, 20.0])
def test_an_isotropic_gaussian_is_its_profile_along_both_axes(sigma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = gaussian_profile(sigma)
    np.testing.assert_allclose(np.outer(profile, profile), gaussian_kernel(sigma, 1.0, 0.0), atol=1e-7)
    clean = noise(30, 41).clip(0, 1)
    np.testing.assert_allclose(convolve(clean, profile), convolve(clean, gaussian_kernel(sigma, 1.0, 0.0)), atol=6e-7)
    used: list[int] = []
    monkeypatch.setattr(blur, "expose", lambda image, kernel, gain: used.append(kernel.ndim) or image)
    for ratio in (1.0, 0.9):
        degrade(
            clean,
            GaussianBlur(sigma=(sigma,) * 2, ratio=(ratio,) * 2, angle=(0.0,) * 2, highlight_gain=(1.0,) * 2),
            [0],
        )
    assert used == [1, 2]  # the separable way is eight times faster, and of ellipses it is wrong


@pytest.mark.parametrize("radius", [1.5, 4.0, 9.7])
def test_a_disk_has_the_area_and_the_second_moment_of_a_disk(radius: float) -> None:
    kernel = disk_kernel(radius).astype(np.float64)
    assert 1 / kernel.max() == pytest.approx(np.pi * radius**2, rel=0.02)
    y, x = np.mgrid[: kernel.shape[0], : kernel.shape[1]] - kernel.shape[0] // 2
    assert (kernel * (x**2 + y**2)).sum() == pytest.approx(radius**2 / 2 + 1 / 6, abs=0.15)


def test_a_trajectory_has_length_one_and_equal_steps() -> None:
    for anxiety in (0.0, 0.3, 1.0):
        steps = np.linalg.norm(np.diff(trajectory(anxiety, generator([7])), axis=0), axis=1)
        np.testing.assert_allclose(steps, steps[0], rtol=1e-9)
        assert steps.sum() == pytest.approx(1, abs=0.01)


def test_anxiety_zero_gives_a_straight_path_and_more_a_more_compact_one() -> None:
    def extent(anxiety: float) -> float:
        paths = [trajectory(anxiety, generator([seed])) for seed in range(40)]
        return float(np.mean([np.linalg.norm(path[-1] - path[0]) for path in paths]))

    assert extent(0.0) == pytest.approx(1, abs=0.01)
    assert extent(0.0) > extent(0.3) > extent(1.0)


def test_blur_averages_linear_light_and_not_display_values() -> None:
    halves = np.zeros((40, 40, 1), np.float32)
    halves[:, ::2] = 0.9
    image = expose(halves, gaussian_kernel(6.0, 1.0, 0.0), 1.0)
    mean_light = to_linear(halves).mean(keepdims=True)
    np.testing.assert_allclose(image[20, 20], to_display(mean_light)[0, 0], atol=2e-3)
    assert image[20, 20, 0] > 0.6  # the mean of display values would be 0.45


def test_a_highlight_gain_gives_brighter_tracks() -> None:
    lamp = np.zeros((41, 41, 3), np.float32)
    lamp[19:22, 19:22] = 1
    step = {"length": 25.0, "anxiety": 0.0, "seed": 3}
    faint, bright = (CameraShake.apply(lamp, {**step, "highlight_gain": gain}) for gain in (1.0, 8.0))
    assert faint.max() < 0.7
    assert bright.max() > 0.9
    clipped = degrade(lamp, Defocus(radius=(2.0, 2.0), highlight_gain=(20.0, 20.0)), [0]).image
    assert clipped.max() <= 1
    assert (clipped == clipped.max()).sum() > 3 * 9  # saturated again after the blur, over more than the lamp


def test_to_linear_and_to_display_are_inverse_and_follow_srgb() -> None:
    values = np.linspace(-0.1, 1.5, 480, dtype=np.float32).reshape(16, 10, 3)
    np.testing.assert_allclose(to_display(to_linear(values)), values, atol=2e-6)
    known = np.array([0.04045, 0.5, 1.0], np.float32).reshape(1, 3, 1)
    np.testing.assert_allclose(to_linear(known).ravel(), [0.0031308, 0.21404114, 1], atol=1e-6)
