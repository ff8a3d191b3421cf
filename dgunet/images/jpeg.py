"""The segments of a JPEG file: metadata, and further pictures that cameras append.

    file = SOI, segments, scans, EOI, further pictures;   segment = FF, marker, length (2 bytes, with itself), content

Further pictures are listed in a segment of the Multi-Picture Format (CIPA DC-007): stereo partners, previews, and gain
maps, which tell a screen of high dynamic range how to brighten the photograph.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAX_SEGMENT = 65533  # bytes of content
XMP_MARKER = b"http://ns.adobe.com/xap/1.0/\x00"
IPTC_MARKER = b"Photoshop 3.0\x00"
_EXIF, _ICC, _MPF = b"Exif\x00\x00", b"ICC_PROFILE\x00", b"MPF\x00"
_EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\x00"
_SOI, _EOI, _SOS, _COMMENT = 0xD8, 0xD9, 0xDA, 0xFE
_APP0, _APP1, _APP2, _APP13, _APP14 = 0xE0, 0xE1, 0xE2, 0xED, 0xEE
_APP15, _JPEG_LS = 0xEF, 0xF7
_TIFF = (b"II*\x00", b"MM\x00*")  # how EXIF starts
_ISO_GAIN_MAP = b"urn:iso:std:iso:ts:21496:-1"
_SIGNS_OF_GAIN_MAP = (b"hdrgm:", b"hdrgainmap", _ISO_GAIN_MAP)  # of Adobe, Apple, ISO 21496-1
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_KINDS = (  # marker of a segment, how its content begins, what it holds
    (_APP0, b"JFIF\x00", "JFIF"),
    (_APP0, b"JFXX\x00", "embedded thumbnail"),
    (_APP1, _EXIF, "EXIF"),
    (_APP1, XMP_MARKER, "XMP"),
    (_APP1, _EXTENDED_XMP, "extended XMP"),
    (_APP2, _ICC, "profile"),
    (_APP2, _MPF, "pictures"),
    (_APP2, _ISO_GAIN_MAP, "gain map"),
    (_APP13, IPTC_MARKER, "Photoshop"),
    (_COMMENT, b"", "comment"),
)
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_MP_NUM_IMAGES, _MP_ENTRIES = 0xB001, 0xB002
_MP_PREVIEW = 0x010000  # type of a reduced copy, in its upper byte
PHOTOSHOP_DATA = "Photoshop's own data (such as paths)"
_IPTC_RESOURCE = 0x0404
# Resolution, thumbnails, profile, EXIF, XMP and a checksum: kept otherwise, or of the old pixels.
_KNOWN_RESOURCES = frozenset({_IPTC_RESOURCE, 0x03ED, 0x0409, 0x040C, 0x040F, 0x0422, 0x0423, 0x0424, 0x0425})


@dataclass(frozen=True)
class JpegMetadata:
    """What the segments of a JPEG say.

    Attributes:
        exif, xmp, icc_profile: without their markers.
        iptc: the record of captions and copyright.
        pictures: start and end of each photograph in the file, the first one included; previews are not counted.
        dropped: phrases that name what the file holds beside them.
    """

    width: int
    height: int
    exif: bytes | None
    xmp: bytes | None
    icc_profile: bytes | None
    iptc: bytes | None
    comment: bytes | None
    resolution: tuple[float, float] | None
    pictures: tuple[tuple[int, int], ...]
    dropped: tuple[str, ...]


def read_metadata(data: bytes) -> JpegMetadata:
    """Read the segments. Raises struct.error or ValueError where the file is damaged before its pixels."""
    found: dict[str, bytes] = {}
    profile_parts: dict[int, bytes] = {}
    num_parts = 0
    others: list[str] = []
    size, mpf = None, None
    for marker, start, end in segments(data):
        content = data[start:end]
        if marker in _FRAMES:
            size = size or _frame_size(content)
        kind, begin = next(
            ((kind, begin) for number, begin, kind in _KINDS if marker == number and content.startswith(begin)),
            (None, b""),
        )
        bare = content.removeprefix(begin)
        if kind == "profile" and len(bare) > 2:
            profile_parts[bare[0]], num_parts = bare[2:], bare[1]
        elif kind == "pictures":
            mpf = (start + len(begin), bare)
        elif kind == "Photoshop" or (kind == "EXIF" and kind in found and not bare.startswith(_TIFF)):
            found[kind] = found.get(kind, b"") + bare  # goes on in further segments
        elif kind == "comment" and kind in found:
            others.append("further comments")
        elif kind in ("extended XMP", "embedded thumbnail", "gain map"):
            others.append(kind)
        elif kind:
            found.setdefault(kind, bare)
        elif _APP0 <= marker <= _APP15 and not (marker == _APP14 and content.startswith(b"Adobe")):
            label = content.split(b"\x00")[0][:20].decode("latin-1")
            is_name = label.isascii() and label.isprintable() and bool(label)
            others.append(f"the camera's own data ({label})" if is_name else "unknown data")
    if size is None:
        is_jpeg_ls = any(marker == _JPEG_LS for marker, _, _ in segments(data))
        raise ValueError("a JPEG-LS, which is not supported; save it as PNG" if is_jpeg_ls else "holds no picture")
    others += _beside(found, profile_parts, num_parts)
    end = _end_of_picture(data)
    pictures, further, has_gain_map = _pictures(data, mpf, size, end)
    has_gain_map |= b"hdrgm" in found.get("XMP", b"")
    if further:
        plural = "s" * (further > 1)
        others.append("gain map" if has_gain_map else f"{further} smaller picture{plural} (preview{plural} or map)")
    elif len(pictures) == 1 and len(data) - end > 64:
        others.append(f"{(len(data) - end) / 1000:.0f} kB after the picture (video, gain map or depth map)")
    return JpegMetadata(
        *size,
        exif=found.get("EXIF"),
        xmp=found.get("XMP"),
        icc_profile=b"".join(profile_parts[number] for number in sorted(profile_parts))
        if len(profile_parts) == num_parts
        else None,
        iptc=iptc_record(found["Photoshop"]) if "Photoshop" in found else None,
        comment=found.get("comment"),
        resolution=_resolution(found["JFIF"]) if "JFIF" in found else None,
        pictures=tuple(pictures),
        dropped=tuple(dict.fromkeys(others)),
    )


def _beside(found: dict[str, bytes], profile_parts: dict[int, bytes], num_parts: int) -> Iterator[str]:
    """Yield phrases that name what the known segments hold and `JpegMetadata` does not."""
    if len(profile_parts) != num_parts:
        yield "damaged colour profile"
    jfif = found.get("JFIF", b"")
    if len(jfif) >= 9:
        unit, x, y, across, down = struct.unpack_from(">BHHBB", jfif, 2)
        if across and down:
            yield "embedded thumbnail"
        if unit == 0 and x != y:
            yield "the ratio of the sides of a pixel"
    if has_own_data(found.get("Photoshop", b"")):
        yield PHOTOSHOP_DATA


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of the content of each segment before the first scan."""
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            position += 1
            continue
        marker = data[position + 1]
        if marker in (0xFF, 0x00, 0x01) or 0xD0 <= marker <= _SOI:  # fill bytes, markers without content
            position += 1 if marker == 0xFF else 2
            continue
        if marker in (_SOS, _EOI):
            return
        end = position + 2 + struct.unpack_from(">H", data, position + 2)[0]
        yield marker, position + 4, min(end, len(data))
        position = end


