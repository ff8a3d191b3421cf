"""Samples of pictures of any kind to pixels of 8 or 16 bits: gray or RGB, upright; and the checks before decoding."""

import io
import logging
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pyvips
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageCms

from dgunet.images.photo import InChannels, Pixels, Plane

logging.getLogger("pyvips").addHandler(logging.NullHandler())  # libvips' warnings would go to the terminal
pyvips.cache_set_max(0)  # it would keep decoded photographs
_ROWS = 256  # that are converted at once
Oriented: TypeAlias = UInt8[np.ndarray, "_ _ C"] | UInt16[np.ndarray, "_ _ C"]
RAW_PHOTO = "a raw photograph (DNG, NEF, ARW, ...); develop it in a raw converter, and save a TIFF of 16 bits"
_DEPTHS = {  # libvips' names of what cannot be a photograph of 8 or 16 bits
    "char": "signed 8-bit samples",
    "short": "signed 16-bit samples",
    "uint": "32 bits per channel",
    "int": "32 bits per channel",
    "float": "floating-point samples of 16 or 32 bits per channel",
    "double": "floating-point samples of 64 bits per channel",
    "complex": "complex samples",
    "dpcomplex": "complex samples",
}


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise ValueError for more pixels than allowed, and for none."""
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} are {width * height} pixels, more than the {max_pixels} allowed")
    if not width * height:
        raise ValueError(f"{width}x{height}: the picture has no pixels")


def check_page(page: int | None, num_pages: int) -> None:
    """Raise ValueError for a page that is not there."""
    if page is not None and not 1 <= page <= num_pages:
        raise ValueError(f"there is no page {page}; the file holds {num_pages}")


def several_pictures(count: int, kind: str) -> str:
    """Return the message for a file of several pictures of which none was chosen."""
    return f"holds {count} {kind}; choose one with page (on the command line --page 1 to --page {count})"


def samples_of(image: pyvips.Image) -> Pixels:
    """Return the samples that libvips decodes. Raises pyvips.Error, and ValueError for other than 8 or 16 bits."""
    if image.format not in ("uchar", "ushort"):
        kind = _DEPTHS.get(image.format, image.format)
        raise ValueError(f"{kind} are not supported; convert to 8 or 16 bits")
    dtype = np.uint8 if image.format == "uchar" else np.uint16
    pixels: Pixels = np.frombuffer(image.write_to_memory(), dtype).reshape(image.height, image.width, image.bands)
    return pixels


def split_alpha(channels: InChannels) -> tuple[Pixels, Plane | None]:
    """Return colours and alpha of 1 to 4 channels, where alpha is the second or the fourth."""
    return (channels[..., :-1], channels[..., -1:]) if channels.shape[2] in (2, 4) else (channels, None)


def gray_if_equal(channels: InChannels) -> Pixels:
    """Return gray where the palette's colours are all gray."""
    colours = channels[..., :3]
    if channels.shape[2] < 3 or not bool((colours == colours[..., :1]).all()):
        return channels
    return channels[..., [0, *range(3, channels.shape[2])]]


def in_sixteen_bits(channels: Pixels, bits: int) -> UInt16[np.ndarray, "H W C"]:
    """Return samples of `bits` bits, 1 to 16, scaled to 16 bits: black and white stay black and white."""
    white = 2**bits - 1
    scaled: UInt16[np.ndarray, "H W C"] = ((channels.astype(np.uint32) * 65535 + white // 2) // white).astype(np.uint16)
    return scaled


def in_eight_bits(channels: Pixels) -> UInt8[np.ndarray, "H W C"]:
    """Return samples of 16 bits rounded to 8; those of 8 as they are."""
    return channels if channels.dtype == np.uint8 else ((channels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def cmyk_to_srgb(channels: UInt8[np.ndarray, "H W 4"], profile: bytes | None) -> UInt8[np.ndarray, "H W 3"]:
    """Return inks as sRGB, by their profile if there is one that can be read."""
    image = Image.fromarray(np.ascontiguousarray(channels), "CMYK")
    if profile:
        try:
            embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            srgb = ImageCms.createProfile("sRGB")
            image = ImageCms.profileToProfile(image, embedded, srgb, outputMode="RGB") or image
        except (OSError, ImageCms.PyCMSError):
            pass  # a damaged profile is ignored
    rgb: UInt8[np.ndarray, "H W 3"] = np.asarray(image.convert("RGB"))
    return rgb


def ycbcr_to_rgb(
    channels: UInt8[np.ndarray, "H W 3"], coefficients: Sequence[float], limits: Sequence[float]
) -> UInt8[np.ndarray, "H W 3"]:
    """Return YCbCr samples of a TIFF as RGB.

    Args:
        channels: Y, Cb and Cr, with as many samples each.
        coefficients: shares of red, green and blue in Y.
        limits: codes of black and white of Y, then of no colour and full colour of Cb and Cr.
    """
    red, green, blue = coefficients
    full = (255, 127, 127)  # TIFF 6.0, section 20
    black, white = np.array(limits[::2], np.float32), np.array(limits[1::2], np.float32)
    rgb = np.empty_like(channels)
    for start in range(0, len(channels), _ROWS):  # floats of a whole photograph would take gigabytes
        y, cb, cr = np.moveaxis((channels[start : start + _ROWS] - black) * (full / (white - black)), 2, 0)
        r, b = y + cr * (2 - 2 * red), y + cb * (2 - 2 * blue)
        colours = np.stack([r, (y - red * r - blue * b) / green, b], axis=2)
        rgb[start : start + _ROWS] = np.rint(np.clip(colours, 0, 255))
    return rgb


def pillow_channels(image: Image.Image) -> UInt8[np.ndarray, "H W C"]:
    """Return 8-bit pixels: gray, RGB or RGBA."""
    is_gray = image.mode in ("1", "L")
    mode = "L" if is_gray else "RGBA" if image.has_transparency_data else "RGB"
    channels = np.asarray(image.convert(mode))
    channels = channels[..., None] if channels.ndim == 2 else channels
    return gray_if_equal(channels) if image.mode == "P" else channels


def fitting_profile(profile: bytes | None, num_colours: int) -> bytes | None:
    """Return the colour profile if it fits the channels: it does not after a conversion from a palette, say."""
    fits = profile is not None and profile[16:20] == (b"GRAY" if num_colours == 1 else b"RGB ")
    return profile if fits else None


def upright(channels: Pixels, orientation: int) -> Oriented:
    """Undo the EXIF orientation: mirrored (2, 4, 5, 7), rotated (3, 5 to 8)."""
    if orientation >= 5:
        channels = channels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        channels = channels[::-1]
    if orientation in (2, 3, 6, 7):
        channels = channels[:, ::-1]
    return np.ascontiguousarray(channels)
