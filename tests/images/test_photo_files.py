"""Files as cameras, scanners and converters write them: true pixels or a refusal, metadata kept or named."""

import contextlib
import io
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import photo_files
import pillow_heif
import pytest
import pyvips
import tifffile
from photo_files import LONG, RATIONAL, SHORT, encoded, jpeg, jpeg_segment, page, png, png_chunk, tiff
from PIL import Image

from dgunet.images import Photo, UnreadableImage, dimensions, read_photo, write_photo
from dgunet.images.encode import encode
from dgunet.images.exif import up_to_date

HEIGHT, WIDTH = 40, 56
RANDOM = np.random.default_rng(0)
DEEP = RANDOM.integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
EIGHT = (DEEP >> 8).astype(np.uint8)
SMOOTH = np.stack([*np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), np.full((HEIGHT, WIDTH), 99)], 2).astype(np.uint8)
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6" exif:PixelXDimension="9">%s</rdf:Description></x:xmpmeta>'
SRGB_PROFILE = bytes(16) + b"RGB " + bytes(108)


def planes(samples: np.ndarray, order: str) -> list[bytes]:
    return [samples[..., index].astype(f"{order}u{samples.itemsize}").tobytes() for index in range(samples.shape[2])]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("samples", [EIGHT, DEEP])
def test_planes_one_after_the_other_are_read(samples, order):
    bits = 8 * samples.itemsize
    data = tiff([(page(WIDTH, HEIGHT, bits, 3, 2, t284=(SHORT, [2])), planes(samples, order))], order)
    np.testing.assert_array_equal(read_photo(data).pixels, samples)


@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 14, 16])
def test_gray_of_every_depth_is_a_ramp_from_black_to_white(bits, white_is_zero):
    ramp = np.tile(np.linspace(0, 2**bits - 1, WIDTH).astype(np.int64), (HEIGHT, 1))
    strip = ramp.astype("<u2").tobytes() if bits == 16 else photo_files.packed(ramp, bits)
    pixels = read_photo(tiff([(page(WIDTH, HEIGHT, bits, 1, 0 if white_is_zero else 1), [strip])])).pixels[..., 0]
    white = np.iinfo(pixels.dtype).max
    assert white == (255 if bits <= 8 else 65535)
    expected = (2**bits - 1 - ramp if white_is_zero else ramp) / (2**bits - 1) * white
    np.testing.assert_allclose(pixels, expected, atol=0.5)


def test_twelve_bit_colour_is_read():
    samples = RANDOM.integers(0, 4096, (HEIGHT, WIDTH, 3))
    pixels = read_photo(tiff([(page(WIDTH, HEIGHT, 12, 3, 2), [photo_files.packed(samples, 12)])])).pixels
    np.testing.assert_allclose(pixels, samples / 4095 * 65535, atol=0.5)


def test_an_unusual_depth_without_the_package_that_reads_it_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr("dgunet.images.decode_tiff.find_spec", lambda name: None)
    strip = photo_files.packed(np.zeros((HEIGHT, WIDTH), np.int64), 12)
    with pytest.raises(UnreadableImage, match=r"12 bits per sample.*dgunet\[photos\]"):
        read_photo(tiff([(page(WIDTH, HEIGHT, 12, 1, 1), [strip])]))


@pytest.mark.parametrize(
    "options", [{"compression": "zstd"}, {"compression": "lzma"}, {"tile": (16, 16), "planarconfig": "separate"}]
)
def test_what_libvips_does_not_read_of_a_tiff_is_read_or_refused_by_its_name(options, monkeypatch):
    buffer = io.BytesIO()
    samples = DEEP.transpose(2, 0, 1) if "planarconfig" in options else DEEP
    tifffile.imwrite(buffer, samples, photometric="rgb", **options)
    np.testing.assert_array_equal(read_photo(buffer.getvalue()).pixels, DEEP)
    monkeypatch.setattr("dgunet.images.decode_tiff.find_spec", lambda name: None)
    with pytest.raises(UnreadableImage, match=r"a TIFF (compressed with (Zstandard|LZMA)|in tiles of separate planes)"):
        read_photo(buffer.getvalue())


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
@pytest.mark.parametrize("samples", [EIGHT, DEEP, DEEP[..., :1]])
def test_tiles_are_read(samples, compression, byteorder):
    buffer = io.BytesIO()
    kind = "rgb" if samples.shape[2] == 3 else "minisblack"
    options = {"tile": (16, 32), "compression": compression, "predictor": compression is not None}
    tifffile.imwrite(buffer, samples.squeeze(), photometric=kind, byteorder=byteorder, **options)
    np.testing.assert_array_equal(read_photo(buffer.getvalue()).pixels, samples)


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("compression", ["lzw", "deflate"])
def test_damage_inside_compressed_strips_and_tiles_is_refused(compression, tile):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, SMOOTH, photometric="rgb", compression=compression, tile=tile)
    data = bytearray(buffer.getvalue())
    start = tifffile.TiffFile(io.BytesIO(data)).pages[0].dataoffsets[-1]
    data[start : start + 20] = b"\xff" * 20
    with pytest.raises(UnreadableImage, match="damaged"):
        read_photo(bytes(data))


@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_a_truncated_tiff_is_refused_in_strips_and_in_tiles(tile):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, EIGHT, photometric="rgb", tile=tile)
    with pytest.raises(UnreadableImage, match="truncated"):
        read_photo(buffer.getvalue()[:-100])


