"""The chunks of a PNG file: metadata to read, and to put into a file that another library has encoded.

    file = signature, chunks;   chunk = length (4 bytes), kind (4 bytes), content, CRC-32 of kind and content

Source: PNG Specification, third edition (W3C 2025).
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COPIED = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"tEXt", b"zTXt", b"iTXt", b"tIME")
_RAW_PROFILE = b"Raw profile type "  # ImageMagick's way to keep metadata, from before the chunk eXIf
_XMP_KEYWORD = b"XML:com.adobe.xmp\x00"
_INCHES_PER_METRE = 0.0254


@dataclass(frozen=True)
class PngMetadata:
    """What the chunks of a PNG say beside its pixels; `copied`: whole chunks of text and colour."""

    width: int
    height: int
    num_frames: int = 1
    exif: bytes | None = None
    icc_profile: bytes | None = None
    resolution: tuple[float, float] | None = None
    copied: bytes = b""


def read_metadata(data: bytes) -> PngMetadata:
    """Read the chunks. Raises ValueError or struct.error where the file ends too early."""
    found: dict[bytes, bytes] = {}
    copied = []
    for kind, content in chunks(data):
        if kind in (b"tEXt", b"zTXt") and content.startswith(_RAW_PROFILE):
            found.setdefault(content[len(_RAW_PROFILE) :].split(b"\x00")[0], _raw_profile(kind, content))
        elif kind in _COPIED:
            copied.append(chunk(kind, content))
        elif kind in (b"IHDR", b"eXIf", b"iCCP", b"pHYs", b"acTL"):
            found.setdefault(kind, content)
    width, height = struct.unpack_from(">II", found[b"IHDR"])
    return PngMetadata(
        width=width,
        height=height,
        num_frames=struct.unpack_from(">I", found[b"acTL"])[0] if b"acTL" in found else 1,
        exif=found.get(b"eXIf", found.get(b"exif", found.get(b"APP1", b""))).removeprefix(b"Exif\x00\x00") or None,
        icc_profile=_icc_profile(found.get(b"iCCP")),
        resolution=_resolution(found.get(b"pHYs")),
        copied=b"".join(copied),
    )


def xmp_of(copied: bytes) -> bytes | None:
    """Return the XMP among copied chunks, None if there is none or it is damaged."""
    for kind, content in chunks(SIGNATURE + copied):
        if kind == b"iTXt" and content.startswith(_XMP_KEYWORD):
            try:
                is_compressed, text = content[len(_XMP_KEYWORD)], content[len(_XMP_KEYWORD) + 2 :].split(b"\x00", 2)[2]
                return zlib.decompress(text) if is_compressed else text
            except (IndexError, zlib.error):
                return None  # damaged metadata costs no pixels
    return None


def without_xmp(copied: bytes) -> bytes:
    """Return copied chunks without the XMP."""
    kept = [
        chunk(kind, content)
        for kind, content in chunks(SIGNATURE + copied)
        if not (kind == b"iTXt" and content.startswith(_XMP_KEYWORD))
    ]
    return b"".join(kept)


def with_metadata(
    data: bytes,
    *,
    exif: bytes | None,
    icc_profile: bytes | None,
    xmp: bytes | None,
    resolution: tuple[float, float] | None,
    copied: bytes,
) -> bytes:
    """Return an encoded PNG with this metadata after its header, in place of what it has."""
    added = [copied]
    if resolution:
        per_metre = (round(value / _INCHES_PER_METRE) for value in resolution)
        added.append(chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if icc_profile:
        added.append(chunk(b"iCCP", b"ICC profile\x00\x00" + zlib.compress(icc_profile)))
    if exif:
        added.append(chunk(b"eXIf", exif))
    if xmp:
        added.append(chunk(b"iTXt", _XMP_KEYWORD + b"\x00\x00\x00\x00" + xmp))
    parts = [SIGNATURE]
    for kind, content in chunks(data):
        if kind[:1].isupper():  # critical: header, palette, pixels, end
            parts.append(chunk(kind, content))
        if kind == b"IHDR":
            parts += added
    return b"".join(parts)


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of each chunk, up to the end of the image."""
    position = len(SIGNATURE)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        yield kind, data[position + 8 : position + 8 + length]
        if kind == b"IEND":
            return
        position += 12 + length


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return the bytes of a chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _raw_profile(kind: bytes, content: bytes) -> bytes:
    """Return the bytes of a text of hexadecimal digits: a line feed, name, length, digits in lines."""
    try:
        text = content.split(b"\x00", 1)[1]
        text = zlib.decompress(text[1:]) if kind == b"zTXt" else text
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except (ValueError, IndexError, zlib.error):
        return b""  # damaged metadata costs no pixels


def _icc_profile(content: bytes | None) -> bytes | None:
    if content is None:
        return None
    try:
        return zlib.decompress(content.split(b"\x00", 1)[1][1:])
    except (IndexError, zlib.error):
        return None  # a damaged profile costs no pixels


def _resolution(content: bytes | None) -> tuple[float, float] | None:
    """Return pixels per inch, None where the unit is unknown."""
    if content is None or len(content) != 9:
        return None
    x, y, unit = struct.unpack(">IIB", content)
    return (x * _INCHES_PER_METRE, y * _INCHES_PER_METRE) if unit == 1 and x and y else None
