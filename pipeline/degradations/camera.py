"""Camera noise: shot and read noise of raw, linear values, processed by the camera.

    raw   = sample(gains⁻¹ · M · expand(x))            expand: inverse tone curve and gamma; sample: the Bayer mosaic
    noisy = min(raw + n, 1),   n ~ N(0, λ_shot·raw + λ_read)
    y     = clip(x + develop(noisy) − develop(raw))    develop: white balance, demosaic, M⁻¹, gamma, tone

Adding the difference gives y = x without noise: lost highlights and demosaicing artefacts, which are in both terms,
cancel. A camera's own noise reduction, if any, is a Gaussian blur of that difference, in luma and in chroma. Model and
numbers, but for the reduction: Brooks, Mildenhall, Xue, Chen, Sharlet and Barron, "Unprocessing Images for Learned Raw
Denoising", CVPR 2019 (arXiv 1811.11127); demosaicing: Malvar, He and Cutler, ICASSP 2004.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float64

from pipeline.degradations.sampling import (
    NAMED_FIELDS_ONLY,
    Flag,
    Image,
    Range,
    SampledParams,
    check_range,
    generator,
    sample_seed,
)

Light = Float64[np.ndarray, "H W C"]
Mosaic = Float64[np.ndarray, "H W 1"]
READ_NOISE_SLOPE, READ_NOISE_OFFSET, READ_NOISE_SPREAD = 2.18, 1.20, 0.26  # log λ_read as a function of log λ_shot
EXPOSURE_GAIN_MEAN, EXPOSURE_GAIN_SPREAD = 0.8, 0.1  # of its inverse
RED_GAIN, BLUE_GAIN = (1.9, 2.4), (1.5, 1.9)
GAMMA = 2.2
HIGHLIGHTS = 0.9  # gray value above which the inverse gains approach 1, so that white stays white
XYZ_TO_CAMERA = np.array(  # of four cameras of the Darmstadt Noise Dataset
    [
        [[1.0234, -0.2969, -0.2266], [-0.5625, 1.6328, -0.0469], [-0.0703, 0.2188, 0.6406]],
        [[0.4913, -0.0541, -0.0202], [-0.6130, 1.3513, 0.2906], [-0.1564, 0.2151, 0.7183]],
        [[0.8380, -0.2630, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]],
        [[0.6596, -0.2079, -0.0562], [-0.4782, 1.3016, 0.1933], [-0.0970, 0.1581, 0.5181]],
    ]
)
LUMA = np.array([[0.299, 0.587, 0.114]])
RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
# Malvar's filters, times 8: green at red or blue pixels; red or blue at green pixels with horizontal neighbours of that
# colour (transposed: vertical neighbours); red at blue or blue at red pixels.
GREEN_ELSEWHERE = np.array(
    [[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]], np.float64
)
COLOUR_AT_GREEN = np.array(
    [[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]], np.float64
)
COLOUR_AT_OTHER = np.array(
    [[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]], np.float64
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraNoise:
    """Shot and read noise of a sensor; colour matrix, gains and read noise have the published distributions.

    shot_noise  λ_shot, log-uniform, 0 to 0.1; published: 0.0001 to 0.012. [0, 0] is no noise
    mosaic      True: each pixel measures one colour of a Bayer pattern and the others are interpolated, which
                correlates the noise of neighbouring pixels and of colours; gray images have no mosaic
    luma_smoothing    σ of the blur of the luma of the noise in pixels, 0 to 8; cameras smooth chroma more than luma
    chroma_smoothing  the same of its chroma, which gray images do not have
    """

    __pydantic_config__ = NAMED_FIELDS_ONLY
    kind: Literal["camera_noise"] = "camera_noise"
    shot_noise: Range
    mosaic: Flag
    luma_smoothing: Range = (0.0, 0.0)
    chroma_smoothing: Range = (0.0, 0.0)

    def __post_init__(self) -> None:
        check_range(self, "shot_noise", 0, 0.1)
        check_range(self, "luma_smoothing", 0, 8)
        check_range(self, "chroma_smoothing", 0, 8)
        if self.shot_noise[0] == 0 < self.shot_noise[1]:
            raise ValueError("camera_noise.shot_noise: a logarithmic range cannot start at 0; start at 0.0001")

    def sample(self, rng: np.random.Generator) -> list[SampledParams]:
        """Sample noise levels, gains and colour matrix; the noise follows from the seed."""
        low, high = self.shot_noise
        shot_noise = low * (high / low) ** rng.random() if low > 0 else 0.0
        deviation = READ_NOISE_SPREAD * rng.standard_normal()
        sampled: SampledParams = {
            "kind": self.kind,
            "shot_noise": float(shot_noise),
            "read_noise": float(shot_noise**READ_NOISE_SLOPE * math.exp(READ_NOISE_OFFSET + deviation)),
            "exposure_gain": float(1 / (EXPOSURE_GAIN_MEAN + EXPOSURE_GAIN_SPREAD * rng.standard_normal())),
            "red_gain": float(rng.uniform(*RED_GAIN)),
            "blue_gain": float(rng.uniform(*BLUE_GAIN)),
            "cameras": rng.random(len(XYZ_TO_CAMERA)).tolist(),
            "mosaic": self.mosaic,
            "bayer_row": int(rng.integers(2)),  # position of the first red pixel
            "bayer_column": int(rng.integers(2)),
            "seed": sample_seed(rng),
        }
        # Sampled only if the range is not [0, 0]: without smoothing, records and random numbers are as before.
        for name, limits in (("luma_smoothing", self.luma_smoothing), ("chroma_smoothing", self.chroma_smoothing)):
            if limits[1] > 0:
                sampled[name] = float(rng.uniform(*limits))
        return [sampled]

    @staticmethod
    def apply(clean: Image, sampled: SampledParams) -> Image:
        """Return clip(x + develop(noisy) − develop(raw)), in [0, 1]."""
        clean = np.clip(clean, 0, 1)
        mosaic = sampled["mosaic"] and clean.shape[2] == 3
        gains = white_balance(clean.shape[2], sampled)
        raw = to_raw(clean, gains, sampled)
        if mosaic:
            raw = sample_bayer(raw, sampled)
        noisy = (
            sampled["shot_noise"] * raw
        )  # raw + deviation · noise, in place: fresh memory costs more than arithmetic
        noisy += sampled["read_noise"]
        np.sqrt(noisy, out=noisy)
        noisy *= generator(sampled["seed"]).standard_normal(raw.shape, dtype=np.float32)
        noisy += raw
        np.minimum(noisy, 1, out=noisy)  # the sensor saturates before the gains
        developed, noiseless = (
            develop(demosaic(values, gains, sampled) if mosaic else mix(values, np.diag(gains)), sampled)
            for values in (noisy, raw)
        )
        developed -= noiseless
        difference = smooth(developed, sampled.get("luma_smoothing", 0.0), sampled.get("chroma_smoothing", 0.0))
        # float32 before the sum, so that black is exactly 0 and not 1e-17
        degraded: Image = np.clip(clean + difference.astype(np.float32), 0, 1)
        return degraded


def smooth(noise: Light, luma_sigma: float, chroma_sigma: float) -> Light:
    """Return the noise with its luma and its chroma, that is colours less luma, blurred by Gaussians."""
    if not luma_sigma and not chroma_sigma:
        return noise
    luma = mix(noise, LUMA) if noise.shape[2] == 3 else noise
    chroma = noise - luma
    smoothed: Light = _blurred(chroma, chroma_sigma) + _blurred(luma, luma_sigma)
    return smoothed


def _blurred(values: Light, sigma: float) -> Light:
    if not sigma:
        return values
    blurred: Light = cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    return blurred.reshape(values.shape)


def to_raw(clean: Image, gains: Float64[np.ndarray, " C"], sampled: SampledParams) -> Light:
    """Return raw values in [0, 1] of display values; white stays white, although the gains are above 1."""
    raw = expand(clean)
    if clean.shape[2] == 3:
        raw = mix(raw, to_camera(sampled))
    gray = mix(raw, np.full((1, clean.shape[2]), 1 / clean.shape[2]))[:, :, 0]
    white = np.square(np.maximum(gray - HIGHLIGHTS, 0) / (1 - HIGHLIGHTS))
    for channel, inverse in enumerate(1 / gains):
        raw[:, :, channel] *= np.maximum(white + (1 - white) * inverse, inverse)
    np.clip(raw, 0, 1, out=raw)
    return raw


def develop(balanced: Light, sampled: SampledParams) -> Light:
    """Return the display values of white-balanced raw values."""
    linear = np.clip(balanced, 0, 1)
    if balanced.shape[2] == 3:
        linear = mix(linear, np.linalg.inv(to_camera(sampled)))
        np.clip(linear, 0, 1, out=linear)
    return compress(linear)


def expand(display: Image) -> Light:
    """Return the linear light of display values: the inverses of the tone curve and of the gamma."""
    linear: Light = 1 - 2 * display.astype(np.float64)
    np.arcsin(linear, out=linear)
    linear /= 3
    np.sin(linear, out=linear)
    np.subtract(0.5, linear, out=linear)
    np.power(linear, GAMMA, out=linear)
    return linear


def compress(linear: Light) -> Light:
    """Return the display values of linear light: gamma, then the tone curve 3x² − 2x³."""
    tone: Light = np.power(linear, 1 / GAMMA)
    square = np.square(tone)
    tone *= -2
    tone += 3
    tone *= square
    return tone


def white_balance(channels: int, sampled: SampledParams) -> Float64[np.ndarray, " C"]:
    """Return the gain of each channel on raw values."""
    balance = [sampled["red_gain"], 1.0, sampled["blue_gain"]] if channels == 3 else [1.0]
    return np.array(balance) * float(sampled["exposure_gain"])


def to_camera(sampled: SampledParams) -> Float64[np.ndarray, "3 3"]:
    """Return the matrix from linear sRGB to camera colours, a mixture of four cameras; white stays white."""
    matrix = np.average(XYZ_TO_CAMERA, axis=0, weights=sampled["cameras"]) @ RGB_TO_XYZ
    normalised: Float64[np.ndarray, "3 3"] = matrix / matrix.sum(axis=1, keepdims=True)
    return normalised


def mix(image: Light, matrix: Float64[np.ndarray, "new C"]) -> Float64[np.ndarray, "H W new"]:
    """Return a matrix times the channels of each pixel; much faster than broadcasting over a short axis."""
    mixed: Float64[np.ndarray, "H W new"] = cv2.transform(image, matrix).reshape(*image.shape[:2], -1)
    return mixed


def sample_bayer(image: Light, sampled: SampledParams) -> Mosaic:
    """Return the one colour that a Bayer pattern with this position measures at each pixel."""
    row, column = sampled["bayer_row"], sampled["bayer_column"]
    mosaic = image[:, :, 1:2].copy()
    mosaic[row::2, column::2, 0] = image[row::2, column::2, 0]
    mosaic[1 - row :: 2, 1 - column :: 2, 0] = image[1 - row :: 2, 1 - column :: 2, 2]
    return mosaic


def demosaic(mosaic: Mosaic, gains: Float64[np.ndarray, 3], sampled: SampledParams) -> Float64[np.ndarray, "H W 3"]:
    """Return three white-balanced colours of a Bayer mosaic by Malvar's filters; borders continue the pattern.

    Values above white are clipped before the filters, which would otherwise give coloured fringes at saturated areas.

    Args:
        mosaic: H W 1, raw values.
        gains: of red, green and blue.
        sampled: holds the position of the first red pixel.
    """
    row, column = sampled["bayer_row"], sampled["bayer_column"]
    red, green, blue = gains
    pattern = np.full((2, 2), green)
    pattern[row, column], pattern[1 - row, 1 - column] = red, blue
    height, width = mosaic.shape[:2]
    balance = np.tile(pattern, (height // 2 + 1, width // 2 + 1))[:height, :width, None]
    mosaic = np.minimum(mosaic * balance, 1)
    image = np.repeat(mosaic, 3, axis=2)
    middle, other = interpolate(mosaic, GREEN_ELSEWHERE), interpolate(mosaic, COLOUR_AT_OTHER)
    beside, above = interpolate(mosaic, COLOUR_AT_GREEN), interpolate(mosaic, COLOUR_AT_GREEN.T)
    for channel, y, x in ((0, row, column), (2, 1 - row, 1 - column)):
        image[y::2, 1 - x :: 2, channel] = beside[y::2, 1 - x :: 2]
        image[1 - y :: 2, x::2, channel] = above[1 - y :: 2, x::2]
        image[1 - y :: 2, 1 - x :: 2, channel] = other[1 - y :: 2, 1 - x :: 2]
        image[y::2, x::2, 1] = middle[y::2, x::2]
    return image


def interpolate(mosaic: Mosaic, kernel: Float64[np.ndarray, "5 5"]) -> Float64[np.ndarray, "H W"]:
    """Return the result of one filter at every pixel."""
    filtered: Float64[np.ndarray, "H W"] = cv2.filter2D(mosaic, -1, kernel / 8, borderType=cv2.BORDER_REFLECT_101)
    return filtered
