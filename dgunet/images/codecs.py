"""Bytes of an image file <-> Photo: upright pixels of 8 or 16 bits, alpha and metadata.

libvips decodes PNG, JPEG, TIFF, WebP and AVIF, and encodes PNG; Pillow decodes BMP, and encodes the other formats, as
it writes EXIF byte by byte as given. The modules `png`, `jpeg` and `tiff` read what a file says beside its pixels.
Two kinds need a package of the extra `photos`: HEIC (pillow-heif) and TIFF of unusual depths (imagecodecs).
"""

import io
import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageCms, UnidentifiedImageError

from dgunet.images import exif, jpeg, png, tiff, xmp

try:
    import cv2
except ImportError as error:
    raise ImportError(
        f"OpenCV cannot be loaded ({error}). Slim Linux images lack system libraries that it needs; "
        "on Debian or Ubuntu: apt-get install libgl1 libglib2.0-0"
    ) from error
logging.getLogger("pyvips").addHandler(logging.NullHandler())  # libvips' warnings would go to the terminal
import pyvips  # noqa: E402

pyvips.cache_set_max(0)  # it would keep decoded photographs
Pixels: TypeAlias = UInt8[np.ndarray, "H W C"] | UInt16[np.ndarray, "H W C"]
InChannels: TypeAlias = UInt8[np.ndarray, "H W D"] | UInt16[np.ndarray, "H W D"]
Oriented: TypeAlias = UInt8[np.ndarray, "_ _ C"] | UInt16[np.ndarray, "_ _ C"]
Plane: TypeAlias = UInt8[np.ndarray, "H W 1"] | UInt16[np.ndarray, "H W 1"]
WRITABLE_SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".mpo": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".webp": "WEBP",
    ".avif": "AVIF",
}
HEIC_SUFFIXES = {".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF"}
_OPTIONS: dict[str, dict[str, Any]] = {  # of Pillow's encoders
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
    "BMP": {},
}
_HAS_HEIC = find_spec("pillow_heif") is not None
SUFFIXES = {**WRITABLE_SUFFIXES, **(HEIC_SUFFIXES if _HAS_HEIC else {})}
_SIGNATURES = {
    png.SIGNATURE: "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"II+\x00": "TIFF",
    b"MM\x00+": "TIFF",
    b"BM": "BMP",
}
_OTHER_FORMATS = {  # told apart for their error messages
    b"GIF8": "a GIF",
    b"8BPS": "a Photoshop document (PSD)",
    b"\x00\x00\x00\x0cjP  ": "a JPEG 2000",
    b"\x00\x00\x00\x0cJXL ": "a JPEG XL",
    b"\xff\x0a": "a JPEG XL",
    b"\x76\x2f\x31\x01": "an OpenEXR image",
    b"FUJIFILMCCD-RAW": "a raw photograph",
    b"IIRO": "a raw photograph",
    b"IIU\x00": "a raw photograph or JPEG XR",
    b"%PDF": "a PDF",
    b"P6": "a PPM",
    b"P5": "a PGM",
}
_UNKNOWN = "no PNG, JPEG, TIFF, BMP, WebP, AVIF or HEIC image of a known kind"
_RAW = "a raw photograph (DNG, NEF, ARW, ...); develop it in a raw converter, and save a TIFF of 16 bits"
MAX_PIXELS = 178_956_970  # Pillow's own limit
_VIPS_FORMATS = {np.dtype(np.uint8): "uchar", np.dtype(np.uint16): "ushort"}
_DEPTHS = {  # libvips' names of what cannot be a photograph of 8 or 16 bits
    "char": "signed 8-bit samples",
    "short": "signed 16-bit samples",
    "uint": "32 bits per channel",
    "int": "32 bits per channel",
    "float": "floating-point samples of 16 or 32 bits per channel",
    "double": "floating-point samples of 64 bits per channel",
    "complex": "complex samples",
    "dpcomplex": "complex samples",
}


class UnreadableImage(ValueError):
    """The file is no image, damaged, too large, or of a kind that is not supported."""