@pytest.mark.parametrize(("kind", "bits"), [("signed", 16), ("floating-point", 16), ("floating-point", 32), ("", 32)])
def test_samples_that_are_no_photograph_are_refused_by_their_name(kind, bits):
    sample_format = {"signed": 2, "floating-point": 3, "": 1}[kind]
    tags = page(WIDTH, HEIGHT, bits, 1, 1, t339=(SHORT, [sample_format]))
    with pytest.raises(UnreadableImage, match=f"{kind}.*{bits} bits"):
        read_photo(tiff([(tags, [bytes(HEIGHT * WIDTH * bits // 8)])]))


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({258: (SHORT, [5, 6, 5])}, "different depths"),
        ({262: (SHORT, [32845])}, "colours of kind 32845"),
        ({258: (SHORT, [16] * 3), 262: (SHORT, [8])}, "Lab colours of 16 bits"),
    ],
)
def test_colours_of_unknown_kinds_are_refused_by_their_name(tags, message):
    with pytest.raises(UnreadableImage, match=message):
        read_photo(tiff([(page(WIDTH, HEIGHT, 8, 3, 2) | tags, [bytes(HEIGHT * WIDTH * 6)])]))


@pytest.mark.parametrize("extra_samples", [[0], None])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_fourth_channel_that_is_no_alpha_does_not_make_the_picture_transparent(extra_samples, dtype):
    samples = RANDOM.integers(0, np.iinfo(dtype).max, (HEIGHT, WIDTH, 4)).astype(dtype)
    more = {"t338": (SHORT, extra_samples)} if extra_samples else {}
    photo = read_photo(tiff([(page(WIDTH, HEIGHT, 8 * samples.itemsize, 4, 2, **more), [samples.tobytes()])]))
    np.testing.assert_array_equal(photo.pixels, samples[..., :3])
    assert photo.alpha is None
    assert photo.dropped == ("1 further channel (not transparency)",)


def test_alpha_is_found_among_further_channels():
    samples = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 5), dtype=np.uint8)
    photo = read_photo(tiff([(page(WIDTH, HEIGHT, 8, 5, 2, t338=(SHORT, [0, 2])), [samples.tobytes()])]))
    np.testing.assert_array_equal(photo.pixels, samples[..., :3])
    np.testing.assert_array_equal(photo.alpha, samples[..., 4:])
    gray = tiff([(page(WIDTH, HEIGHT, 8, 2, 1, t338=(SHORT, [2])), [samples[..., :2].tobytes()])])
    np.testing.assert_array_equal(read_photo(gray).alpha, samples[..., 1:2])


@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gray_and_alpha_in_separate_planes_are_read(dtype, white_is_zero):
    samples = RANDOM.integers(0, np.iinfo(dtype).max, (HEIGHT, WIDTH, 2)).astype(dtype)
    tags = page(WIDTH, HEIGHT, 8 * samples.itemsize, 2, 1 - white_is_zero, t338=(SHORT, [2]), t284=(SHORT, [2]))
    photo = read_photo(tiff([(tags, planes(samples, "<"))]))
    white = np.iinfo(dtype).max
    np.testing.assert_array_equal(photo.pixels, white - samples[..., :1] if white_is_zero else samples[..., :1])
    np.testing.assert_array_equal(photo.alpha, samples[..., 1:])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_of_several_samples_are_read(bits):
    samples = RANDOM.integers(0, 2**bits, (HEIGHT, WIDTH, 3))
    photo = read_photo(tiff([(page(WIDTH, HEIGHT, bits, 3, 2), [photo_files.packed(samples, bits)])]))
    np.testing.assert_array_equal(photo.pixels, samples * (255 // (2**bits - 1)))
    with_alpha = page(WIDTH, HEIGHT, bits, 2, 1, t338=(SHORT, [2]))
    photo = read_photo(tiff([(with_alpha, [photo_files.packed(samples[..., :2], bits)])]))
    np.testing.assert_array_equal(photo.pixels, samples[..., :1] * (255 // (2**bits - 1)))
    np.testing.assert_array_equal(photo.alpha, samples[..., 1:2] * (255 // (2**bits - 1)))


def test_alpha_is_not_turned_where_white_is_zero():
    samples = RANDOM.integers(0, 4096, (HEIGHT, WIDTH, 2))
    tags = page(WIDTH, HEIGHT, 12, 2, 0, t338=(SHORT, [2]))
    photo = read_photo(tiff([(tags, [photo_files.packed(samples, 12)])]))
    np.testing.assert_allclose(photo.pixels, 65535 - samples[..., :1] * 65535 / 4095, atol=1)
    np.testing.assert_allclose(photo.alpha, samples[..., 1:] * 65535 / 4095, atol=1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("compression", [1, 8])
def test_brightness_and_colour_differences_become_rgb(subsampling, compression, order):
    across, down = subsampling
    stored = np.asarray(Image.fromarray(SMOOTH).convert("YCbCr"))
    blocks = [
        stored[y : y + down, x : x + across, 0].tobytes() + stored[y, x, 1:].tobytes()
        for y in range(0, HEIGHT, down)
        for x in range(0, WIDTH, across)
    ]
    tags = page(WIDTH, HEIGHT, 8, 3, 6, t530=(SHORT, subsampling), t259=(SHORT, [compression]))
    strip = b"".join(blocks) if compression == 1 else zlib.compress(b"".join(blocks))
    pixels = read_photo(tiff([(tags, [strip])], order)).pixels
    assert np.abs(pixels.astype(int) - SMOOTH).max() <= 4


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"t532": (RATIONAL, [16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1])}, [0, 0, 0]),
        ({"t532": (RATIONAL, [16, 1, 16, 1, 128, 1, 128, 1, 128, 1, 128, 1])}, [16, 16, 16]),  # no range: not used
        ({"t532": (RATIONAL, [16, 1, 235, 1])}, [16, 16, 16]),
        ({"t529": (RATIONAL, [0, 0, 0, 0, 0, 0])}, [16, 16, 16]),
    ],
)
def test_black_and_white_of_colour_differences_are_those_of_the_file(more, expected):
    samples = np.broadcast_to(np.array([16, 128, 128], np.uint8), (HEIGHT, WIDTH, 3))
    photo = read_photo(tiff([(page(WIDTH, HEIGHT, 8, 3, 6, t530=(SHORT, [1, 1]), **more), [samples.tobytes()])]))
    assert photo.pixels[0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (page(WIDTH, HEIGHT, 8, 3, 6, t284=(SHORT, [2]), t530=(SHORT, [1, 1])), "YCbCr colours in separate planes"),
        (page(WIDTH, HEIGHT, 16, 3, 6, t530=(SHORT, [1, 1])), "YCbCr colours of.*other than 8 bits"),
        (page(WIDTH, HEIGHT, 8, 4, 6, t530=(SHORT, [1, 1])), "YCbCr colours of more than 3 samples"),
        (page(WIDTH, HEIGHT, 8, 3, 5, t332=(SHORT, [2])), "3 inks, not cyan"),
        (page(WIDTH, HEIGHT, 8, 6, 5, t332=(SHORT, [2])), "6 inks, not cyan"),
        (page(WIDTH, HEIGHT, 8, 1, 3), "numbered colours without the colours"),
        (page(WIDTH, HEIGHT, 8, 1, 2), "1 sample of each pixel cannot be a colour"),
        (page(WIDTH, HEIGHT, 8, 1, 8), "1 sample of each pixel cannot be a colour"),
    ],
)
def test_samples_that_are_no_colours_are_refused_by_their_name(tags, message):
    strips = [bytes(HEIGHT * WIDTH * 2)] * 3 if 284 in tags else [bytes(HEIGHT * WIDTH * 6)]
    with pytest.raises(UnreadableImage, match=message):
        read_photo(tiff([(tags, strips)]))


def test_samples_of_a_kind_that_is_not_said_are_whole_numbers():
    tags = page(WIDTH, HEIGHT, 8, 3, 2, t339=(SHORT, [4, 4, 4]))
    np.testing.assert_array_equal(read_photo(tiff([(tags, [EIGHT.tobytes()])])).pixels, EIGHT)


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize(("offsets", "counts"), [([8, 0], 2), ([8], 1)])
def test_strips_that_a_file_leaves_out_are_missing_pixels(bits, offsets, counts, capfd):
    length = WIDTH * bits // 8 * HEIGHT // 2
    more = {"t278": (LONG, [HEIGHT // 2]), "t273": (LONG, offsets), "t279": (LONG, [length, 0][:counts])}
    with pytest.raises(UnreadableImage, match="truncated"):
        read_photo(tiff([(page(WIDTH, HEIGHT, bits, 1, 1, **more), [bytes(length)])]))
    assert capfd.readouterr() == ("", "")


def test_tiles_that_a_file_leaves_out_are_missing_pixels():
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, EIGHT, photometric="rgb", tile=(16, 16), compression="zstd")
    data = bytearray(buffer.getvalue())
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        for name in ("TileOffsets", "TileByteCounts"):
            tag = file.pages[0].tags[name]
            struct.pack_into("<H" if tag.dtype == SHORT else "<I", data, tag.valueoffset, 0)
    with pytest.raises(UnreadableImage, match="truncated"):
        read_photo(bytes(data))


def test_damage_that_tifffile_finds_is_named_as_damage():
    strip = zlib.compress(photo_files.packed(RANDOM.integers(0, 4096, (HEIGHT, WIDTH)), 12))
    tags = page(WIDTH, HEIGHT, 12, 1, 1, t259=(SHORT, [8]))
    with pytest.raises(UnreadableImage, match="damaged or truncated"):
        read_photo(tiff([(tags, [strip[: len(strip) // 2] + bytes(len(strip) // 2)])]))


def test_sixteen_bit_cmyk_becomes_rgb():
    inks = np.stack([*(255 - SMOOTH).transpose(2, 0, 1), np.zeros((HEIGHT, WIDTH), np.uint8)], axis=2)
    eight = read_photo(tiff([(page(WIDTH, HEIGHT, 8, 4, 5), [inks.tobytes()])]))
    deep = read_photo(tiff([(page(WIDTH, HEIGHT, 16, 4, 5), [(inks.astype("<u2") * 257).tobytes()])]))
    np.testing.assert_array_equal(eight.pixels, deep.pixels)
    assert np.abs(eight.pixels.astype(int) - SMOOTH).max() <= 2


def test_bitmaps_of_sixteen_bits_are_read():
    body = np.full((64, 64), 0xF81F, "<u2").tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, 64, 64, 1, 16, 3, len(body), 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    data = b"BM" + struct.pack("<IHHI", 66 + len(body), 0, 0, 66) + header + masks + body
    assert read_photo(data).pixels[0, 0].tolist() == [255, 0, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_transparent_colour_of_a_sixteen_bit_png_becomes_alpha(channels):
    samples = DEEP[..., :channels]
    colour = struct.pack(f">{channels}H", *map(int, samples[3, 4]))
    photo = read_photo(png(samples, 16, 0 if channels == 1 else 2, png_chunk(b"tRNS", colour)))
    np.testing.assert_array_equal(photo.pixels, samples)
    np.testing.assert_array_equal(photo.alpha[..., 0] == 0, (samples == samples[3, 4]).all(2))
    assert set(np.unique(photo.alpha)) == {0, 65535}


@pytest.mark.parametrize(("colour_type", "channels"), [(4, 2), (6, 4)])
def test_sixteen_bit_png_with_alpha_round_trips(tmp_path, colour_type, channels):
    samples = RANDOM.integers(0, 65536, (HEIGHT, WIDTH, channels), dtype=np.uint16)
    write_photo(tmp_path / "a.png", read_photo(png(samples, 16, colour_type)))
    again = read_photo(tmp_path / "a.png")
    np.testing.assert_array_equal(np.concatenate([again.pixels, again.alpha], 2), samples)


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_avif_of_every_depth_is_read(bits):
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16)[None, :, None], (64, 1, 3))
    image = pyvips.Image.new_from_memory(ramp.data, 64, 64, 3, "ushort").copy(interpretation="rgb16")
    pixels = read_photo(image.heifsave_buffer(compression="av1", bitdepth=bits, lossless=True)).pixels
    white = np.iinfo(pixels.dtype).max
    assert white == (255 if bits == 8 else 65535)
    assert pixels.min() == 0
    assert pixels.max() == white
    np.testing.assert_allclose(pixels / white, ramp / 65535, atol=1.01 / (2**bits - 1))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("file_format", ["AVIF", "HEIF"])
def test_avif_and_heic_are_turned_once(file_format, orientation):
    expected = SMOOTH[..., [2, 1, 0]].repeat(2, 0).repeat(2, 1)
    upright = Image.fromarray(expected)
    turned = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = upright.transpose(turned[orientation]) if turned[orientation] else upright
    exif = Image.Exif()
    exif[274] = orientation
    if file_format == "AVIF":
        data = encoded(stored, "AVIF", quality=100, subsampling="4:4:4", exif=exif)
    else:
        buffer = io.BytesIO()
        heif = pillow_heif.from_pillow(stored)
        heif.info["exif"] = exif.tobytes()
        heif.save(buffer, quality=100, chroma=444)
        data = buffer.getvalue()
    with Image.open(io.BytesIO(data)) if file_format == "AVIF" else pillow_heif.open_heif(data).to_pillow() as seen:
        shown = np.asarray(seen if file_format == "HEIF" else _upright(seen))
    photo = read_photo(data)
    assert photo.pixels.shape == shown.shape
    assert np.abs(photo.pixels.astype(int) - shown).max() <= 6
    assert dimensions(data) == photo.pixels.shape[:2]
    assert photo.format == file_format


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def test_heic_without_the_package_that_reads_it_is_refused_with_the_remedy(monkeypatch):
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(SMOOTH)).save(buffer)
    assert np.abs(read_photo(buffer.getvalue()).pixels.astype(int) - SMOOTH).max() < 30
    monkeypatch.setattr("dgunet.images.decode.HAS_HEIC", False)
    with pytest.raises(UnreadableImage, match=r"HEIC.*dgunet\[photos\]"):
        read_photo(buffer.getvalue())


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"GIF89a", "a GIF"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\0\0\0\x0cJXL \r\n", "JPEG XL"),
        (b"II*\0\x10\0\0\0CR\x02\0", "raw photograph"),
        (b"\0\0\0\x18ftypisom", "a film"),
        (b"%PDF-1.7", "a PDF"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"II\xbc\1", "JPEG XR"),
        (b"\xff\xd8\xff\xf7\0\x0b\x08", "JPEG-LS"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b"", "an empty file"),
        (b"hello", "not a PNG, JPEG"),
    ],
)
def test_other_formats_are_refused_by_their_name(start, message):
    with pytest.raises(UnreadableImage, match=message):
        read_photo(start + bytes(64) if start else b"")


def test_large_text_and_profiles_of_a_png_cost_no_pixels():
    text = png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"{" + b"node " * 400_000))
    profile = SRGB_PROFILE + RANDOM.bytes(9_000_000)
    colour = png_chunk(b"iCCP", b"large\0\0" + zlib.compress(profile))
    photo = read_photo(png(EIGHT, 8, 2, colour, after=[text]))
    np.testing.assert_array_equal(photo.pixels, EIGHT)
    assert photo.icc_profile == profile
    again, dropped = encode(photo, "PNG")
    assert text in again
    assert not dropped
    assert read_photo(again).icc_profile == profile


def test_colour_and_text_of_a_png_are_kept_in_a_png_and_named_elsewhere():
    kept = [png_chunk(b"gAMA", struct.pack(">I", 100_000)), png_chunk(b"tEXt", b"Title\0harbour")]
    photo = read_photo(png(EIGHT, 8, 2, *kept, png_chunk(b"tIME", bytes(7))))
    data, dropped = encode(photo, "PNG")
    assert all(chunk in data for chunk in kept)
    assert not dropped
    assert encode(photo, "TIFF")[1] == ("text and colour chunks of the PNG",)


@pytest.mark.parametrize(("tag", "value"), [(274, 0), (274, 9), (296, 0)])
def test_wrong_metadata_of_a_tiff_costs_no_pixels(tag, value):
    data = tiff([(page(WIDTH, HEIGHT, 8, 3, 2) | {tag: (SHORT, [value])}, [EIGHT.tobytes()])])
    np.testing.assert_array_equal(read_photo(data).pixels, EIGHT)


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0zz"),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0"),
        png_chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
        png_chunk(b"iCCP", b"name\0\0zz"),
        png_chunk(b"pHYs", b"short"),
        png_chunk(b"tEXt", b"Raw profile type exif\0\nzz"),
        png_chunk(b"zTXt", b"Raw profile type exif\0zz"),
        png_chunk(b"tEXt", b"Title\0a")[:-1] + b"?",
    ],
)
def test_damaged_metadata_of_a_png_costs_no_pixels(chunk):
    np.testing.assert_array_equal(read_photo(png(EIGHT, 8, 2, chunk)).pixels, EIGHT)


@pytest.mark.parametrize(
    ("marker", "content"),
    [
        (0xE0, b"JFIF\0"),
        (0xE1, b"Exif\0\0junk"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"ICC_PROFILE\0\2\3part"),
        (0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
        (0xE5, b"\x80\x81"),
        (0xED, b"Photoshop 3.0\x008BIM\4\4\xff"),
    ],
)
def test_damaged_metadata_of_a_jpeg_costs_no_pixels(marker, content):
    data = jpeg(SMOOTH, jpeg_segment(marker, content))
    np.testing.assert_array_equal(read_photo(data).pixels, read_photo(jpeg(SMOOTH)).pixels)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF", "BMP"])
@pytest.mark.parametrize("junk", [b"junk", b"II*\0\xff\xff\xff\xff", photo_files.exif()[:40]])
def test_damaged_exif_does_not_keep_a_photo_from_being_written(file_format, junk):
    data, dropped = encode(Photo(SMOOTH, exif=junk), file_format)
    again = read_photo(data)
    assert again.pixels.shape == SMOOTH.shape
    assert again.exif == junk or "EXIF" in dropped[0]


def raw_profile(name: bytes, content: bytes) -> bytes:
    digits = b"\n%s\n%8d\n%s\n" % (name, len(content), content.hex().encode())
    return png_chunk(b"zTXt", b"Raw profile type " + name + b"\0\0" + zlib.compress(digits))


def test_profile_xmp_and_captions_of_imagemagick_are_read():
    packet, record = XMP % b"", b"\x1c\x02\x78\x00\x07harbour"
    resource = b"8BIM\4\4\0\0" + struct.pack(">I", len(record)) + record
    chunks = [raw_profile(b"icc", SRGB_PROFILE), raw_profile(b"xmp", packet)]
    for captions in (raw_profile(b"8bim", resource), raw_profile(b"iptc", record), raw_profile(b"iptc", resource)):
        photo = read_photo(png(EIGHT, 8, 2, *chunks, captions))
        assert photo.icc_profile == SRGB_PROFILE
        assert photo.iptc == record
        assert photo.xmp is not None
        assert b'tiff:Orientation="1"' in photo.xmp


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"tEXt", b"XML:com.adobe.xmp\0" + XMP % b""),
        png_chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(XMP % b"")),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP % b"")),
    ],
)
def test_xmp_in_any_text_of_a_png_stays_true(chunk):
    photo = read_photo(png(EIGHT, 8, 2, chunk))
    data, _ = encode(photo, "PNG")
    assert data.count(b"com.adobe.xmp") == 1
    assert b'tiff:Orientation="1"' in (read_photo(data).xmp or b"")


