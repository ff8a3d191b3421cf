"""Scenes told apart, and seen again in near duplicates."""

import cv2
import numpy as np
import pytest
from factories import image_set
from jaxtyping import Float32, UInt8
from skimage.data import astronaut, chelsea, coffee, rocket

from dgunet.images import read_image
from pipeline.preparation.near_duplicates import name_scenes, same_scene, shared_scenes, thumbnail

Picture = Float32[np.ndarray, "H W 3"]


def scene(number: int, height: int = 96, width: int = 128) -> Picture:
    """A picture unlike all others: smooth random shapes at several scales."""
    rng = np.random.default_rng(number)
    layers = [
        cv2.resize(rng.random((n, n, 3), np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        for n in (5, 9, 17)
    ]
    return np.clip(np.asarray(sum(layers), np.float32) / 3, 0, 1)


@pytest.mark.slow
def test_real_photographs_are_different_scenes_and_their_copies_are_found() -> None:
    large, colour, same_in_gray = image_set("CBSD400"), image_set("CBSD68"), image_set("BSD68")
    photos = [read_image(path) for path in sorted(large.glob("*/*.jpg"))[::2] + sorted(colour.iterdir())]
    thumbnails = [thumbnail(photo) for photo in photos]
    assert same_scene(np.stack(thumbnails)) == []
    gray = [thumbnail(read_image(path)) for path in sorted(same_in_gray.iterdir())]
    first = len(photos) - len(gray)
    assert same_scene(np.stack(thumbnails + gray)) == [[first + n, len(photos) + n] for n in range(len(gray))]


def test_groups_across_blocks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.preparation.near_duplicates._BLOCK", 4)
    rows = [thumbnail(scene(number)) for number in (0, 1, 2, 3, 4, 0, 5, 2, 6, 0, 7)]
    rows[7] = rows[7][:, ::-1]
    assert same_scene(np.stack(rows)) == [[0, 5, 9], [2, 7]]


def test_a_group_bears_the_smallest_hash_of_its_scene() -> None:
    one, other = thumbnail(scene(1)).tobytes(), thumbnail(scene(2)).tobytes()
    names = {"c" * 64: one, "b" * 64: other, "d" * 64: one, "a" * 64: thumbnail(scene(3)).tobytes()}
    assert name_scenes(names) == {"a" * 64: "a" * 16, "b" * 64: "b" * 16, "c" * 64: "c" * 16, "d" * 64: "c" * 16}


COPIES = {
    "recompressed": (lambda image: recompressed(image, quality=20), True),
    "resized": (lambda image: cv2.resize(image, None, fx=0.3, fy=0.3, interpolation=cv2.INTER_AREA), True),
    "mirrored": (lambda image: image[:, ::-1], True),
    "cropped by 3 % at each side": (lambda image: cropped(image, 0.03), True),
    "cropped by 20 % at each side": (lambda image: cropped(image, 0.2), False),
}


def recompressed(image: UInt8[np.ndarray, "H W 3"], quality: int) -> UInt8[np.ndarray, "H W 3"]:
    _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR))


def cropped(image: UInt8[np.ndarray, "H W 3"], share: float) -> UInt8[np.ndarray, "h w 3"]:
    height, width = (round(share * side) for side in image.shape[:2])
    return image[height:-height, width:-width]


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_real_photographs_are_found_in_another_set(name: str) -> None:
    change, is_found = COPIES[name]
    photos = [astronaut(), chelsea(), coffee(), rocket()]
    others = [thumbnail(np.ascontiguousarray(change(photo), np.float32) / 255) for photo in photos[:2]]
    rows = np.stack([thumbnail(photo.astype(np.float32) / 255) for photo in photos])
    assert shared_scenes(np.stack(others), rows) == ([(0, 0), (1, 1)] if is_found else [])


def test_pairs_between_sets_are_found_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.preparation.near_duplicates._BLOCK", 3)
    rows = np.stack([thumbnail(scene(number)) for number in (0, 1, 2, 3, 0, 5, 6, 2)])
    assert shared_scenes(np.stack([thumbnail(scene(number)) for number in (2, 9, 0)]), rows) == [
        (0, 2), (0, 7), (2, 0), (2, 4),
    ]  # fmt: skip
