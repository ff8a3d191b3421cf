"""Published sets by name: the registry, and the real client against a local server that cuts, changes and refuses."""

import hashlib
import io
import os
import pty
import re
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from factories import DATA, png

from pipeline import data
from pipeline.sources import datasets, registry
from pipeline.sources.download import Downloader
from pipeline.sources.listing import Candidate, Dataset, RejectedImage, list_images, read_source_image
from pipeline.sources.places import StorageError

NOISE = b"".join(hashlib.sha256(str(n).encode()).digest() for n in range(8000))  # 256 kB
CHUNK = 2**16  # bytes that are written at once


class Server(BaseHTTPRequestHandler):
    """Gives `files`; with `cut`, at most so many bytes an answer; `status` and `kind` in place of a file."""

    protocol_version = "HTTP/1.1"
    files: ClassVar[dict[str, bytes]] = {}
    elsewhere: ClassVar[dict[str, str]] = {}
    asked: ClassVar[list[tuple[str, str | None]]] = []
    cut: ClassVar[list[int]] = []
    gives_parts: ClassVar[bool] = True
    gives_version: ClassVar[bool] = True

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Range")))
        if self.path in self.elsewhere:
            self.send_response(301)
            self.send_header("Location", self.elsewhere[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = self.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start, version = 0, f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        if self.gives_parts and "Range" in self.headers and self.headers.get("If-Range") in (None, version):
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        if start >= len(content) > 0:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.gives_version:
            self.send_header("ETag", version)
        is_page = content.startswith(b"<html>")
        self.send_header("Content-Type", "text/html; charset=utf-8" if is_page else "application/octet-stream")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        part = content[start:]
        if self.cut:
            part = part[: self.cut.pop(0)]
            self.close_connection = True
        self.wfile.write(part)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[type[Server]]:
    Server.files, Server.elsewhere, Server.asked, Server.cut = {}, {}, [], []
    Server.gives_parts = Server.gives_version = True
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        Server.address = f"http://127.0.0.1:{running.server_port}"  # type: ignore[attr-defined]
        yield Server
        running.shutdown()


def address(server: type[Server]) -> str:
    return str(server.address)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty DGUNET_DATA, and a user without records."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("DGUNET_DATA", str(tmp_path / "sets"))
    monkeypatch.setattr("pipeline.sources.download._FIRST_WAIT", 0.01)
    for name in ("DGUNET_DATA_MIRROR", "DGUNET_ACCEPT_TERMS"):
        monkeypatch.delenv(name, raising=False)
    forget()
    yield tmp_path / "sets"
    forget()


def forget() -> None:
    for cached in (registry.data_sets, registry.overlaps, registry._read_list):
        cached.cache_clear()  # type: ignore[attr-defined]


FACTS = {
    "about": "two pictures", "tasks": ["denoise"], "licence": "CC0", "cite": "Nobody", "page": "https://example.org",
    "folder": "Tiny", "splits": {"test": {"clean": "."}}, "use": "test", "verified": True,
}  # fmt: skip


def use_registry(folder: Path, monkeypatch: pytest.MonkeyPatch, **sets: dict[str, Any]) -> None:
    (folder / "checksums").mkdir(parents=True, exist_ok=True)
    (folder / "datasets.yaml").write_text(yaml.safe_dump({name: {**FACTS, **facts} for name, facts in sets.items()}))
    (folder / "overlaps.yaml").write_text("[]")
    monkeypatch.setattr(registry, "_HERE", folder)
    forget()


def entry(path: str, content: bytes, url: str | None, **changes: Any) -> dict[str, Any]:
    return {
        "path": path, "url": url, "size": len(content), "sha256": hashlib.sha256(content).hexdigest(), **changes,
    }  # fmt: skip


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: type[Server]) -> type[Server]:
    """A set of one file, a.png (noise, in fact), at the server."""
    server.files["/v1/a.png"] = NOISE
    use_registry(tmp_path / "r", monkeypatch, tiny={"files": [entry("a.png", NOISE, f"{address(server)}/v1/a.png")]})
    return server


def ranges(server: type[Server]) -> list[str | None]:
    return [asked for _, asked in server.asked]


# The registry of the project


def test_the_registry_is_valid_and_its_lists_are_there() -> None:
    found = registry.data_sets()
    assert {"bsds500", "cbsd68", "rain100l", "polyu", "div2k", "sidd", "dnd"} <= set(found)
    assert len({each.folder for each in found.values()}) == len(found)
    for each in found.values():
        files = each.all_files()
        assert files and len({file.path for file in files}) == len(files)
        if each.verified:
            assert each.has_checksums() and all(file.size and file.url for file in files), each.name
            assert each.listed and re.search(r"/[0-9a-f]{40}/$", each.listed.base), each.name
    listed = {path.name for path in (registry._HERE / "checksums").iterdir()}
    assert listed == {each.listed.file for each in found.values() if each.listed}


def test_addresses_that_nobody_could_check_are_marked() -> None:
    unverified = {name for name, found in registry.data_sets().items() if not found.verified}
    assert unverified == {"div2k", "flickr2k", "rain13k", "gopro", "hide", "sidd", "dnd"}


def test_sets_have_the_number_of_images_that_their_papers_say() -> None:
    numbers = {"bsds500": 400, "bsd68": 68, "set5": 5, "urban100": 100, "rain100l": 200, "polyu": 200, "kodak24": 24}
    assert {name: len(registry.data_set(name).all_files()) for name in numbers} == numbers


def test_overlaps_name_images_of_the_sets() -> None:
    for overlap in registry.overlaps():
        for name, images in overlap.images.items():
            paths = {file.path.rpartition(".")[0] for file in registry.data_set(name).all_files()}
            assert images == "all" or set(images) <= paths, name
    assert len(registry.shared_images("bsds500", "rain100l")) == 67
    assert len(registry.shared_images("rain100l", "bsds500")) == 75
    assert registry.shared_images("cbsd68", "bsd68") == "all"
    assert registry.shared_images("kodak24", "rain100l") == []


@pytest.mark.parametrize("path", ["../a.png", "/a.png", "a/../../b.png", "c:/a.png", "a\\..\\b.png"])
def test_the_registry_refuses_paths_out_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    use_registry(tmp_path / "r", monkeypatch, tiny={"files": [{"path": path}]})
    with pytest.raises(ValueError, match="points outside the folder"):
        registry.data_sets()


def test_published_sets_of_this_machine_agree_with_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGUNET_DATA", str(DATA))
    here = [found for found in registry.data_sets().values() if found.listed and (DATA / found.folder).is_dir()]
    if not here:
        pytest.skip("no published set")
    assert not [line for found in here for line in datasets.inspect(found.name).wrong]


# Fetching


def test_a_set_is_fetched_compared_and_listed(
    tiny: type[Server], sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data.main(["--name", "tiny"])
    assert (sets / "Tiny/a.png").read_bytes() == NOISE
    assert "here    yes, checksums agree" in capsys.readouterr().out
    assert sorted(path.name for path in (sets / "Tiny").iterdir()) == [".lock", "a.png"]
    datasets.require("tiny")
    data.main([])
    assert ranges(tiny) == [None]
    assert "here    yes, checksums agree" in capsys.readouterr().out


def test_a_cut_connection_is_continued(tiny: type[Server], sets: Path) -> None:
    tiny.cut = [2 * CHUNK, CHUNK]
    datasets.fetch("tiny")
    assert ranges(tiny) == [None, "bytes=131072-", "bytes=196608-"]
    assert (sets / "Tiny/a.png").read_bytes() == NOISE


def test_an_interrupted_fetch_is_continued_by_the_next(tiny: type[Server], sets: Path) -> None:
    tiny.cut = [2 * CHUNK, *[0] * 4]
    with pytest.raises(StorageError, match=r"continues after 131072 bytes.*Fetch by hand .*put into .*/Tiny: .*a\.png"):
        datasets.fetch("tiny")
    assert not (sets / "Tiny/a.png").exists()
    tiny.asked.clear()
    tiny.cut = []
    datasets.fetch("tiny")
    assert ranges(tiny) == ["bytes=131072-"]
    assert (sets / "Tiny/a.png").read_bytes() == NOISE
    assert sorted(path.name for path in (sets / "Tiny").iterdir()) == [".lock", "a.png"]


def test_a_server_without_parts_sends_all_again(tiny: type[Server], sets: Path) -> None:
    tiny.cut, tiny.gives_parts = [2 * CHUNK], False
    datasets.fetch("tiny")
    assert (sets / "Tiny/a.png").read_bytes() == NOISE


def test_a_file_that_changed_between_two_parts_is_not_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: type[Server], sets: Path
) -> None:
    url = f"{address(server)}/a.png"
    use_registry(tmp_path / "r", monkeypatch, tiny={"files": [{"path": "a.png", "url": url}]})
    server.files["/a.png"], server.cut = NOISE, [2 * CHUNK, 0, 0, 0, 0]
    with pytest.raises(StorageError, match="the next try continues"):
        datasets.fetch("tiny")
    server.files["/a.png"], server.cut = NOISE[::-1], []
    datasets.fetch("tiny")
    assert (sets / "Tiny/a.png").read_bytes() == NOISE[::-1]


def test_parts_without_a_version_are_joined_only_where_a_checksum_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: type[Server], sets: Path
) -> None:
    url = f"{address(server)}/a.png"
    server.files["/a.png"], server.gives_version = NOISE, False
    for number, facts in enumerate([{"path": "a.png", "url": url}, entry("a.png", NOISE, url)]):
        use_registry(tmp_path / "r", monkeypatch, tiny={"files": [facts], "folder": f"Tiny{number}"})
        server.cut, server.asked = [2 * CHUNK], []
        datasets.fetch("tiny")
        assert ranges(server) == [None, "bytes=131072-" if number else None]
        assert (sets / f"Tiny{number}/a.png").read_bytes() == NOISE


