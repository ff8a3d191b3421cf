"""XMP of an image file: bring what it says of the pixels up to date. XMP is XML, in which lengths may change."""

import re

_THUMBNAILS = re.compile(rb"<xmp:Thumbnails\b.*?</xmp:Thumbnails>\s*", re.DOTALL)
_GAIN_MAP = re.compile(
    rb"<(Container|GContainer):Directory\b.*?</\1:Directory>\s*|\s(?:hdrgm|GCamera|GContainer):\w+\s*=\s*\"[^\"]*\"",
    re.DOTALL,
)


def up_to_date(xmp: bytes, height: int, width: int) -> bytes:
    """Return the XMP for upright pixels of this size: no thumbnails, and no pointers to pictures after this one."""
    sizes = {
        b"tiff:Orientation": 1,
        b"tiff:ImageWidth": width,
        b"tiff:ImageLength": height,
        b"exif:PixelXDimension": width,
        b"exif:PixelYDimension": height,
    }
    for name, value in sizes.items():  # an attribute or an element
        xmp = re.sub(rb"(%s(?:\s*=\s*[\"']|>))\d+" % name, rb"\g<1>%d" % value, xmp)
    return _GAIN_MAP.sub(b"", _THUMBNAILS.sub(b"", xmp))
