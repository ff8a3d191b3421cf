"""The directories of a TIFF file, one for each page: what its samples are, metadata, completeness; and an encoder.

Pillow reads and writes the directories. The encoder exists because libvips writes no EXIF into a TIFF, and Pillow no
16-bit colour. Source: TIFF Revision 6.0 (Adobe 1992), BigTIFF and the supplements of Photoshop.
"""

import io
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin, TiffTags

from dgunet.images import exif

_REDUCED, _MASK = 1, 4  # bits of NewSubfileType: a smaller copy, a transparency mask
_STRAIGHT_ALPHA, _PREMULTIPLIED = 2, 1  # values of ExtraSamples; 0: something else, such as a saved selection
_MIN_IS_BLACK, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 1, 2, 3, 5, 6, 8  # PhotometricInterpretation; 0: white is zero
_NUM_COLOURS = {0: 1, _MIN_IS_BLACK: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3, _LAB: 3}
_CAMERA_COLOURS = (32803, 34892)  # colour filter array, linear raw
_SAMPLE_FORMATS = {1: "", 2: "signed ", 3: "floating-point ", 5: "complex ", 6: "complex "}
_SUBFILE_TYPE, _SAMPLE_FORMAT, _XMP, _IPTC, _ORIENTATION = 254, 339, 700, 33723, 274
_PHOTOSHOP_LAYERS, _SUB_DIRECTORIES, _DNG_VERSION = 37724, 330, 50706
_UNITS_PER_INCH = {2: 1.0, 3: 2.54}
_BIGTIFF = (b"+\x00", b"\x00+")
_DEFLATE = 8
_HORIZONTAL_DIFFERENCES = 2
_STRIP_BYTES = 2**20


@dataclass(frozen=True)
class TiffPage:
    """One page: what its directory says.

    Attributes:
        number: from 1.
        bits: bits of a sample, as stored.
        sample_kind: "" for unsigned whole numbers, else such as "signed ".
        alpha_band: which sample is straight alpha; None: none is.
        num_colours: samples of a pixel that are colour: 1 gray or palette, 3, or 4 (CMYK).
        further_bands: samples that are neither colour nor alpha.
        is_complete: whether all strips or tiles lie within the file.
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
    dropped: tuple[str, ...]

    @property
    def is_palette(self) -> bool:
        """Whether samples are numbers of colours."""
        return self.photometric == _PALETTE

    @property
    def is_cmyk(self) -> bool:
        """Whether samples are amounts of ink."""
        return self.photometric == _CMYK

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
    is_reduced = bool(int(tags.get(_SUBFILE_TYPE, 0)) & (_REDUCED | _MASK))
    alpha = [num_colours + index for index, kind in enumerate(extra) if kind == _STRAIGHT_ALPHA]
    further = num_samples - num_colours - bool(alpha)
    dropped = [f"{further} further channel{'s' * (further > 1)} (not transparency)"] if further > 0 else []
    dropped += ["Photoshop layers"] if _PHOTOSHOP_LAYERS in tags else []
    directory = Image.Exif()
    directory.endian, directory.bigtiff = ("<" if data[:2] == b"II" else ">"), data[2:4] in _BIGTIFF
    directory.load_from_fp(io.BytesIO(data), offset)
    kinds = {_SAMPLE_FORMATS.get(kind, "unknown ") for kind in _numbers(tags.get(_SAMPLE_FORMAT, 1))}
    return TiffPage(
        number=number,
        width=int(tags[TiffImagePlugin.IMAGEWIDTH]),
        height=int(tags[TiffImagePlugin.IMAGELENGTH]),
        bits=max(bits),
        sample_kind=max(kinds),
        photometric=photometric,
        num_colours=num_colours,
        alpha_band=alpha[0] if alpha else None,
        further_bands=further,
        is_premultiplied=_PREMULTIPLIED in extra,
        is_reduced=is_reduced,
        is_complete=_is_complete(tags, len(data)),
        orientation=int(tags.get(_ORIENTATION, 1)),
        exif=exif.of_tiff(directory),
        icc_profile=_bytes(tags.get(TiffImagePlugin.ICCPROFILE)),
        xmp=_bytes(tags.get(_XMP)),
        iptc=_bytes(tags.get(_IPTC)),
        resolution=_resolution(tags),
        is_raw=photometric in _CAMERA_COLOURS or _DNG_VERSION in tags or (is_reduced and _SUB_DIRECTORIES in tags),
        dropped=tuple(dropped),
    )


def _is_complete(tags: TiffImagePlugin.ImageFileDirectory_v2, num_bytes: int) -> bool:
    offsets = _numbers(tags.get(TiffImagePlugin.STRIPOFFSETS, tags.get(TiffImagePlugin.TILEOFFSETS, ())))
    counts = _numbers(tags.get(TiffImagePlugin.STRIPBYTECOUNTS, tags.get(TiffImagePlugin.TILEBYTECOUNTS, ())))
    if not counts and len(offsets) == 1:  # optional where nothing is compressed
        samples = int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)) * max(
            _numbers(tags.get(TiffImagePlugin.BITSPERSAMPLE, 1))
        )
        counts = (math.ceil(tags[TiffImagePlugin.IMAGEWIDTH] * samples / 8) * tags[TiffImagePlugin.IMAGELENGTH],)
    return bool(offsets) and all(start + count <= num_bytes for start, count in zip(offsets, counts, strict=False))


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


def _bytes(value: Any) -> bytes | None:
    if isinstance(value, bytes):
        return value
    return bytes(value) if isinstance(value, tuple) and all(0 <= item < 256 for item in value) else None
