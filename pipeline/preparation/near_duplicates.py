"""Finds near duplicates: images of one scene (resized, recompressed, brightened, noisy, mirrored, stereo partners).

Each image is compared as a gray 32×32 thumbnail without its low frequencies, which all landscapes share. Two images
show one scene if, for the second image or its mirror image,

  1. the thumbnails, reduced to 16×16, correlate: all pairs are compared, as products of blocks of a matrix;
  2. the windows of a 4×4 grid correlate, by the lower quartile of all that are not flat; each window may shift by up
     to 2 pixels (parallax, small crops).

Both limits were measured (docs/decisions.md). Rotations by more than a few degrees, and crops that cut away a tenth or
more, are not found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray

from dgunet.images import quantise

THUMBNAIL_SIDE = 32
MIN_CORRELATION = 0.6  # at 16×16; different scenes reach 0.63 (one pair in 1000: 0.44), a stereo pair 0.79
MIN_WINDOW_CORRELATION = 0.6  # lower quartile; different scenes that pass the first test: 0.49, a stereo pair: 0.83
_GRID, _SHIFT = 4, 2
_LOW_FREQUENCY_SIGMA = 3.0
_FLAT = 0.25  # grey levels
_BLOCK = 2048
Thumbnails: TypeAlias = UInt8[np.ndarray, "N 32 32"]


def thumbnail(image: Float32[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "32 32"]:
    """Return a gray thumbnail, stretched to a square and to the full range: size and brightness do not matter."""
    small = cv2.resize(image, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    contrast = max(float(np.ptp(gray)), 1e-6)
    return quantise((gray[..., None] - gray.min()) / contrast, np.uint8)[..., 0]


def same_scene(thumbnails: Thumbnails) -> list[list[int]]:
    """Return the groups of two or more rows that show one scene, transitively; each group and the list are ascending.

    All N²/2 pairs are compared, block by block: time grows with N², memory with N.
    """
    halves = _halves(thumbnails)
    group = np.arange(len(thumbnails))
    for first, seconds, is_mirrored in _candidates(halves):
        for second in seconds[group[seconds] != group[first]]:
            partner = thumbnails[second, :, ::-1] if is_mirrored else thumbnails[second]
            if group[first] != group[second] and _windows_agree(thumbnails[first], partner):
                group[group == group[second]] = group[first]
    members = defaultdict(list)
    for row, label in enumerate(group.tolist()):
        members[label].append(row)
    return sorted(rows for rows in members.values() if len(rows) > 1)


def shared_scenes(first: Thumbnails, second: UInt8[np.ndarray, "M 32 32"]) -> list[tuple[int, int]]:
    """Return the rows of `first` and of `second` that show one scene, as pairs, ascending.

    Of a row in `first`, all partners are returned. Time grows with the product of both lengths.
    """
    halves, found = _halves(first), []
    for left in range(0, len(second), _BLOCK):
        others = _halves(second[left : left + _BLOCK])
        for is_mirrored in (False, True):
            turned = others[:, :, :: -1 if is_mirrored else 1].reshape(len(others), -1)
            for row, column in np.argwhere(halves.reshape(len(halves), -1) @ turned.T > MIN_CORRELATION).tolist():
                partner = second[left + column]
                if _windows_agree(first[row], partner[:, ::-1] if is_mirrored else partner):
                    found.append((row, left + column))
    return sorted(set(found))


def name_scenes(thumbnails: Mapping[str, bytes]) -> dict[str, str]:
    """Return the scene of each image: the first 16 digits of the smallest pixel hash among the images of the scene.

    `thumbnails` maps the pixel hash of each image to the bytes of its thumbnail.
    """
    hashes = sorted(thumbnails)
    pixels = np.frombuffer(b"".join(thumbnails[sha256] for sha256 in hashes), np.uint8)
    groups = {sha256: sha256[:16] for sha256 in hashes}
    for rows in same_scene(pixels.reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE)):
        groups |= {hashes[row]: hashes[rows[0]][:16] for row in rows}
    return groups


def _candidates(halves: Float32[np.ndarray, "N 16 16"]) -> Iterator[tuple[int, NDArray[np.intp], bool]]:
    """Yield each row with the later rows whose halves correlate with its own, as they are or mirrored."""
    flat = halves.reshape(len(halves), -1)
    for top in range(0, len(halves), _BLOCK):
        for left in range(top, len(halves), _BLOCK):
            for is_mirrored in (False, True):
                others = halves[left : left + _BLOCK, :, :: -1 if is_mirrored else 1]
                is_hit = flat[top : top + _BLOCK] @ others.reshape(len(others), -1).T > MIN_CORRELATION
                for row in np.flatnonzero(is_hit.any(axis=1)):
                    columns = np.flatnonzero(is_hit[row]) + left
                    yield top + int(row), columns[columns > top + row], is_mirrored


def _halves(thumbnails: Thumbnails) -> Float32[np.ndarray, "N 16 16"]:
    """Return the thumbnails at half size, without low frequencies, with mean 0 and norm 1 (0 for flat images)."""
    side = THUMBNAIL_SIDE // 2
    halves = np.empty((len(thumbnails), side, side), np.float32)
    for row, image in enumerate(thumbnails):
        detail = _detail(cv2.resize(image.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA))
        detail -= detail.mean()
        halves[row] = detail / max(float(np.linalg.norm(detail)), 1e-6)
    return halves


def _detail(image: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    low = cv2.GaussianBlur(image, (0, 0), _LOW_FREQUENCY_SIGMA, borderType=cv2.BORDER_REFLECT)
    return np.asarray(image - low, np.float32)


def _windows_agree(first: UInt8[np.ndarray, "32 32"], second: UInt8[np.ndarray, "32 32"]) -> bool:
    one, other = _detail(first.astype(np.float32)), _detail(second.astype(np.float32))
    side = (THUMBNAIL_SIDE - 2 * _SHIFT) // _GRID
    correlations = []
    for top in range(0, _GRID * side, side):
        for left in range(0, _GRID * side, side):
            window = one[top + _SHIFT : top + _SHIFT + side, left + _SHIFT : left + _SHIFT + side]
            if window.std() > _FLAT:
                reach = other[top : top + side + 2 * _SHIFT, left : left + side + 2 * _SHIFT]
                correlations.append(cv2.matchTemplate(reach, window, cv2.TM_CCOEFF_NORMED).max())
    return bool(correlations) and float(np.quantile(correlations, 0.25)) > MIN_WINDOW_CORRELATION