def test_metadata_of_imagemagick_is_read():
    raw = b"Exif\0\0" + photo_files.exif(6)
    digits = b"\nexif\n%8d\n%s\n" % (len(raw), raw.hex().encode())
    photo = read_photo(png(EIGHT, 8, 2, png_chunk(b"tEXt", b"Raw profile type exif\0" + digits)))
    assert photo.pixels.shape == (WIDTH, HEIGHT, 3)
    assert photo.exif == up_to_date(raw[6:], WIDTH, HEIGHT)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_an_avif_of_more_than_8_bits_stays_one(channels, has_alpha):
    ramp = np.linspace(0, 65535, 48 * 64).astype(np.uint16).reshape(48, 64, 1)
    pixels = np.repeat(ramp, channels, axis=2)
    alpha = ramp[::-1].copy() if has_alpha else None
    metadata = {"exif": photo_files.exif(), "xmp": XMP % b"", "icc_profile": None}
    photo = Photo(pixels, alpha, format="AVIF", **metadata)
    data, dropped = encode(photo, "AVIF")
    again = read_photo(data)
    assert not dropped
    assert again.pixels.dtype == np.uint16
    assert again.pixels.shape == (48, 64, 3)  # libvips reads gray as three equal channels
    assert np.abs(again.pixels.astype(int) - pixels).max() < 5 * 16
    assert has_alpha == (again.alpha is not None)
    assert again.exif is not None and again.xmp is not None
    assert encode(replace(photo, format="PNG"), "AVIF")[1] == ("bits below the highest 12 (AVIF holds 12)",)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "BMP"])
