"""The chunks of a PNG file: metadata to read, and to put into a file that another library has encoded.

    file = signature, chunks;   chunk = length (4 bytes), kind (4 bytes), content, CRC-32 of kind and content

Source: PNG Specification, third edition (W3C 2025).
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_COPIED = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI", *_TEXTS, b"tIME")
# These say how the samples are stored; other chunks are named as not kept.
_OF_THE_SAMPLES = (b"tRNS", b"hIST", b"sBIT", b"sPLT", b"acTL", b"fcTL", b"fdAT", b"iDOT", b"vpAg")
_RAW_PROFILE = b"Raw profile type "  # ImageMagick's way to keep metadata, from before the chunk eXIf
_XMP_KEYWORD = b"XML:com.adobe.xmp\x00"
_EXIF_MARKER = b"Exif\x00\x00"
_METRES_PER_INCH = 0.0254


@dataclass(frozen=True)
class PngMetadata:
    """What the chunks of a PNG say beside its pixels.

    Attributes:
        photoshop: resources of Photoshop, or an IPTC record.
        copied: whole chunks of text and colour.
        dropped: phrases that name other chunks.
    """

    width: int
    height: int
    num_frames: int = 1
    exif: bytes | None = None
    icc_profile: bytes | None = None
    xmp: bytes | None = None
    photoshop: bytes | None = None
    resolution: tuple[float, float] | None = None
    copied: bytes = b""
    dropped: tuple[str, ...] = ()


def read_metadata(data: bytes) -> PngMetadata:
    """Read the chunks. Raises ValueError or struct.error where the file ends too early."""
    found: dict[bytes, bytes] = {}
    raw: dict[bytes, bytes] = {}
    copied, others = [], []
    for kind, content in chunks(data):
        if kind in _TEXTS and content.startswith(_RAW_PROFILE):
            raw.setdefault(content[len(_RAW_PROFILE) :].split(b"\x00")[0].lower(), _raw_profile(_text(kind, content)))
        elif kind in _TEXTS and content.startswith(_XMP_KEYWORD):
            found.setdefault(_XMP_KEYWORD, _text(kind, content))
        elif kind in _COPIED:
            copied.append(chunk(kind, content))
        elif kind in (b"IHDR", b"eXIf", b"iCCP", b"pHYs", b"acTL"):
            found.setdefault(kind, content)
        elif kind[:1].islower() and kind not in _OF_THE_SAMPLES:
            others.append(f"the chunk {kind.decode('latin-1')} of the PNG")
    width, height = struct.unpack_from(">II", found[b"IHDR"])
    profile = _icc_profile(found[b"iCCP"]) if b"iCCP" in found else raw.get(b"icc", raw.get(b"icm"))
    others += ["damaged colour profile"] if b"iCCP" in found and not profile else []
    resolution, is_square = _resolution(found.get(b"pHYs"))
    return PngMetadata(
        width=width,
        height=height,
        num_frames=struct.unpack_from(">I", found[b"acTL"])[0] if b"acTL" in found else 1,
        exif=found.get(b"eXIf", raw.get(b"exif", raw.get(b"app1", b""))).removeprefix(_EXIF_MARKER) or None,
        icc_profile=profile or None,
        xmp=found.get(_XMP_KEYWORD, raw.get(b"xmp", b"")) or None,
        photoshop=raw.get(b"8bim", raw.get(b"iptc", b"")) or None,
        resolution=resolution,
        copied=b"".join(copied),
        dropped=tuple(dict.fromkeys(others)) + (() if is_square else ("the ratio of the sides of a pixel",)),
    )


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
        per_metre = (round(value / _METRES_PER_INCH) for value in resolution)
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


def _text(kind: bytes, content: bytes) -> bytes:
    """Return the text of a chunk after its keyword; empty if damaged, so that the pixels can still be read."""
    text = content.split(b"\x00", 1)[1] if b"\x00" in content else b""
    try:
        if kind == b"tEXt":
            return text
        is_compressed = kind == b"zTXt" or text[0] == 1
        text = text[1:] if kind == b"zTXt" else text[2:].split(b"\x00", 2)[2]  # after the language and its keyword
        return zlib.decompress(text) if is_compressed else text
    except (IndexError, zlib.error):
        return b""


def _raw_profile(text: bytes) -> bytes:
    """Return the bytes of a text of hexadecimal digits: a line feed, name, length, digits in lines."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""  # the pixels can be read in spite of damaged metadata


def _icc_profile(content: bytes) -> bytes | None:
    try:
        return zlib.decompress(content.split(b"\x00", 1)[1][1:])
    except (IndexError, zlib.error):
        return None  # the pixels can be read in spite of a damaged profile


def _resolution(content: bytes | None) -> tuple[tuple[float, float] | None, bool]:
    """Return pixels per inch, None where the unit is unknown, and whether such pixels are square."""
    if content is None or len(content) != 9:
        return None, True
    x, y, unit = struct.unpack(">IIB", content)
    if unit != 1 or not x or not y:
        return None, x == y
    return (x * _METRES_PER_INCH, y * _METRES_PER_INCH), True