def test_a_beginning_of_another_version_is_fetched_again(tiny: type[Server], sets: Path) -> None:
    tiny.gives_version = False
    tiny.cut = [2 * CHUNK, 0, 0, 0, 0]
    with pytest.raises(StorageError, match="the next try continues"):
        datasets.fetch("tiny")
    partial = sets / "Tiny/.a.png.partial"
    partial.write_bytes(b"x" * 2 * CHUNK)
    datasets.fetch("tiny")
    assert (sets / "Tiny/a.png").read_bytes() == NOISE


def test_a_wrong_checksum_is_refused_and_nothing_stays(tiny: type[Server], sets: Path) -> None:
    tiny.files["/v1/a.png"] = NOISE[::-1]
    with pytest.raises(StorageError, match=r"tiny: http.*/v1/a\.png does not match the registry: its checksum"):
        datasets.fetch("tiny")
    assert sorted(path.name for path in (sets / "Tiny").iterdir()) == [".lock"]


def test_a_file_of_another_size_is_not_fetched(tiny: type[Server], sets: Path) -> None:
    tiny.files["/v1/a.png"] = NOISE + b"x"
    with pytest.raises(StorageError, match=r"has 256001 bytes, the file of the data set 256000"):
        datasets.fetch("tiny")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "the server answers 404"), (b"<html>Sign in</html>", "a web page, not the file")],
)
def test_an_address_that_has_changed_says_what_to_do_by_hand(
    tiny: type[Server], sets: Path, content: bytes | None, message: str
) -> None:
    del tiny.files["/v1/a.png"]
    if content:
        tiny.files["/v1/a.png"] = content
    with pytest.raises(StorageError, match=message) as error:
        datasets.require("tiny")
    for part in ("https://example.org", str(sets / "Tiny"), "/v1/a.png as a.png", "make data NAME=tiny", "_MIRROR"):
        assert part in str(error.value)
    assert len(tiny.asked) == 1  # asking again would not help
    (sets / "Tiny/a.png").write_bytes(NOISE)
    datasets.require("tiny")
    assert len(tiny.asked) == 1