@pytest.mark.parametrize("dpi", [72, 300, 2400])
def test_the_resolution_is_kept(file_format, dpi):
    photo = read_photo(encoded(Image.fromarray(SMOOTH), file_format, dpi=(dpi, dpi)))
    assert photo.resolution == pytest.approx((dpi, dpi), rel=2e-4)
    data, _ = encode(photo, file_format)
    with Image.open(io.BytesIO(data)) as written:
        assert [float(value) for value in written.info["dpi"]] == pytest.approx([dpi, dpi], rel=2e-4)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "BMP"])
def test_no_resolution_is_invented(file_format):
    data, _ = encode(Photo(SMOOTH), file_format)
    assert read_photo(data).resolution is None
    assert "dpi" not in Image.open(io.BytesIO(data)).info or file_format == "TIFF"


def raw_exif_resolution(x: int, y: int, unit: int) -> bytes:
    entries = {282: (RATIONAL, [x, 1]), 283: (RATIONAL, [y, 1]), 296: (SHORT, [unit])}
    return b"II*\0" + struct.pack("<I", 8) + photo_files.directory(entries, 8)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "BMP"])
def test_the_resolution_that_exif_alone_says_is_kept(file_format):
    data = jpeg(SMOOTH, jpeg_segment(0xE1, b"Exif\0\0" + raw_exif_resolution(300, 150, 2)))
    photo = read_photo(data)  # Pillow writes a JFIF segment without a unit, as cameras write none
    assert photo.resolution == (300, 150)
    written = read_photo(encode(photo, file_format)[0])
    assert written.resolution == pytest.approx((300, 150), rel=2e-4)
    assert encode(photo, "WEBP")[1] == ()
    assert encode(replace(photo, exif=None), "WEBP")[1] == ("resolution (WEBP does not hold it)",)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (raw_exif_resolution(100, 200, 3), (254, 508)),
        (raw_exif_resolution(300, 300, 1), None),
        (raw_exif_resolution(0, 300, 2), None),
        (raw_exif_resolution(300, 300, 2)[:-2], None),
        (raw_exif_resolution(300, 300, 2)[:12], None),
        (photo_files.exif(), None),
    ],
)
def test_a_resolution_in_exif_that_has_no_meaning_is_none(raw, expected):
    assert read_photo(png(EIGHT, 8, 2, png_chunk(b"eXIf", raw))).resolution == expected


