"""Image files of every kind are read and written without loss of depth, alpha or metadata; damaged ones are refused."""

import errno
import io
import os
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
import torch
from factories import PROJECT
from PIL import Image, ImageCms, ImageOps

from dgunet.images import (
    Photo,
    UnreadableImage,
    dimensions,
    in_channels,
    quantise,
    read_image,
    read_photo,
    to_float,
    write_image,
    write_photo,
)
from dgunet.images.encode import encode
from dgunet.images.exif import up_to_date
from dgunet.tensors import to_array, to_tensor

HEIGHT, WIDTH = 20, 30
GRAY = bytes(16) + b"GRAY" + bytes(8)  # the part of a profile that is read
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def smooth(channels: int, dtype: type = np.uint8, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A ramp that differs between channels, and between the corners of each."""
    y, x = np.mgrid[0:height, 0:width] / (height + width)
    planes = [(x * (c + 1) + y * (4 - c)) / 5 for c in range(channels)]
    return quantise(np.stack(planes, axis=2).astype(np.float32), dtype)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def exif_of_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Camera"
    return exif


def photo(channels: int, dtype: type, has_alpha: bool, **metadata: object) -> Photo:
    planes = smooth(channels + has_alpha, dtype)
    return Photo(planes[..., :channels], planes[..., channels:] if has_alpha else None, **metadata)


def assert_equal(a: Photo, b: Photo) -> None:
    assert a.pixels.dtype == b.pixels.dtype
    np.testing.assert_array_equal(a.pixels, b.pixels)
    assert (a.alpha is None) == (b.alpha is None)
    if a.alpha is not None and b.alpha is not None:
        np.testing.assert_array_equal(a.alpha, b.alpha)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_in_channels_gives_full_range_gray_and_keeps_a_gray_image(dtype):
    colours = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (40, 50, 3), dtype, endpoint=True)
    colours[0, 0], colours[0, 1] = 0, np.iinfo(dtype).max
    gray = in_channels(colours, 1)
    assert (gray.dtype, gray.shape) == (dtype, (40, 50, 1))
    assert gray[0, :2, 0].tolist() == [0, np.iinfo(dtype).max]
    assert np.abs(gray - colours @ np.array([[0.299], [0.587], [0.114]])).max() < {1: 0.51, 2: 2}[gray.itemsize]
    assert in_channels(gray, 1) is gray
    np.testing.assert_array_equal(in_channels(gray, 3), np.repeat(gray, 3, axis=2))
    np.testing.assert_array_equal(gray[..., 0], cv2.cvtColor(colours[..., ::-1].copy(), cv2.COLOR_BGR2GRAY))


@pytest.mark.parametrize("has_alpha", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_round_trip(tmp_path, dtype, channels, has_alpha):
    profile = GRAY if channels == 1 else SRGB
    original = photo(channels, dtype, has_alpha, icc_profile=profile, exif=exif_of_orientation(1).tobytes()[6:])
    write_photo(tmp_path / "a.png", original)
    again = read_photo(tmp_path / "a.png")
    assert_equal(again, original)
    assert (again.format, again.icc_profile, again.exif) == ("PNG", original.icc_profile, original.exif)


@pytest.mark.parametrize(
    ("dtype", "channels", "has_alpha"),
    [
        *[(np.uint8, channels, has_alpha) for channels in (1, 3) for has_alpha in (0, 1)],
        *[(np.uint16, 1, 0), (np.uint16, 3, 0), (np.uint16, 3, 1)],  # Pillow refuses to read the fourth
    ],
)
def test_tiff_round_trip(tmp_path, dtype, channels, has_alpha):
    profile = GRAY if channels == 1 else SRGB
    original = photo(channels, dtype, bool(has_alpha), icc_profile=profile, exif=exif_of_orientation(1).tobytes()[6:])
    write_photo(tmp_path / "a.tif", original)
    again = read_photo(tmp_path / "a.tif")
    assert_equal(again, original)
    assert (again.format, again.icc_profile) == ("TIFF", profile)
    with Image.open(tmp_path / "a.tif") as written:
        assert written.getexif()[0x010F] == "Camera"
        assert written.tag_v2.get(338) == ((2,) if has_alpha else None)  # extra samples: alpha, not premultiplied


@pytest.mark.parametrize(("channels", "has_alpha"), [(1, False), (3, False), (3, True)])
def test_bmp_round_trip(tmp_path, channels, has_alpha):
    original = photo(channels, np.uint8, has_alpha)
    write_photo(tmp_path / "a.bmp", original)
    assert_equal(read_photo(tmp_path / "a.bmp"), original)
    without_file_header = (tmp_path / "a.bmp").read_bytes()[14:]  # a .dib
    assert_equal(read_photo(without_file_header), original)
    with pytest.raises(UnreadableImage, match="truncated"):
        read_photo(without_file_header[:-8])


@pytest.mark.parametrize(("suffix", "channels"), [("jpg", 1), ("jpeg", 3), ("webp", 3)])
def test_lossy_formats_keep_channels_profile_and_exif(tmp_path, suffix, channels):
    profile = GRAY if channels == 1 else SRGB
    original = photo(channels, np.uint8, False, icc_profile=profile, exif=exif_of_orientation(1).tobytes()[6:])
    write_photo(tmp_path / f"a.{suffix}", original)
    again = read_photo(tmp_path / f"a.{suffix}")
    assert again.pixels.shape == original.pixels.shape
    assert np.abs(again.pixels.astype(int) - original.pixels).max() <= 6
    assert (again.icc_profile, again.exif) == (original.icc_profile, original.exif)


def test_webp_keeps_alpha(tmp_path):
    original = photo(3, np.uint8, True)
    write_photo(tmp_path / "a.webp", original)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.webp").alpha, original.alpha)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_sixteen_bit_gray_tiffs_of_other_programs_are_read(compression):
    pixels = smooth(1, np.uint16)
    data = encoded(Image.fromarray(pixels[..., 0]), "TIFF", compression=compression)
    np.testing.assert_array_equal(read_photo(data).pixels, pixels)


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_of_tiff_are_read(order):
    pixels = smooth(1, np.uint16)
    tags = [(256, 3, WIDTH), (257, 3, HEIGHT), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 122), (277, 3, 1)]
    tags += [(278, 3, HEIGHT), (279, 4, pixels.nbytes)]
    data = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    for tag, kind, value in tags:
        data += struct.pack(f"{order}HHI", tag, kind, 1)
        data += struct.pack(f"{order}H2x" if kind == 3 else f"{order}I", value)
    data = data.ljust(122, b"\0") + pixels.astype(f"{order}u2").tobytes()
    np.testing.assert_array_equal(read_photo(data).pixels, pixels)


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(file_format):
    rgb = Image.fromarray(smooth(3))
    restored = read_photo(encoded(rgb.convert("CMYK"), file_format))
    assert restored.pixels.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(restored.pixels.astype(int) - np.asarray(rgb)).max() <= 8


def test_a_damaged_cmyk_profile_is_ignored_and_dropped():
    data = encoded(Image.fromarray(smooth(3)).convert("CMYK"), "JPEG", icc_profile=b"nonsense")
    restored = read_photo(data)
    assert restored.icc_profile is None
    assert np.abs(restored.pixels.astype(int) - smooth(3)).max() <= 8


def test_a_profile_that_does_not_fit_the_converted_pixels_is_dropped():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert read_photo(encoded(Image.fromarray(smooth(3)).convert("LAB"), "TIFF", icc_profile=lab)).icc_profile is None
    gray = Image.fromarray(smooth(1)[..., 0]).convert("P")
    assert read_photo(encoded(gray, "PNG", icc_profile=SRGB)).icc_profile is None
    colour = Image.fromarray(smooth(3)).convert("P")
    assert read_photo(encoded(colour, "PNG", icc_profile=SRGB)).icc_profile == SRGB


def test_palettes_become_gray_or_rgb_with_their_transparency():
    gray = Image.fromarray(smooth(1)[..., 0])
    assert_equal(read_photo(encoded(gray.convert("P"), "PNG")), Photo(smooth(1)))
    colour = Image.fromarray(smooth(3)).convert("P")
    assert_equal(read_photo(encoded(colour, "PNG")), Photo(np.asarray(colour.convert("RGB"))))
    index = int(np.asarray(colour)[0, 0])
    restored = read_photo(encoded(colour, "PNG", transparency=index))
    np.testing.assert_array_equal(restored.alpha[..., 0] == 0, np.asarray(colour) == index)
    restored = read_photo(encoded(gray.convert("P"), "PNG", transparency=0))
    assert restored.pixels.shape[2] == restored.alpha.shape[2] == 1


def test_a_transparent_colour_becomes_alpha():
    pixels = smooth(1)
    restored = read_photo(encoded(Image.fromarray(pixels[..., 0]), "PNG", transparency=int(pixels[5, 5, 0])))
    np.testing.assert_array_equal(restored.pixels, pixels)
    np.testing.assert_array_equal(restored.alpha == 0, pixels == pixels[5, 5])


def test_bilevel_images_become_gray():
    pixels = (smooth(1)[..., 0] > 100).astype(np.uint8) * 255
    restored = read_photo(encoded(Image.fromarray(pixels).convert("1"), "PNG"))
    np.testing.assert_array_equal(restored.pixels[..., 0], pixels)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_once_and_its_tag_reset(tmp_path, orientation, file_format):
    original = Image.fromarray(smooth(3))
    exif = exif_of_orientation(orientation)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(file_format, {})
    data = encoded(original, file_format, exif=exif, **options)
    upright = original.copy()
    upright.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(upright)).astype(int)
    restored = read_photo(data)
    assert np.abs(restored.pixels - expected).max() <= (4 if file_format == "JPEG" else 0)
    assert dimensions(data) == restored.pixels.shape[:2]
    path = tmp_path / f"a.{file_format.lower()}".replace("jpeg", "jpg")
    write_photo(path, restored)
    with Image.open(path) as written:
        assert written.size == (expected.shape[1], expected.shape[0])
        assert written.getexif().get(0x0112, 1) == 1
        assert written.getexif()[0x010F] == "Camera"


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_directories_of_exposure_and_position_are_kept(file_format):
    exif = exif_of_orientation(1)
    exif.get_ifd(0x8769)[0x8827] = 400  # ISO
    exif.get_ifd(0x8825)[1] = "N"
    original = read_photo(encoded(Image.fromarray(smooth(3)), "JPEG", exif=exif, quality=100))
    written, _ = encode(original, file_format)
    kept = Image.open(io.BytesIO(written)).getexif()
    assert kept.get_ifd(0x8769)[0x8827] == 400
    assert kept.get_ifd(0x8825)[1] == "N"
    assert np.abs(read_photo(written).pixels - original.pixels.astype(int)).max() <= (
        0 if file_format in ("PNG", "TIFF") else 20
    )


def test_a_sixteen_bit_tiff_with_zero_as_white_is_not_inverted():
    pixels = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH, 1) * 7
    data, _ = encode(Photo(65535 - pixels), "TIFF")
    entry = struct.pack("<HHIHH", 262, 3, 1, 1, 0)  # PhotometricInterpretation, a SHORT, one of them: black is zero
    assert data.count(entry) == 1
    white_is_zero = read_photo(data.replace(entry, struct.pack("<HHIHH", 262, 3, 1, 0, 0)))
    np.testing.assert_array_equal(white_is_zero.pixels, pixels)


def test_colours_multiplied_by_transparency_are_refused():
    pixels = np.full((HEIGHT, WIDTH, 1), 1000, np.uint16)
    data, _ = encode(Photo(np.repeat(pixels, 3, axis=2), alpha=pixels), "TIFF")
    entry = struct.pack("<HHIHH", 338, 3, 1, 2, 0)  # ExtraSamples: alpha, not multiplied
    assert data.count(entry) == 1
    with pytest.raises(UnreadableImage, match="multiplied by transparency"):
        read_photo(data.replace(entry, struct.pack("<HHIHH", 338, 3, 1, 1, 0)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sixteen_bit_images_are_oriented_as_eight_bit_ones(orientation):
    exif = exif_of_orientation(orientation)
    eight = read_photo(encoded(Image.fromarray(smooth(1)[..., 0]), "PNG", exif=exif))
    sixteen = read_photo(encoded(Image.fromarray(smooth(1)[..., 0].astype(np.uint16)), "PNG", exif=exif))
    np.testing.assert_array_equal(eight.pixels, sixteen.pixels)
    sixteen = read_photo(encoded(Image.fromarray(smooth(1)[..., 0].astype(np.uint16)), "TIFF", exif=exif))
    np.testing.assert_array_equal(eight.pixels, sixteen.pixels)


def test_exif_after_the_pixels_of_a_png_is_found():
    data = encoded(Image.fromarray(smooth(3)), "PNG")
    exif = exif_of_orientation(6).tobytes()[6:]
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    data, after_the_end = data[:-12] + chunk + data[-12:], data + chunk
    assert dimensions(data) == read_photo(data).pixels.shape[:2] == (WIDTH, HEIGHT)
    assert dimensions(after_the_end) == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "exif", [b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 9]
)
def test_damaged_exif_is_not_changed(exif):
    assert up_to_date(exif, HEIGHT, WIDTH) == exif


def test_setting_the_orientation_changes_one_byte_of_exif():
    exif = exif_of_orientation(6).tobytes()[6:] + b"maker note"
    changed = up_to_date(exif, HEIGHT, WIDTH)
    assert len([1 for a, b in zip(exif, changed, strict=True) if a != b]) == 1


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9])
def test_truncated_files_are_refused_with_path_and_reason(tmp_path, file_format, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), file_format)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UnreadableImage, match=r"cut\.img: .+"):
        read_photo(path)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_sixteen_bit_colour_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    write_photo(path, Photo(np.random.default_rng(0).integers(0, 65536, (64, 48, 3)).astype(np.uint16)))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UnreadableImage):
        read_photo(path)


def test_damage_inside_sixteen_bit_colour_is_refused(tmp_path):
    write_photo(tmp_path / "a.png", Photo(np.random.default_rng(0).integers(0, 65536, (64, 48, 3)).astype(np.uint16)))
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[len(data) // 2] ^= 255
    with pytest.raises(UnreadableImage):
        read_photo(bytes(data))


def test_files_other_than_still_images_of_8_or_16_bits_are_refused():
    frames = [Image.fromarray(smooth(3)), Image.fromarray(smooth(3)[::-1])]
    with pytest.raises(UnreadableImage, match="not a PNG, JPEG"):
        read_photo(b"hello")
    with pytest.raises(UnreadableImage, match="animation"):
        read_photo(encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]))
    with pytest.raises(UnreadableImage, match="32 bits"):
        read_photo(encoded(Image.fromarray(smooth(1)[..., 0].astype(np.float32)), "TIFF"))


def test_huge_images_are_refused_before_decoding():
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
    bomb += struct.pack(">I", zlib.crc32(b"IHDR" + header)) + encoded(Image.fromarray(smooth(3)), "PNG")[33:]
    with pytest.raises(UnreadableImage, match="pixels"):
        read_photo(bomb)
    with pytest.raises(UnreadableImage, match=r"30x20 are 600 pixels, more than the 599"):
        read_photo(encoded(Image.fromarray(smooth(3)), "PNG"), max_pixels=599)


def test_a_missing_file_raises_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_photo(tmp_path / "none.png")


def test_read_image_gives_rgb_in_zero_to_one():
    gray = read_image(encoded(Image.fromarray(smooth(1)[..., 0]), "PNG"))
    assert gray.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(gray, np.repeat(smooth(1) / np.float32(255), 3, axis=2))
    rgba = read_image(encoded(Image.fromarray(smooth(4)), "PNG"))
    np.testing.assert_array_equal(rgba, to_float(smooth(4)[..., :3]))
    deep = read_image(encoded(Image.fromarray(smooth(1, np.uint16)[..., 0]), "PNG"))
    np.testing.assert_array_equal(deep[..., :1], to_float(smooth(1, np.uint16)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_quantise_is_the_inverse_of_to_float_and_clips(dtype):
    codes = np.arange(np.iinfo(dtype).max + 1).astype(dtype).reshape(1, -1, 1)
    np.testing.assert_array_equal(quantise(to_float(codes), dtype), codes)
    outside = np.array([-1, 2], np.float32).reshape(1, 2, 1)
    np.testing.assert_array_equal(quantise(outside, dtype).ravel(), [0, np.iinfo(dtype).max])
    between = np.array([0.4, 0.6], np.float32).reshape(1, 2, 1) / np.iinfo(dtype).max
    np.testing.assert_array_equal(quantise(between, dtype).ravel(), [0, 1])


def test_tensor_and_array_round_trip():
    image = np.random.default_rng(0).random((5, 7, 3), np.float32)
    assert to_tensor(image).shape == (1, 3, 5, 7)
    np.testing.assert_array_equal(to_array(to_tensor(image)), image)
    assert to_array(to_tensor(image).to(torch.bfloat16)).dtype == np.float32


@pytest.mark.parametrize(
    ("name", "original", "message"),
    [
        ("a.gif", Photo(smooth(3)), "suffix"),
        ("a.jpg", Photo(smooth(3, np.uint16)), "16 bits"),
        ("a.jpg", Photo(smooth(3), smooth(1)), "transparency"),
    ],
)
def test_pixels_that_a_format_cannot_hold_are_refused_without_a_file(tmp_path, name, original, message):
    with pytest.raises(ValueError, match=message):
        write_photo(tmp_path / name, original)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", to_float(smooth(3)))
    before = (tmp_path / "a.png").read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*not written.*a\.png"):
        write_image(tmp_path / "a.png", to_float(smooth(1)))
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


def test_an_interrupted_write_leaves_no_file(tmp_path, monkeypatch):
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_image(tmp_path / "a.png", to_float(smooth(3)))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OSError, match=r"not written.*a\.png"):
        write_image(tmp_path / "missing" / "a.png", to_float(smooth(3)))


def test_a_missing_system_library_of_opencv_is_named(tmp_path):
    (tmp_path / "cv2.py").write_text('raise ImportError("libGL.so.1: cannot open shared object file")')
    run = subprocess.run(
        [sys.executable, "-c", "import dgunet.images"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PROJECT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "libGL.so.1" in run.stderr
    assert "apt-get install libgl1 libglib2.0-0" in run.stderr


def test_images_import_no_torch_and_the_package_exports_its_functions():
    code = (
        "import sys; from dgunet.images import Photo, dimensions, read_image, read_photo, write_image, write_photo; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(PROJECT)}, check=True)
