"""Image files and bytes to NumPy arrays H W C, and back; no torch."""

from dgunet.images.codecs import MAX_PIXELS, SUFFIXES, Photo, UnreadableImage, in_channels
from dgunet.images.files import (
    GREY_LEVELS,
    dimensions,
    quantise,
    read_image,
    read_photo,
    to_float,
    write_image,
    write_photo,
)

__all__ = [
    "GREY_LEVELS",
    "MAX_PIXELS",
    "SUFFIXES",
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
