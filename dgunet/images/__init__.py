"""Image files and their bytes to NumPy arrays H W C, and back; without torch.

In the order of imports: `photo` (a photograph in memory); `exif`, `xmp`, `png`, `jpeg`, `tiff` (what a file holds
beside its pixels); `samples`, `decode_tiff`, `decode`, `encode` (bytes <-> Photo); `files` (files <-> Photo or float32
in [0, 1]).
"""

from dgunet.images.files import (
    MAX_GREY_LEVEL,
    dimensions,
    quantise,
    read_image,
    read_photo,
    to_float,
    write_image,
    write_photo,
)
from dgunet.images.photo import MAX_PIXELS, SUFFIXES, WRITABLE_SUFFIXES, Photo, UnreadableImage, in_channels

__all__ = [
    "MAX_GREY_LEVEL",
    "MAX_PIXELS",
    "SUFFIXES",
    "WRITABLE_SUFFIXES",
    "Photo",
    "UnreadableImage",
    "dimensions",
    "in_channels",
    "quantise",
    "read_image",
    "read_photo",
    "to_float",
    "write_image",
    "write_photo",
]
