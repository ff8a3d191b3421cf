"""Photographs, shards of them, a small model, and what it makes of each photograph by itself."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from dgunet.checkpoint import load_model, save_model
from dgunet.config import CARD_FILE, WEIGHTS_FILE
from dgunet.images import Photo, read_photo, write_photo
from dgunet.inference import restore
from dgunet.network import DGUNet, DGUNetConfig


def save_small_model(folder: Path, seed: int = 0) -> Path:
    """A network of random weights."""
    save_model(DGUNet.with_seed(DGUNetConfig(width=4, growth=2, head_growth=2, num_stages=2), seed), folder, {})
    return folder


def model_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (CARD_FILE, WEIGHTS_FILE)}


def write_photos(folder: str, count: int = 9) -> list[str]:
    """Photographs of several formats and sizes, some in a folder below; returns their names in order."""
    rng = np.random.default_rng(0)
    names = []
    for number in range(count):
        name = f"{'sub/' if number % 4 == 3 else ''}{number:03d}.{('png', 'jpg', 'tif')[number % 3]}"
        pixels = rng.integers(0, 256, (12 + number % 7, 17, 1 if number % 5 == 4 else 3), np.uint8)
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_photo(path, Photo(pixels))
        names.append(name)
    return sorted(names)


def write_shard_of(path: str, photos: list[Path]) -> None:
    """A shard as other programs write it: each photograph with a caption."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for photo in photos:
            name = "-".join(photo.parts[1:])
            caption = f"{Path(name).stem}.txt"
            for member, content in ((name, photo.read_bytes()), (caption, b"a caption")):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def member_bytes(path: str) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def expected(model: Path, photo: Path) -> bytes:
    """The file that a photograph becomes when it is restored by itself."""
    found = read_photo(photo)
    target = photo.with_name(f"expected{photo.suffix}")
    write_photo(target, replace(found, pixels=restore(load_model(model), found.pixels)))
    try:
        return target.read_bytes()
    finally:
        target.unlink()
