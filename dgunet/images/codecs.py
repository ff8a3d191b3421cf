"""Bytes of an image file <-> Photo: upright pixels of 8 or 16 bits, alpha, colour profile and EXIF.

Pillow reads headers, checks that files are complete, and decodes and encodes 8 bits. It cannot represent 16-bit
colour: there OpenCV decodes, and the two small encoders at the end of this file write PNG and TIFF (OpenCV writes no
16-bit gray with alpha, and no metadata before 4.12).
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageCms, TiffImagePlugin, UnidentifiedImageError

from dgunet.images import exif

try:
    import cv2
except ImportError as error:
    raise ImportError(
        f"OpenCV cannot be loaded ({error}). Slim Linux images lack system libraries that it needs; "
        "on Debian or Ubuntu: apt-get install libgl1 libglib2.0-0"
    ) from error
Pixels: TypeAlias = UInt8[np.ndarray, "H W C"] | UInt16[np.ndarray, "H W C"]
InChannels: TypeAlias = UInt8[np.ndarray, "H W D"] | UInt16[np.ndarray, "H W D"]
Oriented: TypeAlias = UInt8[np.ndarray, "_ _ C"] | UInt16[np.ndarray, "_ _ C"]
Plane: TypeAlias = UInt8[np.ndarray, "H W 1"] | UInt16[np.ndarray, "H W 1"]
SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".webp": "WEBP",
}
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "TIFF": {"compression": "tiff_adobe_deflate"},
    "WEBP": {"quality": 95},
}
_PREMULTIPLIED = 1  # value of TIFF's ExtraSamples: alpha by which the colours are multiplied
MAX_PIXELS = 178_956_970  # Pillow's own limit


class UnreadableImage(ValueError):
    """The file is no image, damaged, too large, or of a kind that is not supported."""


@dataclass(frozen=True)
class Photo:
    """An image as its file holds it, but upright: EXIF orientation is applied to the pixels and set to 1.

    Attributes:
        pixels: H W C, uint8 or uint16, with 1 channel (gray) or 3 (RGB).
        alpha: H W 1 of the same type, not premultiplied; None: opaque.
        format: as Pillow names it, such as "PNG".
        icc_profile: colour profile of the pixels.
        exif: the TIFF structure, without the marker "Exif" that JPEG puts before it.
    """

    pixels: Pixels
    alpha: Plane | None = None
    format: str = "PNG"
    icc_profile: bytes | None = None
    exif: bytes | None = None


def decode(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Return the image in the bytes of a file, as `read_photo` does.

    Args:
        data: the whole file.
        name: what an error message calls the file.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        UnreadableImage: as `read_photo`.
    """
    with _decoding(name), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _refuse_unsupported(image, max_pixels)
        metadata = exif.of_image(image, io.BytesIO(data))
        coding = str(image.tile[0][3]) if image.tile else ""  # such as "RGB;16B"; not available after loading
        is_deep = ";16" in coding and image.mode != "CMYK"
        image.load()  # raises with the reason for a damaged file, where OpenCV returns None
        is_gray = image.mode.startswith("I;16") or "LA;16" in coding
        channels = _deep_channels(data, is_gray=is_gray) if is_deep else _shallow_channels(image)
        if is_deep and _tiff_tag(image, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
            channels[..., 0] = 65535 - channels[..., 0]  # white is zero, which OpenCV ignores
        channels = _upright(channels, exif.orientation(metadata))
        has_alpha = channels.shape[2] in (2, 4)
        return Photo(
            pixels=channels[..., :-1] if has_alpha else channels,
            alpha=channels[..., -1:] if has_alpha else None,
            format="JPEG" if image.format == "MPO" else str(image.format),
            icc_profile=_fitting_profile(image, channels),
            exif=exif.marked_upright(metadata),
        )


def header_dimensions(file: io.BytesIO | io.BufferedReader, name: str) -> tuple[int, int]:
    """Return (height, width) after EXIF rotation, from the header alone. Raises UnreadableImage."""
    with _decoding(name):
        image = Image.open(file, formats=FORMATS)
        width, height = image.size
        return (width, height) if exif.orientation(exif.of_image(image, file)) >= 5 else (height, width)


def header_size(file: io.BufferedReader, name: str) -> tuple[int, int]:
    """Return (width, height) before EXIF rotation; reads no byte after the header. Raises UnreadableImage."""
    with _decoding(name):
        return Image.open(file, formats=FORMATS).size


def encode(photo: Photo, file_format: str) -> bytes:
    """Return the bytes of a file. Raises ValueError if `file_format` (one of FORMATS) cannot hold the photo."""
    channels = photo.pixels if photo.alpha is None else np.concatenate([photo.pixels, photo.alpha], axis=2)
    if channels.dtype == np.uint16:
        if file_format not in ("PNG", "TIFF"):
            raise ValueError(f"{file_format} cannot hold 16 bits; write PNG or TIFF, or convert to 8 bits")
        return (_deep_png if file_format == "PNG" else _deep_tiff)(channels, photo)
    if photo.alpha is not None and file_format == "JPEG":
        raise ValueError("JPEG cannot hold transparency; write PNG, TIFF or WebP")
    if photo.alpha is not None and file_format == "BMP":  # Pillow writes it, but cannot read it again
        colour = np.broadcast_to(photo.pixels[..., ::-1], (*photo.pixels.shape[:2], 3))
        return bytes(cv2.imencode(".bmp", np.concatenate([colour, photo.alpha], axis=2))[1])
    options = dict(_OPTIONS.get(file_format, {}))
    if photo.icc_profile:
        options["icc_profile"] = photo.icc_profile
    if photo.exif:
        options["exif"] = exif.MARKER + photo.exif
        if file_format == "TIFF" and exif.has_directories(photo.exif):
            del options["compression"]  # libtiff, which would compress, cannot write EXIF directories
    buffer = io.BytesIO()
    Image.fromarray(channels[..., 0] if channels.shape[2] == 1 else channels).save(buffer, file_format, **options)
    return buffer.getvalue()


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


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn any error of a decoder into UnreadableImage, and silence its warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # OSError, SyntaxError, struct.error, zlib.error, DecompressionBombError, ...
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "no PNG, JPEG, TIFF, BMP or WebP image of a known kind" if unknown else str(error)
        raise UnreadableImage(f"{name}: {reason or type(error).__name__}") from error


def _refuse_unsupported(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise ValueError(f"{image.width}x{image.height} are more than the {max_pixels} pixels allowed")
    if image.mode in ("I", "F"):
        raise ValueError("32 bits per channel are not supported; convert to 8 or 16")
    if _PREMULTIPLIED in np.atleast_1d(_tiff_tag(image, TiffImagePlugin.EXTRASAMPLES)):
        raise ValueError(
            "colours multiplied by transparency (premultiplied alpha) are not supported; save with straight alpha"
        )
    if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
        raise ValueError("an animation is not supported; save one frame as a still image")


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    """Return the value of a tag of a TIFF; None if it has no such tag, or the image is no TIFF."""
    return image.tag_v2.get(tag) if isinstance(image, TiffImagePlugin.TiffImageFile) else None


def _shallow_channels(image: Image.Image) -> Pixels:
    """Return 8-bit pixels: gray, gray and alpha, RGB or RGBA."""
    if image.mode == "CMYK":
        return np.asarray(_cmyk_to_srgb(image))
    is_gray = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("P", "PA"):
        colours = np.asarray(image.convert("RGB"))
        is_gray = bool((colours == colours[..., :1]).all())
    mode = ("L" if is_gray else "RGB") + ("A" if image.has_transparency_data else "")
    if mode == "LA" and image.mode not in (
        "L",
        "LA",
    ):  # Pillow converts a palette's transparency to RGBA only
        return np.asarray(image.convert("RGBA"))[..., [0, 3]]
    channels = np.asarray(image.convert(mode))
    return channels[..., None] if channels.ndim == 2 else channels


def _fitting_profile(image: Image.Image, channels: Pixels) -> bytes | None:
    """Return the colour profile if it fits the channels: it does not after a conversion from CMYK or Lab."""
    profile: bytes | None = image.info.get("icc_profile")
    fits = profile is not None and profile[16:20] == (b"GRAY" if channels.shape[2] < 3 else b"RGB ")
    return profile if fits else None


def _cmyk_to_srgb(image: Image.Image) -> Image.Image:
    if profile := image.info.get("icc_profile"):
        try:
            embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(image, embedded, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
        except (OSError, ImageCms.PyCMSError):
            pass  # a damaged profile is ignored
    return image.convert("RGB")


def _deep_channels(data: bytes, *, is_gray: bool) -> Pixels:
    """Return 16-bit pixels: gray, gray and alpha, RGB or RGBA."""
    decoded: Pixels | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16:
        raise ValueError("this kind of 16-bit image is not supported")
    if decoded.ndim == 2:
        return decoded[..., None]
    if is_gray:
        return decoded[..., [0, 3]]
    return decoded[..., [2, 1, 0, 3][: decoded.shape[2]]]


def _upright(channels: Pixels, orientation: int) -> Oriented:
    """Undo the EXIF orientation: mirrored (2, 4, 5, 7), rotated (3, 5 to 8)."""
    if orientation >= 5:
        channels = channels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        channels = channels[::-1]
    if orientation in (2, 3, 6, 7):
        channels = channels[:, ::-1]
    return np.ascontiguousarray(channels)


def _deep_png(channels: Pixels, photo: Photo) -> bytes:
    height, width, count = channels.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[count]
    rows = channels.astype(">u2").view(np.uint8).reshape(height, -1)
    differences = np.diff(rows, axis=0, prepend=np.zeros((1, rows.shape[1]), np.uint8))  # row filter 2, Up
    filtered = np.insert(differences, 0, 2, axis=1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    parts = [
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)),
    ]
    if photo.icc_profile:
        parts.append(chunk(b"iCCP", b"ICC profile\x00\x00" + zlib.compress(photo.icc_profile)))
    if photo.exif:
        parts.append(chunk(b"eXIf", photo.exif))
    return b"".join([*parts, chunk(b"IDAT", zlib.compress(filtered.tobytes(), 3)), chunk(b"IEND", b"")])


def _deep_tiff(channels: Pixels, photo: Photo) -> bytes:
    """Return an uncompressed TIFF with one strip."""
    height, width, count = channels.shape
    strip = channels.astype("<u2").tobytes()
    tags = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    for tag, value in exif.descriptive(photo.exif).items():
        tags[tag] = value
    tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH] = width, height
    tags[TiffImagePlugin.BITSPERSAMPLE], tags[TiffImagePlugin.SAMPLESPERPIXEL] = (16,) * count, count
    tags[TiffImagePlugin.COMPRESSION] = 1
    tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 1 if count < 3 else 2  # black is zero, RGB
    tags[TiffImagePlugin.ROWSPERSTRIP], tags[TiffImagePlugin.STRIPBYTECOUNTS] = height, len(strip)
    tags[TiffImagePlugin.STRIPOFFSETS] = 0  # Pillow adds the length of the header, after which the strip follows
    if count in (2, 4):
        tags[TiffImagePlugin.EXTRASAMPLES] = 2  # alpha, not premultiplied
    if photo.icc_profile:
        tags[TiffImagePlugin.ICCPROFILE] = photo.icc_profile
    buffer = io.BytesIO()
    tags.save(buffer)
    return buffer.getvalue() + strip