@pytest.mark.parametrize(
    "data",
    [
        png(EIGHT, 8, 2, png_chunk(b"pHYs", struct.pack(">IIB", 2, 1, 0))),
        jpeg(SMOOTH).replace(b"JFIF\0\1\1\0\0\1\0\1", b"JFIF\0\1\1\0\0\2\0\1"),
        tiff([(page(WIDTH, HEIGHT, 8, 1, 1, t282=(RATIONAL, [2, 1]), t283=(RATIONAL, [1, 1]), t296=(SHORT, [1])),
               [EIGHT[..., 0].tobytes()])]),
    ],
)  # fmt: skip
def test_pixels_that_are_not_square_are_named(data):
    assert read_photo(data).dropped == ("the ratio of the sides of a pixel",)


def test_chunks_of_a_png_that_are_not_kept_are_named():
    chunks = [png_chunk(kind, bytes(9)) for kind in (b"caBX", b"oFFs", b"sBIT", b"caBX", b"iDOT")]
    assert read_photo(png(EIGHT, 8, 2, *chunks)).dropped == ("the chunk caBX of the PNG", "the chunk oFFs of the PNG")
    damaged = read_photo(png(EIGHT, 8, 2, png_chunk(b"iCCP", b"name\0\0zz")))
    assert damaged.dropped == ("damaged colour profile",)