@dataclass(frozen=True)
class Photo:
    """An image as its file holds it, but upright: the orientation is applied to the pixels and set to 1.

    Attributes:
        pixels: H W C, uint8 or uint16, with 1 channel (gray) or 3 (RGB).
        alpha: H W 1 of the same type, not premultiplied; None: opaque.
        format: as Pillow names it, such as "PNG".
        icc_profile: colour profile of the pixels.
        exif: the TIFF structure, without the marker "Exif" that JPEG puts before it; without a thumbnail.
        xmp: the XMP packet.
        iptc: the IPTC record, which holds captions and copyright.
        resolution: pixels per inch, horizontally and vertically; None: not known.
        format_data: chunks of text and colour of a PNG, or the comment of a JPEG; written into files of the same
            format alone.
        dropped: phrases that name what the file holds and this class does not.
    """

    pixels: Pixels
    alpha: Plane | None = None
    format: str = "PNG"
    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    resolution: tuple[float, float] | None = None
    format_data: bytes | None = None
    dropped: tuple[str, ...] = ()


def decode(data: bytes, name: str, *, page: int | None = None, max_pixels: int = MAX_PIXELS) -> Photo:
    """Return the image in the bytes of a file, as `read_photo` does.

    Args:
        data: the whole file.
        name: what an error message calls the file.
        page: as `read_photo`.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        UnreadableImage: as `read_photo`.
    """
    with _decoding(name):
        file_format = _format(data)
        readers = {"PNG": _read_png, "JPEG": _read_jpeg, "TIFF": _read_tiff, "BMP": _read_bmp, "HEIF": _read_heic}
        photo, orientation = readers.get(file_format, _read_by_vips)(data, page, max_pixels)
        channels = photo.pixels if photo.alpha is None else np.concatenate([photo.pixels, photo.alpha], axis=2)
        channels = _upright(channels, orientation)
        height, width, count = channels.shape
        has_alpha = photo.alpha is not None
        dropped = photo.dropped + (("embedded thumbnail",) if exif.has_thumbnail(photo.exif) else ())
        return replace(
            photo,
            pixels=channels[..., : count - has_alpha],
            alpha=channels[..., -1:] if has_alpha else None,
            format=file_format,
            icc_profile=_fitting_profile(photo.icc_profile, count - has_alpha),
            exif=exif.up_to_date(photo.exif, height, width) if photo.exif else None,
            xmp=xmp.up_to_date(photo.xmp, height, width) if photo.xmp else None,
            dropped=dropped,
        )


def header_dimensions(data: bytes, name: str) -> tuple[int, int]:
    """Return (height, width) of the upright image, without decoding it. Raises UnreadableImage."""
    with _decoding(name):
        file_format = _format(data)
        if file_format == "TIFF":
            page = _chosen_page(tiff.read_pages(data), None)[0]
            width, height, orientation = page.width, page.height, page.orientation
        elif file_format in ("BMP", "HEIF"):
            opened = _open_heic(data) if file_format == "HEIF" else Image.open(io.BytesIO(data), formats=["BMP", "DIB"])
            (width, height), orientation = opened.size, 1
        elif file_format == "PNG":
            header = png.read_metadata(data)
            width, height, orientation = header.width, header.height, exif.orientation(header.exif)
        else:
            image = pyvips.Image.new_from_buffer(data, "", access="sequential")
            width, height = image.width, image.height
            orientation = 1 if file_format == "AVIF" else exif.orientation(_vips_exif(image))
        return (width, height) if orientation >= 5 else (height, width)


def header_size(file: io.BufferedReader, name: str) -> tuple[int, int]:
    """Return (width, height) before EXIF rotation; reads no byte after the header. Raises UnreadableImage."""
    with _decoding(name):
        Image.init()  # registers AVIF
        if _HAS_HEIC:
            import pillow_heif

            pillow_heif.register_heif_opener()
        return Image.open(file, formats=tuple(dict.fromkeys(SUFFIXES.values()))).size


