"""Decodes a page of a TIFF: libvips, or tifffile where libvips lacks the depth or compression, or Pillow for Lab."""

import io
import logging
from importlib.util import find_spec

import numpy as np
import pyvips
from jaxtyping import UInt8
from PIL import Image

from dgunet.images import tiff
from dgunet.images.photo import Photo, Pixels
from dgunet.images.samples import (
    RAW_PHOTO,
    check_page,
    check_size,
    cmyk_to_srgb,
    in_eight_bits,
    in_sixteen_bits,
    pillow_channels,
    samples_of,
    several_pictures,
    ycbcr_to_rgb,
)

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # its warnings would go to the terminal


def read_tiff(data: bytes, number: int | None, max_pixels: int) -> tuple[Photo, int]:
    """Return a page as gray or RGB, not yet upright, and its orientation. May raise the errors of any decoder."""
    pages = tiff.read_pages(data)
    page, dropped = chosen_page(pages, number)
    check_size(page.width, page.height, max_pixels)
    _check_samples(page)
    if page.unsupported:
        channels = _read_by_tifffile(data, page)
    elif page.is_lab:
        channels = _lab_to_srgb(data, page)
    else:
        channels = _read_tiff_samples(data, page)
    if page.ycbcr:
        channels = ycbcr_to_rgb(channels, *page.ycbcr)
    profile = page.icc_profile
    if page.is_cmyk:
        channels = np.concatenate(
            [cmyk_to_srgb(in_eight_bits(channels[..., :4]), profile), in_eight_bits(channels[..., 4:])], axis=2
        )
    num_colours = {1: 1, 3: 3, 4: 3}[page.num_colours]
    if page.is_palette:
        num_colours = 3
    alpha = None
    if page.alpha_band is not None:
        band = page.alpha_band - page.num_colours + num_colours
        alpha = channels[..., band : band + 1]
    channels = channels[..., :num_colours]
    if page.is_palette and bool((channels == channels[..., :1]).all()):
        channels = channels[..., :1]
    photo = Photo(
        channels,
        alpha,
        icc_profile=None if page.is_cmyk or page.is_lab else profile,
        exif=page.exif,
        xmp=page.xmp,
        iptc=page.iptc,
        resolution=page.resolution,
        dropped=page.dropped + dropped,
    )
    return photo, page.orientation if 1 <= page.orientation <= 8 else 1


def chosen_page(pages: list[tiff.TiffPage], number: int | None) -> tuple[tiff.TiffPage, tuple[str, ...]]:
    """Return the page with this number, or else the only page that is no reduced copy, and what is not read."""
    if number is not None:
        check_page(number, len(pages))
        return pages[number - 1], ()
    whole = [page for page in pages if not page.is_reduced] or pages
    if len(whole) > 1:
        sizes = ", ".join(f"{page.width}x{page.height}" for page in pages[:5]) + (", ..." if len(pages) > 5 else "")
        raise ValueError(f"{several_pictures(len(pages), 'pages')}; their sizes: {sizes}")
    reduced = len(pages) - 1
    return whole[0], (f"{reduced} smaller cop{'y' if reduced == 1 else 'ies'} or mask",) if reduced else ()


def _check_samples(page: tiff.TiffPage) -> None:
    """Raise ValueError for samples that are no photograph of 8 or 16 bits, or not there."""
    if page.is_raw:
        raise ValueError(RAW_PHOTO)
    if page.is_premultiplied:
        raise ValueError(
            "colours multiplied by transparency (premultiplied alpha) are not supported; save with straight alpha"
        )
    if not page.is_complete:
        raise ValueError("truncated: its pixels do not end within the file")
    if page.sample_kind or not 1 <= page.bits <= 16:
        kind = f"{page.sample_kind}samples of {page.bits} bits" if page.bits else "samples of different depths"
        raise ValueError(f"{kind} are not supported; convert to 8 or 16 bits")
    if not page.is_known:
        kind = "Lab colours of 16 bits" if page.is_lab else f"colours of kind {page.photometric}"
        raise ValueError(f"{kind} (PhotometricInterpretation of the TIFF) are not supported; convert to RGB")
    if page.fault:
        raise ValueError(page.fault)
    if page.is_ycbcr and (page.bits != 8 or page.further_bands or page.alpha_band is not None):
        raise ValueError("YCbCr colours of more than 3 samples or other than 8 bits are not supported; convert to RGB")


def _read_tiff_samples(data: bytes, page: tiff.TiffPage) -> Pixels:
    if page.tile is None:
        return _tiff_array(tiff.with_valid_tags(data, page), page.number - 1)
    strips = _tiff_array(tiff.tiles_as_strips(data, page), 0)
    joined: Pixels = tiff.join_tiles(strips, page)
    return joined


def _tiff_array(data: bytes, page: int) -> Pixels:
    """Return the samples of one page. A source is not copied as a buffer is; sequential: decoded into the result."""
    source = pyvips.Source.new_from_memory(data)  # refers to `data`, which must outlive the decoding
    options = {"fail_on": "error", "unlimited": True, "access": "sequential"}
    return samples_of(pyvips.Image.tiffload_source(source, page=page, **options))


def _read_by_tifffile(data: bytes, page: tiff.TiffPage) -> Pixels:
    """Read what libvips does not. Raises ValueError where the packages are missing, or the colours need conversion."""
    kind = f"a TIFF {page.unsupported}"
    if not page.is_plain:
        raise ValueError(f"{kind} is not supported; save it uncompressed, with 8 or 16 bits")
    if find_spec("imagecodecs") is None or find_spec("tifffile") is None:
        raise ValueError(f"{kind}: install what reads it, pip install 'dgunet[photos]', or save it uncompressed")
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        stored = file.pages[page.number - 1]
        try:
            decoded = stored.asarray()
        except Exception as error:  # each decoder of imagecodecs has its own errors
            raise ValueError(f"damaged or truncated ({error})") from error
        is_separate = stored.planarconfig == tifffile.PLANARCONFIG.SEPARATE and decoded.ndim == 3
    decoded = np.moveaxis(decoded, 0, 2) if is_separate else decoded
    dtype = np.uint8 if page.bits <= 8 else np.uint16  # single bits come as truth values
    channels = np.array(decoded[..., None] if decoded.ndim == 2 else decoded, dtype, order="C")
    if page.photometric == 0:
        channels[..., :1] = 2**page.bits - 1 - channels[..., :1]  # alpha is not turned
    if page.bits in (8, 16):
        return channels
    scaled = in_sixteen_bits(channels, page.bits)
    return in_eight_bits(scaled) if page.bits < 8 else scaled


def _lab_to_srgb(data: bytes, page: tiff.TiffPage) -> UInt8[np.ndarray, "H W C"]:
    if page.further_bands or page.alpha_band is not None:
        raise ValueError("Lab colours with further channels are not supported; convert to RGB")
    with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
        image.seek(page.number - 1)
        return pillow_channels(image)