def test_resolution_per_centimetre_is_converted():
    tags = page(WIDTH, HEIGHT, 8, 3, 2, t282=(RATIONAL, [100, 1]), t283=(RATIONAL, [200, 1]), t296=(SHORT, [3]))
    assert read_photo(tiff([(tags, [EIGHT.tobytes()])])).resolution == (254, 508)
    tags[296] = (SHORT, [1])  # no unit: only the ratio of the sides of a pixel
    assert read_photo(tiff([(tags, [EIGHT.tobytes()])])).resolution is None
    tags[282] = (RATIONAL, [300, 0])
    assert read_photo(tiff([(tags, [EIGHT.tobytes()])])).resolution is None


@pytest.mark.parametrize("in_the_middle", [False, True])
def test_the_embedded_thumbnail_is_removed_and_sizes_are_set(tmp_path, in_the_middle):
    thumbnail = encoded(Image.new("RGB", (16, 12), "red"), "JPEG")
    raw = photo_files.exif(6, thumbnail=thumbnail, size=(WIDTH, HEIGHT), maker_note=b"note of the maker")
    raw += b"more" if in_the_middle else b""
    photo = read_photo(jpeg(SMOOTH, exif=b"Exif\0\0" + raw))
    assert "embedded thumbnail" in photo.dropped
    write_photo(tmp_path / "a.jpg", photo)
    with Image.open(tmp_path / "a.jpg") as written:
        exif = written.getexif()
        assert exif.get_ifd(1) == {}
        assert (exif.get_ifd(0x8769)[0xA002], exif.get_ifd(0x8769)[0xA003]) == written.size == (HEIGHT, WIDTH)
        assert exif.get_ifd(0x8769)[0x927C] == b"note of the maker"
        assert exif[274] == 1
        assert thumbnail not in written.info["exif"]
        assert written.info["exif"].endswith(b"more") == in_the_middle
    assert read_photo(tmp_path / "a.jpg").dropped == ()


def test_exif_that_is_too_large_for_a_jpeg_loses_its_maker_notes_alone(tmp_path):
    photo = Photo(SMOOTH, exif=photo_files.exif(maker_note=RANDOM.bytes(80_000), size=(WIDTH, HEIGHT)))
    (phrase,) = write_photo(tmp_path / "a.jpg", photo)
    assert "maker notes" in phrase
    with Image.open(tmp_path / "a.jpg") as written:
        assert written.getexif()[271] == "Camera"
        assert written.getexif().get_ifd(0x8769)[0xA002] == WIDTH
    assert write_photo(tmp_path / "a.png", photo) == ()
    assert read_photo(tmp_path / "a.png").exif == photo.exif


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF"])
def test_xmp_is_kept_and_stays_true(file_format):
    packet = XMP % b"<xmp:Thumbnails><rdf:Alt>stale</rdf:Alt></xmp:Thumbnails><dc:title>harbour</dc:title>"
    photo = read_photo(jpeg(SMOOTH, jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet)))
    data, dropped = encode(photo, file_format)
    assert not dropped
    kept = read_photo(data).xmp
    assert kept == XMP.replace(b'"6"', b'"1"').replace(b'"9"', b'"%d"' % WIDTH) % b"<dc:title>harbour</dc:title>"


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_captions_are_kept(file_format):
    record = b"\x1c\x02\x78\x00\x07harbour"
    resource = (
        b"8BIM\x04\x0c\0\0" + struct.pack(">I", 4) + b"mini" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(record))
    )
    photo = read_photo(jpeg(SMOOTH, jpeg_segment(0xED, b"Photoshop 3.0\0" + resource + record)))
    assert photo.iptc == record
    data, dropped = encode(photo, file_format)
    assert not dropped
    assert b"mini" not in data  # a thumbnail
    assert read_photo(data).iptc == record
    assert encode(photo, "PNG")[1] == ("IPTC (PNG does not hold it)",)


def test_further_tags_of_a_tiff_are_named_and_captions_of_photoshop_found():
    record = b"\x1c\x02\x78\x00\x07harbour"
    resources = b"8BIM\4\4\0\0" + struct.pack(">I", len(record)) + record
    more = {"t33550": (LONG, [1]), "t34735": (SHORT, [1, 1]), "t65000": (LONG, [1]), "t34377": (7, resources)}
    photo = read_photo(tiff([(page(WIDTH, HEIGHT, 8, 3, 2, **more), [EIGHT.tobytes()])]))
    assert photo.iptc == record
    assert photo.dropped == ("further tags of the TIFF: GeoTIFF, 65000",)
    for order in ("<", ">"):  # Photoshop writes the record as numbers of four bytes
        tags = page(WIDTH, HEIGHT, 8, 3, 2, t33723=(LONG, list(struct.unpack(f"{order}3I", record))))
        assert read_photo(tiff([(tags, [EIGHT.tobytes()])], order)).iptc == record
    path = resources + b"8BIM\x07\xd0\0\0" + struct.pack(">I", 4) + b"path"
    photo = read_photo(tiff([(page(WIDTH, HEIGHT, 8, 3, 2, t34377=(7, path)), [EIGHT.tobytes()])]))
    assert photo.dropped == ("Photoshop's own data (such as paths)",)