def encode(photo: Photo, file_format: str) -> tuple[bytes, tuple[str, ...]]:
    """Return the bytes of a file, and phrases that name what the format could not hold of the metadata.

    Raises:
        ValueError: `file_format` (a value of WRITABLE_SUFFIXES) cannot hold the pixels.
    """
    height, width = photo.pixels.shape[:2]
    has_alpha = photo.alpha is not None
    if photo.pixels.dtype == np.uint16 and file_format not in ("PNG", "TIFF"):
        raise ValueError(f"{file_format} cannot hold 16 bits; write PNG or TIFF, or convert to 8 bits")
    if has_alpha and file_format == "JPEG":
        raise ValueError("JPEG cannot hold transparency; write PNG, TIFF or WebP")
    photo = replace(
        photo,
        exif=exif.up_to_date(photo.exif, height, width) if photo.exif else None,
        xmp=xmp.up_to_date(photo.xmp, height, width) if photo.xmp else None,
    )
    dropped = _not_held(photo, file_format)
    if file_format in ("TIFF", "AVIF") and photo.exif and exif.is_damaged(photo.exif):  # their encoders parse it
        photo, dropped = replace(photo, exif=None), (*dropped, "damaged EXIF")
    if file_format == "JPEG":
        return _encode_jpeg(photo, dropped)
    if file_format == "PNG":
        data = png.with_metadata(
            _vips_image(photo).pngsave_buffer(compression=4),
            exif=photo.exif,
            icc_profile=photo.icc_profile,
            xmp=photo.xmp,
            resolution=photo.resolution,
            copied=(photo.format_data or b"") if photo.format == "PNG" else b"",
        )
    elif file_format == "TIFF":
        data = tiff.encode(
            _channels(photo),
            has_alpha=has_alpha,
            photo_exif=photo.exif,
            icc_profile=photo.icc_profile,
            xmp=photo.xmp,
            iptc=photo.iptc,
            resolution=photo.resolution,
        )
    elif file_format == "BMP" and has_alpha:  # Pillow writes it, but cannot read it again
        colour = np.broadcast_to(photo.pixels[..., ::-1], (height, width, 3))
        data = bytes(cv2.imencode(".bmp", np.concatenate([colour, photo.alpha], axis=2))[1])
    else:
        options = dict(_OPTIONS[file_format])
        if file_format == "BMP":
            options |= {"dpi": photo.resolution} if photo.resolution else {}
        else:
            options |= {"icc_profile": photo.icc_profile} if photo.icc_profile else {}
            options |= {"exif": exif.MARKER + photo.exif} if photo.exif else {}
            options |= {"xmp": photo.xmp} if photo.xmp else {}
        data = _saved(_channels(photo), file_format, options)
    return data, dropped


def in_channels(pixels: Pixels, channels: int) -> InChannels:
    """Return the pixels with 3 channels (gray repeated) or with 1: 0.299 R + 0.587 G + 0.114 B of colours.

    The gray values are BT.601 in full range, computed by OpenCV in whole numbers. Up to rounding, the gray files of
    BSD68 and Set11 follow from their colour files in this way. `metrics.luma`, where white is 235, is different.
    """
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    gray: InChannels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[:, :, None]
    return gray


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn any error of a decoder into UnreadableImage, and silence its warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except pyvips.Error as error:
        raise UnreadableImage(f"{name}: {_vips_reason(error)}") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"{name}: {_UNKNOWN}") from error
    except MemoryError:
        raise
    except Exception as error:  # OSError, SyntaxError, struct.error, zlib.error, KeyError, ...
        reason = "damaged" if isinstance(error, struct.error | KeyError | IndexError) else str(error)
        raise UnreadableImage(f"{name}: {reason or type(error).__name__}") from error


def _vips_reason(error: pyvips.Error) -> str:
    """Return libvips' reason, without the names of its functions."""
    lines = [line.strip() for line in str(error.detail).splitlines() if line.strip()]
    parts = [line.split(": ", 1)[-1] for line in lines]
    reasons = [part for part in parts if part[:1].isalpha() and part != "load error"]
    if reasons and reasons[-1].startswith("Unsupported"):
        return reasons[-1]
    return f"damaged or truncated ({reasons[-1]})" if reasons else "damaged or truncated"