def iptc_segment(iptc: bytes) -> bytes:
    """Return the segment that holds a record of captions and copyright."""
    resource = b"8BIM" + struct.pack(">H", _IPTC_RESOURCE) + b"\x00\x00" + struct.pack(">I", len(iptc)) + iptc
    content = IPTC_MARKER + resource + b"\x00" * (len(iptc) % 2)
    return b"\xff\xed" + struct.pack(">H", len(content) + 2) + content


def _resolution(jfif: bytes) -> tuple[float, float] | None:
    if len(jfif) < 7:
        return None
    unit, x, y = struct.unpack_from(">BHH", jfif, 2)
    if unit not in (1, 2) or not x or not y:
        return None
    per_inch = 1.0 if unit == 1 else 2.54
    return (x * per_inch, y * per_inch)


def iptc_record(resources: bytes) -> bytes | None:
    """Return the IPTC record among Photoshop's resources, or the record itself if it is given alone."""
    if resources[:1] == b"\x1c":
        return resources
    return next((content for kind, content in _photoshop_resources(resources) if kind == _IPTC_RESOURCE), None)


def has_own_data(resources: bytes) -> bool:
    """Whether Photoshop's resources hold what other programs have no place for, such as paths."""
    return any(kind not in _KNOWN_RESOURCES for kind, _ in _photoshop_resources(resources))


