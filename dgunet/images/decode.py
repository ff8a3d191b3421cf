"""Bytes of an image file -> Photo: upright pixels of 8 or 16 bits, alpha and metadata.

libvips decodes PNG, JPEG, TIFF, WebP and AVIF; Pillow decodes BMP, AVIF animations and Lab colours in a TIFF. The
modules `png`, `jpeg` and `tiff` read the metadata. Two kinds need packages of the extra `photos`: HEIC (pillow-heif),
and TIFF of unusual depth, compression or sample layout (tifffile, imagecodecs).
"""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyvips
from PIL import Image, UnidentifiedImageError

from dgunet.images import exif, jpeg, png, tiff, xmp
from dgunet.images.decode_tiff import chosen_page, read_tiff
from dgunet.images.photo import HAS_HEIC, MAX_PIXELS, SUFFIXES, Photo, Pixels, UnreadableImage
from dgunet.images.samples import (
    RAW_PHOTO,
    check_page,
    check_size,
    cmyk_to_srgb,
    fitting_profile,
    gray_if_equal,
    in_sixteen_bits,
    pillow_channels,
    samples_of,
    several_pictures,
    split_alpha,
    upright,
)

_SIGNATURES = {
    png.SIGNATURE: "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"II+\x00": "TIFF",
    b"MM\x00+": "TIFF",
    b"BM": "BMP",
}
_NO_IMAGES = {
    b"<": "a web page or an SVG instead of a photograph",
    b"version https://git-lfs": "a pointer of Git LFS instead of the file; fetch it with `git lfs pull`",
}
_OTHER_FORMATS = {  # recognised only for their error messages
    **_NO_IMAGES,
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
    b"\xff\x4f\xff\x51": "a JPEG 2000",
    b"II\xbc": "a JPEG XR",
    b"qoif": "a QOI",
    b"gimp xcf": "a GIMP image (XCF)",
    b"P6": "a PPM",
    b"P5": "a PGM",
}
_LOST_PIXELS = "premature end"  # in a warning of libjpeg
_UNKNOWN = "not a PNG, JPEG, TIFF, BMP, WebP, AVIF or HEIC image of a known kind"


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
        readers = {"PNG": _read_png, "JPEG": _read_jpeg, "TIFF": read_tiff, "BMP": _read_bmp, "HEIF": _read_heic}
        photo, orientation = readers.get(file_format, _read_by_vips)(data, page, max_pixels)
        channels = photo.pixels if photo.alpha is None else np.concatenate([photo.pixels, photo.alpha], axis=2)
        channels = upright(channels, orientation)
        height, width, count = channels.shape
        has_alpha = photo.alpha is not None
        profile = fitting_profile(photo.icc_profile, count - has_alpha)
        dropped = photo.dropped
        dropped += ("embedded thumbnail",) if exif.has_thumbnail(photo.exif) else ()
        dropped += ("colour profile of other colours",) if photo.icc_profile and not profile else ()
        return replace(
            photo,
            pixels=channels[..., : count - has_alpha],
            alpha=channels[..., -1:] if has_alpha else None,
            format=file_format,
            icc_profile=profile,
            resolution=photo.resolution or exif.resolution(photo.exif),
            exif=exif.up_to_date(photo.exif, height, width) if photo.exif else None,
            xmp=xmp.up_to_date(photo.xmp, height, width) if photo.xmp else None,
            dropped=dropped,
        )


def header_dimensions(data: bytes, name: str) -> tuple[int, int]:
    """Return (height, width) of the upright image, without decoding it. Raises UnreadableImage."""
    with _decoding(name):
        file_format = _format(data)
        if file_format == "TIFF":
            page = chosen_page(tiff.read_pages(data), None)[0]
            width, height, orientation = page.width, page.height, page.orientation
        elif file_format in ("BMP", "HEIF"):
            opened = _open_heic(data) if file_format == "HEIF" else _open_by_pillow(data, "BMP", "DIB")
            (width, height), orientation = opened.size, 1
        elif _is_avif_sequence(data):
            opened = _open_by_pillow(data, "AVIF")
            (width, height), orientation = opened.size, exif.orientation(_pillow_exif(opened))
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
        if HAS_HEIC:
            import pillow_heif

            pillow_heif.register_heif_opener()
        return Image.open(file, formats=tuple(dict.fromkeys(SUFFIXES.values()))).size


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
                raise ValueError(RAW_PHOTO)
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
        raise ValueError(RAW_PHOTO if b"crx " in brands else "a film or a similar format, not a photograph")
    for signature, kind in _OTHER_FORMATS.items():
        if data.startswith(signature):
            raise ValueError(
                kind if signature in _NO_IMAGES else f"{kind}, which is not supported; save it as PNG or TIFF"
            )
    if _is_dib(data):
        return "BMP"
    raise ValueError(_UNKNOWN if data else "an empty file")


