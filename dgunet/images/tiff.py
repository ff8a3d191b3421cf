"""The directories of a TIFF file, one for each page: what its samples are, metadata, completeness; and an encoder.

Pillow reads and writes the directories. The encoder exists because libvips writes no EXIF into a TIFF, and Pillow no
16-bit colour. Source: TIFF Revision 6.0 (Adobe 1992), BigTIFF and the supplements of Photoshop.
"""

import io
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin, TiffTags

from dgunet.images import exif, jpeg

_REDUCED, _MASK = 1, 4  # bits of NewSubfileType: a smaller copy, a transparency mask
_STRAIGHT_ALPHA, _PREMULTIPLIED = 2, 1  # values of ExtraSamples; 0: something else, such as a saved selection
_MIN_IS_BLACK, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 1, 2, 3, 5, 6, 8  # PhotometricInterpretation; 0: white is zero
_NUM_COLOURS = {0: 1, _MIN_IS_BLACK: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3, _LAB: 3}
_CAMERA_COLOURS = (32803, 34892)  # colour filter array, linear raw
_SAMPLE_FORMATS = {1: "", 2: "signed ", 3: "floating-point ", 4: "", 5: "complex ", 6: "complex "}  # 4: not said
_OLD_SUBFILE_TYPE, _INKS, _YCBCR_SUBSAMPLING = 255, 332, 530
_YCBCR_COEFFICIENTS, _YCBCR_RANGE = 529, 532
_NOT_CMYK = 2  # value of the tag InkSet
_JPEG = 7
_SUBFILE_TYPE, _SAMPLE_FORMAT, _XMP, _IPTC, _ORIENTATION = 254, 339, 700, 33723, 274
_PHOTOSHOP_RESOURCES = 34377
_PHOTOSHOP_LAYERS, _SUB_DIRECTORIES, _DNG_VERSION = 37724, 330, 50706
_TAG_NAMES = {33550: "GeoTIFF", 33922: "GeoTIFF", 34735: "GeoTIFF", 42112: "GDAL"}
_UNITS_PER_INCH = {2: 1.0, 3: 2.54}
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_BIGTIFF = (b"+\x00", b"\x00+")
_DEFLATE = 8
_SEPARATE = 2  # value of PlanarConfiguration
_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946, 50001)  # that libvips reads
_OTHER_COMPRESSIONS = {
    6: "the old kind of JPEG",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG",
    34925: "LZMA",
    34933: "PNG",
    34934: "JPEG XR",
    50000: "Zstandard",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_STORAGE = (  # tags that say how samples are stored
    TiffImagePlugin.BITSPERSAMPLE,
    TiffImagePlugin.COMPRESSION,
    TiffImagePlugin.PHOTOMETRIC_INTERPRETATION,
    TiffImagePlugin.SAMPLESPERPIXEL,
    TiffImagePlugin.PLANAR_CONFIGURATION,
    TiffImagePlugin.PREDICTOR,
    TiffImagePlugin.COLORMAP,
    TiffImagePlugin.EXTRASAMPLES,
    TiffImagePlugin.SAMPLEFORMAT,
    TiffImagePlugin.JPEGTABLES,
    TiffImagePlugin.YCBCRSUBSAMPLING,
    266,  # order of the bits in a byte
    529,  # YCbCr coefficients
    531,  # YCbCr positioning
    532,  # black and white
)
# Beside the storage of samples and exif.DESCRIPTIVE: kept otherwise, or without meaning for other pixels.
_OTHERWISE_KNOWN = frozenset(
    {
        *(_SUBFILE_TYPE, _OLD_SUBFILE_TYPE, _ORIENTATION, _XMP, _IPTC, _PHOTOSHOP_LAYERS, _TILE_WIDTH, _TILE_LENGTH),
        *(_INKS, _PHOTOSHOP_RESOURCES, _YCBCR_SUBSAMPLING, _YCBCR_COEFFICIENTS, _YCBCR_RANGE, _SUB_DIRECTORIES),
        *(TiffImagePlugin.IMAGEWIDTH, TiffImagePlugin.IMAGELENGTH, TiffImagePlugin.ROWSPERSTRIP),
        *(TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.STRIPBYTECOUNTS),
        *(TiffImagePlugin.TILEOFFSETS, TiffImagePlugin.TILEBYTECOUNTS),
        *(TiffImagePlugin.X_RESOLUTION, TiffImagePlugin.Y_RESOLUTION, TiffImagePlugin.RESOLUTION_UNIT),
        *(TiffImagePlugin.ICCPROFILE, TiffImagePlugin.TRANSFERFUNCTION),
        *(263, 264, 265, 280, 281, 288, 289, 290, 291, 292, 293, 297, 326, 327, 328, 333, 334, 336, 340, 341),
        *(512, 513, 514, 515, 517, 518, 519, 520, 521),  # of the old kind of JPEG
    }
)
_VALID_VALUES = {_ORIENTATION: range(1, 9), 296: range(1, 4)}
_HORIZONTAL_DIFFERENCES = 2
_STRIP_BYTES = 2**20


@dataclass(frozen=True)
class TiffPage:
    """One page: what its directory says.

    Attributes:
        number: from 1.
        bits: bits of a sample, as stored; 0: they differ from sample to sample.
        sample_kind: "" for unsigned whole numbers, else such as "signed ".
        alpha_band: which sample is straight alpha; None: none is.
        num_colours: samples of a pixel that are colour: 1 gray or palette, 3, or 4 (CMYK).
        further_bands: samples that are neither colour nor alpha.
        is_complete: whether all strips or tiles lie within the file.
        tile: height and width of the tiles; None: the page is in strips.
        unsupported: how the samples are stored, in words, if libvips cannot read that; None: it can.
        fault: why the samples have no colours; None: they have.
        ycbcr: coefficients, and codes of black and white of the three samples, where they must still be converted to
            RGB; None: the decoder converts them, or they are no YCbCr.
    """

    number: int
    width: int
    height: int
    bits: int
    sample_kind: str
    photometric: int
    num_colours: int
    alpha_band: int | None
    further_bands: int
    is_premultiplied: bool
    is_reduced: bool
    is_complete: bool
    orientation: int
    exif: bytes | None
    icc_profile: bytes | None
    xmp: bytes | None
    iptc: bytes | None
    resolution: tuple[float, float] | None
    is_raw: bool
    tile: tuple[int, int] | None
    unsupported: str | None
    fault: str | None
    ycbcr: tuple[tuple[float, ...], tuple[float, ...]] | None
    dropped: tuple[str, ...]

    @property
    def is_known(self) -> bool:
        """Whether samples are gray, RGB, palette indices, inks, YCbCr, or Lab of 8 bits."""
        return self.photometric in _NUM_COLOURS and not (self.is_lab and self.bits != 8)

    @property
    def is_plain(self) -> bool:
        """Whether samples are gray or RGB as they are."""
        return self.photometric in (0, _MIN_IS_BLACK, _RGB)

    @property
    def is_palette(self) -> bool:
        """Whether samples are palette indices."""
        return self.photometric == _PALETTE

    @property
    def is_cmyk(self) -> bool:
        """Whether samples are amounts of ink."""
        return self.photometric == _CMYK

    @property
    def is_ycbcr(self) -> bool:
        """Whether samples are brightness and two colour differences."""
        return self.photometric == _YCBCR

    @property
    def is_lab(self) -> bool:
        """Whether samples are CIE L*a*b*."""
        return self.photometric == _LAB


def read_pages(data: bytes) -> list[TiffPage]:
    """Return the pages of the file's main chain. Raises Pillow's errors for a damaged directory."""
    return [_page(directory, offset, data, number) for number, (directory, offset) in enumerate(_chain(data), start=1)]


def encode(
    channels: np.ndarray,
    *,
    has_alpha: bool,
    photo_exif: bytes | None,
    icc_profile: bytes | None,
    xmp: bytes | None,
    iptc: bytes | None,
    resolution: tuple[float, float] | None,
) -> bytes:
    """Return a TIFF of one page, compressed without loss (Deflate of horizontal differences).

    Args:
        channels: H W C, uint8 or uint16: gray or RGB, then alpha.
        has_alpha: whether the last channel is alpha, which is not premultiplied.
        photo_exif: its descriptive tags are written; a TIFF's tags are its EXIF.
        icc_profile: colour profile.
        xmp: XMP packet.
        iptc: IPTC record.
        resolution: pixels per inch, horizontally and vertically.
    """
    height, width, count = channels.shape
    rows = max(1, _STRIP_BYTES // (width * count * channels.itemsize))
    strips = [_strip(channels[start : start + rows]) for start in range(0, height, rows)]
    tags = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    for tag, value in exif.descriptive(photo_exif).items():
        tags[tag] = value
    tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH] = width, height
    tags[TiffImagePlugin.BITSPERSAMPLE] = (8 * channels.itemsize,) * count
    tags[TiffImagePlugin.SAMPLESPERPIXEL] = count
    tags[TiffImagePlugin.COMPRESSION] = _DEFLATE
    tags[TiffImagePlugin.PREDICTOR] = _HORIZONTAL_DIFFERENCES
    tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = _MIN_IS_BLACK if count < 3 else _RGB
    tags[TiffImagePlugin.ROWSPERSTRIP] = rows
    tags[TiffImagePlugin.STRIPBYTECOUNTS] = tuple(len(strip) for strip in strips)
    # Pillow adds the length of the header, after which the strips follow.
    tags[TiffImagePlugin.STRIPOFFSETS] = tuple(np.cumsum([0] + [len(strip) for strip in strips])[:-1].tolist())
    tags.tagtype[TiffImagePlugin.STRIPBYTECOUNTS] = tags.tagtype[TiffImagePlugin.STRIPOFFSETS] = TiffTags.LONG
    if has_alpha:
        tags[TiffImagePlugin.EXTRASAMPLES] = _STRAIGHT_ALPHA
    if resolution:
        tags[TiffImagePlugin.X_RESOLUTION], tags[TiffImagePlugin.Y_RESOLUTION] = resolution
        tags[TiffImagePlugin.RESOLUTION_UNIT] = 2
    for tag, content in ((TiffImagePlugin.ICCPROFILE, icc_profile), (_XMP, xmp), (_IPTC, iptc)):
        if content:
            tags[tag] = content
            tags.tagtype[tag] = TiffTags.BYTE if tag == _XMP else TiffTags.UNDEFINED
    buffer = io.BytesIO()
    tags.save(buffer)
    return b"".join([buffer.getvalue(), *strips])


def _strip(channels: np.ndarray) -> bytes:
    differences = np.diff(channels, axis=1, prepend=np.zeros_like(channels[:, :1]))  # modulo 2^bits, as TIFF has it
    return zlib.compress(differences.astype(differences.dtype.newbyteorder("<")).tobytes(), 4)


def _chain(data: bytes) -> Iterator[tuple[TiffImagePlugin.ImageFileDirectory_v2, int]]:
    file = io.BytesIO(data)
    header = file.read(16 if data[2:4] in _BIGTIFF else 8)
    directory = TiffImagePlugin.ImageFileDirectory_v2(header)
    visited: set[int] = set()
    while (offset := directory.next) and offset not in visited:
        visited.add(offset)
        file.seek(offset)
        directory = TiffImagePlugin.ImageFileDirectory_v2(header)
        directory.load(file)
        if TiffImagePlugin.IMAGEWIDTH not in directory:
            if not visited - {offset}:
                raise ValueError("the first directory of the file holds no picture")
            return
        yield directory, offset


def _page(tags: TiffImagePlugin.ImageFileDirectory_v2, offset: int, data: bytes, number: int) -> TiffPage:
    photometric = int(tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, _MIN_IS_BLACK))
    bits = _numbers(tags.get(TiffImagePlugin.BITSPERSAMPLE, 1))
    num_samples = int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1))
    extra = _numbers(tags.get(TiffImagePlugin.EXTRASAMPLES, ()))
    num_colours = min(_NUM_COLOURS.get(photometric, num_samples), num_samples)
    is_reduced = bool(int(tags.get(_SUBFILE_TYPE, 0)) & (_REDUCED | _MASK)) or tags.get(_OLD_SUBFILE_TYPE) == 2
    alpha = [num_colours + index for index, kind in enumerate(extra) if kind == _STRAIGHT_ALPHA]
    further = num_samples - num_colours - bool(alpha)
    dropped = [f"{further} further channel{'s' * (further > 1)} (not transparency)"] if further > 0 else []
    if int(tags.get(TiffImagePlugin.RESOLUTION_UNIT, 2)) == 1:  # no unit
        ratio = [
            _fractions((tags.get(tag, 1),)) for tag in (TiffImagePlugin.X_RESOLUTION, TiffImagePlugin.Y_RESOLUTION)
        ]
        dropped += ["the ratio of the sides of a pixel"] if ratio[0] != ratio[1] else []
    unknown = sorted(set(tags) - set(exif.DESCRIPTIVE) - set(_STORAGE) - _OTHERWISE_KNOWN)
    if unknown:
        names = list(dict.fromkeys(_TAG_NAMES.get(tag, str(tag)) for tag in unknown))
        dropped += [f"further tags of the TIFF: {', '.join(names[:5])}" + (", ..." if len(names) > 5 else "")]
    resources = _bytes(tags, _PHOTOSHOP_RESOURCES) or b""
    dropped += [jpeg.PHOTOSHOP_DATA] if jpeg.has_own_data(resources) else []
    dropped += ["Photoshop layers"] if _PHOTOSHOP_LAYERS in tags else []
    try:
        description = _description(data, offset)
    except (struct.error, ValueError, KeyError, TypeError, OSError):  # the pixels can be read all the same
        description = None
        dropped.append("damaged EXIF")
    kinds = {_SAMPLE_FORMATS.get(kind, "unknown ") for kind in _numbers(tags.get(_SAMPLE_FORMAT, 1))}
    return TiffPage(
        number=number,
        width=int(tags[TiffImagePlugin.IMAGEWIDTH]),
        height=int(tags[TiffImagePlugin.IMAGELENGTH]),
        bits=bits[0] if len(set(bits)) == 1 else 0,
        sample_kind=max(kinds),
        photometric=photometric,
        num_colours=num_colours,
        alpha_band=alpha[0] if alpha else None,
        further_bands=further,
        is_premultiplied=_PREMULTIPLIED in extra,
        is_reduced=is_reduced,
        is_complete=_is_complete(tags, len(data)),
        orientation=int(tags.get(_ORIENTATION, 1)),
        exif=description,
        icc_profile=_bytes(tags, TiffImagePlugin.ICCPROFILE),
        xmp=_bytes(tags, _XMP),
        iptc=_bytes(tags, _IPTC) or jpeg.iptc_record(resources),
        resolution=_resolution(tags),
        is_raw=photometric in _CAMERA_COLOURS or _DNG_VERSION in tags or (is_reduced and _SUB_DIRECTORIES in tags),
        tile=(int(tags[_TILE_LENGTH]), int(tags[_TILE_WIDTH])) if TiffImagePlugin.TILEOFFSETS in tags else None,
        unsupported=_unsupported(tags, bits, num_samples, num_colours),
        fault=_fault(tags, photometric, num_samples),
        ycbcr=_ycbcr(tags) if photometric == _YCBCR else None,
        dropped=tuple(dropped),
    )