def _photoshop_resources(resources: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of each resource, up to the first damaged one."""
    position = 0
    while position + 12 <= len(resources) and resources[position : position + 4] == b"8BIM":
        (kind,) = struct.unpack_from(">H", resources, position + 4)
        name = resources[position + 6] + 1
        start = position + 6 + name + name % 2
        if start + 4 > len(resources):
            return
        (length,) = struct.unpack_from(">I", resources, start)
        yield kind, resources[start + 4 : start + 4 + length]
        position = start + 4 + length + length % 2


def _end_of_picture(data: bytes, start: int = 0) -> int:
    """Return the position after the picture that starts at `start`."""
    position = start + 2
    while match := _NEXT_MARKER.search(data, position):
        marker = match[0][1]
        if marker == _EOI:
            return match.end()
        if marker in (0x01, _SOI) or match.end() + 2 > len(data):
            position = match.end()
        else:
            position = match.end() + struct.unpack_from(">H", data, match.end())[0]
    return len(data)


def _pictures(
    data: bytes, mpf: tuple[int, bytes] | None, size: tuple[int, int], end: int
) -> tuple[list[tuple[int, int]], int, bool]:
    """Return the places of the photographs, how many other pictures there are, and whether one is a gain map."""
    first = [(0, end)]
    if mpf is None:
        return first, 0, False
    base, index = mpf
    order = "<" if index[:2] == b"II" else ">"
    try:
        entries = _mp_entries(index, order)
        photographs, num_others, has_gain_map = first, 0, False
        for attributes, length, offset in entries[1:]:
            start = base + offset
            picture = data[start : start + length]
            is_gain_map = _is_gain_map(picture)
            if attributes & 0xFF0000 != _MP_PREVIEW and _size(picture) == size and not is_gain_map:
                photographs.append((start, start + length))
            else:
                num_others += 1
                has_gain_map |= is_gain_map
    except (struct.error, ValueError, KeyError):
        return first, 0, False  # a damaged index: the bytes after the picture are reported
    return photographs, num_others, has_gain_map


def _is_gain_map(picture: bytes) -> bool:
    """Whether a further picture says of itself that it is one, which may be as large as the photograph."""
    return any(
        marker in (_APP1, _APP2) and any(sign in picture[start:end] for sign in _SIGNS_OF_GAIN_MAP)
        for marker, start, end in segments(picture)
    )


def _mp_entries(index: bytes, order: str) -> list[tuple[int, int, int]]:
    (start,) = struct.unpack_from(f"{order}I", index, 4)
    (count,) = struct.unpack_from(f"{order}H", index, start)
    fields = {}
    for number in range(count):
        tag, _, length, value = struct.unpack_from(f"{order}HHII", index, start + 2 + 12 * number)
        fields[tag] = (length, value)
    num_images, position = fields[_MP_NUM_IMAGES][1], fields[_MP_ENTRIES][1]
    return [struct.unpack_from(f"{order}III", index, position + 16 * number) for number in range(num_images)]


def _size(data: bytes) -> tuple[int, int] | None:
    return next((_frame_size(data[start:end]) for marker, start, end in segments(data) if marker in _FRAMES), None)


def _frame_size(frame: bytes) -> tuple[int, int]:
    height, width = struct.unpack_from(">HH", frame, 1)
    return width, height