def _format(data: bytes) -> str:
    """Return the name of the format, told by the first bytes. Raises ValueError."""
    for signature, file_format in _SIGNATURES.items():
        if data.startswith(signature):
            if data[8:10] == b"CR" and file_format == "TIFF":
                raise ValueError(_RAW)
            if signature == b"MM\x00+":
                raise ValueError("a BigTIFF with the high byte first, which is not supported; save it as TIFF")
            return file_format
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        brands = data[8 : max(8, min(int.from_bytes(data[:4], "big"), 256))]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        if any(brand in brands for brand in (b"hei", b"hev", b"mif1", b"msf1")):
            return "HEIF"
        raise ValueError(_RAW if b"crx " in brands else "a film, or a format of its kind; no photograph")
    for signature, kind in _OTHER_FORMATS.items():
        if data.startswith(signature):
            raise ValueError(f"{kind}, which is not supported; save it as PNG or TIFF")
    raise ValueError(_UNKNOWN if data else "an empty file")


def _read_png(data: bytes, page: int | None, max_pixels: int) -> tuple[Photo, int]:
    header = png.read_metadata(data)
    _check_size(header.width, header.height, max_pixels)
    if header.num_frames > 1:
        raise ValueError(f"an animation of {header.num_frames} frames is not supported; save one as a still image")
    _check_page(page, 1)
    image = pyvips.Image.pngload_buffer(data, fail_on="error", unlimited=True)
    channels = _array(image)
    if "palette" in image.get_fields():
        channels = _without_equal_colours(channels)
    copied = png.without_xmp(header.copied)
    photo = Photo(
        *_split_alpha(channels),
        icc_profile=header.icc_profile,
        exif=header.exif,
        xmp=png.xmp_of(header.copied),
        resolution=header.resolution,
        format_data=copied or None,
    )
    return photo, exif.orientation(header.exif)


def _read_jpeg(data: bytes, page: int | None, max_pixels: int) -> tuple[Photo, int]:
    header = jpeg.read_metadata(data)
    _check_size(header.width, header.height, max_pixels)
    if page is None and len(header.pictures) > 1:
        raise ValueError(_several(len(header.pictures), "photographs"))
    _check_page(page, len(header.pictures))
    if page is not None and page > 1:
        start, end = header.pictures[page - 1]
        return _read_jpeg(data[start:end], None, max_pixels)
    image = pyvips.Image.jpegload_buffer(data, fail_on="error", unlimited=True)
    channels = _array(image)
    is_cmyk = channels.shape[2] == 4
    if is_cmyk:
        channels = _cmyk_to_srgb(channels, header.icc_profile)
    photo = Photo(
        channels,
        icc_profile=None if is_cmyk else header.icc_profile,
        exif=header.exif,
        xmp=header.xmp,
        iptc=header.iptc,
        resolution=header.resolution,
        format_data=header.comment,
        dropped=header.dropped,
    )
    return photo, exif.orientation(header.exif)


