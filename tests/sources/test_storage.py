"""Folders, archives and URLs as one thing."""

import io
import os
import re
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import s3fs
from factories import png, write_pngs
from PIL import Image
from processes import S3Server

from pipeline.sources import archives
from pipeline.sources.places import File, NoSuchPlace, StorageError, UnreadableFile
from pipeline.sources.storage import list_files, read


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
    write_pngs("p/secret/a.png", "p/b.png")
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
    write_pngs("a.png")
    with pytest.raises(StorageError, match=r"a\.png: not a folder"):
        list(list_files("a.png"))


def test_the_version_changes_with_the_content_even_if_size_and_time_are_kept() -> None:
    write_pngs("p/a.png")
    before = listed("p")["a.png"].version
    times = Path("p/a.png").stat()
    Path("p/a.png").write_bytes(png(0)[:-1] + b"x")
    os.utime("p/a.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert listed("p")["a.png"].version != before


def test_a_replaced_archive_is_read_anew() -> None:
    write_zip("a.zip", {"a.png": png(1)})
    first, version = read("a.zip!a.png"), listed("a.zip")["a.png"].version
    write_zip("a.zip", {"a.png": png(2), "b.png": png(3)})
    assert first == png(1) and read("a.zip!a.png") == png(2) and listed("a.zip")["a.png"].version != version


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
    with pytest.raises(StorageError, match=r"a\.tar: incomplete or damaged"):
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
    with pytest.raises(StorageError, match=r"a\.zip: incomplete or damaged"):
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
        pytest.param(b"", 2**25, "not a PNG, JPEG", id="zeros"),
        pytest.param(b"II*\0\xf0\xff\xff\x01", 2**25, "not a PNG, JPEG", id="a TIFF whose directory lies at its end"),
        pytest.param(header(2000, 3000), 2**25, "2000x3000 are more than the 5000000 pixels allowed", id="more pixels"),
        pytest.param(header(40000, 40000), 2**25, "1600000000 pixels", id="more than Pillow takes"),
        pytest.param(header(2000, 2000), 5 * 2**23, "41943040 bytes are too many for an image", id="more bytes"),
    ],
)
def test_a_bomb_is_refused_before_it_is_unpacked(
    unpacked: list[int], monkeypatch: pytest.MonkeyPatch, start: bytes, size: int, reason: str
) -> None:
    monkeypatch.setattr(archives, "BYTES_BESIDE_PIXELS", 0)
    write_zip("a.zip", {"a.png": start + bytes(size - len(start)), "b.png": png(1)})
    assert Path("a.zip").stat().st_size < 50_000
    with pytest.raises(UnreadableFile, match=reason):
        read("a.zip!a.png", max_pixels=5_000_000)
    is_tiff = start.startswith(b"II")  # streamed to its directory, never held whole
    assert max(unpacked, default=0) <= 2**24 and (is_tiff or sum(unpacked) < 10**6)
    assert read("a.zip!b.png") == png(1)


def test_a_large_image_of_an_archive_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_HARMLESS_BYTES", 2**16)
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
    monkeypatch.setattr(archives, "_HARMLESS_BYTES", 2**16)
    write_zip("a.zip", {"a.png": np.random.default_rng(0).bytes(2**17)})
    content = bytearray(Path("a.zip").read_bytes())
    content[35:45] = bytes(10)
    Path("a.zip").write_bytes(content)
    with pytest.raises(UnreadableFile, match="damaged in its archive"):
        read("a.zip!a.png")


def copies() -> list[Path]:
    return sorted(path for path in archives.COPIES.glob("*") if path.suffix != ".lock")


def forget() -> None:
    """As in a new process."""
    archives.open_archive.cache_clear()
    archives._url_versions.clear()


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_unpacked_once_until_it_changes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {f"{number}.png": png(number) for number in range(5)}
    place = f"a.tar.{kind}"
    write_tar(place, members, f"w:{kind}")
    first = listed(place)
    assert first.keys() == members.keys() and all(file.version for file in first.values())
    (copy,) = copies()
    forget()
    with monkeypatch.context() as once:
        once.setattr(archives, "_open_binary", None)
        assert {name: read(f"{place}!{name}") for name in reversed(members)} == members and listed(place) == first
    write_tar(place, {"0.png": png(7)}, f"w:{kind}")
    assert read(f"{place}!0.png") == png(7) and len(copies()) == 1 and copies() != [copy]