@pytest.mark.parametrize("file_format", ["TIFF", "JPEG", "PNG", "WEBP"])
def test_titles_ratings_and_names_of_windows_and_scanners_are_kept(file_format):
    fields = {269: "pass 3", 316: "desk", 18246: 4, 40091: "Häfen\0".encode("utf-16le")}
    described = Image.Exif()
    described.update(fields)
    tiff_data, dropped = encode(read_photo(jpeg(SMOOTH, exif=described)), "TIFF")
    assert not dropped
    data, _ = encode(read_photo(tiff_data), file_format)
    with Image.open(io.BytesIO(data)) as written:
        assert {tag: written.getexif()[tag] for tag in fields} == fields


def test_what_a_bitmap_cannot_hold_is_named():
    photo = Photo(SMOOTH, exif=photo_files.exif(), icc_profile=SRGB_PROFILE, xmp=b"<x/>")
    assert [phrase.split(" (")[0] for phrase in encode(photo, "BMP")[1]] == ["EXIF", "XMP", "colour profile"]


def test_a_gain_map_is_named_and_the_file_does_not_point_to_it():
    packet = XMP % b"<Container:Directory><li Item:Semantic='GainMap'/></Container:Directory>"
    packet = packet.replace(b"<rdf:Description", b'<rdf:Description hdrgm:Version="1.0"')
    main = jpeg(SMOOTH, jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet))
    data = photo_files.multi_picture([main, jpeg(SMOOTH[::2, ::2, 0])], [0x030000, 0])
    photo = read_photo(data)
    assert photo.dropped == ("gain map",)
    assert photo.pixels.shape == SMOOTH.shape
    written, _ = encode(photo, "JPEG")
    assert b"hdrgm" not in written
    assert b"Container:Directory" not in written


@pytest.mark.parametrize(
    "sign",
    [
        jpeg_segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<rdf:Description hdrgm:Version="1.0"/>'),
        jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<a>urn:com:apple:photo:2020:aux:hdrgainmap</a>"),
        jpeg_segment(0xE2, b"urn:iso:std:iso:ts:21496:-1\0\0\0\0\0"),
    ],
)
def test_a_gain_map_as_large_as_the_photograph_is_no_second_photograph(sign):
    data = photo_files.multi_picture([jpeg(SMOOTH, *[sign] * (b"iso:ts" in sign)), jpeg(SMOOTH, sign)], [0x030000, 0])
    assert read_photo(data).dropped == ("gain map",)


def test_segments_of_a_jpeg_that_are_not_kept_are_named():
    path = b"8BIM\x07\xd0\0\0" + struct.pack(">I", 4) + b"path"
    thumbnail = jpeg(SMOOTH).replace(b"JFIF\0\1\1\0\0\1\0\1\0\0", b"JFIF\0\1\1\0\0\1\0\1\1\1")
    part = SRGB_PROFILE + bytes(100)
    for data, expected in (
        (jpeg(SMOOTH, jpeg_segment(0xE0, b"JFXX\0\x10abc")), "embedded thumbnail"),
        (thumbnail, "embedded thumbnail"),
        (jpeg(SMOOTH, jpeg_segment(0xED, b"Photoshop 3.0\0" + path)), "Photoshop's own data (such as paths)"),
        (jpeg(SMOOTH, jpeg_segment(0xEF, b"X\0")), "the camera's own data (X)"),
        (jpeg(SMOOTH, jpeg_segment(0xFE, b"one"), jpeg_segment(0xFE, b"two")), "further comments"),
        (jpeg(SMOOTH, jpeg_segment(0xE2, b"ICC_PROFILE\0\1\2" + part)), "damaged colour profile"),
    ):
        photo = read_photo(data)
        assert photo.dropped == (expected,)
        assert photo.icc_profile is None


def test_exif_and_captions_go_on_in_further_segments():
    raw = photo_files.exif(6, maker_note=RANDOM.bytes(80_000))
    record = b"\x1c\x02\x78\x00\x07harbour"
    resources = b"8BIM\x04\x0c\0\0" + struct.pack(">I", 4) + b"mini"
    resources += b"8BIM\4\4\0\0" + struct.pack(">I", len(record)) + record
    photo = read_photo(
        jpeg(
            SMOOTH,
            *[jpeg_segment(0xE1, b"Exif\0\0" + part) for part in (raw[:65_000], raw[65_000:])],
            *[jpeg_segment(0xED, b"Photoshop 3.0\0" + part) for part in (resources[:16], resources[16:])],
        )
    )
    assert photo.exif == up_to_date(raw, WIDTH, HEIGHT)
    assert photo.iptc == record