def _read_tiff(data: bytes, number: int | None, max_pixels: int) -> tuple[Photo, int]:
    pages = tiff.read_pages(data)
    page, dropped = _chosen_page(pages, number)
    _check_size(page.width, page.height, max_pixels)
    if page.is_raw:
        raise ValueError(_RAW)
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
    if page.unsupported:
        channels = _read_by_tifffile(data, page)
    elif page.is_lab:
        channels = _lab_to_srgb(data, page)
    else:
        channels = _read_tiff_samples(data, page)
    profile = page.icc_profile
    if page.is_cmyk:
        channels = np.concatenate(
            [_cmyk_to_srgb(_in_eight_bits(channels[..., :4]), profile), _in_eight_bits(channels[..., 4:])], axis=2
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


def _read_bmp(data: bytes, page: int | None, max_pixels: int) -> tuple[Photo, int]:
    _check_page(page, 1)
    with Image.open(io.BytesIO(data), formats=["BMP", "DIB"]) as image:
        _check_size(image.width, image.height, max_pixels)
        channels = _pillow_channels(image)
        dpi = image.info.get("dpi")
    resolution = (float(dpi[0]), float(dpi[1])) if dpi and all(value > 0 for value in dpi) else None
    return Photo(*_split_alpha(channels), resolution=resolution), 1


def _read_heic(data: bytes, page: int | None, max_pixels: int) -> tuple[Photo, int]:
    import pillow_heif

    file = _open_heic(data)
    if page is None and len(file) > 1:
        raise ValueError(_several(len(file), "photographs"))
    _check_page(page, len(file))
    picture = file[(page or 1) - 1]
    _check_size(picture.size[0], picture.size[1], max_pixels)
    bits = int(picture.info.get("bit_depth", 8))
    if bits > 8:
        file = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
        picture = file[(page or 1) - 1]
    channels = np.ascontiguousarray(np.asarray(picture))
    channels = channels[..., None] if channels.ndim == 2 else channels
    if channels.dtype == np.uint16:
        channels = _scaled(channels >> (16 - bits), bits)
    if picture.premultiplied_alpha:
        raise ValueError("colours multiplied by transparency (premultiplied alpha) are not supported")
    held = [(kind, picture.info.get(kind)) for kind in ("depth_images", "aux", "thumbnails")]
    phrases = {"depth_images": "depth map", "aux": "further maps (such as a gain map)", "thumbnails": "thumbnails"}
    photo = Photo(
        *_split_alpha(channels),
        icc_profile=picture.info.get("icc_profile"),
        exif=(picture.info.get("exif") or b"").removeprefix(exif.MARKER) or None,
        xmp=picture.info.get("xmp"),
        dropped=tuple(phrases[kind] for kind, value in held if value),
    )
    return photo, 1  # the decoder turns it


def _read_by_vips(data: bytes, page: int | None, max_pixels: int) -> tuple[Photo, int]:
    """Read WebP and AVIF."""
    image = pyvips.Image.new_from_buffer(data, "")
    num_pages = image.get("n-pages") if "n-pages" in image.get_fields() else 1
    if page is None and num_pages > 1:
        raise ValueError(_several(num_pages, "frames of an animation" if data[:4] == b"RIFF" else "photographs"))
    _check_page(page, num_pages)
    _check_size(image.width, image.height, max_pixels)
    options = {"page": (page or 1) - 1} if num_pages > 1 else {}
    image = pyvips.Image.new_from_buffer(data, "", fail_on="error", **options)
    channels = _array(image)
    bits = image.get("bits-per-sample") if "bits-per-sample" in image.get_fields() else 8
    if channels.dtype == np.uint16 and bits < 16:
        channels = _scaled(channels >> (16 - bits), bits)  # libvips shifts
    fields = {name: image.get(name) for name in ("icc-profile-data", "xmp-data") if name in image.get_fields()}
    photo = Photo(
        *_split_alpha(channels),
        icc_profile=fields.get("icc-profile-data"),
        exif=_vips_exif(image),
        xmp=fields.get("xmp-data"),
    )
    return photo, exif.orientation(photo.exif) if data[:4] == b"RIFF" else 1  # AVIF is turned by the decoder


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} are {width * height} pixels, more than the {max_pixels} allowed")
    if not width * height:
        raise ValueError(f"{width}x{height}: the picture has no pixels")


def _check_page(page: int | None, num_pages: int) -> None:
    if page is not None and not 1 <= page <= num_pages:
        raise ValueError(f"there is no page {page}; the file holds {num_pages}")


def _several(count: int, kind: str) -> str:
    return f"holds {count} {kind}; choose one with page (on the command line --page 1 to --page {count})"


def _chosen_page(pages: list[tiff.TiffPage], number: int | None) -> tuple[tiff.TiffPage, tuple[str, ...]]:
    """Return the page with this number, or else the only page that is no reduced copy, and what is not read."""
    if number is not None:
        _check_page(number, len(pages))
        return pages[number - 1], ()
    whole = [page for page in pages if not page.is_reduced] or pages
    if len(whole) > 1:
        sizes = ", ".join(f"{page.width}x{page.height}" for page in pages[:5]) + (", ..." if len(pages) > 5 else "")
        raise ValueError(f"{_several(len(pages), 'pages')}; their sizes: {sizes}")
    reduced = len(pages) - 1
    return whole[0], (f"{reduced} smaller cop{'y' if reduced == 1 else 'ies'} or mask",) if reduced else ()