def _description(data: bytes, offset: int) -> bytes | None:
    directory = Image.Exif()
    directory.endian, directory.bigtiff = ("<" if data[:2] == b"II" else ">"), data[2:4] in _BIGTIFF
    directory.load_from_fp(io.BytesIO(data), offset)
    return exif.of_tiff(directory)


def _unsupported(
    tags: TiffImagePlugin.ImageFileDirectory_v2, bits: tuple[int, ...], num_samples: int, num_colours: int
) -> str | None:
    compression = int(tags.get(TiffImagePlugin.COMPRESSION, 1))
    is_separate = int(tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1)) == _SEPARATE
    if compression not in _COMPRESSIONS:
        return f"compressed with {_OTHER_COMPRESSIONS.get(compression, f'method {compression}')}"
    if TiffImagePlugin.TILEOFFSETS in tags and is_separate:
        return "in tiles of separate planes"
    if is_separate and int(tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, _MIN_IS_BLACK)) == _YCBCR:
        return "of YCbCr colours in separate planes"
    if is_separate and num_colours == 1 < num_samples:  # libvips mixes gray with the plane after it
        return "of gray and further samples in separate planes"
    if bits[0] not in (1, 2, 4, 8, 16) or (bits[0] < 8 and num_samples > 1):
        return f"with {bits[0]} bits per sample" + (f" and {num_samples} samples" if num_samples > 1 else "")
    return None


