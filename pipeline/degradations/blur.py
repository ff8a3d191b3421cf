"""Blur of the camera: y = display(clip(k ∗ linear(x))), with kernels k >= 0 that sum to 1.

Highlights may be brighter than white: saturated values are multiplied by `highlight_gain` before the blur and all
values are clipped after it, which gives the bright tracks of lamps in shaken photographs. Borders are reflected.
Kernels: the path of a camera (Boracchi and Foi, IEEE TIP 2012), a disk, a Gaussian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float32, Float64

from dgunet.images import MAX_GREY_LEVEL
from pipeline.degradations.light import to_display, to_linear
from pipeline.degradations.sampling import (
    NAMED_FIELDS_ONLY,
    Image,
    Range,
    SampledParams,
    check_range,
    generator,
    sample_seed,
    sample_uniform,
)

Kernel = Float32[np.ndarray, "rows columns"]
Profile = Float32[np.ndarray, " taps"]
SATURATED = 1 - 0.5 / MAX_GREY_LEVEL  # values that round to white in 8 bits
STEPS_OF_TRAJECTORY = 400
SAMPLES_OF_DISK = 8  # per pixel and direction
DIRECT_TAPS = 49  # larger kernels are faster by Fourier transform


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraShake:
    """Camera shake: a random trajectory of the camera during the exposure, the same for the whole image.

    The model is that of Boracchi and Foi, "Modeling the Performance of Image Restoration from Motion Blur", IEEE TIP
    2012, as DeblurGAN (arXiv 1711.07064) uses it: constant speed, and a velocity with random perturbations, a pull back
    to the aim, and rare reversals.

    length          length of the path in pixels, 0 to 200
    anxiety         deviation of the path from a straight line, 0 (straight) to 1
    highlight_gain  brightness of saturated values relative to white, 1 to 20
    """

    __pydantic_config__ = NAMED_FIELDS_ONLY
    kind: Literal["camera_shake"] = "camera_shake"
    length: Range
    anxiety: Range
    highlight_gain: Range

    def __post_init__(self) -> None:
        check_range(self, "length", 0, 200)
        check_range(self, "anxiety", 0, 1)
        check_range(self, "highlight_gain", 1, 20)

    def sample(self, rng: np.random.Generator) -> list[SampledParams]:
        """Sample length, anxiety and highlight gain; the path follows from the seed."""
        names = ("length", "anxiety", "highlight_gain")
        exposure = {name: sample_uniform(rng, getattr(self, name)) for name in names}
        return [{"kind": self.kind, **exposure, "seed": sample_seed(rng)}]

    @staticmethod
    def apply(clean: Image, sampled: SampledParams) -> Image:
        """Return the blurred image in [0, 1]; the kernel is the time that the path spends at each pixel."""
        path = sampled["length"] * trajectory(sampled["anxiety"], generator(sampled["seed"]))
        return expose(clean, kernel_of_path(path), sampled["highlight_gain"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Defocus:
    """A lens out of focus: the kernel is a uniform disk with an antialiased edge.

    radius          radius of the disk in pixels, 0 to 50
    highlight_gain  brightness of saturated values relative to white, 1 to 20
    """

    __pydantic_config__ = NAMED_FIELDS_ONLY
    kind: Literal["defocus"] = "defocus"
    radius: Range
    highlight_gain: Range

    def __post_init__(self) -> None:
        check_range(self, "radius", 0, 50)
        check_range(self, "highlight_gain", 1, 20)

    def sample(self, rng: np.random.Generator) -> list[SampledParams]:
        """Sample radius and highlight gain."""
        radius, gain = sample_uniform(rng, self.radius), sample_uniform(rng, self.highlight_gain)
        return [{"kind": self.kind, "radius": radius, "highlight_gain": gain}]

    @staticmethod
    def apply(clean: Image, sampled: SampledParams) -> Image:
        """Return the blurred image in [0, 1]; the kernel is a uniform disk."""
        return expose(clean, disk_kernel(sampled["radius"]), sampled["highlight_gain"])


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianBlur:
    """A Gaussian kernel: isotropic if `ratio` is 1, otherwise an ellipse.

    sigma           standard deviation along the major axis in pixels, 0 to 20
    ratio           minor axis over major axis, 0.05 to 1
    angle           direction of the major axis in degrees from the horizontal, -90 to 90
    highlight_gain  brightness of saturated values relative to white, 1 to 20
    """

    __pydantic_config__ = NAMED_FIELDS_ONLY
    kind: Literal["gaussian_blur"] = "gaussian_blur"
    sigma: Range
    ratio: Range
    angle: Range
    highlight_gain: Range

    def __post_init__(self) -> None:
        check_range(self, "sigma", 0, 20)
        check_range(self, "ratio", 0.05, 1)
        check_range(self, "angle", -90, 90)
        check_range(self, "highlight_gain", 1, 20)

    def sample(self, rng: np.random.Generator) -> list[SampledParams]:
        """Sample the ellipse and the highlight gain."""
        names = ("sigma", "ratio", "angle", "highlight_gain")
        return [{"kind": self.kind, **{name: sample_uniform(rng, getattr(self, name)) for name in names}}]

    @staticmethod
    def apply(clean: Image, sampled: SampledParams) -> Image:
        """Return the blurred image in [0, 1]; the kernel is a Gaussian."""
        sigma, ratio = sampled["sigma"], sampled["ratio"]
        kernel = gaussian_profile(sigma) if ratio == 1 else gaussian_kernel(sigma, ratio, sampled["angle"])
        return expose(clean, kernel, sampled["highlight_gain"])


def expose(clean: Image, kernel: Kernel | Profile, highlight_gain: float) -> Image:
    """Return the image blurred in linear light, with `highlight_gain` applied before and clipping after.

    Args:
        clean: H W C in [0, 1].
        kernel: a kernel, or the profile of a separable symmetric one.
        highlight_gain: factor on saturated values.
    """
    light = to_linear(clean)
    light = np.where(clean >= SATURATED, light * np.float32(highlight_gain), light)
    return to_display(np.clip(convolve(light, kernel), 0, 1))


def convolve(image: Image, kernel: Kernel | Profile) -> Image:
    """Return kernel ∗ image, separately per channel, with reflected borders; the origin of a kernel is its middle.

    A profile of one dimension must be symmetric and is applied along both axes.
    """
    if kernel.size == 1:
        return image.copy()
    from scipy import fft  # not at the top: it takes 0.2 s, and a check of params.yaml needs the classes alone

    if kernel.ndim == 1:
        blurred: np.ndarray = cv2.sepFilter2D(
            image.astype(np.float64), -1, kernel, kernel, borderType=cv2.BORDER_REFLECT
        )
        return blurred.reshape(image.shape).astype(np.float32)
    if kernel.size <= DIRECT_TAPS:
        flipped = np.ascontiguousarray(kernel[::-1, ::-1])  # OpenCV correlates
        blurred = cv2.filter2D(image.astype(np.float64), -1, flipped, borderType=cv2.BORDER_REFLECT)
        return blurred.reshape(image.shape).astype(np.float32)
    down, right = kernel.shape[0] // 2, kernel.shape[1] // 2
    wide = np.pad(image, ((down, down), (right, right), (0, 0)), mode="symmetric")
    size = [fft.next_fast_len(length, real=True) for length in wide.shape[:2]]
    picture, response = fft.rfft2(wide.transpose(2, 0, 1), s=size), fft.rfft2(kernel, s=size)
    # Real and imaginary parts: NumPy's complex product rounds differently without AVX2.
    spectrum = np.empty_like(picture)
    spectrum.real = picture.real * response.real - picture.imag * response.imag
    spectrum.imag = picture.real * response.imag + picture.imag * response.real
    full = fft.irfft2(spectrum, s=size)[:, 2 * down : wide.shape[0], 2 * right : wide.shape[1]]
    return np.ascontiguousarray(full.transpose(1, 2, 0))


def trajectory(anxiety: float, rng: np.random.Generator) -> Float64[np.ndarray, "steps 2"]:
    """Return a path of length 1 as (y, x), in steps of equal length.

    Anxiety 0.5 gives about the perturbations, pull and reversals of DeblurGAN's recommended values, `expl` = 0.005 and
    60 pixels.
    """
    steps = STEPS_OF_TRAJECTORY
    perturbation, pull = 4 * anxiety * rng.random(), 1600 * anxiety**2 * rng.random()
    reversals = rng.random(steps) < 4 * anxiety * rng.random() / steps
    noise = (perturbation / math.sqrt(steps) * rng.standard_normal((steps, 2))).tolist()
    angle = 2 * math.pi * rng.random()
    speed_y, speed_x, y, x = math.sin(angle), math.cos(angle), 0.0, 0.0
    path = np.empty((steps, 2))
    for step in range(steps):
        path[step] = y, x
        if reversals[step]:
            speed_y, speed_x = -speed_y, -speed_x
        speed_y += noise[step][0] - pull * y / steps
        speed_x += noise[step][1] - pull * x / steps
        speed = math.hypot(speed_y, speed_x)
        speed_y, speed_x = speed_y / speed, speed_x / speed
        y, x = y + speed_y / steps, x + speed_x / steps
    return path


def kernel_of_path(path: Float64[np.ndarray, "steps 2"]) -> Kernel:
    """Return the share of time spent at each pixel; the mean of the path is the middle, so the image does not shift."""
    path = path - path.mean(axis=0)
    rows, columns = np.ceil(np.abs(path).max(axis=0) - 1e-9).astype(int).tolist()
    y, x = path[:, 0] + rows, path[:, 1] + columns
    row, column = np.floor(y).astype(int), np.floor(x).astype(int)
    y, x = y - row, x - column
    kernel = np.zeros((2 * rows + 2, 2 * columns + 2))
    for down, right, share in ((0, 0, (1 - y) * (1 - x)), (0, 1, (1 - y) * x), (1, 0, y * (1 - x)), (1, 1, y * x)):
        np.add.at(kernel, (row + down, column + right), share)
    normalised: Kernel = (kernel[:-1, :-1] / kernel[:-1, :-1].sum()).astype(np.float32)
    return normalised


def disk_kernel(radius: float) -> Kernel:
    """Return a uniform disk: the covered share of each pixel, normalised."""
    half = math.ceil(radius)
    fine = (np.arange((2 * half + 1) * SAMPLES_OF_DISK) + 0.5) / SAMPLES_OF_DISK - half - 0.5
    inside = (fine[:, None] ** 2 + fine**2 <= radius**2).astype(np.float32)
    covered = inside.reshape(2 * half + 1, SAMPLES_OF_DISK, 2 * half + 1, SAMPLES_OF_DISK).mean(axis=(1, 3))
    kernel: Kernel = covered / covered.sum() if covered.any() else np.ones((1, 1), np.float32)
    return kernel


def gaussian_profile(sigma: float) -> Profile:
    """Return an isotropic Gaussian along one axis; its outer product with itself is `gaussian_kernel`."""
    half = math.ceil(4 * sigma)
    profile = np.exp(-0.5 * (np.arange(-half, half + 1) / max(sigma, 1e-3)) ** 2)
    normalised: Profile = (profile / profile.sum()).astype(np.float32)
    return normalised


def gaussian_kernel(sigma: float, ratio: float, angle: float) -> Kernel:
    """Return an elliptic Gaussian, sampled at pixels up to four standard deviations of the major axis.

    The minor axis is at least 0.3 pixels, or the major axis if that is less, as pixels cannot represent a line.

    Args:
        sigma: standard deviation along the major axis in pixels.
        ratio: minor axis over major axis.
        angle: direction of the major axis in degrees from the horizontal.
    """
    half = math.ceil(4 * sigma)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    along, across = x * cosine + y * sine, y * cosine - x * sine
    major = max(sigma, 1e-3)
    minor = max(sigma * ratio, min(major, 0.3))
    exponent = (along / major) ** 2 + (across / minor) ** 2
    kernel: Kernel = np.exp(-0.5 * exponent).astype(np.float32)
    kernel /= kernel.sum()
    return kernel