def test_an_address_that_redirects_is_followed(tiny: type[Server], sets: Path) -> None:
    tiny.files["/new/a.png"] = tiny.files.pop("/v1/a.png")
    tiny.elsewhere["/v1/a.png"] = f"{address(tiny)}/new/a.png"
    datasets.fetch("tiny")
    assert (sets / "Tiny/a.png").read_bytes() == NOISE


def test_without_a_network_the_message_says_what_to_do_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: type[Server]
) -> None:
    files = [entry("a.png", NOISE, "http://127.0.0.1:9/a.png")]
    use_registry(tmp_path / "r", monkeypatch, tiny={"files": files})
    with pytest.raises(StorageError, match=r"cannot be reached .*Fetch by hand"):
        datasets.require("tiny")


def test_all_files_that_are_still_missing_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: type[Server]
) -> None:
    files = [entry(f"{n}.png", NOISE, f"{address(server)}/{n}.png") for n in range(9)]
    use_registry(tmp_path / "r", monkeypatch, tiny={"files": files})
    server.files.update({f"/{n}.png": NOISE for n in range(9) if n != 1})
    with pytest.raises(StorageError, match=r"as 1\.png, .*as 2\.png, .*as 5\.png and 3 more in the same way") as error:
        datasets.fetch("tiny")
    assert "0.png" not in str(error.value)