def _is_dib(data: bytes) -> bool:
    """Whether a BMP begins with its second header, as programs of Windows hand it on: its size, then one plane."""
    planes = {12: 8, 40: 12, 52: 12, 56: 12, 64: 12, 108: 12, 124: 12}.get(int.from_bytes(data[:4], "little"))
    return planes is not None and data[planes : planes + 2] == b"\x01\x00"


def _read_png(data: bytes, page: int | None, max_pixels: int) -> tuple[Photo, int]:
    header = png.read_metadata(data)
    check_size(header.width, header.height, max_pixels)
    if header.num_frames > 1:
        raise ValueError(f"an animation of {header.num_frames} frames is not supported; save one as a still image")
    check_page(page, 1)
    image = pyvips.Image.pngload_buffer(data, fail_on="error", unlimited=True)
    channels = samples_of(image)
    if "palette" in image.get_fields():
        channels = gray_if_equal(channels)
    photo = Photo(
        *split_alpha(channels),
        icc_profile=header.icc_profile,
        exif=header.exif,
        xmp=header.xmp,
        iptc=jpeg.iptc_record(header.photoshop) if header.photoshop else None,
        resolution=header.resolution,
        format_data=header.copied or None,
        dropped=header.dropped,
    )
    return photo, exif.orientation(header.exif)


def _read_jpeg(data: bytes, page: int | None, max_pixels: int) -> tuple[Photo, int]:
    header = jpeg.read_metadata(data)
    check_size(header.width, header.height, max_pixels)
    if page is None and len(header.pictures) > 1:
        raise ValueError(several_pictures(len(header.pictures), "photographs"))
    check_page(page, len(header.pictures))
    if page is not None and page > 1:
        start, end = header.pictures[page - 1]
        return _read_jpeg(data[start:end], None, max_pixels)
    channels = _jpeg_samples(data)
    is_cmyk = channels.shape[2] == 4
    if is_cmyk:
        channels = cmyk_to_srgb(channels, header.icc_profile)
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


def _jpeg_samples(data: bytes) -> Pixels:
    """Return the samples. libvips only warns of lost pixels, which come out gray, as it does of harmless faults."""
    try:
        return samples_of(pyvips.Image.jpegload_buffer(data, fail_on="warning", unlimited=True))
    except pyvips.Error as error:
        if _LOST_PIXELS in str(error.detail):
            raise
    return samples_of(pyvips.Image.jpegload_buffer(data, fail_on="error", unlimited=True))


def _read_bmp(data: bytes, page: int | None, max_pixels: int) -> tuple[Photo, int]:
    check_page(page, 1)
    with _open_by_pillow(data, "BMP", "DIB") as image:
        check_size(image.width, image.height, max_pixels)
        channels = pillow_channels(image)
        dpi = image.info.get("dpi")
    resolution = (float(dpi[0]), float(dpi[1])) if dpi and all(value > 0 for value in dpi) else None
    has_profile = data[14:18] == b"\x7c\0\0\0" and data[70:74] in (b"DEBM", b"KNIL")  # embedded or linked: 5th version
    dropped = ("colour profile of the BMP",) if has_profile else ()
    return Photo(*split_alpha(channels), resolution=resolution, dropped=dropped), 1


