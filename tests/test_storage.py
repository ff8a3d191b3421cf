"""Folders, archives and URLs as one thing."""

import io
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import s3fs
from conftest import S3Server, lay, png
from PIL import Image

from pipeline import storage
from pipeline.storage import File, StorageError, UnreadableFile, list_files, read


@pytest.fixture(autouse=True)
def _in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def listed(place: str) -> dict[str, File]:
    return {file.name: file for file in list_files(place)}


def write_zip(path: str, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def write_tar(path: str, members: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_and_a_file_without_permission_are_left_out() -> None:
    lay("p/secret/a.png", "p/b.png")
    Path("p/secret").chmod(0)
    Path("p/b.png").chmod(0)
    assert "Permission denied" in str(listed("p")["secret/"].problem)
    with pytest.raises(UnreadableFile, match="Permission denied"):
        read("p/b.png")


@pytest.mark.parametrize("place", ["nowhere", "nowhere.zip", "nowhere.tar"])
def test_a_missing_place_is_an_error_that_names_it(place: str) -> None:
    with pytest.raises(StorageError, match=f"{place}: no such"):
        list(list_files(place))


def test_a_file_given_as_a_folder_is_an_error() -> None:
    lay("a.png")
    with pytest.raises(StorageError, match=r"a\.png: not a folder"):
        list(list_files("a.png"))


def test_the_stamp_changes_with_the_content_even_if_size_and_time_are_kept() -> None:
    lay("p/a.png")
    before = listed("p")["a.png"].stamp
    times = Path("p/a.png").stat()
    Path("p/a.png").write_bytes(png(0)[:-1] + b"x")
    os.utime("p/a.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert listed("p")["a.png"].stamp != before


def test_a_replaced_archive_is_read_anew() -> None:
    write_zip("a.zip", {"a.png": png(1)})
    first, stamp = read("a.zip!a.png"), listed("a.zip")["a.png"].stamp
    write_zip("a.zip", {"a.png": png(2), "b.png": png(3)})
    assert first == png(1) and read("a.zip!a.png") == png(2) and listed("a.zip")["a.png"].stamp != stamp


def test_a_damaged_member_is_its_own_problem() -> None:
    write_zip("a.zip", {"a.png": png(1), "b.png": png(2)})
    content = bytearray(Path("a.zip").read_bytes())
    content[60] ^= 255
    Path("a.zip").write_bytes(content)
    with pytest.raises(UnreadableFile, match="damaged in its archive"):
        read("a.zip!a.png")
    assert read("a.zip!b.png") == png(2)


@pytest.mark.parametrize("keep", [0, 100, 512, 1024 + 600, 2048])
def test_a_cut_tar_is_an_error_even_when_cut_between_members(keep: int) -> None:
    write_tar("a.tar", {"a.png": png(1), "b.png": png(2), "c.png": png(3)})
    Path("a.tar").write_bytes(Path("a.tar").read_bytes()[:keep])
    with pytest.raises(StorageError, match=r"a\.tar: not a whole archive"):
        list(list_files("a.tar"))


def test_a_tar_with_a_damaged_header_in_the_middle_is_an_error() -> None:
    write_tar("a.tar", {"a.png": png(1), "b.png": png(2)})
    content = bytearray(Path("a.tar").read_bytes())
    content[1024:1034] = b"x" * 10
    Path("a.tar").write_bytes(content)
    with pytest.raises(StorageError, match=r"damaged after a\.png"):
        list(list_files("a.tar"))


def test_a_cut_zip_is_an_error() -> None:
    write_zip("a.zip", {"a.png": png(1)})
    Path("a.zip").write_bytes(Path("a.zip").read_bytes()[:-10])
    with pytest.raises(StorageError, match=r"a\.zip: not a whole archive"):
        list(list_files("a.zip"))


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all pieces that come out of zip archives."""
    sizes: list[int] = []
    read_some = zipfile.ZipExtFile.read

    def noting(self: zipfile.ZipExtFile, n: int | None = -1) -> bytes:
        piece = read_some(self, n)
        sizes.append(len(piece))
        return piece

    monkeypatch.setattr(zipfile.ZipExtFile, "read", noting)
    return sizes


def header(width: int, height: int) -> bytes:
    """How a PNG of 16-bit RGBA begins."""
    facts = b"IHDR" + struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + facts + struct.pack(">I", zlib.crc32(facts)) + b"\x7f\0\0\0IDAT"
    )


@pytest.mark.parametrize(
    ("start", "size", "reason"),
    [
        pytest.param(b"", 2**25, "no PNG, JPEG", id="zeros"),
        pytest.param(b"II*\0\xf0\xff\xff\x01", 2**25, "no PNG, JPEG", id="a TIFF whose directory lies at its end"),
        pytest.param(header(2000, 3000), 2**25, "2000x3000 are more than the 5000000 pixels allowed", id="more pixels"),
        pytest.param(header(40000, 40000), 2**25, "1600000000 pixels", id="more than Pillow takes"),
        pytest.param(header(2000, 2000), 5 * 2**23, "41943040 bytes are too many for an image", id="more bytes"),
    ],
)
def test_a_bomb_is_refused_before_it_is_unpacked(
    unpacked: list[int], monkeypatch: pytest.MonkeyPatch, start: bytes, size: int, reason: str
) -> None:
    monkeypatch.setattr(storage, "_BYTES_BESIDE_PIXELS", 0)
    write_zip("a.zip", {"a.png": start + bytes(size - len(start)), "b.png": png(1)})
    assert Path("a.zip").stat().st_size < 50_000
    with pytest.raises(UnreadableFile, match=reason):
        read("a.zip!a.png", max_pixels=5_000_000)
    is_tiff = start.startswith(b"II")  # streamed to its directory, never held whole
    assert max(unpacked, default=0) <= 2**24 and (is_tiff or sum(unpacked) < 10**6)
    assert read("a.zip!b.png") == png(1)


def test_a_large_image_of_an_archive_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_HARMLESS_BYTES", 2**16)
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    bitmap, compressed = io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels).save(bitmap, "BMP")
    Image.fromarray(pixels).save(compressed, "TIFF", compression="tiff_adobe_deflate")  # its directory is at the end
    members = {"a.bmp": bitmap.getvalue(), "a.tif": compressed.getvalue()}
    assert min(map(len, members.values())) > 2**16
    write_zip("a.zip", members)
    write_tar("a.tar", members)
    for archive in ("a.zip", "a.tar"):
        assert {name: read(f"{archive}!{name}", max_pixels=200**2) for name in members} == members


def test_a_large_member_that_is_damaged_at_its_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_HARMLESS_BYTES", 2**16)
    write_zip("a.zip", {"a.png": np.random.default_rng(0).bytes(2**17)})
    content = bytearray(Path("a.zip").read_bytes())
    content[35:45] = bytes(10)
    Path("a.zip").write_bytes(content)
    with pytest.raises(UnreadableFile, match="damaged in its archive"):
        read("a.zip!a.png")


@pytest.mark.slow
def test_a_bucket_is_listed_and_read_like_a_folder_and_its_loss_is_no_fault_of_an_image(s3_server: S3Server) -> None:
    s3fs.S3FileSystem.clear_instance_cache()  # another test's server had another port
    client = s3_server.client()
    write_zip("a.zip", {"in/a.png": png(1)})
    client.put_object(Bucket="bucket", Key="p/a.png", Body=png(2))
    client.put_object(Bucket="bucket", Key="a.zip", Body=Path("a.zip").read_bytes())
    file = listed("s3://bucket/p")["a.png"]
    assert file.where == "s3://bucket/p/a.png" and file.stamp and read(file.where) == png(2)
    assert read(listed("s3://bucket/a.zip")["in/a.png"].where) == png(1)
    with pytest.raises(UnreadableFile):
        read("s3://bucket/p/b.png")
    with pytest.raises(StorageError, match="nothing there"):
        list(list_files("s3://bucket/q"))
    client.put_object(Bucket="bucket", Key="large.zip", Body=_large_zip())
    (large,) = listed("s3://bucket/large.zip").values()
    s3_server.stop()
    with pytest.raises(StorageError, match=r"s3://bucket/p/a\.png: cannot be reached"):
        read("s3://bucket/p/a.png")
    with pytest.raises(StorageError, match=r"s3://bucket/large\.zip: cannot be reached"):
        read(large.where)


def _large_zip() -> bytes:
    """An archive of more than the 5 MB that are fetched (and kept) at a time."""
    write_zip("large.zip", {"a.png": np.random.default_rng(0).bytes(30_000_000)})
    return Path("large.zip").read_bytes()