def test_a_full_disk_is_an_error_of_the_disk(tiny: type[Server], sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.download._free_bytes", lambda folder: 1000)
    with pytest.raises(OSError, match=f"{os.strerror(28)} .256000 bytes are needed, 1000 are free"):
        datasets.fetch("tiny")


def test_progress_counts_bytes_once(tiny: type[Server], sets: Path) -> None:
    tiny.cut, tiny.gives_parts = [2 * CHUNK], False
    sets.mkdir()
    counted: list[int] = []
    download = Downloader(sets / "a", len(NOISE), checked=True, progress=counted.append)
    download(f"{address(tiny)}/v1/a.png", str(sets / "b"), None)
    assert sum(counted) == len(NOISE)


# Files put there by hand


def test_a_changed_file_is_refused_and_kept(tiny: type[Server], sets: Path) -> None:
    datasets.fetch("tiny")
    file = sets / "Tiny/a.png"
    file.write_bytes(b"y" + NOISE[1:])
    for use in (datasets.require, datasets.fetch):
        with pytest.raises(StorageError, match=r"files that do not match the registry: 1\n  .*a\.png: its checksum"):
            use("tiny")
    assert file.read_bytes().startswith(b"y")


def test_an_image_that_does_not_belong_to_a_listed_set_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: Path
) -> None:
    use_registry(tmp_path / "r", monkeypatch, tiny={"listed": {"base": "http://127.0.0.1:9/o/r/c/", "file": "t.tsv"}})
    (tmp_path / "r/checksums/t.tsv").write_text(f"{hashlib.sha256(NOISE).hexdigest()}\t{len(NOISE)}\ta.png\tx/a.png\n")
    (sets / "Tiny").mkdir(parents=True)
    (sets / "Tiny/a.png").write_bytes(NOISE)
    (sets / "Tiny/notes.txt").touch()
    datasets.require("tiny")
    (sets / "Tiny/mine.png").write_bytes(NOISE)
    with pytest.raises(StorageError, match=r"mine\.png: not one of the images of the set"):
        datasets.require("tiny")


def test_the_same_pixels_in_other_listed_bytes_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: Path
) -> None:
    use_registry(tmp_path / "r", monkeypatch, tiny={"listed": {"base": "http://127.0.0.1:9/o/r/c/", "file": "t.tsv"}})
    one, other = (f"{hashlib.sha256(c).hexdigest()}\t{len(c)}\ta.png\t" for c in (NOISE, NOISE[1:]))
    (tmp_path / "r/checksums/t.tsv").write_text(f"{one}x/a.png\n{other}-\n")
    (sets / "Tiny").mkdir(parents=True)
    (sets / "Tiny/a.png").write_bytes(NOISE[1:])
    datasets.require("tiny")