def test_a_compressed_tar_that_is_cut_is_an_error_and_leaves_no_copy() -> None:
    write_tar("a.tar.gz", {"a.png": np.random.default_rng(0).bytes(10_000)}, "w:gz")
    Path("a.tar.gz").write_bytes(Path("a.tar.gz").read_bytes()[:5000])
    with pytest.raises(StorageError, match=r"a\.tar\.gz: incomplete or damaged"):
        list(list_files("a.tar.gz"))
    assert not copies()


def test_a_compressed_tar_that_is_a_bomb_does_not_fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_HARMLESS_COPY_BYTES", 2**20)
    write_tar("a.tar.gz", {"a.png": bytes(2**24)}, "w:gz")
    with pytest.raises(StorageError, match=r"a\.tar\.gz: unpacks to more than 100 times its size"):
        list(list_files("a.tar.gz"))
    assert not copies()


class Server(ThreadingHTTPServer):
    """The working folder over HTTP, as told by its attributes: with parts of files or not, telling times or not."""

    gives_parts = False
    serves_times = True
    fails_after: int | None = None
    asked: ClassVar[list[str]] = []


class Handler(SimpleHTTPRequestHandler):
    server: Server

    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "Last-Modified" or self.server.serves_times:
            super().send_header(keyword, value)

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.path} {self.headers.get('Range', 'whole')}")
        if self.server.fails_after is not None and len(self.server.asked) > self.server.fails_after:
            return self.send_error(503)
        path = Path(self.translate_path(self.path))
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not (self.server.gives_parts and match and path.is_file()):
            return super().do_GET()
        part = path.read_bytes()[int(match[1]) : int(match[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {match[1]}-{match[2]}/{path.stat().st_size}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)
        return None

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def http() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.asked.clear()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def url(server: Server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_port}/{path}"


def test_a_folder_on_a_web_server_is_listed_and_its_files_bear_stamps(http: Server) -> None:
    write_pngs("p/a.png", "p/s/b.png")
    os.utime("p/a.png", (1000, 1000))
    before = listed(url(http, "p"))
    assert {name: read(file.uri) for name, file in before.items()} == {"a.png": png(0), "s/b.png": png(1)}
    assert listed(url(http, "p")) == before and all(file.version for file in before.values())
    os.utime("p/a.png", (2000, 2000))
    after = listed(url(http, "p"))
    assert after["a.png"].version != before["a.png"].version and after["s/b.png"] == before["s/b.png"]
    (single,) = listed(url(http, "p/a.png")).values()
    assert single.name == "a.png" and single.version == after["a.png"].version
    with pytest.raises(UnreadableFile):
        read(url(http, "p/c.png"))
    http.serves_times = False
    assert {file.version for file in listed(url(http, "p")).values()} == {None}


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_an_archive_on_a_server_that_gives_no_parts_is_fetched_once_until_it_changes(http: Server, name: str) -> None:
    def write(members: dict[str, bytes], time: int) -> None:
        write_zip(name, members) if name == "a.zip" else write_tar(name, members, "w:gz" if "gz" in name else "w")
        os.utime(name, (time, time))

    place, members = url(http, name), {f"{number}.png": png(number) for number in range(4)}
    write(members, 1000)
    first = listed(place)
    assert all(file.version for file in first.values())
    assert {name: read(file.uri) for name, file in first.items()} == members
    forget()
    http.asked.clear()
    assert listed(place) == first and read(f"{place}!2.png") == png(2) and len(copies()) == 1
    assert f"/{name} whole" not in http.asked
    write({"0.png": png(7)}, 2000)
    assert listed(place)["0.png"].version != first["0.png"].version
    assert read(f"{place}!0.png") == png(7) and len(copies()) == 1
    forget()
    http.serves_times = False
    assert listed(place)["0.png"].version is None and read(f"{place}!0.png") == png(7)


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_an_archive_on_a_server_that_gives_parts_is_read_in_place(http: Server, name: str) -> None:
    http.gives_parts = True
    (write_zip if name == "a.zip" else write_tar)(name, {"a.png": png(1), "b.png": png(2)})
    assert read(listed(url(http, name))["b.png"].uri) == png(2)
    assert not copies()


def test_an_archive_whose_server_fails_is_an_error_that_names_it(http: Server) -> None:
    http.gives_parts, http.fails_after = True, 1  # the byte that was tried, then the directory is wanted
    write_zip("a.zip", {"a.png": np.random.default_rng(0).bytes(100_000)})
    with pytest.raises(StorageError, match=r"http://.*/a\.zip: cannot be opened .*503"):
        list(list_files(url(http, "a.zip")))


def test_an_archive_that_a_server_does_not_have_is_an_error_that_names_it(http: Server) -> None:
    with pytest.raises(NoSuchPlace, match=r"http://.*/a\.zip: no such archive.*404"):
        list(list_files(url(http, "a.zip")))


@pytest.mark.parametrize("place", ["gs://bucket/photos", "gs://bucket/photos.zip"])
def test_a_url_that_needs_another_package_names_it(place: str) -> None:
    assert find_spec("gcsfs") is None
    for attempt in (lambda: list(list_files(place)), lambda: [read(f"{place}!a.png" if "zip" in place else place)]):
        with pytest.raises(StorageError, match=r"gs://bucket/photos.*: needs a package.*/pip install gcsfs"):
            attempt()
    with pytest.raises(StorageError, match=r"sea://photos: cannot be opened.*Protocol not known"):
        list(list_files("sea://photos"))


@pytest.mark.slow
def test_a_bucket_is_listed_and_read_like_a_folder_and_its_loss_is_no_fault_of_an_image(s3_server: S3Server) -> None:
    s3fs.S3FileSystem.clear_instance_cache()  # another test's server had another port
    client = s3_server.client()
    write_zip("a.zip", {"in/a.png": png(1)})
    client.put_object(Bucket="bucket", Key="p/a.png", Body=png(2))
    client.put_object(Bucket="bucket", Key="a.zip", Body=Path("a.zip").read_bytes())
    file = listed("s3://bucket/p")["a.png"]
    assert file.uri == "s3://bucket/p/a.png" and file.version and read(file.uri) == png(2)
    assert read(listed("s3://bucket/a.zip")["in/a.png"].uri) == png(1)
    with pytest.raises(UnreadableFile):
        read("s3://bucket/p/b.png")
    with pytest.raises(StorageError, match="no files found"):
        list(list_files("s3://bucket/q"))
    before = listed("s3://bucket/a.zip")["in/a.png"].version
    assert before and listed("s3://bucket/a.zip")["in/a.png"].version == before
    write_zip("a.zip", {"in/a.png": png(3)})
    client.put_object(Bucket="bucket", Key="a.zip", Body=Path("a.zip").read_bytes())
    assert listed("s3://bucket/a.zip")["in/a.png"].version != before and read("s3://bucket/a.zip!in/a.png") == png(3)
    write_tar("a.tgz", {"in/a.png": png(4)}, "w:gz")
    client.put_object(Bucket="bucket", Key="a.tgz", Body=Path("a.tgz").read_bytes())
    assert read(listed("s3://bucket/a.tgz")["in/a.png"].uri) == png(4) and len(copies()) == 1
    client.put_object(Bucket="bucket", Key="large.zip", Body=_large_zip())
    (large,) = listed("s3://bucket/large.zip").values()
    s3_server.stop()
    with pytest.raises(StorageError, match=r"s3://bucket/p/a\.png: cannot be reached"):
        read("s3://bucket/p/a.png")
    with pytest.raises(StorageError, match=r"s3://bucket/large\.zip: cannot be reached"):
        read(large.uri)


def _large_zip() -> bytes:
    """An archive of more than the 5 MB that are fetched (and kept) at a time."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), dtype=np.uint8)).save(file, "BMP")
    write_zip("large.zip", {"a.png": file.getvalue()})
    return Path("large.zip").read_bytes()


def test_folders_of_a_zip_that_windows_made_are_found_though_names_mix_both_separators() -> None:
    with zipfile.ZipFile("a.zip", "w") as archive:
        for name, system in (("a/b\\c.png", 0), ("d/e\\f.png", 3)):
            member = zipfile.ZipInfo("x")
            member.filename, member.create_system = name, system
            archive.writestr(member, png())
    assert set(listed("a.zip")) == {"a/b/c.png", "d/e\\f.png"}
    assert read("a.zip!a/b/c.png") == png()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_of_one_name_are_named_and_the_last_is_read(kind: str) -> None:
    contents = [png(seed) for seed in (1, 2, 3)]
    if kind == "zip":
        with zipfile.ZipFile("a.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
            for content in contents:
                archive.writestr("p/a.png", content)
    else:
        with tarfile.open("a.tar", "w") as tar:
            for content in contents:
                member = tarfile.TarInfo("p/a.png")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    problems = {name: file.problem for name, file in listed(f"a.{kind}").items()}
    reason = "replaced by a later member of the same name"
    assert problems == {"p/a.png": None, "p/a (replaced 1).png": reason, "p/a (replaced 2).png": reason}
    assert read(f"a.{kind}!p/a.png") == contents[2]
