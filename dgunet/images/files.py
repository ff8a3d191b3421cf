"""Image files (8 or 16 bits) to arrays H W C, float32 in [0, 1], and back.

value = code / (2^bits − 1),   code = round(clip(value, 0, 1) · (2^bits − 1))
"""

import contextlib
import io
import os
import secrets
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32

from dgunet.images.codecs import MAX_PIXELS, SUFFIXES, Photo, Pixels, decode, encode, header_dimensions, in_channels

MAX_GREY_LEVEL = 255  # white in 8 bits; noise levels are given in grey levels: σ = 25 is 25 / 255 in [0, 1]
Source: TypeAlias = str | os.PathLike[str] | bytes


def read_photo(source: Source, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Read one image with alpha, colour profile and EXIF; `source` is a path, or the bytes of a file.

    Reads PNG, JPEG, TIFF (first page), BMP and WebP of 8 or 16 bits: gray, RGB, palette or CMYK, with or without alpha.
    Palettes become gray or RGB. CMYK becomes 8-bit sRGB, through the embedded profile where there is one.

    Raises:
        UnreadableImage: with path and reason; also for truncated files, and for more than `max_pixels` pixels, before
            they are decoded.
        OSError: the file cannot be read.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    return decode(data, _name(source), max_pixels=max_pixels)


def read_image(source: Source, *, max_pixels: int = MAX_PIXELS) -> Float32[np.ndarray, "H W 3"]:
    """Read one image as RGB in [0, 1], upright: gray repeated, alpha dropped without compositing.

    Reads and raises as `read_photo`. Does not apply the colour profiles of RGB images.
    """
    return to_float(in_channels(read_photo(source, max_pixels=max_pixels).pixels, 3))


def dimensions(source: Source) -> tuple[int, int]:
    """Return (height, width) of the upright image, from the header alone. Raises UnreadableImage."""
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
        return header_dimensions(file, _name(source))


def write_photo(path: str | os.PathLike[str], photo: Photo) -> None:
    """Write `photo` in the format of the suffix of `path`, with alpha, colour profile and EXIF.

    JPEG has quality 95 and no chroma subsampling, WebP quality 95, the others are lossless; BMP holds neither profile
    nor EXIF. The write is atomic: it replaces an existing file as a whole, or leaves it as it is.

    Raises:
        ValueError: no format has this suffix, or it cannot hold the pixels (16 bits need PNG or TIFF; JPEG has no
            alpha).
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: no image format has this suffix; use one of {', '.join(SUFFIXES)}")
    try:
        data = encode(photo, SUFFIXES[path.suffix.lower()])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    _replace_file(path, data)


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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
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