def test_looking_writes_nothing_into_the_folder_of_the_sets(tiny: type[Server], sets: Path) -> None:
    (sets / "Tiny").mkdir(parents=True)
    (sets / "Tiny/a.png").write_bytes(NOISE)
    data.main([])
    datasets.require("tiny")
    assert sorted(path.name for path in sets.rglob("*")) == ["Tiny", "a.png"]


def test_a_set_that_is_fetched_by_hand_alone_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use_registry(tmp_path / "r", monkeypatch, tiny={"files": [{"path": "train.zip"}], "verified": False})
    with pytest.raises(
        StorageError, match=r"cannot be fetched automatically\. Fetch by hand from https://example\.org"
    ):
        datasets.require("tiny")
    assert "was not verified" in capsys.readouterr().err
    (sets / "Tiny").mkdir(parents=True)
    (sets / "Tiny/train.zip").write_bytes(zipped({"a.png": b"x"}))
    datasets.require("tiny")
    assert "have no known checksum" in capsys.readouterr().err


# Archives


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "hostile"),
    [("a.zip", "../../out.png"), ("a.zip", "/above/out.png"), ("a.tar", "../../out.png"), ("a.tar", "/above/out.png")],
)
def test_an_archive_with_paths_out_of_it_is_refused_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: type[Server], name: str, hostile: str
) -> None:
    sets = tmp_path / "sets"
    content = (zipped if name == "a.zip" else tarred)({"good.png": png(), hostile: png()})
    server.files[f"/{name}"] = content
    files = [entry(name, content, f"{address(server)}/{name}")]
    use_registry(tmp_path / "r", monkeypatch, tiny={"files": files, "splits": {"train": {"clean": f"{name}!."}}})
    with pytest.raises(StorageError, match=rf"{name} has paths that point outside, such as .*out\.png: deleted"):
        datasets.fetch("tiny")
    assert sorted(path.name for path in sets.rglob("*.*")) == [".lock"]
    assert not list(tmp_path.rglob("out.png"))


def test_images_of_an_archive_are_read_where_they_are_or_where_it_was_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: type[Server], sets: Path
) -> None:
    content = zipped({"HR/one.png": png(), "LR/one.png": png()})
    server.files["/a.zip"] = content
    use_registry(
        tmp_path / "r", monkeypatch,
        tiny={
            "files": [entry("a.zip", content, f"{address(server)}/a.zip")],
            "splits": {"train": {"clean": "a.zip!HR"}},
        },
    )  # fmt: skip
    (image,) = list_images(Dataset(name="tiny"))
    assert isinstance(image, Candidate) and (image.uri, image.source) == (
        "dataset:Tiny/a.zip!HR/one.png",
        "dataset:tiny",
    )
    assert read_source_image(image.uri) == png()
    (sets / "Tiny/a.zip").unlink()
    (sets / "Tiny/a/HR").mkdir(parents=True)
    (sets / "Tiny/a/HR/one.png").write_bytes(png())
    (image,) = list_images(Dataset(name="tiny"))
    assert image.uri == "dataset:Tiny/a/HR/one.png"


# As a source


def test_images_of_a_set_have_the_same_uri_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: type[Server]
) -> None:
    names = {"input/1.png": png(), "target/1.png": png()}
    server.files.update({f"/{name}": content for name, content in names.items()})
    files = [entry(name, content, f"{address(server)}/{name}") for name, content in names.items()]
    splits = {"test": {"clean": "target", "degraded": "input"}}
    use_registry(tmp_path / "r", monkeypatch, tiny={"files": files, "splits": splits})
    for place in (str(tmp_path / "elsewhere"), "relative"):
        monkeypatch.setenv("DGUNET_DATA", place)
        (image,) = list_images(Dataset(name="tiny", split="test"))
        assert isinstance(image, Candidate)
        assert (image.uri, image.degraded) == ("dataset:Tiny/target/1.png", "dataset:Tiny/input/1.png")
        assert image.source == "dataset:tiny/test"
        assert read_source_image(image.degraded) == png()


