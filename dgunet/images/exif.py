"""EXIF of an image file: find it, read its orientation, select what to copy into another file.

Here EXIF is the bytes of a TIFF structure, without the marker that JPEG puts before it.
"""

import io
import struct
from typing import Any

from PIL import ExifTags, Image

MARKER = b"Exif\x00\x00"
_ORIENTATION = ExifTags.Base.Orientation
_SUB_DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
_DESCRIPTIVE = (  # a TIFF's tags are its EXIF; those that say how its pixels are stored must not be copied
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
    *_SUB_DIRECTORIES,
)


def of_image(image: Image.Image, file: io.BytesIO | io.BufferedReader) -> bytes | None:
    """Return the EXIF of an opened image, from its header; `file` holds the same image. None: it has no EXIF.

    The EXIF of a TIFF is returned without orientation, as Pillow and OpenCV turn a TIFF upright themselves.
    """
    if image.format == "TIFF":
        selected = Image.Exif()
        for tag, value in _descriptive(image.getexif()).items():
            selected[tag] = value
        return selected.tobytes().removeprefix(MARKER) if selected else None
    found: bytes | None = image.info.get("exif")
    if found is None and image.format == "PNG":
        found = _after_png_pixels(file)
    return found.removeprefix(MARKER) if found else None


def orientation(exif: bytes | None) -> int:
    """Return the orientation, 1 to 8; 1, upright, where EXIF has none or a wrong one."""
    field = _orientation_field(exif)
    value: int = struct.unpack_from(f"{field[0]}H", exif or b"", field[1])[0] if field else 1
    return value if 1 <= value <= 8 else 1


def marked_upright(exif: bytes | None) -> bytes | None:
    """Return the EXIF with orientation 1 and all other bytes unchanged, maker notes included."""
    field = _orientation_field(exif)
    if exif is None or field is None:
        return exif
    order, position = field
    return exif[:position] + struct.pack(f"{order}H", 1) + exif[position + 2 :]


def has_directories(exif: bytes) -> bool:
    """Return whether it has directories beside the first one: exposure and lens, or GPS position."""
    return any(tag in descriptive(exif) for tag in _SUB_DIRECTORIES)


def descriptive(exif: bytes | None) -> dict[int, Any]:
    """Return tags and values that describe the photograph: camera, time, author, position."""
    parsed = Image.Exif()
    parsed.load(MARKER + (exif or b""))
    return _descriptive(parsed)


def _descriptive(exif: Image.Exif) -> dict[int, Any]:
    tags = [tag for tag in _DESCRIPTIVE if tag in exif]
    return {tag: exif.get_ifd(tag) if tag in _SUB_DIRECTORIES else exif[tag] for tag in tags}


def _after_png_pixels(file: io.BytesIO | io.BufferedReader) -> bytes | None:
    """Return the eXIf chunk after the pixels, which Pillow finds only after decoding them."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return file.read(length)
        if kind == b"IEND" or not kind.isalpha():  # what follows is no part of the image
            return None
        file.seek(length + 4, io.SEEK_CUR)
    return None


def _orientation_field(exif: bytes | None) -> tuple[str, int] | None:
    """Return byte order and position of the value; None where there is no valid field."""
    if exif is None or exif[:4] not in (b"II*\x00", b"MM\x00*"):
        return None
    order = "<" if exif[:1] == b"I" else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            *header, _value = struct.unpack_from(f"{order}HHIH", exif, entry)
            if header == [_ORIENTATION, 3, 1]:  # one unsigned short
                return order, entry + 8
    except struct.error:
        pass  # damaged EXIF counts as none
    return None
