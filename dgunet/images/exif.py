"""EXIF of an image file: where it lies, what it says of rotation, what of it travels into another file.

EXIF here is the bytes of a TIFF structure, without the marker that JPEG puts before it.
"""

import io
import struct
from typing import Any

from PIL import ExifTags, Image

MARKER = b"Exif\x00\x00"
_ORIENTATION = ExifTags.Base.Orientation
_SUB_DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
_DESCRIPTIVE = (  # a TIFF's own tags are its EXIF; those that tell how the old pixels were stored must not travel
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
    *_SUB_DIRECTORIES,
)


def of_image(image: Image.Image, file: io.BytesIO | io.BufferedReader) -> bytes | None:
    """The EXIF of an opened image, from its header. `file` holds the same image.

    That of a TIFF has no orientation: both decoders turn a TIFF upright by themselves.
    """
    if image.format == "TIFF":
        kept = Image.Exif()
        for tag, value in _descriptive(image.getexif()).items():
            kept[tag] = value
        return kept.tobytes().removeprefix(MARKER) if kept else None
    found: bytes | None = image.info.get("exif")
    if found is None and image.format == "PNG":
        found = _behind_png_pixels(file)
    return found.removeprefix(MARKER) if found else None


def orientation(exif: bytes | None) -> int:
    """1 to 8 as EXIF numbers them; 1, upright, where nothing sensible is said."""
    field = _orientation_field(exif)
    value: int = struct.unpack_from(f"{field[0]}H", exif or b"", field[1])[0] if field else 1
    return value if 1 <= value <= 8 else 1


def marked_upright(exif: bytes | None) -> bytes | None:
    """The same with orientation 1. Patched in place: maker notes and all else stay byte for byte."""
    field = _orientation_field(exif)
    if exif is None or field is None:
        return exif
    order, position = field
    return exif[:position] + struct.pack(f"{order}H", 1) + exif[position + 2 :]


def has_directories(exif: bytes) -> bool:
    """Whether it says more of the shot than the first directory holds: exposure, lens, place."""
    return any(tag in descriptive(exif) for tag in _SUB_DIRECTORIES)


def descriptive(exif: bytes | None) -> dict[int, Any]:
    """Tags and values that describe the photograph: camera, time, author, place."""
    parsed = Image.Exif()
    parsed.load(MARKER + (exif or b""))
    return _descriptive(parsed)


def _descriptive(exif: Image.Exif) -> dict[int, Any]:
    tags = [tag for tag in _DESCRIPTIVE if tag in exif]
    return {tag: exif.get_ifd(tag) if tag in _SUB_DIRECTORIES else exif[tag] for tag in tags}


def _behind_png_pixels(file: io.BytesIO | io.BufferedReader) -> bytes | None:
    """The eXIf chunk after the pixels, for which Pillow would have to decode them."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return file.read(length)
        if kind == b"IEND" or not kind.isalpha():  # what follows is no part of the picture
            return None
        file.seek(length + 4, io.SEEK_CUR)
    return None


def _orientation_field(exif: bytes | None) -> tuple[str, int] | None:
    """Byte order, and position of the value."""
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
        pass  # damaged EXIF says nothing
    return None
