"""Photo -> bytes of an image file, with its metadata.

libvips encodes PNG and AVIF of 12 bits, the module `tiff` TIFF, and OpenCV BMP with alpha. Pillow encodes the rest,
because it writes EXIF bytes unchanged.
"""

import io
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pyvips
from jaxtyping import UInt8
from PIL import Image

from dgunet.images import exif, jpeg, png, tiff, xmp
from dgunet.images.photo import Photo, Pixels

_OPTIONS: dict[str, dict[str, Any]] = {  # of Pillow's encoders
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
    "BMP": {},
}
_LONGEST_SIDES = {"JPEG": 65500, "WEBP": 16383, "AVIF": 65536}  # of the encoders
_VIPS_FORMATS = {np.dtype(np.uint8): "uchar", np.dtype(np.uint16): "ushort"}


def encode(photo: Photo, file_format: str) -> tuple[bytes, tuple[str, ...]]:
    """Return the bytes of a file, and phrases that name what the format could not hold of the metadata.

    Raises:
        ValueError: `file_format` (a value of WRITABLE_SUFFIXES) cannot hold the pixels.
    """
    height, width = photo.pixels.shape[:2]
    has_alpha = photo.alpha is not None
    if photo.pixels.dtype == np.uint16 and file_format not in ("PNG", "TIFF", "AVIF"):
        raise ValueError(f"{file_format} cannot hold 16 bits; write PNG or TIFF, or convert to 8 bits")
    check_size(height, width, file_format)
    if has_alpha and file_format == "JPEG":
        raise ValueError("JPEG cannot hold transparency; write PNG, TIFF or WebP")
    photo = replace(
        photo,
        exif=exif.up_to_date(photo.exif, height, width) if photo.exif else None,
        xmp=xmp.up_to_date(photo.xmp, height, width) if photo.xmp else None,
    )
    dropped = _not_held(photo, file_format)
    if file_format in ("TIFF", "AVIF") and photo.exif and exif.is_damaged(photo.exif):  # their encoders parse it
        photo, dropped = replace(photo, exif=None), (*dropped, "damaged EXIF")
    if file_format == "JPEG":
        return _encode_jpeg(photo, dropped)
    if file_format == "PNG":
        data = png.with_metadata(
            _vips_image(photo).pngsave_buffer(compression=4),
            exif=photo.exif,
            icc_profile=photo.icc_profile,
            xmp=photo.xmp,
            resolution=photo.resolution,
            copied=(photo.format_data or b"") if photo.format == "PNG" else b"",
        )
    elif file_format == "TIFF":
        data = tiff.encode(
            _channels(photo),
            has_alpha=has_alpha,
            photo_exif=photo.exif,
            icc_profile=photo.icc_profile,
            xmp=photo.xmp,
            iptc=photo.iptc,
            resolution=photo.resolution,
        )
    elif file_format == "AVIF" and photo.pixels.dtype == np.uint16:
        data = _deep_avif(photo)
        dropped += () if photo.format == "AVIF" else ("bits below the highest 12 (AVIF holds 12)",)
    elif file_format == "BMP" and has_alpha:  # Pillow writes it, but cannot read it again
        colour = np.broadcast_to(photo.pixels[..., ::-1], (height, width, 3))
        data = bytes(cv2.imencode(".bmp", np.concatenate([colour, photo.alpha], axis=2))[1])
    else:
        options = dict(_OPTIONS[file_format])
        if file_format == "BMP":
            options["dpi"] = photo.resolution or (0, 0)  # Pillow would write 96
        else:
            options |= {"icc_profile": photo.icc_profile} if photo.icc_profile else {}
            options |= {"exif": exif.MARKER + photo.exif} if photo.exif else {}
            options |= {"xmp": photo.xmp} if photo.xmp else {}
        data = _saved(_channels(photo), file_format, options)
    return data, dropped


def check_size(height: int, width: int, file_format: str) -> None:
    """Raise ValueError if the format cannot hold an image of this size in pixels."""
    longest = _LONGEST_SIDES.get(file_format)
    if longest is not None and max(height, width) > longest:
        raise ValueError(
            f"{file_format} holds at most {longest} pixels a side, the photo has {width}x{height}; write PNG or TIFF"
        )