def _read_heic(data: bytes, page: int | None, max_pixels: int) -> tuple[Photo, int]:
    import pillow_heif

    file = _open_heic(data)
    if page is None and len(file) > 1:
        raise ValueError(several_pictures(len(file), "photographs"))
    check_page(page, len(file))
    picture = file[(page or 1) - 1]
    check_size(picture.size[0], picture.size[1], max_pixels)
    bits = int(picture.info.get("bit_depth", 8))
    if bits > 8:
        file = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
        picture = file[(page or 1) - 1]
    channels = np.ascontiguousarray(np.asarray(picture))
    channels = channels[..., None] if channels.ndim == 2 else channels
    if channels.dtype == np.uint16:
        channels = in_sixteen_bits(channels >> (16 - bits), bits)
    if picture.premultiplied_alpha:
        raise ValueError("colours multiplied by transparency (premultiplied alpha) are not supported")
    held = [(kind, picture.info.get(kind)) for kind in ("depth_images", "aux", "thumbnails")]
    phrases = {"depth_images": "depth map", "aux": "further maps (such as a gain map)", "thumbnails": "thumbnails"}
    photo = Photo(
        *split_alpha(channels),
        icc_profile=picture.info.get("icc_profile"),
        exif=(picture.info.get("exif") or b"").removeprefix(exif.MARKER) or None,
        xmp=picture.info.get("xmp"),
        dropped=tuple(phrases[kind] for kind, value in held if value),
    )
    return photo, 1  # the decoder turns it


def _read_by_vips(data: bytes, page: int | None, max_pixels: int) -> tuple[Photo, int]:
    """Read WebP and AVIF."""
    if _is_avif_sequence(data):
        return _read_avif_sequence(data, page, max_pixels)
    image = pyvips.Image.new_from_buffer(data, "")
    num_pages = image.get("n-pages") if "n-pages" in image.get_fields() else 1
    if page is None and num_pages > 1:
        kind = "frames of an animation" if data[:4] == b"RIFF" else "photographs"
        raise ValueError(several_pictures(num_pages, kind))
    check_page(page, num_pages)
    check_size(image.width, image.height, max_pixels)
    options = {"page": (page or 1) - 1} if num_pages > 1 else {}
    image = pyvips.Image.new_from_buffer(data, "", fail_on="error", **options)
    channels = samples_of(image)
    bits = image.get("bits-per-sample") if "bits-per-sample" in image.get_fields() else 8
    if channels.dtype == np.uint16 and bits < 16:
        channels = in_sixteen_bits(channels >> (16 - bits), bits)  # libvips shifts
    fields = {name: image.get(name) for name in ("icc-profile-data", "xmp-data") if name in image.get_fields()}
    photo = Photo(
        *split_alpha(channels),
        icc_profile=fields.get("icc-profile-data"),
        exif=_vips_exif(image),
        xmp=fields.get("xmp-data"),
    )
    return photo, exif.orientation(photo.exif) if data[:4] == b"RIFF" else 1  # AVIF is turned by the decoder


def _is_avif_sequence(data: bytes) -> bool:
    """Whether the file is an animation, which libvips takes for damaged."""
    return data[4:12] == b"ftypavis"


def _read_avif_sequence(data: bytes, page: int | None, max_pixels: int) -> tuple[Photo, int]:
    with _open_by_pillow(data, "AVIF") as image:
        check_size(image.width, image.height, max_pixels)
        num_frames = getattr(image, "n_frames", 1)
        if page is None and num_frames > 1:
            raise ValueError(several_pictures(num_frames, "frames of an animation"))
        check_page(page, num_frames)
        image.seek((page or 1) - 1)
        channels = pillow_channels(image)
        described = _pillow_exif(image)
        photo = Photo(
            *split_alpha(channels),
            icc_profile=image.info.get("icc_profile"),
            exif=described,
            xmp=image.info.get("xmp"),
        )
    return photo, exif.orientation(described)


def _open_by_pillow(data: bytes, *formats: str) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=formats)


def _pillow_exif(image: Image.Image) -> bytes | None:
    return (image.info.get("exif") or b"").removeprefix(exif.MARKER) or None


def _vips_exif(image: pyvips.Image) -> bytes | None:
    found: bytes | None = image.get("exif-data") if "exif-data" in image.get_fields() else None
    return found.removeprefix(exif.MARKER) if found else None


def _open_heic(data: bytes) -> Any:
    if not HAS_HEIC:
        raise ValueError("a HEIC photograph: install what reads it, pip install 'dgunet[photos]'")
    import pillow_heif

    return pillow_heif.open_heif(io.BytesIO(data))