def _array(image: pyvips.Image) -> Pixels:
    """Return the samples that libvips decodes. Raises pyvips.Error, and ValueError for other than 8 or 16 bits."""
    if image.format not in ("uchar", "ushort"):
        kind = _DEPTHS.get(image.format, image.format)
        raise ValueError(f"{kind} are not supported; convert to 8 or 16 bits")
    dtype = np.uint8 if image.format == "uchar" else np.uint16
    pixels: Pixels = np.frombuffer(image.write_to_memory(), dtype).reshape(image.height, image.width, image.bands)
    return pixels


def _split_alpha(channels: InChannels) -> tuple[Pixels, Plane | None]:
    return (channels[..., :-1], channels[..., -1:]) if channels.shape[2] in (2, 4) else (channels, None)


def _without_equal_colours(channels: InChannels) -> Pixels:
    """Return gray where the palette's colours are all gray."""
    colours = channels[..., :3]
    if channels.shape[2] < 3 or not bool((colours == colours[..., :1]).all()):
        return channels
    return channels[..., [0, *range(3, channels.shape[2])]]


def _scaled(channels: Pixels, bits: int) -> UInt16[np.ndarray, "H W C"]:
    """Return samples of `bits` bits, between 8 and 16, as 16 bits: black and white stay black and white."""
    white = 2**bits - 1
    scaled: UInt16[np.ndarray, "H W C"] = ((channels.astype(np.uint32) * 65535 + white // 2) // white).astype(np.uint16)
    return scaled


def _in_eight_bits(channels: Pixels) -> UInt8[np.ndarray, "H W C"]:
    return channels if channels.dtype == np.uint8 else ((channels.astype(np.uint32) + 128) // 257).astype(np.uint8)


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
    return _array(pyvips.Image.tiffload_source(source, page=page, **options))


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
        decoded = stored.asarray()
        is_separate = stored.planarconfig == tifffile.PLANARCONFIG.SEPARATE and decoded.ndim == 3
    decoded = np.moveaxis(decoded, 0, 2) if is_separate else decoded
    channels = np.ascontiguousarray(decoded[..., None] if decoded.ndim == 2 else decoded)
    if page.photometric == 0:
        channels = 2**page.bits - 1 - channels
    if page.bits in (8, 16):
        return channels
    scaled = _scaled(channels, page.bits)
    return _in_eight_bits(scaled) if page.bits < 8 else scaled


def _lab_to_srgb(data: bytes, page: tiff.TiffPage) -> UInt8[np.ndarray, "H W C"]:
    if page.further_bands or page.alpha_band is not None:
        raise ValueError("Lab colours with further channels are not supported; convert to RGB")
    with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
        image.seek(page.number - 1)
        return _pillow_channels(image)


def _pillow_channels(image: Image.Image) -> UInt8[np.ndarray, "H W C"]:
    """Return 8-bit pixels: gray, RGB or RGBA."""
    is_gray = image.mode in ("1", "L")
    mode = "L" if is_gray else "RGBA" if image.has_transparency_data else "RGB"
    channels = np.asarray(image.convert(mode))
    channels = channels[..., None] if channels.ndim == 2 else channels
    return _without_equal_colours(channels) if image.mode == "P" else channels


def _fitting_profile(profile: bytes | None, num_colours: int) -> bytes | None:
    """Return the colour profile if it fits the channels: it does not after a conversion from a palette, say."""
    fits = profile is not None and profile[16:20] == (b"GRAY" if num_colours == 1 else b"RGB ")
    return profile if fits else None


def _cmyk_to_srgb(channels: UInt8[np.ndarray, "H W 4"], profile: bytes | None) -> UInt8[np.ndarray, "H W 3"]:
    image = Image.fromarray(np.ascontiguousarray(channels), "CMYK")
    if profile:
        try:
            embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            srgb = ImageCms.createProfile("sRGB")
            image = ImageCms.profileToProfile(image, embedded, srgb, outputMode="RGB") or image
        except (OSError, ImageCms.PyCMSError):
            pass  # a damaged profile is ignored
    rgb: UInt8[np.ndarray, "H W 3"] = np.asarray(image.convert("RGB"))
    return rgb


def _vips_exif(image: pyvips.Image) -> bytes | None:
    found: bytes | None = image.get("exif-data") if "exif-data" in image.get_fields() else None
    return found.removeprefix(exif.MARKER) if found else None


def _open_heic(data: bytes) -> Any:
    if not _HAS_HEIC:
        raise ValueError("a HEIC photograph: install what reads it, pip install 'dgunet[photos]'")
    import pillow_heif

    return pillow_heif.open_heif(io.BytesIO(data))


def _upright(channels: Pixels, orientation: int) -> Oriented:
    """Undo the EXIF orientation: mirrored (2, 4, 5, 7), rotated (3, 5 to 8)."""
    if orientation >= 5:
        channels = channels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        channels = channels[::-1]
    if orientation in (2, 3, 6, 7):
        channels = channels[:, ::-1]
    return np.ascontiguousarray(channels)


def _not_held(photo: Photo, file_format: str) -> tuple[str, ...]:
    """Return phrases for metadata that the format cannot hold at all."""
    names = {"exif": "EXIF", "xmp": "XMP", "iptc": "IPTC", "icc_profile": "colour profile", "resolution": "resolution"}
    unheld = {
        "PNG": ("iptc",),
        "JPEG": (),
        "TIFF": (),
        "WEBP": ("iptc", "resolution"),
        "AVIF": ("iptc", "resolution"),
        "BMP": ("exif", "xmp", "iptc", "icc_profile"),
    }[file_format]
    phrases = [f"{names[field]} ({file_format} does not hold it)" for field in unheld if getattr(photo, field)]
    if photo.format_data and photo.format != file_format:
        phrases.append("text and colour chunks of the PNG" if photo.format == "PNG" else "comment of the JPEG")
    return tuple(phrases)


def _channels(photo: Photo) -> Pixels:
    return photo.pixels if photo.alpha is None else np.concatenate([photo.pixels, photo.alpha], axis=2)


def _vips_image(photo: Photo) -> pyvips.Image:
    channels = np.ascontiguousarray(_channels(photo))
    height, width, count = channels.shape
    is_gray, is_deep = count < 3, channels.dtype == np.uint16
    interpretation = {(0, 0): "srgb", (0, 1): "rgb16", (1, 0): "b-w", (1, 1): "grey16"}[is_gray, is_deep]
    image = pyvips.Image.new_from_memory(channels.data, width, height, count, _VIPS_FORMATS[channels.dtype])
    return image.copy(interpretation=interpretation)


def _encode_jpeg(photo: Photo, dropped: tuple[str, ...]) -> tuple[bytes, tuple[str, ...]]:
    options = dict(_OPTIONS["JPEG"])
    if photo.icc_profile:
        options["icc_profile"] = photo.icc_profile
    if photo.resolution and all(value < 65535.5 for value in photo.resolution):
        options["dpi"] = photo.resolution
    if photo.exif:
        written, limit = photo.exif, jpeg.MAX_SEGMENT - len(exif.MARKER)
        if len(written) > limit:
            written = b"" if exif.is_damaged(written) else exif.without_maker_notes(written)
            dropped += (f"maker notes of the EXIF ({len(photo.exif) // 1000} kB; a JPEG holds 65 kB)",)
        options |= {"exif": exif.MARKER + written} if written else {}
    if photo.xmp:
        if len(photo.xmp) <= jpeg.MAX_SEGMENT - len(jpeg.XMP_MARKER):
            options["xmp"] = photo.xmp
        else:
            dropped += (f"XMP ({len(photo.xmp) // 1000} kB; a JPEG holds 65 kB)",)
    if photo.iptc:
        if len(photo.iptc) <= jpeg.MAX_SEGMENT - 64:
            options["extra"] = jpeg.iptc_segment(photo.iptc)
        else:
            dropped += (f"IPTC ({len(photo.iptc) // 1000} kB; a JPEG holds 65 kB)",)
    if photo.format_data and photo.format == "JPEG":
        options["comment"] = photo.format_data
    return _saved(_channels(photo), "JPEG", options), dropped


def _saved(channels: UInt8[np.ndarray, "H W C"], file_format: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(channels[..., 0] if channels.shape[2] == 1 else channels).save(buffer, file_format, **options)
    return buffer.getvalue()