@pytest.mark.parametrize("ends_in_the_middle", [False, True])
def test_pixels_that_a_jpeg_lacks_though_it_ends_are_missed(ends_in_the_middle):
    data = bytearray(jpeg(EIGHT))
    if ends_in_the_middle:
        data[len(data) // 2 :] = b"\xff\xd9"
    else:  # promises more rows
        struct.pack_into(">H", data, data.index(b"\xff\xc0") + 5, 2 * HEIGHT)
    with pytest.raises(UnreadableImage, match="damaged or truncated"):
        read_photo(bytes(data))


def test_bytes_between_the_segments_of_a_jpeg_are_harmless():
    data = jpeg(SMOOTH)
    end = data.rindex(b"\xff\xd9")
    pixels = read_photo(data[:end] + b"\0\0\0\0" + data[end:]).pixels
    np.testing.assert_array_equal(pixels, read_photo(data).pixels)


def test_a_video_after_the_picture_is_named():
    photo = read_photo(jpeg(SMOOTH) + RANDOM.bytes(5000))
    assert photo.dropped == ("5 kB after the picture (video, gain map or depth map)",)


def test_several_photographs_in_a_jpeg_are_refused_unless_one_is_chosen():
    second = SMOOTH[::-1].copy()
    data = photo_files.multi_picture([jpeg(SMOOTH), jpeg(second)], [0x020002, 0x020002])
    with pytest.raises(UnreadableImage, match=r"holds 2 photographs.*--page 2"):
        read_photo(data)
    assert np.abs(read_photo(data, page=1).pixels.astype(int) - SMOOTH).max() < 9
    assert np.abs(read_photo(data, page=2).pixels.astype(int) - second).max() < 9
    with pytest.raises(UnreadableImage, match="no page 3; the file holds 2"):
        read_photo(data, page=3)


def test_pages_of_a_tiff_are_refused_unless_one_is_chosen():
    data = tiff([(page(WIDTH, HEIGHT, 8, 3, 2), [EIGHT.tobytes()]), (page(WIDTH, HEIGHT, 16, 1, 1), [bytes(4480)])])
    with pytest.raises(UnreadableImage, match=r"holds 2 pages.*--page 2.*56x40, 56x40"):
        read_photo(data)
    with pytest.raises(UnreadableImage, match="holds 2 pages"):
        dimensions(data)
    np.testing.assert_array_equal(read_photo(data, page=1).pixels, EIGHT)
    assert read_photo(data, page=2).pixels.dtype == np.uint16


@pytest.mark.parametrize("tag", [{"t254": (LONG, [1])}, {"t255": (SHORT, [2])}])
@pytest.mark.parametrize("thumbnail_first", [False, True])
def test_a_page_that_is_a_thumbnail_does_not_count(thumbnail_first, tag):
    small = (page(8, 6, 8, 3, 2, **tag), [bytes(8 * 6 * 3)])
    whole = (page(WIDTH, HEIGHT, 8, 3, 2), [EIGHT.tobytes()])
    photo = read_photo(tiff([small, whole] if thumbnail_first else [whole, small]))
    np.testing.assert_array_equal(photo.pixels, EIGHT)
    assert photo.dropped == ("1 smaller copy or mask",)


def test_a_raw_photograph_is_not_taken_for_its_thumbnail():
    tags = page(8, 6, 8, 3, 2, t254=(LONG, [1]), t330=(LONG, [0]))
    with pytest.raises(UnreadableImage, match=r"raw photograph.*raw converter"):
        read_photo(tiff([(tags, [bytes(8 * 6 * 3)])]))
    with pytest.raises(UnreadableImage, match="raw photograph"):
        read_photo(tiff([(page(WIDTH, HEIGHT, 16, 1, 32803), [bytes(4480)])]))


@pytest.mark.parametrize("file_format", ["WEBP", "PNG", "AVIF"])
def test_animations_are_refused_with_the_number_of_frames(file_format):
    frames = [Image.fromarray(frame) for frame in (SMOOTH, SMOOTH[::-1].copy(), SMOOTH[:, ::-1].copy())]
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
    with pytest.raises(UnreadableImage, match="3 frames"):
        read_photo(data)
    if file_format != "PNG":
        assert dimensions(data) == (HEIGHT, WIDTH)
        assert np.abs(read_photo(data, page=2).pixels.astype(int) - SMOOTH[::-1]).max() < 40
        with pytest.raises(UnreadableImage, match="no page 4; the file holds 3"):
            read_photo(data, page=4)


def test_the_profile_of_a_bitmap_is_named():
    data = encoded(Image.fromarray(SMOOTH), "BMP")
    header = struct.pack("<I", 124) + data[18:54] + bytes(16) + b"DEBM" + bytes(64)
    fifth = data[:10] + struct.pack("<I", 14 + len(header)) + header + data[54:]
    assert read_photo(fifth).dropped == ("colour profile of the BMP",)
    assert read_photo(data).dropped == ()


def test_a_chain_of_pages_that_leads_back_ends():
    data = bytearray(tiff([(page(WIDTH, HEIGHT, 8, 3, 2), [EIGHT.tobytes()])]))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", data, start + 2 + 12 * count, start)
    np.testing.assert_array_equal(read_photo(bytes(data)).pixels, EIGHT)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_a_tiff_whose_directory_comes_first_is_refused_when_truncated(share):
    start = len(tiff([(page(WIDTH, HEIGHT, 8, 3, 2), [b""])]))
    tags = page(WIDTH, HEIGHT, 8, 3, 2, t273=(LONG, [start]), t279=(LONG, [EIGHT.nbytes]))
    data = tiff([(tags, [])]) + EIGHT.tobytes()
    np.testing.assert_array_equal(read_photo(data).pixels, EIGHT)
    with pytest.raises(UnreadableImage, match="truncated"):
        read_photo(data[: start + int(EIGHT.nbytes * share)])


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "avif", "bmp"])
def test_nothing_is_printed_while_damaged_files_are_read(tmp_path, suffix, capfd):
    write_photo(tmp_path / f"a.{suffix}", Photo(RANDOM.integers(0, 256, (64, 48, 3), dtype=np.uint8)))
    data = bytearray((tmp_path / f"a.{suffix}").read_bytes())
    for share in (0.2, 0.5, 0.9):
        data[int(share * len(data)) :][:8] = b""
        data[int(share * len(data))] ^= 255
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with contextlib.suppress(UnreadableImage):
                read_photo(bytes(data))
    assert capfd.readouterr() == ("", "")


def test_names_of_255_bytes_are_written(tmp_path):
    name = "x" * 251 + ".png"
    write_photo(tmp_path / name, Photo(SMOOTH))
    assert [path.name for path in Path(tmp_path).iterdir()] == [name]
