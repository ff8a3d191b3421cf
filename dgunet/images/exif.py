"""EXIF of an image file: read its orientation, bring it up to date with the pixels, select what another file can hold.

Here EXIF is the bytes of a TIFF structure, without the marker that JPEG puts before it. Changes are made in place:
maker notes hold positions within the structure, and stay valid only if nothing moves.
"""

import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image

MARKER = b"Exif\x00\x00"
_SUB_DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
DESCRIPTIVE = (  # a TIFF's tags are its EXIF; those that say how its pixels are stored must not be copied
    ExifTags.Base.DocumentName,
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.HostComputer,
    ExifTags.Base.Rating,
    ExifTags.Base.RatingPercent,
    ExifTags.Base.Copyright,
    ExifTags.Base.XPTitle,
    ExifTags.Base.XPComment,
    ExifTags.Base.XPAuthor,
    ExifTags.Base.XPKeywords,
    ExifTags.Base.XPSubject,
    *_SUB_DIRECTORIES,
)
_NUMBER_FORMATS = {3: "H", 4: "I"}  # SHORT, LONG
_RATIONAL = 5
_UNITS_PER_INCH = {2: 1.0, 3: 2.54}
_THUMBNAIL_START, _THUMBNAIL_LENGTH = ExifTags.Base.JpegIFOffset, ExifTags.Base.JpegIFByteCount


@dataclass(frozen=True)
class _Entry:
    """A field of a directory: its tag, type, number of values, and the position of its value or of a pointer to it."""

    tag: int
    kind: int
    count: int
    position: int


class _Structure:
    """The directories of EXIF as a TIFF structure. Raises struct.error if an offset points outside."""

    def __init__(self, exif: bytes) -> None:
        self.data = bytearray(exif)
        self.order = "<" if exif[:1] == b"I" else ">"

    def number(self, form: str, position: int) -> int:
        value: int = struct.unpack_from(self.order + form, self.data, position)[0]
        return value

    def entries(self, start: int) -> Iterator[_Entry]:
        for index in range(self.number("H", start)):
            position = start + 2 + 12 * index
            tag, kind, count = struct.unpack_from(f"{self.order}HHI", self.data, position)
            yield _Entry(tag, kind, count, position + 8)

    def link(self, start: int) -> int:
        """Return the position of the offset of the next directory."""
        return start + 2 + 12 * self.number("H", start)

    def value(self, entry: _Entry) -> int | None:
        """Return the value of a field that holds one whole number, None for other fields."""
        form = _NUMBER_FORMATS.get(entry.kind)
        return self.number(form, entry.position) if form and entry.count == 1 else None

    def fraction(self, entry: _Entry) -> float:
        """Return the value of a field that holds one fraction. Raises ZeroDivisionError."""
        position = self.number("I", entry.position)
        return self.number("I", position) / self.number("I", position + 4) if entry.kind == _RATIONAL else 0.0

    def set_value(self, entry: _Entry, value: int) -> None:
        form = _NUMBER_FORMATS[entry.kind]
        struct.pack_into(self.order + form, self.data, entry.position, min(value, 65535) if form == "H" else value)


def of_tiff(directory: Image.Exif) -> bytes | None:
    """Return, as EXIF without orientation, the tags of a TIFF that describe the photograph; None if there are none."""
    selected = Image.Exif()
    for tag, value in _descriptive(directory).items():
        selected[tag] = value
    return selected.tobytes().removeprefix(MARKER) if selected else None


def orientation(exif: bytes | None) -> int:
    """Return the orientation, 1 to 8; 1, upright, where EXIF has none or a wrong one."""
    if exif is None or not _is_structure(exif):
        return 1
    structure = _Structure(exif)
    try:
        for entry in structure.entries(structure.number("I", 4)):
            if entry.tag == ExifTags.Base.Orientation and entry.kind == 3:
                value = structure.value(entry) or 1
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass  # damaged EXIF counts as none
    return 1


