"""The table of photo files in docs/usage.md says what the code does."""

import re

import numpy as np
import photo_files
import pytest
from factories import PROJECT

from dgunet.images import SUFFIXES, WRITABLE_SUFFIXES, Photo, read_photo
from dgunet.images.encode import encode

FIELDS = {
    "colour profile": "icc_profile",
    "EXIF": "exif",
    "XMP": "xmp",
    "IPTC": "iptc",
    "resolution": "resolution",
}


def rows() -> dict[str, list[str]]:
    """The cells after the name of each format."""
    table = re.search(r"\| Format \|.*?\n\n", (PROJECT / "docs" / "usage.md").read_text(encoding="utf-8"), re.DOTALL)
    assert table
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].strip().splitlines()[2:]]
    return {name.upper().replace("HEIC", "HEIF"): cells for name, *cells in lines}


def test_suffixes_are_those_of_the_code():
    assert {name: set(cells[0].split()) for name, cells in rows().items()} == {
        name: {suffix for suffix, file_format in SUFFIXES.items() if file_format == name}
        for name in SUFFIXES.values()
    }  # fmt: skip


@pytest.mark.parametrize("file_format", sorted(set(SUFFIXES.values())))
def test_bits_and_metadata_are_those_that_are_written(file_format):
    _, _, written, kept = rows()[file_format]
    if file_format not in WRITABLE_SUFFIXES.values():
        assert written.startswith("no")
        return
    metadata = {
        "icc_profile": bytes(16) + b"RGB " + bytes(108),
        "exif": photo_files.exif(),
        "xmp": b"<x:xmpmeta/>",
        "iptc": b"\x1c\x02\x78\x00\x01a",
        "resolution": (300.0, 300.0),
    }
    pixels = np.full((16, 16, 3), 99, np.uint8)
    photo = read_photo(encode(Photo(pixels, **metadata), file_format)[0])
    assert {name for name, field in FIELDS.items() if getattr(photo, field)} == {
        name for name in FIELDS if name in kept
    }
    assert ("alpha" in kept) == can_write(Photo(pixels, alpha=pixels[..., :1]), file_format)
    assert ("16" in written or "12" in written) == can_write(Photo(pixels.astype(np.uint16)), file_format)


def can_write(photo: Photo, file_format: str) -> bool:
    try:
        again = read_photo(encode(photo, file_format)[0])
    except ValueError:
        return False
    return again.pixels.dtype == photo.pixels.dtype and (again.alpha is None) == (photo.alpha is None)