def _deep_avif(photo: Photo) -> bytes:
    """Return the bytes of an AVIF of 12 bits."""
    twelve = np.rint(_channels(photo) * np.float32(4095 / 65535)).astype(np.uint16)
    image = _vips_image(replace(photo, pixels=twelve[..., : photo.pixels.shape[2]] << 4, alpha=None))
    if photo.alpha is not None:
        alpha = np.ascontiguousarray(twelve[..., photo.pixels.shape[2] :] << 4)
        height, width = alpha.shape[:2]
        image = image.bandjoin(pyvips.Image.new_from_memory(alpha.data, width, height, 1, "ushort"))
    fields = {"icc-profile-data": photo.icc_profile, "exif-data": photo.exif, "xmp-data": photo.xmp}
    image = image.copy()
    for name, value in fields.items():
        if value:
            prefix = exif.MARKER if name == "exif-data" else b""
            image.set_type(pyvips.GValue.blob_type, name, prefix + value)
    return bytes(image.heifsave_buffer(compression="av1", bitdepth=12, Q=95, subsample_mode="off"))


def _not_held(photo: Photo, file_format: str) -> tuple[str, ...]:
    """Return phrases for metadata that the format cannot hold at all."""
    names = {"exif": "EXIF", "xmp": "XMP", "iptc": "IPTC", "icc_profile": "colour profile", "resolution": "resolution"}
    unheld = {
        "PNG": ("iptc",),
        "JPEG": (),
        "TIFF": (),
        "WEBP": ("iptc", "resolution"),
        "AVIF": ("iptc", "resolution"),
        "BMP": ("exif", "xmp", "iptc", "icc_profile"),
    }[file_format]
    is_in_exif = "exif" not in unheld and exif.resolution(photo.exif) is not None
    lost = [field for field in unheld if getattr(photo, field) and not (field == "resolution" and is_in_exif)]
    phrases = [f"{names[field]} ({file_format} does not hold it)" for field in lost]
    if photo.format_data and photo.format != file_format:
        phrases.append("text and colour chunks of the PNG" if photo.format == "PNG" else "comment of the JPEG")
    return tuple(phrases)


def _channels(photo: Photo) -> Pixels:
    return photo.pixels if photo.alpha is None else np.concatenate([photo.pixels, photo.alpha], axis=2)


def _vips_image(photo: Photo) -> pyvips.Image:
    channels = np.ascontiguousarray(_channels(photo))
    height, width, count = channels.shape
    is_gray, is_deep = count < 3, channels.dtype == np.uint16
    interpretation = {(0, 0): "srgb", (0, 1): "rgb16", (1, 0): "b-w", (1, 1): "grey16"}[is_gray, is_deep]
    image = pyvips.Image.new_from_memory(channels.data, width, height, count, _VIPS_FORMATS[channels.dtype])
    return image.copy(interpretation=interpretation)


def _encode_jpeg(photo: Photo, dropped: tuple[str, ...]) -> tuple[bytes, tuple[str, ...]]:
    options = dict(_OPTIONS["JPEG"])
    if photo.icc_profile:
        options["icc_profile"] = photo.icc_profile
    if photo.resolution and all(value < 65535.5 for value in photo.resolution):
        options["dpi"] = photo.resolution
    if photo.exif:
        written, limit = photo.exif, jpeg.MAX_SEGMENT - len(exif.MARKER)
        if len(written) > limit:
            written = b"" if exif.is_damaged(written) else exif.without_maker_notes(written)
            dropped += (f"maker notes of the EXIF ({len(photo.exif) // 1000} kB; a JPEG holds 65 kB)",)
        options |= {"exif": exif.MARKER + written} if written else {}
    if photo.xmp:
        if len(photo.xmp) <= jpeg.MAX_SEGMENT - len(jpeg.XMP_MARKER):
            options["xmp"] = photo.xmp
        else:
            dropped += (f"XMP ({len(photo.xmp) // 1000} kB; a JPEG holds 65 kB)",)
    if photo.iptc:
        if len(photo.iptc) <= jpeg.MAX_SEGMENT - 64:
            options["extra"] = jpeg.iptc_segment(photo.iptc)
        else:
            dropped += (f"IPTC ({len(photo.iptc) // 1000} kB; a JPEG holds 65 kB)",)
    if photo.format_data and photo.format == "JPEG":
        options["comment"] = photo.format_data
    return _saved(_channels(photo), "JPEG", options), dropped


def _saved(channels: UInt8[np.ndarray, "H W C"], file_format: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(channels[..., 0] if channels.shape[2] == 1 else channels).save(buffer, file_format, **options)
    return buffer.getvalue()