def resolution(exif: bytes | None) -> tuple[float, float] | None:
    """Return pixels per inch, horizontally and vertically; None where EXIF does not say, or is damaged."""
    if exif is None or not _is_structure(exif):
        return None
    structure = _Structure(exif)
    try:
        entries = {entry.tag: entry for entry in structure.entries(structure.number("I", 4))}
        unit = structure.value(entries[ExifTags.Base.ResolutionUnit]) if ExifTags.Base.ResolutionUnit in entries else 2
        x, y = (structure.fraction(entries[tag]) for tag in (ExifTags.Base.XResolution, ExifTags.Base.YResolution))
    except (struct.error, KeyError, ZeroDivisionError):
        return None
    scale = _UNITS_PER_INCH.get(unit or 0)
    return (x * scale, y * scale) if scale and x and y else None


def has_thumbnail(exif: bytes | None) -> bool:
    """Return whether EXIF has a second directory, which holds a small copy of the photograph."""
    if exif is None or not _is_structure(exif):
        return False
    structure = _Structure(exif)
    try:
        return structure.number("I", structure.link(structure.number("I", 4))) != 0
    except struct.error:
        return False


def up_to_date(exif: bytes, height: int, width: int) -> bytes:
    """Return the EXIF for upright pixels of this size: orientation 1, width and height set, without thumbnail.

    All other bytes are unchanged, maker notes included. A damaged structure is returned as it is.
    """
    if not _is_structure(exif):
        return exif
    structure = _Structure(exif)
    sizes: dict[int, int] = {
        ExifTags.Base.ImageWidth: width,
        ExifTags.Base.ImageLength: height,
        ExifTags.Base.ExifImageWidth: width,
        ExifTags.Base.ExifImageHeight: height,
        ExifTags.Base.Orientation: 1,
    }
    try:
        first = structure.number("I", 4)
        linked = [structure.value(entry) for entry in structure.entries(first) if entry.tag == ExifTags.IFD.Exif]
        for start in [first, *filter(None, linked)]:
            for entry in structure.entries(start):
                if entry.tag in sizes and structure.value(entry) is not None:
                    structure.set_value(entry, sizes[entry.tag])
        _remove_thumbnail(structure, structure.link(first))
    except struct.error:
        return exif
    return bytes(structure.data)


def without_maker_notes(exif: bytes) -> bytes:
    """Return the descriptive tags, without binary values of more than 1024 bytes, such as the maker's private notes."""
    parsed = Image.Exif()
    parsed.load(MARKER + exif)
    selected = Image.Exif()
    for tag, value in _descriptive(parsed).items():
        selected[tag] = value
        if tag in _SUB_DIRECTORIES:
            selected[tag] = {
                key: entry for key, entry in value.items() if not (isinstance(entry, bytes) and len(entry) > 1024)
            }
    return selected.tobytes().removeprefix(MARKER)


def is_damaged(exif: bytes) -> bool:
    """Return whether Pillow cannot read it, or warns."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            descriptive(exif)
    except (SyntaxError, OSError, ValueError, KeyError, TypeError, struct.error, UserWarning):
        return True
    return False


def descriptive(exif: bytes | None) -> dict[int, Any]:
    """Return tags and values that describe the photograph: DESCRIPTIVE, with position and exposure."""
    parsed = Image.Exif()
    parsed.load(MARKER + (exif or b""))
    return _descriptive(parsed)


def _descriptive(exif: Image.Exif) -> dict[int, Any]:
    tags = [tag for tag in DESCRIPTIVE if tag in exif]
    return {tag: exif.get_ifd(tag) if tag in _SUB_DIRECTORIES else exif[tag] for tag in tags}


def _is_structure(exif: bytes) -> bool:
    return exif[:4] in (b"II*\x00", b"MM\x00*")


def _remove_thumbnail(structure: _Structure, link: int) -> None:
    """Cut the link to the second directory, and clear the bytes of the picture that it names."""
    second = structure.number("I", link)
    if not second:
        return
    values = {entry.tag: structure.value(entry) for entry in structure.entries(second)}
    start, length = values.get(_THUMBNAIL_START), values.get(_THUMBNAIL_LENGTH)
    struct.pack_into(f"{structure.order}I", structure.data, link, 0)
    if start and length and start + length <= len(structure.data) and start > link:
        if start + length == len(structure.data):
            del structure.data[start:]
        else:
            structure.data[start : start + length] = bytes(length)
