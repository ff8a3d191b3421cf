"""Inspection of images and its cache: kept until a file changes, replaced when damaged."""

import errno
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from processes import SmallDisk

from dgunet.images import write_image
from pipeline.preparation import inspection
from pipeline.preparation.inspection import group_scenes, inspect_images
from pipeline.preparation.inspection_cache import Inspection
from pipeline.preparation.near_duplicates import name_scenes
from pipeline.sources.hashing import pixel_hash
from pipeline.sources.listing import Candidate, Folder, list_images
from pipeline.sources.places import StorageError


@pytest.fixture
def inspected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Six images in the folder p of an empty checkout, and the list of those that are decoded."""
    monkeypatch.chdir(tmp_path)
    Path("p").mkdir()
    for number in range(6):
        draw(number)
    uris: list[str] = []
    inspect_image = inspection.inspect_image

    def recording(candidate: Candidate, *, max_pixels: int) -> Inspection:
        uris.append(candidate.uri)
        return inspect_image(candidate, max_pixels=max_pixels)

    monkeypatch.setattr(inspection, "inspect_image", recording)
    return uris


def draw(number: int, seed: int | None = None) -> Path:
    rng = np.random.default_rng(number if seed is None else seed)
    path = Path(f"p/{number}.png")
    write_image(path, cv2.resize(rng.random((6, 6, 3), np.float32), (48, 40)))
    return path


def inspect(max_pixels: int = 10**6) -> dict[str, Inspection]:
    candidates = [item for item in list_images(Folder(path="p")) if isinstance(item, Candidate)]
    return {item.uri: found for item, found in inspect_images(candidates, max_pixels, Path("cache/inspections.sqlite"))}


def test_an_unchanged_image_is_not_decoded_again_and_nothing_else_differs(inspected: list[str]) -> None:
    Path("p/broken.png").write_bytes(b"x")
    first = inspect()
    assert len(inspected) == 7 and first["p/broken.png"].reason and first["p/1.png"].width == 48
    assert inspect() == first and len(inspected) == 7
    draw(3, seed=33)
    changed = inspect()
    assert inspected[7:] == ["p/3.png"] and {uri for uri in first if first[uri] != changed[uri]} == {"p/3.png"}
    Path("cache/inspections.sqlite").unlink()
    assert inspect() == changed


def test_another_pixel_limit_is_another_inspection(inspected: list[str]) -> None:
    assert not any(found.reason for found in inspect().values())
    assert all(found.reason for found in inspect(max_pixels=100).values()) and len(inspected) == 12


def test_an_image_that_was_incomplete_is_inspected_again_when_it_changes(inspected: list[str]) -> None:
    whole = Path("p/1.png").read_bytes()
    Path("p/1.png").write_bytes(whole[:500])
    assert inspect()["p/1.png"].reason
    Path("p/1.png").write_bytes(whole)
    assert not inspect()["p/1.png"].reason and len(inspected) == 7


CACHE_FILE = Path("cache/inspections.sqlite")


def no_database(content: bytes) -> bytes:
    return b"no database at all, but as long as one " * (len(content) // 39 + 1)


def other_tables(_: bytes) -> bytes:
    with closing(sqlite3.connect("other.sqlite")) as database:
        database.execute("CREATE TABLE inspections (key TEXT, found TEXT)")
        database.commit()
    return Path("other.sqlite").read_bytes()


@pytest.mark.parametrize("damage", [no_database, other_tables, lambda content: content[:100]])
def test_a_file_that_is_no_cache_is_deleted_and_filled_again(
    inspected: list[str], capsys: pytest.CaptureFixture[str], damage: Callable[[bytes], bytes]
) -> None:
    first = inspect()
    CACHE_FILE.write_bytes(damage(CACHE_FILE.read_bytes()))
    assert inspect() == first and len(inspected) == 12
    assert "cache/inspections.sqlite is damaged" in capsys.readouterr().err
    assert inspect() == first and len(inspected) == 12


@pytest.mark.parametrize("length", [4096, 4097, 8192, 12288, -4096, -1])
def test_a_truncated_cache_changes_no_result(inspected: list[str], length: int) -> None:
    first = inspect()
    content = CACHE_FILE.read_bytes()
    assert len(content) >= 5 * 4096, "the pages that are cut off must exist"
    CACHE_FILE.write_bytes(content[:length])
    assert inspect() == first
    assert group(first) == scenes(first)
    decoded = len(inspected)
    assert inspect() == first and len(inspected) == decoded, "the cache is whole again"


def test_damaged_bytes_anywhere_in_the_cache_change_no_result(inspected: list[str]) -> None:
    first = inspect()
    group(first)
    content = CACHE_FILE.read_bytes()
    for start in [*range(0, 100, 5), *range(100, len(content), 509)]:
        damaged = bytearray(content)
        damaged[start : start + 5] = bytes(value ^ 0xA5 for value in damaged[start : start + 5])
        CACHE_FILE.write_bytes(damaged)
        assert inspect() == first, start
        assert group(first) == scenes(first), start


def test_damaged_pages_in_the_middle_change_no_result(inspected: list[str]) -> None:
    first = inspect()
    group(first)
    content = CACHE_FILE.read_bytes()
    for start in range(0, len(content), 4096):
        CACHE_FILE.write_bytes(content[:start] + b"\xff" * 4096 + content[start + 4096 :])
        assert inspect() == first and group(first) == scenes(first), start


def test_a_full_disk_is_reported_as_a_full_disk_and_the_cache_stays(
    inspected: list[str], small_disk: SmallDisk
) -> None:
    small_disk(Path("cache"), "1m")
    inspect()
    before = CACHE_FILE.read_bytes()
    with closing(sqlite3.connect(CACHE_FILE)) as database, suppress(sqlite3.OperationalError):
        database.execute("CREATE TABLE filling AS SELECT zeroblob(4096) FROM inspections")
        database.commit()
    before = CACHE_FILE.read_bytes()
    with suppress(OSError), Path("cache/filling").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    for number in range(6):
        draw(number, seed=number + 10)
    with pytest.raises(OSError, match="No space left on device") as error:
        inspect()
    assert error.value.errno == errno.ENOSPC
    Path("cache/filling").unlink()
    assert CACHE_FILE.read_bytes() == before
    assert len(inspect()) == 6


def test_a_cache_that_cannot_be_written_is_an_error_that_names_it(inspected: list[str], small_disk: SmallDisk) -> None:
    small_disk(Path("cache"), "1m")
    inspect()
    before = CACHE_FILE.read_bytes()
    small_disk(Path("cache"), "1m,ro")
    draw(0, seed=10)
    with pytest.raises(OSError, match=r"cache/inspections\.sqlite: .*readonly"):
        inspect()
    assert CACHE_FILE.read_bytes() == before


def test_a_folder_that_cannot_be_made_for_the_cache_is_an_error_that_names_it(inspected: list[str]) -> None:
    Path("cache").touch()
    with pytest.raises(OSError, match="cache"):
        inspect()


def group(found: dict[str, Inspection]) -> dict[str, str]:
    return group_scenes({one.sha256: one.thumbnail for one in found.values()}, CACHE_FILE)


def scenes(found: dict[str, Inspection]) -> dict[str, str]:
    return name_scenes({one.sha256: one.thumbnail for one in found.values()})


def test_inspections_before_a_failure_are_kept(inspected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    recording = inspection.inspect_image

    def failing(candidate: Candidate, *, max_pixels: int) -> Inspection:
        if candidate.uri == "p/5.png":
            raise StorageError("s3://bucket: cannot be reached")
        return recording(candidate, max_pixels=max_pixels)

    with monkeypatch.context() as broken:
        broken.setattr(inspection, "inspect_image", failing)
        with pytest.raises(StorageError):
            inspect()
    assert len(inspect()) == 6 and inspected[5:] == ["p/5.png"]


def test_an_image_without_a_version_tag_is_inspected_each_time(inspected: list[str]) -> None:
    for _ in range(2):
        list(inspect_images([Candidate("p/1.png", None, "folder:p")], 10**6, Path("inspections.sqlite")))
    assert inspected == ["p/1.png", "p/1.png"]


def test_scenes_are_grouped_once_for_the_same_images(inspected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    thumbnails = {found.sha256: found.thumbnail for found in inspect().values()}
    groups = group_scenes(thumbnails, Path("inspections.sqlite"))
    with monkeypatch.context() as broken:
        broken.setattr("pipeline.preparation.near_duplicates.name_scenes", None)
        assert group_scenes(thumbnails, Path("inspections.sqlite")) == groups
        with pytest.raises(TypeError):
            group_scenes({**thumbnails, "f" * 64: bytes(1024)}, Path("inspections.sqlite"))


def test_a_killed_run_loses_the_last_images_only(inspected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "_CHUNK", 2)
    candidates = [item for item in list_images(Folder(path="p")) if isinstance(item, Candidate)]
    running = inspect_images(candidates, 10**6, Path("inspections.sqlite"))
    for _ in range(5):
        next(running)
    with closing(sqlite3.connect("inspections.sqlite")) as other:  # sees what is on disk, as a later run would
        assert other.execute("SELECT COUNT(*) FROM inspections").fetchone() == (4,)
    running.close()


def test_the_hash_depends_on_the_shape() -> None:
    values = np.arange(24, dtype=np.float32)
    assert pixel_hash(values.reshape(2, 4, 3)) != pixel_hash(values.reshape(4, 2, 3))
