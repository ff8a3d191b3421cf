"""Builds image files byte by byte, as cameras, scanners and converters write them and Pillow cannot."""

import io
import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

SHORT, LONG, RATIONAL, UNDEFINED = 3, 4, 5, 7
Tags = dict[int, tuple[int, Sequence[int] | bytes]]


def tiff(
    pages: Sequence[tuple[Mapping[int, tuple[int, Sequence[int] | bytes]], Sequence[bytes]]], order: str = "<"
) -> bytes:
    """Return a TIFF of pages, each a directory {tag: (type, values)} and its strips."""
    out = bytearray(b"II*\0" if order == "<" else b"MM\0*") + bytes(4)
    link = 4
    for tags, strips in pages:
        offsets = []
        for strip in strips:
            offsets.append(len(out))
            out += strip
        entries = {273: (LONG, offsets), 279: (LONG, [len(strip) for strip in strips]), **tags}
        struct.pack_into(f"{order}I", out, link, len(out))
        out += directory(entries, len(out), order)
        link = len(out) - sum(_padding(len(_value(kind, values, order))) for kind, values in entries.values()) - 4
    return bytes(out)


def directory(entries: Mapping[int, tuple[int, Sequence[int] | bytes]], start: int, order: str = "<") -> bytes:
    """Return a TIFF directory at the position `start`: its entries, no next directory, and the values that are long."""
    body, long_values = struct.pack(f"{order}H", len(entries)), b""
    position = start + 2 + 12 * len(entries) + 4
    for tag, (kind, values) in sorted(entries.items()):
        raw = _value(kind, values, order)
        count = len(values) // (2 if kind == RATIONAL else 1)
        body += struct.pack(f"{order}HHI", tag, kind, count)
        body += raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack(f"{order}I", position + len(long_values))
        long_values += raw if len(raw) > 4 else b""
    return body + bytes(4) + long_values


def page(
    width: int, height: int, bits: int, samples: int, photometric: int, **more: tuple[int, Sequence[int] | bytes]
) -> Tags:
    """Return the tags of an uncompressed page of one strip; `more` as t339=(SHORT, [2])."""
    tags: Tags = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [bits] * samples),
        259: (SHORT, [1]),
        262: (SHORT, [photometric]),
        277: (SHORT, [samples]),
        278: (LONG, [height]),
    }
    return tags | {int(name[1:]): value for name, value in more.items()}


def packed(samples: np.ndarray, bits: int) -> bytes:
    """Return rows of whole numbers with so many bits each, most significant bit first; each row ends at a byte."""
    rows = samples.reshape(len(samples), -1)
    return np.packbits(((rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1).reshape(len(rows), -1), axis=1).tobytes()


def png(samples: np.ndarray, bits: int, colour_type: int, *chunks: bytes, after: Sequence[bytes] = ()) -> bytes:
    """Return a PNG of samples H W C, with chunks before and after its pixels."""
    height, width = samples.shape[:2]
    rows = samples.astype(">u2" if bits == 16 else "u1").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(raw))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *chunks, pixels, *after, png_chunk(b"IEND", b"")])


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def jpeg(pixels: np.ndarray, *segments: bytes, **options: object) -> bytes:
    """Return a JPEG that Pillow encodes, with further segments after its first marker."""
    data = encoded(Image.fromarray(pixels), "JPEG", **{"quality": 95, "subsampling": 0, **options})
    return data[:2] + b"".join(segments) + data[2:]


def jpeg_segment(marker: int, content: bytes) -> bytes:
    """Return a segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def multi_picture(pictures: Sequence[bytes], types: Sequence[int]) -> bytes:
    """Return JPEGs in one file with an index (CIPA DC-007); a type as 0x030000, the primary one."""
    count = len(pictures)
    size = 8 + 2 + 12 * 3 + 4 + 16 * count
    first_length = len(pictures[0]) + 4 + 4 + size
    base = 2 + 4 + 4
    entries, position = b"", first_length
    for number, (picture, kind) in enumerate(zip(pictures, types, strict=True)):
        length = first_length if number == 0 else len(picture)
        entries += struct.pack(">IIIHH", kind, length, 0 if number == 0 else position - base, 0, 0)
        position += 0 if number == 0 else len(picture)
    index = b"MM\0*" + struct.pack(">IH", 8, 3)
    index += struct.pack(">HHI4s", 0xB000, UNDEFINED, 4, b"0100") + struct.pack(">HHII", 0xB001, LONG, 1, count)
    index += struct.pack(">HHII", 0xB002, UNDEFINED, 16 * count, 50) + bytes(4) + entries
    first = pictures[0][:2] + jpeg_segment(0xE2, b"MPF\0" + index) + pictures[0][2:]
    return first + b"".join(pictures[1:])


def exif(
    orientation: int = 1, *, thumbnail: bytes = b"", size: tuple[int, int] | None = None, maker_note: bytes = b""
) -> bytes:
    """Return EXIF as a camera writes it: camera, orientation, exposure, a maker note, and a second directory."""
    fields: Tags = {}
    if size:
        fields |= {0xA002: (LONG, [size[0]]), 0xA003: (LONG, [size[1]])}
    if maker_note:
        fields[0x927C] = (UNDEFINED, maker_note)
    first: Tags = {271: (2, b"Camera\0"), 274: (SHORT, [orientation]), 0x8769: (LONG, [0])}
    start = 8
    length = len(directory(first, start))
    first[0x8769] = (LONG, [start + length])
    data = bytearray(b"II*\0" + struct.pack("<I", start) + directory(first, start))
    data += directory({33434: (RATIONAL, [1, 200]), **fields}, len(data))
    if thumbnail:
        struct.pack_into("<I", data, start + 2 + 12 * len(first), len(data))
        second: Tags = {259: (SHORT, [6]), 274: (SHORT, [orientation]), 513: (LONG, [0]), 514: (LONG, [len(thumbnail)])}
        second[513] = (LONG, [len(data) + len(directory(second, len(data)))])
        data += directory(second, len(data)) + thumbnail
    return bytes(data)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    """Return the bytes that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _value(kind: int, values: Sequence[int] | bytes, order: str) -> bytes:
    if isinstance(values, bytes):
        return values
    return struct.pack(f"{order}{len(values)}{'H' if kind == SHORT else 'I'}", *values)


def _padding(length: int) -> int:
    return length if length > 4 else 0
