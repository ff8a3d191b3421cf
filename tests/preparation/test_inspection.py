"""What was seen of an image is remembered until its file changes."""

import sqlite3
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from dgunet.images import write_image
from pipeline.preparation import inspection
from pipeline.preparation.inspection import Inspection, group_scenes, inspect_images
from pipeline.sources.hashing import pixel_hash
from pipeline.sources.listing import Candidate, Folder, list_images
from pipeline.sources.places import StorageError


@pytest.fixture
def looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Six images in the folder p of an empty checkout, and the list of those that are decoded."""
    monkeypatch.chdir(tmp_path)
    Path("p").mkdir()
    for number in range(6):
        draw(number)
    seen: list[str] = []
    look = inspection.inspect_image

    def noting(candidate: Candidate, *, max_pixels: int) -> Inspection:
        seen.append(candidate.uri)
        return look(candidate, max_pixels=max_pixels)

    monkeypatch.setattr(inspection, "inspect_image", noting)
    return seen


def draw(number: int, seed: int | None = None) -> Path:
    rng = np.random.default_rng(number if seed is None else seed)
    path = Path(f"p/{number}.png")
    write_image(path, cv2.resize(rng.random((6, 6, 3), np.float32), (48, 40)))
    return path


def look(max_pixels: int = 10**6) -> dict[str, Inspection]:
    candidates = [item for item in list_images(Folder(path="p")) if isinstance(item, Candidate)]
    return {item.uri: seen for item, seen in inspect_images(candidates, max_pixels, Path("cache/memory.sqlite"))}


def test_an_unchanged_image_is_not_decoded_again_and_nothing_else_differs(looked: list[str]) -> None:
    Path("p/broken.png").write_bytes(b"x")
    first = look()
    assert len(looked) == 7 and first["p/broken.png"].reason and first["p/1.png"].width == 48
    assert look() == first and len(looked) == 7
    draw(3, seed=33)
    changed = look()
    assert looked[7:] == ["p/3.png"] and {uri for uri in first if first[uri] != changed[uri]} == {"p/3.png"}
    Path("cache/memory.sqlite").unlink()
    assert look() == changed


def test_another_pixel_limit_is_another_look(looked: list[str]) -> None:
    assert not any(seen.reason for seen in look().values())
    assert all(seen.reason for seen in look(max_pixels=100).values()) and len(looked) == 12


def test_an_image_cut_while_it_was_copied_is_seen_when_it_is_whole(looked: list[str]) -> None:
    whole = Path("p/1.png").read_bytes()
    Path("p/1.png").write_bytes(whole[:500])
    assert look()["p/1.png"].reason
    Path("p/1.png").write_bytes(whole)
    assert not look()["p/1.png"].reason and len(looked) == 7


def test_a_damaged_memory_is_forgotten(looked: list[str]) -> None:
    first = look()
    Path("cache/memory.sqlite").write_bytes(b"no database at all, but long enough to be looked at" * 100)
    assert look() == first and len(looked) == 12


def test_what_was_seen_before_a_failure_is_remembered(looked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    noting = inspection.inspect_image

    def failing(candidate: Candidate, *, max_pixels: int) -> Inspection:
        if candidate.uri == "p/5.png":
            raise StorageError("s3://bucket: cannot be reached")
        return noting(candidate, max_pixels=max_pixels)

    with monkeypatch.context() as broken:
        broken.setattr(inspection, "inspect_image", failing)
        with pytest.raises(StorageError):
            look()
    assert len(look()) == 6 and looked[5:] == ["p/5.png"]


def test_an_image_without_a_sign_of_change_is_looked_at_each_time(looked: list[str]) -> None:
    for _ in range(2):
        list(inspect_images([Candidate("p/1.png", None, "folder:p")], 10**6, Path("memory.sqlite")))
    assert looked == ["p/1.png", "p/1.png"]


def test_scenes_are_grouped_once_for_the_same_images(looked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    thumbnails = {seen.sha256: seen.thumbnail for seen in look().values()}
    groups = group_scenes(thumbnails, Path("memory.sqlite"))
    with monkeypatch.context() as broken:
        broken.setattr("pipeline.preparation.near_duplicates.name_scenes", None)
        assert group_scenes(thumbnails, Path("memory.sqlite")) == groups
        with pytest.raises(TypeError):
            group_scenes({**thumbnails, "f" * 64: bytes(1024)}, Path("memory.sqlite"))


def test_a_killed_run_loses_the_last_images_only(looked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "_CHUNK", 2)
    candidates = [item for item in list_images(Folder(path="p")) if isinstance(item, Candidate)]
    running = inspect_images(candidates, 10**6, Path("memory.sqlite"))
    for _ in range(5):
        next(running)
    with closing(sqlite3.connect("memory.sqlite")) as other:  # sees what is on disk, as a later run would
        assert other.execute("SELECT COUNT(*) FROM looks").fetchone() == (4,)
    running.close()


def test_the_hash_tells_the_same_values_in_another_shape_apart() -> None:
    values = np.arange(24, dtype=np.float32)
    assert pixel_hash(values.reshape(2, 4, 3)) != pixel_hash(values.reshape(4, 2, 3))
