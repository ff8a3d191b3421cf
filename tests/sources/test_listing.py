"""Sources and the places they read: folders, archives, URLs, pairs."""

import io
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from factories import PROJECT, png, write_pngs

from pipeline.sources.listing import (
    Candidate,
    Folder,
    Pairs,
    RejectedImage,
    Source,
    Starter,
    list_images,
    read_source_image,
)
from pipeline.sources.patterns import MOST_WAYS, Pattern
from pipeline.sources.places import NoSuchPlace, StorageError, UnreadableFile
from pipeline.sources.storage import read


@pytest.fixture(autouse=True)
def _in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save(name: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(png())


def candidates(source: Source) -> list[Candidate]:
    return [item for item in list_images(source) if isinstance(item, Candidate)]


def wheres(source: Source) -> list[str]:
    return [item.uri for item in candidates(source)]


def reasons(source: Source) -> dict[str, str]:
    return {item.uri: item.reason for item in list_images(source) if isinstance(item, RejectedImage)}


def write_zip(path: str, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def write_tar(path: str, members: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_the_starter_photographs_are_found_and_read_without_importing_their_packages() -> None:
    code = (
        "import sys; from pipeline.sources.listing import *\n"
        "photos = list(list_images(Starter()))\n"
        "assert len(photos) == 8 and all(len(read_source_image(photo.uri)) > 50_000 for photo in photos)\n"
        "assert 'skimage' not in sys.modules and 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)


def test_a_folder_is_listed_recursively_and_named_relative_to_the_checkout() -> None:
    write_pngs("photos/b.png", "photos/sub/A.JPG", "photos/a.tiff")
    assert wheres(Folder(path=str(Path("photos").absolute()))) == ["photos/a.tiff", "photos/b.png", "photos/sub/A.JPG"]


def test_a_folder_outside_the_checkout_is_named_absolutely(monkeypatch: pytest.MonkeyPatch) -> None:
    write_pngs("outside/a.png", "checkout/x")
    monkeypatch.chdir("checkout")
    (uri,) = wheres(Folder(path="../outside"))
    assert uri == str(Path("../outside/a.png").resolve()) and read_source_image(uri) == png()


def test_hidden_files_and_other_files_are_ignored_and_said_so() -> None:
    write_pngs("p/a.png", "p/.hidden.png", "p/.git/b.png", "p/notes.txt", "p/README")
    assert wheres(Folder(path="p")) == ["p/a.png"]
    found = reasons(Folder(path="p"))
    assert found == {
        "p/.hidden.png": "hidden, or a system file",
        "p/.git": "hidden, or a system file",
        "p/notes.txt": ".txt: not an image's name",
        "p/README": "no suffix: not an image's name",
    }
    assert all(item.ignored for item in list_images(Folder(path="p")) if isinstance(item, RejectedImage))


def test_links_to_folders_are_followed_once_and_circles_end() -> None:
    write_pngs("p/sub/a.png", "far/b.png")
    Path("p/circle").symlink_to(Path("p").absolute(), target_is_directory=True)
    Path("p/far").symlink_to(Path("far").absolute(), target_is_directory=True)
    assert wheres(Folder(path="p")) == ["p/far/b.png", "p/sub/a.png"]


def test_a_broken_link_is_left_out_with_the_reason() -> None:
    write_pngs("p/a.png")
    Path("p/gone.png").symlink_to("nowhere.png")
    assert "No such file" in reasons(Folder(path="p"))["p/gone.png"]


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_archives_are_listed_and_read_like_folders(name: str) -> None:
    members = {"in/b.png": png(1), "in/a.png": png(2), "notes.txt": b"x", "__MACOSX/in/._a.png": b"x"}
    write_zip(name, members) if name.endswith("zip") else write_tar(name, members, "w:gz" if "gz" in name else "w")
    assert wheres(Folder(path=name)) == [f"{name}!in/a.png", f"{name}!in/b.png"]
    assert read_source_image(f"{name}!in/b.png") == png(1)
    with pytest.raises(UnreadableFile, match="not in the archive"):
        read(f"{name}!in/c.png")


def test_a_tar_of_the_folder_itself_is_read_too() -> None:
    write_tar("a.tar", {"./b.png": png(1), "./in/a.png": png(2), "./.hidden.png": png(3)}, "w")
    assert wheres(Folder(path="a.tar")) == ["a.tar!b.png", "a.tar!in/a.png"]
    assert read_source_image("a.tar!in/a.png") == png(2)


def test_an_exclamation_mark_in_a_file_name_is_no_archive() -> None:
    write_pngs("p/wow!.png")
    assert read_source_image(*wheres(Folder(path="p"))) == png()


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "in/../../a.png", "..\\a.png", "C:\\a.png"])
@pytest.mark.parametrize("archive", ["a.zip", "a.tar"])
def test_members_that_lead_out_of_their_archive_are_refused(name: str, archive: str) -> None:
    (write_zip if archive == "a.zip" else write_tar)(archive, {name: png()})
    ((uri, reason),) = reasons(Folder(path=archive)).items()
    assert reason == "its path points outside the archive"
    with pytest.raises(UnreadableFile, match="points outside"):
        read(uri)


def test_links_in_archives_are_refused() -> None:
    with tarfile.open("a.tar", "w") as archive:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert reasons(Folder(path="a.tar")) == {"a.tar!a.png": "a link or device in an archive"}


def test_a_member_that_unpacks_to_gigabytes_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.places.MAX_FILE_BYTES", 100)
    write_zip("a.zip", {"a.png": bytes(101)})
    assert "too many" in reasons(Folder(path="a.zip"))["a.zip!a.png"]


def test_urls_are_listed_and_read_like_folders() -> None:
    write_pngs("p/b.png", "p/sub/a.png", "p/notes.txt")
    place = f"file://{Path('p').absolute()}"
    assert [Path(uri).name for uri in wheres(Folder(path=place))] == ["b.png", "a.png"]
    assert read_source_image(wheres(Folder(path=place))[0]) == png(0)


def test_an_archive_behind_a_url_is_read_like_one_at_hand() -> None:
    write_zip("a.zip", {"in/a.png": png(7)})
    (uri,) = wheres(Folder(path=f"file://{Path('a.zip').absolute()}"))
    assert uri.endswith("a.zip!in/a.png") and read_source_image(uri) == png(7)


def test_pairs_of_two_folders_match_by_name_whatever_the_format() -> None:
    write_pngs(
        "d/target/a.png", "d/target/s/b.png", "d/input/a.jpg", "d/input/s/b.png", "d/input/c.png", "d/target/d.png"
    )
    source = Pairs(clean="d/target", degraded="d/input")
    assert {item.uri: item.degraded for item in candidates(source)} == {
        "d/target/a.png": "d/input/a.jpg",
        "d/target/s/b.png": "d/input/s/b.png",
    }
    assert reasons(source) == {
        "d/input/c.png": 'no clean partner for "c"; the other side has, for example, "a"',
        "d/target/d.png": 'no degraded partner for "d"; the other side has, for example, "a"',
    }


@pytest.mark.parametrize(
    ("clean", "degraded", "names"),
    [
        ("s/{}/GT_{}.PNG", "s/{}/NOISY_{}.PNG", ("s/01/GT_010.PNG", "s/01/NOISY_010.PNG")),
        ("g/{}/sharp/{}", "g/{}/blur/{}", ("g/x/sharp/1.png", "g/x/blur/1.png")),
        ("p/{}_mean.JPG", "p/{}_real.JPG", ("p/Canon_1_mean.JPG", "p/Canon_1_real.JPG")),
        ("p/{}.png", "p/{}_noisy.png", ("p/a.png", "p/a_noisy.png")),
        ("r/norain-{}.png", "r/rain-{}.png", ("r/norain-7.png", "r/rain-7.png")),
        ("{}_c.png", "{}_d.png", ("q/x_c.png", "q/x_d.png")),
    ],
)
def test_pairs_of_published_sets_match_by_pattern(clean: str, degraded: str, names: tuple[str, str]) -> None:
    write_pngs(*names)
    source = Pairs(clean=clean, degraded=degraded)
    assert [(item.uri, item.degraded) for item in candidates(source)] == [names]
    assert not reasons(source)


def test_one_clean_image_may_have_many_degraded_partners() -> None:
    write_pngs("r/c/901.jpg", "r/d/901_1.jpg", "r/d/901_2.jpg")
    source = Pairs(clean="r/c/{}.jpg", degraded="r/d/{}_*.jpg")
    assert [(i.uri, i.degraded) for i in candidates(source)] == [
        ("r/c/901.jpg", "r/d/901_1.jpg"),
        ("r/c/901.jpg", "r/d/901_2.jpg"),
    ]


def test_a_degraded_image_with_two_clean_partners_is_left_out() -> None:
    write_pngs("c/a.png", "c/a.jpg", "d/a.png")
    assert not candidates(Pairs(clean="c", degraded="d"))
    assert "2 clean partners: c/a.jpg, c/a.png" in reasons(Pairs(clean="c", degraded="d"))["d/a.png"]


def test_pairs_may_lie_in_an_archive() -> None:
    write_zip("a.zip", {"target/a.png": png(1), "input/a.png": png(2)})
    pairs = candidates(Pairs(clean="a.zip!target/{}", degraded="a.zip!input/{}"))
    assert [(item.uri, item.degraded) for item in pairs] == [("a.zip!target/a.png", "a.zip!input/a.png")]


def test_a_folder_of_an_archive_is_a_source_of_its_own() -> None:
    write_zip("a.zip", {"set/target/a.png": png(1), "set/target/s/b.png": png(2), "set/input/a.png": png(3)})
    assert wheres(Folder(path="a.zip!set/target")) == ["a.zip!set/target/a.png", "a.zip!set/target/s/b.png"]
    pairs = candidates(Pairs(clean="a.zip!set/target/", degraded="a.zip!set/input"))
    assert [(item.uri, item.degraded) for item in pairs] == [("a.zip!set/target/a.png", "a.zip!set/input/a.png")]
    with pytest.raises(
        NoSuchPlace, match=r"a\.zip!target: no such folder in the archive; the archive holds, for example, set/input/a"
    ):
        list(list_images(Folder(path="a.zip!target")))


def test_a_folder_may_be_narrowed_by_a_pattern() -> None:
    write_pngs("s/01/GT_1.png", "s/02/GT_2.png", "s/01/NOISY_1.png")
    assert wheres(Folder(path="s/{}/GT_{}.png")) == ["s/01/GT_1.png", "s/02/GT_2.png"]
    assert reasons(Folder(path="s/*/GT_*")) == {"s/01/NOISY_1.png": "does not match the pattern"}


def test_patterns_that_share_nothing_alike_are_refused() -> None:
    write_pngs("c/a.png")
    with pytest.raises(ValueError, match="the same number of"):
        list(list_images(Pairs(clean="c/{}", degraded="d/{}/{}")))


def test_a_wrong_pattern_leaves_every_file_to_be_seen_in_the_report() -> None:
    write_pngs("p/a_gt.png", "p/a_in.png")
    assert set(reasons(Pairs(clean="p/{}_GT.png", degraded="p/{}_IN.png")).values()) == {"matches neither pattern"}


def test_every_source_can_be_written_in_params() -> None:
    from pipeline.preparation.settings import Prepare

    content = {
        "sources": [
            {"kind": "starter"},
            {"kind": "folder", "path": "p"},
            {"kind": "pairs", "clean": "c", "degraded": "d"},
        ],
        "min_side": 64,
        "max_megapixels": 100.0,
        "split": {"val": 0.1, "test": 0.2},
    }
    sources = Prepare.model_validate(content).sources
    assert sources == [Starter(), Folder(path="p"), Pairs(clean="c", degraded="d")]
    for wrong in ({"kind": "folder"}, {"kind": "folder", "path": "p", "pth": 1}, {"kind": "filder", "path": "p"}):
        with pytest.raises(ValueError, match="sources"):
            Prepare.model_validate({**content, "sources": [wrong]})
    with pytest.raises(ValueError, match="must be at most 178, the largest that Pillow reads"):
        Prepare.model_validate({**content, "max_megapixels": 179.0})
    with pytest.raises(ValueError, match="leave nothing for train"):
        Prepare.model_validate({**content, "split": {"val": 0.5, "test": 0.5}})


def test_a_part_of_a_name_is_the_longest_that_a_clean_image_has() -> None:
    for name in ("0025.png", "0026_a.png", "0026.png", "0027.png"):
        save(f"d/clean/{name}")
    for name in ("0025_0.8_0.04.jpg", "0025_1.png", "0026_a_1.JPG", "0026_b_1.jpg", "0028_0.9_0.1.jpg"):
        save(f"d/hazy/{name}")
    found = list(list_images(Pairs(clean="d/clean/{}.png", degraded="d/hazy/{}_*.jpg")))
    pairs = {(item.uri, item.degraded) for item in found if isinstance(item, Candidate)}
    assert pairs == {
        ("d/clean/0025.png", "d/hazy/0025_0.8_0.04.jpg"),
        ("d/clean/0026_a.png", "d/hazy/0026_a_1.JPG"),
        ("d/clean/0026.png", "d/hazy/0026_b_1.jpg"),
    }
    reasons = {item.uri: item.reason for item in found if isinstance(item, RejectedImage)}
    assert reasons == {
        "d/hazy/0025_1.png": "matches neither pattern",
        "d/hazy/0028_0.9_0.1.jpg": 'no clean partner for "0028_0.9" or "0028"; the other side has, for example, "0025"',
        "d/clean/0027.png": 'no degraded partner for "0027"; the other side has, for example, "0025_0.8"',
    }


def test_several_parts_are_matched_in_every_way() -> None:
    for name in ("a/b/1.png", "a/b_c/2.png"):
        save(f"d/clean/{name}")
        save(f"d/rain/{name.replace('/', '_')}")
    found = list(list_images(Pairs(clean="d/clean/{}/{}.png", degraded="d/rain/{}_{}.png")))
    assert {
        item.degraded for item in found if isinstance(item, Candidate)
    } == set()  # "a/b" has a slash, "a_b" has none
    found = list(list_images(Pairs(clean="d/clean/a/{}/{}.png", degraded="d/rain/a_{}_{}.png")))
    assert {(item.uri, item.degraded) for item in found if isinstance(item, Candidate)} == {
        ("d/clean/a/b/1.png", "d/rain/a_b_1.png"),
        ("d/clean/a/b_c/2.png", "d/rain/a_b_c_2.png"),
    }


def test_a_file_with_the_name_of_a_member_of_an_archive_is_read() -> None:
    save("p/x.zip!y.png")
    (uri,) = [item.uri for item in list_images(Folder(path="p")) if isinstance(item, Candidate)]
    assert read(uri) == png()


def test_a_pattern_of_many_wildcards_ends() -> None:
    name = "a" * 60
    keys = Pattern.parse("p/{}*{}*{}*.jpg").keys(f"{name}.jpg")
    assert len(keys) <= MOST_WAYS + 1
    assert keys[0] == (name[:-2], "a", "a")


def test_links_to_themselves_pipes_and_names_that_are_not_utf8_are_left_out_with_the_reason() -> None:
    save("p/a.png")
    Path("p/loop.png").symlink_to("loop.png")
    Path("p/loop").symlink_to("loop")
    Path("p/here").symlink_to(".")
    Path("p/up").symlink_to("..")
    Path("p/nothing.png").symlink_to("nothing")
    save("outside.png")
    os.mkfifo("p/pipe.jpg")
    Path(os.fsdecode(b"p/\xff.png")).write_bytes(b"")
    found = list(list_images(Folder(path="p")))
    assert [item.uri for item in found if isinstance(item, Candidate)] == ["p/a.png"]
    reasons = {item.uri: item.reason for item in found if isinstance(item, RejectedImage)}
    assert reasons == {
        "p/loop.png": "cannot be read: Too many levels of symbolic links",
        "p/loop": "cannot be read: Too many levels of symbolic links",
        "p/here": "a link to a folder that contains it",
        "p/up": "a link to a folder that contains it",
        "p/nothing.png": "cannot be read: No such file or directory",
        "p/pipe.jpg": "a pipe, socket or device, not a file",
        "p/\\xff.png": "its name is not UTF-8; rename it",
    }


def zipped(*members: tuple[str, int, int]) -> None:
    """An archive of members by name, compression method and flags, each of four bytes."""
    with zipfile.ZipFile("p.zip", "w") as archive:
        for name, _, _ in members:
            archive.writestr(zipfile.ZipInfo(name), b"four")
    data = bytearray(Path("p.zip").read_bytes())
    for signature, flags_at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        position = 0
        for _, method, flags in members:
            position = data.index(signature, position)
            struct.pack_into("<HH", data, position + flags_at, flags, method)
            position += 4
    Path("p.zip").write_bytes(data)


def test_members_with_backslashes_lie_in_folders() -> None:
    with zipfile.ZipFile("p.zip", "w") as archive:
        archive.writestr("photos\\", b"")
        archive.writestr("photos\\a.png", png(1))
        archive.writestr("..\\b.png", png(1))
    found = list(list_images(Folder(path="p.zip!photos")))
    assert [item.uri for item in found] == ["p.zip!photos/a.png"]
    assert read("p.zip!photos/a.png") == png(1)
    assert [item.reason for item in list_images(Folder(path="p.zip")) if isinstance(item, RejectedImage)] == [
        "its path points outside the archive"
    ]


def test_members_that_python_cannot_unpack_are_named_by_their_compression() -> None:
    zipped(("a.png", 9, 0), ("b.png", 98, 0), ("c.png", 77, 0), ("d.png", 0, 1), ("e.png", 0, 0))
    found = {item.uri: item.reason for item in list_images(Folder(path="p.zip")) if isinstance(item, RejectedImage)}
    assert {uri: reason.split(",")[0].split(";")[0] for uri, reason in found.items()} == {
        "p.zip!a.png": "compressed with Deflate64",
        "p.zip!b.png": "compressed with PPMd",
        "p.zip!c.png": "compressed with method 77",
        "p.zip!d.png": "encrypted",
    }
    assert read("p.zip!e.png") == b"four"


def test_a_part_of_a_split_archive_is_not_called_damaged() -> None:
    zipped(("a.png", 0, 0))
    data = bytearray(Path("p.zip").read_bytes())
    end = data.rindex(b"PK\5\6")
    data[end:end] = struct.pack("<4sLQL", b"PK\6\7", 1, end, 2)  # locator of zip64: two disks
    Path("p.zip").write_bytes(data)
    with pytest.raises(StorageError, match="one part of a split archive"):
        list(list_images(Folder(path="p.zip")))


def test_the_last_part_of_a_split_archive_is_not_called_damaged() -> None:
    zipped(("a.png", 0, 0))
    data = bytearray(Path("p.zip").read_bytes())
    struct.pack_into("<H", data, data.rindex(b"PK\5\6") + 4, 2)  # it lies on the third disk
    Path("p.zip").write_bytes(data)
    with pytest.raises(StorageError, match="one part of a split archive"):
        list(list_images(Folder(path="p.zip")))


@pytest.mark.parametrize("name", ["p.7z", "p.rar", "p.zip", "p.tar"])
@pytest.mark.parametrize(("start", "kind"), [(b"7z\xbc\xaf\x27\x1c", "7z"), (b"Rar!\x1a\x07\x01", "RAR")])
def test_archives_of_other_kinds_are_named(name: str, start: bytes, kind: str) -> None:
    Path(name).write_bytes(start + bytes(1000))
    with pytest.raises(StorageError, match=f"a {kind} archive, which is not supported; unpack it into a folder"):
        list(list_images(Folder(path=name)))


@pytest.mark.parametrize("name", ["pipe.zip", "pipe.tar", "pipe.tar.gz"])
def test_a_pipe_with_the_name_of_an_archive_is_refused(name: str) -> None:
    os.mkfifo(name)
    with pytest.raises(StorageError, match="not a regular file"):
        list(list_images(Folder(path=name)))


def test_a_zip_whose_names_are_not_in_the_encoding_that_it_declares_says_so() -> None:
    with zipfile.ZipFile("p.zip", "w") as archive:
        archive.writestr("grün.png", b"four")
    data = Path("p.zip").read_bytes()
    Path("p.zip").write_bytes(data.replace("grün".encode(), b"gr\xfc\xfcn"))
    with pytest.raises(StorageError, match=r"not in the encoding that the archive declares .* unpack it"):
        list(list_images(Folder(path="p.zip")))


def test_patches_and_strong_encryption_are_named() -> None:
    zipped(("a.png", 0, 0x20), ("b.png", 0, 0x40))
    assert {uri: reason.split(",")[0].split(";")[0] for uri, reason in reasons(Folder(path="p.zip")).items()} == {
        "p.zip!a.png": "a patch of another file",
        "p.zip!b.png": "encrypted",
    }


def test_members_of_a_tar_whose_names_are_not_utf8_are_left_out() -> None:
    write_tar("p.tar", {"a.png": png(), "\udcff.png": png()})
    assert wheres(Folder(path="p.tar")) == ["p.tar!a.png"]
    assert reasons(Folder(path="p.tar")) == {"p.tar!\\xff.png": "its name is not UTF-8; rename it"}


def test_suffixes_may_differ_where_a_pattern_ends_in_the_shared_part() -> None:
    for name in ("clean/1.JPG", "clean/2.png", "clean/3.png", "clean/3.jpg", "bad/1.jpg", "bad/2.jpg", "bad/3.jpg"):
        save(name)
    pairs = candidates(Pairs(clean="clean/{}", degraded="bad/{}"))
    assert [(pair.uri, pair.degraded) for pair in pairs] == [
        ("clean/1.JPG", "bad/1.jpg"), ("clean/2.png", "bad/2.jpg"), ("clean/3.jpg", "bad/3.jpg"),
    ]  # fmt: skip


def test_a_literal_after_a_wildcard_is_found_wherever_it_is() -> None:
    assert Pattern.parse("p/{}_*.jpg").keys("a_b_c.JPG") == [("a_b",), ("a",)]
    assert Pattern.parse("p/{}__*").keys("a___b") == [("a_",), ("a",)]
    assert Pattern.parse("p/{}_long_literal.jpg").keys("a.jpg") == []
