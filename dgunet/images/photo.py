"""A photograph in memory, and which files can hold one."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8, UInt16

try:
    import cv2
except ImportError as error:
    raise ImportError(
        f"OpenCV cannot be loaded ({error}). Slim Linux images lack system libraries that it needs; "
        "on Debian or Ubuntu: apt-get install libgl1 libglib2.0-0"
    ) from error

Pixels: TypeAlias = UInt8[np.ndarray, "H W C"] | UInt16[np.ndarray, "H W C"]
InChannels: TypeAlias = UInt8[np.ndarray, "H W D"] | UInt16[np.ndarray, "H W D"]
Plane: TypeAlias = UInt8[np.ndarray, "H W 1"] | UInt16[np.ndarray, "H W 1"]
WRITABLE_SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".mpo": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".webp": "WEBP",
    ".avif": "AVIF",
}
HEIC_SUFFIXES = {".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF"}
HAS_HEIC = find_spec("pillow_heif") is not None
SUFFIXES = {**WRITABLE_SUFFIXES, **(HEIC_SUFFIXES if HAS_HEIC else {})}
MAX_PIXELS = 178_956_970  # Pillow's own limit


class UnreadableImage(ValueError):
    """The file is not an image, is damaged or too large, or is of an unsupported kind."""


@dataclass(frozen=True)
class Photo:
    """An image as its file holds it, but upright: the orientation is applied to the pixels and set to 1.

    Attributes:
        pixels: H W C, uint8 or uint16, with 1 channel (gray) or 3 (RGB).
        alpha: H W 1 of the same type, not premultiplied; None: opaque.
        format: as Pillow names it, such as "PNG".
        icc_profile: colour profile of the pixels.
        exif: the TIFF structure, without the marker "Exif" that JPEG puts before it; without a thumbnail.
        xmp: the XMP packet.
        iptc: the IPTC record, which holds captions and copyright.
        resolution: pixels per inch, horizontally and vertically; None: not known.
        format_data: chunks of text and colour of a PNG, or the comment of a JPEG; written into files of the same
            format alone.
        dropped: phrases that name what the file holds and this class does not.
    """

    pixels: Pixels
    alpha: Plane | None = None
    format: str = "PNG"
    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    resolution: tuple[float, float] | None = None
    format_data: bytes | None = None
    dropped: tuple[str, ...] = ()


def in_channels(pixels: Pixels, channels: int) -> InChannels:
    """Return the pixels with 3 channels (gray repeated) or with 1: 0.299 R + 0.587 G + 0.114 B of colours.

    The gray values are BT.601 in full range, computed by OpenCV in whole numbers. Up to rounding, the gray files of
    BSD68 and Set11 follow from their colour files in this way. `metrics.luma`, where white is 235, is different.
    """
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    gray: InChannels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[:, :, None]
    return gray