def test_scenes_of_a_test_set_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: Path) -> None:
    files = [entry("a.png", png(), None), entry("b.png", png(), None)]
    use_registry(tmp_path / "r", monkeypatch, tiny={"files": files}, other={"files": files, "folder": "Other"})
    (tmp_path / "r/overlaps.yaml").write_text("- {tiny: [b], other: all}\n")
    forget()
    (sets / "Tiny").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (sets / "Tiny" / name).write_bytes(png())
    found = list(list_images(Dataset(name="tiny", without=["other"])))
    assert [(type(item), item.uri) for item in found] == [
        (Candidate, "dataset:Tiny/a.png"),
        (RejectedImage, "dataset:Tiny/b.png"),
    ]


def test_a_source_names_a_set_and_a_split_that_exist() -> None:
    with pytest.raises(ValueError, match=r"there is no data set `bsd500`; available: bsds500, bsd68"):
        Dataset(name="bsd500")
    with pytest.raises(ValueError, match="data set set5 has no split `train`; available: test"):
        Dataset(name="set5", split="train")
    with pytest.raises(ValueError, match=r"dnd: .*not published"):
        Dataset(name="dnd")


# Terms and mirror


def test_terms_are_accepted_by_name(
    tiny: type[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: Path
) -> None:
    files = [entry("a.png", NOISE, f"{address(tiny)}/v1/a.png")]
    use_registry(tmp_path / "r", monkeypatch, tiny={"files": files, "terms": "Be kind."})
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
    for accepted in ("", "other", "tin"):
        monkeypatch.setenv("DGUNET_ACCEPT_TERMS", accepted)
        with pytest.raises(StorageError, match=r"Be kind\..*DGUNET_ACCEPT_TERMS=tiny"):
            datasets.require("tiny")
    assert not tiny.asked and not sets.exists()
    monkeypatch.setenv("DGUNET_ACCEPT_TERMS", "other, tiny")
    datasets.require("tiny")
    assert (sets / "Tiny/a.png").exists()


def test_a_terminal_is_asked_for_terms_once(
    tiny: type[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: Path
) -> None:
    files = [entry("a.png", NOISE, f"{address(tiny)}/v1/a.png")]
    use_registry(tmp_path / "r", monkeypatch, tiny={"files": files, "terms": "Be kind."})
    keyboard, terminal = pty.openpty()
    with open(terminal) as stdin:  # noqa: PTH123 (a descriptor)
        monkeypatch.setattr(sys, "stdin", stdin)
        os.write(keyboard, b"no\n")
        with pytest.raises(StorageError, match="has terms of use"):
            datasets.fetch("tiny")
        os.write(keyboard, b"yes\n")
        datasets.fetch("tiny")
    os.close(keyboard)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    (sets / "Tiny/a.png").unlink()
    datasets.fetch("tiny")
    use_registry(tmp_path / "r", monkeypatch, tiny={"files": files, "terms": "Be kinder."})
    (sets / "Tiny/a.png").unlink()
    with pytest.raises(StorageError, match=r"Be kinder\."):
        datasets.fetch("tiny")


def test_a_mirror_stands_before_host_and_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: type[Server], sets: Path
) -> None:
    use_registry(tmp_path / "r", monkeypatch, tiny={"files": [entry("a.png", NOISE, "https://a.invalid/v1/a.png")]})
    monkeypatch.setenv("DGUNET_DATA_MIRROR", f"{address(server)}/copy/")
    server.files["/copy/a.invalid/v1/a.png"] = NOISE[::-1]
    with pytest.raises(StorageError, match=r"does not match the registry.*Is DGUNET_DATA_MIRROR right"):
        datasets.fetch("tiny")
    server.files["/copy/a.invalid/v1/a.png"] = NOISE
    datasets.fetch("tiny")
    assert (sets / "Tiny/a.png").read_bytes() == NOISE


def test_a_set_of_a_url_is_not_fetched(tiny: type[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGUNET_DATA", "s3://bucket/sets")
    datasets.require("tiny")
    with pytest.raises(StorageError, match="DGUNET_DATA is the URL"):
        datasets.fetch("tiny")
    assert datasets.located("dataset:Tiny/a.png") == "s3://bucket/sets/Tiny/a.png"