def _fault(tags: TiffImagePlugin.ImageFileDirectory_v2, photometric: int, num_samples: int) -> str | None:
    if photometric == _CMYK and (num_samples < 4 or int(tags.get(_INKS, 1)) == _NOT_CMYK):
        return f"{num_samples} inks, not cyan, magenta, yellow and black, are not supported; convert to RGB"
    if num_samples < _NUM_COLOURS.get(photometric, 1):
        return f"damaged: {num_samples} sample of each pixel cannot be a colour (SamplesPerPixel of the TIFF)"
    if photometric == _PALETTE and TiffImagePlugin.COLORMAP not in tags:
        return "damaged: a picture of numbered colours without the colours (ColorMap of the TIFF)"
    return None


def _ycbcr(
    tags: TiffImagePlugin.ImageFileDirectory_v2,
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return how to convert samples: libvips converts those that JPEG compresses, or that have fewer colour samples."""
    is_full = tuple(_numbers(tags.get(_YCBCR_SUBSAMPLING, (2, 2)))) == (1, 1)
    if int(tags.get(TiffImagePlugin.COMPRESSION, 1)) == _JPEG or not is_full:
        return None
    coefficients, limits = _fractions(tags.get(_YCBCR_COEFFICIENTS)), _fractions(tags.get(_YCBCR_RANGE))
    if len(coefficients) != 3 or not all(0 < value < 1 for value in coefficients):
        coefficients = (0.299, 0.587, 0.114)
    if len(limits) != 6 or not all(black < white for black, white in zip(limits[::2], limits[1::2], strict=True)):
        limits = (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)
    return coefficients, limits


def with_valid_tags(data: bytes, page: TiffPage) -> bytes:
    """Return the file with invalid values of orientation and resolution unit replaced by 1; BigTIFF is left unchanged.

    libtiff reports invalid tag values as errors, as it does damaged pixels.
    """
    (start,) = [offset for number, (_, offset) in enumerate(_chain(data), start=1) if number == page.number]
    order = "<" if data[:2] == b"II" else ">"
    if data[2:4] in _BIGTIFF:
        return data
    wrong = []
    for index in range(struct.unpack_from(f"{order}H", data, start)[0]):
        position = start + 2 + 12 * index
        tag, _, _, value = struct.unpack_from(f"{order}HHIH", data, position)
        if tag in _VALID_VALUES and value not in _VALID_VALUES[tag]:
            wrong.append(position)
    if not wrong:
        return data  # a copy would take as much memory again
    repaired = bytearray(data)
    for position in wrong:
        struct.pack_into(f"{order}HIHH", repaired, position + 2, TiffTags.SHORT, 1, 1, 0)
    return bytes(repaired)


def tiles_as_strips(data: bytes, page: TiffPage) -> bytes:
    """Return a file whose strips are the tiles of a page, one below the other.

    libvips reads damaged tiles as black, and refuses damaged strips.
    """
    assert page.tile is not None
    (tags,) = [tags for number, (tags, _) in enumerate(_chain(data), start=1) if number == page.number]
    offsets = _numbers(tags[TiffImagePlugin.TILEOFFSETS])
    replaced = {
        TiffImagePlugin.IMAGEWIDTH: page.tile[1],
        TiffImagePlugin.IMAGELENGTH: page.tile[0] * len(offsets),
        TiffImagePlugin.ROWSPERSTRIP: page.tile[0],
        TiffImagePlugin.STRIPOFFSETS: offsets,
        TiffImagePlugin.STRIPBYTECOUNTS: _numbers(tags[TiffImagePlugin.TILEBYTECOUNTS]),
    }
    strips = TiffImagePlugin.ImageFileDirectory_v2(prefix=data[:2])
    for tag in _STORAGE:
        if tag in tags:
            strips[tag] = tags[tag]
            strips.tagtype[tag] = tags.tagtype[tag]
    for tag, value in replaced.items():
        strips[tag] = value
        strips.tagtype[tag] = TiffTags.LONG
    buffer = io.BytesIO()
    strips.save(buffer)
    return b"".join([buffer.getvalue(), data])  # Pillow has added the length of the header to the offsets


def join_tiles(strips: np.ndarray, page: TiffPage) -> np.ndarray:
    """Return the pixels H W C of a page from its tiles, one below the other."""
    assert page.tile is not None
    height, width = page.tile
    rows, columns = math.ceil(page.height / height), math.ceil(page.width / width)
    tiles = strips[: rows * columns * height].reshape(rows, columns, height, width, -1)
    joined = tiles.swapaxes(1, 2).reshape(rows * height, columns * width, -1)
    return joined[: page.height, : page.width]


def _is_complete(tags: TiffImagePlugin.ImageFileDirectory_v2, num_bytes: int) -> bool:
    """Return whether the file has all strips or tiles; those of no bytes, as sparse files have, are missing pixels."""
    offsets = _numbers(tags.get(TiffImagePlugin.STRIPOFFSETS, tags.get(TiffImagePlugin.TILEOFFSETS, ())))
    counts = _numbers(tags.get(TiffImagePlugin.STRIPBYTECOUNTS, tags.get(TiffImagePlugin.TILEBYTECOUNTS, ())))
    if not counts and len(offsets) == 1:  # optional where nothing is compressed
        samples = int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)) * max(
            _numbers(tags.get(TiffImagePlugin.BITSPERSAMPLE, 1))
        )
        counts = (math.ceil(tags[TiffImagePlugin.IMAGEWIDTH] * samples / 8) * tags[TiffImagePlugin.IMAGELENGTH],)
    num_needed = _num_segments(tags)
    has_all = min(len(offsets), len(counts)) >= num_needed and (num_needed == 1 or all(counts[:num_needed]))
    return has_all and all(start + count <= num_bytes for start, count in zip(offsets, counts, strict=False))


def _num_segments(tags: TiffImagePlugin.ImageFileDirectory_v2) -> int:
    """Return the number of strips or tiles."""
    width, height = int(tags[TiffImagePlugin.IMAGEWIDTH]), int(tags[TiffImagePlugin.IMAGELENGTH])
    if TiffImagePlugin.TILEOFFSETS in tags:
        count = math.ceil(height / int(tags[_TILE_LENGTH])) * math.ceil(width / int(tags[_TILE_WIDTH]))
    else:
        rows = int(tags.get(TiffImagePlugin.ROWSPERSTRIP, height)) or height
        count = math.ceil(height / rows) if rows else 1
    is_separate = int(tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1)) == _SEPARATE
    return max(1, count * (int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)) if is_separate else 1))


def _resolution(tags: TiffImagePlugin.ImageFileDirectory_v2) -> tuple[float, float] | None:
    per_inch = _UNITS_PER_INCH.get(int(tags.get(TiffImagePlugin.RESOLUTION_UNIT, 2)))
    try:
        x, y = (float(tags[tag]) for tag in (TiffImagePlugin.X_RESOLUTION, TiffImagePlugin.Y_RESOLUTION))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    usable = per_inch and all(math.isfinite(value) and value > 0 for value in (x, y))
    return (x * per_inch, y * per_inch) if usable and per_inch else None


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(int(item) for item in value) if isinstance(value, tuple | list) else (int(value),)


def _fractions(value: Any) -> tuple[float, ...]:
    """Return numbers; none where one has no value, as 1/0, or there are no numbers."""
    try:
        return tuple(float(item) for item in value)
    except (TypeError, ValueError, ZeroDivisionError):
        return ()


def _bytes(tags: TiffImagePlugin.ImageFileDirectory_v2, tag: int) -> bytes | None:
    """Return the bytes of a value of any type as they lie in the file: Pillow's public access shortens some lists."""
    raw = tags._tagdata.get(tag)
    return bytes(raw) if raw else None
