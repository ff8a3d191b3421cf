"""A checkout with few photographs whose synthesis runs in this process."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dgunet.images import read_image, write_image
from pipeline.cluster import session, tasks
from pipeline.sources.hashing import pixel_hash
from pipeline.sources.manifest import Entry, write_manifest

SETTINGS: dict[str, Any] = {
    "degradation": {"kind": "jpeg", "quality": [10, 40], "chroma": "4:2:0"}, "real_pairs": [], "channels": 3,
    "tile_size": 32, "stride": 24, "held_out_tile_size": 48, "copies": 2, "online": False, "tiles_per_shard": 7,
}  # fmt: skip
ARGUMENTS = ["synthesize", "--task", "restore", "--manifest", "manifest.jsonl", "--out", "data/shards/restore"]
OUT = Path("data/shards/restore")


def photograph(path: str, number: int, split: str) -> Entry:
    rng = np.random.default_rng(number)
    write_image(path, rng.random((61 + number, 90, 3), dtype=np.float32))
    image = read_image(path)
    sha256 = pixel_hash(image)
    height, width = image.shape[:2]
    return Entry(
        uri=path, sha256=sha256, height=height, width=width, split=split, scene=sha256, source="folder:."  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture
def synthesis_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with photographs, manifest and params.yaml; Ray is replaced by a loop."""
    monkeypatch.chdir(tmp_path)
    splits = ("train", "train", "train", "val", "test")
    entries = [photograph(f"{number}.png", number, split) for number, split in enumerate(splits)]
    write_manifest(Path("manifest.jsonl"), entries)
    Path("params.yaml").write_text(
        yaml.safe_dump({"tasks": ["restore"], "seed": 5, "restore": {"synthesize": SETTINGS}})
    )
    monkeypatch.setattr(sys, "argv", ARGUMENTS)
    monkeypatch.setattr(session, "session", nullcontext)
    monkeypatch.setattr(tasks, "map_unordered", map)
    monkeypatch.delenv("DGUNET_SHARDS", raising=False)
    return tmp_path


def interrupted_after(number: int) -> Callable[..., Iterator[Any]]:
    def work(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        for done, item in enumerate(items):
            if done == number:
                raise KeyboardInterrupt
            yield function(item)

    return work
