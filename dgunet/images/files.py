"""Image files (8 or 16 bits) to arrays H W C, float32 in [0, 1], and back.

value = code / (2^bits − 1),   code = round(clip(value, 0, 1) · (2^bits − 1))
"""

import contextlib
import os
import secrets
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32

from dgunet.images.decode import decode, header_dimensions
from dgunet.images.encode import encode
from dgunet.images.photo import MAX_PIXELS, WRITABLE_SUFFIXES, Photo, Pixels, in_channels

MAX_GREY_LEVEL = 255  # white in 8 bits; noise levels are given in grey levels: σ = 25 is 25 / 255 in [0, 1]
Source: TypeAlias = str | os.PathLike[str] | bytes


def read_photo(source: Source, *, page: int | None = None, max_pixels: int = MAX_PIXELS) -> Photo:
    """Read one image with alpha and metadata; `source` is a path, or the bytes of a file.

    Reads PNG, JPEG, TIFF, BMP, WebP and AVIF of up to 16 bits: gray, RGB, palette, CMYK or Lab, with or without alpha.
    The packages of the extra `photos` add HEIC, and TIFF of 3, 5 to 7 or 9 to 15 bits or of compressions that libvips
    lacks. Palettes become gray or RGB. CMYK and Lab become 8-bit sRGB, CMYK through its embedded profile if there is
    one. Depths between 8 and 16 become 16 bits, smaller ones 8.

    Args:
        source: path or bytes.
        page: which picture of a file that holds several, from 1; in a TIFF, reduced copies are counted too. None: the
            only one, apart from reduced copies in a TIFF and previews in a JPEG, which `Photo.dropped` names.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        UnreadableImage: with path and reason; also for truncated files, and for several pictures without `page`.
        OSError: the file cannot be read.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    return decode(data, _name(source), page=page, max_pixels=max_pixels)


def read_image(source: Source, *, max_pixels: int = MAX_PIXELS) -> Float32[np.ndarray, "H W 3"]:
    """Read one image as RGB in [0, 1], upright: gray repeated, alpha dropped without compositing.

    Reads and raises as `read_photo`. Does not apply the colour profiles of RGB images.
    """
    return to_float(in_channels(read_photo(source, max_pixels=max_pixels).pixels, 3))


def dimensions(source: Source) -> tuple[int, int]:
    """Return (height, width) of the upright image, without decoding it. Raises UnreadableImage."""
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    return header_dimensions(data, _name(source))


def write_photo(path: str | os.PathLike[str], photo: Photo) -> tuple[str, ...]:
    """Write `photo` in the format of the suffix of `path`, with alpha and metadata.

    JPEG has quality 95 and no chroma subsampling, WebP and AVIF quality 95, the others are lossless. The write is
    atomic: it replaces an existing file as a whole, or leaves it as it is.

    Returns:
        Phrases that name the metadata which the format cannot hold.

    Raises:
        ValueError: no format has this suffix, or it cannot hold the pixels (16 bits need PNG, TIFF or AVIF, which
            keeps 12 of them; JPEG has no alpha; JPEG, WebP and AVIF limit the sides).
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITABLE_SUFFIXES:
        raise ValueError(
            f"{path}: no image format that can be written has this suffix; use one of {', '.join(WRITABLE_SUFFIXES)}"
        )
    try:
        data, dropped = encode(photo, WRITABLE_SUFFIXES[path.suffix.lower()])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    _replace_file(path, data)
    return dropped


def write_image(path: str | os.PathLike[str], image: Float32[np.ndarray, "H W C"]) -> None:
    """Write an array in [0, 1] with 1 or 3 channels in 8 bits. Raises as `write_photo`."""
    write_photo(path, Photo(quantise(image, np.uint8)))


def to_float(pixels: Pixels) -> Float32[np.ndarray, "H W C"]:
    """Return uint8 or uint16 codes as float32 in [0, 1]."""
    return pixels / np.float32(np.iinfo(pixels.dtype).max)


def quantise(image: Float32[np.ndarray, "H W C"], dtype: type[np.uint8] | type[np.uint16]) -> Pixels:
    """Return the nearest uint8 or uint16 codes of float32 values, clipped to [0, 1]."""
    codes = np.clip(image, 0, 1) * np.float32(np.iinfo(dtype).max)
    pixels: Pixels = np.rint(codes, out=codes).astype(dtype)
    return pixels


def _name(source: Source) -> str:
    return "image in memory" if isinstance(source, bytes) else os.fspath(source)


def _replace_file(path: Path, data: bytes) -> None:
    temporary = path.with_name(
        f".{secrets.token_hex(8)}.tmp"
    )  # short: the name of the file may have the full 255 bytes
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):  # name the requested file, not the temporary one
            raise OSError(error.errno, f"{error.strerror}; the file was not written", str(path)) from error
        raise
