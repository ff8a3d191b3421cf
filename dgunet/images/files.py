"""The border between files (8 or 16 bit), arrays "H W C" and tensors "B C H W", both float32 in [0, 1].

value = code / (2^bits - 1),   code = round(clip(value, 0, 1) * (2^bits - 1)).
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

GREY_LEVELS = 255  # the unit in which the field gives noise levels: sigma 25 is 25 / GREY_LEVELS
Source: TypeAlias = str | os.PathLike[str] | bytes


def read_photo(source: Source, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Read one image with all that belongs to it. `source` is a path, or the bytes of a file.

    PNG, JPEG, TIFF (first page), BMP, WebP; 8 or 16 bit; gray, RGB, palette, CMYK, with or without alpha.
    Palettes become gray or RGB. CMYK becomes 8-bit sRGB, through the embedded profile where there is one.
    Raises UnreadableImage with path and reason: also for truncated files, and, before anything is decoded, for
    more than `max_pixels` pixels.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    return decode(data, _name(source), max_pixels=max_pixels)


def read_image(source: Source, *, max_pixels: int = MAX_PIXELS) -> Float32[np.ndarray, "H W 3"]:
    """Read one image as RGB in [0, 1]: upright, gray repeated, alpha dropped (colours as stored, no composite).

    Reads and raises as `read_photo`. Colour profiles of RGB images are not applied.
    """
    return to_float(in_channels(read_photo(source, max_pixels=max_pixels).pixels, 3))


def dimensions(source: Source) -> tuple[int, int]:
    """(height, width) of the upright image, from the header alone. Raises UnreadableImage."""
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
        return header_dimensions(file, _name(source))


def write_photo(path: str | os.PathLike[str], photo: Photo) -> None:
    """Write `photo` in the format that the suffix of `path` names, with alpha, ICC profile and EXIF.

    JPEG at quality 95 without chroma subsampling, WebP at quality 95, the others without loss; BMP has neither
    profile nor EXIF. The file appears whole or not at all, and replaces one of that name. Raises ValueError if
    the format cannot hold the pixels (16 bit needs PNG or TIFF, alpha all but JPEG), OSError if it cannot be
    written.
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
    """Write an array in [0, 1] with 1 or 3 channels as 8 bits. Raises as `write_photo`."""
    write_photo(path, Photo(quantise(image, np.uint8)))


def to_float(pixels: Pixels) -> Float32[np.ndarray, "H W C"]:
    """uint8 or uint16 codes -> float32 in [0, 1]."""
    return pixels / np.float32(np.iinfo(pixels.dtype).max)


def quantise(image: Float32[np.ndarray, "H W C"], dtype: type[np.uint8] | type[np.uint16]) -> Pixels:
    """float32 -> nearest uint8 or uint16 code; what lies outside [0, 1] is clipped."""
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
        if isinstance(error, OSError):  # name the file that was asked for, not the temporary one
            raise OSError(error.errno, f"{error.strerror}; it was not written", str(path)) from error
        raise
